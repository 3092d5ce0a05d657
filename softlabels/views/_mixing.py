"""What mixup and cutmix share: the draw of a partner and of a share, and the two ways to put pictures together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.elementary import cos_of_turns, exp, log
from softlabels.core.philox import Words, uniform
from softlabels.views._chance import Draws, Reals, halves, whole_below
from softlabels.views._pixels import alike

BLOCKS = 1
_WHOLE = 1 << 16
_FLOATS_AT_ONCE = 1 << 18


def drawn(words: Words, probability: float) -> dict[str, NDArray[Any]]:
    """The fields of a draw from (n, 4) words.

    `chosen` (n,) bool: whether the view is mixed at all; `partner` (n,): where in the population the partner stands,
    in [0, 1); `place` (n, 2): the centre of a box, down and across; `first`, `second`, `third` (n,): for the share.
    """
    u = halves(words[:, 1:])
    return {
        "partner": uniform(words[:, 0]),
        "first": u[:, 0],
        "second": u[:, 1],
        "chosen": u[:, 2] < probability,
        "third": u[:, 3],
        "place": u[:, 4:6],
    }


def beta(first: Reals, second: Reals, alpha: Reals | float) -> Reals:
    """Two numbers in [0, 1) as one that is Beta(alpha, alpha) distributed, in steps of 2**-16.

    By way of Student's t (Bailey, "Polar generation of random variates with the t-distribution", 1994), of which it
    is a function (Devroye, "Random variate generation in one line of code", 1996); nothing is ever rejected.
    """
    with np.errstate(divide="ignore", over="ignore"):
        radius = exp(-log(first + 2.0**-33) / alpha) - 1.0
        cosine = cos_of_turns(second)
        share = 0.5 + np.copysign(0.5, cosine) / np.sqrt(1.0 + 1.0 / (radius * cosine * cosine))
    return np.rint(share * _WHOLE) / _WHOLE


def blended(pictures: Tensor, partners: Tensor, shares: Reals) -> Tensor:
    """share * picture + (1 - share) * partner, rounded half up: uint8 (n, 3, S, S), exact anywhere.

    Shares are taken down to steps of 2**-16. So no sum has more than 8 bits before and 16 behind the point, which are
    all that a float32 has room for: nothing is rounded before the end.
    """
    steps = torch.from_numpy(np.floor(shares * _WHOLE).astype(np.float32) / np.float32(_WHOLE))
    own, made = steps[:, None, None, None], alike(pictures)
    # As many at once as stay in a processor's cache while they are floats.
    some = max(1, _FLOATS_AT_ONCE // max(1, pictures[:1].numel()))
    for at in range(0, len(pictures), some):
        here = slice(at, at + some)
        theirs = partners[here].to(torch.float32)
        mixed = (pictures[here].to(torch.float32) - theirs).mul_(own[here]).add_(theirs).add_(0.5)
        made[here] = mixed.to(torch.uint8)
    return made


def cut_boxes(places: Reals, shares: Reals, size: int) -> NDArray[np.int64]:
    """Top, left, bottom and right of the box that the partner fills in pictures of `size`: int64 (n, 4).

    A box of area 1 - share around a random centre, cut off at the edges (Yun et al., "CutMix", 2019, equation 2).
    """
    half = whole_below(0.5 * np.sqrt(1.0 - shares), size)[:, None]
    centres = whole_below(places, size)
    return np.concatenate([centres - half, centres + half], axis=1).clip(0, size)


def pasted(pictures: Tensor, partners: Tensor, boxes: NDArray[np.int64]) -> Tensor:
    """The pictures, each with its box filled from its partner: uint8 (n, 3, S, S)."""
    made = alike(pictures).copy_(pictures)
    for i in np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])):
        top, left, bottom, right = boxes[i].tolist()
        made[i, :, top:bottom, left:right] = partners[i, :, top:bottom, left:right]
    return made


def left_over(boxes: NDArray[np.int64], size: int) -> Reals:
    """The share of a picture of `size` that its box leaves: (n,)."""
    return 1.0 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / size**2


def where_chosen(draws: Draws, shares: Reals) -> Reals:
    """The shares, and 1 for views that are not mixed."""
    return np.where(draws["chosen"], shares, 1.0)
