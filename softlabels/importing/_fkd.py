"""FKD (Shen and Xing, "A fast knowledge distillation framework for visual recognition", 2022): a file for each image.

``FOLDER/NAME.tar``, written by ``torch.save`` (read of szq0214/FKD at afd5294), holds a list of

    coords   (views, 4) float32 or float16: top, left, height, width of each crop; the first and third as shares of the
             image's height, the others of its width
    flips    (views,) bool: mirrored after the crop
    output   (views,) class numbers (``hard``); or (views, 2) class number and probability (``smoothing``); or
             (views, 2, K) both of the K highest (``marginal_smoothing_k5``, ``marginal_smoothing_k10``,
             ``marginal_renorm``), in one float type

below the last folders of the image's path; NAME ends before the image's first dot. Which of the ``marginal_`` kinds it
is, and at what temperature, is not in the file. The generator resizes crops bicubic, FKD's students bilinear.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.core.arrays import Rows
from softlabels.core.philox import hash_keys
from softlabels.core.pickles import read_torch_file
from softlabels.datasets import Images
from softlabels.errors import DataError
from softlabels.importing._source import Choices, ImageLabels, checked_labels
from softlabels.views import RECIPES

_LARGEST_IN_HALF = 2048
"""Whole numbers above this are rounded in half floats."""

_STRAYS = 1e-2
"""How far the rounded edges of a crop may lie beyond the image, in shares of it."""


class Fkd:
    """FKD: crops, flips and probabilities, in a file for each image.

    The label files below `folder`, for the images of a data set.
    """

    settings: ClassVar[frozenset[str]] = frozenset({"temperature", "tail", "values"})
    project = "fkd"
    views_at_once: int | None = None
    notes: Sequence[str] = ()
    unpaired = 0
    interpolation: str | None = "bicubic"

    def __init__(self, folder: Path, images: Images, choices: Choices) -> None:
        self._choices, self._keys = choices, images.keys
        self._root = _root(folder, images.keys)
        self.missing, self.surplus = _compared(self._root, images.keys)
        if len(self.missing) == len(images):
            raise DataError(f"{folder} holds no labels of {images.name}")
        first = int(np.setdiff1d(np.arange(len(images)), self.missing)[0])
        _, _, ids, values = self._read(first)
        self.views = len(ids)
        hard = values.shape[1] == 1 and (values == 1).all()
        self.codec = choices.codec(ids.shape[1], values.dtype, "none" if hard else None)
        drawn = [{"kind": "recorded-crop", "unit": "shares"}, {"kind": "recorded-flip"}]
        self.recipe = RECIPES.make(drawn if choices.pictures else [{"kind": "foreign-view", "of": "FKD"}])
        self.size: int | None = None

    @staticmethod
    def by_place(folder: Path) -> bool:  # noqa: ARG004
        """See `Source.by_place`."""
        return False

    def ready(self, rows: Rows, views: Rows) -> None:
        """See `Source.ready`. Each image has a file of its own."""

    def labels(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]]) -> ImageLabels:
        """See `Source.labels`."""
        coords, flips, ids, values = self._read(row)
        if ids.shape[1] != self.codec.k or len(ids) <= max(views, default=-1):
            raise DataError(
                f"{self._file(row)} holds {len(ids)} views of {ids.shape[1]} classes, other files {self.views} of "
                f"{self.codec.k}; choose fewer `views`, or leave the file out"
            )
        records = {"view_box": coords[views], "view_flip": flips[views]} if self._choices.pictures else {}
        return ImageLabels(ids[views], values[views], records)

    def _file(self, row: int) -> Path:
        return self._root / _place(self._keys[int(row)].as_py())

    def _read(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], Rows, NDArray[Any]]:
        file = self._file(row)
        content = read_torch_file(file)
        if not isinstance(content, list | tuple) or len(content) != 3:
            raise DataError(f"{file} is no label of FKD: it should hold crops, flips and labels")
        coords, flips, output = (np.asarray(each) for each in content)
        count = len(output) if output.ndim else 0
        numbers = all(each.dtype.kind in "biuf" for each in (coords, flips, output))
        if not numbers or count == 0 or coords.shape != (count, 4) or flips.shape != (count,):
            raise DataError(
                f"{file} is no label of FKD: crops {coords.shape}, flips {flips.shape}, labels {output.shape}"
            )
        coords = coords.astype(np.float32)
        inside = (coords[:, :2] >= 0) & (coords[:, 2:] > 0) & (coords[:, :2] + coords[:, 2:] <= 1 + _STRAYS)
        if not inside.all():
            raise DataError(f"{file} records crops that do not lie in an image; its layout is another one")
        ids, values = self._parted(output, file)
        return coords, flips.astype(np.bool_), *checked_labels(ids, values, self._choices.classes, file)

    def _parted(self, output: NDArray[Any], file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        if output.dtype == np.float16 and self._choices.classes > _LARGEST_IN_HALF:
            raise DataError(
                f"{file} writes class numbers as half floats, which round those above {_LARGEST_IN_HALF:,}; labels of "
                f"{self._choices.classes:,} classes cannot be read from it"
            )
        if output.ndim == 1:
            return output[:, None], np.ones((len(output), 1), np.float16)
        if output.ndim == 2 and output.shape[1] == 2:
            return output[:, :1], output[:, 1:]
        if output.ndim == 3 and output.shape[1] == 2 and output.shape[2] <= self._choices.classes:
            return output[:, 0], output[:, 1]
        raise DataError(
            f"{file} holds labels {output.shape}; known are (views,), (views, 2) and (views, 2, K): whole rows of "
            f"probabilities are not imported"
        )


def _place(key: str) -> str:
    """Where the label of an image lies below the root."""
    path = PurePosixPath(key)
    return str(path.parent / (path.name.partition(".")[0] + ".tar"))


def _root(folder: Path, keys: pa.ChunkedArray) -> Path:
    """The folder below `folder` in which labels lie as the images do in their data set."""
    few = [keys[int(row)].as_py() for row in np.unique(np.linspace(0, len(keys) - 1, 16).astype(int))]
    tried = list(_candidates(folder))
    found = [sum((root / _place(key)).is_file() for key in few) for root in tried]
    if not tried or not max(found):
        raise DataError(
            f"{folder} holds no labels of these images; looked for {_place(few[0])} in it, in train/ and below"
        )
    return tried[int(np.argmax(found))]


def _candidates(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise DataError(f"no such directory: {folder}")
    below = sorted(each for each in folder.iterdir() if each.is_dir())[:100]
    for root in (folder, *below):
        yield from (root, root / "train")


def _compared(root: Path, keys: pa.ChunkedArray) -> tuple[Rows, int]:
    """The rows without a label file, and how many files beside them are of no image."""
    held: dict[str, int] = {}
    missing: list[int] = []
    hashes = np.empty(len(keys), np.uint64)
    row = 0

    @functools.lru_cache(maxsize=16)  # keys come folder by folder, and all names of all folders would fill the memory
    def listed(folder: str) -> frozenset[str]:
        names = _files(root / folder)
        held[folder] = len(names)
        return names

    for start in range(0, len(keys), 65_536):  # in stretches: never a Python list of all keys
        some = [_place(key) for key in keys.slice(start, 65_536).to_pylist()]
        hashes[start : start + len(some)] = hash_keys(some)
        for place in some:
            folder, _, name = place.rpartition("/")
            if name not in listed(folder):
                missing.append(row)
            row += 1
    order = np.argsort(hashes)
    twice = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if len(twice):
        one, other = (keys[int(order[twice[0] + step])].as_py() for step in (0, 1))
        raise DataError(f"{one!r} and {other!r} would have one label, {_place(one)}; rename one of them")
    return np.array(missing, np.int64), sum(held.values()) - (row - len(missing))


def _files(folder: Path) -> frozenset[str]:
    try:
        return frozenset(name for name in os.listdir(folder) if name.endswith(".tar"))  # noqa: PTH208 (a million)
    except FileNotFoundError:
        return frozenset()
