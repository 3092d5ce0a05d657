"""Results go to stdout and all else to stderr, `--json` prints them alone; the last lines name commands that run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softlabels.cli import main

Ran = Callable[..., tuple[str, str]]

CPU = ("--device", "cpu", "--workers", "0")


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ran:
    """A command that ends well, run in a temporary folder: what it printed on stdout and on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args], prog_name="softlabels")
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out, err

    return run


def following(err: str) -> list[list[str]]:
    """The commands that the last lines name, as arguments."""
    told = [line.startswith("next: ") for line in err.splitlines()]
    assert told == sorted(told), err
    return [shlex.split(line)[2:] for line in err.splitlines() if line.startswith("next: ")]


def test_the_last_lines_name_the_commands_that_follow(ran: Ran, photos: Path) -> None:
    out, err = ran("plan", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--views", 2, *CPU)
    assert out.startswith("teacher cnn_tiny: 18 images x 2 views = 36 labels in 1 shard\n")
    (dump,) = following(err)
    assert dump[:7] == ["dump", "--device", "cpu", "--workers", "0", "--teacher", "cnn_tiny"]
    out, err = ran(*dump)
    assert re.fullmatch(r"cnn_tiny: wrote 1 shard, 36 labels in .* images/s\); 2 views complete in shards/\n", out)
    assert following(err) == [["train", "--student", "cnn_tiny", "--size", "32", "--labels", "shards/"]]
    student = ("train", "--student", "cnn_tiny", "--size", 16, "--epochs", 2, "--eval-data", photos, *CPU)
    out, err = ran(*student, "--labels", "shards/", "--out", "runs/a")
    numbers = r"top-1 [\d.]+ % after 2 epochs \(best [\d.]+ %, epoch [12]\), [\d.]+ s, [\d,.]+ images/s"
    assert re.fullmatch(rf"{numbers}; weights runs/a/best.safetensors\n", out)
    assert "epoch 2/2   loss " in err
    evaluated, report, export = following(err)
    assert evaluated == ["eval", "runs/a"]
    assert "| a | " in ran(*report)[0]
    assert export == ["export", "runs/a"]
    _, err = ran(*student, "--data", photos, "--recipe", "pad", "--out", "runs/hard")
    evaluated, dump = following(err)
    assert evaluated == ["eval", "runs/hard"]
    assert dump == ["dump", "--teacher", "file:runs/hard", "--data", str(photos), "--recipe", "pad"]
    assert "hard: wrote 1 shard" in ran(*dump, "--out", "other", *CPU)[0]


def test_a_part_of_a_dump_and_a_quiet_one_name_no_command(ran: Ran, photos: Path) -> None:
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--rows-per-shard", 9, *CPU)
    out, err = ran(*dump, "--part", "0/2", "--out", "parts")
    assert "part 0/2 is complete, and with the other parts so far 0 views complete" in out
    assert following(err) == []
    assert ran(*dump, "--out", "whole", "--quiet")[1] == ""


def results(photos: Path, shards: Path) -> dict[str, tuple[tuple[object, ...], str, set[str]]]:
    """Commands, a pattern of what each prints, and names that its JSON has."""
    teacher = ("--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--views", 1, *CPU)
    return {
        "pack": (("pack", "--data", photos), "the pack is complete", {"shards", "missing", "out"}),
        "check": (("pack", "--check"), "all checksums match", {"images", "shards"}),
        "trial": (("pack", "--data", photos, "--dry-run"), "18 images, ", {"bytes", "seconds"}),
        "dump": (("dump", *teacher, "--out", "s"), "1 view complete in s", {"labels", "views", "agreement"}),
        "dry": (("dump", *teacher, "--dry-run"), "x 1 view = 18 labels", {"bytes", "seconds", "missing_shards"}),
        "info": (("info", shards), "18 images of folder", {"teachers", "complete"}),
        "verify": (("verify", "--labels", shards, *CPU), "no problem was found", {"checks", "problems"}),
        "repair": (("repair", "--labels", shards), "no damage", {"teacher", "damaged"}),
        "convert": (("convert", "--labels", "s", "--out", "z", "--compression", "zstd"), "/z\n", {"shards", "bytes"}),
        "merge": (("merge", "--labels", "s", "--labels", "z", "--out", "m"), "complete in", {"shards", "views"}),
        "train": (
            ("train", "--student", "cnn_tiny", "--data", photos, "--epochs", 1, "--out", "r/a", *CPU),
            "trained for 1 epoch",
            {"best", "last", "seconds", "folder", "epochs"},
        ),
        "eval": (("eval", "--student", "r/a", "--data", photos, *CPU), "on 18 images of", {"top1", "weights", "data"}),
        "report": (("report", "r"), r"\| a \| ", {"arm", "accuracy_mean", "difference"}),
    }


def test_every_command_prints_its_result_alone_and_as_json(ran: Ran, photos: Path, shards: Path) -> None:
    for args, pattern, names in results(photos, shards).values():
        out, err = ran(*args, "--quiet")
        assert re.search(pattern, out), (args, out)
        assert err == "", args
        found: Any = json.loads(ran(*args, "--json")[0])
        assert names <= (found[0] if isinstance(found, list) else found).keys(), args


def test_only_the_first_of_several_processes_prints(ran: Ran, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert ran("info", shards)[0] == ran("info", shards, "--json")[0] == ""
    monkeypatch.setenv("RANK", "0")
    assert "18 images" in ran("info", shards)[0]
