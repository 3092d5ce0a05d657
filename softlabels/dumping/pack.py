"""Images prepared once for fast reading: shrunk, kept raw or as JPEG, in shards that are mapped into memory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from softlabels.core.philox import permutation
from softlabels.core.progress import Terminal, duration, plural, rate, size
from softlabels.datasets import Images, Packed, PackedImages, Packing, PackWriter, by_part
from softlabels.errors import DataError, StoreError

SAMPLE = 64
"""Images that are packed for an estimate."""


@dataclass(frozen=True)
class PackReport:
    """What a run of `pack` did: shards and images written, their bytes, seconds, and images that could not be read.

    `missing` counts the shards that the pack `out` still lacks: those of other parts.
    """

    shards: int
    images: int
    bytes: int
    seconds: float
    skipped: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    out: str = ""

    def lines(self) -> list[str]:
        """What was done, in words."""
        left = (
            f"{plural(self.missing, 'shard')} of other parts still missing" if self.missing else "the pack is complete"
        )
        if not self.shards:
            return [f"all shards of this part are in {self.out} already; nothing to do ({left})"]
        speed = rate(self.images / max(self.seconds, 1e-9))
        return [
            f"wrote {plural(self.shards, 'shard')}, {plural(self.images, 'image')}, {size(self.bytes)} in "
            f"{duration(self.seconds)} ({speed} images/s) to {self.out}; {left}"
        ]


@dataclass(frozen=True)
class PackCheck:
    """A pack whose files were all compared with their checksums and found sound."""

    name: str
    images: int
    shards: int

    def lines(self) -> list[str]:
        """What was found, in words."""
        return [f"{self.name}: {plural(self.images, 'image')} in {plural(self.shards, 'shard')}, all checksums match"]


@dataclass(frozen=True)
class PackPlan:
    """What a pack will hold and cost, from a few images picked over the data set; `bytes` in all."""

    images: int
    shards: int
    bytes_per_image: float
    bytes: float
    largest_shard: float
    images_per_second: float
    seconds: float
    packing: Packing

    def lines(self) -> list[str]:
        """The plan in words."""
        side = f"longer side at most {self.packing.max_side}" if self.packing.max_side else "as large as they are"
        kept = "raw" if self.packing.quality == "raw" else f"JPEG of quality {self.packing.quality}"
        return [
            f"{plural(self.images, 'image')}, {side}, {kept}: {size(self.bytes_per_image)} per image, about "
            f"{size(self.bytes)} in {plural(self.shards, 'shard')} of up to {size(self.largest_shard)} (each is held "
            f"in memory while it is made)",
            f"  at {rate(self.images_per_second)} images/s about {duration(self.seconds)}",
        ]


def plan_pack(images: Images, packing: Packing, rows_per_shard: int, *, threads: int) -> PackPlan:
    """Pack a few images to nowhere and extrapolate.

    Raises:
        DataError: none of them can be read.
    """
    began = time.monotonic()
    (each,), tried = _sampled(images, [packing], threads)
    count, speed = len(images), tried / max(time.monotonic() - began, 1e-9)
    largest = each * min(rows_per_shard, count)
    return PackPlan(count, -(-count // rows_per_shard), each, count * each, largest, speed, count / speed, packing)


def usual_packs(images: Images, *, threads: int) -> list[str]:
    """What packs of these images would hold, in words; nothing for images in memory, or in a pack, already.

    Raises:
        DataError: none of a few images can be read.
    """
    if all(part.pixels is not None or isinstance(part, PackedImages) for part, _, _ in by_part(images)):
        return []
    jpeg, raw = Packing(), Packing(quality="raw")
    sizes, _ = _sampled(images, [jpeg, raw], threads)
    said = " or ".join(
        f"{kind} {size(len(images) * each)} ({size(each)} per image)"
        for kind, each in zip((f"JPEG of quality {jpeg.quality}", "raw"), sizes, strict=True)
    )
    return [f"packed once for fast reading (softlabels pack), longer side at most {jpeg.max_side}: {said}"]


def _sampled(images: Images, packings: Sequence[Packing], threads: int) -> tuple[list[float], int]:
    """Mean bytes of an image in each packing, over a few images, and how many were tried."""
    rows = np.sort(permutation(len(images))[:SAMPLE])

    def sizes(row: int) -> list[int] | DataError:
        try:
            image = images.decode(row)
        except DataError as problem:
            return problem
        return [packing.encode(image).data.size for packing in packings]

    with _pool(threads) as pool:
        made = list(pool.map(sizes, rows.tolist()))
    read = [each for each in made if not isinstance(each, DataError)]
    if not read:
        raise next(each for each in made if isinstance(each, DataError))
    return np.mean(read, axis=0).tolist(), len(rows)


def pack(
    images: Images,
    target: PackWriter,
    *,
    part: tuple[int, int] = (0, 1),
    threads: int = 2,
    skip_bad_images: bool = False,
    terminal: Terminal,
) -> PackReport:
    """Write every shard of this part that is not there yet.

    Raises:
        DataError: an image cannot be read (unless `skip_bad_images`; then it is packed as unreadable).
        StoreError: a shard cannot be written, or another process packs the same part.
    """
    began, written = time.monotonic(), 0
    skipped: dict[str, str] = {}
    with _alone(target.root, part), _pool(threads) as pool:
        target.clear(part)
        shards = target.missing(part)
        total = sum(len(target.manifest.span(shard)) for shard in shards)
        with terminal.progress("pack", total, "images") as advance:
            for done, shard in enumerate(shards):
                rows = target.manifest.span(shard)
                made: list[Packed | None] = []
                failed: dict[int, str] = {}
                for packed in pool.map(lambda row: _packed(images, target.manifest.packing, row), rows):
                    if isinstance(packed, DataError):
                        if not skip_bad_images:
                            raise packed
                        failed[rows[len(made)]] = str(packed)
                    made.append(None if isinstance(packed, DataError) else packed)
                    advance(1, f"({len(shards) - done} shards waiting)")
                written += target.write(shard, made, failed)
                skipped |= {images.keys[row].as_py(): reason for row, reason in failed.items()}
    return PackReport(len(shards), total, written, time.monotonic() - began, skipped)


def _packed(images: Images, packing: Packing, row: int) -> Packed | DataError:
    try:
        return packing.encode(images.decode(row))
    except DataError as problem:
        return problem


def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def _alone(root: Path, part: tuple[int, int]) -> Iterator[None]:
    """Hold the part for this process.

    Raises:
        StoreError: another process holds it.
    """
    path = root / f".writing-{part[0]}-of-{part[1]}"
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as problem:
        raise StoreError(f"cannot write {path}: {problem.strerror}; choose another `out`") from problem
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise StoreError(f"another process packs part {part[0]}/{part[1]} of {root}; wait for it") from problem
        except OSError as problem:
            raise StoreError(f"cannot lock {path}: {problem.strerror}; choose another `out`") from problem
        yield
    finally:
        os.close(handle)
