"""Stores, images and runs may move or be spelled otherwise; a run without a named folder gets a fresh one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worlds import TINY, write_pictures

import softlabels

TRAIN = ("train", "--student", "cnn_tiny", "--size", 16, "--batch-size", 8, "--device", "cpu", "--workers", 0)
DUMP = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--views", 1, "--device", "cpu", "--workers", 0)


def runs() -> list[str]:
    return sorted(path.name for path in Path("runs").iterdir())


def test_an_experiment_without_a_folder_gets_a_fresh_one_and_finds_it_again(
    softlabels_command: Callable, photos: Path
) -> None:
    first, second = (*TRAIN, "--data", photos, "--epochs", 1), (*TRAIN, "--data", photos, "--epochs", 2)
    assert "holds" not in softlabels_command(*first).output
    done = softlabels_command(*second)
    assert done.exit_code == 0
    said = "runs/cnn_tiny holds another run (epochs: 1 there, 2 now); this one is in runs/cnn_tiny-2"
    assert any(line.startswith(said) for line in done.output.splitlines())
    assert runs() == ["cnn_tiny", "cnn_tiny-2"]
    assert "runs/cnn_tiny is done already" in softlabels_command(*first).output
    again = softlabels_command(*second).output
    assert "goes on in runs/cnn_tiny-2, which holds this run" in again
    assert "runs/cnn_tiny-2 is done already" in again
    third = (*TRAIN, "--data", photos, "--epochs", 1, "--lr", 0.1)
    assert softlabels_command(*third).exit_code == 0
    shutil.rmtree("runs/cnn_tiny-2")
    assert "runs/cnn_tiny-3 is done already" in softlabels_command(*third).output
    assert softlabels_command(*second).exit_code == 0
    assert runs() == ["cnn_tiny", "cnn_tiny-2", "cnn_tiny-3"]
    named = softlabels_command(*third, "--out", "runs/cnn_tiny")
    assert named.exit_code == 1 and "choose another --out" in named.output


def test_the_same_settings_with_other_labels_are_another_experiment(softlabels_command: Callable, photos: Path) -> None:
    for name, seed in (("g", 0), ("h", 1)):
        assert softlabels_command(*DUMP, "--data", photos, "--seed", seed, "--out", name).exit_code == 0
    for name in ("g", "h", "g/", Path("h").absolute()):
        assert softlabels_command(*TRAIN, "--labels", name, "--epochs", 1).exit_code == 0
    assert runs() == ["cnn_tiny", "cnn_tiny-2"]
    shutil.rmtree("g")
    gone = softlabels_command(*TRAIN, "--labels", "g", "--epochs", 1)
    assert gone.exit_code == 0
    assert "what went into it is not there to be compared" in gone.output


@pytest.fixture
def moved(tmp_path: Path, softlabels_command: Callable) -> Callable[..., Any]:
    """A store, a run of its labels and its images, all of which have moved since; the command line."""
    photos = write_pictures(tmp_path / "photos")
    assert softlabels_command(*DUMP, "--data", photos, "--rows-per-shard", 6, "--out", "g").exit_code == 0
    assert softlabels_command(*TRAIN, "--labels", "g", "--epochs", 1, "--out", "runs/x").exit_code == 0
    for name in ("photos", "g", "runs"):
        Path(name).rename(f"moved-{name}")
    return softlabels_command


@pytest.mark.parametrize(
    "spelled",
    ["moved-g/", "absolute", *(pytest.param(each, marks=pytest.mark.slow) for each in ("moved-g", "./moved-g"))],
)
def test_every_command_takes_what_has_moved(moved: Callable[..., Any], spelled: str) -> None:
    absolute = spelled == "absolute"
    store = Path("moved-g").absolute() if absolute else spelled
    run = Path("moved-runs/x").absolute() if absolute else "moved-runs/x/"
    data, labels = ("--data", "moved-photos"), ("--labels", store)
    cpu = ("--device", "cpu", "--workers", 0)
    (Path(run) / "result.json").unlink()
    commands = {
        "train": (*TRAIN, *labels, *data, "--epochs", 1, "--out", run),
        "done": (*TRAIN, *labels, *data, "--epochs", 1, "--out", run),
        "longer": (*TRAIN, *labels, *data, "--epochs", 2, "--out", run),
        "eval": ("eval", "--student", run, *data, *cpu),
        "file": ("eval", "--student", f"file:{run}", *data, *cpu),
        "verify": ("verify", *labels, *data, *cpu),
        "repair": ("repair", *labels, *data, "--redump", *cpu),
        "info": ("info", store),
        "report": ("report", "moved-runs"),
        "dump": (*DUMP, *data, "--rows-per-shard", 6, "--out", store),
        "init": (*TRAIN, "--init", run, *data, "--epochs", 1, "--out", "tuned"),
        "teacher": ("dump", "--teacher", f"file:{run}", *data, "--views", 1, "--out", "other", *cpu),
    }
    said = {}
    for name, command in commands.items():
        done = moved(*command)
        assert done.exit_code == 0, (name, done.output)
        said[name] = done.output
    assert "is done already" in said["done"]
    assert "prolonged from 1 to 2 epochs" in said["longer"]
    assert "nothing to do" in said["dump"]


def test_a_sweep_goes_on_where_its_store_and_images_have_moved(moved: Callable[..., Any]) -> None:
    sweep = ("sweep", *TRAIN[1:], "--labels", "moved-g", "--data", "moved-photos", "--epochs", 1, "--no-compare")
    assert moved(*sweep, "--grid", "lr=0.001", "--out", "s").exit_code == 0
    for name in ("moved-photos", "moved-g", "s"):
        Path(name).rename(name.replace("moved-", "") + "-again")
    before = Path("s-again/lr=0.001/seed-0/result.json").stat().st_mtime_ns
    sweep = ("sweep", *TRAIN[1:], "--labels", "g-again/", "--data", "photos-again", "--epochs", 1, "--no-compare")
    done = moved(*sweep, "--grid", "lr=0.001,0.01", "--out", "s-again/")
    assert done.exit_code == 0, done.output
    assert Path("s-again/lr=0.001/seed-0/result.json").stat().st_mtime_ns == before
    assert Path("s-again/lr=0.01/seed-0/result.json").exists()


def test_nothing_is_evaluated_where_one_says_so(softlabels_command: Callable, photos: Path, tmp_path: Path) -> None:
    """Neither from the command line nor from Python, of a store of unlabelled images too."""
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(photos / "class-0", unlabelled)
    assert softlabels_command(*DUMP, "--data", f"images:{unlabelled}", "--limit", 5, "--out", "u").exit_code == 0
    done = softlabels_command(*TRAIN, "--labels", "u", "--eval-data", "none", "--epochs", 1, "--out", "r")
    assert done.exit_code == 0, done.output
    assert "not evaluated, as asked" in done.output and "no evaluation:" not in done.output
    done = softlabels_command(*TRAIN, "--data", photos, "--epochs", 1, "--out", "n")
    assert "trained for 1 epoch, not evaluated" in done.output
    header = Path("n/header.txt").read_text()
    assert "no evaluation:" in header and "name images with `eval_data`" in header
    result = softlabels.train(data="digits", limit=20, eval_data="none", out="p", **{**TINY, "epochs": 1})
    assert result["last"] is None
    assert softlabels_command("eval", "--student", "p", "--limit", 5, "--device", "cpu").exit_code == 0
    refused = softlabels_command(*TRAIN, "--data", photos, "--eval-data", "none", "--patience", 2)
    assert refused.exit_code == 2
    assert "--patience counts evaluations, and with --eval-data none there are none" in refused.output
