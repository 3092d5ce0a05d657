"""Packs: images prepared once for fast reading, in shards that are mapped into memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from softlabels._files import TEMPORARY, read_json, whole, write_json
from softlabels.config import Part
from softlabels.datasets._arrays import ArrayFile, read_arrays, write_arrays
from softlabels.datasets._checks import fingerprint
from softlabels.datasets._decode import decode_bytes
from softlabels.datasets._images import Images, Split, absolute
from softlabels.errors import DataError

MANIFEST, IMAGES = "pack.json", "images.h5"
FORMAT = 1


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
        import torchvision

        return f"torchvision.io {torchvision.__version__}"

    def _shrunk(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        longest = max(height, width)
        if self.max_side is None or longest <= self.max_side:
            return image
        size = [max(1, round(side * self.max_side / longest)) for side in (height, width)]
        # In whole numbers: the same bytes on every machine.
        return interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


class PackManifest(BaseModel):
    """What ``pack.json`` says. `id` is of all that makes two packs alike; each shard carries it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT
    id: str = ""
    packing: Packing
    source: dict[str, Any]
    name: str
    decoder: str
    versions: dict[str, str]
    classes: tuple[str, ...]
    rows: Annotated[int, Field(ge=1, le=1 << 32)]
    rows_per_shard: Annotated[int, Field(ge=1, le=1 << 24)]
    fingerprint: str

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a pack to be gone on with."""
        return self.model_dump(mode="json", include={"packing", "rows", "rows_per_shard", "fingerprint", "classes"})

    @property
    def shards(self) -> int:
        """How many shards make the pack whole."""
        return -(-self.rows // self.rows_per_shard)

    def span(self, shard: int) -> range:
        """The rows of a shard."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.rows))


def shard_name(shard: int) -> str:
    """The file of a shard."""
    return f"{shard:06d}.h5"


class PackWriter:
    """A pack that is being filled; made by `create_pack`."""

    def __init__(self, root: Path, manifest: PackManifest) -> None:
        self.root, self.manifest = root, manifest

    def missing(self, part: tuple[int, int] = (0, 1)) -> list[int]:
        """The shards of this part (every n-th from the i-th) that are not there whole; headers are read."""
        index, count = part
        return [shard for shard in range(index, self.manifest.shards, count) if not self._there(shard)]

    def clear(self, part: tuple[int, int]) -> None:
        """Remove what killed writers left of this part's shards. Only the part's one writer may call this."""
        index, count = part
        for leftover in self.root.glob(f"{TEMPORARY}*"):
            number = leftover.name.removeprefix(TEMPORARY).partition(".")[0]
            if number.isdigit() and int(number) % count == index:
                shutil.rmtree(leftover, ignore_errors=True)

    def write(self, shard: int, images: Sequence[Packed | None], skipped: Mapping[int, str]) -> int:
        """Write a shard, whole or not at all, and give its bytes. None stands for an image that could not be read.

        Raises:
            StoreError: it cannot be written, as on a full disk.
        """
        nothing = Packed(np.empty(0, np.uint8), 0, 0)
        packed = [image if image is not None else nothing for image in images]
        arrays = {
            "payload": np.concatenate([each.data for each in packed]),
            "ends": np.cumsum([each.data.size for each in packed], dtype=np.int64),
            "sizes": np.array([(each.height, each.width) for each in packed], np.int32),
            "crc32": np.array([zlib.crc32(each.data.data) for each in packed], np.uint32),
        }
        about = {"pack": self.manifest.id, "shard": shard, "skipped": {str(row): why for row, why in skipped.items()}}
        with whole(self.root / shard_name(shard)) as partial:
            write_arrays(partial, about, arrays)
        return (self.root / shard_name(shard)).stat().st_size

    def _there(self, shard: int) -> bool:
        try:
            open_shard(self.root, self.manifest, shard)
        except DataError:
            return False
        return True


