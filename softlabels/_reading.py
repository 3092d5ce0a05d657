"""Files that a stranger may have made: reached without links, and mapped into memory without a descriptor each."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

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
        guard()
        _live[address] = size
        weakref.finalize(self, _unmap, address, size).atexit = False

    @property
    def shrank(self) -> bool:
        """Whether bytes were read that the file has not any more; zeros came in their place."""
        return self.address in shrunken

    def array(self) -> NDArray[np.uint8]:
        """The bytes, uint8 (size,); the map lives as long as any view of them."""
        return np.asarray(_Interface(self))


class _Interface:
    """What numpy makes an array of, which keeps the map alive."""

    def __init__(self, mapped: Mapped) -> None:
        self._mapped = mapped
        where = (mapped.address, False)
        self.__array_interface__ = {"data": where, "shape": (mapped.size,), "typestr": "|u1", "version": 3}


_live: dict[int, int] = {}
"""Address and size of each map."""

shrunken: set[int] = set()
"""Addresses of maps whose files ended before what was read of them; zeros came in its place."""


def _unmap(address: int, size: int) -> None:
    _libc().munmap(address, size)
    _live.pop(address, None)
    shrunken.discard(address)


def guard() -> None:
    """Let reads beyond the end of a mapped file that became shorter give zeros, and note the map.

    The system would kill the process (SIGBUS) without a word. Whoever reads asks `Mapped.shrank` afterwards. A SIGBUS
    anywhere else does what it did before. To be called again in a forked process: torch's workers have handlers of
    their own.
    """
    _guarded(os.getpid())


@functools.cache
def _guarded(_: int) -> None:
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    libc, before, action = _libc(), _Action(), _Action()

    def handle(number: int, info: int | None, _: int | None) -> None:
        address = ctypes.c_void_p.from_address((info or 0) + _SI_ADDR).value or 0
        found = next((at for at, size in _live.copy().items() if at <= address < at + size), None)
        if found is None:
            libc.sigaction(number, ctypes.byref(before), None)
            signal.raise_signal(signal.SIGBUS)
            return
        # An empty page in the place of the one that is gone: the read goes on.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        page = address // mmap.PAGESIZE * mmap.PAGESIZE
        libc.mmap(page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        shrunken.add(found)

    handler = _HANDLER(handle)
    _handlers.append(handler)
    action.handler, action.flags = ctypes.cast(handler, ctypes.c_void_p), _SA_SIGINFO
    libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before))


class _Action(ctypes.Structure):
    """``struct sigaction`` of glibc and musl on 64-bit Linux."""

    _fields_: ClassVar = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_MAP_FIXED, _SA_SIGINFO, _SI_ADDR = 0x10, 4, 16
_handlers: list[Any] = []
"""Kept, since the system may call them at any time."""


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_longlong]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.sigaction.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    return libc
