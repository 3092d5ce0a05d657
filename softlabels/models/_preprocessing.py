"""How a network wants its images, and the last step to it: whole numbers become normalised ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from softlabels.core.config import Side, validated
from softlabels.errors import ModelError

Interpolation = Literal["bilinear", "bicubic", "nearest"]
CropMode = Literal["centre", "squash", "padded"]
Channels = tuple[float, float, float]
Deviations = tuple[
    Annotated[float, Field(gt=0)],
    Annotated[float, Field(gt=0)],
    Annotated[float, Field(gt=0)],
]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Preprocessing(BaseModel):
    """The images a network was made for; every field has the value usual for ImageNet.

    `size` is the side of the square image. `resize` is the shorter side before the centre crop of the clean view;
    None leaves it to the view. `mean` and `std` are per channel, of values between 0 and 1. `crop` is how the clean
    view is cut: ``squash`` resizes both sides, ``padded`` lets `resize` be smaller than `size` and pads with black.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Side = 224
    resize: Side | None = None
    mean: Channels = IMAGENET_MEAN
    std: Deviations = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    crop: CropMode = "centre"

    @model_serializer(mode="wrap")
    def _without_usual_crop(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Cards and files of weights from before there were others do not name it, and must stay equal to new ones.
        fields: dict[str, Any] = handler(self)
        if fields.get("crop") == "centre":
            del fields["crop"]
        return fields

    @model_validator(mode="after")
    def _are_of_ones(self) -> Preprocessing:
        if max(self.mean) > 1 or max(self.std) > 4:
            mean, std = ([round(value / 255, 4) for value in values] for values in (self.mean, self.std))
            raise ValueError(
                f"mean and std are of pixels between 0 and 1, these are of 0 to 255; give mean {mean} and std {std}"
            )
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocessing:
        if self.resize is not None and self.resize < self.size and self.crop != "padded":
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}, so no crop of that size fits")
        return self

    def normalise(self, pictures: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` per channel: uint8 (n, 3, H, W) to float32 of the same shape and device.

        The memory format stays; the values are those of the transforms of torchvision's weights, bit for bit.

        Raises:
            ModelError: the images are not uint8 (n, 3, H, W).
        """
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ModelError(
                f"images must be uint8 (n, 3, H, W), got {str(pictures.dtype).removeprefix('torch.')} "
                f"{tuple(pictures.shape)}; normalisation is done here, from whole numbers"
            )
        if pictures.device.type != "cpu":
            mean, std = _constants(self.mean, self.std, pictures.device, 1)
            return pictures.to(torch.float32).div_(255).sub_(mean).div_(std)
        # Where a pixel's channels lie together, rows of constants: three numbers at a time would take twice as long.
        width = pictures.shape[3] if pictures.stride(1) == 1 else 1
        mean, std = _constants(self.mean, self.std, pictures.device, width)
        return _floats_like(pictures).copy_(pictures).div_(255).sub_(mean).div_(std)

    def changed(self, where: str, **changes: Any) -> Preprocessing:
        """These settings with the `changes` that are not None; a new size without a new resize keeps their ratio.

        Raises:
            ConfigError: the changed settings contradict one another; the message begins with `where`.
        """
        given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
        size = given.get("size", self.size)
        if size != self.size and "resize" not in given and self.resize is not None:
            given["resize"] = round(self.resize * size / self.size)
        return preprocessing_of({**self.model_dump(), **given}, where) if given else self


def preprocessing_of(value: Preprocessing | Mapping[str, Any], where: str) -> Preprocessing:
    """`value` as a Preprocessing.

    Raises:
        ConfigError: a field is unknown or wrong; the message begins with `where`.
    """
    return value if isinstance(value, Preprocessing) else validated(Preprocessing, value, where)


@functools.lru_cache(maxsize=64)
def _constants(mean: Channels, std: Channels, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    # Made outside of inference mode, or the cached tensors could never take part in a graph.
    with torch.inference_mode(False):
        shaped = [torch.tensor(value, dtype=torch.float32).view(1, 1, 1, 3).to(device) for value in (mean, std)]
        wide = [each.repeat(1, 1, width, 1).permute(0, 3, 1, 2) for each in shaped]
    return wide[0], wide[1]


def _floats_like(pictures: Tensor) -> Tensor:
    """Memory of the same shape and order. numpy asks the system for large pages; small ones cost half the time here."""
    n, channels, height, width = pictures.shape
    if pictures.stride(1) == 1:
        return torch.from_numpy(np.empty((n, height, width, channels), np.float32)).permute(0, 3, 1, 2)
    return torch.from_numpy(np.empty((n, channels, height, width), np.float32))
