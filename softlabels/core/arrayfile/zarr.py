"""Named arrays as a plain Zarr v3 group: the header in the group's attributes, each array one chunk with a crc32c.

The one chunk is not compressed, so that the file of a chunk is the bytes of its array, and four more of the checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.core.arrayfile.arrays import (
    FORMAT,
    HEADER_MOST,
    UNREADABLE,
    ArrayFile,
    Arrays,
    Described,
    Summed,
    check_written,
    contents,
    described,
    encoded,
    newer,
    no_arrays,
    plain,
    sha256,
)
from softlabels.errors import DataError

_META = "zarr.json"
_CHECKSUM = 4
"""Bytes of crc32c behind an array."""


class ZarrArrays:
    """Zarr v3, one folder."""

    suffix = ".zarr"

    def write(self, path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
        """See `ArrayFormat.write`."""
        path.mkdir()
        stated, files = {}, {}
        for name, array in plain(arrays).items():
            _write_array(path / name, array)
            stated[name] = {"dtype": array.dtype.name, "shape": list(array.shape)}
            for member in _members(name, array.ndim, array.size):
                files["/".join(member)] = sha256(contents(path, member))
        header = {"about": dict(about), "arrays": stated, "files": files}
        (path / _META).write_bytes(_group(FORMAT, header))
        check_written(self.read(path.parent, path.name), plain(arrays))

    def read(self, root: Path, name: str) -> ArrayFile:
        """See `ArrayFormat.read`."""
        path, text = root / name, contents(root, [name, _META])
        if len(text) > HEADER_MOST:
            raise DataError(f"{path / _META} has {len(text):,} bytes, more than the {HEADER_MOST:,} that are read")
        try:
            said = json.loads(text.tobytes())["attributes"]["softlabels"]
            version, header = said["format_version"], said["header"]
            if not isinstance(version, int):
                raise ValueError("no format version")
            if version > FORMAT:
                raise newer(path, version)
            if text.tobytes() != _group(version, header):  # down to the last byte, as only we write it
                raise DataError(f"{path} has a header that does not match its checksum; copy it again from its source")
            return _opened(root, name, header)
        except UNREADABLE as problem:
            raise no_arrays(path / _META, problem) from None


def _opened(root: Path, name: str, header: Mapping[str, Any]) -> ArrayFile:
    arrays: dict[str, NDArray[Any]] = {}
    summed: list[Summed] = []
    sums = dict(header["files"])
    for array, stated in dict(header["arrays"]).items():
        each = described(array, stated)
        # Names of files are made from the array's own, which is plain, and never taken from the header.
        for member in _members(array, len(each.shape), each.nbytes):
            data = contents(root, [name, *member])
            summed.append(Summed("/".join(member), data, str(sums["/".join(member)])))
        arrays[array] = _taken(root / name / array, each, data)
    return ArrayFile(root / name, dict(header["about"]), arrays, tuple(summed))


def _taken(path: Path, each: Described, data: NDArray[np.uint8]) -> NDArray[Any]:
    if not each.nbytes:
        return np.empty(each.shape, each.dtype)
    if len(data) != each.nbytes + _CHECKSUM:
        raise DataError(f"{path} has {len(data):,} bytes instead of {each.nbytes + _CHECKSUM:,}; copy it again, whole")
    return each.of(data)


def _members(name: str, dimensions: int, size: int) -> list[list[str]]:
    """The files of an array: what Zarr says of it and, when it is not empty, its chunk."""
    return [[name, _META], *([[name, "c", *["0"] * dimensions]] if size else [])]


def _write_array(path: Path, array: NDArray[Any]) -> None:
    import zarr  # not needed for reading, and half a second of a reader's start
    from zarr.codecs import Crc32cCodec

    stored = zarr.create_array(
        str(path),
        shape=array.shape,
        dtype=array.dtype,
        chunks=tuple(max(1, length) for length in array.shape),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},  # a chunk of zeros must have its place, too
        overwrite=False,
    )
    if array.size:
        stored[...] = array


def _group(version: int, header: Any) -> bytes:
    """The text of the group's metadata."""
    said = {"format_version": version, "header": header, "sha256": hashlib.sha256(encoded(header)).hexdigest()}
    return encoded({"zarr_format": 3, "node_type": "group", "attributes": {"softlabels": said}})
