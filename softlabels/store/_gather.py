"""Labels of any rows and views in one copy, straight from where they lie."""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import StoreError
from softlabels.store._folder import Chunk, Folder, advice
from softlabels.store._maps import BEYOND, Buffer, Mapped, Memory
from softlabels.store._shard import Shard

Rows = NDArray[np.int64]
Taken = dict[str, NDArray[Any]]

_UNOPENED = BEYOND
"""A place beyond all memory: gathering from it raises IndexError, so that open shards cost no test."""

_BUDGET = 256 << 20
"""Bytes of decoded labels that a process keeps of one teacher."""

_MOST_SLOTS = 1 << 24
"""Runs times views of one teacher that are kept track of; fourteen million images in a thousand views need a tenth."""


class Directory:
    """Which shard holds which (run, view); a pair's number is its slot."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.shards = folder.named()
        self.width = max((shard.stop_view for shard in self.shards), default=0)
        if self.width * len(folder.runs) > _MOST_SLOTS:
            raise StoreError(
                f"{folder.place} claims {self.width:,} views of {len(folder.runs):,} runs of rows, more than is read"
            )
        self._rows = folder.runs.rows
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

    def take(self, slots: Rows, rows: Rows) -> NDArray[Any]:
        """The records of these labels. Raises IndexError when one of the slots is not open."""
        places = rows * self.record
        places += self.table[slots]
        return self.memory.take(places).view(self.dtype)


class Gather(Protocol):
    """Reads the labels of any rows and views of one teacher."""

    @abstractmethod
    def take(self, rows: Rows, views: Rows) -> Taken:
        """Each array of these labels, (n, ...); rows and views are int64 (n,)."""
        ...


def gather(folder: Folder) -> Gather:
    """The reader that suits how the labels are stored."""
    directory = Directory(folder)
    if folder.owner.compression != "none":
        return DecodedGather(directory, _BUDGET)
    mapped = MappedGather(directory)
    return mapped if folder.away is None or folder.away.limit is None else PassingGather(mapped)


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


class MappedGather:
    """Uncompressed shards: every file is mapped at its first use and shared by all processes through the page cache.

    Any number of rows from any number of shards is one fancy index per array, without a loop over shards.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._fields = _fields(directory)
        self._maps: dict[Shard, list[Mapped]] = {}
        self._lock = _Lock()

    def take(self, rows: Rows, views: Rows) -> Taken:
        """See `Gather.take`."""
        slots = self._directory.slots(rows, views)
        try:
            return {name: field.take(slots, rows) for name, field in self._fields.items()}
        except IndexError:
            with advice():
                self._open(slots)
        return {name: field.take(slots, rows) for name, field in self._fields.items()}

    def _open(self, slots: Rows) -> None:
        with self._lock.get():
            tables = [field.table for field in self._fields.values()]
            for slot in np.unique(slots).tolist():
                if any(table[slot] == _UNOPENED for table in tables):
                    self._open_shard(self._directory.shard(slot))

    def close(self, shards: Iterable[Shard]) -> None:
        """Unmap these shards. Nobody may be reading."""
        for shard in shards:
            for view in range(shard.first_view, shard.stop_view):
                slot = self._directory.slot(shard, view)
                if self._directory.shard(slot) == shard:
                    for field in self._fields.values():
                        field.table[slot] = _UNOPENED
            del self._maps[shard]

    @property
    def open(self) -> list[Shard]:
        """The shards that are mapped."""
        return list(self._maps)

    def is_open(self, rows: Rows, views: Rows) -> bool:
        """Whether all shards of these labels are mapped."""
        slots = self._directory.slots(rows, views)
        return all(bool((field.table[slots] != _UNOPENED).all()) for field in self._fields.values())

    @property
    def folder(self) -> Folder:
        """Whose labels these are."""
        return self._directory.folder

    def _open_shard(self, shard: Shard) -> None:
        folder = self._directory.folder
        maps: dict[str, Mapped] = {}
        held = self._maps.setdefault(shard, [])
        with folder.local(shard):
            for chunk in folder.chunks(shard, folder.header(shard)):
                where = str(chunk.place)
                if where not in maps:
                    with chunk.place.open() as handle:
                        maps[where] = Mapped(handle, os.fstat(handle).st_size, where)
                    held.append(maps[where])
                if maps[where].size < chunk.offset + chunk.size:
                    raise StoreError(f"{where} shrank while it was opened")
                slot = self._directory.slot(shard, chunk.view)
                if self._directory.shard(slot) == shard:
                    self._fields[chunk.array].enter(slot, maps[where].address + chunk.offset, shard)


