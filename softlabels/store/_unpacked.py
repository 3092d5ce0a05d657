"""Compressed shards, each unpacked whole into one file of the cache and mapped from there.

::

    <cache>/unpacked/
      .copies/<xx>/<digest>     the bytes of the file; its time is that of its last use
      .copying/...              locks, and files that are being made
      <xx>/<digest>             every view of every array, uncompressed, each at a multiple of 64 bytes, array by array;
                                then the CRC-32 of each, little endian

The digest is of the shard's header, which holds checksums of all of its bytes: a copy is found again wherever the shard
lies, and one that was replaced has another copy.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from softlabels.core import locks
from softlabels.core.arrayfile.arrays import ArrayLayout
from softlabels.core.documents import json_digest
from softlabels.core.paths import Damaged, SafePath
from softlabels.errors import StoreError
from softlabels.store._cache import COPIES, COPYING, Cache, drop, making, used
from softlabels.store._folder import Chunk, ShardFolder
from softlabels.store._shard import Header, Shard

_FOLDER = "unpacked"
_ALIGNED = 64
"""Where chunks begin."""


def unit(folder: ShardFolder) -> int:
    """Bytes that one view of the longest shard takes, with what all its views have in common."""
    return sum(_aligned(folder.runs.longest * each.record) for each in folder.owner.layout.values())


class Unpacked:
    """The compressed shards of one teacher as uncompressed files of the cache."""

    def __init__(self, folder: ShardFolder, cache: Cache) -> None:
        self._folder, self._cache = folder, cache
        self._digests: dict[Shard, str] = {}

    @property
    def limit(self) -> int | None:
        """Bytes that copies may have."""
        return self._cache.limit

    def size(self, shard: Shard) -> int:
        """Bytes of the unpacked shard."""
        return sum(
            each.chunks(shard.views) * (_aligned(shard.rows * each.record) + 4)
            for each in self._folder.owner.layout.values()
        )

    def is_here(self, shard: Shard) -> bool:
        """Whether a copy of the shard, as its header was read last, is there now."""
        try:
            return self._path(shard).stat().st_size == self.size(shard)
        except OSError:
            return False

    def bring(self, shard: Shard, *, later: bool = False) -> None:
        """Unpack a shard, unless it is here; of several processes that want it one does. Raises StoreError."""
        self._bring(shard, self._folder.header(shard), later=later)

    @contextlib.contextmanager
    def local(self, shard: Shard, header: Header) -> Iterator[list[Chunk]]:
        """Where the chunks of a shard lie uncompressed, while this lasts. Raises StoreError when it is damaged."""
        while True:
            self._bring(shard, header)
            with self._cache.reading():
                if self.is_here(shard):
                    yield self._chunks(shard)
                    return

    def discard(self, shard: Shard) -> None:
        """Remove a copy that is damaged."""
        with self._cache.changing():
            drop(self._note(shard))

    def _bring(self, shard: Shard, header: Header, *, later: bool = False) -> None:
        self._digests[shard] = json_digest(header.body())
        if not self.is_here(shard):
            with locks.in_turn(self._copying(shard, ".lock")):
                if not self.is_here(shard):
                    self._make(shard, header)
        used(self._note(shard), later=later)

    def _make(self, shard: Shard, header: Header) -> None:
        note, size, fresh, away = self._note(shard), self.size(shard), self._copying(shard), self._folder.away
        self._cache.reserve(note, size if away is None else size + away.size(shard))
        try:
            with making(fresh):
                with self._folder.local(shard):
                    free = shutil.disk_usage(fresh.parent).free
                    if size > free:
                        raise StoreError(
                            f"{self._folder.shard_place(shard)} has {size:,} bytes unpacked, {self._cache.folder} has "
                            f"{free:,} left; free some, or choose another `cache_dir`"
                        )
                    self._write(shard, header, fresh)
                path = self._path(shard)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._cache.keep(note, self._digests[shard], size, lambda: fresh.replace(path))
        except BaseException:
            note.unlink(missing_ok=True)
            raise
        if away is not None:
            away.release(shard)

    def _write(self, shard: Shard, header: Header, path: Path) -> None:
        """Unpack all chunks; every byte of the shard's files is compared with their checksums."""
        sums = []
        with path.open("wb") as file:
            chunks = {(chunk.array, chunk.view): chunk for chunk in self._folder.chunks(shard, header)}
            for name, layout, view in self._order(shard):
                array = np.empty((shard.rows, *layout.shape), layout.numpy)
                self._folder.fill(chunks[name, view], shard, array)
                data = array.reshape(-1).view(np.uint8).data
                sums.append(zlib.crc32(data))
                file.write(data)
                file.write(bytes(-len(data) % _ALIGNED))
            file.write(struct.pack(f"<{len(sums)}I", *sums))
        for problem in self._folder.file_problems(shard, header):
            raise Damaged(problem)

    def _chunks(self, shard: Shard) -> list[Chunk]:
        place = SafePath(self._cache.folder, self._path(shard).relative_to(self._cache.folder).parts)
        order, found, start = self._order(shard), [], 0
        with place.open() as handle:
            end = place.read_at(handle, self.size(shard) - 4 * len(order), 4 * len(order))
        for (name, layout, view), crc32 in zip(order, struct.unpack(f"<{len(order)}I", end), strict=True):
            found.append(Chunk(name, view, place, start, shard.rows * layout.record, crc32, plain=True))
            start += _aligned(shard.rows * layout.record)
        return found

    def _order(self, shard: Shard) -> list[tuple[str, ArrayLayout, int]]:
        """Array and view of each chunk, as they lie in the file."""
        return [
            (name, each, shard.first_view + place)
            for name, each in sorted(self._folder.owner.layout.items())
            for place in range(each.chunks(shard.views))
        ]

    def _path(self, shard: Shard) -> Path:
        name = self._digests[shard]
        return self._cache.folder / _FOLDER / name[:2] / name

    def _note(self, shard: Shard) -> Path:
        name = self._digests[shard]
        return self._cache.folder / _FOLDER / COPIES / name[:2] / name

    def _copying(self, shard: Shard, suffix: str = "") -> Path:
        return self._cache.folder / _FOLDER / COPYING / f"{self._digests[shard]}{suffix}"


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
