"""AutoAugment's found policies."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, halves, records, whole_below
from softlabels.views._operations import NAMES, Ranges, Style, operated, signed
from softlabels.views._settings import Colour

# A line is one sub-policy: operation, probability in tenths and strength in ninths, twice. "-" has no strength.
_POLICIES = {
    "imagenet": """
        posterize 4 8     rotate 6 9
        solarize 6 5      autocontrast 6 -
        equalize 8 -      equalize 6 -
        posterize 6 7     posterize 6 6
        equalize 4 -      solarize 2 4
        equalize 4 -      rotate 8 8
        solarize 6 3      equalize 6 -
        posterize 8 5     equalize 10 -
        rotate 2 3        solarize 6 8
        equalize 6 -      posterize 4 6
        rotate 8 8        colour 4 0
        rotate 4 9        equalize 6 -
        equalize 0 -      equalize 8 -
        invert 6 -        equalize 10 -
        colour 6 4        contrast 10 8
        rotate 8 8        colour 10 2
        colour 8 8        solarize 8 7
        sharpness 4 7     invert 6 -
        shear-x 6 5       equalize 10 -
        colour 4 0        equalize 6 -
        equalize 4 -      solarize 2 4
        solarize 6 5      autocontrast 6 -
        invert 6 -        equalize 10 -
        colour 6 4        contrast 10 8
        equalize 8 -      equalize 6 -
    """,
    "cifar10": """
        invert 1 -        contrast 2 6
        rotate 7 2        translate-x 3 9
        sharpness 8 1     sharpness 9 3
        shear-y 5 8       translate-y 7 9
        autocontrast 5 -  equalize 9 -
        shear-y 2 7       posterize 3 7
        colour 4 3        brightness 6 7
        sharpness 3 9     brightness 7 9
        equalize 6 -      equalize 5 -
        contrast 6 7      sharpness 6 5
        colour 7 7        translate-x 5 8
        equalize 3 -      autocontrast 4 -
        translate-y 4 3   sharpness 2 6
        brightness 9 6    colour 2 8
        solarize 5 2      invert 0 -
        equalize 2 -      autocontrast 6 -
        equalize 2 -      equalize 6 -
        colour 9 9        equalize 6 -
        autocontrast 8 -  solarize 2 8
        brightness 1 3    colour 7 0
        solarize 4 5      autocontrast 9 -
        translate-y 9 9   translate-y 7 9
        autocontrast 9 -  solarize 8 3
        equalize 8 -      invert 1 -
        translate-y 7 9   autocontrast 9 -
    """,
}


class AutoAugment(Part):
    """One of 25 pairs of operations, evenly drawn, each of the two done with its own probability.

    Cubuk et al., "AutoAugment: learning augmentation policies from data", 2019, tables 7 and 9, with torchvision's
    ranges.
    """

    kind: Literal["autoaugment"] = "autoaugment"
    policy: Literal["imagenet", "cifar10"] = "imagenet"
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: Colour = 0

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "policy"

    def draw(self, words: Words) -> Draws:
        """`operation` int8 (n, 2): positions in OPERATIONS, identity where left out; `strength` (n, 2), signed."""
        u = halves(words)
        operations, tenths, ninths = _table(self.policy)
        which = whole_below(u[:, 0], len(operations))
        operation = np.where(u[:, 1:3] < tenths[which] / 10, operations[which], NAMES.index("identity"))
        strength = Ranges().strengths(10)[operation, ninths[which]]
        strength = signed(operation, strength, u[:, 3:5])
        return records(len(words), operation=operation.astype(np.int8), strength=strength)

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S), operated on."""
        return operated(pictures, draws, Style(self.interpolation, self.fill))


@functools.cache
def _table(policy: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Positions in OPERATIONS, tenths of probability and ninths of strength: each (25, 2)."""
    cells = np.array(_POLICIES[policy].split()).reshape(-1, 2, 3)
    operations = np.array([[NAMES.index(name) for name in pair] for pair in cells[:, :, 0]])
    return operations, cells[:, :, 1].astype(np.int64), np.where(cells[:, :, 2] == "-", "0", cells[:, :, 2]).astype(int)
