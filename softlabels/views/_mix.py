"""Mixup and cutmix: the view of an image mixed with that of a partner, which is drawn per image."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.elementary import Reals, cos_of_turns, exp, log
from softlabels.core.philox import Words, uniform
from softlabels.views._params import Params, Probability, as_params, integers, uniform_pairs
from softlabels.views._pixels import blank_like, paste

Alpha = Annotated[float, Field(ge=0.01, le=100)]

_WHOLE = 1 << 16
_FLOATS_AT_ONCE = 1 << 18


class DrawnMix(Part):
    """Steps that mix with `probability`; the parameters of all have `chosen`, `partner` and `share`."""

    probability: Probability = 1.0

    blocks: ClassVar[int] = 1

    def partners(self, params: Params, pool: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `pool` images each view is mixed with, each equally likely; -1 for none: (n,)."""
        return np.where(params["chosen"], integers(params["partner"], pool), -1)

    def _drawn(self, words: Words) -> dict[str, NDArray[Any]]:
        """What the steps make their parameters of.

        `chosen` (n,) bool: whether the view is mixed at all; `partner` (n,): where in the pool the partner stands, in
        [0, 1); `place` (n, 2): the centre of a box, down and across; `first`, `second`, `third` (n,): in [0, 1).
        """
        u = uniform_pairs(words[:, 1:])
        return {
            "partner": uniform(words[:, 0]),
            "first": u[:, 0],
            "second": u[:, 1],
            "chosen": u[:, 2] < self.probability,
            "third": u[:, 3],
            "place": u[:, 4:6],
        }


class MixUp(DrawnMix):
    """With `probability`, share * view + (1 - share) * partner's view, where share is Beta(alpha, alpha).

    Zhang et al., "mixup: beyond empirical risk minimization", 2018.
    """

    kind: Literal["mixup"] = "mixup"
    alpha: Alpha = 0.2

    shorthand: ClassVar[str] = "alpha"

    def make_params(self, words: Words) -> Params:
        """`chosen` (n,) bool; `partner` (n,), in [0, 1) of the pool; `share` (n,), the image's own."""
        drawn = self._drawn(words)
        share = beta(drawn["first"], drawn["second"], self.alpha)
        return as_params(len(words), chosen=drawn["chosen"], partner=drawn["partner"], share=share)

    def shares(self, params: Params, size: int) -> Reals:  # noqa: ARG002
        """The share of each view that is the image's own: (n,)."""
        return _own_share(params)

    def mix(self, images: Tensor, partners: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        return blend(images, partners, _own_share(params))


class CutMix(DrawnMix):
    """With `probability`, a box of the view filled from the partner's; its area is 1 - Beta(alpha, alpha).

    Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features", 2019.
    """

    kind: Literal["cutmix"] = "cutmix"
    alpha: Alpha = 1.0

    shorthand: ClassVar[str] = "alpha"

    def make_params(self, words: Words) -> Params:
        """`chosen` (n,) bool; `partner` (n,), in [0, 1) of the pool; `share` (n,); `place` (n, 2), the box's centre."""
        drawn = self._drawn(words)
        share, place = beta(drawn["first"], drawn["second"], self.alpha), drawn["place"]
        return as_params(len(words), chosen=drawn["chosen"], partner=drawn["partner"], share=share, place=place)

    def shares(self, params: Params, size: int) -> Reals:
        """The share of each view of `size` that is the image's own, after the box is cut off at edges: (n,)."""
        return area_outside(cut_edges(params["place"], _own_share(params), size), size)

    def mix(self, images: Tensor, partners: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        return paste(images, partners, cut_edges(params["place"], _own_share(params), images.shape[-1]))


class MixUpOrCutMix(DrawnMix):
    """With `probability`, cutmix with chance `switch` and mixup otherwise, each with its own alpha, view by view.

    The usual pair of vision transformers' training (Touvron et al., "Training data-efficient image transformers",
    2021, table 9).
    """

    kind: Literal["mixup-or-cutmix"] = "mixup-or-cutmix"
    mixup: Alpha = 0.8
    cutmix: Alpha = 1.0
    switch: Probability = 0.5

    shorthand: ClassVar[str] = "switch"

    def make_params(self, words: Words) -> Params:
        """`chosen`, `cut` (n,) bool; `partner`, `share` (n,); `place` (n, 2), the centre of the box."""
        drawn = self._drawn(words)
        cut = drawn["third"] < self.switch
        share = beta(drawn["first"], drawn["second"], np.where(cut, self.cutmix, self.mixup))
        chosen, partner, place = drawn["chosen"], drawn["partner"], drawn["place"]
        return as_params(len(words), chosen=chosen, cut=cut, partner=partner, share=share, place=place)

    def shares(self, params: Params, size: int) -> Reals:
        """The share of each view of `size` that is the image's own: (n,)."""
        blended, cut = self._two(params)
        return np.where(params["cut"], area_outside(cut_edges(params["place"], cut, size), size), blended)

    def mix(self, images: Tensor, partners: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        blended, cut = self._two(params)
        # A share of 1 leaves an image as it is, so each view goes through one of the two unchanged.
        edges = cut_edges(params["place"], cut, images.shape[-1])
        return paste(blend(images, partners, blended), partners, edges)

    def _two(self, params: Params) -> tuple[Reals, Reals]:
        """The shares for the blend and for the cut, 1 where the other is done or neither."""
        share = _own_share(params)
        return np.where(params["cut"], 1.0, share), np.where(params["cut"], share, 1.0)


def _own_share(params: Params) -> Reals:
    """The share of each view that is the image's own, 1 where it is not mixed."""
    return np.where(params["chosen"], params["share"], 1.0)


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


def blend(images: Tensor, partners: Tensor, shares: Reals) -> Tensor:
    """share * image + (1 - share) * partner, rounded half up: uint8 (n, 3, S, S), exact anywhere.

    Shares are taken down to steps of 2**-16. So no sum has more than 8 bits before and 16 behind the point, which are
    all that a float32 has room for: nothing is rounded before the end.
    """
    steps = torch.from_numpy(np.floor(shares * _WHOLE).astype(np.float32) / np.float32(_WHOLE))
    own, made = steps[:, None, None, None], blank_like(images)
    # As many at once as stay in a processor's cache while they are floats.
    some = max(1, _FLOATS_AT_ONCE // max(1, images[:1].numel()))
    for at in range(0, len(images), some):
        here = slice(at, at + some)
        theirs = partners[here].to(torch.float32)
        mixed = (images[here].to(torch.float32) - theirs).mul_(own[here]).add_(theirs).add_(0.5)
        made[here] = mixed.to(torch.uint8)
    return made


def cut_edges(places: Reals, shares: Reals, size: int) -> NDArray[np.int64]:
    """Top, left, bottom and right of the box that the partner fills in views of `size`: (n, 4).

    A box of area 1 - share around a random centre, cut off at the edges (Yun et al., "CutMix", 2019, equation 2).
    """
    half = integers(0.5 * np.sqrt(1.0 - shares), size)[:, None]
    centres = integers(places, size)
    return np.concatenate([centres - half, centres + half], axis=1).clip(0, size)


def area_outside(edges: NDArray[np.int64], size: int) -> Reals:
    """The share of a view of `size` that the box of these edges leaves: (n,)."""
    return 1.0 - (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]) / size**2
