"""The line of an epoch, which epochs have one, and how often student and label agree."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from worlds import TINY

import softlabels
from softlabels.core.progress import Terminal, clock
from softlabels.training.epoch_lines import EpochLines
from softlabels.training.evaluate import Score

RECORD = {"epoch": 9, "loss": 0.05123, "soft": 0.0312, "hard": 0.02, "lr": 2.9e-3, "pictures_per_second": 2110.4}


def test_a_line_says_what_is_known() -> None:
    said = io.StringIO()
    lines = EpochLines(Terminal(said), 60, {"soft": "kl", "hard": "hard"})
    best = Score(0.989, 1.0, 0.1, 450)
    lines.ended({**RECORD, "top1": 0.987, "agreement": 0.9791}, best, 6, 9.3, wanted=True)
    assert said.getvalue() == (
        "epoch  9/60   loss 0.0512 (kl 0.0312, hard 0.02)   top-1 98.7 %   best 98.9 % (6)   "
        "agrees with teacher 97.9 %   lr 2.9e-3   2,110 images/s   0:09 left\n"
    )
    said.truncate(said.seek(0))
    EpochLines(Terminal(said), 9, {"soft": "kl"}).ended(RECORD, None, None, 3723, wanted=True)
    assert said.getvalue() == "epoch 9/9   loss 0.0512   lr 2.9e-3   2,110 images/s   1:02:03 left\n"
    assert clock(float("inf")) == "?"


def test_short_epochs_share_a_line_but_for_better_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], io.StringIO()
    monkeypatch.setattr("softlabels.training.epoch_lines.time.monotonic", lambda: now[0])
    lines = EpochLines(Terminal(said), 60, {})
    for epoch in range(1, 11):
        now[0] += 0.4
        lines.ended({**RECORD, "epoch": epoch}, None, None, 1.0, wanted=epoch in (5, 10))
    printed = [int(line.split("/")[0].removeprefix("epoch")) for line in said.getvalue().splitlines()]
    assert printed == [1, 4, 5, 8, 10]


def test_agreement_is_all_where_the_student_is_the_teacher(photos: Path, tmp_path: Path) -> None:
    """Its layers do not move, so it sees in training what the teacher saw."""
    teacher, run = tmp_path / "t", {**TINY, "epochs": 1}
    softlabels.train(data=str(photos), out=str(teacher), **run)
    assert "agreement" not in records(teacher)[0]
    still = {**run, "init": str(teacher), "train_only": ["classifier"], "optimizer": "sgd", "lr": 1e-12}
    dump = {"data": str(photos), "device": "cpu", "workers": 0, "quiet": True, "views": 1}
    for codec in ("dense", "topk:2"):
        store = str(tmp_path / codec.partition(":")[0])
        softlabels.dump(teacher=f"file:{teacher}", codec=codec, out=store, **dump)
        softlabels.dump(teacher="cnn_tiny", weights="random:5", codec=codec, out=store, **dump)
        for name, agrees in (("t", True), ("cnn_tiny", False)):
            out = tmp_path / f"{codec[:4]}-{name}"
            softlabels.train(labels=store, teachers=[name], accumulate=2, batch_size=4, out=str(out), **cut(still))
            assert (records(out)[0]["agreement"] == 1.0) is agrees


def cut(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "batch_size"}


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
