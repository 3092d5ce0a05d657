"""Images and stored labels in batches, ready for a training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from softlabels.loading.batches import Sample, SoftLabelDataset
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.samplers import OneViewEach, ShuffledShards
from softlabels.models import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocessing_of


class NextEpoch(Sampler[int]):
    """Go on to the next epoch of a sampler with each iteration; `set_epoch` chooses another."""

    def __init__(self, sampler: OneViewEach | ShuffledShards) -> None:
        self._sampler = sampler

    def __repr__(self) -> str:
        return f"NextEpoch({self._sampler!r})"

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        numbers = self._sampler.numbers().tolist()
        self.set_epoch(self.epoch + 1)
        return iter(numbers)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return self._sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self._sampler.set_epoch(epoch)


@dataclass(frozen=True)
class _Collate:
    """Makes a batch of samples; with a preprocessing its images are normalised."""

    normalise: Preprocessing | None

    def __call__(self, samples: list[Sample]) -> tuple[Tensor, ...]:
        images, *others = SoftLabelDataset.collate(samples)
        return (self.normalise.normalise(images) if self.normalise else images, *others)


def make_loader(
    labels: Labels | str | PathLike[str],
    images: Any,
    *,
    size: int = 224,
    batch_size: int = 64,
    temperature: float = 1.0,
    teachers: Sequence[str] | None = None,
    blend: Any = "mean-probabilities",
    target: Literal["probabilities", "logits"] = "probabilities",
    return_index: bool = False,
    unlabelled: Literal["refuse", "leave-out"] = "refuse",
    normalize: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    views_per_image: int = 1,
    shuffle_window: int | str | None = None,
    seed: int = 0,
    drop_last: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    pixels: Literal["same", "other"] = "same",
) -> DataLoader[Sample]:
    """Make a `DataLoader` of images and their soft labels, each image once per epoch in its next view.

    Each iteration over the loader is the next epoch; ``loader.sampler.set_epoch(n)`` chooses another, as when training
    goes on from a checkpoint. The order depends on (seed, epoch) alone, in every process.

    Args:
        labels: what `open_labels` gives or takes.
        images: what `open_images` gives or takes: a folder, a torchvision ``ImageFolder``, ...
        size: side of the images in pixels, usually 32 to 384.
        batch_size: images in a batch, usually 32 to 1024.
        temperature: of the target, usually 1 to 4; see `SoftLabelDataset` for this and the next five.
        normalize: whether images are float32, ``(image / 255 - mean) / std``; else they are uint8, a quarter of the
            memory, and best normalised on the GPU.
        mean: per channel, of pixels in [0, 1]; those of ImageNet by default.
        std: as `mean`.
        views_per_image: how often an image comes in a row, in different views; see `OneViewEach`.
        shuffle_window: shards, or bytes such as ``"2GB"``, within which images are shuffled, for stores beyond memory;
            see `ShuffledShards`. None: over the whole data set.
        seed: of the order.
        drop_last: leave out the last batch of an epoch where it is smaller.
        num_workers: processes that make batches ahead, usually one per core; 0 for none.
        pin_memory: page-lock the batches, for copies to a GPU.
        pixels: "same", or "other" for images that the teachers did not see; see `SoftLabelDataset`.

    Returns:
        A loader of (images (n, 3, size, size), hard labels int64 (n,), targets float32 (n, classes)), and with
        `return_index` the samples' numbers int64 (n,).

    Raises:
        ConfigError, StoreError, KeyError: as `SoftLabelDataset` and its sampler.

    Example:
        >>> loader = softlabels.make_loader("shards/", "digits", size=8, batch_size=64, normalize=True)
        >>> for images, hard_labels, probabilities in loader:
        ...     loss = torch.nn.functional.cross_entropy(network(images), probabilities)
        >>> len(loader), images.dtype, probabilities.shape
        (22, torch.float32, torch.Size([3, 10]))
    """
    dataset = SoftLabelDataset(
        labels if isinstance(labels, Labels) else open_labels(labels),
        images,
        size,
        teachers,
        temperature,
        blend=blend,
        unlabelled=unlabelled,
        target=target,
        return_index=return_index,
        pixels=pixels,
    )
    sampler: OneViewEach | ShuffledShards = OneViewEach(dataset, 0, seed, views_per_image)
    if shuffle_window is not None:
        sampler = ShuffledShards(dataset, shuffle_window, 0, seed, views_per_image)
    how = preprocessing_of({"size": size, "mean": mean, "std": std}, "make_loader") if normalize else None
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=NextEpoch(sampler),
        drop_last=drop_last,
        collate_fn=_Collate(how),
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
