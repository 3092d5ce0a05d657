"""How far two answers of one teacher may lie apart, and what only its pictures may decide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDING = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2, "device": 3e-2}
"""How far logits of one network and picture lie apart when they are computed again, in standard deviations of a row:
in fp32, also on another kind of device (where TF32 has the fraction of fp16); in mixed precision; and of pictures that
an earlier version rendered on a GPU. Two to three times what was measured; bilinear in the place of bicubic pixels
moves them by 6e-2."""

_HALVES = 3.0
"""How many times `ROUNDING` a logit may change on average when its batch is cut in two."""


def spread_of(logits: Tensor) -> Tensor:
    """In what rounding is measured, per row (n, 1): the deviation over the classes, and a hundredth of the largest."""
    return logits.std(-1, correction=0, keepdim=True) + 0.01 * logits.abs().amax(-1, keepdim=True)


def distance(some: Tensor, others: Tensor) -> float:
    """How far logits (n, classes) lie from others, as `spread_of` measures: the root of the mean square.

    A constant per row counts for nothing.
    """
    change = (others.cpu() - some.cpu()).double()
    change = change - change.mean(-1, keepdim=True)
    return (change / spread_of(some.cpu().double()).clamp_min(1e-30)).square().mean().sqrt().item()


def dependence_on_neighbours(ask: Callable[[Tensor], Tensor], pictures: Tensor, logits: Tensor) -> float:
    """The `distance` of a batch's logits from what is said of it when it is cut in two; 0 of a single picture."""
    if len(pictures) < 2:
        return 0.0
    middle = len(pictures) // 2
    return distance(
        logits, torch.cat([ask(half.contiguous()).cpu() for half in (pictures[:middle], pictures[middle:])])
    )


def is_rounding(apart: float, rounding: float) -> bool:
    """Whether a `distance` is no more than rounding."""
    return apart <= _HALVES * rounding
