"""Telling data sets, and changed images, apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.datasets._images import Images, stretches, thread_count


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
