"""Bright pixels inverted."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from torchvision.transforms.v2 import functional

from softlabels.core.config import Part
from softlabels.core.philox import Words, uniform
from softlabels.views._chance import Draws, records
from softlabels.views._pixels import changed
from softlabels.views._settings import Level, Probability


class Solarize(Part):
    """Every level from `threshold` on inverted, with `probability`."""

    kind: Literal["solarize"] = "solarize"
    threshold: Level = 128
    probability: Probability = 0.2

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "probability"

    def draw(self, words: Words) -> Draws:
        """`chosen` (n,) bool."""
        return records(len(words), chosen=uniform(words[:, 0]) < self.probability)

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, H, W), those chosen solarized."""
        return changed(pictures, draws["chosen"], lambda some: functional.solarize(some, float(self.threshold)))
