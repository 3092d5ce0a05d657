"""A run can get more epochs, says what that does to its schedule, and is told from a run that had them at once."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worlds import TINY

import softlabels
from softlabels.errors import RunError

RUN: dict[str, Any] = {**TINY, "warmup_epochs": 0, "lr": 0.01}


def train(out: Path, photos: Path, **settings: Any) -> dict[str, Any]:
    return softlabels.train(**{**RUN, "data": str(photos), "out": str(out), **settings})


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "inputs.json").read_text())


@pytest.mark.parametrize("finished", [True, False], ids=["done", "interrupted"])
def test_more_epochs_go_on_from_the_last_checkpoint_with_the_schedule_of_the_new_length(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: bool
) -> None:
    run = tmp_path / "run"
    short = train(run, photos, epochs=2)
    if not finished:
        (run / "result.json").unlink()
    long = train(run, photos, epochs=4, quiet=False)
    said = capsys.readouterr().err
    line = "prolonged from 2 to 4 epochs: the learning rate at step 6 is 0.005 where the earlier schedule had 0"
    assert line in said and "going on from step 6 of 12" in said
    assert line in (run / "header.txt").read_text()
    assert long["steps"] == 12
    (change,) = record(run)["prolonged"]
    assert (change["from"], change["to"], change["at_step"]) == (2, 4, 6)
    assert (run / "result-2.json").exists() == finished
    if finished:
        assert json.loads((run / "result-2.json").read_text()) == short
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    whole = tmp_path / "whole"
    train(whole, photos, epochs=4)
    rates = [json.loads(line)["lr"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in lines] == [1, 2, 3, 4]
    assert [each["lr"] for each in lines][2:] == rates[2:]
    assert train(run, photos, epochs=4) == long
    with pytest.raises(RunError, match="epochs: 4 there, 2 now"):
        train(run, photos, epochs=2)


def test_a_run_is_prolonged_as_often_as_one_likes_and_goes_on_as_itself(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for epochs in (1, 2, 3):
        train(run, photos, epochs=epochs)
    assert [(each["from"], each["to"]) for each in record(run)["prolonged"]] == [(1, 2), (2, 3)]
    assert (run / "result-1.json").exists() and (run / "result-2.json").exists()
    (run / "result.json").unlink()
    train(run, photos, epochs=3)
    assert [(each["from"], each["to"]) for each in record(run)["prolonged"]] == [(1, 2), (2, 3)]
    assert len(re.findall("prolonged", (run / "header.txt").read_text())) == 2


def test_what_differs_besides_is_refused_and_nothing_is_changed(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, photos, epochs=1)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(RunError, match=r"holds another run \(lr: 0.01 there, 0.1 now\)"):
        train(run, photos, epochs=2, lr=0.1)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_without_a_checkpoint_a_run_that_is_done_is_kept_and_another_begun_anew(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, photos, epochs=1)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint left from which it could get more epochs"):
        train(run, photos, epochs=2)
    assert train(run, photos, epochs=1)["steps"] == 3
    (run / "result.json").unlink()
    train(run, photos, epochs=2)
    assert "prolonged" not in record(run)


def test_a_report_tells_prolonged_runs_from_those_that_had_their_epochs_at_once(
    softlabels_command: Callable, photos: Path, tmp_path: Path
) -> None:
    train(tmp_path / "runs/a/seed-0", photos, epochs=1)
    train(tmp_path / "runs/a/seed-0", photos, epochs=2)
    train(tmp_path / "runs/b/seed-1", photos, epochs=2, seed=1)
    said = softlabels_command("report", "runs").output
    assert "| a (prolonged from 1 to 2 epochs) |" in said
    assert "| b |" in said
