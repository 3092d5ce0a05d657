"""What a pack is: how an image lies in it, what its manifest says, and how its files are opened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import interpolate

from softlabels.core.arrayfile import FORMATS
from softlabels.core.arrayfile.arrays import (
    ArrayFormat,
    ArrayHeader,
    ArrayLayout,
    Count,
    HexDigits,
    check_array,
    check_files,
    damage,
    mapped_arrays,
)
from softlabels.core.arrays import Arrays
from softlabels.core.config import essence
from softlabels.core.documents import json_digest, read_document
from softlabels.core.paths import Damaged, SafePath
from softlabels.datasets._decode import decode_bytes, torchvision_decoder
from softlabels.errors import DataError, StoreError

MANIFEST = "pack.json"

PACK_FORMAT = 3
"""Version of what is written. 1 and 2 were of development versions and are not read."""

PackFormat = Literal["hdf5", "zarr"]

TABLE = {"keys": ArrayLayout(dtype="uint8"), "ends": ArrayLayout(dtype="int64"), "labels": ArrayLayout(dtype="int64")}
"""The arrays of the table of images: all keys, one after the other, where each ends, and labels."""

SHARD = {
    "payload": ArrayLayout(dtype="uint8"),
    "ends": ArrayLayout(dtype="int64"),
    "sizes": ArrayLayout(dtype="int32", shape=(2,)),
    "crc32": ArrayLayout(dtype="uint32"),
}
"""The arrays of a shard: the bytes of all its images, where each ends, heights and widths, and checksums."""


class Packed(NamedTuple):
    """One image as it lies in a pack: its bytes, and the height and width that they show."""

    data: NDArray[np.uint8]
    height: int
    width: int


class Packing(BaseModel):
    """What is done to an image on its way into a pack, and how it is read back.

    `max_side`: the longer side is shrunk to it, antialiased, and never enlarged; None leaves images as large as they
    are. `quality`: of JPEG, 1 to 100, or ``raw`` for bytes that no decoder has to read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    FIRST: ClassVar[frozenset[str]] = frozenset({"max_side", "quality"})
    """Fields that are always in a pack's id; a later one is only where it differs from its default."""

    max_side: Annotated[int, Field(ge=1)] | None = 320
    quality: Annotated[int, Field(ge=1, le=100)] | Literal["raw"] = 90

    def encode(self, image: Tensor) -> Packed:
        """uint8 (3, H, W) as it lies in the pack; raw bytes are (height, width, 3)."""
        small = self._shrunk(image)
        height, width = small.shape[1:]
        if self.quality == "raw":
            return Packed(small.permute(1, 2, 0).contiguous().numpy().reshape(-1), height, width)
        from torchvision.io import encode_jpeg

        return Packed(encode_jpeg(small.contiguous(), quality=self.quality).numpy(), height, width)

    def decode(self, packed: Packed, where: str) -> Tensor:
        """uint8 (3, height, width); of a raw pack a view of its memory, which is not to be written to.

        Raises:
            DataError: these are no bytes of such an image; `where` is named.
        """
        data, height, width = packed
        if self.quality == "raw":
            if data.size != 3 * height * width:
                raise DataError(f"{where} has {data.size:,} bytes instead of 3 x {height} x {width}; pack it again")
            return torch.from_numpy(data.reshape(height, width, 3)).permute(2, 0, 1)
        image = decode_bytes(data, where)
        if tuple(image.shape[1:]) != (height, width):
            raise DataError(f"{where} is {image.shape[1]} x {image.shape[2]} instead of {height} x {width}; pack again")
        return image

    @property
    def decoder(self) -> str:
        """What turns bytes into pixels."""
        if self.quality == "raw":
            return "none, raw pack"
        return torchvision_decoder()

    def _shrunk(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        longest = max(height, width)
        if self.max_side is None or longest <= self.max_side:
            return image
        size = [max(1, round(side * self.max_side / longest)) for side in (height, width)]
        # In whole numbers: the same bytes on every machine.
        return interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


class PackManifest(BaseModel):
    """What ``pack.json`` says. `id` is of all that makes the images of two packs alike; each shard carries it.

    `inputs` are the images that were packed, as `known_by` tells them from others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = ""
    format: PackFormat
    packing: Packing
    source: dict[str, Any]
    name: str
    decoder: str
    versions: dict[str, str]
    classes: tuple[str, ...]
    rows: Annotated[int, Field(ge=1, le=1 << 32)]
    rows_per_shard: Annotated[int, Field(ge=1, le=1 << 24)]
    fingerprint: str
    inputs: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal, with the format, for a pack to be gone on with."""
        names = ("packing", "rows", "rows_per_shard", "fingerprint", "classes")
        return {name: essence(getattr(self, name)) for name in names} | {"contents": self.inputs.get("contents")}

    @property
    def arrays(self) -> ArrayFormat:
        """How its files lie on disk."""
        return FORMATS[self.format]

    @property
    def table(self) -> str:
        """The file of keys and labels."""
        return f"images{self.arrays.suffix}"

    @property
    def shards(self) -> int:
        """How many shards make the pack whole."""
        return -(-self.rows // self.rows_per_shard)

    def span(self, shard: int) -> range:
        """The rows of a shard."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.rows))

    def shard(self, number: int) -> str:
        """The file, or folder, of a shard."""
        return f"{number:06d}{self.arrays.suffix}"


class PackHeader(ArrayHeader):
    """What a file of a pack says of itself; `shard` is None in the table, `skipped` says which images had no bytes."""

    pack: HexDigits
    shard: Count | None
    skipped: dict[int, str] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PackFile:
    """A file of a pack: its arrays, (images, ...), lie in mapped memory."""

    place: SafePath
    format: ArrayFormat
    header: PackHeader
    arrays: Arrays

    def problems(self) -> list[str]:
        """What differs from what was written, one line each; every byte is read. Raises DataError when it is gone."""
        with _advice():
            return damage(self.place, self.format, self.header)


def read_manifest(root: Path) -> PackManifest:
    """What the pack at `root` says of itself.

    Raises:
        DataError: there is no pack, or its manifest is damaged or of another version.
    """
    path = root / MANIFEST
    if not path.exists():
        raise DataError(f"{root} has no {MANIFEST}: it is no pack or was not copied whole; `softlabels pack` makes one")
    with _advice("copy it again, or remove it and run the same `softlabels pack` again, which keeps whole shards"):
        manifest = read_document(SafePath(root, (MANIFEST,)), PackManifest, range(PACK_FORMAT, PACK_FORMAT + 1))
        if manifest.id != json_digest(manifest.identity):
            raise Damaged(f"{path} has an id that its other values do not give")
    return manifest


def open_shard(root: Path, manifest: PackManifest, shard: int) -> PackFile:
    """A shard, mapped; its arrays fit together and into the file.

    Raises:
        DataError: it is missing, cut off, of another pack, or its arrays do not fit.
    """
    file = _opened(root, manifest, manifest.shard(shard), SHARD, len(manifest.span(shard)), shard)
    if (file.arrays["sizes"] < 0).any():
        raise DataError(f"{file.place} states images of negative sizes; it is damaged, {_AGAIN}")
    return file


def open_table(root: Path, manifest: PackManifest) -> PackFile:
    """The table of keys and labels; raises as `open_shard` does."""
    return _opened(root, manifest, manifest.table, TABLE, manifest.rows, None)


def _opened(
    root: Path, manifest: PackManifest, name: str, layout: Mapping[str, ArrayLayout], rows: int, shard: int | None
) -> PackFile:
    place, where, format = SafePath(root, (name,)), str(root / name), manifest.arrays
    with _advice():
        header = format.read_header(place, PackHeader)
        if (header.pack, header.shard) != (manifest.id, shard):
            raise Damaged(f"{where} is of another pack")
        if set(header.arrays) != set(layout) or header.compression != "none":
            raise Damaged(f"{where} does not hold the arrays of a pack")
        joined, *_ = layout  # what is as long as all images need together
        for array, each in layout.items():
            stored = header.arrays[array]
            extent = (1, stored.shape[-1] if array == joined and stored.shape else rows)
            check_array(stored, each, extent, "none", f"{where}: array {array!r}")
        check_files(place, format, header, layout)
        arrays = mapped_arrays(place, format, header, layout)
        ends = arrays["ends"]
        if (np.diff(ends, prepend=0) < 0).any() or max(1, ends[-1]) != len(arrays[joined]):
            raise Damaged(f"{where} states bytes beyond its end")
    return PackFile(place, format, header, arrays)


_AGAIN = "copy it again from its source, or run the same `softlabels pack` again"


@contextlib.contextmanager
def _advice(advice: str = _AGAIN) -> Iterator[None]:
    """Make what is wrong with a file a DataError, which says what to do where it is damaged."""
    try:
        yield
    except StoreError as problem:
        raise DataError(f"{problem}; {advice}" if isinstance(problem, Damaged) else str(problem)) from problem
