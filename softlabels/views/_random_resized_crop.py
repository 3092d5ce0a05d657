"""Random resized crop: a box of random area and aspect ratio, resized to the frame."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from softlabels._philox import Words
from softlabels.config import Part
from softlabels.views._chance import Draws, records, whole_below
from softlabels.views._pixels import resized_boxes
from softlabels.views._proposals import BLOCKS, first, proposals
from softlabels.views._settings import Bounds, Shares
from softlabels.views._views import Frame


class RandomResizedCrop(Part):
    """A box whose area is a share of the image evenly from `scale` and whose width / height is log-evenly from `ratio`.

    Szegedy et al., "Going deeper with convolutions", 2014, section 6, by the rule of torchvision's RandomResizedCrop:
    ten attempts, of which the first that fits into the image counts; if none fits, the largest centred box whose
    ratio lies in range.
    """

    kind: Literal["random-resized-crop"] = "random-resized-crop"
    scale: Shares = (0.08, 1.0)
    ratio: Bounds = (3 / 4, 4 / 3)

    blocks: ClassVar[int] = BLOCKS

    def draw(self, words: Words) -> Draws:
        """`wide`, `tall` (n, 10): the attempts, in sides of a square image; `place` (n, 2): where the box lies."""
        drawn = proposals(words, self.scale, self.ratio)
        return records(len(words), place=drawn["place"], wide=drawn["one"], tall=drawn["other"])

    def boxes(self, draws: Draws, height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height and width of each view's box in source pixels: int64 (n, 4)."""
        side = np.sqrt(np.float64(height * width))
        tall, wide = np.rint(draws["tall"] * side), np.rint(draws["wide"] * side)
        fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
        found, (tall, wide) = first(fits, tall, wide)
        largest = self._largest(height, width)
        tall, wide = np.where(found, tall, largest[0]), np.where(found, wide, largest[1])
        place = np.where(found[:, None], draws["place"], 0.5)
        top, left = whole_below(place[:, 0], height - tall + found), whole_below(place[:, 1], width - wide + found)
        return np.stack([top, left, tall.astype(np.int64), wide.astype(np.int64)], axis=1)

    def pictures(self, images: Tensor, draws: Draws, frame: Frame) -> Tensor:
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size): the box is cut out first, then resized."""
        boxes = self.boxes(draws, *images.shape[-2:])
        return resized_boxes(images, boxes, frame.size, frame.interpolation)

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the largest centred box whose ratio is in range."""
        narrowest, widest = self.ratio
        if width < narrowest * height:
            return min(height, max(1, round(width / narrowest))), width
        if width > widest * height:
            return height, min(width, max(1, round(height * widest)))
        return height, width
