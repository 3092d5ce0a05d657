"""What is made of random words, in numbers that every machine computes alike. A change here is a new recipe version."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.core.elementary import Reals, exp, log
from softlabels.core.philox import Words

Draws = NDArray[Any]
"""What one step drew for n views: a structured array (n,) with a named field per quantity."""


def halves(words: Words) -> Reals:
    """The upper and the lower 32 bits of each word as two numbers in [0, 1): (n, k) to (n, 2 k)."""
    both = np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=-1)
    return both.reshape(len(words), 2 * words.shape[1]).astype(np.float64) * 2.0**-32


def whole_below(u: Reals, counts: float | NDArray[Any]) -> NDArray[np.int64]:
    """Numbers `u` in [0, 1) as whole numbers 0..count-1, all equally likely."""
    return np.floor(u * counts).astype(np.int64)


def between(u: Reals, bounds: tuple[float, float]) -> Reals:
    """Numbers `u` in [0, 1) spread evenly over `bounds`."""
    low, high = bounds
    return low + u * (high - low)


def between_logs(u: Reals, bounds: tuple[float, float]) -> Reals:
    """Numbers `u` in [0, 1) spread over `bounds` so that their logarithms are even."""
    low, high = log(np.array(bounds))
    return exp(low + u * (high - low))


def records(n: int, **fields: NDArray[Any]) -> Draws:
    """A structured array (n,) of the named arrays, whose first axis is n."""
    made = np.empty(n, dtype=[(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    for name, values in fields.items():
        made[name] = values
    return made
