"""Pictures rendered on a device: images are decoded by workers, and cut, resized, changed and mixed where the model is.

The draws are those of `Pictures`. On the CPU the bytes are the same; elsewhere kernels that know no bytes compute in
floats, and pictures differ by about a level. A GPU may decode JPEG, too; its decoder rounds in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from softlabels.datasets import FileImages, Images, PackedImages, SomeImages
from softlabels.errors import DataError, ModelError
from softlabels.loading.views import Pictures, Rows
from softlabels.views import Views

FARTHEST = 2.0
"""Levels of 255 by which a device's pictures may differ from the CPU's on the mean; more is another picture."""


@dataclass(frozen=True)
class Loaded:
    """Whole images on their way to a device, each once, however many views are shown of it.

    `data` is uint8 (bytes,): the images one after the other, each of `lengths` int64 (images,) bytes. They are (height,
    width, 3) of `sizes` int64 (images, 2), or a JPEG file where that is (0, 0). `rows` (images,) are theirs in the data
    set; `which` int64 (n,) says of which image each sample is a view, -1 of none that could be decoded.
    """

    data: Tensor
    lengths: Rows
    sizes: Rows
    rows: Rows
    which: Rows

    def pin_memory(self) -> Loaded:
        """Page-locked."""
        return replace(self, data=self.data.pin_memory())


@dataclass(frozen=True)
class Undone:
    """What workers make of samples: the images of their views, and those of the partners where the recipe mixes."""

    own: Loaded
    partners: Loaded | None = None

    def pin_memory(self) -> Undone:
        """Page-locked."""
        return Undone(self.own.pin_memory(), None if self.partners is None else self.partners.pin_memory())


@dataclass(frozen=True)
class Renderer:
    """Renders on `device` what workers have decoded, or read where the device decodes JPEG itself: with `nvjpeg`."""

    device: torch.device
    nvjpeg: bool = False

    @property
    def name(self) -> str:
        """What tells its pictures from those of another renderer."""
        return f"{self.device.type}+nvjpeg" if self.nvjpeg else self.device.type

    def load(self, pictures: Pictures, rows: Rows, views: Rows, failed: dict[int, str] | None = None) -> Undone:
        """The images that these rows and views show; for workers, on any machine.

        With `failed`, images that cannot be decoded, or whose partner cannot, are entered there.

        Raises:
            DataError: an image cannot be decoded and `failed` is not given; the message names it.
        """
        own = _loaded(pictures.images, rows, failed, coded=self.nvjpeg)
        if not pictures.recipe.mixes:
            return Undone(own)
        mixed, sources, _ = pictures.mixed(rows, pictures.drawn(rows, views))
        lost: dict[int, str] | None = None if failed is None else {}
        partners = _loaded(pictures.population.images, sources, lost, coded=self.nvjpeg)
        for place, source in zip(mixed.tolist(), sources.tolist(), strict=True):
            if lost and source in lost and failed is not None:
                failed.setdefault(int(rows[place]), f"the partner of view {views[place]}: {lost[source]}")
        if failed:
            own = replace(own, which=np.where(np.isin(rows, list(failed)), -1, own.which))
        return Undone(own, partners)

    def render(self, pictures: Pictures, undone: Undone, rows: Rows, views: Rows) -> Tensor:
        """The pictures of these rows and views, uint8 (n, 3, size, size) on the device; black where an image failed.

        Raises:
            DataError: an image that the device should have decoded cannot be; the message names it.
        """
        drawn = pictures.drawn(rows, views)
        made = self._unmixed(pictures, pictures.images, undone.own, drawn)
        if undone.partners is not None:
            mixed, _, theirs = pictures.mixed(rows, drawn)
            partners = torch.zeros_like(made)
            if len(mixed):
                places = torch.from_numpy(mixed).to(self.device)
                images = pictures.population.images
                partners.index_copy_(0, places, self._unmixed(pictures, images, undone.partners, theirs))
            made = pictures.recipe.mix(made, partners, drawn)
        failed = np.flatnonzero(undone.own.which < 0)
        return made.index_fill_(0, torch.from_numpy(failed).to(self.device), 0) if len(failed) else made

    def _unmixed(self, pictures: Pictures, images: Images, loaded: Loaded, drawn: Views) -> Tensor:
        recipe, frame, sizes, which = pictures.recipe, pictures.frame, loaded.sizes, loaded.which
        if len(sizes) and (sizes == sizes[0]).all() and sizes.all() and (which >= 0).all():
            data = loaded.data.to(self.device, non_blocking=True)
            stack = data.view(len(sizes), *sizes[0].tolist(), 3).permute(0, 3, 1, 2)
            if len(sizes) < len(which) or (which != np.arange(len(which))).any():
                stack = stack.index_select(0, torch.from_numpy(which).to(self.device))
            return recipe.change(recipe.cut(stack, drawn, frame), drawn)
        made = torch.zeros((len(which), 3, frame.size, frame.size), dtype=torch.uint8, device=self.device)
        for number, image in enumerate(self._there(images, loaded)):
            places = np.flatnonzero(which == number)
            if len(places):
                cut = recipe.cut(image.expand(len(places), *image.shape), drawn[places], frame)
                made.index_copy_(0, torch.from_numpy(places).to(self.device), cut)
        return recipe.change(made, drawn)

    def _there(self, images: Images, loaded: Loaded) -> list[Tensor]:
        """The images on the device, uint8 (3, height, width) each."""
        spans = [(stop - length, stop) for stop, length in zip(np.cumsum(loaded.lengths), loaded.lengths, strict=True)]
        coded = np.flatnonzero(loaded.sizes[:, 0] == 0).tolist()
        files = [loaded.data[slice(*spans[number])] for number in coded]
        decoded = dict(zip(coded, self._decoded(images, files, loaded.rows[coded]), strict=True)) if coded else {}
        data = loaded.data.to(self.device, non_blocking=True) if len(coded) < len(spans) else loaded.data
        return [
            decoded[number]
            if number in decoded
            else data[slice(*span)].view(*loaded.sizes[number].tolist(), 3).permute(2, 0, 1)
            for number, span in enumerate(spans)
        ]

    def _decoded(self, images: Images, files: list[Tensor], rows: Rows) -> list[Tensor]:
        try:
            return decode_there(files, self.device)
        except RuntimeError:  # one of them is damaged, or of a kind that it does not know: the CPU's decoder says which
            return [images.decode(row).to(self.device) for row in rows.tolist()]


def decode_there(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """JPEG files, uint8 (bytes,) on the CPU, as uint8 (3, height, width) on a CUDA device, by nvJPEG."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)


