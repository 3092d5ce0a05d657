"""Every command of docs/training.md is run, in order, on fewer images for fewer epochs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")


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
    assert "the temperature goes in a line from 20 at the first step to 2 at the last" in header("annealed")
    assert "multiplied by 0.7 every 6 epochs, down to 2" in header("annealed-fit")
    assert "T_s from 0.2 to 20" in header("annealed-fit")
    assert "loss = 1 * hard" in header("tuned")
    assert "mean over classes of (s - t)^2" in header("raw-logits") and "limit of T^2 * KL" in header("matching")
    assert "rows with label 9 count in no part" in header("others") and "T' = 2, 3, 4, 5, 6" in header("others")
    assert "tensors are copied from runs/teacher/best.safetensors: features.0, features.1" in header("own-layers")
    assert "kept" in pd.read_csv("runs/sure/metrics.csv")
    assert len(pd.read_csv("runs/four-views/metrics.csv")) == 2
    assert len(pd.read_csv("runs/sweep/report/table.csv")) == 4
