"""Encoding on the GPU that the logits are on, byte for byte as on the CPU.

Differences, comparisons and the order of classes are the same on both. Logarithms, exponentials and sums differ in
their last bits; where that could move a stored number, the row is in doubt, and the CPU encodes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_AT_ONCE = 1 << 24
"""Logits that are encoded together, so that what the codecs compute in float64 takes some hundred megabytes at most."""

_TINY = 1e-11
"""Relative difference between two float64 computations of a softmax, at most; far above what it is."""


def stays(logits: Tensor) -> bool:
    """Whether these logits are encoded where they are: on a GPU that has float64."""
    return logits.device.type == "cuda"


def encode_on_gpu(
    rows: Tensor,
    there: Callable[[Tensor, slice], tuple[NDArray[Any], NDArray[np.bool_]]],
    here: Callable[[Tensor, NDArray[np.int64]], NDArray[Any]],
) -> NDArray[Any]:
    """Records of `rows` (n, classes) that are on a GPU.

    Args:
        there: of some rows and their place, their records and which of them are in doubt, bool (rows,).
        here: of some rows on the CPU and their numbers, their records.
    """
    step = max(1, _AT_ONCE // rows.shape[1])
    made = []
    for start in range(0, max(len(rows), 1), step):
        part = slice(start, start + step)
        record, doubtful = there(rows[part], part)
        numbers = np.flatnonzero(doubtful)
        if len(numbers):
            record[numbers] = here(rows[part][torch.from_numpy(numbers).to(rows.device)].cpu(), start + numbers)
        made.append(record)
    return made[0] if len(made) == 1 else np.concatenate(made)


def rounded(
    values: NDArray[np.float64], kind: np.dtype, change: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray
) -> tuple[NDArray[Any], NDArray[Any]]:
    """`change(values)` as `kind`, and where another computation of `values` might round otherwise, both (n, k)."""
    low, high = (change(values * factor).astype(kind) for factor in (1.0 - _TINY, 1.0 + _TINY))
    raw = np.dtype(f"u{kind.itemsize}")
    return low, low.view(raw) != high.view(raw)


def nudged(values: Tensor) -> tuple[Tensor, Tensor]:
    """Positive float64 `values`, a little smaller and a little larger than another computation may give them."""
    return values * (1.0 - _TINY), values * (1.0 + _TINY)
