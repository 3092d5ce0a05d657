"""What the arrays of a label look like, and who made them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from softlabels.errors import StoreError
from softlabels.store._documents import digest

DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
"""What an array may hold: fixed numbers that lie on disk as in memory, little endian."""

LARGEST_RECORD = 1 << 28
"""Bytes of one array of one label."""

LARGEST_CHUNK = 1 << 30
"""Bytes of one view of one shard of one array. A reader that decompresses allocates no more than this at once."""

Digits = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Length = Annotated[int, Field(ge=1, le=1 << 32)]
ArrayName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class ArrayLayout(BaseModel):
    """One array of one label: its dtype by numpy's name and its shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: Annotated[tuple[Length, ...], Field(max_length=8)] = ()

    @field_validator("dtype")
    @classmethod
    def _plain(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"must be one of {', '.join(sorted(DTYPES))}")
        return value

    @model_validator(mode="after")
    def _small(self) -> Self:
        if self.record > LARGEST_RECORD:
            raise ValueError(f"one label of {self.record:,} bytes is more than {LARGEST_RECORD:,}")
        return self

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype, little endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def record(self) -> int:
        """Bytes of one label's array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class TeacherCard(BaseModel):
    """Who the teacher is and how its labels are stored: what its folder's ``teacher.json`` holds.

    A second dump under the same name must bring a card of equal `identity`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: dict[str, Any]
    weights_sha256: str
    licence: str | None = None
    preprocessing: dict[str, Any]
    codec: dict[str, Any]
    layout: Annotated[dict[ArrayName, ArrayLayout], Field(min_length=1, max_length=16)]
    classes: Length
    format: Literal["hdf5", "zarr"]
    compression: Literal["none", "zstd"] = "none"
    versions: dict[str, str] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for labels to be of one kind.

        Weights that have a hash are known by it, by whatever path they were found. Library versions may differ.
        """
        known = {"spec"} if self.weights_sha256 else set()
        return self.model_dump(mode="json", exclude={"versions", "licence", *known})

    @property
    def digest(self) -> str:
        """SHA-256 of the identity; each shard carries it."""
        return digest(self.identity)


def check_arrays(
    arrays: Mapping[str, np.ndarray[Any, Any]], layout: Mapping[str, ArrayLayout], extent: tuple[int, int]
) -> dict[str, np.ndarray[Any, Any]]:
    """`arrays` as they go to disk, each (views, rows, ...), or a StoreError that says what was wanted."""
    if set(arrays) != set(layout):
        raise StoreError(f"a shard needs the arrays {sorted(layout)}, these are {sorted(arrays)}")
    for name, each in layout.items():
        wanted = (*extent, *each.shape)
        if arrays[name].shape != wanted or arrays[name].dtype.name != each.dtype:
            raise StoreError(
                f"array {name!r} must be {each.dtype} {wanted} (views, rows, ...), "
                f"this is {arrays[name].dtype} {arrays[name].shape}"
            )
    check_chunks(layout, extent[1])
    return {name: np.ascontiguousarray(arrays[name], each.numpy) for name, each in layout.items()}


def check_chunks(layout: Mapping[str, ArrayLayout], rows: int) -> None:
    """Raise StoreError when one view of shards of so many rows is more than is read at once."""
    for name, each in layout.items():
        if rows * each.record > LARGEST_CHUNK:
            raise StoreError(
                f"one view of {rows:,} rows of array {name!r} has {rows * each.record:,} bytes, more than "
                f"{LARGEST_CHUNK:,}; make the store with at most {LARGEST_CHUNK // each.record:,} --rows-per-shard"
            )


def shard_bytes(layout: Mapping[str, ArrayLayout], rows: int, views: int) -> int:
    """Bytes of the labels of one shard, which are all in memory while it is made.

    An uncompressed HDF5 shard needs them once more while it is written, a Zarr shard twice.
    """
    return rows * views * sum(each.record for each in layout.values())
