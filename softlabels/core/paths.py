"""Files below a folder that a stranger may have filled: regular ones, reached without links, sized before reading."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softlabels.core.reading import opened_below
from softlabels.errors import StoreError

PIECE = 4 << 20
"""Bytes read at once where a file is only summed."""


class Damaged(StoreError):  # noqa: N818
    """A file is missing, cut off or changed; written again, all is well."""


@dataclass(frozen=True)
class SafePath:
    """A path below `root`. The root may be a link (its owner chose it); nothing below it may be one."""

    root: Path
    names: tuple[str, ...] = ()

    def __truediv__(self, name: str) -> SafePath:
        return SafePath(self.root, (*self.names, *(name.split("/") if name else ())))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        """The plain path, for writing and for messages."""
        return self.root.joinpath(*self.names)

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """A descriptor of the regular file that lies here.

        Raises:
            Damaged: it is missing.
            StoreError: it is a link, no regular file, or may not be read.
        """
        handle = self._descend(os.O_RDONLY | os.O_NONBLOCK)  # without NONBLOCK, opening a pipe would wait for ever
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise StoreError(f"{self} is not a regular file; remove it")
            yield handle
        finally:
            os.close(handle)

    def size(self) -> int:
        """Bytes of the regular file that lies here."""
        with self.open() as handle:
            return os.fstat(handle).st_size

    def read(self, largest: int) -> bytes:
        """The whole file, which must not have more than `largest` bytes."""
        with self.open() as handle:
            size = os.fstat(handle).st_size
            if size > largest:
                raise StoreError(f"{self} has {size:,} bytes, more than the {largest:,} that are read of it")
            return self.read_at(handle, 0, size)

    def read_at(self, handle: int, start: int, size: int) -> bytes:
        """`size` bytes from `start` of an open file. Raises Damaged when the file ends before."""
        try:
            pieces = []
            while size and (piece := os.pread(handle, size, start)):
                pieces.append(piece)
                start, size = start + len(piece), size - len(piece)
        except OSError as error:
            raise StoreError(f"{self} cannot be read: {error.strerror}") from error
        if size:
            raise Damaged(f"{self} ends {size:,} bytes too early; it was not copied whole")
        return b"".join(pieces)

    def pieces(self, handle: int, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop` of an open file, a few megabytes at a time."""
        for at in range(start, stop, PIECE):
            yield self.read_at(handle, at, min(PIECE, stop - at))

    def entries(self) -> list[str]:
        """Sorted names in the folder that lies here; none when there is no such folder."""
        try:
            handle = self._descend(os.O_RDONLY | os.O_DIRECTORY)
        except Damaged:
            return []
        try:
            return sorted(os.listdir(handle))  # noqa: PTH208  (a descriptor is no path)
        finally:
            os.close(handle)

    def _descend(self, flags: int) -> int:
        try:
            return opened_below(self.root, self.names, flags)
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> StoreError:
        if error.errno == errno.ENOENT:
            return Damaged(f"{self} is missing")
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return StoreError(f"{self} is or goes through a link or a file, which is not followed; copy it whole")
        return StoreError(f"{self} cannot be read: {error.strerror}")
