"""What a pack is: how an image lies in it, what its manifest says, and how its files are opened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from softlabels.core.arrayfile.arrays import ArrayFile, ArrayFormat, contents, encoded
from softlabels.core.arrayfile.hdf5 import Hdf5Arrays
from softlabels.core.arrayfile.zarr import ZarrArrays
from softlabels.core.config import essence
from softlabels.datasets._decode import decode_bytes, torchvision_decoder
from softlabels.errors import DataError

MANIFEST = "pack.json"
MANIFEST_MOST = 64 << 20
"""Bytes that a manifest may have."""

FORMAT = 2
"""Version of what is written; a reader refuses a larger one and keeps reading all smaller ones. 1 knew HDF5 alone."""

PackFormat = Literal["hdf5", "zarr"]

FORMATS: dict[PackFormat, ArrayFormat] = {"hdf5": Hdf5Arrays(), "zarr": ZarrArrays()}
"""The formats of shards by name."""


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

    `inputs` are the images that were packed, as `known_by` tells them from others; empty in packs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT
    id: str = ""
    format: PackFormat = "hdf5"
    packing: Packing
    source: dict[str, Any]
    name: str
    decoder: str
    versions: dict[str, str]
    classes: tuple[str, ...]
    rows: Annotated[int, Field(ge=1, le=1 << 32)]
    rows_per_shard: Annotated[int, Field(ge=1, le=1 << 24)]
    fingerprint: str
    inputs: dict[str, Any] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal, with the format, for a pack to be gone on with."""
        names = ("packing", "rows", "rows_per_shard", "fingerprint", "classes")
        known = {"contents": self.inputs["contents"]} if "contents" in self.inputs else {}
        return {name: essence(getattr(self, name)) for name in names} | known

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


def read_manifest(root: Path) -> PackManifest:
    """What the pack at `root` says of itself.

    Raises:
        DataError: there is no pack, or its manifest is damaged or of a newer version.
    """
    path = root / MANIFEST
    if not path.exists():
        raise DataError(f"{root} has no {MANIFEST}: it is no pack or was not copied whole; `softlabels pack` makes one")
    text = contents(root, [MANIFEST])
    try:
        body = json.loads(text.tobytes()) if len(text) <= MANIFEST_MOST else None
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path} is not valid JSON ({problem}); it is damaged: {_AGAIN}") from problem
    if not isinstance(body, dict) or not isinstance(body.get("format_version"), int):
        raise DataError(f"{path} states no format version; it is damaged: {_AGAIN}")
    if body["format_version"] > FORMAT:
        raise DataError(f"{path} is of version {body['format_version']}, newer than {FORMAT}; update softlabels")
    found = body.pop("sha256", None)
    try:
        manifest = PackManifest.model_validate(body)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise DataError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; it is damaged: {_AGAIN}"
        ) from problem
    if found != digest(body) or manifest.id != digest(manifest.identity):
        raise DataError(f"{path} does not match its checksum; it was changed or damaged: {_AGAIN}")
    return manifest


_AGAIN = "copy it again, or remove it and run the same `softlabels pack` again, which keeps the shards"


def open_shard(root: Path, manifest: PackManifest, shard: int) -> ArrayFile:
    """A shard, mapped; its arrays fit together and into the file.

    Raises:
        DataError: it is missing, cut off, of another pack, or its arrays do not fit.
    """
    file = manifest.arrays.read(root, manifest.shard(shard))
    count, a = len(manifest.span(shard)), file.arrays
    if file.about.get("pack") != manifest.id or file.about.get("shard") != shard:
        raise DataError(f"{file.path} is of another pack; run the pack command again to replace it")
    shapes = {name: (array.shape, array.dtype.name) for name, array in a.items() if name != "payload"}
    wanted = {"ends": ((count,), "int64"), "sizes": ((count, 2), "int32"), "crc32": ((count,), "uint32")}
    if shapes != wanted or "payload" not in a or a["payload"].ndim != 1 or a["payload"].dtype != np.uint8:
        raise DataError(f"{file.path} does not hold the arrays of a pack's shard; it is damaged or of another program")
    steps = np.diff(a["ends"], prepend=0)
    if (steps < 0).any() or a["ends"][-1] != len(a["payload"]) or (a["sizes"] < 0).any():
        raise DataError(f"{file.path} states images beyond its end; it is damaged, copy it again from its source")
    return file


def digest(value: Any) -> str:
    """SHA-256 of the JSON text of `value`, in hex."""
    return hashlib.sha256(encoded(value)).hexdigest()
