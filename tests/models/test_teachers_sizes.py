"""Networks that are evaluated on larger images than they were trained on: each where it belongs, and it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import softlabels
from softlabels.models import TEACHERS, Architecture, Preprocessing

NETWORK = "timm:resnet10t.c3_in1k"
"""Trained at 176 and tested at 224 pixels."""

COMMON = {"weights": ["random"], "views": 1, "limit": 4, "device": "cpu", "quiet": True}


def card(store: Path) -> dict:
    return json.loads(next(store.glob("*/teacher.json")).read_text())


@pytest.mark.parametrize(("recipe", "size", "other"), [("clean", 224, 176), ("crop-flip", 176, 224)])
def test_clean_views_have_the_size_of_the_tests_and_random_ones_that_of_the_training(
    recipe: str, size: int, other: int, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    softlabels.dump(teacher=[NETWORK], data=str(photos), recipe=recipe, out=str(tmp_path / "s"), **COMMON)
    assert card(tmp_path / "s")["preprocessing"]["size"] == size
    assert f"is shown images of {size} px" in caplog.text and f"{other} px)" in caplog.text


def test_a_score_is_of_pictures_of_the_tests_size(photos: Path, softlabels_command: Callable, caplog) -> None:
    done = softlabels_command(
        "eval", "--student", NETWORK, "--weights", "random", "--data", photos, "--limit", 4, "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    assert "is shown images of 224 px, at which it was evaluated (trained: 176 px)" in caplog.text
    caplog.clear()
    softlabels_command(
        "eval",
        "--student",
        NETWORK,
        "--weights",
        "random",
        "--data",
        photos,
        "--limit",
        4,
        "--device",
        "cpu",
        "--size",
        64,
    )
    assert "is shown" not in caplog.text


def test_a_store_is_verified_with_the_preprocessing_that_it_was_made_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = TEACHERS.kinds["timm"]
    own = timm.own_preprocessing

    def former(self: Architecture, **_: bool) -> Preprocessing:
        return own(self, training=True)

    with monkeypatch.context() as before:
        before.setattr(timm, "own_preprocessing", former)
        softlabels.dump(teacher=[NETWORK], data=str(photos), recipe="clean", out=str(tmp_path / "s"), **COMMON)
    assert card(tmp_path / "s")["preprocessing"]["size"] == 176
    assert softlabels.verify(labels=str(tmp_path / "s"), device="cpu", quiet=True).ok
