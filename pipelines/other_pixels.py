"""Pairs of digits as other sensors see them, under the same keys: `data: other_pixels:edges` and so on in a study."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

import softlabels


class OtherPixels:
    """A map-style data set: what `seen` makes of each image of digit-pairs, uint8 (3, 8, 8) to the same."""

    def __init__(self, split: str, seen: Callable[[Tensor], Tensor]) -> None:
        self.images, self.seen = softlabels.open_images("digit-pairs", split=split), seen
        self.classes, self.targets = list(self.images.classes), self.images.labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.seen(self.images.decode(row)).permute(1, 2, 0).numpy()), self.targets[row]


def opened(split: str, seen: Callable[[Tensor], Tensor]) -> softlabels.Images:
    dataset = OtherPixels(split, seen)
    return softlabels.open_images(dataset, keys=dataset.images.keys.to_pylist())


def as_edges(image: Tensor) -> Tensor:
    """The length of the gradient, channel by channel."""
    padded = torch.nn.functional.pad(image.float()[None], (1, 1, 1, 1), mode="replicate")[0]
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return (torch.hypot(across, down) / 2).clamp(0, 255).to(torch.uint8)


def as_grey(image: Tensor) -> Tensor:
    """The mean of the channels: which digit was red cannot be seen any more."""
    return image.float().mean(0, keepdim=True).mul(1.5).clamp(0, 255).to(torch.uint8).expand(3, -1, -1)


def as_few_pixels(image: Tensor) -> Tensor:
    """A quarter of the pixels, each shown four times."""
    small = torch.nn.functional.avg_pool2d(image.float(), 2)
    return small.repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.uint8)


def edges() -> softlabels.Images:
    return opened("train", as_edges)


def edges_test() -> softlabels.Images:
    return opened("test", as_edges)


def grey() -> softlabels.Images:
    return opened("train", as_grey)


def grey_test() -> softlabels.Images:
    return opened("test", as_grey)


def few_pixels() -> softlabels.Images:
    return opened("train", as_few_pixels)


def few_pixels_test() -> softlabels.Images:
    return opened("test", as_few_pixels)
