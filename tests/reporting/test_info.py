"""What `softlabels info` says to a person: no JSON, whether a store is complete, how good its teachers are."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import softlabels

DUMP: dict[str, Any] = {"views": 2, "rows_per_shard": 5, "device": "cpu", "workers": 0, "quiet": True}

HEADS = ["teacher", "codec", "bytes/label", "shards", "views", "teacher top-1", "unlabelled", "licence"]


def test_a_store_is_told_in_words(softlabels_command: Callable, photos: Path) -> None:
    softlabels.dump(teacher="cnn_tiny", weights="random", data=str(photos), recipe="pad-flip", out="s", **DUMP)
    first, images, views, head, row, *more = softlabels_command("info", "s").output.splitlines()
    assert "/s: complete, " in first
    assert f"HDF5, format 1, written {date.today().isoformat()} by softlabels {softlabels.__version__}" in first
    assert images.startswith("images  18 images of folder (root ")
    assert images.endswith("3 classes, all with a hard label")
    assert views.startswith("views   2 of each image, recipe pad-and-crop (fill 0, padding 0.125), horizontal-flip ")
    assert views.endswith(", seed 0")
    assert re.split("  +", head) == HEADS
    assert row.split()[:7] == ["cnn_tiny", "dense:fp16", "6", "4", "/", "4", "2"]
    assert re.match(r"cnn_tiny: small \(.*architecture cnn_tiny", more[0])
    assert more[1] == "  top-1 on view 0 of 18 images"
    assert not {"{", "["} & set("".join([first, views, head, row, *more]))


@pytest.mark.parametrize("codec", ["dense", "dense:fp32", "topk:2"])
@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_top1_is_that_of_the_stored_labels_where_it_is_known(
    photos: Path, tmp_path: Path, codec: str, format: str
) -> None:
    out = str(tmp_path / "s")
    softlabels.dump(
        teacher="cnn_tiny", weights="random:3", data=str(photos), codec=codec, format=format, out=out, **DUMP
    )
    told = softlabels.info(out)["teachers"]["cnn_tiny"]
    labels, images = softlabels.open_labels(out), softlabels.open_images(str(photos))
    named = labels.logits(labels.rows(images.keys), 0).argmax(1).numpy()
    expected = (named == images.labels).mean()
    assert (told["top1"], told["top1_images"]) == ((expected, 18) if "dense" in codec else (None, 0))


def test_an_incomplete_store_says_what_is_missing(softlabels_command: Callable, photos: Path) -> None:
    softlabels.dump(teacher="cnn_tiny", weights="random", data=str(photos), part="0/2", out="s", **DUMP)
    said = softlabels_command("info", "s").output
    assert "/s: incomplete, " in said
    assert " 2 / 4 " in said
    assert "  2 shards missing; the same dump goes on with them" in said
    assert softlabels.info("s")["complete"] is False
