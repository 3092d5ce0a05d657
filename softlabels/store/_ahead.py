"""Labels made ready before they are asked for, in a thread."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator

import numpy as np

from softlabels.core.arrays import Rows
from softlabels.errors import StoreError

_PATIENCE = 5.0
"""Seconds that closing waits; a thread that waits for a server ends by itself."""


class Ahead:
    """Makes units (shards, or views of them) ready in the order of their first use, as far ahead as there is room.

    Args:
        units: of each label in the order of reading, the unit that holds it: int64 (n,).
        ready: makes one unit ready.
        size: what one takes of the `room`; it is given back when the last label of the unit was passed.
        settle: is called in the end.
    """

    def __init__(
        self,
        units: Rows,
        ready: Callable[[int], None],
        size: Callable[[int], int],
        room: int | None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        distinct, first = np.unique(units, return_index=True)
        last = len(units) - 1 - np.unique(units[::-1], return_index=True)[1]
        order = np.argsort(first)
        self._plan = list(zip(*(each[order].tolist() for each in (distinct, first, last)), strict=True))
        self._ready, self._size, self._room, self._settle = ready, size, room, settle
        self._reached, self._closed = 0, False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="softlabels-ahead", daemon=True)
        self._thread.start()

    def reached(self, place: int) -> None:
        """Reading has come to label number `place`."""
        with self._moved:
            self._reached = place
            self._moved.notify_all()

    def close(self) -> None:
        """Make no more ready."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()
        self._thread.join(_PATIENCE)
        self._settle()

    def _run(self) -> None:
        try:
            for unit in self._in_time():
                self._ready(unit)
        except StoreError:
            return  # whoever reads it meets the same, and can say so

    def _in_time(self) -> Iterator[int]:
        held: list[tuple[int, int]] = []
        taken = 0
        for unit, first, last in self._plan:
            size = self._size(unit)
            with self._moved:
                while not self._closed and first >= self._reached:
                    while held and held[0][0] < self._reached:
                        taken -= heapq.heappop(held)[1]
                    if self._room is None or taken + size <= self._room:
                        break
                    self._moved.wait()
                if self._closed:
                    return
                if first < self._reached:
                    continue  # its reader was faster
            heapq.heappush(held, (last, size))
            taken += size
            yield unit
