"""The fourteen operations of the automatic augmentations, and Invert, each with a strength that has no resolution.

Cubuk et al., "AutoAugment: learning augmentation policies from data", 2019, table 6, as torchvision computes them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from softlabels.views._chance import Draws
from softlabels.views._pixels import changed, contrasted
from softlabels.views._settings import Colour, rgb


@dataclass(frozen=True)
class Style:
    """How operations that move pixels look between them and beyond the edge."""

    interpolation: str
    fill: Colour

    def kernel(self) -> dict[str, Any]:
        """The same as arguments of torchvision's kernels; black is their None, which is faster."""
        fill = [float(level) for level in rgb(self.fill)] if self.fill else None
        return {"interpolation": InterpolationMode(self.interpolation), "fill": fill}


@dataclass(frozen=True)
class Ranges:
    """How strong the operations get: shear as a slope, translation in sides of the picture, rotation in degrees.

    `blend` is how far the factors of brightness, colour, contrast and sharpness get from 1; `bits` is how many of the
    8 bits of a level posterize takes away.
    """

    shear: float = 0.3
    translate: float = 150 / 331
    rotate: float = 30.0
    blend: float = 0.9
    bits: int = 4

    @functools.cache  # noqa: B019 - a frozen value; a program has as many as its recipes have steps
    def strengths(self, bins: int) -> NDArray[np.float64]:
        """The strength of each operation at each of the evenly spaced bins: (operations, bins)."""
        ends = {
            "identity": (0.0, 0.0),
            "shear-x": (0.0, self.shear),
            "shear-y": (0.0, self.shear),
            "translate-x": (0.0, self.translate),
            "translate-y": (0.0, self.translate),
            "rotate": (0.0, self.rotate),
            "brightness": (0.0, self.blend),
            "colour": (0.0, self.blend),
            "contrast": (0.0, self.blend),
            "sharpness": (0.0, self.blend),
            "posterize": (8.0, 8.0 - self.bits),
            "solarize": (1.0, 0.0),
            "autocontrast": (0.0, 0.0),
            "equalize": (0.0, 0.0),
            "invert": (0.0, 0.0),
        }
        steps = np.arange(bins) / (bins - 1)
        made = np.array([low + (high - low) * steps for low, high in (ends[name] for name in OPERATIONS)])
        made[NAMES.index("posterize")] = np.rint(made[NAMES.index("posterize")])
        return made


def _moved(picture: Tensor, style: Style, *, across: float = 0.0, down: float = 0.0) -> Tensor:
    side = picture.shape[-1]
    pixels = [int(across * side), int(down * side)]
    return functional.affine(picture, angle=0.0, translate=pixels, scale=1.0, shear=[0.0, 0.0], **style.kernel())


def _sheared(picture: Tensor, style: Style, *, across: float = 0.0, down: float = 0.0) -> Tensor:
    # The kernel wants degrees; the papers give the slope.
    degrees = [math.degrees(math.atan(slope)) for slope in (across, down)]
    return functional.affine(
        picture, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0], **style.kernel()
    )


class Operation(Protocol):
    """uint8 (n, 3, S, S), a strength and a style to uint8 (n, 3, S, S)."""

    def __call__(self, picture: Tensor, strength: float, style: Style) -> Tensor: ...


# ruff: noqa: ARG005
OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, strength, style: picture,
    "shear-x": lambda picture, strength, style: _sheared(picture, style, across=strength),
    "shear-y": lambda picture, strength, style: _sheared(picture, style, down=strength),
    "translate-x": lambda picture, strength, style: _moved(picture, style, across=strength),
    "translate-y": lambda picture, strength, style: _moved(picture, style, down=strength),
    "rotate": lambda picture, strength, style: functional.rotate(picture, strength, **style.kernel()),
    "brightness": lambda picture, strength, style: functional.adjust_brightness(picture, 1 + strength),
    "colour": lambda picture, strength, style: functional.adjust_saturation(picture, 1 + strength),
    "contrast": lambda picture, strength, style: contrasted(picture, 1 + strength),
    "sharpness": lambda picture, strength, style: functional.adjust_sharpness(picture, 1 + strength),
    "posterize": lambda picture, strength, style: functional.posterize(picture, int(strength)),
    "solarize": lambda picture, strength, style: functional.solarize(picture, 255 * strength),
    "autocontrast": lambda picture, strength, style: functional.autocontrast(picture),
    "equalize": lambda picture, strength, style: functional.equalize(picture),
    "invert": lambda picture, strength, style: functional.invert(picture),
}
"""Every operation by its name. The order is part of recipe version 1: draws hold positions in it."""

NAMES = tuple(OPERATIONS)
CHOICE = NAMES.index("invert")
"""How many there are to draw from for those that leave out invert, the last."""
SIGNED = np.array([name in NAMES[1:10] for name in NAMES])
"""Whether the strength of an operation may be negative."""


def signed(operations: NDArray[np.int64], strengths: NDArray[np.float64], coins: NDArray[np.float64]) -> Draws:
    """Strengths whose sign a number in [0, 1) below one half turns round, where the operation has a sign."""
    return np.where(SIGNED[operations] & (coins < 0.5), -strengths, strengths)


def operated(pictures: Tensor, draws: Draws, style: Style) -> Tensor:
    """uint8 (n, 3, S, S) after the operations of `operation` (n, k) with `strength` (n, k), one after the other."""
    for turn in range(draws["operation"].shape[1]):
        for which, strength, rows in _groups(draws["operation"][:, turn], draws["strength"][:, turn]):
            operation = functools.partial(OPERATIONS[NAMES[which]], strength=strength, style=style)
            pictures = changed(pictures, rows, operation)
    return pictures


def _groups(
    operations: NDArray[np.int8], strengths: NDArray[np.float64]
) -> Iterator[tuple[int, float, NDArray[np.bool_]]]:
    """Each pair of operation and strength that occurs, with the rows that have it; what changes nothing is left out."""
    for which in np.unique(operations):
        if NAMES[which] == "identity":
            continue
        for strength in np.unique(strengths[operations == which]):
            yield int(which), float(strength), (operations == which) & (strengths == strength)
