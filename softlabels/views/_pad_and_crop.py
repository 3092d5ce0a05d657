"""Pad and crop: a window of the image's own size, shifted by up to the padding."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torchvision.transforms.v2 import functional

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.errors import DataError
from softlabels.views._chance import Draws, halves, records, whole_below
from softlabels.views._pixels import resized, windows
from softlabels.views._settings import Colour, rgb
from softlabels.views._views import Frame


class PadAndCrop(Part):
    """The image padded on all sides, and of that a random square window as large as the image's shorter side.

    He et al., "Deep residual learning for image recognition", 2016, section 4.2 (4 pixels at 32). `padding` is a
    share of the shorter side (0.125) or, from 1 on, a number of source pixels. `fill` is a grey level, a colour,
    ``edge`` or ``reflect``.
    """

    kind: Literal["pad-and-crop"] = "pad-and-crop"
    padding: Annotated[float, Field(gt=0)] = 0.125
    fill: Colour | Literal["edge", "reflect"] = 0

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "padding"

    @field_validator("padding")
    @classmethod
    def _share_or_pixels(cls, padding: float) -> float:
        if padding >= 1 and padding != int(padding):
            raise ValueError("is a share below 1 or a whole number of pixels")
        return padding

    def draw(self, words: Words) -> Draws:
        """`place` (n, 2): where the window lies, from the top left (0) to the bottom right (1)."""
        return records(len(words), place=halves(words)[:, :2])

    def boxes(self, draws: Draws, height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height and width of each window in source pixels, padding beyond the edges: (n, 4)."""
        side, pad = min(height, width), self._pixels(height, width)
        room = np.array([height, width]) + 2 * pad - side + 1
        corner = whole_below(draws["place"], room) - pad
        return np.concatenate([corner, np.full_like(corner, side)], axis=1)

    def pictures(self, images: Tensor, draws: Draws, frame: Frame) -> Tensor:
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size), the whole batch at once.

        Raises:
            DataError: the image is too small to be reflected as far as the padding reaches.
        """
        height, width = images.shape[-2:]
        pad = self._pixels(height, width)
        top, left = self.boxes(draws, height, width)[:, :2].T
        if self.fill == "reflect" and pad >= min(height, width):
            raise DataError(f"an image of {height} x {width} cannot be reflected by {pad} pixels; choose less padding")
        if isinstance(self.fill, str):
            padded = functional.pad(images, [pad], padding_mode=self.fill)
        else:
            # One level for all channels takes a faster kernel than three.
            padded = functional.pad(images, [pad], fill=self.fill if isinstance(self.fill, int) else rgb(self.fill))
        shown = windows(padded, top + pad, left + pad, min(height, width))
        return resized(shown, frame.size, frame.size, frame.interpolation)

    def _pixels(self, height: int, width: int) -> int:
        return round(self.padding * min(height, width)) if self.padding < 1 else int(self.padding)
