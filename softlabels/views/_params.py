"""What views are drawn as: parameters per step, the arithmetic that makes them of random words, and common settings.

A change of the arithmetic is a new recipe version: every machine must compute the same numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.elementary import Reals, exp, log
from softlabels.core.philox import Words, uniform
from softlabels.errors import ConfigError
from softlabels.views._pixels import apply_where

Params = NDArray[Any]
"""The parameters of one step for n views: a structured array (n,) with a named field per quantity."""
Boxes = NDArray[np.int64]
"""(n, 4) in pixels: top, left, height and width, where nothing else is stated."""
Lengths = int | NDArray[np.int64]
"""A height or width in pixels: of all images, or (n,) of each."""


@dataclass(frozen=True, eq=False)
class ViewParams:
    """The parameters of n views: their `numbers` int64 (n,) and, for each step of the recipe, its `Params` (n,).

    They have no resolution. An integer as index gives the parameters of one view, (1,) each.
    """

    numbers: NDArray[np.int64]
    by_step: tuple[Params, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: int | np.integer[Any] | slice | NDArray[Any] | list[int]) -> ViewParams:
        if isinstance(which, int | np.integer | list):
            which = np.atleast_1d(np.array(which, np.int64))
        return ViewParams(self.numbers[which], tuple(params[which] for params in self.by_step))

    def __iter__(self) -> Iterator[ViewParams]:
        return (self[i] for i in range(len(self)))


INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
CROPS = ("centre", "squash", "padded")


@dataclass(frozen=True)
class ImageSpec:
    """What a model sees: square images of `size` pixels a side, made with `interpolation`.

    `resize` and `crop` matter to the clean view alone: the shorter side is brought to `resize` before the centre is cut
    out. Left out, it is size / 0.875 (256 for 224), and for images of at most 32 pixels the size itself. With the crop
    ``squash`` both sides are brought to it, whatever their ratio; with ``padded`` it may be smaller than the size, and
    what is missing is black. These are timm's modes; ``centre`` is torchvision's only one.

    Raises:
        ConfigError: the size is not positive, `resize` is smaller than it without padding, or interpolation or crop are
            unknown.
    """

    size: int
    interpolation: str = "bilinear"
    resize: int | None = None
    crop: str = "centre"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"an image has at least 1 pixel a side, not {self.size}; choose a larger size")
        if self.crop not in CROPS:
            raise ConfigError(f"unknown crop {self.crop!r}; known: {', '.join(CROPS)}")
        if self.resize is not None and self.resize < self.size and self.crop != "padded":
            raise ConfigError(
                f"resize {self.resize} is smaller than the image of {self.size} that is cut out of it; "
                f"choose a resize of at least {self.size}, or a smaller size"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"unknown interpolation {self.interpolation!r}; known: {', '.join(INTERPOLATIONS)}")

    @property
    def shorter_side(self) -> int:
        """What the clean view resizes the shorter side of an image to."""
        if self.resize is not None:
            return self.resize
        return self.size if self.size <= 32 else round(self.size / 0.875)


# ---- random words as numbers


def uniform_pairs(words: Words) -> Reals:
    """The upper and the lower 32 bits of each word as two numbers in [0, 1): (n, k) to (n, 2 k)."""
    both = np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=-1)
    return both.reshape(len(words), 2 * words.shape[1]).astype(np.float64) * 2.0**-32


def integers(u: Reals, counts: float | NDArray[Any]) -> NDArray[np.int64]:
    """Numbers `u` in [0, 1) as integers 0..count-1, all equally likely."""
    return np.floor(u * counts).astype(np.int64)


def between(u: Reals, bounds: tuple[float, float]) -> Reals:
    """Numbers `u` in [0, 1) spread evenly over `bounds`."""
    low, high = bounds
    return low + u * (high - low)


def log_between(u: Reals, bounds: tuple[float, float]) -> Reals:
    """Numbers `u` in [0, 1) spread over `bounds` so that their logarithms are even."""
    low, high = log(np.array(bounds))
    return exp(low + u * (high - low))


def as_params(n: int, **fields: NDArray[Any]) -> Params:
    """A structured array (n,) of the named arrays, whose first axis is n."""
    made = np.empty(n, dtype=[(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    for name, values in fields.items():
        made[name] = values
    return made


# ---- settings


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1] < float("inf"):
        raise ValueError("wants two numbers above 0, the smaller first")
    return bounds


def _at_most_one(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("is a share of an area, at most 1")
    return bounds


Probability = Annotated[float, Field(ge=0, le=1)]
Bounds = Annotated[tuple[float, float], AfterValidator(_rising)]
"""Two positive numbers, the smaller first."""
AreaBounds = Annotated[Bounds, AfterValidator(_at_most_one)]
"""Two shares of an area, the smaller first."""
Level = Annotated[int, Field(ge=0, le=255)]
Colour = Level | tuple[Level, Level, Level]
"""A grey level or red, green and blue, each 0 to 255."""


def rgb(colour: Colour) -> list[int]:
    """Red, green and blue of `colour`."""
    return [colour] * 3 if isinstance(colour, int) else list(colour)


class RandomTransform(Part):
    """A change of whole images that is made with `probability`; a step of this kind is its `transform`."""

    probability: Probability

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "probability"
    field: ClassVar[str] = "chosen"
    """The only parameter, bool (n,): which images are changed."""

    @abstractmethod
    def transform(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), all changed, in memory of their own."""

    def make_params(self, words: Words) -> Params:
        """`field` (n,) bool."""
        return as_params(len(words), **{self.field: uniform(words[:, 0]) < self.probability})

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, H, W), those chosen changed."""
        return apply_where(images, params[self.field], self.transform)
