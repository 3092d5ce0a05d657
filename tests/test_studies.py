"""Every study under configs/ has right settings; those on digits run, with one seed, one epoch and few images."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from worlds import write_pictures

import softlabels

ROOT = Path(__file__).parents[1]
STUDIES = sorted(path.parent for path in (ROOT / "configs").rglob("study.yaml"))
TOGETHER = {"digits", "digits-recipes"}
"""Studies that are run in the quick tests; the others take longer."""


@pytest.fixture(autouse=True)
def pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    monkeypatch.chdir(tmp_path)


def module(name: str) -> Any:
    return importlib.import_module(name)


def name_of(folder: Path) -> str:
    return folder.relative_to(ROOT / "configs").as_posix()


def on_digits(folder: Path) -> bool:
    return name_of(folder).startswith("digits")


def check(command: str, given: dict[str, Any]) -> None:
    """Raises SoftlabelsError unless all settings are right and all networks, recipes, losses exist; opens no data."""
    softlabels.check(command, **{name: value for name, value in given.items() if name != "quiet"})


def evaluated(student: Path, **given: Any) -> Any:
    assert student.name == "last.safetensors"
    check("evaluate", {**given, "student": "cnn_tiny"})
    return SimpleNamespace(top1=0.5)


@pytest.mark.parametrize("folder", STUDIES, ids=name_of)
def test_every_setting_of_a_study_is_one_of_its_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = module("study").read(folder)
    assert study.out == f"runs/{name_of(folder)}"
    assert study.baseline in study.arms
    assert set(study.published) <= set(study.arms)
    more = getattr(module(study.pipeline), "LOOPS", {})
    module("study").check(study, lambda step: module("distill").check_step(step, more, study.out))
    # Loops call the commands: here these only check what they are given.
    monkeypatch.setattr(softlabels, "train", lambda **given: check("train", given))
    monkeypatch.setattr(softlabels, "dump", lambda **given: check("dump", given))
    monkeypatch.setattr(softlabels, "evaluate", evaluated)
    arms = [step for arm in study.arms for step in study.arm_steps(arm, study.seeds[-1])]
    for command, given in [*study.first_steps().values(), *arms]:
        if command in more:
            Path(given["rounds_in"]).mkdir(parents=True)
            more[command].run(**given)
        else:
            check(command, given)
        Path(given["out"]).mkdir(parents=True, exist_ok=True)  # there are settings that name a run which must be there


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(each, id=name_of(each), marks=[] if name_of(each) in TOGETHER else pytest.mark.slow)
        for each in STUDIES
        if on_digits(each)
    ],
)
def test_a_study_on_digits_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = module("study").read(folder, quick=True)
    pipeline = module(study.pipeline)
    rows = module("distill").run(study, more=getattr(pipeline, "LOOPS", {}))
    assert [row["run"] for row in rows] == list(study.arms)
    table = pd.read_csv(f"{study.out}/report/table.csv")
    assert set(table["arm"]) == set(study.arms)
    assert table["accuracy_mean"].notna().all()
    printed = capsys.readouterr().out
    assert printed.startswith(f"{study.title}\n")
    assert all(f"  {arm}, seed 0: top-1 " in printed for arm in study.arms)


def test_few_images_are_as_many_of_each_class_and_more_hold_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, digits = softlabels.open_images, softlabels.open_images("digits")
    stand_in = {"cifar10": digits}
    monkeypatch.setattr(
        softlabels,
        "open_images",
        lambda data, **more: stand_in[data] if isinstance(data, str) else opened(data, **more),
    )
    few_images = module("few_images")
    pool = set(few_images.pool().keys.to_pylist())
    assert len(pool) == 10 * few_images.POOL
    drawn = {}
    for seed in (0, 1):
        held: set[str] = set()
        for count in (1, 10, few_images.POOL):
            images = getattr(few_images, f"{count}-per-class-seed-{seed}")()
            assert np.bincount(images.labels).tolist() == [count] * 10
            keys = set(images.keys.to_pylist())
            assert held < keys <= pool
            held = drawn[seed, count] = keys
    assert drawn[0, 10] != drawn[1, 10]
    for name in ("101-per-class-seed-0", "0-per-class-seed-0", "10-per-class"):
        with pytest.raises(AttributeError, match=f"no images '{name}'; there are 1-per-class-seed-0 to"):
            getattr(few_images, name)


def test_triples_show_the_digits_of_their_class_and_students_are_judged_on_other_digits() -> None:
    triples = module("digit_triples")
    for split in ("train", "test"):
        images = getattr(triples, split)()
        digits = softlabels.open_images({"kind": "digits", "split": split})
        assert len(images) == triples.TRIPLES[split] and images.classes[7] == "007"
        for row in (0, 1, len(images) - 1):
            rows = [int(number) for number in images.keys[row].as_py().split("-")[1:]]
            assert int(images.labels[row]) == int("".join(str(digits.labels[each]) for each in rows))
            for channel, each in zip(images.decode(row), rows, strict=True):
                assert torch.equal(channel, digits.decode(each)[0])


def small_study(tmp_path: Path, **changes: Any) -> Path:
    """A folder with a study of three arms on a few images, one of them in steps and one that goes on from another."""
    photos = str(write_pictures(tmp_path / "photos"))
    train = {"student": "cnn_tiny", "size": 8, "epochs": 1, "batch_size": 8, "workers": 0, "device": "cpu"}
    dump = {"data": photos, "views": 2, "workers": 0, "device": "cpu"}
    study = {
        "title": "Small",
        "out": "out",
        "seeds": [0, 1],
        "baseline": "plain",
        "teachers": {"first": {**train, "data": photos}},
        "stores": {"labels": {**dump, "teacher": "file:$teachers/first"}},
        "common": {**train, "labels": "$stores/labels", "eval_data": photos},
        "arms": {
            "plain": {},
            "in-steps": [
                {"train": {"labels": None, "data": photos}},
                {"dump": {**dump, "teacher": "file:$step1"}},
                {"train": {"labels": "$step2", "temperature": 2}},
            ],
            "goes-on": {"student": None, "init": "$arms/plain/seed-$seed", "lr": 1e-4},
        },
        "published": {"plain": 12.5},
        **changes,
    }
    folder = tmp_path / "study"
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def distill(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines/distill.py"), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_arms_of_steps_and_arms_that_go_on_from_others_are_rows_of_the_table(tmp_path: Path) -> None:
    rows = module("distill").run(module("study").read(small_study(tmp_path)))
    assert [row["run"] for row in rows] == ["plain", "in-steps", "goes-on"]
    assert [row["runs"] for row in rows] == ["2", "2", "2"]  # seeds of an arm are one arm, also with stores of its own
    assert [row["published"] for row in rows] == ["12.5", "-", "-"]
    header = Path("out/arms/in-steps/seed-1/header.txt").read_text()
    assert "out/steps/in-steps/seed-1/2" in header


@pytest.mark.slow
def test_students_trained_side_by_side_are_those_trained_one_after_the_other(tmp_path: Path) -> None:
    module("distill").run(module("study").read(small_study(tmp_path)))
    done = distill(small_study(tmp_path, out="other"), "--jobs", "2")
    assert done.returncode == 0, done.stderr
    results = sorted(Path("out/arms").rglob("result.json"))
    assert len(results) == 6
    for result in results:
        same = json.loads((Path("other/arms") / result.relative_to("out/arms")).read_text())
        assert json.loads(result.read_text())["last"] == same["last"], result


def test_what_is_done_is_passed_over(tmp_path: Path) -> None:
    folder, read, run = small_study(tmp_path), module("study").read, module("distill").run
    run(read(folder, seeds=[0], only=["plain"]))
    (result,) = Path("out/arms").rglob("result.json")
    before = result.stat().st_mtime_ns
    run(read(folder, only=["plain"]))
    assert result.stat().st_mtime_ns == before
    assert len([*Path("out/arms").rglob("result.json")]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "study.yaml: unknown 'arm'; did you mean 'arms'?"),
        ({"arms": None}, "study.yaml: no 'arms'"),
        ({"arms": [1]}, "study.yaml: `arms` must be a mapping of names to settings, not [1]"),
        ({"arms": {"a": []}}, "study.yaml: arm 'a' has no steps"),
        ({"arms": {"a": 3}}, "study.yaml: arm 'a' must be a mapping of names to settings, not 3"),
        ({"arms": {"a": [3]}}, "study.yaml: arm 'a' must be a mapping of names to settings, not 3"),
        ({"arms": {1: {}}}, "the name 1 is no text; write it in quotes"),
        ({"arms": {"a": [{"dump": {"views": 2}}]}}, "study.yaml: arm 'a': its last step is `dump`"),
        ({"arms": {"a": [{"evaluate": {"data": "digits"}}]}}, "study.yaml: arm 'a': its last step is `evaluate`"),
        ({"arms": {"a": {"seed": 3}}}, "study.yaml: arm 'a' sets `seed`; leave it out"),
        ({"arms": {"a": [{"train": {"out": "x"}}]}}, "study.yaml: arm 'a' sets `out`; leave it out"),
        ({"arms": {"a": [{"dump": {"out": "x"}}, {"train": {}}]}}, "study.yaml: arm 'a' sets `out`; leave it out"),
        ({"common": {"seed": 3}}, "study.yaml: `common` sets `seed`; leave it out"),
        ({"common": {"out": "x"}}, "study.yaml: `common` sets `out`; leave it out"),
        ({"common": [1]}, "study.yaml: `common` must be a mapping of names to settings, not [1]"),
        ({"teachers": {"t": {"out": "x"}}}, "study.yaml: teacher 't' sets `out`; leave it out"),
        ({"stores": {"s": {"select": {"out": "x"}}}}, "study.yaml: store 's' sets `out`; leave it out"),
        ({"arms": {"a/b": {}}}, "study.yaml: arm 'a/b': a name is a folder's"),
        ({"arms": {"..": {}}}, "study.yaml: arm '..': a name is a folder's"),
        ({"teachers": {"../t": {}}}, "study.yaml: teacher '../t': a name is a folder's"),
        ({"stores": {"a/../s": {}}}, "study.yaml: store 'a/../s': a name is a folder's"),
        ({"baseline": "zzz"}, "study.yaml: no arm 'zzz', which `baseline` names; there are plain, "),
        ({"published": {"plian": 3}}, "study.yaml: no arm 'plian', which `published` names; did you mean 'plain'?"),
        ({"seeds": []}, "study.yaml: no 'seeds'"),
        ({"seeds": 3}, "study.yaml: `seeds` must be a list of whole numbers, such as [0, 1, 2], not 3"),
        ({"seeds": ["a", 0.5]}, "study.yaml: `seeds` must be a list of whole numbers"),
        ({"seeds": [1, 1]}, "study.yaml: `seeds` has one twice"),
        ({"out": 3}, "study.yaml: `out` must be a text, not 3"),
        ({"pipeline": "generatons"}, "study.yaml: no pipeline 'generatons'; there are distill, generations"),
        ({"pipeline": "generations"}, "is run by pipelines/generations.py"),
        # Of the settings of steps:
        ({"arms": {"a": {"data": "$store/labels"}}}, "arm 'a': '$store/labels' names none of the places $out, "),
        (
            {"arms": {"a": {"labels": "$stores/lables"}}},
            "arm 'a': $stores/lables is no store before this one; did you ",
        ),
        ({"common": {"labels": "$stores/label"}}, "arm 'plain': $stores/label is no store before this one; did you "),
        ({"arms": {"a": {"init": "$arms/zz/seed-0"}}}, "arm 'a': $arms/zz is no arm before this one; there are none"),
        ({"arms": {"a": {"init": "$arms/b/seed-0"}, "b": {}}}, "arm 'a': $arms/b is no arm before this one; they are "),
        (
            {"stores": {"s": {"teacher": "file:$teachers/frist"}}},
            "store 's': $teachers/frist is no teacher before this ",
        ),
        ({"arms": {"a": {}, "b": {"labls": "x"}}}, "arm 'b': train has no setting 'labls'"),
        ({"arms": {"a": {}, "b": {"epochs": -1}}}, "arm 'b': `epochs` must be"),
        ({"arms": {"a": {}, "b": {"student": "cnn_tinny"}}}, "unknown network 'cnn_tinny'"),
        ({"arms": {"a": [{"trian": {}}]}}, "arm 'a': 'trian' is no command; did you mean 'train'?"),
        ({"arms": {"a": [{"dmup": {}}, {"train": {}}]}}, "arm 'a': 'dmup' is no command; did you mean 'dump' or"),
        ({"arms": {"a": [{"ConfigError": {}}, {"train": {}}]}}, "arm 'a': 'ConfigError' is no command"),
        ({"arms": {"a": [{"train": {}}, {"train": {"labels": "$step2"}}]}}, "'$step2' names none of the places"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    if "arms" in changes:
        changes = {"baseline": None, "published": {}, **changes}
    folder = small_study(tmp_path, **changes)
    monkeypatch.setattr(sys, "argv", ["distill.py", str(folder)])
    with pytest.raises(SystemExit) as ended:
        module("distill").main()
    assert str(ended.value).startswith(f"error: {folder}")
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)
    assert not Path("out").exists()


HEAD = "title: t\nout: out\nseeds: [0]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "study.yaml holds no study: No such file"),
        ("", "study.yaml holds no study: it is empty"),
        ("digits", "study.yaml holds no study: it is a str, not a mapping"),
        ("a: [", "study.yaml holds no study: while parsing"),
        (f"{HEAD}arms: {{a: {{}}, b: {{}}, a: {{}}}}", "holds no study: 'a' stands in line 4 and again in line 4"),
        (f"{HEAD}arms:\n  a: {{lr: 1,\n    lr: 2}}", "holds no study: 'lr' stands in line 5 and again in line 6"),
    ],
)
def test_a_file_that_holds_no_study_is_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(softlabels.ConfigError, match=r"^[^\n]*$") as refused:
        module("study").read(tmp_path)
    assert message in str(refused.value)


def test_settings_of_anchors_may_be_given_anew_and_an_empty_arm_is_the_common_settings(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"{HEAD}arms:\n  a: &a {{lr: 1, epochs: 2}}\n  b: {{<<: *a, lr: 2}}\n  c:\n")
    study = module("study").read(tmp_path)
    assert study.arms["b"] == [("train", {"lr": 2, "epochs": 2})]
    assert study.arms["c"] == [("train", {})]


def test_the_seed_may_be_part_of_the_name_of_a_place(tmp_path: Path) -> None:
    read, check = module("study").read, module("study").check
    arm = {"init_from": "$teachers/first-$seed", "labels": None}
    given = {"arms": {"a": arm}, "stores": {}, "baseline": None, "published": {}, "seeds": [0, 1]}
    with pytest.raises(softlabels.ConfigError, match=r"\$teachers/first-1 is no teacher before this one; did you mean"):
        check(read(small_study(tmp_path, teachers={"first-0": {}}, **given)), list)
    check(read(small_study(tmp_path, teachers={"first-0": {}, "first-1": {}}, **given)), list)


def test_only_some_arms_may_leave_out_the_baseline_and_need_arms_before_them(tmp_path: Path) -> None:
    read, check = module("study").read, module("study").check
    folder = small_study(tmp_path)
    check(read(folder, only=["in-steps"]), list)
    with pytest.raises(softlabels.ConfigError, match="arm 'goes-on': arm 'plain', which it goes on from, was not"):
        check(read(folder, only=["goes-on"]), list)
    Path("out/arms/plain").mkdir(parents=True)  # it was trained before
    check(read(folder, only=["goes-on"]), list)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": None}, "refine: missing a required argument: 'judge'"),
        ({"rounds": 0}, "`rounds` must be a whole number of 1 or more, not 0"),
        ({"dump": {"vews": 2}}, "dump has no setting 'vews'"),
        ({"dump": 3}, "refine: "),
        ({"judge": {"splt": "train"}}, "evaluate has no setting 'splt'"),
        ({"epohcs": 2}, "train has no setting 'epohcs'"),
    ],
)
def test_settings_of_loops_are_checked_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    loop = {"rounds_in": "$steps/a", "dump": {"data": "digits", "views": 2}, "judge": {"data": "digits"}, **changes}
    folder = small_study(tmp_path, arms={"a": [{"refine": loop}]}, baseline=None, published={})
    study = module("study").read(folder)
    with pytest.raises(softlabels.ConfigError) as refused:
        module("distill").run(study, more=module("generations").LOOPS)
    assert str(refused.value).startswith(f"{folder / 'study.yaml'}: arm 'a': ")
    assert message in str(refused.value)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "option", ["--jobs 0", "--jobs -1", "--jobs a", "--seeds a", "--seeds 0,,1", "--seeds 0,0", "--seeds 0.5"]
)
def test_wrong_options_are_errors_of_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["distill.py", str(tmp_path), *option.split()])
    with pytest.raises(SystemExit) as ended:
        module("distill").main()
    assert ended.value.code == 2
    assert option.split()[1] in capsys.readouterr().err.splitlines()[-1]


def test_make_all_names_the_studies_before_it_installs_anything(tmp_path: Path) -> None:
    command = ["make", "-C", str(ROOT), "all", "CONFIG=configs/nonsense", f"VENV={tmp_path / 'venv'}", "PYTHON=false"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 2
    assert "there is no configs/nonsense/study.yaml; give CONFIG=configs/NAME, of cifar10-alpha " in made.stderr
    assert not (tmp_path / "venv").exists()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What loops ask the commands to do, which do nothing."""
    made: list[tuple[str, dict[str, Any]]] = []
    for name in ("train", "dump"):
        monkeypatch.setattr(softlabels, name, lambda command=name, **given: made.append((command, given)))
    return made


