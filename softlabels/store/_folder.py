"""A teacher's folder: which shards lie in it, and the bytes of each."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from softlabels.core.arrayfile.arrays import ArrayFormat, bytes_of, check_files, damage, file_damage
from softlabels.core.arrayfile.blosc import decompress
from softlabels.core.files import TEMPORARY
from softlabels.core.locks import LOCK
from softlabels.core.paths import Damaged, SafePath
from softlabels.errors import StoreError
from softlabels.store._shard import Header, Owner, Runs, Shard

CARD = "teacher.json"

REMOVED = ".removed-"
"""Begins the name of a note that a shard was taken away and is to be made again."""


@contextlib.contextmanager
def advice() -> Iterator[None]:
    """Say to whom a damaged shard gets in the way what to do about it."""
    try:
        yield
    except Damaged as problem:
        raise Damaged(
            f"{problem}; run `softlabels verify` to find all damage, and `softlabels repair` to repair it"
        ) from problem


@dataclass(frozen=True)
class Chunk:
    """One view of one array of one shard, or all of one that is `per_image`: where its bytes lie."""

    array: str
    view: int
    place: SafePath
    offset: int
    size: int
    crc32: int
    plain: bool


def mismatch(place: SafePath, chunk: Chunk) -> Damaged:
    """The error for a chunk whose bytes are not those that were written."""
    return Damaged(f"{place}: array {chunk.array!r}, view {chunk.view} does not match its checksum")


class Away(Protocol):
    """The shards of one teacher that lie behind a URL: what is there, and how it comes here."""

    def entries(self) -> list[str]:
        """The names in the remote folder."""
        ...

    def where(self, shard: Shard) -> str:
        """The URL of a shard, for messages."""
        ...

    def strays(self, shard: Shard) -> list[str]:
        """What lies below a remote shard without belonging to it."""
        ...

    def heads(self, shards: Sequence[Shard]) -> None:
        """Fetch the headers of these shards, many at a time."""
        ...

    def head(self, shard: Shard) -> SafePath:
        """A file, or a folder of files, as long as the shard that begins as it does. Raises Damaged."""
        ...

    @property
    def limit(self) -> int | None:
        """Bytes that copies may have; None for any number."""
        ...

    def size(self, shard: Shard) -> int:
        """Bytes of a shard."""
        ...

    def bring(self, shard: Shard, *, later: bool = False) -> None:
        """Copy a shard, unless it is here; one for `later` goes after those that were read. Raises StoreError."""
        ...

    def is_here(self, shard: Shard) -> bool:
        """Whether a whole copy is here now."""
        ...

    def release(self, shard: Shard) -> None:
        """Remove the copy of a shard, which is not needed any more."""
        ...

    def local(self, shard: Shard) -> AbstractContextManager[None]:
        """While this lasts, a whole and checked copy of the shard is here. Raises StoreError when there can be none."""
        ...


@dataclass(frozen=True)
class ShardFolder:
    """The shards of one teacher; those that are `away` are copied here when they are needed."""

    place: SafePath
    runs: Runs
    owner: Owner
    format: ArrayFormat
    away: Away | None = None

    def entries(self) -> list[str]:
        """The names in the folder, wherever it is."""
        return self.place.entries() if self.away is None else self.away.entries()

    def local(self, shard: Shard) -> AbstractContextManager[None]:
        """While this lasts, the files of a shard are here."""
        return contextlib.nullcontext() if self.away is None else self.away.local(shard)

    def shard_place(self, shard: Shard) -> SafePath:
        """Where `shard` lies, or is to lie."""
        return self.place / f"{shard.name}{self.format.suffix}"

    def named(self, run: int | None = None) -> list[Shard]:
        """Shards of all runs, or of one, by the names in the folder, sorted; that they are whole is not looked at."""
        suffix, begin = self.format.suffix, "" if run is None else f"{run:05d}-"
        entries = self.entries()
        names = (name.removesuffix(suffix) for name in entries if name.endswith(suffix) and name.startswith(begin))
        return sorted(shard for name in names if (shard := self.runs.parse(name)) is not None)

    def unknown(self) -> list[str]:
        """Names in the folder that no shard, card, lock or unfinished file has."""
        known = {f"{shard.name}{self.format.suffix}" for shard in self.named()} | {CARD}
        return [
            name for name in self.entries() if name not in known and not name.startswith((TEMPORARY, LOCK, REMOVED))
        ]

    def stamp(self, shard: Shard) -> int:
        """A number that changes when a file of a shard does; 0 when some file is not there."""
        try:
            place = self.shard_place(shard) if self.away is None else self.away.head(shard)
            names = (self.format.header_member, *sorted(self.format.members(self.owner.layout)))
            return stamp_of([os.lstat((place / name).path) for name in dict.fromkeys(names)])
        except (OSError, Damaged):
            return 0

    def header(self, shard: Shard) -> Header:
        """The header of a shard, checked against the store, the teacher and the sizes of its files.

        Raises:
            Damaged: the shard is cut off, changed or contradicts itself.
            StoreError: it is of another store or a newer format, or a link.
        """
        if self.away is None:
            return self._header(shard, self.shard_place(shard))
        place = self.away.head(shard)
        try:
            return self._header(shard, place)
        except StoreError as problem:
            raise type(problem)(str(problem).replace(str(place), self.away.where(shard))) from problem

    def _header(self, shard: Shard, place: SafePath) -> Header:
        header = self.format.read_header(place, Header)
        self.owner.check(header, shard, str(place))
        check_files(place, self.format, header, self.owner.layout)
        return header

    def chunks(self, shard: Shard, header: Header) -> Iterator[Chunk]:
        """Every chunk of a shard, array by array and view by view."""
        for name, stored in header.arrays.items():
            place = self.shard_place(shard) / self.format.payload(name, self.owner.layout[name])
            places = zip(stored.offsets, stored.sizes, stored.crc32, stored.plain, strict=True)
            for view, where in enumerate(places, shard.first_view):
                yield Chunk(name, view, place, *where)

    def check_chunk(self, chunk: Chunk, shard: Shard) -> None:
        """Raise Damaged when the bytes of `chunk` do not match their checksum."""
        found = 0
        with self.local(shard), chunk.place.open() as handle:
            for piece in chunk.place.pieces(handle, chunk.offset, chunk.offset + chunk.size):
                found = zlib.crc32(piece, found)
        if found != chunk.crc32:
            raise mismatch(self.shard_place(shard), chunk)

    def fill(self, chunk: Chunk, shard: Shard, out: NDArray[Any]) -> None:
        """Read one chunk, check it, and put it into `out` (rows, ...), decompressed. Raises Damaged."""
        with self.local(shard), chunk.place.open() as handle:
            data = chunk.place.read_at(handle, chunk.offset, chunk.size)
        where = f"{self.shard_place(shard)}: array {chunk.array!r}, view {chunk.view}"
        if zlib.crc32(data) != chunk.crc32:
            raise mismatch(self.shard_place(shard), chunk)
        layout = self.owner.layout[chunk.array]
        lies = np.empty((*layout.shape, shard.rows), layout.numpy) if layout.columns else out
        if chunk.plain:
            bytes_of(lies)[:] = np.frombuffer(data, np.uint8)
        else:
            decompress(data, lies, where)
        if layout.columns:
            out[...] = np.moveaxis(lies, -1, 0)

    def arrays(self, shard: Shard, header: Header) -> dict[str, NDArray[Any]]:
        """All arrays of a shard, each (views, rows, ...), or (1, rows, ...) `per_image`, every chunk checked."""
        layout = self.owner.layout
        arrays = {name: np.empty(each.extent(shard.views, shard.rows), each.numpy) for name, each in layout.items()}
        for chunk in self.chunks(shard, header):
            self.fill(chunk, shard, arrays[chunk.array][chunk.view - shard.first_view])
        return arrays

    def problems(self, shard: Shard) -> list[str]:
        """Everything that is wrong with a shard, down to the last byte of every file of it."""
        try:
            with self.local(shard):
                strays = [] if self.away is None else self.away.strays(shard)
                found = [f"{self.shard_place(shard)} holds {name!r}, which is not of it" for name in strays]
                return found + self._problems(shard)
        except StoreError as problem:
            return [str(problem)]

    def _problems(self, shard: Shard) -> list[str]:
        place = self.shard_place(shard)
        try:
            header = self.header(shard)
            found = damage(place, self.format, header)
            for chunk in self.chunks(shard, header):
                self.check_chunk(chunk, shard)
        except StoreError as problem:
            return [str(problem)]
        return found

    def file_problems(self, shard: Shard, header: Header) -> list[str]:
        """What is wrong with the files of a shard, whose bytes are all compared with their checksums."""
        return file_damage(self.shard_place(shard), header)


def stamp_of(files: Sequence[os.stat_result]) -> int:
    """A number, never 0, that changes whenever one of these files is written to, or others lie in their places."""
    return hash(tuple((each.st_dev, each.st_ino, each.st_size, each.st_ctime_ns) for each in files)) >> 2 | 1 << 60
