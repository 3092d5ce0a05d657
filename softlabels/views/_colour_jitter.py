"""Colour jitter: brightness, contrast, saturation and hue by random factors, in random order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, between, halves, records
from softlabels.views._pixels import contrasted
from softlabels.views._settings import Probability

_ADJUST: tuple[Callable[[Tensor, float], Tensor], ...] = (
    functional.adjust_brightness,
    contrasted,
    functional.adjust_saturation,
    functional.adjust_hue,
)


class ColourJitter(Part):
    """Factors evenly from 1 - x to 1 + x (hue: turns from -x to x), in a random order, with `probability`.

    As torchvision's ColorJitter; a setting of 0 leaves its adjustment out. Hue costs more than all the rest.
    """

    kind: Literal["colour-jitter"] = "colour-jitter"
    brightness: Annotated[float, Field(ge=0)] = 0.4
    contrast: Annotated[float, Field(ge=0)] = 0.4
    saturation: Annotated[float, Field(ge=0)] = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    probability: Probability = 1.0

    blocks: ClassVar[int] = 2

    def draw(self, words: Words) -> Draws:
        """`chosen` (n,) bool; `order` (n, 4): which comes first, ...; `factors` (n, 4), by brightness, ..., hue."""
        u = halves(words)
        factors = np.stack([between(u[:, 4 + i], bounds) for i, bounds in enumerate(self._bounds())], axis=1)
        order = np.argsort(u[:, :4], axis=1, kind="stable").astype(np.int8)
        return records(len(words), chosen=u[:, 8] < self.probability, order=order, factors=factors)

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, H, W), those chosen adjusted."""
        wanted = [width > 0 for width in (self.brightness, self.contrast, self.saturation, self.hue)]
        for i in np.flatnonzero(draws["chosen"]):
            picture = pictures[i]
            for which in draws["order"][i]:
                if wanted[which]:
                    picture = _ADJUST[which](picture, float(draws["factors"][i, which]))
            pictures[i] = picture
        return pictures

    def _bounds(self) -> list[tuple[float, float]]:
        around_one = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        return [*around_one, (-self.hue, self.hue)]
