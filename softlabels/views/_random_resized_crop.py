"""Random resized crop: a box of random area and aspect ratio, resized to the frame."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, Reals, records, whole_below
from softlabels.views._pixels import resized_boxes
from softlabels.views._proposals import BLOCKS, first, proposals
from softlabels.views._settings import Bounds, Shares
from softlabels.views._views import Frame, Sides


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

    def boxes(self, draws: Draws, height: Sides, width: Sides) -> NDArray[np.int64]:
        """Top, left, height and width of each view's box in source pixels: int64 (n, 4)."""
        height, width = np.asarray(height, np.int64), np.asarray(width, np.int64)
        side = np.sqrt((height * width).astype(np.float64))[..., None]
        tall, wide = np.rint(draws["tall"] * side), np.rint(draws["wide"] * side)
        fits = (tall > 0) & (tall <= height[..., None]) & (wide > 0) & (wide <= width[..., None])
        found, (tall, wide) = first(fits, tall, wide)
        largest = self._largest(height, width)
        tall, wide = np.where(found, tall, largest[0]), np.where(found, wide, largest[1])
        place = np.where(found[:, None], draws["place"], 0.5)
        top, left = whole_below(place[:, 0], height - tall + found), whole_below(place[:, 1], width - wide + found)
        return np.stack([top, left, tall.astype(np.int64), wide.astype(np.int64)], axis=1)

    def pictures(self, images: Tensor, draws: Draws, frame: Frame) -> Tensor:
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size): the box is cut out first, then resized."""
        return self.cropped(images, self.boxes(draws, *images.shape[-2:]), frame)

    def cropped(self, images: Tensor, boxes: NDArray[np.int64], frame: Frame, out: Tensor | None = None) -> Tensor:
        """Those boxes (n, 4) of uint8 (n, 3, H, W), resized: uint8 (n, 3, size, size), in `out` where it is given."""
        return resized_boxes(images, boxes, frame.size, frame.interpolation, out)

    def _largest(self, height: NDArray[np.int64], width: NDArray[np.int64]) -> tuple[Reals, Reals]:
        """Height and width of the largest centred box whose ratio is in range."""
        narrowest, widest = self.ratio
        tall = np.minimum(height, np.maximum(1, np.rint(width / narrowest)))
        wide = np.minimum(width, np.maximum(1, np.rint(height * widest)))
        return np.where(width < narrowest * height, tall, height), np.where(width > widest * height, wide, width)
