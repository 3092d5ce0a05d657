"""Files of a few named arrays: plain HDF5, with a JSON header in front that says where in the file each array lies.

The HDF5 user block begins with one line, ``softlabels-arrays VERSION JSON-BYTES BLOCK-BYTES SHA256-OF-THE-JSON``, then
comes the JSON, then spaces. Any HDF5 reader opens the file; this one reads the header and maps the arrays, so that a
file of a stranger never reaches the HDF5 library.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import DataError

Arrays = Mapping[str, NDArray[Any]]

FORMAT = 1
"""Version of what is written; a reader refuses a larger one."""

DTYPES = frozenset(["uint8", "uint32", "int32", "int64"])
"""What an array may hold, little endian."""

_LINE = re.compile(rb"softlabels-arrays (\d{1,9}) (\d{1,12}) (\d{1,12}) ([0-9a-f]{64})\n")
_LINE_MOST = 128
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_HEADER_MOST = 64 << 20
_WIDEST = (1 << 62) - 1
"""A number with as many digits as any offset, to learn the size of a header before its offsets are known."""

_PIECE = 4 << 20


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An opened file: what its writer says `about` it, and its arrays, mapped and not to be written to."""

    path: Path
    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    sums: dict[str, str]

    def damaged(self) -> list[str]:
        """The names of the arrays that do not match their checksums; every byte is read."""
        return [name for name, array in self.arrays.items() if _sha256(array) != self.sums[name]]


def write_arrays(path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a new file; errors are OSErrors, as those of any write."""
    plain = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    sums = {name: _sha256(array) for name, array in plain.items()}
    room = _LINE_MOST + len(_header(about, plain, dict.fromkeys(plain, _WIDEST), sums))
    block = max(512, 1 << (room - 1).bit_length())
    offsets = _allocated(path, plain, block)
    with path.open("r+b") as file:
        # HDF5 would crash on a full disk; it lays the file out, and the bytes are written here.
        for name, array in plain.items():
            file.seek(offsets[name])
            file.write(array.reshape(-1).view(np.uint8).data)
        text = _header(about, plain, offsets, sums)
        line = f"softlabels-arrays {FORMAT} {len(text)} {block} {hashlib.sha256(text).hexdigest()}\n".encode()
        file.seek(0)
        file.write((line + text).ljust(block))


def read_arrays(path: Path) -> ArrayFile:
    """Map the file at `path`, whose header is checked; the arrays' own bytes are checked by `damaged`.

    Raises:
        DataError: it is missing, no regular file, cut off, changed in its header, or of a newer version; it is named.
    """
    memory = _mapped(path)
    match = _LINE.match(memory[:_LINE_MOST])
    if match is None:
        raise DataError(f"{path} does not begin as a part of a pack does; it is damaged or of another program")
    version, length, block = (int(number) for number in match.groups()[:3])
    if version > FORMAT:
        raise DataError(f"{path} is of version {version}, newer than {FORMAT} that is read here; update softlabels")
    if not match.end() + length <= block <= len(memory) or length > _HEADER_MOST:
        raise DataError(f"{path} states a header that does not fit into its {len(memory):,} bytes; copy it again")
    text = memory[match.end() : match.end() + length]
    if hashlib.sha256(text).hexdigest().encode() != match[4]:
        raise DataError(f"{path} has a header that does not match its checksum; copy it again from its source")
    return _checked(path, text, memory)


def _allocated(path: Path, arrays: Arrays, block: int) -> dict[str, int]:
    """An HDF5 file with room for the arrays; where each begins."""
    import h5py

    offsets = {}
    with h5py.File(path, "w", userblock_size=block, alignment_threshold=1, alignment_interval=64) as file:
        for name, array in arrays.items():
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_layout(h5py.h5d.CONTIGUOUS)
            creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            creation.set_obj_track_times(False)  # the same arrays make the same bytes at any time
            kind = h5py.h5t.py_create(array.dtype, logical=True)
            made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(array.shape), creation)
            offsets[name] = made.get_offset() if array.size else block
    return offsets


def _header(about: Mapping[str, Any], arrays: Arrays, offsets: Mapping[str, int], sums: Mapping[str, str]) -> bytes:
    described = {
        name: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "offset": offsets[name],
            "sha256": sums[name],
        }
        for name, array in arrays.items()
    }
    return json.dumps({"about": about, "arrays": described}, sort_keys=True, ensure_ascii=True).encode()


def _mapped(path: Path) -> mmap.mmap:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}; copy the pack again, whole") from problem
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise DataError(f"{path} is empty or no regular file; copy the pack again, whole")
        # Private, so that tensors over it count as writable; nothing writes, and pages stay shared.
        return mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(handle)


def _checked(path: Path, text: bytes, memory: mmap.mmap) -> ArrayFile:
    try:
        header = json.loads(text)
        about, described = dict(header["about"]), dict(header["arrays"])
        arrays = {name: _array(name, one, memory) for name, one in described.items()}
        return ArrayFile(path, about, arrays, {name: str(one["sha256"]) for name, one in described.items()})
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as problem:
        raise DataError(f"{path} has a header that describes no arrays ({problem}); it is of another program") from None


def _array(name: str, described: Mapping[str, Any], memory: mmap.mmap) -> NDArray[Any]:
    dtype, shape, offset = described["dtype"], described["shape"], described["offset"]
    plain = all(type(number) is int and 0 <= number <= _WIDEST for number in (*shape, offset))
    if not _NAME.fullmatch(name) or dtype not in DTYPES or not plain or len(shape) > 4:
        raise ValueError(f"array {name!r}")
    count = math.prod(shape)
    if offset + count * np.dtype(dtype).itemsize > len(memory):
        raise ValueError(f"array {name!r} reaches beyond the end of the file")
    return np.frombuffer(memory, np.dtype(dtype).newbyteorder("<"), count, offset).reshape(shape)


def _sha256(array: NDArray[Any]) -> str:
    total, flat = hashlib.sha256(), array.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _PIECE):
        total.update(flat[start : start + _PIECE].data)
    return total.hexdigest()
