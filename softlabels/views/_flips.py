"""Flips."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from softlabels.views._params import Probability, RandomTransform


class HorizontalFlip(RandomTransform):
    """The image mirrored left to right, with `probability`."""

    kind: Literal["horizontal-flip"] = "horizontal-flip"
    probability: Probability = 0.5

    field: ClassVar[str] = "flip"

    def transform(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), mirrored."""
        return images.flip(3)


class VerticalFlip(RandomTransform):
    """The image turned upside down, with `probability`: for images without an upright, as from above."""

    kind: Literal["vertical-flip"] = "vertical-flip"
    probability: Probability = 0.5

    field: ClassVar[str] = "flip"

    def transform(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), turned upside down."""
        return images.flip(2)
