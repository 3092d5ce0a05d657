"""Labels of any rows and views in one copy, straight from where they lie."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.core.arrays import Rows
from softlabels.core.locks import Lock
from softlabels.core.maps import BEYOND, Memory, mapped, prefetch
from softlabels.core.paths import Damaged, SafePath
from softlabels.core.reading import Mapped, guard, shrunken
from softlabels.errors import StoreError
from softlabels.store._ahead import Ahead
from softlabels.store._cache import Cache
from softlabels.store._folder import Chunk, ShardFolder, advice, mismatch, stamp_of
from softlabels.store._shard import Header, Shard
from softlabels.store._unpacked import Unpacked

Taken = dict[str, NDArray[Any]]

_UNOPENED = BEYOND
"""A place beyond all memory: gathering from it raises IndexError, so that open shards cost no test."""

_FEW = 4096
"""Labels whose places are named to the system one by one when their shards were just opened: a batch, not a store."""

_MOST_MAPS = 1 << 15
"""Files that are mapped at once: Linux allows a process 65,530 maps."""

MOST_SLOTS = 1 << 28
"""Runs times views of one teacher that are kept track of, in 12 bytes each and more."""

_LOOKS, _FREE_LOOKS = 0.01, 0.05
"""Share of the time, and seconds beforehand, that go into looking whether mapped files have changed."""

_WORTH_A_THREAD = 8 << 20
"""Bytes to compare for which a thread is started."""


def check_extent(folder: ShardFolder, views: int, most: int = MOST_SLOTS) -> None:
    """Raise StoreError when these are more views of the store's runs than readers keep track of."""
    if views * len(folder.runs) > min(most, MOST_SLOTS):
        raise StoreError(
            f"{views:,} views of {len(folder.runs):,} runs of rows in {folder.place} are more than is read; make a "
            f"store with more `rows_per_shard`"
        )


class Directory:
    """Which shard holds which (run, view); a pair's number is its slot."""

    def __init__(self, folder: ShardFolder) -> None:
        self.folder = folder
        self.shards = folder.named()
        self.width = max((shard.stop_view for shard in self.shards), default=0)
        held = sum(shard.views for shard in self.shards)
        check_extent(folder, self.width, most=max(MOST_SLOTS >> 4, 16 * held))  # a stranger's store must have the files
        self._rows = folder.runs.rows
        self._numbers = {shard: number for number, shard in enumerate(self.shards)}
        self._skipped: dict[Shard, frozenset[int]] = {}
        self.skips = False
        """Whether a header that was read has rows that were not labelled."""
        self._shard_of = np.full((len(folder.runs), self.width), -1, np.int32)
        for number, shard in reversed(list(enumerate(self.shards))):  # of two that hold a label, the first one counts
            self._shard_of[shard.run, shard.first_view : shard.stop_view] = number

    @property
    def size(self) -> int:
        """How many slots there are."""
        return self._shard_of.size

    def slots(self, rows: Rows, views: Rows) -> Rows:
        """The slot of each (row, view), int64 (n,). Raises IndexError or StoreError for what cannot be there."""
        if rows.size == 0:
            return rows
        # Seen as unsigned, a negative number is too large as well: one pass instead of two.
        if np.maximum.reduce(rows.view(np.uint64)) >= self._rows:
            raise IndexError(f"rows must be within 0..{self._rows - 1}, these reach from {_ends(rows)}")
        if np.maximum.reduce(views.view(np.uint64)) >= self.width:
            raise StoreError(
                f"{self.folder.place} holds views 0..{self.width - 1}, asked for were {_ends(views)}"
                if self.width
                else f"{self.folder.place} holds no labels yet; dump some first"
            )
        return self.folder.runs.of(rows) * self.width + views

    def distinct(self, slots: Rows) -> list[int]:
        """These slots in rising order, each once. (numpy's `unique` imports a quarter of numpy at its first use.)"""
        wanted = np.zeros(self.size, bool)
        wanted[slots] = True
        return np.flatnonzero(wanted).tolist()

    def numbers(self, slots: Rows) -> Rows:
        """Of each slot the number of its shard, those that no shard holds left out: int64, at most (n,)."""
        numbers = self._shard_of.reshape(-1)[slots]
        return numbers[numbers >= 0].astype(np.int64)

    def of(self, slots: Rows) -> list[Shard]:
        """The shards that hold some of these slots, each once."""
        wanted = np.zeros(len(self.shards), bool)
        wanted[self.numbers(slots)] = True
        return [self.shards[number] for number in np.flatnonzero(wanted).tolist()]

    def header(self, shard: Shard) -> Header:
        """The header of a shard as it is now; `unlabelled` goes by the one that was read last."""
        header = self.folder.header(shard)
        self._skipped[shard] = frozenset(header.skipped)
        self.skips |= bool(header.skipped)
        return header

    def unlabelled(self, rows: Rows, views: Rows) -> NDArray[np.bool_]:
        """Which labels are none, since their images could not be read, bool (n,)."""
        slots = self.slots(rows, views)
        lost = []
        for shard in self.of(slots):
            if shard not in self._skipped:
                self.header(shard)
            lost += [self._numbers[shard] * self._rows + row for row in self._skipped[shard]]
        if not lost:
            return np.zeros(len(rows), bool)
        return np.isin(self._shard_of.reshape(-1)[slots].astype(np.int64) * self._rows + rows, lost)

    def slot(self, shard: Shard, view: int) -> int:
        """The slot of one view of a shard."""
        return shard.run * self.width + view

    def shard(self, slot: int) -> Shard:
        """The shard that holds a slot. Raises StoreError when none does."""
        number = self._shard_of.flat[slot]
        if number < 0:
            run, view = divmod(slot, self.width)
            missing = self.folder.runs.shard(run, view, view + 1)
            raise StoreError(
                f"{self.folder.place} has no labels of view {view} for rows {missing.first_row}..{missing.stop_row - 1}"
                f"; it is incomplete: dump again, or copy it whole"
            )
        return self.shards[number]


