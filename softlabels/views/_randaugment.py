"""RandAugment."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, halves, records, whole_below
from softlabels.views._operations import CHOICE, Ranges, Style, operated, signed
from softlabels.views._settings import Colour


class RandAugment(Part):
    """`n` operations of fourteen, each equally likely, with strength `m` on a scale of 0 to 30.

    Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", 2020, with
    torchvision's ranges.
    """

    kind: Literal["randaugment"] = "randaugment"
    n: Annotated[int, Field(ge=1, le=8)] = 2
    m: Annotated[int, Field(ge=0)] = 9
    bins: Annotated[int, Field(ge=2)] = 31
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: Colour = 0

    shorthand: ClassVar[str] = "m"

    @model_validator(mode="after")
    def _within(self) -> Any:
        if self.m >= self.bins:
            raise ValueError(f"m is a strength from 0 to {self.bins - 1} (bins - 1)")
        return self

    @property
    def blocks(self) -> int:
        """Two numbers for each operation, eight in a block."""
        return (self.n + 3) // 4

    def draw(self, words: Words) -> Draws:
        """`operation` int8 (n, self.n): positions in OPERATIONS; `strength` (n, self.n), its sign drawn."""
        u = halves(words)
        operation = whole_below(u[:, 0 : 2 * self.n : 2], CHOICE)
        strength = Ranges().strengths(self.bins)[operation, self.m]
        strength = signed(operation, strength, u[:, 1 : 2 * self.n : 2])
        return records(len(words), operation=operation.astype(np.int8), strength=strength)

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S), operated on."""
        return operated(pictures, draws, Style(self.interpolation, self.fill))
