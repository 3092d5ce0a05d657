"""One writer at a time: an flock on a file that names the writer's part, gone when the writer is gone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import math
import os
import platform
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from softlabels.core import progress as terminal
from softlabels.errors import StoreError

LOCK = ".writer-"
_PART = re.compile(r"\.writer-(\d{1,9})-of-(\d{1,9})")
_held: set[int] = set()
"""Descriptors of locks that this process holds; forked children close them."""


class Lock:
    """A lock of this process: a fork while another thread holds it does not leave it locked for ever."""

    def __init__(self) -> None:
        self._of: tuple[int, threading.Lock] = (os.getpid(), threading.Lock())

    def get(self) -> threading.Lock:
        """The lock of the process that asks."""
        if self._of[0] != os.getpid():
            self._of = (os.getpid(), threading.Lock())
        return self._of[1]


@contextlib.contextmanager
def writing(folder: Path, part: tuple[int, int]) -> Iterator[None]:
    """Be the one writer of every n-th run from the i-th of `folder`, for `part` (i, n).

    Raises:
        StoreError: another process, or this one, writes some of these runs already; or `folder` cannot be written.
    """
    index, count = part
    own = folder / f"{LOCK}{index}-of-{count}"
    with _locked(own, wait=False):
        for other in folder.glob(f"{LOCK}*"):
            match = _PART.fullmatch(other.name)
            if match is not None and other != own and meet(part, (int(match[1]), int(match[2]))) and _is_held(other):
                raise _busy(other)
        yield


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes or changes the store in `folder`, then keep others out."""
    with _locked(folder / f"{LOCK}store", wait=True):
        yield


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait until no other process, or thread, holds the lock at `path`, then keep others out."""
    with _locked(path, wait=True):
        yield


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, which goes with the process that holds it.

    Raises:
        BusyError: another process, or this one, holds it.
        StoreError: the folder cannot be written.
    """
    with _locked(path, wait=False):
        yield


def meet(part: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether some run is in both parts (Chinese remainder theorem)."""
    common = math.gcd(part[1], other[1])
    return common == 0 or (part[0] - other[0]) % common == 0


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    handle = _acquire(path, wait)
    owner = os.getpid()
    try:
        own(handle)
        with contextlib.suppress(OSError):  # the number is for messages only; the lock holds on a full disk, too
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{owner} {platform.node()}".encode(), 0)
        yield
    finally:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):  # the name may stay: the lock goes with the descriptor
                path.unlink(missing_ok=True)
            release(handle)


def own(handle: int) -> None:
    """Have forked children close the descriptor of a lock, which they would hold as long as they live."""
    _close_in_children()
    _held.add(handle)


def release(handle: int) -> None:
    """Close the descriptor of a lock that this process owns."""
    _held.discard(handle)
    os.close(handle)


def _acquire(path: Path, wait: bool) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise _cannot_write(path.parent, error) from error
        try:
            with terminal.waiting(f"the process that makes {path.parent}"):
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(handle, path):
                return handle
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _busy(path) from error
            raise _cannot_write(path.parent, error) from error
        os.close(handle)  # the last holder removed the name before we got it: try again with a fresh file


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


class BusyError(StoreError):
    """A lock is held by another process: `holder`, its id, and its machine where that is another one, or ""."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


def _busy(path: Path) -> BusyError:
    try:
        number, _, machine = path.read_text()[:100].strip().partition(" ")
    except (OSError, ValueError):
        number = machine = ""
    elsewhere = f" on {machine}" if machine not in ("", platform.node()) else ""
    holder = f"{number}{elsewhere}" if number.isdigit() else ""
    match = _PART.fullmatch(path.name)
    part = f"part {match[1]}/{match[2]} of " if match else ""
    return BusyError(
        f"another process{f' ({holder})' if holder else ''} is writing {part}{path.parent} already; "
        f"wait for it, stop it, or give each process a `part` of its own",
        holder,
    )


def _cannot_write(folder: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {folder}: {error.strerror}; choose another `out` or change its permissions")


@functools.cache
def _close_in_children() -> None:
    os.register_at_fork(after_in_child=_close_held)


def _close_held() -> None:
    """A forked child (a loader's worker) shares the lock and would keep it after its parent was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()
