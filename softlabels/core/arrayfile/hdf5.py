"""Named arrays as plain HDF5: contiguous data sets, and the header in the user block in front of them.

The user block begins with one line, ``softlabels-arrays VERSION JSON-BYTES BLOCK-BYTES SHA256-OF-THE-JSON``, then comes
the JSON, then spaces. HDF5 itself passes a user block over.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.core.arrayfile.arrays import (
    FORMAT,
    HEADER_MOST,
    UNREADABLE,
    WIDEST,
    ArrayFile,
    Arrays,
    Summed,
    check_written,
    contents,
    described,
    encoded,
    is_size,
    newer,
    no_arrays,
    plain,
    sha256,
)
from softlabels.core.files import Deferred
from softlabels.errors import DataError

_LINE = re.compile(rb"softlabels-arrays (\d{1,9}) (\d{1,12}) (\d{1,12}) ([0-9a-f]{64})\n")
_LINE_MOST = 128
_REST = "rest"
"""How checksums call the bytes that are HDF5's own."""


class Hdf5Arrays:
    """HDF5, one file."""

    suffix = ".h5"

    def write(self, path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
        """See `ArrayFormat.write`."""
        given = plain(arrays)
        sums = {name: sha256(array) for name, array in given.items()}
        room = _LINE_MOST + len(_header(about, given, dict.fromkeys(given, WIDEST), sums, "0" * 64))
        block = max(512, 1 << (room - 1).bit_length())
        with path.open("w+b", buffering=0) as raw:
            deferred = Deferred(raw)
            offsets = _allocated(deferred, given, block)
            deferred.finish()
        with path.open("r+b") as file:
            # HDF5 lays the file out, and the bytes are written here.
            for name, array in given.items():
                file.seek(offsets[name])
                file.write(array.reshape(-1).view(np.uint8).data)
        whole = contents(path.parent, [path.name])
        spans = [(offsets[name], array.nbytes) for name, array in given.items()]
        text = _header(about, given, offsets, sums, sha256(_between(whole, block, spans)))
        line = f"softlabels-arrays {FORMAT} {len(text)} {block} {hashlib.sha256(text).hexdigest()}\n".encode()
        with path.open("r+b") as file:
            file.write((line + text).ljust(block))
        check_written(self.read(path.parent, path.name), given)

    def read(self, root: Path, name: str) -> ArrayFile:
        """See `ArrayFormat.read`."""
        path, memory = root / name, contents(root, [name])
        match = _LINE.match(memory[:_LINE_MOST].tobytes())
        if match is None or int(match[1]) < 1:
            raise DataError(f"{path} does not begin as a part of a pack does; it is damaged or of another program")
        version, length, block = (int(number) for number in match.groups()[:3])
        if version > FORMAT:
            raise newer(path, version)
        if not match.end() + length <= block <= len(memory) or length > HEADER_MOST:
            raise DataError(f"{path} states a header that does not fit into its {len(memory):,} bytes; copy it again")
        text = memory[match.end() : match.end() + length].tobytes()
        spaces = memory[match.end() + length : block]
        if hashlib.sha256(text).hexdigest().encode() != match[4] or (spaces != ord(" ")).any():
            raise DataError(f"{path} has a header that does not match its checksum; copy it again from its source")
        try:
            return _opened(path, json.loads(text), memory, block)
        except UNREADABLE as problem:
            raise no_arrays(path, problem) from None


def _opened(path: Path, header: Mapping[str, Any], memory: NDArray[np.uint8], block: int) -> ArrayFile:
    arrays, summed, spans = {}, [], []
    for name, stated in dict(header["arrays"]).items():
        each, offset = described(name, stated), stated["offset"]
        if not is_size(offset):
            raise ValueError(f"the offset of array {name!r}")
        arrays[name] = each.of(memory, offset)
        spans.append((offset, each.nbytes))
        summed.append(Summed(name, memory[offset : offset + each.nbytes], str(stated["sha256"])))
    if _REST in header:  # the first packs did not state it
        summed.append(Summed("what HDF5 keeps", _between(memory, block, spans), str(header[_REST])))
    return ArrayFile(path, dict(header["about"]), arrays, tuple(summed))


def _between(memory: NDArray[np.uint8], block: int, spans: list[tuple[int, int]]) -> NDArray[np.uint8]:
    """The bytes behind the user block that belong to no array, one after the other."""
    pieces, at = [], block
    for offset, size in sorted(spans):
        pieces.append(memory[at : max(at, offset)])
        at = max(at, offset + size)
    return np.concatenate([*pieces, memory[at:]])


def _allocated(raw: Deferred, arrays: Arrays, block: int) -> dict[str, int]:
    """An HDF5 file with room for the arrays; where each begins."""
    import h5py

    offsets = {}
    with h5py.File(raw, "w", userblock_size=block, alignment_threshold=1, alignment_interval=64) as file:
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


def _header(
    about: Mapping[str, Any], arrays: Arrays, offsets: Mapping[str, int], sums: Mapping[str, str], rest: str
) -> bytes:
    stated = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape), "offset": offsets[name], "sha256": sums[name]}
        for name, array in arrays.items()
    }
    return encoded({"about": about, "arrays": stated, _REST: rest})
