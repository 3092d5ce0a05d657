"""RandAugment as timm has it: other operations and scales than torchvision's, and a strength that varies.

Of timm 1.0's `auto_augment.py`, which the recipes of DeiT, Swin, ConvNeXt, TinyViT and others name by a text such as
``rand-m9-mstd0.5-inc1``. Every draw is our own.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional

from softlabels.core.elementary import Reals, cos_of_turns, log
from softlabels.core.philox import Words
from softlabels.errors import ConfigError
from softlabels.views._auto_augment import OPERATIONS, Operation, Operations, Style, affine, shear
from softlabels.views._params import Colour, Params, Probability, as_params, integers, uniform_pairs

_SCALE = 10.0
"""The magnitude at which timm's operations reach the end of their ranges."""


def _translate(image: Tensor, style: Style, *, across: float = 0.0, down: float = 0.0) -> Tensor:
    """Moved to the left and up by these shares of the side, to a fraction of a pixel, as Pillow does."""
    side = image.shape[-1]
    return affine(image, style, translate=[-across * side, -down * side])


def _solarize_add(image: Tensor, strength: float) -> Tensor:
    """Levels below 128 raised by `strength`."""
    raised = image.to(torch.int16).add_(int(strength)).clamp_(max=255).to(torch.uint8)
    return torch.where(image < 128, raised, image)


# ruff: noqa: ARG005
TIMM_OPERATIONS: dict[str, Operation] = {
    "identity": OPERATIONS["identity"],
    "autocontrast": OPERATIONS["autocontrast"],
    "equalize": OPERATIONS["equalize"],
    "invert": OPERATIONS["invert"],
    "rotate": OPERATIONS["rotate"],
    "posterize": OPERATIONS["posterize"],
    "solarize": lambda image, strength, style: image if strength > 255 else functional.solarize(image, float(strength)),
    "solarize-add": lambda image, strength, style: _solarize_add(image, strength),
    "colour": lambda image, strength, style: functional.adjust_saturation(image, strength),
    "contrast": lambda image, strength, style: OPERATIONS["contrast"](image, strength - 1, style),
    "brightness": lambda image, strength, style: functional.adjust_brightness(image, strength),
    "sharpness": lambda image, strength, style: functional.adjust_sharpness(image, strength),
    "shear-x": lambda image, strength, style: shear(image, style, across=strength),
    "shear-y": lambda image, strength, style: shear(image, style, down=strength),
    "translate-x": lambda image, strength, style: _translate(image, style, across=strength),
    "translate-y": lambda image, strength, style: _translate(image, style, down=strength),
}
"""Every operation by its name: `strength` is the argument of timm's, translation in sides of the image. The order is
part of recipe version 1: draws hold positions in it."""

TIMM_NAMES = tuple(TIMM_OPERATIONS)

_TEXT = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)")
_FIELDS = {"mstd": "mstd", "mmax": "mmax", "inc": "increasing", "m": "m", "n": "n", "p": "probability"}


class TimmRandAugment(Operations):
    """`n` operations of fifteen, each done with `probability`, with a strength that is normal around `m` of 10.

    Its standard deviation is `mstd`, it is clipped to 0 to `mmax`, and the strengths of brightness and the like grow
    with it in either direction (`increasing`). As text as timm has it: ``timm-randaugment:rand-m9-mstd0.5-inc1``. Of an
    `mstd` above 100 the strength is even between 0 and `m`. timm draws bilinear or bicubic for each operation; here it
    is always `interpolation`.
    """

    kind: Literal["timm-randaugment"] = "timm-randaugment"
    interpolation: Literal["nearest", "bilinear"] = "bilinear"
    fill: Colour = (124, 116, 104)
    n: Annotated[int, Field(ge=1, le=8)] = 2
    m: Annotated[float, Field(ge=0, le=100)] = 9.0
    mstd: Annotated[float, Field(ge=0)] = 0.5
    mmax: Annotated[float, Field(gt=0, le=100)] = _SCALE
    increasing: bool = True
    probability: Probability = 0.5

    shorthand: ClassVar[str] = "text"
    table: ClassVar[tuple[Operation, ...]] = tuple(TIMM_OPERATIONS.values())

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "text" not in given:
            return given
        return {**_settings(str(given["text"])), **{name: each for name, each in given.items() if name != "text"}}

    @property
    def blocks(self) -> int:
        """Five numbers for each operation, eight in a block."""
        return self.n

    def make_params(self, words: Words) -> Params:
        """`operation` int8, `strength` (n, self.n); identity where an operation is left out."""
        u = uniform_pairs(words).reshape(len(words), self.n, 8)
        operation = 1 + integers(u[..., 0], len(TIMM_NAMES) - 1)
        magnitude = self._magnitudes(u[..., 2], u[..., 3])
        strength = _strengths(self.increasing, magnitude, np.where(u[..., 4] < 0.5, -1.0, 1.0), operation)
        done = u[..., 1] < self.probability
        return as_params(
            len(words),
            operation=np.where(done, operation, 0).astype(np.int8),
            strength=np.where(done, strength, 0.0),
        )

    def _magnitudes(self, first: Reals, second: Reals) -> Reals:
        """Of two even numbers each in [0, 1): the same shape."""
        if self.mstd > 100:
            found = first * self.m
        else:  # Box and Muller, 1958
            found = self.m + self.mstd * np.sqrt(-2.0 * log(1.0 - first)) * cos_of_turns(second)
        return np.clip(found, 0.0, self.mmax)


def _settings(text: str) -> dict[str, Any]:
    """The settings that timm's text stands for. Raises ConfigError, which says what can stand in it."""
    first, *parts = text.split("-")
    found: dict[str, Any] = {"m": _SCALE, "mstd": 0.0, "increasing": False}  # what timm takes for what is not there
    for part in parts:
        match = _TEXT.fullmatch(part)
        if match is None:
            first = ""
            break
        name, value = match.groups()
        found[_FIELDS[name]] = 101.0 if value == "inf" else bool(int(float(value))) if name == "inc" else float(value)
    if first != "rand":
        raise ConfigError(
            f"{text!r} is no text of timm's RandAugment; write rand and then any of m9, n2, p0.5, mstd0.5, mmax10, inc1"
        )
    return found


def _strengths(increasing: bool, magnitude: Reals, sign: Reals, operation: NDArray[np.int64]) -> NDArray[np.float64]:
    """The argument of each operation at its magnitude."""
    level = magnitude / _SCALE
    bits, threshold = np.floor(level * 4), np.minimum(256, np.floor(level * 256))
    factor = np.maximum(0.1, 1.0 + sign * level * 0.9) if increasing else level * 1.8 + 0.1
    by_name = {
        "rotate": sign * level * 30.0,
        "posterize": np.clip(4 - bits if increasing else bits, 0, 8),
        "solarize": 256 - threshold if increasing else threshold,
        "solarize-add": np.minimum(128, np.floor(level * 110)),
        **dict.fromkeys(("colour", "contrast", "brightness", "sharpness"), factor),
        **dict.fromkeys(("shear-x", "shear-y"), sign * level * 0.3),
        **dict.fromkeys(("translate-x", "translate-y"), sign * level * 0.45),
    }
    strength = np.zeros(operation.shape)
    for name, values in by_name.items():
        strength = np.where(operation == TIMM_NAMES.index(name), values, strength)
    return strength
