"""Pixel kernels that several steps use: integers in, integers out, the same for any batch, layout and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import rgb_to_grayscale

# ---- memory


def blank(n: int, size: int) -> Tensor:
    """Memory for n images, uint8 (n, 3, size, size), in which a pixel's channels lie together.

    So decoders and the resize leave them, and convolutions like them. It is numpy's memory, which asks the system for
    large pages: at 64 images of 224 the first touch of small ones takes as long as half a resize.
    """
    return torch.from_numpy(np.empty((n, size, size, 3), np.uint8)).permute(0, 3, 1, 2)


def blank_like(images: Tensor) -> Tensor:
    """Memory for as many images (n, 3, S, S), laid out as these."""
    together = images.stride(1) == 1 and images.shape[2] == images.shape[3]
    return blank(len(images), images.shape[2]) if together else torch.empty_like(images)


# ---- resizing and cropping


def resize(images: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """uint8 (n, 3, H, W) as uint8 (n, 3, height, width); images of that size already come back as they are.

    Antialiased unless `interpolation` is nearest. PyTorch computes this in fixed point on uint8, so the bytes do not
    depend on the batch, the memory layout, the threads or the processor's abilities.
    """
    if tuple(images.shape[-2:]) == (height, width):
        return images
    if interpolation == "nearest":
        return interpolate(images, (height, width), mode="nearest")
    if images.stride(1) == 1:
        # A box cut out of what a decoder leaves: packed, it takes the kernel for pixels that lie together.
        images = images.contiguous(memory_format=torch.channels_last)
    return interpolate(images, (height, width), mode=interpolation, antialias=True, align_corners=False)


def resize_boxes(
    images: Tensor, boxes: NDArray[np.int64], size: int, interpolation: str, out: Tensor | None = None
) -> Tensor:
    """From each of n images (n, 3, H, W) its own box (n, 4), cut out and then resized: (n, 3, size, size).

    In memory of their own, laid out as that of the images; it is `out` where that is given, unless n is 1.
    """
    if len(images) > images.shape[2] + images.shape[3]:
        return _resize_by_axis(images, boxes, size, interpolation)
    if len(images) == 1:
        ((top, left, height, width),) = boxes.tolist()
        box = images[:, :, top : top + height, left : left + width]
        return box.clone() if height == width == size else resize(box, size, size, interpolation)
    if out is None:
        together = images.stride(1) == 1
        out = blank(len(images), size) if together else images.new_empty((len(images), images.shape[1], size, size))
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        box = images[i : i + 1, :, top : top + height, left : left + width]
        out[i] = resize(box, size, size, interpolation)[0]
    return out


def _resize_by_axis(images: Tensor, boxes: NDArray[np.int64], size: int, interpolation: str) -> Tensor:
    """Many small images at once: the rows of all boxes of one width together, then the columns of all of one height.

    The bytes are the same, because the kernel too resizes rows first, rounds to bytes and then resizes columns.
    """
    (n, channels, tall, wide), (tops, lefts, heights, widths) = images.shape, boxes.T
    memory = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(n * tall, wide * channels)
    # The rows of the boxes, box after box, the narrowest boxes first; `begins` is where those of each image begin.
    order = np.argsort(widths, kind="stable")
    ends = np.cumsum(heights[order])
    begins = np.empty_like(ends)
    begins[order] = ends - heights[order]
    rows = np.arange(ends[-1]) + np.repeat(order * tall + tops[order] - begins[order], heights[order])
    columns = np.repeat(channels * lefts[order], heights[order])
    resized_rows = np.empty((len(rows), size * channels), np.uint8)
    start = 0
    for width, count in zip(*np.unique(widths, return_counts=True), strict=True):
        stop = int(ends[np.searchsorted(widths[order], width) + count - 1])
        part = memory.unfold(1, int(channels * width), 1).numpy()[rows[start:stop], columns[start:stop]]
        resized_rows[start:stop] = _resize_as_one(part, int(width), stop - start, size, interpolation)
        start = stop
    resized = np.empty((n, size, size * channels), np.uint8)
    for height in np.unique(heights).tolist():
        which = np.flatnonzero(heights == height)
        part = resized_rows[begins[which] + np.arange(height)[:, None]]
        made = _resize_as_one(part, size * len(which), size, size * len(which), interpolation)
        resized[which] = made.reshape(size, len(which), size * channels).transpose(1, 0, 2)
    views = torch.from_numpy(resized.reshape(n, size, size, channels)).permute(0, 3, 1, 2)
    return views if images.stride(1) == 1 else views.contiguous()


def _resize_as_one(
    rows: NDArray[np.uint8], width: int, new_height: int, new_width: int, interpolation: str
) -> NDArray[np.uint8]:
    """Rows of `width` pixels, channels together, resized as one image: (new_height, new_width * channels)."""
    image = torch.from_numpy(rows.reshape(1, len(rows), width, -1)).permute(0, 3, 1, 2)
    made: NDArray[np.uint8] = resize(image, new_height, new_width, interpolation).permute(0, 2, 3, 1).numpy()
    return made.reshape(new_height, -1)


def crop_squares(images: Tensor, tops: NDArray[np.int64], lefts: NDArray[np.int64], side: int) -> Tensor:
    """From each of n images (n, 3, H, W) its own square, copied: (n, 3, side, side)."""
    every = sliding_window_view(images.numpy(), (side, side), axis=(2, 3))
    return torch.from_numpy(every[np.arange(len(images)), :, tops, lefts])


# ---- changing some images, or boxes of them


def apply_where(images: Tensor, chosen: NDArray[np.bool_], transform: Callable[[Tensor], Tensor]) -> Tensor:
    """The images with the chosen ones transformed, in place where only some are."""
    if chosen.all():
        return transform(images)
    if chosen.any():
        # numpy copies whole rows at once here, which torch's indexing does element by element; in the order in which
        # the bytes lie, or each would be fetched alone.
        together = images.stride(1) == 1
        memory = (images.permute(0, 2, 3, 1) if together else images).numpy()
        some = torch.from_numpy(memory[chosen])
        made = transform(some.permute(0, 3, 1, 2) if together else some)
        memory[chosen] = (made.permute(0, 2, 3, 1) if together else made).numpy()
    return images


def erase(images: Tensor, edges: NDArray[np.int64], colour: Sequence[int]) -> Tensor:
    """The images (n, 3, H, W) with a rectangle of each painted over, in place.

    `edges` are top, left, bottom and right, (n, 4); a rectangle without area erases nothing.
    """
    paint = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    for i, rows, columns in _rectangles(edges):
        images[i, :, rows, columns] = paint
    return images


def paste(images: Tensor, partners: Tensor, edges: NDArray[np.int64]) -> Tensor:
    """The images, each with a rectangle filled from its partner, as new ones: uint8 (n, 3, S, S); `edges` as above."""
    made = blank_like(images).copy_(images)
    for i, rows, columns in _rectangles(edges):
        made[i, :, rows, columns] = partners[i, :, rows, columns]
    return made


def _rectangles(edges: NDArray[np.int64]) -> Iterator[tuple[int, slice, slice]]:
    for i in np.flatnonzero((edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])).tolist():
        top, left, bottom, right = edges[i].tolist()
        yield i, slice(top, bottom), slice(left, right)


def adjust_contrast(images: Tensor, factor: float) -> Tensor:
    """torchvision's adjust_contrast of uint8 (..., 3, H, W), with the grey mean taken from a sum of whole numbers.

    A float sum depends on the number of threads once an image has more than 65,000 pixels.
    """
    grey = rgb_to_grayscale(images)
    mean = grey.sum(dim=(-3, -2, -1), keepdim=True).to(torch.float32) / (grey.shape[-2] * grey.shape[-1])
    return images.mul(factor).add_(mean, alpha=1.0 - factor).clamp_(0, 255).to(torch.uint8)
