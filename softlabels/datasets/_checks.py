"""Telling data sets, and changed images, apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels.core.philox import permutation
from softlabels.datasets._images import FileImages, Images, stretches, thread_count
from softlabels.datasets._parts import by_part
from softlabels.datasets._subset import SomeImages, subset
from softlabels.datasets.packs._pack import PackedImages
from softlabels.errors import DataError

CONTENT_BYTES = 64 << 20
"""Bytes of images that are read to tell a data set from another one."""

FEW, SOME = 64, 4096
"""Images that are read at least, where there are as many, and at most to see whether a store is of these images."""


def content_checksums(
    images: Images, rows: Sequence[int] | NDArray[np.integer[Any]] | None = None, *, threads: int | None = None
) -> NDArray[np.uint64]:
    """The first 8 bytes of BLAKE2b of the content of each of `rows` (None: all), little endian: uint64 (len(rows),).

    Raises:
        DataError: a file cannot be read; the message names it.
    """
    chosen = np.arange(len(images)) if rows is None else np.asarray(rows, np.int64)

    def digests(places: range) -> bytes:
        contents = (images.content(int(chosen[place])) for place in places)
        return b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)

    with ThreadPoolExecutor(threads or thread_count()) as pool:
        joined = b"".join(pool.map(digests, stretches(len(chosen), 256)))
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def known_by(images: Images) -> dict[str, Any]:
    """What tells a data set from others, wherever it lies, as JSON values: equal for equal images in equal order.

    `count`; `table`, the fingerprint of keys, labels and classes; and `contents`, SHA-256 over what is cheap to know of
    the images, which `by` names: pixels in memory, checksums of a pack, else the contents of as many images, picked
    over the data set, as `CONTENT_BYTES` hold, and of files the size of each. Images that cannot be read count as such.
    """
    held = list(by_part(images))
    if len(held) > 1:
        known = [known_by(subset(part, own)) for part, _, own in held]
        joint = hashlib.sha256("".join(each["contents"] for each in known).encode()).hexdigest()
        ways = ", ".join(dict.fromkeys(each["by"] for each in known))
        return {"count": len(images), "table": fingerprint(images), "contents": joint, "by": ways}
    whole, _, rows = held[0] if held else (images, np.arange(0), np.arange(0))
    sha = hashlib.sha256()
    if images.pixels is not None:
        sha.update(str(tuple(images.pixels.shape)).encode())
        sha.update(images.pixels.contiguous().numpy().data)
        by = "pixels"
    elif isinstance(whole, PackedImages):
        sha.update(np.ascontiguousarray(whole.checksums()[rows], "<u8").tobytes())
        by = "checksums"
    else:
        sizes = _sizes(whole.places.take(pa.array(rows)), whole.root) if isinstance(whole, FileImages) else None
        contents, count = _some_contents(images, sizes)
        sha.update(contents if sizes is None else sizes.astype("<i8").tobytes() + contents)
        by = f"contents of {count:,}" + ("" if sizes is None else " and the size of each")
    return {"count": len(images), "table": fingerprint(images), "contents": sha.hexdigest(), "by": by}


def some_rows(images: Images) -> NDArray[np.int64]:
    """Images picked over the data set that are quickly read: `SOME` at most, of `CONTENT_BYTES`: int64 (m,)."""
    picked = permutation(len(images))[:SOME]
    whole, rows = images, picked
    while isinstance(whole, SomeImages):
        rows, whole = whole.rows[rows], whole.images
    if images.pixels is not None:
        sizes = np.full(len(picked), images.pixels[0].numel() * images.pixels.element_size())
    elif isinstance(whole, FileImages):
        sizes = _sizes(whole.places.take(pa.array(rows)), whole.root)
    else:
        return picked[:FEW]
    return picked[: max(FEW, int(np.searchsorted(np.cumsum(sizes), CONTENT_BYTES, side="right")))]


def _sizes(keys: pa.ChunkedArray, root: str) -> NDArray[np.int64]:
    """The size of each file below `root`, -1 where there is none: int64 (n,)."""

    def size(path: str) -> int:
        try:
            return os.stat(path).st_size  # noqa: PTH116 (Path costs more than the call)
        except OSError:
            return -1

    def sizes(rows: range) -> list[int]:
        some = keys.slice(rows.start, len(rows)).to_pylist()
        return [size(os.path.join(root, key)) for key in some]  # noqa: PTH118

    with ThreadPoolExecutor(thread_count()) as pool:
        found = [np.array(each, np.int64) for each in pool.map(sizes, stretches(len(keys), 4096))]
    return np.concatenate([np.empty(0, np.int64), *found])


def _some_contents(images: Images, sizes: NDArray[np.int64] | None) -> tuple[bytes, int]:
    """Checksums of as many images as `CONTENT_BYTES` hold, 8 bytes each, and how many these are."""
    order, sums, room = permutation(len(images)), [], CONTENT_BYTES
    for row in order.tolist():
        if room < (0 if sizes is None else sizes[row]):
            break
        try:
            content = images.content(row)
        except DataError:
            content = b""
        sums.append(hashlib.blake2b(content, digest_size=8).digest())
        room -= len(content)
    return b"".join(sums), len(sums)


def fingerprint(images: Images) -> str:
    """SHA-256, in hex, over the keys, labels and class names in their order; not over the pixels."""
    head = json.dumps([len(images), images.classes], ensure_ascii=True).encode()
    sha = hashlib.sha256(len(head).to_bytes(8, "little") + head)
    sha.update(np.ascontiguousarray(images.labels, "<i8").tobytes())
    for start in range(0, len(images), 65_536):  # in stretches: never a Python list of all keys
        keys = [key.encode() for key in images.keys.slice(start, 65_536).to_pylist()]
        sha.update(np.array([len(key) for key in keys], "<i8").tobytes())
        sha.update(b"".join(keys))
    return sha.hexdigest()
