"""Philox4x64-10, vectorised: random words as a pure function of a key and a counter.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The words equal those of
``numpy.random.Philox(key=key, counter=counter - 1).random_raw()`` (numpy steps its counter before it draws), a stream
that numpy promises to keep; what is made of the words is our own arithmetic and versioned with the recipes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10


def philox(key: tuple[ArrayLike, ArrayLike], counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]) -> Words:
    """Four random words for each key and counter, whose parts broadcast: uint64 (..., 4)."""
    k0, k1, c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(part, np.uint64) for part in (*key, *counter)))
    with np.errstate(over="ignore"):
        for turn in range(_ROUNDS):
            if turn:
                k0, k1 = k0 + _W0, k1 + _W1
            high0, low0 = _multiply(c0, _M0)
            high1, low1 = _multiply(c2, _M1)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return np.stack([c0, c1, c2, c3], axis=-1)


def hash_keys(keys: Iterable[str]) -> Words:
    """The first 8 bytes of BLAKE2b of each key in UTF-8, little endian: uint64 (n,)."""
    digest = hashlib.blake2b
    joined = b"".join(digest(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def uniform(words: Words) -> NDArray[np.float64]:
    """The upper 53 bits of each word as a number in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, *stream: int) -> NDArray[np.int64]:
    """An order of 0..n-1 that depends on up to three stream numbers alone, the same on every machine and version."""
    a, b, c = (*stream, 0, 0, 0)[:3]
    blocks = np.arange((n + 3) // 4, dtype=np.uint64)
    words = philox((a, b), (blocks, c, 0, 0)).reshape(-1)[:n]
    return np.argsort(words, kind="stable").astype(np.int64)


def _multiply(a: Words, b: np.uint64) -> tuple[Words, Words]:
    """High and low words of the 128-bit products."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    low = a_low * b_low
    middle = a_high * b_low + (low >> _HALF)
    cross = (middle & _LOW) + a_low * b_high
    return a_high * b_high + (middle >> _HALF) + (cross >> _HALF), a * b