def create_pack(
    root: Path, images: Images, packing: Packing, rows_per_shard: int, versions: Mapping[str, str]
) -> PackWriter:
    """Make a pack of `images`, or go on with the one that is there.

    Raises:
        DataError: another pack is there; both sides are shown.
        StoreError: it cannot be written.
    """
    manifest = PackManifest(
        packing=packing,
        source=dict(images.spec),
        name=images.name,
        decoder=images.decoder,
        versions=dict(versions),
        classes=images.classes,
        rows=len(images),
        rows_per_shard=rows_per_shard,
        fingerprint=fingerprint(images),
    )
    manifest = manifest.model_copy(update={"id": _digest(manifest.identity)})
    if (root / MANIFEST).exists():
        there = read_manifest(root)
        if there.id != manifest.id:
            differing = [
                f"{name} is {old!r} there and {manifest.identity[name]!r} here"
                for name, old in there.identity.items()
                if old != manifest.identity[name]
            ]
            raise DataError(
                f"{root} holds another pack: {'; '.join(differing)[:500]}; use the same settings or another --out"
            )
        return PackWriter(root, there)
    with whole(root / IMAGES) as partial:
        write_arrays(partial, {"pack": manifest.id}, _columns(images))
    body = manifest.model_dump(mode="json")
    write_json(root / MANIFEST, {**body, "sha256": _digest(body)})
    return PackWriter(root, manifest)


def read_manifest(root: Path) -> PackManifest:
    """What the pack at `root` says of itself.

    Raises:
        DataError: there is no pack, or its manifest is damaged or of a newer version.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(f"{root} has no {MANIFEST}: it is no pack or was not copied whole; `softlabels pack` makes one")
    body = read_json(path, error=DataError)
    if not isinstance(body, dict) or not isinstance(body.get("format_version"), int):
        raise DataError(f"{path} states no format version; it is damaged or of another program")
    if body["format_version"] > FORMAT:
        raise DataError(f"{path} is of version {body['format_version']}, newer than {FORMAT}; update softlabels")
    found = body.pop("sha256", None)
    try:
        manifest = PackManifest.model_validate(body)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; it is damaged") from problem
    if found != _digest(body) or manifest.id != _digest(manifest.identity):
        raise DataError(f"{path} does not match its checksum; it was changed or damaged, copy it again")
    return manifest


def open_shard(root: Path, manifest: PackManifest, shard: int) -> ArrayFile:
    """A shard, mapped; its arrays fit together and into the file.

    Raises:
        DataError: it is missing, cut off, of another pack, or its arrays do not fit.
    """
    file = read_arrays(root / shard_name(shard))
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


@dataclass(frozen=True, eq=False)
class PackedImages:
    """The images of a pack. Shards are mapped at their first use, and each image's checksum is compared then."""

    root: Path
    spec: Mapping[str, Any]
    manifest: PackManifest
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    _opened: dict[int, tuple[ArrayFile, NDArray[np.bool_]]] = field(default_factory=dict, repr=False)

    pixels: None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.root, dict(self.spec))

    @property
    def name(self) -> str:
        return f"pack:{self.root}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def decoder(self) -> str:
        return self.manifest.packing.decoder

    def __len__(self) -> int:
        return self.manifest.rows

    def content(self, row: int) -> bytes:
        return self._packed(int(row)).data.tobytes()

    def decode(self, row: int) -> Tensor:
        packed = self._packed(int(row))
        if not packed.data.size:
            why = self._shard(int(row))[0].about.get("skipped", {}).get(str(int(row)), "no bytes")
            raise DataError(f"image {self._key(row)} of {self.root} could not be read when it was packed: {why}")
        return self.manifest.packing.decode(packed, f"image {self._key(row)} of {self.root}")

    def problems(self) -> list[str]:
        """Read every byte: what is missing or damaged, one line each."""
        found = []
        for shard in range(self.manifest.shards):
            try:
                file = open_shard(self.root, self.manifest, shard)
                found += [f"{file.path}: {name} does not match its checksum" for name in file.damaged()]
            except DataError as problem:
                found.append(str(problem))
        return found

    def _packed(self, row: int) -> Packed:
        file, checked = self._shard(row)
        place = row % self.manifest.rows_per_shard
        ends = file.arrays["ends"]
        data = file.arrays["payload"][(ends[place - 1] if place else 0) : ends[place]]
        if not checked[place]:
            if zlib.crc32(data.data) != file.arrays["crc32"][place]:
                raise DataError(f"image {self._key(row)} in {file.path} does not match its checksum; copy it again")
            checked[place] = True
        return Packed(data, *file.arrays["sizes"][place].tolist())

    def _shard(self, row: int) -> tuple[ArrayFile, NDArray[np.bool_]]:
        shard = row // self.manifest.rows_per_shard
        if shard not in self._opened:
            file = open_shard(self.root, self.manifest, shard)
            self._opened[shard] = file, np.zeros(len(self.manifest.span(shard)), bool)
        return self._opened[shard]

    def _key(self, row: int) -> str:
        return repr(self.keys[int(row)].as_py())


