"""Views (what was drawn) and frames (what a model sees)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import ConfigError
from softlabels.views._chance import Draws

Sides = int | NDArray[np.int64]
"""A height or width in pixels: of all images, or (n,) of each."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
CROPS = ("centre", "squash", "padded")


@dataclass(frozen=True, eq=False)
class View:
    """What every step of a recipe drew for one image and one view number. It has no resolution."""

    number: int
    draws: tuple[np.void, ...]

    def batch(self) -> Views:
        """This view as a batch of one."""
        return Views(np.array([self.number]), tuple(draw.reshape(1) for draw in self.draws))


@dataclass(frozen=True, eq=False)
class Views:
    """n views as a struct of arrays: `numbers` int64 (n,) and, for each step, a structured array (n,).

    An integer takes one `View` out; a slice, a mask or an array of integers takes out `Views`.
    """

    numbers: NDArray[np.int64]
    draws: tuple[Draws, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, which: int | np.integer[Any]) -> View: ...
    @overload
    def __getitem__(self, which: slice | NDArray[Any] | list[int]) -> Views: ...
    def __getitem__(self, which: Any) -> View | Views:
        if isinstance(which, (int, np.integer)):
            return View(int(self.numbers[which]), tuple(draw[which] for draw in self.draws))
        if isinstance(which, list):
            which = np.array(which, np.int64)
        return Views(self.numbers[which], tuple(draw[which] for draw in self.draws))

    def __iter__(self) -> Iterator[View]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Frame:
    """What a model sees: square pictures of `size` pixels a side, made with `interpolation`.

    `resize` and `crop` matter to the clean view alone: the shorter side is brought to `resize` before the centre is cut
    out. Left out, it is size / 0.875 (256 for 224), and for pictures of at most 32 pixels the size itself. With the
    crop ``squash`` both sides are brought to it, whatever their ratio; with ``padded`` it may be smaller than the size,
    and what is missing is black. These are timm's modes; ``centre`` is torchvision's only one.

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
            raise ConfigError(f"a picture has at least 1 pixel a side, not {self.size}; choose a larger size")
        if self.crop not in CROPS:
            raise ConfigError(f"unknown crop {self.crop!r}; known: {', '.join(CROPS)}")
        if self.resize is not None and self.resize < self.size and self.crop != "padded":
            raise ConfigError(
                f"resize {self.resize} is smaller than the picture of {self.size} that is cut out of it; "
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
