"""Steps that change colours or sharpness and move nothing: jitter, grayscale, solarize and blur."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional

from softlabels.core.config import Part
from softlabels.core.elementary import Reals, exp
from softlabels.core.philox import Words
from softlabels.views._params import (
    Bounds,
    Level,
    Params,
    Probability,
    RandomTransform,
    as_params,
    between,
    uniform_pairs,
)
from softlabels.views._pixels import adjust_contrast, apply_where

_ADJUST: tuple[Callable[[Tensor, float], Tensor], ...] = (
    functional.adjust_brightness,
    adjust_contrast,
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

    def make_params(self, words: Words) -> Params:
        """`chosen` (n,) bool; `order` (n, 4): which comes first, ...; `factors` (n, 4), by brightness, ..., hue."""
        u = uniform_pairs(words)
        bounds = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        bounds.append((-self.hue, self.hue))
        factors = np.stack([between(u[:, 4 + i], each) for i, each in enumerate(bounds)], axis=1)
        order = np.argsort(u[:, :4], axis=1, kind="stable").astype(np.int8)
        return as_params(len(words), chosen=u[:, 8] < self.probability, order=order, factors=factors)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, H, W), those chosen adjusted."""
        wanted = [width > 0 for width in (self.brightness, self.contrast, self.saturation, self.hue)]
        for i in np.flatnonzero(params["chosen"]):
            image = images[i]
            for which in params["order"][i]:
                if wanted[which]:
                    image = _ADJUST[which](image, float(params["factors"][i, which]))
            images[i] = image
        return images


class Grayscale(RandomTransform):
    """The image in grey, with `probability`."""

    kind: Literal["grayscale"] = "grayscale"
    probability: Probability = 0.2

    def transform(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), with three equal channels."""
        grey: Tensor = functional.rgb_to_grayscale(images, 3)
        return grey.contiguous()


class Solarize(RandomTransform):
    """Every level from `threshold` on inverted, with `probability`."""

    kind: Literal["solarize"] = "solarize"
    threshold: Level = 128
    probability: Probability = 0.2

    def transform(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), solarized."""
        solarized: Tensor = functional.solarize(images, float(self.threshold))
        return solarized


_SIDE = 224


class GaussianBlur(Part):
    """A blur of a random standard deviation evenly from `sigma`, with `probability`.

    `sigma` is in pixels of an image of 224 a side and grows with the image; `reach` is the kernel's width as a share of
    the side (Chen et al., "A simple framework for contrastive learning", 2020, appendix A: a tenth).
    """

    kind: Literal["gaussian-blur"] = "gaussian-blur"
    sigma: Bounds = (0.1, 2.0)
    reach: Annotated[float, Field(gt=0, le=1)] = 0.1
    probability: Probability = 0.5

    blocks: ClassVar[int] = 1
    shorthand: ClassVar[str] = "probability"

    def make_params(self, words: Words) -> Params:
        """`chosen` (n,) bool; `sigma` (n,), in sides of the image."""
        u = uniform_pairs(words)
        return as_params(len(words), chosen=u[:, 0] < self.probability, sigma=between(u[:, 1], self.sigma) / _SIDE)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, H, W), those chosen blurred over edges that reflect."""
        side, chosen = images.shape[-1], params["chosen"]
        reach = int(side * self.reach / 2)
        sigma = params["sigma"][chosen] * side
        return apply_where(images, chosen, lambda some: gaussian_blur(some, sigma, reach)) if reach else images


def gaussian_blur(images: Tensor, sigma: Reals, reach: int) -> Tensor:
    """uint8 (n, 3, H, W) convolved with a Gaussian of `sigma` (n,) pixels, cut off beyond `reach` pixels.

    The two directions one after the other, each as a fixed sequence of float32 products and sums. A convolution from a
    library adds in an order of its own, takes ten times as long, and rounds a few pixels in 100,000 to the neighbouring
    level.
    """
    offsets = np.arange(reach + 1)
    weights = exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    whole = sum(2 * weights[:, offset] for offset in range(reach, 0, -1)) + weights[:, 0]
    factors = torch.from_numpy((weights / whole[:, None]).astype(np.float32))[:, :, None, None, None]
    blurred = torch.nn.functional.pad(images.float(), (reach,) * 4, mode="reflect")
    for axis in (3, 2):
        length = blurred.shape[axis] - 2 * reach
        total = blurred.narrow(axis, reach, length) * factors[:, 0]
        for offset in range(1, reach + 1):
            pair = blurred.narrow(axis, reach - offset, length) + blurred.narrow(axis, reach + offset, length)
            total += pair.mul_(factors[:, offset])
        blurred = total
    return blurred.round_().to(torch.uint8)
