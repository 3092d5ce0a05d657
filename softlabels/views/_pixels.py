"""The pixel kernels that geometry stands on: integers in, integers out, the same for any batch, layout and threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import rgb_to_grayscale


def resized(pictures: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """uint8 (n, 3, H, W) as uint8 (n, 3, height, width); pictures of that size already come back as they are.

    Antialiased unless `interpolation` is nearest. PyTorch computes this in fixed point on uint8, so the bytes do not
    depend on the batch, the memory layout, the threads or the processor's abilities.
    """
    if tuple(pictures.shape[-2:]) == (height, width):
        return pictures
    if interpolation == "nearest":
        return interpolate(pictures, (height, width), mode="nearest")
    if pictures.stride(1) == 1:
        # A box cut out of what a decoder leaves: packed, it takes the kernel for pixels that lie together.
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    return interpolate(pictures, (height, width), mode=interpolation, antialias=True, align_corners=False)


def resized_boxes(images: Tensor, boxes: NDArray[np.int64], size: int, interpolation: str) -> Tensor:
    """From each of n images (n, 3, H, W) its own box (n, 4), cut out and then resized: (n, 3, size, size)."""
    if len(images) > images.shape[2] + images.shape[3]:
        return _resized_by_axis(images, boxes, size, interpolation)
    if len(images) == 1:
        ((top, left, height, width),) = boxes.tolist()
        box = images[:, :, top : top + height, left : left + width]
        return box.clone() if height == width == size else resized(box, size, size, interpolation)
    shown = images.new_empty((len(images), images.shape[1], size, size))
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        box = images[i : i + 1, :, top : top + height, left : left + width]
        shown[i] = resized(box, size, size, interpolation)[0]
    return shown


def _resized_by_axis(images: Tensor, boxes: NDArray[np.int64], size: int, interpolation: str) -> Tensor:
    """Many small images at once: all boxes of one width together, then all of one height.

    The bytes are the same, because the kernel too resizes rows first, rounds to bytes and then resizes columns.
    """
    tops, lefts, heights, widths = boxes.T
    memory = images.numpy()
    rows_done = np.empty((*images.shape[:3], size), np.uint8)
    for width in np.unique(widths):
        which = np.flatnonzero(widths == width)
        part = torch.from_numpy(sliding_window_view(memory, width, axis=3)[which, :, :, lefts[which]])
        rows_done[which] = resized(part, part.shape[2], size, interpolation).numpy()
    shown = np.empty((*images.shape[:2], size, size), np.uint8)
    for height in np.unique(heights):
        which = np.flatnonzero(heights == height)
        part = torch.from_numpy(sliding_window_view(rows_done, height, axis=2)[which, :, tops[which]]).transpose(2, 3)
        shown[which] = resized(part, size, size, interpolation).numpy()
    return torch.from_numpy(shown)


def windows(pictures: Tensor, tops: NDArray[np.int64], lefts: NDArray[np.int64], side: int) -> Tensor:
    """From each of n pictures (n, 3, H, W) its own square window, copied: (n, 3, side, side)."""
    every = sliding_window_view(pictures.numpy(), (side, side), axis=(2, 3))
    return torch.from_numpy(every[np.arange(len(pictures)), :, tops, lefts])


def centre(length: int, window: int) -> int:
    """Where a centred window begins, by torchvision's rounding (half to even)."""
    return round((length - window) / 2.0)


def changed(pictures: Tensor, chosen: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> Tensor:
    """The pictures with `change` made to the chosen ones, in place where only some are."""
    if chosen.all():
        return change(pictures)
    if chosen.any():
        # numpy copies whole rows at once here, which torch's indexing does element by element.
        memory = pictures.numpy()
        memory[chosen] = change(torch.from_numpy(memory[chosen])).numpy()
    return pictures


def contrasted(pictures: Tensor, factor: float) -> Tensor:
    """torchvision's adjust_contrast of uint8 (..., 3, H, W), with the grey mean taken from a sum of whole numbers.

    A float sum depends on the number of threads once a picture has more than 65,000 pixels.
    """
    grey = rgb_to_grayscale(pictures)
    mean = grey.sum(dim=(-3, -2, -1), keepdim=True).to(torch.float32) / (grey.shape[-2] * grey.shape[-1])
    return pictures.mul(factor).add_(mean, alpha=1.0 - factor).clamp_(0, 255).to(torch.uint8)
