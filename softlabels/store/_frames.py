"""Memory that a process shares with those it starts: decoded views of shards, the longest unused making room.

The memory is a file without a name, so that nothing is left of it when its last user goes, however it goes. A forked
process has it already; any other of the same user finds it through ``/proc`` while its maker lives, and keeps what it
found. Locks are of the kind that the
system gives back when their holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import struct
import tempfile
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_START = struct.Struct("<16sqqq")
_PAGE = 4096
_LATER = 1 << 60
_TURNS = 64
"""Locks that threads of one process take before those of the system, a slot the one of its remainder."""


class Lock:
    """A lock of this process: a fork while another thread holds it does not leave it locked for ever."""

    def __init__(self) -> None:
        self._of: tuple[int, threading.Lock] = (os.getpid(), threading.Lock())

    def get(self) -> threading.Lock:
        """The lock of the process that asks."""
        if self._of[0] != os.getpid():
            self._of = (os.getpid(), threading.Lock())
        return self._of[1]


class Frames:
    """`count` frames of `size` bytes, and for each of `slots` the frame that holds it, -1 for none.

    Pages take room when they are first written.
    """

    _known: ClassVar[weakref.WeakValueDictionary[bytes, Frames]] = weakref.WeakValueDictionary()
    """By token: a second descriptor of one file would give back the locks of the first when it is closed."""

    def __init__(self, handle: int, token: bytes, count: int, size: int, slots: int) -> None:
        self.count, self.size, self.slots = count, size, slots
        self._handle, self._token = handle, token
        self._memory = mmap.mmap(handle, _length(count, size, slots))
        numbers = np.frombuffer(self._memory, np.int64, 1 + slots + 2 * count, _START.size)
        self._clock, rest = numbers[:1], numbers[1:]
        self.frame_of, self._slot_of, self._used = np.split(rest, [slots, slots + count])
        first = _first_frame(count, slots)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)[first:]
        self.address: int = self.bytes.__array_interface__["data"][0] if count else 0
        self._lock = Lock()
        self._turns = [Lock() for _ in range(_TURNS)]
        self._known[token] = self
        weakref.finalize(self, os.close, handle).atexit = False

    @staticmethod
    def made(count: int, size: int, slots: int) -> Frames:
        """Empty frames of this process, for it and those that it starts."""
        handle, token = _nameless(), os.urandom(16)
        os.ftruncate(handle, _length(count, size, slots))
        os.pwrite(handle, _START.pack(token, count, size, slots), 0)
        frames = Frames(handle, token, count, size, slots)
        frames.frame_of[:] = frames._slot_of[:] = -1
        return frames

    @staticmethod
    def found(where: tuple[str, str], count: int, size: int, slots: int) -> Frames | None:
        """The frames that another process calls `where`; None when they are gone, or others."""
        path, token = where[0], bytes.fromhex(where[1])
        known = Frames._known.get(token)
        if known is not None:
            return known if (known.count, known.size, known.slots) == (count, size, slots) else None
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                return None
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        said = os.pread(handle, _START.size, 0)
        if said != _START.pack(token, count, size, slots):
            os.close(handle)
            return None
        return Frames(handle, token, count, size, slots)

    @property
    def where(self) -> tuple[str, str]:
        """What `found` takes, for processes that this one starts without forking."""
        return f"/proc/{os.getpid()}/fd/{self._handle}", self._token.hex()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While this lasts, no frame gets other contents."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def touch(self, frames: NDArray[np.int64]) -> None:
        """These frames were just used. To be called within `reading`."""
        self._clock += 1
        self._used[frames] = self._clock[0]

    def settle(self) -> None:
        """Frames that were filled for later are no better than others any more."""
        with self._locked(fcntl.LOCK_EX):
            np.minimum(self._used, self._clock, out=self._used)

    def publish(self, slot: int, contents: NDArray[np.uint8], *, later: bool = False) -> None:
        """Put what a slot holds into the frame that was not used for longest; nothing when it is there, or no frame.

        One that is for `later` goes only after all that were used, until it is used itself.
        """
        if not self.count:
            return
        with self._locked(fcntl.LOCK_EX):
            if self.frame_of[slot] >= 0:
                return
            frame = int(self._used.argmin())
            old = self._slot_of[frame]
            # In this order, a process that is killed in between leaves a frame that nobody reads.
            if old >= 0 and self.frame_of[old] == frame:
                self.frame_of[old] = -1
            self.bytes[frame * self.size : frame * self.size + len(contents)] = contents
            self._slot_of[frame] = slot
            self._clock += 1
            self._used[frame] = self._clock[0] + (_LATER if later else 0)
            self.frame_of[slot] = frame

    @contextlib.contextmanager
    def decoding(self, slot: int) -> Iterator[None]:
        """While this lasts, no other process or thread is within this for the same slot."""
        with self._turns[slot % _TURNS].get():
            fcntl.lockf(self._handle, fcntl.LOCK_EX, 1, 1 + slot)
            try:
                yield
            finally:
                fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, 1 + slot)

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        # The system's locks are of processes, threads of one would release each other's.
        with self._lock.get():
            fcntl.lockf(self._handle, how, 1, 0)
            try:
                yield
            finally:
                fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, 0)


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("softlabels", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _first_frame(count: int, slots: int) -> int:
    table = _START.size + 8 * (1 + slots + 2 * count)
    return -(-table // _PAGE) * _PAGE


def _length(count: int, size: int, slots: int) -> Any:
    return _first_frame(count, slots) + count * size