@dataclass(frozen=True)
class _Field:
    """One array: for every slot the place at which row 0 would lie, if the shard went back to it."""

    table: NDArray[np.int64]
    memory: Memory
    record: int
    dtype: np.dtype[Any]
    """Of a whole record: numpy's sub-array dtype, whose view has the shape at once."""

    def enter(self, slot: int, address: int, shard: Shard) -> None:
        """The records of `shard` in this slot begin at `address`."""
        self.table[slot] = address - 1 - shard.first_row * self.record

    def prefetch(self, slots: Rows, rows: Rows) -> None:
        """Have the records of these labels, whose slots are open, brought to memory."""
        prefetch(rows * self.record + (self.table[slots] + 1), self.record)

    def take(self, slots: Rows, rows: Rows) -> NDArray[Any]:
        """The records of these labels. Raises IndexError when one of the slots is not open."""
        places = rows * self.record
        places += self.table[slots]
        return self.memory.take(places).view(self.dtype)


def _fields(directory: Directory) -> dict[str, _Field]:
    return {
        name: _Field(
            table=np.full(directory.size, _UNOPENED, np.int64),
            memory=Memory(each.record),
            record=each.record,
            dtype=np.dtype((each.numpy, each.shape)),
        )
        for name, each in directory.folder.owner.layout.items()
    }


@dataclass(eq=False)
class _Opened:
    """The files of a shard as they were when it was mapped."""

    maps: dict[SafePath, Mapped]
    paths: list[str]
    stamp: int
    source: int
    """The stamp of a compressed shard of which the files are copies, else 0."""
    chunks: list[Chunk]


