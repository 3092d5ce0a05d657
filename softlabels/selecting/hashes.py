"""Perceptual hashes: 64 bits of what an image looks like, which hardly change when it is resized or compressed anew.

`dct` are the signs of the lowest frequencies against their median (Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010); `differences` say where an image becomes brighter to the right (Krawetz, "Kind
of like that", 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 32
"""Side of the grey images of which hashes are made."""

_LOW = 8
"""Frequencies of each direction."""

_PLAIN = 4.0
"""Standard deviation of grey levels, of 255, below which an image has nothing to be known by."""

_AT_ONCE = 1 << 22
"""Pairs of hashes that are compared at once."""

Bits = NDArray[np.uint64]


@dataclass(frozen=True)
class Hashes:
    """Of n images `dct` and `differences`, uint64 (n,) each, and which are `plain`, bool (n,): one colour or nearly."""

    dct: Bits
    differences: Bits
    plain: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.dct)

    @staticmethod
    def of(grey: Tensor) -> Hashes:
        """The hashes of grey images, float32 (n, SIDE, SIDE), as `thumbnails` makes them."""
        waves = _cosines()
        low = (waves @ grey.double() @ waves.T).flatten(1)
        low[:, 0] = -math.inf  # the mean grey level says nothing of what an image shows
        above = low > low[:, 1:].median(1, keepdim=True).values
        small = interpolate(grey[:, None], (_LOW, _LOW + 1), mode="bilinear", antialias=True)[:, 0]
        rises = (small[:, :, 1:] > small[:, :, :-1]).flatten(1)
        plain = grey.flatten(1).std(1, correction=0) < _PLAIN
        return Hashes(_packed(above), _packed(rises), plain.numpy())

    @staticmethod
    def joined(parts: list[Hashes]) -> Hashes:
        """The hashes of all, one after the other."""
        return Hashes(
            np.concatenate([each.dct for each in parts]),
            np.concatenate([each.differences for each in parts]),
            np.concatenate([each.plain for each in parts]),
        )


def thumbnails(images: Tensor) -> Tensor:
    """uint8 (n, 3, H, W) as grey images, float32 (n, SIDE, SIDE), squeezed to a square."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (images.float() * weights).sum(1, keepdim=True)
    return interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]


def near(some: Hashes, others: Hashes, most: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Bits]]:
    """The pairs of `some` and `others` of which both hashes differ in at most `most` bits, piece by piece.

    Gives the places in `some` and in `others` and the mean of the two distances, rounded up, (m,) each. Plain images
    are near nothing.
    """
    step = max(1, _AT_ONCE // max(len(others), 1))
    for start in range(0, len(some), step):
        part = slice(start, start + step)
        distance = np.bitwise_count(some.dct[part, None] ^ others.dct[None])
        here, there = np.nonzero(distance <= most)
        more = np.bitwise_count(some.differences[part][here] ^ others.differences[there])
        kept = (more <= most) & ~some.plain[part][here] & ~others.plain[there]
        both = distance[here, there][kept].astype(np.uint64) + more[kept]
        yield here[kept] + start, there[kept], (both + 1) // 2


def _cosines() -> Tensor:
    """The lowest frequencies of the type-II DCT of `SIDE` values: float64 (_LOW, SIDE)."""
    frequency, place = torch.arange(_LOW).double()[:, None], torch.arange(SIDE).double()[None]
    return torch.cos(math.pi * frequency * (2 * place + 1) / (2 * SIDE))


def _packed(bits: Tensor) -> Bits:
    """bool (n, 64) as uint64 (n,)."""
    found: Bits = np.packbits(bits.numpy(), axis=1).view("<u8")[:, 0].astype(np.uint64)
    return found
