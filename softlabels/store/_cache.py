"""A folder for copies of remote and compressed shards, of a limited size: what was not used for longest goes first.

::

    <cache>/
      <store>/                    a folder that `Store` reads, one for each URL
        .copies/<teacher>/<shard> says that a shard is copied, or being copied: its bytes and its version; its time is
                                  that of its last use
        .copying/...              shards that are on their way
        .heads/...                files as long as shards that begin as they do; they take next to no room
      unpacked/                   copies of compressed shards: see `_unpacked`
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from softlabels.core import locks as _lock
from softlabels.core.progress import waiting
from softlabels.errors import StoreError

COPIES, COPYING = ".copies", ".copying"
_LOCK = ".lock"
_KEPT = "SOFTLABELS_CACHE"
_LATER = 600.0
"""Seconds for which a copy that was made ahead of its use counts as used last."""


@dataclass(frozen=True)
class Cache:
    """Where copies of shards are kept, and how many bytes they may have together (None: any number)."""

    folder: Path
    limit: int | None = None

    @staticmethod
    def at(folder: str | os.PathLike[str] | None = None, limit: int | None = None) -> Cache:
        """The cache in `folder`; without it in ``$SOFTLABELS_CACHE``, or below the user's cache folder.

        Raises:
            StoreError: something else than a folder is there.
        """
        chosen = folder or os.environ.get(_KEPT)
        if not chosen:
            chosen = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softlabels"
        path = Path(chosen).absolute()
        if path.exists() and not path.is_dir():
            raise StoreError(f"the cache {path} is no folder; name another with `cache_dir` or ${_KEPT}")
        return Cache(path, limit)

    def reserve(self, note: Path, size: int) -> None:
        """Make room for `size` bytes and enter them as `note`; their shard may then be copied.

        Raises:
            StoreError: the shard alone is larger than the limit.
        """
        if self.limit is not None and size > self.limit:
            raise StoreError(
                f"a shard has {size:,} bytes, the cache {self.folder} may hold {self.limit:,}; give it more with "
                f"`cache_size`"
            )
        with self.changing():
            if self.limit is not None:
                self._evict(self.limit - size, keep=note)
            enter(note, "", size)

    def keep(self, note: Path, version: str, size: int, install: Callable[[], object]) -> None:
        """Put a copy of `size` bytes, now made, in its place.

        Room is made once more: while it came, others that needed some may have taken what was reserved for it.
        """
        with self.changing():
            if self.limit is not None:
                self._evict(self.limit - size, keep=note)
            install()
            enter(note, version, size)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While this lasts, no copy goes."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """While this lasts, nobody reads copies."""
        with self._locked(fcntl.LOCK_EX):
            yield

    def _evict(self, room: int, keep: Path) -> None:
        copies = sorted((note.stat().st_mtime_ns, note) for note in self._notes() if note != keep)
        sizes = {note: entered(note)[1] for _, note in copies}
        held = sum(sizes.values())
        for _, note in copies:
            if held <= room:
                return
            drop(note)
            held -= sizes[note]

    def _notes(self) -> Iterator[Path]:
        return (note for note in self.folder.glob(f"*/{COPIES}/*/*") if not note.name.endswith("~"))

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write the cache {self.folder}: {error.strerror}; choose a `cache_dir`") from error
        _lock.own(handle)
        try:
            with waiting(f"another process that uses the cache {self.folder}"):
                fcntl.flock(handle, how)
            yield
        finally:
            _lock.release(handle)


def enter(note: Path, version: str, size: int) -> None:
    """Say which version of a shard is copied ("": none yet) and its bytes."""
    note.parent.mkdir(parents=True, exist_ok=True)
    fresh = note.with_name(f"{note.name}.{os.getpid()}~")
    fresh.write_text(f"{size}\n{version}", encoding="utf-8")
    fresh.replace(note)


def entered(note: Path) -> tuple[str, int]:
    """What was entered last; ("", 0) when nothing was."""
    try:
        size, _, version = note.read_text(encoding="utf-8").partition("\n")
        return version, int(size)
    except (OSError, ValueError):
        return "", 0


def used(note: Path, *, later: bool = False) -> None:
    """A copy was used now; one that is for `later` goes only after those that were, for a while."""
    with contextlib.suppress(OSError):
        now = time.time() + (_LATER if later else 0)
        os.utime(note, (now, now))


@contextlib.contextmanager
def making(path: Path) -> Iterator[None]:
    """Something comes to be at `path`, whose folder is there; whatever is left of it afterwards goes."""
    discard(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or path}: {error.strerror or error}; free some space, set `cache_size`, or "
            f"choose another `cache_dir`"
        ) from error
    finally:
        discard(path)


def drop(note: Path) -> None:
    """Remove a copy, and then its note, so that nothing ever lies there uncounted."""
    discard(note.parents[2] / note.parent.name / note.name)
    note.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a file or a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
