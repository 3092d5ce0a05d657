"""Files as memory, and one array that spans many of them."""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.core.reading import Mapped
from softlabels.errors import StoreError


def mapped(handle: int, size: int, where: object, *, private: bool = False) -> Mapped:
    """A whole file as memory, see `Mapped`. Raises StoreError, naming `where`, when it cannot be mapped."""
    try:
        return Mapped(handle, size, private=private)
    except OSError as error:
        raise StoreError(f"{where} cannot be mapped into memory: {error.strerror}") from error


def prefetch(addresses: NDArray[np.int64], size: int) -> None:
    """Have the system read `size` bytes at each of these addresses of maps, all at the same time, and do not wait.

    When a copy meets one page after the other that is not in memory, it waits for each, and each time the system reads
    many pages around it as well.
    """
    starts = addresses // mmap.PAGESIZE * mmap.PAGESIZE
    for start, length in zip(starts.tolist(), (addresses + size - starts).tolist(), strict=True):
        _madvise()(start, length, mmap.MADV_WILLNEED)


@functools.cache
def _madvise() -> Any:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise


class Memory:
    """The whole address space as overlapping records: item i is the `record` bytes at address i + 1.

    A fancy index into it copies records from any number of maps at once. Only addresses whose record lies within a
    `Mapped` may be used; one from `BEYOND` on raises IndexError.
    """

    def __init__(self, record: int) -> None:
        self._record = record
        self._records: NDArray[np.void] | None = None
        if record <= _WIDEST:
            self._records = np.asarray(_Interface(record))

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The records at these places (addresses less 1), int64 (n,): n records, one after the other."""
        if self._records is not None:
            return self._records[places]
        if places.size and places.max() >= BEYOND:
            raise IndexError("beyond all memory")
        out = np.empty(len(places), f"V{self._record}")
        to = out.__array_interface__["data"][0]
        for place in places.tolist():
            ctypes.memmove(to, place + 1, self._record)
            to += self._record
        return out


BEYOND = 1 << 48
"""No process has memory here."""

_WIDEST = (1 << 15) - 1
"""The widest record of which numpy makes an array so long: it counts the bytes, as if no two items overlapped."""


class _Interface:
    def __init__(self, record: int) -> None:
        shape, stride = (BEYOND,), (1,)
        where = (1, True)  # numpy takes address 0 for no address
        self.__array_interface__ = {
            "data": where,
            "shape": shape,
            "strides": stride,
            "typestr": f"|V{record}",
            "version": 3,
        }
