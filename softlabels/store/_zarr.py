"""Shards as Zarr v3 groups: the header in the group's attributes, each array one file of crc32c-checked chunks.

Each array uses the sharding codec with one inner chunk per view, so that the bytes of a view lie whole at an offset
that the array's index, and our header, tell.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.core.documents import FORMAT, LARGEST, canonical, check_format, checked, digest, parse
from softlabels.core.locks import Lock
from softlabels.core.paths import Damaged, Place
from softlabels.store._layout import ArrayLayout
from softlabels.store._shard import Arrays, Header, StoredArray, StoredFile

_META = "zarr.json"
_CHECKSUM = 4
"""Bytes of crc32c after each chunk and after the index."""
_lock = Lock()


class Zarr:
    """Zarr v3, one folder for each shard."""

    suffix = ".zarr"
    header_member = _META
    head = LARGEST

    def head_end(self, begun: bytes) -> int:
        """See `ShardFormat.head_end`."""
        return len(begun)

    def check_compression(self, compression: str) -> None:
        """See `ShardFormat.check_compression`; numcodecs comes with softlabels."""

    def write(self, path: Path, header: Header, arrays: Arrays) -> None:
        """See `ShardFormat.write`."""
        path.mkdir()
        stored: dict[str, StoredArray] = {}
        files: dict[str, StoredFile] = {}
        for name, array in arrays.items():
            members = _as_files(array, header.compression)
            for member, data in members.items():
                inner = path / name / member
                inner.parent.mkdir(parents=True, exist_ok=True)
                inner.write_bytes(data)
                files[f"{name}/{member}"] = _summed(data)
            stored[name] = _located(array, members[_chunk_file(array.ndim)], header.compression)
        complete = header.model_copy(update={"arrays": stored, "files": files})
        (path / _META).write_bytes(_encoded(complete))

    def read_header(self, place: Place) -> Header:
        """See `ShardFormat.read_header`."""
        where = str(place)
        group = parse((place / _META).read(LARGEST), where)
        attributes = group.get("attributes")
        said = attributes.get("softlabels") if isinstance(attributes, dict) else None
        if not isinstance(said, dict):
            raise Damaged(f"{where} does not say that it is a shard; it is damaged or of another program")
        check_format(said.get("format_version"), where)
        if said.get("sha256") != digest(said.get("header")):
            raise Damaged(f"{where} has a header that does not match its checksum")
        return checked(Header, said["header"], where)

    def header_is_exact(self, place: Place, header: Header) -> bool:
        """See `ShardFormat.header_is_exact`."""
        return (place / _META).read(LARGEST) == _encoded(header)

    def members(self, layout: Mapping[str, ArrayLayout]) -> set[str]:
        """See `ShardFormat.members`."""
        return {f"{name}/{_META}" for name in layout} | {self.payload(name, each) for name, each in layout.items()}

    def payload(self, name: str, layout: ArrayLayout) -> str:
        """See `ShardFormat.payload`."""
        return f"{name}/{_chunk_file(2 + len(layout.shape))}"

    def strays(self, place: Place) -> list[str]:
        """See `ShardFormat.strays`."""
        found: list[str] = []
        for folder, _, names in os.walk(place.path):
            found += [(Path(folder) / name).relative_to(place.path).as_posix() for name in names]
        return [name for name in found if name != _META]


def _as_files(array: Any, compression: str) -> dict[str, bytes]:
    """The files of an array, by their names below it, as the library writes them."""
    with _lock.get():
        stored, files = _in_memory(array.shape, np.dtype(array.dtype), compression)
        stored[...] = array
        chunks = files.pop(_chunk_file(array.ndim))
        return {_chunk_file(array.ndim): chunks.to_bytes(), _META: files[_META].to_bytes()}


@functools.lru_cache(maxsize=16)
def _in_memory(shape: tuple[int, ...], dtype: np.dtype[Any], compression: str) -> tuple[Any, dict[str, Any]]:
    """An array of the library's, and its files: the shards of a teacher are alike, and making one takes a millisecond.

    In memory, since on a disk most of the time would go into the threads that the library waits for.
    """
    import zarr  # not needed for reading, and half a second of a reader's start
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    views, *inner = shape
    stored = zarr.create_array(
        MemoryStore(files),
        shape=shape,
        dtype=dtype,
        chunks=(1, *inner),
        shards=(views, *inner),
        filters=None,
        compressors=[*_compressors(compression, dtype.itemsize), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},  # a chunk of zeros must have its place, too
        overwrite=False,
    )
    return stored, files


def _compressors(compression: str, itemsize: int) -> list[Any]:
    if compression == "none":
        return []
    from zarr.codecs import BloscCodec

    return [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=itemsize)]


def _chunk_file(dimensions: int) -> str:
    return "c/" + "/".join("0" * dimensions)


def _located(array: Any, data: bytes, compression: str) -> StoredArray:
    views = len(array)
    index = struct.unpack_from(f"<{2 * views}Q", data, len(data) - _CHECKSUM - 16 * views)
    offsets, sizes = index[::2], tuple(size - _CHECKSUM for size in index[1::2])
    view = memoryview(data)
    return StoredArray(
        dtype=np.dtype(array.dtype).name,
        shape=array.shape,
        offsets=offsets,
        sizes=sizes,
        crc32=tuple(zlib.crc32(view[offset : offset + size]) for offset, size in zip(offsets, sizes, strict=True)),
        plain=(compression == "none",) * views,
    )


def _summed(data: bytes) -> StoredFile:
    return StoredFile(size=len(data), start=0, sha256=hashlib.sha256(data).hexdigest())


def _encoded(header: Header) -> bytes:
    body = json.loads(canonical(header.body()))  # with sorted keys, as a header that was read has them
    said = {"format_version": FORMAT, "header": body, "sha256": digest(body)}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"softlabels": said}}
    return json.dumps(group, indent=1).encode("ascii")
