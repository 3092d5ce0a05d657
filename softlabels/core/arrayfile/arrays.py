"""Named arrays as one file or folder: a JSON header says where each chunk lies, so that it is mapped where it is.

An array is (chunks, rows, ...), each chunk of it one stretch of bytes. HDF5's and Zarr's own libraries write, and any
reader of theirs opens what they wrote; here the header alone is read, and plain bytes, so that links, external files,
virtual data sets and objects of a stranger's never reach those libraries.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from softlabels.core.arrayfile.blosc import decompress
from softlabels.core.arrays import Arrays
from softlabels.core.maps import mapped
from softlabels.core.paths import Damaged, SafePath
from softlabels.errors import StoreError

DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
"""What an array may hold: fixed numbers that lie on disk as in memory, little endian."""

LARGEST_RECORD = 1 << 28
"""Bytes of one row of one chunk of an array."""

_MAPPED = 1 << 16
"""Smaller files are read: a process may have so many maps only, and a large data set has many files."""

HexDigits = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Length = Annotated[int, Field(ge=1, le=1 << 32)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
ArrayName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class ArrayLayout(BaseModel):
    """What a row of an array is: its dtype by numpy's name and its shape.

    `columns`: on disk the rows are the last axis, so that values of one kind lie beside each other and compress well.
    `per_image`: there is one chunk, where other arrays of the file have several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    FIRST: ClassVar[frozenset[str]] = frozenset({"dtype", "shape"})

    dtype: str
    shape: Annotated[tuple[Length, ...], Field(max_length=8)] = ()
    columns: bool = False
    per_image: bool = False

    @field_validator("dtype")
    @classmethod
    def _plain(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"must be one of {', '.join(sorted(DTYPES))}")
        return value

    @model_validator(mode="after")
    def _small(self) -> Self:
        if self.record > LARGEST_RECORD:
            raise ValueError(f"one row of {self.record:,} bytes is more than {LARGEST_RECORD:,}")
        return self

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype, little endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def record(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def chunks(self, most: int) -> int:
        """Chunks of this array in a file of arrays of `most` chunks."""
        return 1 if self.per_image else most

    def extent(self, most: int, rows: int) -> tuple[int, ...]:
        """The array's shape in memory, in such a file."""
        return (self.chunks(most), rows, *self.shape)

    def stored(self, most: int, rows: int) -> tuple[int, ...]:
        """The array's shape on disk, in such a file."""
        return (self.chunks(most), *self.shape, rows) if self.columns else self.extent(most, rows)


class Stretch(NamedTuple):
    """Where the bytes of a chunk lie in its file, and whether they are uncompressed."""

    offset: int
    size: int
    plain: bool


class StoredArray(BaseModel):
    """Where one array lies: for each chunk the offset, size and zlib.crc32 of its bytes as they are on disk.

    `plain` chunks lie uncompressed, as all do of an uncompressed array and those that would not become smaller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[Count, ...]
    sizes: tuple[Count, ...]
    crc32: tuple[Count, ...]
    plain: tuple[bool, ...]

    @classmethod
    def of(cls, array: NDArray[Any], chunks: Sequence[Stretch], data: memoryview) -> Self:
        """What is stored of `array`, whose chunks lie at these places of its file's bytes."""
        return cls(
            dtype=array.dtype.name,
            shape=array.shape,
            offsets=tuple(chunk.offset for chunk in chunks),
            sizes=tuple(chunk.size for chunk in chunks),
            crc32=tuple(zlib.crc32(data[chunk.offset : chunk.offset + chunk.size]) for chunk in chunks),
            plain=tuple(chunk.plain for chunk in chunks),
        )

    @property
    def chunks(self) -> Iterator[Stretch]:
        """Where each chunk lies, in order."""
        return map(Stretch, self.offsets, self.sizes, self.plain)


class StoredFile(BaseModel):
    """One file: its size, and the SHA-256 of its bytes from `start` on (the header lies before)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Count
    start: Count
    sha256: HexDigits


class ArrayHeader(BaseModel):
    """What a file of arrays states of itself; who writes one adds fields of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compression: str
    arrays: dict[ArrayName, StoredArray] = {}
    files: dict[str, StoredFile] = {}

    def body(self) -> dict[str, Any]:
        """The header as JSON values: of one that was read, those that it was read from."""
        return self.model_dump(mode="json", exclude_unset=True)


H = TypeVar("H", bound=ArrayHeader)


class ArrayFormat(Protocol):
    """How arrays lie on disk. A format writes through its own library; reading takes a header and plain bytes."""

    suffix: str
    header_member: str
    """The file below a path that holds its header; ``""`` is the path itself."""
    head: int
    """Bytes of that file in which the header usually lies."""

    def head_end(self, begun: bytes) -> int:
        """How many bytes of that file the header takes, read from its first `head` bytes."""
        ...

    def check_compression(self, compression: str) -> None:
        """Refuse a compression of which the package is not installed, before anything is written: ConfigError."""
        ...

    def write(self, path: Path, header: ArrayHeader, arrays: Arrays, columns: Collection[str] = ()) -> None:
        """Make a file or folder at `path` of arrays (chunks, ...); `header` is completed with where they lie.

        `columns` are those arrays that are in columns, for which a compressor takes more time.
        """
        ...

    def read_header(self, place: SafePath, kind: type[H]) -> H:
        """The header of what lies at `place`; Damaged when there is none."""
        ...

    def header_is_exact(self, place: SafePath, header: ArrayHeader) -> bool:
        """Whether the bytes on disk are those that writing this header gives."""
        ...

    def members(self, layout: Mapping[str, ArrayLayout]) -> set[str]:
        """The files below a path with arrays of this layout, without the header's; ``""`` is the path itself."""
        ...

    def payload(self, name: str, layout: ArrayLayout) -> str:
        """The member that holds the bytes of array `name`."""
        ...

    def strays(self, place: SafePath) -> list[str]:
        """Every name below `place`, without the header's."""
        ...


def check_array(
    stored: StoredArray, layout: ArrayLayout, extent: tuple[int, int], compression: str, where: str
) -> None:
    """Raise Damaged, naming `where`, unless a header states such an array in a file of `extent` (chunks, rows)."""
    chunks, rows, wanted = layout.chunks(extent[0]), extent[1], layout.stored(*extent)
    if stored.dtype != layout.dtype or stored.shape != wanted:
        found = f"{stored.dtype!r:.40} {stored.shape!r:.100}"  # of a stranger's header: any text, of any length
        raise Damaged(f"{where} is {found}, not {layout.dtype} {wanted}")
    if any(len(each) != chunks for each in (stored.offsets, stored.sizes, stored.crc32, stored.plain)):
        raise Damaged(f"{where} does not list one place for each of {chunks} chunks")
    for _, size, plain in stored.chunks:
        if (plain and size != rows * layout.record) or (compression == "none" and not plain):
            raise Damaged(f"{where} lists chunks of other sizes than its shape")


def check_files(place: SafePath, format: ArrayFormat, header: ArrayHeader, layout: Mapping[str, ArrayLayout]) -> None:
    """Raise Damaged unless the files at `place` have the sizes of the header, and all its chunks lie in them."""
    if set(header.files) != format.members(layout):
        raise Damaged(f"{place} does not list the files it consists of")
    for name, file in header.files.items():
        found = (place / name).size()
        if found != file.size:
            raise Damaged(f"{place} has {found:,} bytes{f' in {name}' if name else ''} instead of {file.size:,}")
    for name, stored in header.arrays.items():
        file = header.files[format.payload(name, layout[name])]
        for number, chunk in enumerate(stored.chunks):
            if not file.start <= chunk.offset <= chunk.offset + chunk.size <= file.size:
                raise Damaged(f"{place} states a place outside the file for array {name!r}, chunk {number}")


def write_arrays(
    format: ArrayFormat, path: Path, header: ArrayHeader, layout: Mapping[str, ArrayLayout], arrays: Arrays
) -> None:
    """Make a file or folder at `path` of arrays, each of the shape that its layout has on disk, and read it back.

    Raises:
        OSError: it cannot be written.
        StoreError: it is read back otherwise than it was written.
    """
    format.write(path, header, arrays, [name for name, each in layout.items() if each.columns])
    place = SafePath(path.parent, (path.name,))
    found = format.read_header(place, type(header))
    for name, array in arrays.items():
        memory = _memory(place / format.payload(name, layout[name]))
        for chunk, crc32, wanted in zip(found.arrays[name].chunks, found.arrays[name].crc32, array, strict=True):
            data = memory[chunk.offset : chunk.offset + chunk.size]
            same = zlib.crc32(data.data) == crc32
            if same and not chunk.plain:
                frame, data = data.tobytes(), np.empty(wanted.nbytes, np.uint8)
                decompress(frame, data, str(place))
            if not same or not np.array_equal(data, bytes_of(wanted)):
                raise StoreError(f"array {name!r} of {path.name} is read back otherwise than written; see the disk")


def mapped_arrays(
    place: SafePath, format: ArrayFormat, header: ArrayHeader, layout: Mapping[str, ArrayLayout]
) -> Arrays:
    """The first chunk of each array, (rows, ...), in place; the header was checked. What is written to it goes nowhere.

    Raises:
        Damaged: a file became shorter.
        StoreError: a file cannot be mapped into memory.
    """
    memories = {name: _memory(place / name) for name in {format.payload(*each) for each in layout.items()}}
    arrays = {}
    for name, each in layout.items():
        memory, chunk = memories[format.payload(name, each)], next(header.arrays[name].chunks)
        if chunk.offset + chunk.size > len(memory):
            raise Damaged(f"{place} became shorter while it was opened")
        flat = np.frombuffer(memory, each.numpy, chunk.size // each.numpy.itemsize, chunk.offset)
        arrays[name] = flat.reshape(header.arrays[name].shape[1:])
    return arrays


def damage(place: SafePath, format: ArrayFormat, header: ArrayHeader) -> list[str]:
    """What differs from what was written, one line each; every byte of every file is read."""
    found = [] if format.header_is_exact(place, header) else [f"{place} has changed bytes in its header"]
    strays = sorted(set(format.strays(place)) - set(header.files))
    return found + [f"{place} holds {name!r}, which is not of it" for name in strays] + file_damage(place, header)


def file_damage(place: SafePath, header: ArrayHeader) -> list[str]:
    """The files behind the header that do not match their checksums, one line each."""
    found = []
    for name, file in header.files.items():
        inner, total = place / name, hashlib.sha256()
        with inner.open() as handle:
            for piece in inner.pieces(handle, file.start, os.fstat(handle).st_size):
                total.update(piece)
        if total.hexdigest() != file.sha256:
            found.append(f"{place} is damaged: {name or 'its body'} does not match its checksum")
    return found


def bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)


def _memory(place: SafePath) -> NDArray[np.uint8]:
    """The bytes of a file: mapped, or read when they are few."""
    with place.open() as handle:
        size = os.fstat(handle).st_size
        if size >= _MAPPED:
            return mapped(handle, size, place, private=True).array()
        return np.frombuffer(bytearray(place.read_at(handle, 0, size)), np.uint8)  # writable, as torch wants it
