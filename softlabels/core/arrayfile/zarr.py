"""Arrays as one Zarr v3 group: the header in the group's attributes, each array one file of crc32c-checked chunks.

Each array uses the sharding codec: the bytes of an inner chunk lie whole at an offset that the array's index, and our
header, tell.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.core.arrayfile.arrays import ArrayHeader, ArrayLayout, H, StoredArray, StoredFile, Stretch
from softlabels.core.arrayfile.blosc import COLUMNS, ROWS
from softlabels.core.arrays import Arrays
from softlabels.core.documents import FORMAT, LARGEST, canonical, check_format, checked, json_digest, parse
from softlabels.core.locks import Lock
from softlabels.core.paths import Damaged, SafePath

_META = "zarr.json"
_CHECKSUM = 4
"""Bytes of crc32c after each chunk and after the index."""
_lock = Lock()


class Zarr:
    """Zarr v3, one folder."""

    suffix = ".zarr"
    header_member = _META
    head = LARGEST

    def head_end(self, begun: bytes) -> int:
        """See `ArrayFormat.head_end`."""
        return len(begun)

    def check_compression(self, compression: str) -> None:
        """See `ArrayFormat.check_compression`; numcodecs comes with softlabels."""

    def write(self, path: Path, header: ArrayHeader, arrays: Arrays, columns: Collection[str] = ()) -> None:
        """See `ArrayFormat.write`."""
        path.mkdir()
        stored: dict[str, StoredArray] = {}
        files: dict[str, StoredFile] = {}
        for name, array in arrays.items():
            members = _as_files(array, header.compression, columns=name in columns)
            for member, data in members.items():
                inner = path / name / member
                inner.parent.mkdir(parents=True, exist_ok=True)
                inner.write_bytes(data)
                files[f"{name}/{member}"] = _summed(data)
            payload = members[_chunk_file(array.ndim)]
            places = _places(len(array), payload, header.compression)
            stored[name] = StoredArray.of(array, places, memoryview(payload))
        complete = header.model_copy(update={"arrays": stored, "files": files})
        (path / _META).write_bytes(_encoded(complete))

    def read_header(self, place: SafePath, kind: type[H]) -> H:
        """See `ArrayFormat.read_header`."""
        where = str(place)
        group = parse((place / _META).read(LARGEST), where)
        attributes = group.get("attributes")
        stated = attributes.get("softlabels") if isinstance(attributes, dict) else None
        if not isinstance(stated, dict):
            raise Damaged(f"{where} does not say that it is a shard; it is damaged or of another program")
        check_format(stated.get("format_version"), where)
        if stated.get("sha256") != json_digest(stated.get("header")):
            raise Damaged(f"{where} has a header that does not match its checksum")
        return checked(kind, stated["header"], where)

    def header_is_exact(self, place: SafePath, header: ArrayHeader) -> bool:
        """See `ArrayFormat.header_is_exact`."""
        return (place / _META).read(LARGEST) == _encoded(header)

    def members(self, layout: Mapping[str, ArrayLayout]) -> set[str]:
        """See `ArrayFormat.members`."""
        return {f"{name}/{_META}" for name in layout} | {self.payload(name, each) for name, each in layout.items()}

    def payload(self, name: str, layout: ArrayLayout) -> str:
        """See `ArrayFormat.payload`."""
        return f"{name}/{_chunk_file(2 + len(layout.shape))}"

    def strays(self, place: SafePath) -> list[str]:
        """See `ArrayFormat.strays`."""
        found: list[str] = []
        for folder, _, names in os.walk(place.path):
            found += [(Path(folder) / name).relative_to(place.path).as_posix() for name in names]
        return [name for name in found if name != _META]


def _as_files(array: Any, compression: str, *, columns: bool) -> dict[str, bytes]:
    """The files of an array, by their names below it, as the library writes them."""
    with _lock.get():
        stored, files = _in_memory(array.shape, np.dtype(array.dtype), compression, columns)
        stored[...] = array
        chunks = files.pop(_chunk_file(array.ndim))
        return {_chunk_file(array.ndim): chunks.to_bytes(), _META: files[_META].to_bytes()}


@functools.lru_cache(maxsize=16)
def _in_memory(
    shape: tuple[int, ...], dtype: np.dtype[Any], compression: str, columns: bool
) -> tuple[Any, dict[str, Any]]:
    """An array of the library's, and its files: many are alike, and making one takes a millisecond.

    In memory, since on a disk most of the time would go into the threads that the library waits for.
    """
    import zarr  # not needed for reading, and half a second of a reader's start
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    chunks, *inner = shape
    stored = zarr.create_array(
        MemoryStore(files),
        shape=shape,
        dtype=dtype,
        chunks=(1, *inner),
        shards=(chunks, *inner),
        filters=None,
        compressors=[*_compressors(compression, dtype.itemsize, COLUMNS if columns else ROWS), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},  # a chunk of zeros must have its place, too
        overwrite=False,
    )
    return stored, files


def _compressors(compression: str, itemsize: int, how: Mapping[str, Any]) -> list[Any]:
    if compression == "none":
        return []
    from zarr.codecs import BloscCodec

    return [BloscCodec(**{**how, "shuffle": "bitshuffle"}, typesize=itemsize)]


def _chunk_file(dimensions: int) -> str:
    return "c/" + "/".join("0" * dimensions)


def _places(chunks: int, data: bytes, compression: str) -> list[Stretch]:
    index = struct.unpack_from(f"<{2 * chunks}Q", data, len(data) - _CHECKSUM - 16 * chunks)
    ends = zip(index[::2], index[1::2], strict=True)
    return [Stretch(offset, size - _CHECKSUM, compression == "none") for offset, size in ends]


def _summed(data: bytes) -> StoredFile:
    return StoredFile(size=len(data), start=0, sha256=hashlib.sha256(data).hexdigest())


def _encoded(header: ArrayHeader) -> bytes:
    body = json.loads(canonical(header.body()))  # with sorted keys, as a header that was read has them
    attributes = {"softlabels": {"format_version": FORMAT, "header": body, "sha256": json_digest(body)}}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(group, indent=1).encode("ascii")
