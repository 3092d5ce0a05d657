"""Every study under configs/ has right settings; those on digits run, with one seed, one epoch and few images."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from worlds import write_pictures

import softlabels
from softlabels.commands import COMMANDS
from softlabels.core.config import Choice
from softlabels.training.config import TrainConfig
from softlabels.training.run import check_settings

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
    config = COMMANDS[command].checked({name: value for name, value in given.items() if name != "quiet"}, None, command)
    config.check_parts()
    if isinstance(config, TrainConfig):
        check_settings(config)
    for network in [*getattr(config, "teacher", ()), getattr(config, "student", None)]:
        if isinstance(network, Choice) and "file:" not in str(network.given):
            network.make()


def evaluated(student: Path, **given: Any) -> Any:
    assert student.name == "last.safetensors"
    check("eval", {**given, "student": "cnn_tiny"})
    return SimpleNamespace(top1=0.5)


@pytest.mark.parametrize("folder", STUDIES, ids=name_of)
def test_every_setting_of_a_study_is_one_of_its_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = module("study").read(folder)
    assert study.out == f"runs/{name_of(folder)}"
    assert study.baseline in study.arms
    assert set(study.published) <= set(study.arms)
    # Loops call the commands: here these only check what they are given.
    monkeypatch.setattr(softlabels, "train", lambda **given: check("train", given))
    monkeypatch.setattr(softlabels, "dump", lambda **given: check("dump", given))
    monkeypatch.setattr(softlabels, "evaluate", evaluated)
    loops = getattr(module(study.pipeline), "LOOPS", {})
    arms = [step for arm in study.arms for step in study.arm_steps(arm, study.seeds[-1])]
    for command, given in [*study.first_steps().values(), *arms]:
        if command in loops:
            Path(given["rounds_in"]).mkdir(parents=True)
            loops[command](**given)
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
        ({"arm": {}}, "study.yaml: unknown 'arm'; there are arms, "),
        ({"arms": None}, "study.yaml has no arms"),
        ({"seeds": []}, "study.yaml: no 'seeds'; there are arms, "),
        ({"arms": {"a": {"labels": "$store/labels"}}}, "'$store/labels' names none of the places $out, "),
        ({"arms": {"a": {"labls": "x"}}}, "has no setting 'labls'"),
        ({"arms": {"a": [{"trian": {}}]}}, "'trian' is no command"),
        ({"pipeline": "generations"}, "is run by pipelines/generations.py"),
        (None, "study.yaml holds no study"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any] | None, message: str
) -> None:
    folder = tmp_path if changes is None else small_study(tmp_path, **{"teachers": {}, "stores": {}, **changes})
    monkeypatch.setattr(sys, "argv", ["distill.py", str(folder)])
    with pytest.raises(SystemExit, match="error: ") as ended:
        module("distill").main()
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


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
