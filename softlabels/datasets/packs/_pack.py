"""Packs as data sets: images prepared once for fast reading, in shards that are mapped into memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.reading import shrunken
from softlabels.datasets._images import Split, absolute, in_short
from softlabels.datasets.packs._format import (
    MANIFEST,
    SHARD,
    Packed,
    PackFile,
    PackManifest,
    open_shard,
    open_table,
    read_manifest,
)
from softlabels.errors import DataError

_MOST_OPEN = 1 << 14
"""Shards that are mapped at once: Linux allows a process 65,530 maps."""


@dataclass(frozen=True, eq=False)
class _Opened:
    """A mapped shard, which of its images were compared with their checksums, and its file as it was then."""

    file: PackFile
    checked: NDArray[np.bool_]
    place: str
    state: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PackedImages:
    """The images of a pack. Shards are mapped at their first use, and each image's checksum is compared then.

    A shard whose file changes is opened anew, so that one that became shorter is a `DataError`.
    """

    root: Path
    spec: Mapping[str, Any]
    manifest: PackManifest
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    _opened: dict[int, _Opened] = field(default_factory=dict, repr=False)

    pixels: None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.root, dict(self.spec))

    def __repr__(self) -> str:
        return in_short(self)

    @property
    def name(self) -> str:
        return f"pack:{self.root}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def decoder(self) -> str:
        return self.manifest.packing.decoder

    @property
    def raw(self) -> bool:
        """Whether pixels lie in it, and no files."""
        return self.manifest.packing.quality == "raw"

    def __len__(self) -> int:
        return self.manifest.rows

    def content(self, row: int) -> bytes:
        return self._packed(int(row)).data.tobytes()

    def decode(self, row: int) -> Tensor:
        return self.manifest.packing.decode(self._filled(row), f"image {self._key(row)} of {self.root}")

    def checksums(self) -> NDArray[np.uint64]:
        """A number for each image that changes with its bytes, from the shards' tables: uint64 (n,).

        Raises:
            DataError: a shard is missing or damaged.
        """
        found = []
        for shard in range(self.manifest.shards):
            arrays = open_shard(self.root, self.manifest, shard).arrays
            lengths = np.diff(arrays["ends"], prepend=0).astype(np.uint64)
            found.append(lengths << np.uint64(32) | arrays["crc32"].astype(np.uint64))
        return np.concatenate(found)

    def problems(self) -> list[str]:
        """Read every byte: what is missing or damaged, one line each."""
        found = []
        for shard in range(self.manifest.shards):
            try:
                found += open_shard(self.root, self.manifest, shard).problems()
            except DataError as problem:
                found.append(str(problem))
        return found

    def _filled(self, row: int) -> Packed:
        packed = self._packed(int(row))
        if not packed.data.size:
            why = self._shard(int(row)).file.header.skipped.get(int(row), "no bytes")
            raise DataError(f"image {self._key(row)} of {self.root} could not be read when it was packed: {why}")
        return packed

    def _packed(self, row: int) -> Packed:
        opened = self._shard(row)
        file, checked = opened.file, opened.checked
        place = row % self.manifest.rows_per_shard
        ends = file.arrays["ends"]
        data = file.arrays["payload"][(ends[place - 1] if place else 0) : ends[place]]
        if not checked[place]:
            if zlib.crc32(data.data) != file.arrays["crc32"][place]:
                raise DataError(f"image {self._key(row)} in {file.place} does not match its checksum; copy it again")
            checked[place] = True
            if shrunken:
                raise DataError(f"{file.place}, or another file, became shorter while it was read; copy it again")
        return Packed(data, *file.arrays["sizes"][place].tolist())

    def _shard(self, row: int) -> _Opened:
        shard = row // self.manifest.rows_per_shard
        opened = self._opened.get(shard)
        if opened is None or _state(opened.place) != opened.state:
            file = open_shard(self.root, self.manifest, shard)
            place = str(file.place / file.format.payload("payload", SHARD["payload"]))
            checked = np.zeros(len(self.manifest.span(shard)), bool)
            while len(self._opened) >= _MOST_OPEN:
                self._opened.pop(next(iter(self._opened)), None)
            self._opened[shard] = opened = _Opened(file, checked, place, _state(place))
        return opened

    def _key(self, row: int) -> str:
        return repr(self.keys[int(row)].as_py())


def _state(path: str) -> tuple[int, ...]:
    """What changes when a file does; nothing when it is not there, as of a shard whose images are all empty."""
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


class Pack(Part):
    """``pack:DIR``: what ``softlabels pack`` left there, or in its ``train/`` and ``test/`` folders, a pack each."""

    shorthand: ClassVar[str] = "root"
    kind: Literal["pack"] = "pack"
    root: str
    split: Split = "train"

    def open(self) -> PackedImages:
        """The images, under the keys, labels and classes of the data set that was packed.

        Raises:
            DataError: there is no pack, it is not whole, or its manifest or table of images is damaged.
        """
        root = Path(absolute(self.root))
        if not root.is_dir():
            raise DataError(f"no such directory: {root}; `softlabels pack` makes a pack")
        sides = (self.split, *({"test": ("val",), "val": ("test",)}.get(self.split, ())))
        divided = [root / side for side in sides if (root / side / MANIFEST).is_file()]
        chosen = divided[0] if divided and not (root / MANIFEST).exists() else root
        return _open(chosen, {**self.model_dump(), "root": str(root)})


def _open(root: Path, spec: dict[str, Any]) -> PackedImages:
    manifest = read_manifest(root)
    keys, labels = _table(root, manifest)
    lacking = [shard for shard in range(manifest.shards) if not (root / manifest.shard(shard)).exists()]
    if lacking:
        raise DataError(
            f"{root} is not whole: {len(lacking):,} of {manifest.shards:,} shards are missing (first: "
            f"{manifest.shard(lacking[0])}); run the same `softlabels pack` again to go on"
        )
    return PackedImages(root, spec, manifest, keys, labels)


def _table(root: Path, manifest: PackManifest) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
    """Keys and labels, whose every byte is checked."""
    file = open_table(root, manifest)
    a, ends = file.arrays, file.arrays["ends"]
    damaged = f"{file.place} is no table of the {manifest.rows:,} images of this pack; copy it again from its source"
    if file.problems() or ends[-1] >= 1 << 31:
        raise DataError(damaged)
    low, high = int(a["labels"].min()), int(a["labels"].max())
    if low < -1 or high >= len(manifest.classes):
        raise DataError(f"{file.place} has labels {low} to {high} for {len(manifest.classes)} classes; copy it again")
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(a["keys"][: ends[-1]].tobytes())]
    try:
        column = pa.Array.from_buffers(pa.string(), manifest.rows, buffers)
        column.validate(full=True)
    except pa.ArrowInvalid as problem:
        raise DataError(damaged) from problem
    return pa.chunked_array([column]), a["labels"].copy()
