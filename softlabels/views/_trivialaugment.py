"""TrivialAugment Wide."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, halves, records, whole_below
from softlabels.views._operations import CHOICE, Ranges, Style, operated, signed
from softlabels.views._settings import Colour


class TrivialAugmentWide(Part):
    """One operation of fourteen at a random strength, both evenly drawn.

    Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", 2021, with torchvision's
    ranges. Translations go to 32 pixels of a picture of `side` pixels and scale with the picture; for CIFAR's 32-pixel
    pictures the paper's 32 pixels mean `side` 32.
    """

    kind: Literal["trivialaugment"] = "trivialaugment"
    bins: Annotated[int, Field(ge=2)] = 31
    side: Annotated[int, Field(ge=1)] = 224
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: Colour = 0

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "side"

    def draw(self, words: Words) -> Draws:
        """`operation` int8 (n, 1): positions in OPERATIONS; `strength` (n, 1), its sign drawn."""
        u = halves(words)
        operation = whole_below(u[:, :1], CHOICE)
        wide = Ranges(shear=0.99, translate=32 / self.side, rotate=135.0, blend=0.99, bits=6)
        strength = wide.strengths(self.bins)[operation, whole_below(u[:, 1:2], self.bins)]
        strength = signed(operation, strength, u[:, 2:3])
        return records(len(words), operation=operation.astype(np.int8), strength=strength)

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S), operated on."""
        return operated(pictures, draws, Style(self.interpolation, self.fill))
