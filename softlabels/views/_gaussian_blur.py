"""Gaussian blur."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.elementary import exp
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, Reals, between, halves, records
from softlabels.views._pixels import changed
from softlabels.views._settings import Bounds, Probability

_SIDE = 224


class GaussianBlur(Part):
    """A blur of a random standard deviation evenly from `sigma`, with `probability`.

    `sigma` is in pixels of a picture of 224 a side and grows with the picture; `reach` is the kernel's width as a share
    of the side (Chen et al., "A simple framework for contrastive learning", 2020, appendix A: a tenth).
    """

    kind: Literal["gaussian-blur"] = "gaussian-blur"
    sigma: Bounds = (0.1, 2.0)
    reach: Annotated[float, Field(gt=0, le=1)] = 0.1
    probability: Probability = 0.5

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "probability"

    def draw(self, words: Words) -> Draws:
        """`chosen` (n,) bool; `sigma` (n,), in sides of the picture."""
        u = halves(words)
        return records(len(words), chosen=u[:, 0] < self.probability, sigma=between(u[:, 1], self.sigma) / _SIDE)

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, H, W), those chosen blurred over edges that reflect."""
        side, chosen = pictures.shape[-1], draws["chosen"]
        reach = int(side * self.reach / 2)
        sigma = draws["sigma"][chosen] * side
        return changed(pictures, chosen, lambda some: blurred(some, sigma, reach)) if reach else pictures


def blurred(pictures: Tensor, sigma: Reals, reach: int) -> Tensor:
    """uint8 (n, 3, H, W) convolved with a Gaussian of `sigma` (n,) pixels, cut off beyond `reach` pixels.

    The two directions one after the other, each as a fixed sequence of float32 products and sums. A convolution from a
    library adds in an order of its own, takes ten times as long, and rounds a few pixels in 100,000 to the neighbouring
    level.
    """
    offsets = np.arange(reach + 1)
    weights = exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    whole = sum(2 * weights[:, offset] for offset in range(reach, 0, -1)) + weights[:, 0]
    factors = torch.from_numpy((weights / whole[:, None]).astype(np.float32))[:, :, None, None, None]
    shown = torch.nn.functional.pad(pictures.float(), (reach,) * 4, mode="reflect")
    for axis in (3, 2):
        length = shown.shape[axis] - 2 * reach
        total = shown.narrow(axis, reach, length) * factors[:, 0]
        for offset in range(1, reach + 1):
            pair = shown.narrow(axis, reach - offset, length) + shown.narrow(axis, reach + offset, length)
            total += pair.mul_(factors[:, offset])
        shown = total
    return shown.round_().to(torch.uint8)
