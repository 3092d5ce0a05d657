"""A few named arrays as one thing on disk: a JSON header says where each lies, so that they are mapped where they are.

Two formats keep one contract: plain HDF5 (`_arrays_hdf5`) and plain Zarr v3 (`_arrays_zarr`). Their own libraries write
and any reader of theirs opens them; here the header alone is read, so that what a stranger made never reaches them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from softlabels.core.reading import Mapped, opened_below
from softlabels.errors import DataError

Arrays = Mapping[str, NDArray[Any]]

FORMAT = 1
"""Version of what is written, in both formats; a reader refuses a larger one."""

DTYPES = frozenset(["uint8", "uint32", "int32", "int64"])
"""What an array may hold, little endian."""

HEADER_MOST = 64 << 20
"""Bytes that a header may have."""

WIDEST = (1 << 62) - 1
"""The largest number that a header may state."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_PIECE = 4 << 20
_MAPPED = 1 << 16
"""Smaller files are read: a process may have so many maps only, and a large pack has many shards."""


class Summed(NamedTuple):
    """A stretch of bytes and the SHA-256 that they should have."""

    name: str
    data: NDArray[np.uint8]
    sha256: str


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """Opened arrays, not to be written to; what their writer says `about` them; and all bytes behind the header."""

    path: Path
    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    summed: tuple[Summed, ...]

    def damaged(self) -> list[str]:
        """The names of the stretches that do not match their checksums; every byte is read."""
        return [each.name for each in self.summed if sha256(each.data) != each.sha256]


class ArrayFormat(Protocol):
    """How named arrays lie on disk."""

    suffix: str

    def write(self, path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
        """Make a new file or folder at `path`; errors are OSErrors, as those of any write."""
        ...

    def read(self, root: Path, name: str) -> ArrayFile:
        """Open what lies at `name` below `root`. Its header is checked, its arrays' bytes are by `damaged`.

        Raises:
            DataError: it is missing, a link, cut off, changed in its header, or of a newer version; it is named.
        """
        ...


class Described(NamedTuple):
    """An array as a header states it; sizes are plausible and names are plain ones."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, memory: NDArray[np.uint8], offset: int = 0) -> NDArray[Any]:
        """The array whose bytes begin there. Raises ValueError when they end beyond the memory's end."""
        if offset + self.nbytes > len(memory):
            raise ValueError("an array reaches beyond the end of the file")
        return np.frombuffer(memory, self.dtype, math.prod(self.shape), offset).reshape(self.shape)


def described(name: str, stated: Mapping[str, Any]) -> Described:
    """What a header states of an array. Raises ValueError, KeyError or TypeError for anything that cannot be."""
    dtype, shape = stated["dtype"], stated["shape"]
    if not _NAME.fullmatch(name) or dtype not in DTYPES or len(shape) > 4 or not all(map(is_size, shape)):
        raise ValueError(f"array {name!r}")
    return Described(np.dtype(dtype).newbyteorder("<"), tuple(shape))


def is_size(number: Any) -> bool:
    """Whether it is a whole number that can be a size or an offset."""
    return type(number) is int and 0 <= number <= WIDEST


def plain(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """The arrays as they go to disk: little endian, row after row."""
    return {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}


def encoded(value: Any) -> bytes:
    """The JSON text of `value` that checksums are taken of."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True).encode()


def sha256(array: NDArray[Any]) -> str:
    """SHA-256 of the bytes of an array, in hex."""
    total, flat = hashlib.sha256(), array.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _PIECE):
        total.update(flat[start : start + _PIECE].data)
    return total.hexdigest()


def contents(root: Path, names: Sequence[str], least: int = _MAPPED) -> NDArray[np.uint8]:
    """The bytes of the file at `names` below `root`, uint8: mapped, or read when they are fewer than `least`.

    Raises:
        DataError: it is missing, empty, no regular file, or a link leads there; it is named.
    """
    path = root.joinpath(*names)
    try:
        handle = opened_below(root, names, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for ever
    except OSError as problem:
        linked = problem.errno in (errno.ELOOP, errno.ENOTDIR)
        reason = "it is a link or lies behind one" if linked else problem.strerror
        raise DataError(f"{path} cannot be read: {reason}; copy the pack again, whole") from problem
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise DataError(f"{path} is empty or no regular file; copy the pack again, whole")
        if status.st_size < least:
            # A bytearray, so that tensors over it count as writable.
            return np.frombuffer(_whole(handle, status.st_size, path), np.uint8)
        return Mapped(handle, status.st_size, private=True).array()
    except OSError as problem:
        raise DataError(f"{path} cannot be mapped into memory: {problem.strerror}") from problem
    finally:
        os.close(handle)


def check_written(file: ArrayFile, arrays: Arrays) -> None:
    """Compare what was just written with what was meant. Raises OSError, as for any failed write."""
    for name, array in arrays.items():
        if not np.array_equal(file.arrays[name].reshape(-1).view(np.uint8), array.reshape(-1).view(np.uint8)):
            raise OSError(errno.EIO, f"array {name!r} is read back otherwise than written; see the disk")


def _whole(handle: int, size: int, path: Path) -> bytearray:
    """All bytes of an open file. Raises DataError when it ends before."""
    data, done = bytearray(size), 0
    while done < size:
        piece = os.pread(handle, size - done, done)
        if not piece:
            raise DataError(f"{path} became shorter while it was read; copy the pack again, whole")
        data[done : done + len(piece)] = piece
        done += len(piece)
    return data


def newer(path: Path, version: int) -> DataError:
    """The error for what is of a newer version than is read here."""
    return DataError(f"{path} is of version {version}, newer than {FORMAT} that is read here; update softlabels")


def no_arrays(path: Path, problem: Exception) -> DataError:
    """The error for a header that is whole and makes no sense."""
    return DataError(f"{path} has a header that describes no arrays ({problem}); it is of another program")


UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""What a header of another program can raise while it is taken apart."""
