"""Settings of the loss, through `softlabels train` and Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from worlds import TINY

import softlabels
from softlabels.errors import ConfigError


@pytest.fixture(scope="module")
def raw(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of two teachers that keep the constant of each row."""
    out = tmp_path_factory.mktemp("raw") / "labels"
    softlabels.dump(
        teacher=["cnn_small", "cnn_mini"],
        weights=["random", "random:1"],
        data=str(photos),
        views=3,
        recipe="crop-flip",
        codec="dense:fp16-raw",
        out=str(out),
        device="cpu",
        quiet=True,
    )
    return out


def header(folder: Path) -> str:
    return (folder / "header.txt").read_text()


def trained(out: Path, labels: Path | None, **given: Any) -> str:
    """The header of a run."""
    where = {} if labels is None else {"labels": str(labels)}
    softlabels.train(**where, **given, out=str(out), **TINY)
    return header(out)


# ---- raw logits


def test_raw_logits_are_compared_where_the_labels_keep_them(raw: Path, shards: Path, tmp_path: Path) -> None:
    loss = "mse centred=false reduction=mean"
    text = trained(tmp_path / "raw", raw, teachers=["cnn_small"], loss=loss)
    assert "soft = mean over classes of (s - t)^2, s and t: logits of student and teacher (mse)" in text
    assert trained(tmp_path / "both", raw, blend="mean-logits", loss=loss)
    with pytest.raises(
        ConfigError, match="dense:fp16 labels of .* up to a constant per row; dump with `codec=dense:fp16-raw`"
    ):
        trained(tmp_path / "lost", shards, loss=loss)
    with pytest.raises(ConfigError, match="blend 'mean-probabilities' knows its target up to a constant.*mean-logits"):
        trained(tmp_path / "blend", raw, loss=loss)
    assert not (tmp_path / "lost").exists() and not (tmp_path / "blend").exists()


def test_raw_logits_of_teachers_in_the_loop_are_those_that_are_stored(photos: Path, raw: Path, tmp_path: Path) -> None:
    given = {"loss": "mse centred=false", "seed": 0}
    trained(tmp_path / "stored", raw, teachers=["cnn_small"], **given)
    given |= {"teacher": ["cnn_small"], "teacher_weights": ["random"], "data": str(photos), "recipe": "crop-flip"}
    trained(tmp_path / "live", None, **given)
    first = [pd_first(tmp_path / name) for name in ("stored", "live")]
    assert first[0] == pytest.approx(first[1], rel=1e-2)
    two = {"teacher": ["cnn_small", "cnn_mini"], "teacher_weights": ["random", "random:1"]}
    with pytest.raises(ConfigError, match="choose `blend=mean-logits`"):
        trained(tmp_path / "two", None, **{**given, **two})


def pd_first(folder: Path) -> float:
    """The loss of the first epoch."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return float(dict(zip(lines[0].split(","), lines[1].split(","), strict=True))["loss"])


# ---- infinite temperature


def test_an_infinite_temperature_matches_logits(shards: Path, tmp_path: Path, softlabels_command: Callable) -> None:
    out = tmp_path / "run"
    options = [
        *"train --student cnn_tiny --epochs 1 --batch-size 8 --device cpu --workers 0".split(),
        "--labels",
        shards,
    ]
    softlabels_command(*options, "--temperature", "inf", "--compare", "--out", out)
    assert "(2 * classes)" in header(out) and "limit of T^2 * KL" in header(out)
    assert yaml.safe_load((out / "config.yaml").read_text())["temperature"] == float("inf")
    assert "nothing to do" in softlabels_command("train", "--config", out / "config.yaml", "--out", out).output
    refused = softlabels_command(*options, "--temperature", "inf", "--loss", "js", "--out", tmp_path / "js")
    assert "loss 'js' has no limit at an infinite temperature" in refused.output and refused.exit_code == 2
