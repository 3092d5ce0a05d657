"""Files that a stranger may have made: reached without links, and mapped into memory without a descriptor each."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNRESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def opened_below(root: Path, names: Sequence[str], flags: int) -> int:
    """A descriptor of what lies at `names`, one folder in the other, below `root`.

    The root may be a link (its owner chose it); what lies below it is not followed if it is one.

    Raises:
        OSError: it is missing, a link or behind one (ELOOP, ENOTDIR), or may not be opened.
    """
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for depth, name in enumerate(names, 1):
        inner = flags if depth == len(names) else os.O_RDONLY | os.O_DIRECTORY
        try:
            below = os.open(name, inner | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


class Mapped:
    """A whole file as memory at `address`; it is unmapped when nothing refers to it any more.

    The mmap module of Python 3.11 keeps a descriptor open for each map, and a large data set has more shards than a
    process may have descriptors. A `private` map counts as writable, as torch wants it; what is written to it stays in
    this process and never reaches the file.

    Raises:
        OSError: it cannot be mapped.
    """

    def __init__(self, handle: int, size: int, *, private: bool = False) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if private else 0)
        # Nobody writes, so that a pack larger than memory and swap must not count as memory that could be needed.
        flags = mmap.MAP_PRIVATE | _UNRESERVED if private else mmap.MAP_SHARED
        address = _libc().mmap(None, size, protection, flags, handle, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address: int = address
        self.size = size
        weakref.finalize(self, _libc().munmap, address, size).atexit = False

    def array(self) -> NDArray[np.uint8]:
        """The bytes, uint8 (size,); the map lives as long as any view of them."""
        return np.asarray(_Interface(self))


class _Interface:
    """What numpy makes an array of, which keeps the map alive."""

    def __init__(self, mapped: Mapped) -> None:
        self._mapped = mapped
        where = (mapped.address, False)
        self.__array_interface__ = {"data": where, "shape": (mapped.size,), "typestr": "|u1", "version": 3}


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_longlong]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
