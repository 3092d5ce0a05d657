"""What the arrays of a label look like, and who made them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from softlabels.core.arrayfile.arrays import ArrayLayout, ArrayName, Length
from softlabels.core.config import essence
from softlabels.core.documents import differences, json_digest
from softlabels.core.types import FIT, LOGITS
from softlabels.errors import StoreError

LARGEST_CHUNK = 1 << 30
"""Bytes of one view of one shard of one array. A reader that decompresses allocates no more than this at once."""


class TeacherCard(BaseModel):
    """Who the teacher is and how its labels are stored: what its folder's ``teacher.json`` holds.

    A second dump under the same name must bring a card that does not differ. `precision` is what the teacher computed
    in: ``fp32``, or the ``fp16`` or ``bf16`` of autocast; None where that is not known, as in own loops, imports, and
    cards of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    FIRST: ClassVar[frozenset[str]] = frozenset(
        ["spec", "weights_sha256", "licence", "preprocessing", "codec", "layout", "classes", "format", "compression"]
    ) | {"versions"}
    """The fields of the first version; a later one is written, and in the digest, where it is not at its default."""

    spec: dict[str, Any]
    weights_sha256: str
    licence: str | None = None
    preprocessing: dict[str, Any]
    codec: dict[str, Any]
    layout: Annotated[dict[ArrayName, ArrayLayout], Field(min_length=1, max_length=16)]
    classes: Length
    format: Literal["hdf5", "zarr"]
    compression: Literal["none", "zstd"] = "none"
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    output: str = LOGITS
    """Which of the teacher's outputs this is; `classes` counts its values."""
    source: str = ""
    """What it is in the teacher, such as ``layer3:mean``, where `output` is a name of one's own; else empty."""
    shape: Annotated[tuple[Length, ...], Field(max_length=8)] = ()
    """The axes of its values, (C, H, W) of a feature map, where there are several; else empty."""
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _has_its_shape(self) -> TeacherCard:
        if self.shape and math.prod(self.shape) != self.classes:
            raise ValueError(f"shape {self.shape} has not {self.classes} values")
        if self.compression == "none" and any(each.columns for each in self.layout.values()):
            raise ValueError("arrays in columns are compressed ones")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What labels of one kind have in common.

        Weights that have a hash are known by it, by whatever path they were found. Library versions may differ.
        """
        left_out = {"versions", "licence", *(["spec"] if self.weights_sha256 else [])}
        return {name: value for name, value in essence(self).items() if name not in left_out}

    @property
    def digest(self) -> str:
        """SHA-256 of the identity; each shard carries it."""
        return json_digest(self.identity)

    @property
    def address(self) -> str:
        """What to read from the teacher: its output, and how it is pooled."""
        return self.source or self.output

    def differs(self, other: TeacherCard) -> list[str]:
        """What keeps labels of `other` from being of this card's kind, one clause each; what is not known agrees.

        Whatever a codec took from one teacher does: the card that is there first counts.
        """
        unknown = {"precision"} if None in (self.precision, other.precision) else set()
        if FIT in self.codec and FIT in other.codec:
            unknown.add("layout")  # it is of the codec, but for what the codec took from the teacher
        here, there = ({k: v for k, v in each.identity.items() if k not in unknown} for each in (self, other))
        here["codec"], there["codec"] = _as_asked(self.codec), _as_asked(other.codec)
        return differences(here, there)


def _as_asked(codec: Mapping[str, Any]) -> dict[str, Any]:
    """A codec without what it took from a teacher."""
    return {name: value for name, value in codec.items() if name != FIT}


def check_chunks(layout: Mapping[str, ArrayLayout], rows: int) -> None:
    """Raise StoreError when one view of a shard of `rows` rows is larger than a reader takes."""
    for name, each in layout.items():
        if rows * each.record > LARGEST_CHUNK:
            raise StoreError(
                f"one view of {rows:,} rows of array {name!r} has {rows * each.record:,} bytes, more than "
                f"{LARGEST_CHUNK:,}; make the store with {LARGEST_CHUNK // each.record:,} rows per shard or fewer"
            )


def check_arrays(
    arrays: Mapping[str, np.ndarray[Any, Any]], layout: Mapping[str, ArrayLayout], extent: tuple[int, int]
) -> dict[str, np.ndarray[Any, Any]]:
    """`arrays` as they go to disk, or a StoreError that says what was wanted; `extent` is (views, rows)."""
    if set(arrays) != set(layout):
        raise StoreError(f"a shard needs the arrays {sorted(layout)}, these are {sorted(arrays)}")
    for name, each in layout.items():
        wanted = each.extent(*extent)
        if arrays[name].shape != wanted or arrays[name].dtype.name != each.dtype:
            raise StoreError(
                f"array {name!r} must be {each.dtype} {wanted} (views, rows, ...), "
                f"this is {arrays[name].dtype} {arrays[name].shape}"
            )
    check_chunks(layout, extent[1])
    return {name: _on_disk(arrays[name], each) for name, each in layout.items()}


def _on_disk(array: np.ndarray[Any, Any], layout: ArrayLayout) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1) if layout.columns else array, layout.numpy)