class LabelReader:
    """Reads the labels of any rows and views of one teacher.

    Every uncompressed file, or copy of one in the cache, is mapped at its first use and shared by all processes through
    the page cache. Any number of rows from any number of shards is one fancy index per array, without a loop over
    shards. Compressed shards are unpacked to `cache`, or the usual one.

    A chunk is compared with its checksum when it is first used, once for this process and all that it forks. A file
    that becomes shorter, changes or is replaced is found when it is next looked at: at every take, unless looking
    costs more than a hundredth of the time. Then it is opened anew, and refused when its labels are others.

    Where copies may go, or shards have more files than a process may map, maps are given up for those of others: what
    is mapped keeps its room on the disk even after its file went.
    """

    def __init__(self, folder: ShardFolder, cache: Cache | None = None) -> None:
        self.folder, self._directory = folder, Directory(folder)
        self._unpacked = None if folder.owner.compression == "none" else Unpacked(folder, cache or Cache.at())
        self._copies = self._unpacked or folder.away  # None for files that lie in the store
        self._most = _MOST_MAPS // len(folder.owner.layout)
        limited = self._copies is not None and self._copies.limit is not None
        self._reading = Lock() if limited or len(self._directory.shards) > self._most else None
        directory = self._directory
        self._fields = _fields(directory)
        self._opened: dict[Shard, _Opened] = {}
        self._digests: dict[Shard, tuple[str, ...]] = {}
        self._retired: list[_Opened] = []
        # Anonymous shared memory: what a forked process has compared, the others need not.
        self._compared = np.frombuffer(mmap.mmap(-1, max(8, 8 * directory.size)), np.int64)
        self._began, self._looking, self._next_look = time.perf_counter(), 0.0, 0.0
        self._lock = Lock()

    def take(self, rows: Rows, views: Rows) -> Taken:
        """Each array of these labels, (n, ...); rows and views are int64 (n,)."""
        slots = self._directory.slots(rows, views)
        if self._reading is None:
            return self._take(slots, rows)
        with self._reading.get():  # while it is read, nothing may be unmapped
            if any(bool((field.table[slots] == _UNOPENED).any()) for field in self._fields.values()):
                self._give_up_maps()
            return self._take(slots, rows)

    def _take(self, slots: Rows, rows: Rows) -> Taken:
        if time.perf_counter() >= self._next_look:
            self._look(slots)
        try:
            taken = {name: field.take(slots, rows) for name, field in self._fields.items()}
        except IndexError:
            with advice():
                self._open(slots)
            if len(rows) <= _FEW:
                for field in self._fields.values():
                    field.prefetch(slots, rows)
            taken = {name: field.take(slots, rows) for name, field in self._fields.items()}
        if shrunken:
            self._refuse_shrunken(slots)
        return taken

    def unlabelled(self, rows: Rows, views: Rows) -> NDArray[np.bool_]:
        """Which of these labels, that were just taken, are none, since their images could not be read: bool (n,)."""
        if not self._directory.skips:  # the header of each shard that is mapped was read
            return np.zeros(len(rows), bool)
        return self._directory.unlabelled(rows, views)

    def ahead(self, rows: Rows, views: Rows) -> Ahead | None:
        """What makes these labels ready in this order; None where there is nothing to do."""
        copies, shards = self._copies, self._directory.shards
        if copies is None:
            return None
        numbers = self._directory.numbers(self._directory.slots(rows, views))
        bring, size = (lambda each: copies.bring(shards[each], later=True)), (lambda each: copies.size(shards[each]))
        return Ahead(numbers, bring, size, copies.limit)

    @property
    def open(self) -> list[Shard]:
        """The shards that are mapped, those that have been so for longest first."""
        return list(self._opened)

    def _give_up_maps(self) -> None:
        gone = [] if self._copies is None else [each for each in self._opened if not self._copies.is_here(each)]
        if len(self._opened) - len(gone) >= self._most:
            gone = self.open[: len(self._opened) // 2] + gone
        for shard in gone:
            self._forget(shard)
        self._retired.clear()

    def _look(self, slots: Rows) -> None:
        """See whether the mapped files of these labels are what they were; those that are not are opened anew."""
        began = time.perf_counter()
        guard()
        for shard in self._directory.of(slots):
            opened = self._opened.get(shard)
            if opened is not None and self._changed(shard, opened):
                with self._lock.get():
                    self._retired.append(opened)  # another thread may be reading what is mapped
                    self._forget(shard)
        self._looking += time.perf_counter() - began
        self._next_look = self._began + (self._looking - _FREE_LOOKS) / _LOOKS

    def _changed(self, shard: Shard, opened: _Opened) -> bool:
        if opened.source and opened.source != self.folder.stamp(shard):
            return True
        try:
            return stamp_of([os.lstat(path) for path in opened.paths]) != opened.stamp
        except OSError as error:
            # A copy may make room for others; what is mapped of it is read on.
            return self._copies is None or error.errno != errno.ENOENT

    def _forget(self, shard: Shard) -> None:
        for view in range(shard.first_view, shard.stop_view):
            slot = self._directory.slot(shard, view)
            if self._directory.shard(slot) == shard:
                for field in self._fields.values():
                    field.table[slot] = _UNOPENED
        self._opened.pop(shard, None)

    def _open(self, slots: Rows) -> None:
        with self._lock.get():
            tables = [field.table for field in self._fields.values()]
            closed = [
                slot for slot in self._directory.distinct(slots) if any(table[slot] == _UNOPENED for table in tables)
            ]
            for slot in closed:
                shard = self._directory.shard(slot)
                if shard not in self._opened:
                    self._opened[shard] = self._mapped(shard)
            self._compare(closed)
            for slot in closed:
                shard = self._directory.shard(slot)
                opened = self._opened[shard]
                for chunk in self._chunks(slot):
                    address = opened.maps[chunk.place].address + chunk.offset
                    self._fields[chunk.array].enter(slot, address, shard)

    def _chunks(self, slot: int) -> list[Chunk]:
        shard = self._directory.shard(slot)
        layout, view = self.folder.owner.layout, slot % self._directory.width
        return [each for each in self._opened[shard].chunks if each.view == view or layout[each.array].per_image]

    def _compare(self, slots: Sequence[int]) -> None:
        """Compare these chunks with their checksums, unless this process or one of its kin has done so."""
        fresh = [slot for slot in slots if self._compared[slot] != self._opened[self._directory.shard(slot)].stamp]
        # What all views of an image have in common is compared once.
        chunks = ((self._directory.shard(slot), chunk) for slot in fresh for chunk in self._chunks(slot))
        todo = list(dict.fromkeys(chunks))
        threads = min(len(todo), os.cpu_count() or 1, sum(chunk.size for *_, chunk in todo) // _WORTH_A_THREAD)
        if threads > 1:
            with ThreadPoolExecutor(threads, thread_name_prefix="softlabels-compare") as pool:
                sums = list(pool.map(self._crc32, todo))
        else:
            sums = list(map(self._crc32, todo))
        for (shard, chunk), found in zip(todo, sums, strict=True):
            if found != chunk.crc32 and self._unpacked is not None:
                self._unpacked.discard(shard)
                self._retired.append(self._opened[shard])
                self._forget(shard)
                raise StoreError(f"{chunk.place} was damaged and is removed; read again to unpack it anew")
            if found != chunk.crc32:
                raise mismatch(self.folder.shard_place(shard), chunk)
        for slot in fresh:
            self._compared[slot] = self._opened[self._directory.shard(slot)].stamp

    def _crc32(self, job: tuple[Shard, Chunk]) -> int:
        shard, chunk = job
        mapped = self._opened[shard].maps[chunk.place]
        prefetch(np.array([mapped.address + chunk.offset]), chunk.size)
        return zlib.crc32(mapped.array()[chunk.offset : chunk.offset + chunk.size].data)

    def _mapped(self, shard: Shard) -> _Opened:
        folder = self.folder
        maps: dict[SafePath, Mapped] = {}
        statuses = []
        source = 0 if self._unpacked is None else folder.stamp(shard)
        header = self._directory.header(shard)
        with self._local(shard, header) as chunks:
            for chunk in chunks:
                if chunk.place not in maps:
                    with chunk.place.open() as handle:
                        status = os.fstat(handle)
                        maps[chunk.place] = mapped(handle, status.st_size, str(chunk.place))
                    statuses.append(status)
                if maps[chunk.place].size < chunk.offset + chunk.size:
                    raise Damaged(f"{chunk.place} shrank while it was opened")
        digest = tuple(file.sha256 for _, file in sorted(header.files.items()))
        if self._digests.setdefault(shard, digest) != digest:
            raise StoreError(
                f"{folder.shard_place(shard)} was replaced by other labels while it was read; start again to read those"
            )
        return _Opened(maps, [str(place) for place in maps], stamp_of(statuses), source, chunks)

    @contextlib.contextmanager
    def _local(self, shard: Shard, header: Header) -> Iterator[list[Chunk]]:
        """The chunks of a shard, whose files are here while this lasts."""
        if self._unpacked is not None:
            with self._unpacked.local(shard, header) as chunks:
                yield chunks
        else:
            with self.folder.local(shard):
                yield list(self.folder.chunks(shard, header))

    def _refuse_shrunken(self, slots: Rows) -> None:
        for shard in self._directory.of(slots):
            opened = self._opened.get(shard)
            if opened is not None and any(each.shrank for each in opened.maps.values()):
                with advice():
                    raise Damaged(f"{self.folder.shard_place(shard)} became shorter while it was read")


def _ends(numbers: Rows) -> str:
    return f"{numbers.min()}..{numbers.max()}"
