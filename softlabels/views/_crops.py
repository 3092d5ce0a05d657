"""Crops: which part of an image a view shows, and how it comes to the size that a model sees."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import functional

from softlabels.core.config import Part
from softlabels.core.elementary import Reals
from softlabels.core.philox import Words
from softlabels.errors import DataError
from softlabels.views._params import (
    AreaBounds,
    Bounds,
    Boxes,
    Colour,
    ImageSpec,
    Lengths,
    Params,
    as_params,
    between,
    integers,
    log_between,
    rgb,
    uniform_pairs,
)
from softlabels.views._pixels import crop_squares, resize

PROPOSALS = 10
PROPOSAL_BLOCKS = 3
"""Philox blocks of `propose`: 24 numbers of 32 bits, of which 2 place the rectangle, 20 shape it and 2 are spare."""


def propose(words: Words, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Reals, Reals, Reals, Reals]:
    """Random rectangles of which the first that fits is taken: ten for each row of (n, 12) words.

    `place` (n, 2): where the rectangle lies in its room, down and across; `one` and `other` (n, 10): the proposed
    sides, of a square of side 1, of areas evenly from `scale` and quotients one / other log-evenly from `ratio`;
    `spare` (n,): a number in [0, 1) for the step's own use.
    """
    u = uniform_pairs(words)
    area = between(u[:, 2 : 2 + PROPOSALS], scale)
    quotient = log_between(u[:, 2 + PROPOSALS : 2 + 2 * PROPOSALS], ratio)
    return u[:, :2], np.sqrt(area * quotient), np.sqrt(area / quotient), u[:, -1]


def first_that_fits(fits: NDArray[np.bool_], *sides: Reals) -> tuple[NDArray[np.bool_], list[Reals]]:
    """Whether any proposal fits (n,), and the sides (n,) of the first that does."""
    each, which = np.arange(len(fits)), fits.argmax(axis=1)
    return fits[each, which], [side[each, which] for side in sides]


class RandomResizedCrop(Part):
    """A box whose area is a share of the image evenly from `scale` and whose width / height is log-evenly from `ratio`.

    Szegedy et al., "Going deeper with convolutions", 2014, section 6, by the rule of torchvision's RandomResizedCrop:
    ten attempts, of which the first that fits into the image counts; if none fits, the largest centred box whose
    ratio lies in range.
    """

    kind: Literal["random-resized-crop"] = "random-resized-crop"
    scale: AreaBounds = (0.08, 1.0)
    ratio: Bounds = (3 / 4, 4 / 3)

    blocks: ClassVar[int] = PROPOSAL_BLOCKS

    def make_params(self, words: Words) -> Params:
        """`wide`, `tall` (n, 10): the attempts, in sides of a square image; `place` (n, 2): where the box lies."""
        place, wide, tall, _ = propose(words, self.scale, self.ratio)
        return as_params(len(words), place=place, wide=wide, tall=tall)

    def boxes(self, params: Params, height: Lengths, width: Lengths) -> Boxes:
        """Each view's box in pixels of the image: (n, 4)."""
        height, width = np.asarray(height, np.int64), np.asarray(width, np.int64)
        side = np.sqrt((height * width).astype(np.float64))[..., None]
        tall, wide = np.rint(params["tall"] * side), np.rint(params["wide"] * side)
        fits = (tall > 0) & (tall <= height[..., None]) & (wide > 0) & (wide <= width[..., None])
        found, (tall, wide) = first_that_fits(fits, tall, wide)
        largest = self._largest(height, width)
        tall, wide = np.where(found, tall, largest[0]), np.where(found, wide, largest[1])
        place = np.where(found[:, None], params["place"], 0.5)
        top, left = integers(place[:, 0], height - tall + found), integers(place[:, 1], width - wide + found)
        return np.stack([top, left, tall.astype(np.int64), wide.astype(np.int64)], axis=1)

    def _largest(self, height: NDArray[np.int64], width: NDArray[np.int64]) -> tuple[Reals, Reals]:
        """Height and width of the largest centred box whose ratio is in range."""
        narrowest, widest = self.ratio
        tall = np.minimum(height, np.maximum(1, np.rint(width / narrowest)))
        wide = np.minimum(width, np.maximum(1, np.rint(height * widest)))
        return np.where(width < narrowest * height, tall, height), np.where(width > widest * height, wide, width)


