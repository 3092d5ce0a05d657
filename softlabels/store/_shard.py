"""A shard: which labels it holds, and the header that says where they lie in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from softlabels.core.arrayfile.arrays import ArrayHeader, ArrayLayout, Count, HexDigits, check_array
from softlabels.core.paths import Damaged
from softlabels.errors import StoreError
from softlabels.store._layout import LARGEST_CHUNK

MOST_VIEWS = 1 << 16
_NAME = re.compile(r"(\d{5,12})-v(\d{1,6})-(\d{1,6})")


@dataclass(frozen=True, order=True)
class Shard:
    """The labels of rows `first_row`..`stop_row` - 1 (run number `run`) and views `first_view`..`stop_view` - 1."""

    run: int
    first_row: int
    stop_row: int
    first_view: int
    stop_view: int

    @property
    def name(self) -> str:
        """What its file is called, without the ending."""
        return f"{self.run:05d}-v{self.first_view}-{self.stop_view}"

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.stop_row - self.first_row

    @property
    def views(self) -> int:
        """How many views of each row it holds."""
        return self.stop_view - self.first_view


class Runs:
    """How rows are cut into runs: every addition of images is cut by itself, so that runs never change later."""

    def __init__(self, additions: tuple[int, ...], rows_per_shard: int) -> None:
        starts, first = [], 0
        for count in additions:
            starts.append(np.arange(first, first + count, rows_per_shard, dtype=np.int64))
            first += count
        self.rows = first
        self.starts = np.concatenate(starts)
        self._length = rows_per_shard if len(additions) == 1 else None
        self._shift = rows_per_shard.bit_length() - 1 if rows_per_shard.bit_count() == 1 else None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def longest(self) -> int:
        """Rows of the longest run."""
        return int(np.diff(self.starts, append=self.rows).max())

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The run of each row, int64 (n,)."""
        if self._length is None:
            return np.searchsorted(self.starts, rows, side="right") - 1
        return rows // self._length if self._shift is None else rows >> self._shift  # half the time

    def shard(self, run: int, first_view: int, stop_view: int) -> Shard:
        """The shard of these views of one run."""
        stop = self.starts[run + 1] if run + 1 < len(self.starts) else self.rows
        return Shard(run, int(self.starts[run]), int(stop), first_view, stop_view)

    def parse(self, name: str) -> Shard | None:
        """The shard of this name; None when no shard of this store is called so."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        run, first, stop = (int(group) for group in match.groups())
        if run >= len(self) or not first < stop <= MOST_VIEWS:
            return None
        shard = self.shard(run, first, stop)
        return shard if shard.name == name else None


class Header(ArrayHeader):
    """What a shard says of itself; its chunks are views.

    Rows of `skipped` were not labelled (with the reason); `digests` are of rendered images, one for each view.
    """

    store: HexDigits
    teacher: str
    card: HexDigits
    name: str
    first_row: Count
    stop_row: Count
    skipped: dict[int, str] = Field(default_factory=dict)
    digests: dict[int, tuple[str, ...]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Owner:
    """What every shard of one teacher's labels must agree with.

    `stores` are (row, id): shards of rows below it, and not below an earlier one, carry this id of their store.
    """

    stores: tuple[tuple[int, str], ...]
    teacher: str
    card: str
    layout: Mapping[str, ArrayLayout]
    compression: str

    def header(self, shard: Shard, skipped: Mapping[int, str], digests: Mapping[int, Any]) -> Header:
        """The header of a new shard, without the places of its arrays."""
        return Header(
            store=self.store(shard),
            teacher=self.teacher,
            card=self.card,
            name=shard.name,
            first_row=shard.first_row,
            stop_row=shard.stop_row,
            compression=self.compression,
            skipped=dict(skipped),
            digests={row: tuple(texts) for row, texts in digests.items()},
        )

    def store(self, shard: Shard) -> str:
        """The id of the store that `shard` carries."""
        return next(name for stop, name in self.stores if shard.first_row < stop)

    def check(self, header: Header, shard: Shard, where: str) -> None:
        """Raise StoreError when `header` is of other labels, Damaged when it contradicts itself."""
        said = (header.store, header.teacher, header.card, header.name, header.first_row, header.stop_row)
        wanted = (self.store(shard), self.teacher, self.card, shard.name, shard.first_row, shard.stop_row)
        if said != wanted:
            names = ("data set and recipe", "teacher", "teacher's card", "shard", "first row", "last row")
            other = next(name for name, a, b in zip(names, said, wanted, strict=True) if a != b)
            raise StoreError(f"{where} is of another {other} than this store; it was copied here by mistake, remove it")
        if header.compression != self.compression or set(header.arrays) != set(self.layout):
            raise Damaged(f"{where} does not hold the arrays of this teacher")
        for name, each in self.layout.items():
            if shard.rows * each.record > LARGEST_CHUNK:
                raise StoreError(
                    f"{where}: array {name!r} claims {shard.rows * each.record:,} bytes for one view, more than the "
                    f"{LARGEST_CHUNK:,} allowed"
                )
            extent = (shard.views, shard.rows)
            check_array(header.arrays[name], each, extent, self.compression, f"{where}: array {name!r}")
        for row, texts in header.digests.items():
            if len(texts) != shard.views or not shard.first_row <= row < shard.stop_row:
                raise Damaged(f"{where} has image digests of rows or views that it does not hold")
        if any(not shard.first_row <= row < shard.stop_row for row in header.skipped):
            raise Damaged(f"{where} skips rows that it does not hold")
