"""The clean view: shorter side resized, centre cut out. Nothing is drawn."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, records
from softlabels.views._pixels import centre, resized
from softlabels.views._views import Frame


class ResizeCentreCrop(Part):
    """What models are evaluated on: the frame says to what the shorter side is resized before its centre is cut out."""

    kind: Literal["resize-centre-crop"] = "resize-centre-crop"
    blocks: ClassVar[int] = 0

    def draw(self, words: Words) -> Draws:
        """Nothing: records without fields, (n,)."""
        return records(len(words))

    def boxes(self, draws: Draws, height: int, width: int) -> NDArray[np.int64]:
        """The whole image, which the resize reads: (n, 4)."""
        return np.tile(np.array([0, 0, height, width]), (len(draws), 1))

    def pictures(self, images: Tensor, draws: Draws, frame: Frame) -> Tensor:  # noqa: ARG002
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size), by torchvision's rule for sizes and offsets."""
        height, width = images.shape[-2:]
        short, long = frame.shorter_side, int(frame.shorter_side * max(height, width) / min(height, width))
        if frame.crop == "squash":
            long = short
        height, width = (short, long) if height <= width else (long, short)
        shown = resized(images, height, width, frame.interpolation)
        if min(height, width) < frame.size:
            across, down = max(frame.size - width, 0), max(frame.size - height, 0)
            shown = pad(shown, (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2))
            height, width = shown.shape[-2:]
        top, left = centre(height, frame.size), centre(width, frame.size)
        return shown[:, :, top : top + frame.size, left : left + frame.size].clone()