class PadAndCrop(Part):
    """The image padded on all sides, and of that a random square as large as the image's shorter side.

    He et al., "Deep residual learning for image recognition", 2016, section 4.2 (4 pixels at 32). `padding` is a
    share of the shorter side (0.125) or, from 1 on, a number of source pixels. `fill` is a grey level, a colour,
    ``edge`` or ``reflect``.
    """

    kind: Literal["pad-and-crop"] = "pad-and-crop"
    padding: Annotated[float, Field(gt=0)] = 0.125
    fill: Colour | Literal["edge", "reflect"] = 0

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "padding"

    @field_validator("padding")
    @classmethod
    def _share_or_pixels(cls, padding: float) -> float:
        if padding >= 1 and padding != int(padding):
            raise ValueError("is a share below 1 or a whole number of pixels")
        return padding

    def make_params(self, words: Words) -> Params:
        """`place` (n, 2): where the square lies, from the top left (0) to the bottom right (1)."""
        return as_params(len(words), place=uniform_pairs(words)[:, :2])

    def boxes(self, params: Params, height: int, width: int) -> Boxes:
        """Each view's square in pixels of the image, padding beyond the edges: (n, 4)."""
        side, margin = min(height, width), self._margin(height, width)
        room = np.array([height, width]) + 2 * margin - side + 1
        corner = integers(params["place"], room) - margin
        return np.concatenate([corner, np.full_like(corner, side)], axis=1)

    def crop(self, images: Tensor, params: Params, spec: ImageSpec) -> Tensor:
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size), the whole batch at once.

        Raises:
            DataError: the image is too small to be reflected as far as the padding reaches.
        """
        height, width = images.shape[-2:]
        margin = self._margin(height, width)
        top, left = self.boxes(params, height, width)[:, :2].T
        if self.fill == "reflect" and margin >= min(height, width):
            raise DataError(
                f"an image of {height} x {width} cannot be reflected by {margin} pixels; choose less padding"
            )
        if isinstance(self.fill, str):
            padded = functional.pad(images, [margin], padding_mode=self.fill)
        else:
            # One level for all channels takes a faster kernel than three.
            padded = functional.pad(images, [margin], fill=self.fill if isinstance(self.fill, int) else rgb(self.fill))
        squares = crop_squares(padded, top + margin, left + margin, min(height, width))
        return resize(squares, spec.size, spec.size, spec.interpolation)

    def _margin(self, height: int, width: int) -> int:
        return round(self.padding * min(height, width)) if self.padding < 1 else int(self.padding)


class ResizeCentreCrop(Part):
    """The clean view: what models are evaluated on. The image spec gives the shorter side before the centre is cut."""

    kind: Literal["resize-centre-crop"] = "resize-centre-crop"
    blocks: ClassVar[int] = 0

    def make_params(self, words: Words) -> Params:
        """No fields, (n,)."""
        return as_params(len(words))

    def boxes(self, params: Params, height: int, width: int) -> Boxes:
        """The whole image, which the resize reads: (n, 4)."""
        return np.tile(np.array([0, 0, height, width]), (len(params), 1))

    def crop(self, images: Tensor, params: Params, spec: ImageSpec) -> Tensor:  # noqa: ARG002
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size), by torchvision's rule for sizes and offsets."""
        height, width = images.shape[-2:]
        short, long = spec.shorter_side, int(spec.shorter_side * max(height, width) / min(height, width))
        if spec.crop == "squash":
            long = short
        height, width = (short, long) if height <= width else (long, short)
        resized = resize(images, height, width, spec.interpolation)
        if min(height, width) < spec.size:
            across, down = max(spec.size - width, 0), max(spec.size - height, 0)
            resized = pad(resized, (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2))
            height, width = resized.shape[-2:]
        # torchvision's rounding, half to even.
        top, left = (round((length - spec.size) / 2.0) for length in (height, width))
        return resized[:, :, top : top + spec.size, left : left + spec.size].clone()
