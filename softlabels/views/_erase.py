"""Random erasing: a rectangle painted over."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._crops import PROPOSAL_BLOCKS, first_that_fits, propose
from softlabels.views._params import AreaBounds, Bounds, Boxes, Colour, Params, Probability, as_params, integers, rgb
from softlabels.views._pixels import erase


class RandomErasing(Part):
    """With `probability`, a rectangle whose area is a share of the image evenly from `scale` gets the colour `fill`.

    Zhong et al., "Random erasing data augmentation", 2020, by the rule of torchvision's RandomErasing: height / width
    is log-evenly from `ratio`; of ten attempts the first that is smaller than the image both ways counts, and if none
    is, nothing is erased. The default colour is the mean of ImageNet, which normalises to about 0.
    """

    kind: Literal["random-erasing"] = "random-erasing"
    probability: Probability = 0.5
    scale: AreaBounds = (0.02, 0.33)
    ratio: Bounds = (0.3, 3.3)
    fill: Colour = (124, 116, 104)

    blocks: ClassVar[int] = PROPOSAL_BLOCKS
    shorthand: ClassVar[str] = "probability"

    def make_params(self, words: Words) -> Params:
        """`chosen` (n,) bool; `tall`, `wide` (n, 10): the attempts, in sides of the image; `place` (n, 2)."""
        place, tall, wide, spare = propose(words, self.scale, self.ratio)
        return as_params(len(words), chosen=spare < self.probability, place=place, tall=tall, wide=wide)

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
        return erase(images, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), rgb(self.fill))
