"""Mirroring."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words, uniform
from softlabels.views._chance import Draws, records
from softlabels.views._pixels import changed
from softlabels.views._settings import Probability


class HorizontalFlip(Part):
    """The picture mirrored left to right, with `probability`."""

    kind: Literal["horizontal-flip"] = "horizontal-flip"
    probability: Probability = 0.5

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "probability"

    def draw(self, words: Words) -> Draws:
        """`flip` (n,) bool."""
        return records(len(words), flip=uniform(words[:, 0]) < self.probability)

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, H, W), those drawn mirrored."""
        return changed(pictures, draws["flip"], lambda chosen: chosen.flip(3))