class PassingGather:
    """Copies of remote shards in a cache that has not room for all: a map of one that went is given up.

    What is mapped keeps its room on the disk even after its file went, so each process looks at its maps whenever it
    opens another shard.
    """

    def __init__(self, mapped: MappedGather) -> None:
        self._mapped = mapped
        self._lock = _Lock()

    def take(self, rows: Rows, views: Rows) -> Taken:
        """See `Gather.take`."""
        with self._lock.get():  # while it is read, nothing may be unmapped
            away = self._mapped.folder.away
            if away is not None and not self._mapped.is_open(rows, views):
                self._mapped.close([shard for shard in self._mapped.open if not away.is_here(shard)])
            return self._mapped.take(rows, views)


class DecodedGather:
    """Compressed shards: one view of one shard is decoded at a time; the latest used stay, up to `budget` bytes."""

    def __init__(self, directory: Directory, budget: int) -> None:
        self._directory = directory
        self._fields = _fields(directory)
        self._budget = budget
        self._chunks: dict[int, list[Chunk]] = {}
        self._buffers: OrderedDict[int, list[Buffer]] = OrderedDict()
        self._held = 0
        self._lock = _Lock()

    def take(self, rows: Rows, views: Rows) -> Taken:
        """See `Gather.take`."""
        slots = self._directory.slots(rows, views)
        out: Taken = {name: np.empty(len(rows), field.dtype) for name, field in self._fields.items()}
        with self._lock.get(), advice():  # while it is read, nothing may be dropped
            for group in self._groups(np.unique(slots).tolist()):
                self._decode(group)
                chosen = np.isin(slots, group)
                for name, field in self._fields.items():
                    out[name][chosen] = field.take(slots[chosen], rows[chosen])
        return out

    def _groups(self, slots: list[int]) -> list[list[int]]:
        """The slots in groups that fit into the budget together; a slot that never fits is alone."""
        groups: list[list[int]] = []
        room = 0
        for slot in slots:
            need = self._need(slot)
            if not groups or need > room:
                groups.append([])
                room = self._budget
            groups[-1].append(slot)
            room -= need
        return groups

    def _need(self, slot: int) -> int:
        rows = self._directory.shard(slot).rows
        return sum(rows * field.record for field in self._fields.values())

    def _decode(self, group: list[int]) -> None:
        for slot in group:
            if slot in self._buffers:
                self._buffers.move_to_end(slot)
        missing = [slot for slot in group if slot not in self._buffers]
        self._drop(self._budget - sum(map(self._need, missing)), keep=set(group))
        for slot in missing:
            self._buffers[slot] = [self._decoded(chunk, slot) for chunk in self._places(slot)]
            self._held += self._need(slot)

    def _drop(self, budget: int, keep: set[int]) -> None:
        for slot in list(self._buffers):
            if self._held <= budget:
                return
            if slot not in keep:
                for field in self._fields.values():
                    field.table[slot] = _UNOPENED
                del self._buffers[slot]
                self._held -= self._need(slot)

    def _decoded(self, chunk: Chunk, slot: int) -> Buffer:
        shard, field = self._directory.shard(slot), self._fields[chunk.array]
        buffer = Buffer(shard.rows * field.record)
        self._directory.folder.fill(chunk, shard, buffer.array)
        field.enter(slot, buffer.address, shard)
        return buffer

    def _places(self, slot: int) -> list[Chunk]:
        if slot not in self._chunks:
            folder, shard = self._directory.folder, self._directory.shard(slot)
            for chunk in folder.chunks(shard, folder.header(shard)):
                held = self._directory.slot(shard, chunk.view)
                if self._directory.shard(held) == shard:
                    self._chunks.setdefault(held, []).append(chunk)
        return self._chunks[slot]


class _Lock:
    """A lock of this process: a fork while another thread holds it does not leave it locked for ever."""

    def __init__(self) -> None:
        self._of: tuple[int, threading.Lock] = (os.getpid(), threading.Lock())

    def get(self) -> threading.Lock:
        """The lock of the process that asks."""
        if self._of[0] != os.getpid():
            self._of = (os.getpid(), threading.Lock())
        return self._of[1]


def _ends(numbers: Rows) -> str:
    return f"{numbers.min()}..{numbers.max()}"
