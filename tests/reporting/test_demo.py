"""`softlabels demo` shows what stored labels bring, and its commands can be typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.cli import main
from softlabels.reporting import run_demo

SHORT = {"TEACHER": {"epochs": 1}, "LABELS": {"limit": 64, "views": 2}, "STUDENT": {"epochs": 2, "warmup_epochs": 0}}


def test_the_demo_prints_commands_that_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shorter in SHORT.items():
        monkeypatch.setattr(run_demo, name, {**getattr(run_demo, name), **shorter})
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(main, ["demo", "--runs", "1", "--json"])
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    assert set(result["students"]) == {"hard-labels", "stored-labels"}
    typed = [line for line in shown.stderr.splitlines() if line.startswith("softlabels ")]
    assert len(typed) == 4
    for command in typed:  # everything is there already, made with the same settings
        again = CliRunner().invoke(main, [*shlex.split(command)[1:]])
        assert again.exit_code == 0, again.output
        assert "nothing to do" in again.output


@pytest.mark.slow
def test_stored_labels_beat_hard_ones_clearly_in_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(main, ["demo", "--runs", "3", "--json", "--quiet"])
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    assert result["teacher"] > 0.95
    hard, stored = result["students"]["hard-labels"], result["students"]["stored-labels"]
    assert all(ours > theirs + 0.04 for ours, theirs in zip(stored, hard, strict=True)), (stored, hard)