def check_alike(pictures: Pictures, rows: Rows, views: Rows, made: Tensor, renderer: str) -> str:
    """In one line, how far pictures made on a device are from those that the CPU makes.

    Raises:
        ModelError: too far to be the same pictures.
    """
    mean, most = distance(pictures.render(rows, views, {}), made)
    if mean > FARTHEST:
        raise ModelError(
            f"pictures rendered on {renderer} differ from those of the CPU by {mean:.1f} levels on the mean, which is "
            f"no rounding; leave --render device out and report this"
        )
    return f"pictures are rendered on {renderer}: {mean:.2f} levels of 255 from those of the CPU, {most} at most"


def distance(here: Tensor, there: Tensor) -> tuple[float, int]:
    """Mean and largest difference, in levels of 255, of pictures that should show the same; both uint8 (n, 3, S, S)."""
    apart = (here.cpu().to(torch.int16) - there.cpu().to(torch.int16)).abs()
    return apart.double().mean().item(), int(apart.max())


def _loaded(images: Images, rows: Rows, failed: dict[int, str] | None, *, coded: bool) -> Loaded:
    """Each distinct image of these rows once, decoded; JPEG files as they are where they may stay `coded`."""
    distinct, which = np.unique(rows, return_inverse=True)
    stays = coded and _holds_jpeg(images)
    read: list[Tensor] = []
    places = np.full(len(distinct), -1, np.int64)
    for number, row in enumerate(distinct.tolist()):
        try:
            content = np.frombuffer(images.content(row), np.uint8) if stays else np.empty(0, np.uint8)
            image = torch.from_numpy(content.copy()) if content[:3].tobytes() == _JPEG else images.decode(row)
        except DataError as problem:
            if failed is None:
                raise
            failed[row] = str(problem)
            continue
        places[number] = len(read)
        read.append(image)
    lengths = np.array([image.numel() for image in read], np.int64)
    sizes = np.array([image.shape[1:] if image.ndim == 3 else (0, 0) for image in read], np.int64).reshape(-1, 2)
    data = torch.empty(int(lengths.sum()), dtype=torch.uint8)
    for stop, image in zip(np.cumsum(lengths), read, strict=True):
        room = data[stop - image.numel() : stop]
        if image.ndim == 3:
            room.view(*image.shape[1:], 3).copy_(image.permute(1, 2, 0))
        else:
            room.copy_(image)
    return Loaded(data, lengths, sizes, distinct[places >= 0], places[which.reshape(-1)])


_JPEG = b"\xff\xd8\xff"


def _holds_jpeg(images: Images) -> bool:
    """Whether contents may be JPEG files that show the images as they are, with nothing done to them."""
    while isinstance(images, SomeImages):
        images = images.images
    return isinstance(images, FileImages) or (isinstance(images, PackedImages) and not images.raw)
