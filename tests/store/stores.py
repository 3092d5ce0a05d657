"""Small label stores whose every value is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from softlabels.store import Shard, Store, TeacherCard, TeacherLabels, create, open_store

VIEWS = 12
"""Views for which values are known."""

LAYOUT: dict[str, Any] = {
    "ids": {"dtype": "uint16", "shape": (5,)},
    "values": {"dtype": "float16", "shape": (5,)},
    "tail": {"dtype": "float32", "shape": ()},
}
KINDS = [(form, compression) for form in ("hdf5", "zarr") for compression in ("none", "zstd")]

each_kind = pytest.mark.parametrize(("form", "compression"), KINDS, ids=["-".join(kind) for kind in KINDS])


def table(rows: int, first: int = 0) -> pa.Table:
    numbers = np.arange(first, first + rows)
    return pa.table(
        {
            "key": [f"train/{number:05d}.jpg" for number in numbers],
            "label": numbers % 10 - 1,
            "checksum": numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        }
    )


def card(form: str = "hdf5", compression: str = "none", **changes: Any) -> TeacherCard:
    value = {
        "spec": {"kind": "small", "name": "cnn"},
        "weights_sha256": "ab" * 32,
        "licence": None,
        "preprocessing": {"size": 8, "mean": [0.5], "std": [0.25]},
        "codec": {"kind": "topk", "k": 5},
        "layout": LAYOUT,
        "classes": 10,
        "format": form,
        "compression": compression,
        "versions": {"torch": "2.15"},
    }
    return TeacherCard.model_validate(value | changes)


def make(root: Path, rows: int = 50, rows_per_shard: int = 20, **changes: Any) -> Store:
    value: dict[str, Any] = {
        "data": {"kind": "folder", "name": "birds"},
        "images": table(rows),
        "class_names": [f"class {number}" for number in range(10)],
        "classes": 10,
        "recipe": {"steps": [{"kind": "crop", "scale": [0.08, 1.0]}]},
        "seed": 7,
        "versions": {"softlabels": "0.1.0"},
        "rows_per_shard": rows_per_shard,
    }
    return create(root, **(value | changes))


def values(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What the teacher says of every view of every row: (VIEWS, rows, ...), compressible but not constant."""
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 10, (VIEWS, rows, 5)).astype(np.uint16),
        "values": rng.integers(-8, 8, (VIEWS, rows, 5)).astype(np.float16) / 4,
        "tail": rng.integers(0, 100, (VIEWS, rows)).astype(np.float32),
    }


def of_shard(known: dict[str, np.ndarray], shard: Shard) -> dict[str, np.ndarray]:
    return {
        name: array[shard.first_view : shard.stop_view, shard.first_row : shard.stop_row]
        for name, array in known.items()
    }


def fill(labels: TeacherLabels, views: int, *, part: tuple[int, int] = (0, 1), seed: int = 0) -> int:
    """Write every shard that is missing; how many there were."""
    known = values(labels_rows(labels), seed)
    with labels.writing(part):
        shards = labels.missing(views, part)
        for shard in shards:
            labels.write(shard, of_shard(known, shard), digests={shard.first_row: ["ab"] * shard.views})
    return len(shards)


def labels_rows(labels: TeacherLabels) -> int:
    return len(open_store(labels.root))


def filled(
    root: Path,
    form: str = "hdf5",
    compression: str = "none",
    *,
    rows: int = 50,
    rows_per_shard: int = 20,
    views: int = 3,
) -> TeacherLabels:
    labels = make(root, rows, rows_per_shard).prepare("cnn", card(form, compression))
    fill(labels, views)
    return labels


def files(root: Path) -> dict[str, bytes]:
    """Every file below `root` and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assert_holds(labels: TeacherLabels, views: int, seed: int = 0) -> None:
    """All labels of these views are what the teacher said."""
    rows = labels_rows(labels)
    known = values(rows, seed)
    for view in range(views):
        for name, array in labels.take(np.arange(rows), np.full(rows, view)).items():
            np.testing.assert_array_equal(array, known[name][view])
