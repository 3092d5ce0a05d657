"""Files as memory, and one array that spans many of them."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import StoreError


class Mapped:
    """A whole file as shared, read-only memory at `address`; it is unmapped when nothing refers to it any more.

    The mmap module of Python 3.11 keeps a descriptor open for each map, and a large store has more shards than a
    process may have descriptors.
    """

    def __init__(self, handle: int, size: int, where: str) -> None:
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            raise StoreError(f"{where} cannot be mapped into memory: {os.strerror(number)}")
        self.address: int = address
        self.size = size
        weakref.finalize(self, _libc().munmap, address, size).atexit = False


class Buffer:
    """Writable memory of its own at `address`, given back to the system when nothing refers to it any more."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size)
        self.array: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)
        self.address: int = self.array.__array_interface__["data"][0]
        self.size = size


class Memory:
    """The whole address space as overlapping records: item i is the `record` bytes at address i + 1.

    A fancy index into it copies records from any number of maps at once. Only addresses whose record lies within a
    `Mapped` or a `Buffer` may be used; one from `BEYOND` on raises IndexError.
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


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_longlong]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
