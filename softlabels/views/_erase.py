"""Random erasing: a rectangle painted over."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.elementary import exp
from softlabels.core.philox import Words, philox
from softlabels.views._crops import PROPOSAL_BLOCKS, first_that_fits, propose
from softlabels.views._params import AreaBounds, Bounds, Boxes, Colour, Params, Probability, as_params, integers, rgb
from softlabels.views._pixels import erase


class RandomErasing(Part):
    """With `probability`, a rectangle whose area is a share of the image evenly from `scale` gets the colour `fill`.

    Zhong et al., "Random erasing data augmentation", 2020, by the rule of torchvision's RandomErasing: height / width
    is log-evenly from `ratio`; of ten attempts the first that is smaller than the image both ways counts, and if none
    is, nothing is erased. The default colour is the mean of ImageNet, which normalises to about 0. With the fill
    ``noise`` every value is drawn: normal once ImageNet's mean and deviation normalise it, but for what lies beyond
    black and white (timm's mode ``pixel``). Noise consists of pixels, so a view has another one at another size.
    """

    kind: Literal["random-erasing"] = "random-erasing"
    probability: Probability = 0.5
    scale: AreaBounds = (0.02, 0.33)
    ratio: Bounds = (0.3, 3.3)
    fill: Colour | Literal["noise"] = (124, 116, 104)

    shorthand: ClassVar[str] = "probability"

    @property
    def blocks(self) -> int:
        """Those of the rectangle, and one for noise."""
        return PROPOSAL_BLOCKS + (self.fill == "noise")

    def make_params(self, words: Words) -> Params:
        """`chosen` (n,) bool; `tall`, `wide` (n, 10): the attempts, in sides of the image; `place` (n, 2).

        With noise also `noise` uint64 (n,): what it is drawn from.
        """
        place, tall, wide, spare = propose(words[:, : 4 * PROPOSAL_BLOCKS], self.scale, self.ratio)
        own = {"noise": words[:, 4 * PROPOSAL_BLOCKS]} if self.fill == "noise" else {}
        return as_params(len(words), chosen=spare < self.probability, place=place, tall=tall, wide=wide, **own)

    def rectangles(self, params: Params, size: int) -> Boxes:
        """What is erased of images of `size`, all 0 where nothing is: (n, 4)."""
        tall, wide = np.rint(params["tall"] * size), np.rint(params["wide"] * size)
        found, (tall, wide) = first_that_fits((tall < size) & (wide < size), tall, wide)
        found &= params["chosen"]
        top, left = (integers(params["place"][:, i], size - side + 1) for i, side in enumerate((tall, wide)))
        return np.stack([top, left, tall.astype(np.int64), wide.astype(np.int64)], axis=1) * found[:, None]

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, H, W), those chosen with their rectangle painted over."""
        boxes = self.rectangles(params, images.shape[-1])
        if self.fill == "noise":
            for i in np.flatnonzero(boxes[:, 2] * boxes[:, 3]).tolist():
                top, left, tall, wide = boxes[i].tolist()
                levels = torch.from_numpy(noise_levels(params["noise"][i], tall, wide))
                images[i, :, top : top + tall, left : left + wide] = levels.permute(2, 0, 1)
            return images
        return erase(images, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), rgb(self.fill))


def noise_levels(word: np.uint64, height: int, width: int) -> NDArray[np.uint8]:
    """Levels of red, green and blue that are normal when they are normalised: uint8 (height, width, 3).

    Of 16 bits each, four of a Philox word, so that a pixel costs little more than its random bits.
    """
    count = 3 * height * width
    words = philox((word, 0), (np.arange(-(-count // 16), dtype=np.uint64), 0, 0, 0)).reshape(-1, 1)
    parts = (words >> np.array([0, 16, 32, 48], np.uint64)) & np.uint64(0xFFFF)
    drawn = parts.reshape(-1)[:count].reshape(height, width, 3).astype(np.int64)
    return _quantiles()[np.arange(3), drawn]


_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""By which ImageNet's images are normalised."""


@functools.cache
def _quantiles() -> NDArray[np.uint8]:
    """The level of each number of 16 bits in the order of levels: uint8 (3, 65536)."""
    edges = (np.arange(255) + 0.5) / 255
    rows = []
    for mean, deviation in zip(_MEAN, _DEVIATION, strict=True):
        ends = np.rint(normal_cdf((edges - mean) / deviation) * 65536).astype(np.int64)
        rows.append(np.repeat(np.arange(256), np.diff(ends, prepend=0, append=65536)).astype(np.uint8))
    return np.stack(rows)


def normal_cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of a normal distribution below `x`, which is at most 3 either way; made of + and * alone, as
    `core.elementary`.

    By the series of Marsaglia, "Evaluating the normal distribution", 2004: its terms have one sign.
    """
    total, term = x.copy(), x.copy()
    for odd in range(3, 121, 2):
        term = term * (x * x) / odd
        total = total + term
    return 0.5 + total * exp(-0.5 * (x * x)) * 0.3989422804014327
