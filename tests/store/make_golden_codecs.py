"""Write golden shards of every codec: ``PYTHONPATH=. python tests/store/make_golden_codecs.py``.

Golden shards are never written again: a new format version gets a folder of its own beside the older ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from softlabels.codecs import CODECS, FittedCodec, spelled
from softlabels.dumping.dump import stored_as
from softlabels.store import FORMAT, TeacherCard, create, open_store

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS, VIEWS = 4, 2

COMMON: list[Any] = [
    "dense",
    "dense:fp32",
    "quantized",
    "quantized:4",
    "head_tail:3",
    "head_tail:10 bits=4",
    "topk:10",
    "topk:11 levels=12",
    "topk:1",
    "topk:10 record=fast",
    "sampled:5",
    "probabilities:5",
    {"kind": "probabilities", "k": 3, "tail": "none", "dtype": "fp32", "temperature": 2.0},
]
STORES: dict[int, list[Any]] = {
    1000: [*COMMON, "head_tail:10", "topk:30", "topk:300", "sampled:30"],
    257: ["topk:10", "topk:60 levels=64", "head_tail:5", "topk:5 record=fast"],
    7: COMMON,
}
"""Codecs by number of classes: few enough that a codec keeps them all, and so many that a number takes 9 or 10 bits."""


def logits(classes: int) -> torch.Tensor:
    """Ordinary rows, a sure one, equal ones, and one deeper than a top-K label tells: (VIEWS, ROWS, classes)."""
    rng = np.random.default_rng(classes)
    rows = rng.normal(0, 2.5, (VIEWS, ROWS, classes)).astype(np.float32)
    rows[0, 0, 5] += 30
    rows[0, 1] = 1.5
    rows[1, 1] = np.round(rows[1, 1])
    rows[1, 2, 1:] -= 400
    return torch.from_numpy(rows)


def write(root: Path, classes: int, codecs: list[Any], others: Sequence[tuple[Any, str, str]]) -> None:
    keys = [f"{number:05d}.jpg" for number in range(ROWS)]
    table = pa.table(
        {"key": keys, "label": np.full(ROWS, -1), "checksum": np.arange(ROWS, dtype=np.uint64)},
    )
    store = create(
        root,
        data={"kind": "images", "root": "photos"},
        images=table,
        class_names=(),
        classes=classes,
        recipe={"steps": [{"kind": "resize-centre-crop"}]},
        seed=0,
        versions={},
        rows_per_shard=ROWS,
    )
    for wanted, form, compression in [
        *((each, "hdf5", "none") for each in codecs),
        *others,
    ]:
        codec = CODECS.make(wanted)
        layout = {name: {"dtype": each.dtype, "shape": each.shape} for name, each in codec.layout(classes).items()}
        card = TeacherCard(
            spec={"kind": "own"},
            weights_sha256="",
            preprocessing={},
            codec=codec.model_dump(mode="json"),
            layout=layout,
            classes=classes,
            format=form,
            compression=compression,
        )
        name = "-".join([spelled(codec).replace(":", "-").replace(" ", "-").replace("=", "-"), form, compression])
        labels = store.prepare(name, card)
        with labels.writing():
            (shard,) = labels.missing(VIEWS)
            words = np.random.default_rng(1).integers(0, 1 << 64, ROWS * VIEWS, dtype=np.uint64)
            made = codec.encode(logits(classes).reshape(ROWS * VIEWS, classes), words)
            arrays = {key: array.reshape(VIEWS, ROWS, *array.shape[1:]) for key, array in made.items()}
            labels.write(shard, arrays, digests={0: ["0123456789abcdef"] * VIEWS})


MAP = (3, 2, 2)
"""The shape of the golden feature map."""


def features() -> torch.Tensor:
    """Ordinary maps, one of zeros and one of small numbers: (VIEWS, ROWS, *MAP)."""
    maps = np.random.default_rng(5).normal(0, 2, (VIEWS, ROWS, *MAP)).astype(np.float32)
    maps[0, 1], maps[1, 2] = 0, maps[1, 2] * 1e-9
    return torch.from_numpy(maps)


def write_features(root: Path, wanted: str) -> None:
    """A store of logits and of a feature map beside them."""
    write(root, 7, ["dense"], [])
    store, codec, values = open_store(root), CODECS.make(wanted), int(np.prod(MAP))
    if isinstance(codec, FittedCodec):
        codec = codec.fit_to(features().flatten(2), views=VIEWS)
    layout = {name: {"dtype": each.dtype, "shape": each.shape} for name, each in codec.layout(values).items()}
    logits_card = store.teacher("dense-fp16-hdf5-none").card
    own = {"codec": codec.model_dump(mode="json"), "layout": layout, "classes": values}
    own |= {"output": "map", "source": "layer3:grid2", "shape": MAP}
    card = TeacherCard.model_validate({**logits_card.model_dump(), **own})
    labels = store.prepare("dense-fp16-hdf5-none@map", card)
    with labels.writing():
        (shard,) = labels.missing(VIEWS)
        made = codec.encode(features().reshape(ROWS * VIEWS, values))
        arrays = {key: array.reshape(VIEWS, ROWS, *array.shape[1:]) for key, array in made.items()}
        labels.write(shard, arrays, digests={0: ["0123456789abcdef"] * VIEWS})


TRANSFORMS = [
    ("transform:40", "hdf5", "none", 4),
    ("transform:40", "hdf5", "zstd", 4),
    ("transform:40", "zarr", "zstd", 4),
    ("transform:300 k=300", "zarr", "none", 4),
    ("transform:60 k=5", "hdf5", "zstd", 1),
]
"""Codec, format, compression, and for how many views of an image it is fitted: of one it keeps no mean."""


def write_transforms(root: Path) -> None:
    """A store of labels in the basis of a classifier's weights, whole shards encoded together."""
    classes = 257
    write(root, classes, [], [])
    store, said = open_store(root), logits(classes)
    weight = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (classes, 24)).astype(np.float32))
    said[:, 3] = torch.from_numpy(np.random.default_rng(4).normal(0, 1, (VIEWS, 24)).astype(np.float32)) @ weight.T
    for wanted, form, compression, views in TRANSFORMS:
        codec = CODECS.make(wanted).fit_to(said, views=views, weight=weight)  # type: ignore[attr-defined]
        stored = stored_as(codec, classes, beside={}, compression=compression)
        card = TeacherCard(
            spec={"kind": "own"}, weights_sha256="", preprocessing={}, classes=classes, format=form, **stored
        )
        spelled_out = spelled(codec).replace(":", "-").replace(" ", "-").replace("=", "-")
        labels = store.prepare("-".join([spelled_out, form, compression]), card)
        with labels.writing():
            (shard,) = labels.missing(VIEWS)
            labels.write(shard, codec.encode_shard(said), digests={0: ["0123456789abcdef"] * VIEWS})


if __name__ == "__main__":
    places = {GOLDEN / f"{what}-{FORMAT}": what for what in ("codecs", "features", "pca", "top-logits", "transform")}
    missing = {place: what for place, what in places.items() if not place.exists()}
    if not missing:
        sys.exit(f"{' and '.join(map(str, places))} are there already")
    for place, what in missing.items():
        if what in ("features", "pca"):
            write_features(place, {"features": "int8", "pca": "pca:5"}[what])
            continue
        if what == "transform":
            write_transforms(place)
            continue
        if what == "top-logits":
            write(place, 257, ["top_logits:10", "top_logits:300"], [])
            continue
        for classes, codecs in STORES.items():
            write(place / str(classes), classes, codecs, [("topk:10", "zarr", "none"), ("dense", "hdf5", "zstd")])
