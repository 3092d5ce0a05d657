"""Files that have their name only when they are whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO, RawIOBase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from softlabels.errors import SoftlabelsError, StoreError

TEMPORARY = ".partial-"
"""Prefix of names that are not whole yet; readers pass them over and writers may remove them."""

_LONGEST_PREFIX = 200
"""Characters of a name that its temporary folder keeps: names have 255 bytes at most."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

_SYNCS = 8
"""Files of one folder that are brought to the disk at the same time."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, fsync it and rename it to `path`.

    The block may make a file or a folder there. When it fails, or the process dies, `path` is as it was before.
    An existing file is replaced; an existing folder where `can_exchange` holds, elsewhere folders need fresh names.

    Raises:
        StoreError: the disk is full or the place cannot be written; the message names the place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean_once(path.parent, os.getpid())
        room, lock = _locked_room(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        partial = room / path.name
        yield partial
        _sync_tree(partial)
        if not (partial.is_dir() and path.is_dir() and _exchange(partial, path)):
            partial.rename(path)
        with contextlib.suppress(OSError):
            room.rmdir()  # before the folder is synced: afterwards it would wait for that to settle
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    except SafetensorError as error:
        # It tells what the system said in words alone: "I/O error: No space left on device (os error 28)".
        said = re.search(r"os error (\d+)", str(error))
        if said is None:
            raise
        raise _cannot_write(path, OSError(int(said[1]), os.strerror(int(said[1])))) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def can_exchange(folder: Path) -> bool:
    """Whether folders below `folder` can get each other's names in one moment: on Linux's own file systems."""
    with tempfile.TemporaryDirectory(dir=folder) as trial:
        one, other = (Path(tempfile.mkdtemp(dir=trial)) for _ in range(2))
        return _exchange(one, other)


def _exchange(one: Path, other: Path) -> bool:
    """Have two files or folders get each other's names in one moment; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here = ctypes.c_int(_AT_FDCWD)
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(error, os.strerror(error), str(other))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Anyone may call this: what a live writer holds stays.

    A writer locks its temporary folder while it lives, and the system takes the lock away with the process. Where the
    file system knows no such locks, nothing is removed.
    """
    for leftover in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            lock = _lock_folder(leftover)
            if lock is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)


@functools.cache
def _clean_once(folder: Path, _: int) -> None:
    remove_leftovers(folder)


def _locked_room(path: Path) -> tuple[Path, int | None]:
    """A fresh temporary folder beside `path`, and the descriptor that keeps it locked; None where locks do not work."""
    while True:
        room = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{path.name[:_LONGEST_PREFIX]}-", dir=path.parent))
        try:
            lock = _lock_folder(room)
        except FileNotFoundError:
            continue
        except OSError:
            return room, None
        # Whoever removes leftovers may have been faster than the lock.
        if lock is not None:
            if room.exists():
                return room, lock
            os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """A descriptor that holds the lock of `folder`; None when another process does. OSError: it cannot be locked."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        os.close(handle)
        raise
    return handle


class Deferred(RawIOBase):
    """A file for the HDF5 library to write to that keeps the first error to itself until `finish`.

    A full disk in the middle of its work leaves that library in a state in which closing the file crashes the process.
    So it believes that all went well, and we know better afterwards.
    """

    def __init__(self, raw: FileIO) -> None:
        self._raw = raw
        self._error: OSError | None = None

    def finish(self) -> None:
        """Raise the error that was met, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write all of it, or nothing any more after an error."""
        rest = memoryview(data).cast("B")
        try:
            while self._error is None and rest:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Read what is there, and zeros beyond."""
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while self._error is None and done < len(view) and (count := self._raw.readinto(view[done:])):
                done += count
        except OSError as error:
            self._error = error
        view[done:] = bytes(len(view) - done)
        return len(view)

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to `place`."""
        return self._raw.seek(place, whence)

    def tell(self) -> int:
        """The place."""
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        """Make the file as long as `size`."""
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def flush(self) -> None:
        """Nothing is held back."""


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either all of it or what it held before."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, largest: int = 64 << 20, error: type[SoftlabelsError] = StoreError) -> Any:
    """Parse the JSON file at `path`, refusing one of more than `largest` bytes.

    Raises:
        error: the file is missing, too large, or not JSON; the message names it.
    """
    try:
        return json.loads(read_text(path, largest=largest, error=error))
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON ({problem}); it is damaged or of another program") from problem


def read_text(path: Path, *, largest: int = 64 << 20, error: type[SoftlabelsError] = StoreError) -> str:
    """The UTF-8 text of the regular file at `path`, which is not waited for if it is a pipe.

    Raises:
        error: it is no regular file, or has more than `largest` bytes.
        OSError, ValueError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is not a regular file")
    if status.st_size > largest:
        raise error(f"{path} has {status.st_size:,} bytes, more than the {largest:,} that are read of it")
    return path.read_text(encoding="utf-8")


def _cannot_write(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left while writing {path}; free some and run the same command again to go on")
    return StoreError(f"cannot write {path}: {error.strerror or error}; choose another `out` or change its permissions")


def _sync_tree(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk.

    All at once: a file system writes its terminal one time for all that wait for it, and anew for each that comes after
    the other. On a busy disk that is a tenth of the time.
    """
    if path.is_dir():
        for done in [_helpers(os.getpid()).submit(_sync, each) for each in (path, *path.rglob("*"))]:
            done.result()
    else:
        _sync(path)


@functools.cache
def _helpers(_: int) -> ThreadPoolExecutor:
    """Threads of the process of this number: a forked one has none of its parent's."""
    return ThreadPoolExecutor(_SYNCS, thread_name_prefix="softlabels-sync")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
