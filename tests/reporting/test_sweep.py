"""Grids of runs, their table and plots, and how near a student is to its teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from worlds import TINY

import softlabels
from softlabels.models import build, preprocessing
from softlabels.reporting import run_sweep

SMALL: dict[str, Any] = {**TINY, "epochs": 2, "teachers": ["cnn_small"]}


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_a_sweep_trains_every_combination_with_every_seed_and_goes_on(
    shards: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"labels": str(shards), "eval_data": str(photos), "out": str(tmp_path / "sweep"), **SMALL}
    done = softlabels.sweep(grid=["alpha=0,0.5", "temperature=1"], runs=2, **common)
    assert list(done.table["arm"]) == ["alpha=0,temperature=1", "alpha=0.5,temperature=1"]
    assert list(done.table["runs"]) == [2, 2]
    assert done.table["accuracy_std"].notna().all()
    assert done.table["logit_difference_mean"].gt(0).all()
    assert done.table["teacher_accuracy_mean"].nunique() == 1
    for name, value in (
        ("accuracy", lambda run: 100 * result(run)["last"]["top1"]),
        ("loss", lambda run: pd.read_csv(run / "metrics.csv")["loss"].iloc[-1]),
        ("teacher_accuracy", lambda run: 100 * result(run)["closeness"]["teacher_top1"]),
        ("logit_difference", lambda run: result(run)["closeness"]["logit_difference"]),
    ):
        for arm, row in done.table.set_index("arm").iterrows():
            values = [value(tmp_path / "sweep" / str(arm) / f"seed-{seed}") for seed in range(2)]
            assert row[f"{name}_mean"] == pytest.approx(np.mean(values))
            assert row[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    for name in ("table.md", "table.csv", "curves.png", "arms.png"):
        assert (tmp_path / "sweep" / "report" / name).stat().st_size > 0
    assert result(tmp_path / "sweep" / "alpha=0.5,temperature=1" / "seed-1")["closeness"]["images"] == 18

    trained = []
    train = run_sweep.run_train

    def noted(config: Any, terminal: Any) -> Any:
        before = Path(config.out, "result.json").exists()
        trained.append(before)
        return train(config, terminal)

    monkeypatch.setattr(run_sweep, "run_train", noted)
    (tmp_path / "sweep" / "alpha=0,temperature=1" / "seed-1" / "result.json").unlink()
    more = softlabels.sweep(grid=["alpha=0,0.5", "temperature=1,2"], runs=2, **common)
    assert trained.count(False) == 1 + 4
    assert len(more.table) == 4
    pd.testing.assert_series_equal(
        more.table["accuracy_mean"].iloc[[0, 2]], done.table["accuracy_mean"], check_index=False
    )


def test_one_run_that_diverges_does_not_stop_a_sweep(shards: Path, tmp_path: Path) -> None:
    done = softlabels.sweep(
        labels=str(shards),
        grid=["lr=0.001,1e+30"],
        loss="mse",
        optimizer="sgd",
        warmup_epochs=0,
        out=str(tmp_path / "s"),
        **SMALL,
    )
    assert len(done.table) == 1
    assert len(done.problems) == 1
    assert "no longer finite" in done.problems[0]


def test_a_grid_that_cannot_be_is_refused_before_the_first_run(shards: Path, tmp_path: Path) -> None:
    wrong = {
        "alpha=0,2": "alpha",
        "alhpa=0": "alpha",
        "seed=1": "seed",
        "alpha": "no values",
    }
    for grid, named in wrong.items():
        with pytest.raises(softlabels.ConfigError, match=named):
            softlabels.sweep(labels=str(shards), grid=[grid], out=str(tmp_path / "s"), **SMALL)
    assert not (tmp_path / "s").exists()


def test_closeness_is_what_a_plain_loop_finds(shards: Path, photos: Path, tmp_path: Path) -> None:
    result = softlabels.train(labels=str(shards), compare=True, ema=0.5, out=str(tmp_path / "run"), **SMALL)
    labels = softlabels.open_labels(shards)
    pictures = softlabels.SoftLabelDataset(labels, softlabels.open_images(photos), size=preprocessing("cnn_tiny").size)
    network = build("cnn_tiny", 3)
    network.load_state_dict(load_file(tmp_path / "run" / "last.safetensors"))
    network.eval()
    numbers = list(softlabels.OneViewEach(pictures))
    shown = torch.stack([pictures[number][0] for number in numbers])
    with torch.no_grad():
        said = network(preprocessing("cnn_tiny").normalise(shown))
    rows, views = [number // 4 for number in numbers], [number % 4 for number in numbers]
    teacher = labels.logits(rows, views, teacher="cnn_small")
    difference = (said - said.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)).abs().mean()
    hard = torch.tensor([pictures[number][1] for number in numbers])
    assert result["closeness"]["logit_difference"] == pytest.approx(float(difference), rel=1e-4)
    assert result["closeness"]["agreement"] == pytest.approx(
        float((said.argmax(1) == teacher.argmax(1)).float().mean())
    )
    assert result["closeness"]["teacher_top1"] == pytest.approx(float((teacher.argmax(1) == hard).float().mean()))


def test_sweep_and_report_are_commands(softlabels_command: Callable, shards: Path, photos: Path) -> None:
    options = ["--student", "cnn_tiny", "--labels", shards, "--eval-data", photos, "--epochs", 1, "--device", "cpu"]
    swept = softlabels_command("sweep", "--grid", "alpha=0,1", "--grid", "loss=kl", "--runs", 2, *options)
    assert swept.exit_code == 0, swept.output
    assert "alpha=1,loss=kl" in swept.output
    assert " ± " in swept.output
    shown = softlabels_command("report", "runs/sweep", "--out", "here")
    assert shown.exit_code == 0, shown.output
    assert "logit difference" in shown.output
    assert Path("here/arms.png").exists()
    missing = softlabels_command("report", "nowhere")
    assert missing.exit_code == 1
    assert "no finished run under nowhere" in missing.output


def test_a_sweep_without_held_out_images_says_so(softlabels_command: Callable, shards: Path) -> None:
    words = (
        "--labels",
        shards,
        "--student",
        "cnn_tiny",
        "--size",
        16,
        "--epochs",
        1,
        "--device",
        "cpu",
        "--workers",
        0,
    )
    swept = softlabels_command("sweep", *words, "--teachers", "cnn_small")
    assert swept.exit_code == 0, swept.output
    assert "not evaluated, since the data set has no held-out side; name images with --eval-data" in swept.output
