"""Every command of docs/training.md is run, in order, on fewer images for fewer epochs; the story's configs too."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

import softlabels

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
STORIES = {"digits-recipes": 6, "digits-features": 8}
"""Folders of configs, and how many arms each has."""


def commands() -> list[list[str]]:
    """Every command of the page, with two epochs of some images in place of all."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
    return [shlex.split(re.sub(r"--epochs \d+", "--epochs 2 --limit 120", line))[1:] for line in lines]


def header(run: str) -> str:
    return Path("runs", run, "header.txt").read_text()


def test_the_page_does_what_it_says(softlabels_command: Callable) -> None:
    for command in commands():
        done = softlabels_command(*command, "--device", "cpu", "--workers", 0)
        assert done.exit_code == 0, (command, done.output)
    assert "images of 10 px" in header("larger")
    assert "trained are head.weight, head.bias alone" in header("larger")
    assert "features.0 x 0.1, features.3 x 0.2, features.6 x 0.3" in header("transferred")
    assert "learning rate 0.0141421 = 0.005 * sqrt(512 / 64)" in header("lamb")
    assert "from 0 at the first step to 0.5 at the last" in header("hard-late")
    assert "loss = 1 * hard" in header("tuned")
    assert "kept" in pd.read_csv("runs/sure/metrics.csv")
    assert len(pd.read_csv("runs/four-views/metrics.csv")) == 2
    assert len(pd.read_csv("runs/sweep/report/table.csv")) == 4


@pytest.mark.parametrize("story", STORIES)
def test_a_story_is_told_from_its_configs(story: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut to one seed, one epoch and few images."""
    folder = shutil.copytree(ROOT / "configs" / story, tmp_path / "story")
    for path in folder.rglob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        settings |= {"seeds": [0]} if path.name == "story.yaml" else {"limit": 100, "device": "cpu"}
        if "epochs" in settings:
            settings["epochs"] = 1
        path.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "pipelines/distill.py"))["main"](folder)
    table = pd.read_csv(f"runs/{story}/report/table.csv")
    arms = [arm[0] for arm in table["arm"] if arm != "teacher"]
    assert arms == [str(number + 1) for number in range(STORIES[story])]
    assert softlabels.open_labels(f"runs/{story}/shards").views == 16