def test_a_refinery_stops_when_accuracy_does_not_rise_and_keeps_its_best_round(
    tmp_path: Path, calls: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.6, 0.7, 0.65, 0.9])
    monkeypatch.setattr(softlabels, "evaluate", lambda *_, **__: SimpleNamespace(top1=next(scores)))
    place = tmp_path / "rounds"
    place.mkdir()
    given = {"rounds_in": str(place), "rounds": 4, "dump": {"views": 2}, "judge": {}}
    module("generations").refine(out="out", **given, student="cnn_tiny", labels="first")
    trained = [given for name, given in calls if name == "train"]
    assert [str(each["labels"]) for each in trained[:4]] == ["first", *(f"{place}/labels-{n}" for n in range(3))]
    assert [each.get("alpha") for each in trained] == [1.0, None, None, None, None]
    assert trained[-1]["out"] == "out"
    assert trained[-1]["labels"].readlink() == Path("labels-1")  # of the round before the best one
    dumped = [given for name, given in calls if name == "dump"]
    assert [each["teacher"] for each in dumped] == [f"file:{place}/{n}/last.safetensors" for n in range(4)]


def test_codistilled_networks_go_on_from_their_own_weights_on_the_labels_of_the_other(
    tmp_path: Path, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    given = {"rounds_in": str(tmp_path), "rounds": 2, "other": {"student": "cnn_mini"}, "dump": {"views": 2}}
    module("generations").codistil(out="out", **given, student="cnn_tiny", size=8, labels="first", alpha=0.5)
    trained = [given for name, given in calls if name == "train"]
    first, second, third, fourth, last = trained
    assert [each["student"] for each in (first, second)] == ["cnn_tiny", "cnn_mini"]
    assert [each["alpha"] for each in trained] == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert (third["init"], third["labels"]) == (tmp_path / "one-0", tmp_path / "labels-of-other-0")
    assert (fourth["init"], fourth["labels"]) == (tmp_path / "other-0", tmp_path / "labels-of-one-0")
    assert (last["init"], last["labels"], last["out"]) == (tmp_path / "one-1", tmp_path / "labels-of-other-1", "out")
    assert not any({"student", "size"} & each.keys() for each in (third, fourth, last))
