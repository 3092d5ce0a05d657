"""Random erasing: a rectangle painted over."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, records, whole_below
from softlabels.views._proposals import BLOCKS, first, proposals
from softlabels.views._settings import Bounds, Colour, Probability, Shares, rgb


class RandomErasing(Part):
    """With `probability`, a rectangle whose area is a share of the picture evenly from `scale` gets the colour `fill`.

    Zhong et al., "Random erasing data augmentation", 2020, by the rule of torchvision's RandomErasing: height / width
    is log-evenly from `ratio`; of ten attempts the first that is smaller than the picture both ways counts, and if
    none is, nothing is erased. The default colour is the mean of ImageNet, which normalises to about 0.
    """

    kind: Literal["random-erasing"] = "random-erasing"
    probability: Probability = 0.5
    scale: Shares = (0.02, 0.33)
    ratio: Bounds = (0.3, 3.3)
    fill: Colour = (124, 116, 104)

    blocks: ClassVar[int] = BLOCKS
    shorthand: ClassVar[str] = "probability"

    def draw(self, words: Words) -> Draws:
        """`chosen` (n,) bool; `tall`, `wide` (n, 10): the attempts, in sides of the picture; `place` (n, 2)."""
        drawn = proposals(words, self.scale, self.ratio)
        chosen = drawn["spare"] < self.probability
        return records(len(words), chosen=chosen, place=drawn["place"], tall=drawn["one"], wide=drawn["other"])

    def rectangles(self, draws: Draws, size: int) -> NDArray[np.int64]:
        """Top, left, height and width of what is erased of pictures of `size`, all 0 where nothing is: (n, 4)."""
        tall, wide = np.rint(draws["tall"] * size), np.rint(draws["wide"] * size)
        found, (tall, wide) = first((tall < size) & (wide < size), tall, wide)
        found &= draws["chosen"]
        top, left = (whole_below(draws["place"][:, i], size - side + 1) for i, side in enumerate((tall, wide)))
        return np.stack([top, left, tall.astype(np.int64), wide.astype(np.int64)], axis=1) * found[:, None]

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, H, W), those chosen with their rectangle painted over."""
        colour = torch.tensor(rgb(self.fill), dtype=torch.uint8)[:, None, None]
        rectangles = self.rectangles(draws, pictures.shape[-1])
        for i in np.flatnonzero(rectangles[:, 2] * rectangles[:, 3]):
            top, left, height, width = rectangles[i].tolist()
            pictures[i, :, top : top + height, left : left + width] = colour
        return pictures
