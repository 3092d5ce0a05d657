"""What is given twice, empty, in a wrong place or beyond all bounds is refused; what is left out is not guessed."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome
from worlds import write_pictures

import softlabels
from softlabels.core.config import read_yaml

Command = Callable[..., Outcome]
SMALL = ("--teacher", "cnn_tiny", "--weights", "random", "--device", "cpu", "--views", 1)
STUDENT = ("--student", "cnn_tiny", "--size", 8, "--epochs", 1, "--device", "cpu")


def line_of(outcome: Outcome, code: int = 2) -> str:
    lines = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in outcome.output, outcome.output
    assert outcome.exit_code == code
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", *STUDENT, "--labels", "a", "--labels", "b"), "--labels is given 2 times (a, b)"),
        (("train", *STUDENT, "--data", "digits", "--epochs", 2), "--epochs is given 2 times (1, 2)"),
        (("dump", *SMALL, "--config", "a.yaml", "--config", "b.yaml"), "--config is given 2 times"),
        (("dump", *SMALL, "--data", "digits", "--grow", "--no-grow"), "--grow and --no-grow contradict"),
        (("export", "r", "--out", "a", "--out", "b"), "--out is given 2 times"),
        (("report", "r", "--out", "a", "--out", "b"), "--out is given 2 times"),
    ],
)
def test_what_may_be_given_once_is_refused_when_it_is_given_twice(
    softlabels_command: Command, arguments: tuple[object, ...], said: str
) -> None:
    assert said in line_of(softlabels_command(*arguments))
    assert not any(Path().iterdir())


def test_a_key_that_stands_twice_in_a_config_is_refused(softlabels_command: Command) -> None:
    Path("c.yaml").write_text("views: 1\nseed: 3\nviews: 2\n")
    said = line_of(softlabels_command("dump", *SMALL[:-2], "--data", "digits", "--config", "c.yaml"))
    assert "config c.yaml gives 'views' twice, in lines 1 and 3" in said
    Path("c.yaml").write_text("lr_scale: {head: 1, head: 2}\n")
    assert "gives 'head' twice" in line_of(softlabels_command("train", *STUDENT, "--config", "c.yaml"))


def test_a_key_that_overrides_a_merged_one_is_no_repetition(tmp_path: Path) -> None:
    """Also where a mapping is merged into another before it is made itself."""
    (tmp_path / "c.yaml").write_text(
        "kept:\n  deep:\n    a: &a {x: 1, y: 2}\n    b: &b\n      <<: *a\n      y: 3\nc:\n  <<: *b\n  y: 4\n"
    )
    found = read_yaml(tmp_path / "c.yaml")
    assert found["kept"]["deep"]["b"] == {"x": 1, "y": 3} and found["c"] == {"x": 1, "y": 4}


@pytest.mark.parametrize("flag", ["--labels", "--student", "--data", "--out", "--data-dir", "--init", "--teacher"])
def test_an_empty_value_is_refused_and_no_default_takes_its_place(softlabels_command: Command, flag: str) -> None:
    given = [each for each in STUDENT if flag != "--student" or each not in ("--student", "cnn_tiny")]
    said = line_of(softlabels_command("train", *given, flag, ""))
    assert f"{flag} is empty" in said
    assert not any(Path().iterdir())


def test_empty_values_of_files_and_python_are_refused_too(softlabels_command: Command) -> None:
    Path("c.yaml").write_text("labels: ''\n")
    assert "--labels is empty" in line_of(softlabels_command("train", *STUDENT, "--config", "c.yaml"))
    with pytest.raises(softlabels.ConfigError, match="`weights` is empty"):
        softlabels.dump(teacher=["cnn_tiny"], weights=[""], data="digits", quiet=True)
    for command in ("report", "export"):
        assert "is empty" in line_of(softlabels_command(command, ""))


def test_no_data_set_is_taken_where_none_was_named(softlabels_command: Command) -> None:
    for command in ("dump", "plan"):
        assert "no data set is named  tip: give --data" in line_of(softlabels_command(command, *SMALL))
    assert "no data set is named" in line_of(softlabels_command("pack", "--out", "p"))
    assert "nothing to learn from" in line_of(softlabels_command("train", *STUDENT))
    assert "nothing to learn from" in line_of(softlabels_command("sweep", *STUDENT))
    score = ("eval", "--student", "cnn_tiny", "--weights", "random", "--device", "cpu")
    assert "no data set is named" in line_of(softlabels_command(*score))
    assert not any(Path().iterdir())


def test_a_run_is_scored_on_the_data_set_that_it_was_trained_on(softlabels_command: Command, photos: Path) -> None:
    assert softlabels_command("train", *STUDENT, "--data", "digits", "--limit", 40, "--out", "r").exit_code == 0
    assert "on 450 images" in softlabels_command("eval", "--student", "r", "--device", "cpu").output
    assert softlabels_command("dump", *SMALL, "--data", photos, "--out", "s").exit_code == 0
    assert softlabels_command("train", *STUDENT, "--labels", "s", "--out", "t").exit_code == 0
    assert "on 18 images" in softlabels_command("eval", "--student", "t", "--device", "cpu").output
    # A run of a stranger must not have code of its choice imported.
    config = Path("t/config.yaml")
    config.write_text(config.read_text().replace("data: null", "data: os:getcwd").replace("labels: s\n", ""))
    assert "no data set is named" in line_of(softlabels_command("eval", "--student", "t", "--device", "cpu"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", *STUDENT, "--data", "digits", "--out", "s3://bucket/run"), "--out: s3://bucket/run is a URL"),
        (("sweep", *STUDENT, "--data", "digits", "--out", "gs://bucket/run"), "--out: gs://bucket/run is a URL"),
        (("train", *STUDENT, "--data", "s3://bucket/d"), "images are read from folders of this machine"),
        (("train", *STUDENT, "--data", "digits", "--init", "s3://bucket/r"), "--init: s3://bucket/r is a URL"),
        (("dump", *SMALL, "--data", "csv:x.csv", "--data-dir", "s3://b/d"), "--data-dir: s3://b/d is a URL"),
        (("report", "s3://bucket/runs"), "--root: s3://bucket/runs is a URL"),
        (("report", "runs", "--out", "s3://bucket/x"), "--out: s3://bucket/x is a URL"),
        (("export", "r", "--out", "s3://bucket/x.onnx"), "--out: s3://bucket/x.onnx is a URL"),
    ],
)
def test_a_url_where_only_folders_work_is_refused(
    softlabels_command: Command, arguments: tuple[object, ...], said: str
) -> None:
    assert said in line_of(softlabels_command(*arguments))
    assert not any(Path().iterdir())


def test_the_home_folder_is_spelled_out_wherever_a_path_is_given(
    softlabels_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    write_pictures(home / "photos")
    monkeypatch.setenv("HOME", str(home))
    (home / "c.yaml").write_text("data: ~/photos\nout: ~/labels\n")
    assert softlabels_command("dump", *SMALL, "--config", "~/c.yaml").exit_code == 0
    assert softlabels.open_labels(home / "labels").views == 1
    assert softlabels_command("train", *STUDENT, "--labels", "~/labels", "--out", "~/run").exit_code == 0
    assert (home / "run" / "best.safetensors").exists() or (home / "run" / "last.safetensors").exists()
    assert "18 images" in softlabels_command("info", "~/labels").output
    softlabels.verify(labels="~/labels", samples=0, quiet=True)
    assert softlabels_command("report", "~").exit_code == 0
    assert not (tmp_path / "~").exists()


def test_paths_and_single_values_are_taken_in_python(photos: Path, tmp_path: Path) -> None:
    softlabels.dump(
        teacher="cnn_tiny", weights="random", data=photos, views=1, out=pathlib.Path(tmp_path / "s"), quiet=True
    )
    result = softlabels.train(
        student="cnn_tiny", size=8, labels=tmp_path / "s", epochs=1, out=tmp_path / "r", workers=0, quiet=True
    )
    assert result["images"] == 18
    assert softlabels.verify(labels=tmp_path / "s", quiet=True).ok
    score = softlabels.evaluate(student=tmp_path / "r", data={"kind": "folder", "root": photos}, quiet=True)
    assert score.images == 18
    softlabels.pack(data=f"folder:{photos}", out=tmp_path / "p", quiet=True)
    assert len(softlabels.open_images(f"pack:{tmp_path / 'p'}")) == 18


@pytest.mark.parametrize("seed", [1 << 64, 1 << 70, -1])
def test_seeds_beyond_64_bits_are_refused(softlabels_command: Command, seed: int) -> None:
    for command in (("train", *STUDENT, "--data", "digits"), ("dump", *SMALL, "--data", "digits")):
        assert "--seed must be" in line_of(softlabels_command(*command, "--seed", seed))
    assert not any(Path().iterdir())


def test_the_largest_seed_works(softlabels_command: Command) -> None:
    few = ("--data", "digits", "--limit", 20, "--seed", (1 << 64) - 1)
    assert softlabels_command("train", *STUDENT, *few, "--out", "r").exit_code == 0
    assert softlabels_command("dump", *SMALL, *few, "--out", "s").exit_code == 0


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train", "--limit"),
        ("train", "--views-per-image"),
        ("train", "--batch-size"),
        ("train", "--epochs"),
        ("train", "--workers"),
        ("dump", "--rows-per-shard"),
        ("dump", "--limit"),
        ("dump", "--batch-size"),
    ],
)
def test_numbers_beyond_all_bounds_are_refused(softlabels_command: Command, command: str, flag: str) -> None:
    first = ("--student", "cnn_tiny", "--size", 8) if command == "train" else SMALL
    said = line_of(softlabels_command(command, *first, "--data", "digits", flag, 1 << 70))
    assert flag in said
    assert not any(Path().iterdir())


def test_more_workers_than_a_machine_can_have_are_refused(softlabels_command: Command) -> None:
    for workers in ("5000", "threads:5000"):
        said = line_of(softlabels_command("dump", *SMALL, "--data", "digits", "--workers", workers))
        assert f"--workers {workers} on" in said


def test_nothing_is_written_into_the_folder_of_the_images(softlabels_command: Command, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    before = sorted(root.rglob("*"))
    assert softlabels_command("dump", *SMALL, "--data", root, "--out", "beside").exit_code == 0
    for out in (root, root / "labels", root / "class-0" / "labels", f"{root}/./labels"):
        for command in (
            ("dump", *SMALL, "--data", root),
            ("dump", *SMALL, "--data", f"images:{root}"),
            ("pack", "--data", root),
            ("train", *STUDENT, "--data", root),
            ("train", *STUDENT, "--labels", "beside"),
        ):
            assert "is in the folder of the images" in line_of(softlabels_command(*command, "--out", out))
    images = softlabels.open_images(root)
    with pytest.raises(softlabels.ConfigError, match="is in the folder of the images"):  # noqa: SIM117
        with softlabels.create_labels(root / "own", images=images, classes=3):
            pass
    assert sorted(root.rglob("*")) == before
    assert len(softlabels.open_images(root)) == 18


def test_labels_may_lie_beside_the_splits_and_beside_a_list(softlabels_command: Command, tmp_path: Path) -> None:
    write_pictures(tmp_path / "d" / "train")
    assert softlabels_command("dump", *SMALL, "--data", "d", "--out", "d/labels").exit_code == 0
    assert len(softlabels.open_images(tmp_path / "d")) == 18
    lines = [f"d/train/class-0/00{number}.jpg,0" for number in range(6)]
    (tmp_path / "d.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    assert softlabels_command("dump", *SMALL, "--data", "csv:d.csv").exit_code == 0


def test_runs_stores_and_packs_are_not_mixed_in_one_folder(softlabels_command: Command, photos: Path) -> None:
    dump, pack = ("dump", *SMALL, "--data", photos), ("pack", "--data", photos)
    train = ("train", *STUDENT, "--data", photos)
    for command, out in ((dump, "store"), (pack, "pack"), (train, "run")):
        assert softlabels_command(*command, "--out", out).exit_code == 0
    for command, outs in (
        (dump, ("pack", "run", "pack/inner")),
        (pack, ("store", "run", "store/inner")),
        (train, ("store", "pack", "store/inner", "pack/inner")),
    ):
        for out in outs:
            assert "choose a folder beside it" in line_of(softlabels_command(*command, "--out", out))
    for command, out in ((dump, "store"), (pack, "pack"), (train, "run")):
        assert softlabels_command(*command, "--out", out).exit_code == 0  # each goes on in its own


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_an_output_that_is_full_ends_in_a_line(shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "softlabels.cli", "info", str(shards)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the output cannot be written: No space left on device"


def test_a_run_that_is_not_there_is_told_as_such(softlabels_command: Command) -> None:
    said = line_of(softlabels_command("eval", "--student", "runs/nowhere", "--data", "digits"))
    assert "no such file or folder: runs/nowhere" in said


def test_labels_of_other_keys_show_the_first_of_both_sides(
    softlabels_command: Command, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "above/photos")
    assert softlabels_command("dump", *SMALL, "--data", photos, "--out", "s").exit_code == 0
    said = line_of(softlabels_command("train", *STUDENT, "--labels", "s", "--data", "images:above"), code=1)
    assert "the first is 'photos/class-0/000.jpg' here and 'class-0/000.jpg' there" in said