class Pack(Part):
    """``pack:DIR``: what ``softlabels pack`` left there, or in its ``train/`` and ``test/`` folders, a pack each."""

    shorthand: ClassVar[str] = "root"
    kind: Literal["pack"] = "pack"
    root: str
    split: Split = "train"

    def open(self) -> PackedImages:
        """The images, under the keys, labels and classes of the data set that was packed.

        Raises:
            DataError: there is no pack, it is not whole, or its manifest or table of images is damaged.
        """
        root = Path(absolute(self.root))
        if not root.is_dir():
            raise DataError(f"no such directory: {root}; `softlabels pack` makes a pack")
        sides = (self.split, *({"test": ("val",), "val": ("test",)}.get(self.split, ())))
        divided = [root / side for side in sides if (root / side / MANIFEST).is_file()]
        chosen = divided[0] if divided and not (root / MANIFEST).exists() else root
        return _open(chosen, {**self.model_dump(), "root": str(root)})


def _open(root: Path, spec: dict[str, Any]) -> PackedImages:
    manifest = read_manifest(root)
    keys, labels = _table(root, manifest)
    lacking = [shard for shard in range(manifest.shards) if not (root / shard_name(shard)).is_file()]
    if lacking:
        raise DataError(
            f"{root} is not whole: {len(lacking):,} of {manifest.shards:,} shards are missing (first: "
            f"{shard_name(lacking[0])}); run the same `softlabels pack` again to go on"
        )
    return PackedImages(root, spec, manifest, keys, labels)


def _columns(images: Images) -> dict[str, NDArray[Any]]:
    joined = pa.concat_arrays(images.keys.chunks)
    _, offsets, data = joined.buffers()
    bounds = np.frombuffer(offsets, np.int32)[joined.offset : joined.offset + len(joined) + 1].astype(np.int64)
    return {
        "keys": np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]],
        "ends": bounds[1:] - bounds[0],
        "labels": images.labels.astype(np.int64),
    }


def _table(root: Path, manifest: PackManifest) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
    """Keys and labels, whose every byte is checked."""
    file = read_arrays(root / IMAGES)
    a, rows = file.arrays, manifest.rows
    shapes = {name: (array.shape, array.dtype.name) for name, array in a.items() if name != "keys"}
    fits = shapes == {"ends": ((rows,), "int64"), "labels": ((rows,), "int64")} and "keys" in a and a["keys"].ndim == 1
    damaged = f"{file.path} is no table of the {rows:,} images of this pack; copy it again from its source"
    if not fits or file.about.get("pack") != manifest.id or file.damaged():
        raise DataError(damaged)
    ends = a["ends"]
    if (np.diff(ends, prepend=0) < 0).any() or ends[-1] != len(a["keys"]) or ends[-1] >= 1 << 31:
        raise DataError(damaged)
    low, high = int(a["labels"].min()), int(a["labels"].max())
    if low < -1 or high >= len(manifest.classes):
        raise DataError(f"{file.path} has labels {low} to {high} for {len(manifest.classes)} classes; copy it again")
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(a["keys"].tobytes())]
    try:
        column = pa.Array.from_buffers(pa.string(), rows, buffers)
        column.validate(full=True)
    except pa.ArrowInvalid as problem:
        raise DataError(damaged) from problem
    return pa.chunked_array([column]), a["labels"].copy()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
