"""Depths as whole numbers, in steps that widen with the depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def to_steps(depths: ArrayLike, deepest: ArrayLike, steps: int, knee: float) -> NDArray[np.int64]:
    """The nearest of the `steps` + 1 depths from 0 to `deepest`, equal steps of log(1 + depth / knee).

    Steps are even far above the knee and grow with the depth far below it, where probabilities are small.
    """
    reach = np.log1p(np.asarray(deepest, np.float64) / knee)
    place = np.log1p(np.asarray(depths, np.float64) / knee)
    share = np.divide(place, reach, out=np.zeros(np.broadcast_shapes(place.shape, reach.shape)), where=reach > 0)
    numbers: NDArray[np.float64] = np.rint(np.clip(share, 0.0, 1.0) * steps)
    return numbers.astype(np.int64)


def from_steps(numbers: ArrayLike, deepest: ArrayLike, steps: int, knee: float) -> NDArray[np.float64]:
    """The depths of such numbers."""
    reach = np.log1p(np.asarray(deepest, np.float64) / knee)
    return knee * np.expm1(np.asarray(numbers) * (reach / steps))
