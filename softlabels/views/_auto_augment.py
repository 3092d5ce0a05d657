"""Automatic augmentations: RandAugment, TrivialAugment and AutoAugment, and the operations that they draw from.

Fourteen operations and invert, each with a strength that has no resolution: Cubuk et al., "AutoAugment: learning
augmentation policies from data", 2019, table 6, as torchvision computes them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from softlabels.core.config import Part
from softlabels.core.elementary import Reals
from softlabels.core.philox import Words
from softlabels.views._params import Colour, Params, as_params, integers, rgb, uniform_pairs
from softlabels.views._pixels import adjust_contrast, apply_where


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
    """How strong the operations get: shear as a slope, translation in sides of the image, rotation in degrees.

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


def affine(image: Tensor, style: Style, **changes: list[int] | list[float]) -> Tensor:
    """uint8 (n, 3, S, S) moved by torchvision's kernel, with these changes of its identity."""
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **changes}
    moved: Tensor = functional.affine(image, **settings, **style.kernel())
    return moved


def _translate(image: Tensor, style: Style, *, across: float = 0.0, down: float = 0.0) -> Tensor:
    side = image.shape[-1]
    pixels = [int(across * side), int(down * side)]
    return affine(image, style, translate=pixels)


def shear(image: Tensor, style: Style, *, across: float = 0.0, down: float = 0.0) -> Tensor:
    """uint8 (n, 3, S, S) sheared by these slopes around the top left corner."""
    # The kernel wants degrees; the papers give the slope.
    degrees = [math.degrees(math.atan(slope)) for slope in (across, down)]
    return affine(image, style, shear=degrees, center=[0, 0])


class Operation(Protocol):
    """uint8 (n, 3, S, S), a strength and a style to uint8 (n, 3, S, S)."""

    def __call__(self, image: Tensor, strength: float, style: Style) -> Tensor: ...


# ruff: noqa: ARG005
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, style: image,
    "shear-x": lambda image, strength, style: shear(image, style, across=strength),
    "shear-y": lambda image, strength, style: shear(image, style, down=strength),
    "translate-x": lambda image, strength, style: _translate(image, style, across=strength),
    "translate-y": lambda image, strength, style: _translate(image, style, down=strength),
    "rotate": lambda image, strength, style: functional.rotate(image, strength, **style.kernel()),
    "brightness": lambda image, strength, style: functional.adjust_brightness(image, 1 + strength),
    "colour": lambda image, strength, style: functional.adjust_saturation(image, 1 + strength),
    "contrast": lambda image, strength, style: adjust_contrast(image, 1 + strength),
    "sharpness": lambda image, strength, style: functional.adjust_sharpness(image, 1 + strength),
    "posterize": lambda image, strength, style: functional.posterize(image, int(strength)),
    "solarize": lambda image, strength, style: functional.solarize(image, 255 * strength),
    "autocontrast": lambda image, strength, style: functional.autocontrast(image),
    "equalize": lambda image, strength, style: functional.equalize(image),
    "invert": lambda image, strength, style: functional.invert(image),
}
"""Every operation by its name. The order is part of recipe version 1: draws hold positions in it."""

NAMES = tuple(OPERATIONS)
_USUAL = NAMES.index("invert")
"""How many there are to draw from for those that leave out invert, the last."""
_SIGNED = np.array([name in NAMES[1:10] for name in NAMES])
"""Whether the strength of an operation may be negative."""


class Operations(Part):
    """Steps whose parameters are `operation` int8 (n, k), positions in their `table`, and `strength` (n, k)."""

    table: ClassVar[tuple[Operation, ...]] = tuple(OPERATIONS.values())
    """The operations, of which the first changes nothing."""

    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: Colour = 0

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, S, S) after the k operations of each, one after the other."""
        style = Style(self.interpolation, self.fill)
        for operations, strengths in zip(params["operation"].T, params["strength"].T, strict=True):
            # Images that share operation and strength go through it together; identity changes nothing.
            for which in np.unique(operations[operations != 0]):
                for strength in np.unique(strengths[operations == which]).tolist():
                    operation = functools.partial(self.table[which], strength=strength, style=style)
                    images = apply_where(images, (operations == which) & (strengths == strength), operation)
        return images


def _operations(operation: NDArray[np.int64], strength: Reals, coins: Reals) -> Params:
    """Parameters of `Operations`; numbers in [0, 1) below one half turn the sign of a strength that has one."""
    strength = np.where(_SIGNED[operation] & (coins < 0.5), -strength, strength)
    return as_params(len(operation), operation=operation.astype(np.int8), strength=strength)


class RandAugment(Operations):
    """`n` operations of fourteen, each equally likely, with strength `m` on a scale of 0 to 30.

    Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", 2020, with
    torchvision's ranges.
    """

    kind: Literal["randaugment"] = "randaugment"
    n: Annotated[int, Field(ge=1, le=8)] = 2
    m: Annotated[int, Field(ge=0)] = 9
    bins: Annotated[int, Field(ge=2)] = 31

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

    def make_params(self, words: Words) -> Params:
        """`operation`, `strength` (n, self.n)."""
        u = uniform_pairs(words)
        operation = integers(u[:, 0 : 2 * self.n : 2], _USUAL)
        return _operations(operation, Ranges().strengths(self.bins)[operation, self.m], u[:, 1 : 2 * self.n : 2])


class TrivialAugmentWide(Operations):
    """One operation of fourteen at a random strength, both evenly drawn.

    Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", 2021, with torchvision's
    ranges. Translations go to 32 pixels of an image of `side` pixels and scale with the image; for CIFAR's 32-pixel
    images the paper's 32 pixels mean `side` 32.
    """

    kind: Literal["trivialaugment"] = "trivialaugment"
    bins: Annotated[int, Field(ge=2)] = 31
    side: Annotated[int, Field(ge=1)] = 224

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "side"

    def make_params(self, words: Words) -> Params:
        """`operation`, `strength` (n, 1)."""
        u = uniform_pairs(words)
        operation = integers(u[:, :1], _USUAL)
        wide = Ranges(shear=0.99, translate=32 / self.side, rotate=135.0, blend=0.99, bits=6)
        strength = wide.strengths(self.bins)[operation, integers(u[:, 1:2], self.bins)]
        return _operations(operation, strength, u[:, 2:3])


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


class AutoAugment(Operations):
    """One of 25 pairs of operations, evenly drawn, each of the two done with its own probability.

    Cubuk et al., "AutoAugment: learning augmentation policies from data", 2019, tables 7 and 9, with torchvision's
    ranges.
    """

    kind: Literal["autoaugment"] = "autoaugment"
    policy: Literal["imagenet", "cifar10"] = "imagenet"

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "policy"

    def make_params(self, words: Words) -> Params:
        """`operation`, `strength` (n, 2); identity where an operation is left out."""
        u = uniform_pairs(words)
        operations, tenths, ninths = _table(self.policy)
        which = integers(u[:, 0], len(operations))
        operation = np.where(u[:, 1:3] < tenths[which] / 10, operations[which], NAMES.index("identity"))
        return _operations(operation, Ranges().strengths(10)[operation, ninths[which]], u[:, 3:5])


@functools.cache
def _table(policy: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Positions in OPERATIONS, tenths of probability and ninths of strength: each (25, 2)."""
    cells = np.array(_POLICIES[policy].split()).reshape(-1, 2, 3)
    operations = np.array([[NAMES.index(name) for name in pair] for pair in cells[:, :, 0]])
    return operations, cells[:, :, 1].astype(np.int64), np.where(cells[:, :, 2] == "-", "0", cells[:, :, 2]).astype(int)
