"""Arrays as one HDF5 file: the header in the user block in front, each chunk of each array with a fletcher32 sum.

The user block begins with one line, ``softlabels-shard VERSION JSON-BYTES BLOCK-BYTES SHA256-OF-THE-JSON``, then comes
the JSON of the header, then spaces up to the size of the block. HDF5 itself passes a user block over, so that any HDF5
reader opens the file as it is.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from softlabels.core.arrayfile.arrays import ArrayHeader, ArrayLayout, H, StoredArray, StoredFile, Stretch
from softlabels.core.arrayfile.blosc import COLUMNS, ROWS
from softlabels.core.arrays import Arrays
from softlabels.core.documents import FORMAT, LARGEST, canonical, check_format, checked, parse
from softlabels.core.files import Deferred
from softlabels.core.installed import required
from softlabels.core.paths import Damaged, SafePath

_FIRST_LINE = re.compile(rb"softlabels-shard (\d{1,9}) (\d{1,12}) (\d{1,12}) ([0-9a-f]{64})\n")
_FIRST_LINE_MOST = 128
_SMALLEST_BLOCK = 512
_CHECKSUM = 4
"""Bytes of fletcher32 after each chunk."""
_WIDEST = (1 << 62) - 1
"""A number with as many digits as any offset, to learn the size of a header before its offsets are known."""


class Hdf5:
    """HDF5, one file."""

    suffix = ".h5"
    header_member = ""
    head = 1 << 16

    def head_end(self, begun: bytes) -> int:
        """See `ArrayFormat.head_end`."""
        match = _FIRST_LINE.match(begun[:_FIRST_LINE_MOST])
        return match.end() + min(int(match[2]), LARGEST) if match else 0

    def check_compression(self, compression: str) -> None:
        """See `ArrayFormat.check_compression`."""
        if compression != "none":
            required("hdf5plugin", "zstd", f"compression {compression} in HDF5")

    def write(self, path: Path, header: ArrayHeader, arrays: Arrays, columns: Collection[str] = ()) -> None:
        """See `ArrayFormat.write`."""
        block = _block_size(_draft(header, arrays))
        with path.open("w+b", buffering=0) as raw:
            deferred = Deferred(raw)
            filters = {name: _filters(header.compression, COLUMNS if name in columns else ROWS) for name in arrays}
            places = _write_arrays(deferred, block, arrays, filters)
            deferred.finish()
        with path.open("r+b") as file:
            file.write(_encoded(_located(header, arrays, places, path, block), block))

    def read_header(self, place: SafePath, kind: type[H]) -> H:
        """See `ArrayFormat.read_header`."""
        where = str(place)
        with place.open() as handle:
            size = os.fstat(handle).st_size
            match = _FIRST_LINE.match(place.read_at(handle, 0, min(_FIRST_LINE_MOST, size)))
            if match is None:
                raise Damaged(f"{where} does not begin as a shard does; it is damaged or of another program")
            version, length, block = (int(number) for number in match.groups()[:3])
            check_format(version, where)
            if not match.end() + length <= block <= size or length > LARGEST:
                raise Damaged(f"{where} states a header that does not fit into its {size:,} bytes")
            text = place.read_at(handle, match.end(), length)
        if hashlib.sha256(text).hexdigest().encode() != match[4]:
            raise Damaged(f"{where} has a header that does not match its checksum")
        header = checked(kind, parse(text, where), where)
        if set(header.files) != {""} or header.files[""].start != block:
            raise Damaged(f"{where} has a header that does not say where it ends")
        return header

    def header_is_exact(self, place: SafePath, header: ArrayHeader) -> bool:
        """See `ArrayFormat.header_is_exact`."""
        block = header.files[""].start
        with place.open() as handle:
            return place.read_at(handle, 0, block) == _encoded(header, block)

    def members(self, layout: Mapping[str, ArrayLayout]) -> set[str]:  # noqa: ARG002
        """See `ArrayFormat.members`."""
        return {""}

    def payload(self, name: str, layout: ArrayLayout) -> str:  # noqa: ARG002
        """See `ArrayFormat.payload`."""
        return ""

    def strays(self, place: SafePath) -> list[str]:  # noqa: ARG002
        """See `ArrayFormat.strays`."""
        return []


def _write_arrays(
    raw: Deferred, block: int, arrays: Arrays, filters: Mapping[str, dict[str, Any]]
) -> dict[str, list[Stretch]]:
    """Write the file with an empty user block; for each array where its chunks lie."""
    import h5py  # not needed for reading, and half of what a reader's start would cost

    # One written version of the file format, whatever library is installed; and chunks at multiples of 64 bytes,
    # where a memory map reads them best.
    versions = ("v110", "v110")
    with h5py.File(
        raw, "w", userblock_size=block, libver=versions, alignment_threshold=4096, alignment_interval=64
    ) as file:
        stored = {name: _write_array(file, name, array, filters[name]) for name, array in arrays.items()}
        file.flush()
        return {name: _chunks(dataset) for name, dataset in stored.items()}


def _write_array(file: Any, name: str, array: Any, filters: dict[str, Any]) -> Any:
    chunks = (1, *array.shape[1:])
    dataset = file.create_dataset(name, array.shape, array.dtype, chunks=chunks, fletcher32=True, **filters)
    for number, chunk in enumerate(array):
        dataset[number] = chunk
    return dataset


def _filters(compression: str, how: Mapping[str, Any]) -> dict[str, Any]:
    if compression == "none":
        return {}
    import hdf5plugin

    return dict(hdf5plugin.Blosc(**how))


def _chunks(dataset: Any) -> list[Stretch]:
    inner = (0,) * (len(dataset.shape) - 1)
    found = [dataset.id.get_chunk_info_by_coord((number, *inner)) for number in range(dataset.shape[0])]
    filters = dataset.id.get_create_plist().get_nfilters()
    # A chunk that would not shrink passes the compressor by, and its mask says so; the checksum alone is one filter.
    return [Stretch(each.byte_offset, each.size - _CHECKSUM, filters == 1 or each.filter_mask != 0) for each in found]


def _draft(header: ArrayHeader, arrays: Arrays) -> ArrayHeader:
    wide = {
        name: StoredArray(
            dtype=array.dtype.name,
            shape=array.shape,
            offsets=(_WIDEST,) * len(array),
            sizes=(_WIDEST,) * len(array),
            crc32=(_WIDEST,) * len(array),
            plain=(False,) * len(array),
        )
        for name, array in arrays.items()
    }
    whole = StoredFile(size=_WIDEST, start=_WIDEST, sha256="0" * 64)
    return header.model_copy(update={"arrays": wide, "files": {"": whole}})


def _located(
    header: ArrayHeader, arrays: Arrays, chunks: Mapping[str, list[Stretch]], path: Path, block: int
) -> ArrayHeader:
    """`header` with where the chunks lie and what is in them."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
        memoryview(memory) as data,
        data[block:] as rest,
    ):
        stored = {name: StoredArray.of(array, chunks[name], data) for name, array in arrays.items()}
        body = StoredFile(size=len(data), start=block, sha256=hashlib.sha256(rest).hexdigest())
    return header.model_copy(update={"arrays": stored, "files": {"": body}})


def _encoded(header: ArrayHeader, block: int) -> bytes:
    text = canonical(header.body())
    first = f"softlabels-shard {FORMAT} {len(text)} {block} {hashlib.sha256(text).hexdigest()}\n".encode("ascii")
    return (first + text).ljust(block)


def _block_size(draft: ArrayHeader) -> int:
    needed = _FIRST_LINE_MOST + len(canonical(draft.body()))
    return max(_SMALLEST_BLOCK, 1 << (needed - 1).bit_length())  # HDF5 wants a power of two
