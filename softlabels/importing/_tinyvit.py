"""TinyViT (Wu et al., "TinyViT: fast pretraining distillation for small vision transformers", 2022): flat records.

``logits_top<K>_epoch<E>/rank<R>-values.bin`` (read of microsoft/Cream, TinyViT) holds records of 4 + 4 K bytes, little
endian: the seed of the augmentation, int32; K class numbers, int16; K probabilities at temperature 1, float16.
``rank<R>-keys.txt`` has the key of each record in a line of its own: an image's place in the data set, or its name
where the data set gives one (ImageNet-22k). Each epoch is one view. Ranks may hold an image twice, from padding.

The view is made from the seed by TinyViT's own transforms, with numpy's PCG64 behind them; it is not made here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from softlabels.datasets import Images
from softlabels.errors import DataError
from softlabels.importing._source import Choices, ImageLabels, Rows, checked
from softlabels.views import RECIPES

_EPOCH = re.compile(r"logits_top(\d{1,5})_epoch(\d{1,6})")
_VALUES = re.compile(r"rank(\d{1,6})-values\.bin")


class TinyViT:
    """The epochs of saved labels below `folder`, for the images of a data set."""

    project = "tinyvit"
    surplus = 0
    size: int | None = None

    def __init__(self, folder: Path, images: Images, choices: Choices) -> None:
        k, epochs = _epochs(folder)
        if k > choices.classes:
            raise DataError(f"{epochs[0]} holds {k} classes of each label, but there are {choices.classes} (--classes)")
        self._choices = choices
        names = _names(images.keys)
        self._epochs = [_Epoch.opened(epoch, k, images, names) for epoch in epochs]
        self.views = len(epochs)
        self.codec = choices.codec(k, np.dtype(np.float16))
        self.recipe = RECIPES.make([{"kind": "foreign-view", "of": "TinyViT", "seeded": choices.pictures}])
        lacking = np.zeros(len(images), bool)
        for epoch in self._epochs:
            lacking |= epoch.places < 0
        self.missing = np.flatnonzero(lacking)
        self.surplus = max(epoch.surplus for epoch in self._epochs)
        self._held: tuple[Rows, list[int], NDArray[Any]] = (np.zeros(0, np.int64), [], np.zeros((0, 0)))

    def ready(self, rows: Rows, views: Rows) -> None:
        """See `Source.ready`. Epoch by epoch, since their files together are more than a process may have open."""
        there = np.setdiff1d(rows, self.missing)
        records = [self._epochs[view].records(there) for view in views.tolist()]
        self._held = (there, views.tolist(), np.stack(records, axis=1))

    def labels(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]]) -> ImageLabels:
        """See `Source.labels`."""
        rows, held, records = self._held
        place = int(np.searchsorted(rows, row))
        if held != [int(view) for view in views] or place == len(rows) or rows[place] != row:
            self.ready(np.array([row]), np.asarray(views, np.int64))
            place, records = 0, self._held[2]
        found = records[place]
        ids = np.ascontiguousarray(found["ids"])
        # More classes than int16 holds come round as negative numbers.
        ids = ids.view("<u2") if self._choices.classes > 1 << 15 else ids
        where = f"the label of image {row} in {self._epochs[int(views[0])].folder}"
        known, values = checked(ids, found["values"], self._choices.classes, where)
        return ImageLabels(
            known, values, {"view_seed": found["seed"].astype(np.int64)} if self._choices.pictures else {}
        )


@dataclass(frozen=True)
class _Epoch:
    """One epoch: its files, where the records of each begin, and each image's place (-1: none), int32 (images,)."""

    folder: Path
    record: np.dtype[Any]
    files: tuple[Path, ...]
    starts: Rows
    places: NDArray[np.int32]
    surplus: int

    @staticmethod
    def opened(folder: Path, k: int, images: Images, names: pa.ChunkedArray) -> _Epoch:
        ranks = sorted((int(found[1]), file) for file in folder.iterdir() if (found := _VALUES.fullmatch(file.name)))
        if not ranks:
            raise DataError(f"{folder} holds no rank0-values.bin; is it a folder that TinyViT's save_logits.py wrote?")
        record = np.dtype([("seed", "<i4"), ("ids", "<i2", (k,)), ("values", "<f2", (k,))])
        keys: list[pa.Array] = []
        for rank, file in ranks:
            listed = _lines(folder / f"rank{rank}-keys.txt")
            if file.stat().st_size != len(listed) * record.itemsize:
                raise DataError(
                    f"{file} has {file.stat().st_size:,} bytes, not {record.itemsize} for each of the {len(listed):,} "
                    f"keys beside it; it is cut off or of another K"
                )
            keys.append(listed)
        rows = _rows(pa.chunked_array(keys, pa.string()), images, names, folder)
        places = np.full(len(images), -1, np.int32)
        known = np.flatnonzero(rows >= 0)[::-1]
        places[rows[known]] = known  # of several, the first counts: it is assigned last
        starts = np.cumsum([0, *(len(each) for each in keys)])
        return _Epoch(folder, record, tuple(file for _, file in ranks), starts, places, int((rows < 0).sum()))

    def records(self, rows: Rows) -> NDArray[Any]:
        """The records of these rows, (n,)."""
        places, found = self.places[rows], np.empty(len(rows), self.record)
        for number, file in enumerate(self.files):
            inside = (places >= self.starts[number]) & (places < self.starts[number + 1])
            if inside.any():
                found[inside] = np.memmap(file, self.record, "r")[places[inside] - self.starts[number]]
        return found


def _epochs(folder: Path) -> tuple[int, list[Path]]:
    """K, and the folders of the epochs in order."""
    if not folder.is_dir():
        raise DataError(f"no such directory: {folder}")
    candidates = [folder] if _EPOCH.fullmatch(folder.name) else [each for each in folder.iterdir() if each.is_dir()]
    found = sorted(
        (int(match[2]), int(match[1]), each) for each in candidates if (match := _EPOCH.fullmatch(each.name))
    )
    if not found:
        raise DataError(f"{folder} holds no folder such as logits_top10_epoch0; give the folder that holds them")
    kept = {k for _, k, _ in found}
    if len(kept) > 1:
        raise DataError(f"{folder} holds labels of several K ({sorted(kept)}); move those of one elsewhere")
    return kept.pop(), [each for _, _, each in found]


def _lines(file: Path) -> pa.Array:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{file} is no list of keys; it is damaged") from problem
    return pa.array([line.strip() for line in text.splitlines()], pa.string())


def _names(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The images' file names without folder and ending."""
    bare = pc.replace_substring_regex(keys, r"^.*/", "")
    return pc.replace_substring_regex(bare, r"\.[^.]*$", "")


def _rows(keys: pa.ChunkedArray, images: Images, names: pa.ChunkedArray, folder: Path) -> Rows:
    """The row of each key, -1 where the data set has no such image.

    Raises:
        DataError: places in a data set of another size, or names that several images have.
    """
    if len(keys) and pc.all(pc.match_substring_regex(keys, r"^(0|[1-9][0-9]{0,9})$")).as_py():
        places = np.asarray(pc.cast(keys, pa.int64()))
        if places.max() >= len(images):
            raise DataError(
                f"{folder} names images by their places, up to {places.max():,}, but {images.name} has {len(images):,} "
                f"images; it is another data set"
            )
        return places
    if pc.count_distinct(names).as_py() != len(names):
        raise DataError(f"{folder} names images by file name, but two images of {images.name} have the same one")
    return np.asarray(pc.fill_null(pc.index_in(keys, value_set=names.combine_chunks()), -1), np.int64)
