"""Packs that are being made: shards are written whole, in any order, by any number of processes."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.core.arrayfile.arrays import ArrayLayout, write_arrays
from softlabels.core.arrays import Arrays
from softlabels.core.documents import complete, document, json_digest
from softlabels.core.files import TEMPORARY, whole, write_text
from softlabels.datasets._checks import fingerprint, known_by
from softlabels.datasets._images import Images
from softlabels.datasets.packs._format import (
    MANIFEST,
    PACK_FORMAT,
    SHARD,
    TABLE,
    Packed,
    PackFormat,
    PackHeader,
    Packing,
    PackManifest,
    open_shard,
    read_manifest,
)
from softlabels.errors import DataError, StoreError

_LARGEST = (1 << 32) - 16
"""Bytes of an array of a pack: HDF5 counts those of a chunk, with its checksum, in 32 bits."""


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
        header = PackHeader(compression="none", pack=self.manifest.id, shard=shard, skipped=dict(skipped))
        return _written(self.root, self.manifest, self.manifest.shard(shard), header, SHARD, arrays)

    def _there(self, shard: int) -> bool:
        try:
            open_shard(self.root, self.manifest, shard)
        except DataError:
            return False
        return True


def create_pack(
    root: Path,
    images: Images,
    packing: Packing,
    rows_per_shard: int,
    versions: Mapping[str, str],
    format: PackFormat = "hdf5",
) -> PackWriter:
    """Make a pack of `images`, or go on with the one that is there.

    Raises:
        DataError: another pack is there; both sides are shown.
        StoreError: it cannot be written.
    """
    manifest = PackManifest(
        format=format,
        packing=packing,
        source=dict(images.spec),
        name=images.name,
        decoder=images.decoder,
        versions=dict(versions),
        classes=images.classes,
        rows=len(images),
        rows_per_shard=rows_per_shard,
        fingerprint=fingerprint(images),
        inputs=known_by(images),
    )
    manifest = manifest.model_copy(update={"id": json_digest(manifest.identity)})
    if (root / MANIFEST).exists():
        there = read_manifest(root)
        old, new = ({"format": each.format, **each.identity} for each in (there, manifest))
        differing = [name for name in old if old[name] != new[name]]
        if differing == ["contents"]:
            raise DataError(
                f"{root} was packed from other images under the same names (told apart by their "
                f"{manifest.inputs['by']}); remove it to pack these, or choose another `out`"
            )
        differing = [f"{name} is {old[name]!r} there and {new[name]!r} here" for name in differing]
        if differing:
            raise DataError(
                f"{root} holds another pack: {'; '.join(differing)[:500]}; use the same settings or another `out`"
            )
        return PackWriter(root, there)
    header = PackHeader(compression="none", pack=manifest.id, shard=None)
    _written(root, manifest, manifest.table, header, TABLE, _columns(images))
    write_text(root / MANIFEST, document(complete(manifest), PACK_FORMAT))
    return PackWriter(root, manifest)


def _written(
    root: Path, manifest: PackManifest, name: str, header: PackHeader, layout: Mapping[str, ArrayLayout], arrays: Arrays
) -> int:
    """Write these arrays, whole or not at all, in the place of what is there; their bytes on disk."""
    path = root / name
    for array, values in arrays.items():
        if values.nbytes > _LARGEST:
            raise StoreError(
                f"array {array!r} of {path} would have {values.nbytes:,} bytes, more than the {_LARGEST:,} that HDF5 "
                f"takes; remove {root} and choose a smaller `rows_per_shard`"
            )
    nothing = np.zeros(1, np.uint8)  # where images have no bytes at all: neither library writes empty chunks
    chunks = {
        array: np.ascontiguousarray(values if values.size else nothing, layout[array].numpy)[None]
        for array, values in arrays.items()
    }
    with whole(path) as partial:
        write_arrays(manifest.arrays, partial, header, layout, chunks)
        # What is there is damaged, or it would not be written again; and a folder cannot be replaced by renaming.
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    inner = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in inner if each.is_file())


def _columns(images: Images) -> dict[str, NDArray[Any]]:
    joined = pa.concat_arrays(images.keys.chunks)
    _, offsets, data = joined.buffers()
    bounds = np.frombuffer(offsets, np.int32)[joined.offset : joined.offset + len(joined) + 1].astype(np.int64)
    return {
        "keys": np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]],
        "ends": bounds[1:] - bounds[0],
        "labels": images.labels.astype(np.int64),
    }
