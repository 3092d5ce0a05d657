"""The orders in which samples come: pure functions of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from softlabels.core.arrays import Rows
from softlabels.core.config import byte_count
from softlabels.core.philox import permutation, philox
from softlabels.core.progress import size
from softlabels.errors import ConfigError
from softlabels.loading.batches import LabelledViews, SoftLabelDataset
from softlabels.loading.views import ViewDataset

_OFFSETS, _ORDER, _PICKS = 1, 2, 5
"""Streams of chance beside the views': the first view of each image, the order of an epoch, picks for checks."""

_WINDOW_ROWS, _SHARDS, _SHARD_OFFSETS = 8, 9, 10
"""The rows within a window, the shards of an epoch, the first view of each shard."""


class OneViewEach(Sampler[int]):
    """Sample each image once per epoch, in a shuffled order, each time in its next view.

    After `views` epochs every image was seen in each of its views once. The order depends on (seed, epoch) alone; make
    one sampler per epoch, or call `set_epoch` before each. Iterating gives numbers ``row * views + view``.

    Args:
        dataset: what is sampled.
        epoch: the epoch whose order comes first.
        seed: another one gives another order; labels and views stay as they are.
        views_per_image: from 1 (usual) to the number of views: each image comes so many times in a row with different
            views, so that one decode feeds as many rows of a batch.

    Raises:
        ConfigError: an image has fewer views than are to come in a row.

    Example:
        >>> labels, images = softlabels.open_labels("shards/"), softlabels.open_images("digits")
        >>> dataset = softlabels.SoftLabelDataset(labels, images, size=8)
        >>> sampler = softlabels.OneViewEach(dataset, seed=0)
        >>> loader = torch.utils.data.DataLoader(dataset, batch_size=64, sampler=sampler)
        >>> len(dataset), len(sampler), len(loader)
        (2694, 1347, 22)
    """

    def __init__(
        self, dataset: SoftLabelDataset | ViewDataset, epoch: int = 0, seed: int = 0, views_per_image: int = 1
    ):
        if not hasattr(dataset, "__getitems__"):
            raise ConfigError(f"OneViewEach samples a SoftLabelDataset, not {type(dataset).__name__}")
        check_views(dataset.views, views_per_image)
        self._images, self._views = len(dataset) // dataset.views, dataset.views
        self._seed, self._views_per_image = seed, views_per_image
        self.epoch = epoch

    def __repr__(self) -> str:
        return f"OneViewEach({len(self):,} of {self._images * self._views:,} views, epoch {self.epoch})"

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._images * self._views_per_image

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers().tolist())

    def numbers(self) -> NDArray[np.int64]:
        """The epoch's sample numbers, int64 (images * views_per_image,)."""
        rows = permutation(self._images, self._seed, self.epoch, _ORDER)
        offsets = philox((self._seed, _OFFSETS), (rows, 0, 0, 0))[:, 0] % np.uint64(self._views)
        turns = self.epoch * self._views_per_image + np.arange(self._views_per_image)
        views = (offsets.astype(np.int64)[:, None] + turns) % self._views
        return (rows[:, None] * self._views + views).reshape(-1)


def check_views(views: int, views_per_image: int) -> None:
    """Raises ConfigError where `views_per_image` different views cannot be taken of `views`."""
    if not 1 <= views_per_image <= views:
        raise ConfigError(
            f"views_per_image is from 1 to the {views} views that each image has, not {views_per_image}; dump more "
            f"views, or choose fewer"
        )


class ShuffledShards(Sampler[int]):
    """Sample each image once per epoch, each time in its next view, from a few shards at a time.

    The shards come in a shuffled order, and the images of `window` of them together are shuffled among themselves: of
    the store, only that window need be in memory (and the next one, while it is made ready). All images of a shard are
    seen in one view per epoch, so that an epoch reads each byte that it needs once, and no others; images draw their
    views by themselves, so equal view numbers make them no more alike. After `views` epochs every image was seen in
    each of its views once. With ``views_per_image=m`` each image comes m times in a row with m different views.

    The order depends on (seed, epoch) alone; make one sampler per epoch, or call `set_epoch` before each.

    Args:
        dataset: of a label store.
        window: shards whose images are shuffled together, or the bytes that their labels of an epoch may take in
            memory, such as ``"512MB"``.

    Raises:
        ConfigError: not even one shard's labels fit into so many bytes, or an image has fewer views than are to come in
            a row.
    """

    def __init__(
        self,
        dataset: SoftLabelDataset | LabelledViews,
        window: int | str,
        epoch: int = 0,
        seed: int = 0,
        views_per_image: int = 1,
    ) -> None:
        check_views(dataset.views, views_per_image)
        self._runs = dataset.runs()
        self._views, self._window = dataset.views, shards_of_window(dataset, window, views_per_image)
        self._seed, self._views_per_image = seed, views_per_image
        self.epoch = epoch

    def __repr__(self) -> str:
        images = len(self._runs)
        return f"ShuffledShards({len(self):,} of {images * self._views:,} views, epoch {self.epoch})"

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._runs) * self._views_per_image

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers().tolist())

    def numbers(self) -> NDArray[np.int64]:
        """The epoch's sample numbers, int64 (images * views_per_image,)."""
        distinct, which = np.unique(self._runs, return_inverse=True)
        places = np.empty(len(distinct), np.int64)
        places[permutation(len(distinct), self._seed, self.epoch, _SHARDS)] = np.arange(len(distinct))
        shuffled = permutation(len(self._runs), self._seed, self.epoch, _WINDOW_ROWS)
        windows = places[which[shuffled]] // self._window
        rows = shuffled[np.argsort(windows, kind="stable")]
        offsets = philox((self._seed, _SHARD_OFFSETS), (self._runs[rows], 0, 0, 0))[:, 0] % np.uint64(self._views)
        turns = self.epoch * self._views_per_image + np.arange(self._views_per_image)
        views = (offsets.astype(np.int64)[:, None] + turns) % self._views
        return (rows[:, None] * self._views + views).reshape(-1)


def shards_of_window(pictures: SoftLabelDataset | LabelledViews, window: int | str, views_per_image: int = 1) -> int:
    """How many shards a `ShuffledShards` window is of; it depends on the store and on nothing of this machine.

    Raises:
        ConfigError: not even one shard's labels fit into so many bytes.
    """
    if isinstance(window, str):
        return _shards_within(pictures, byte_count(window), views_per_image)
    if window < 1:
        raise ValueError(f"a window is of 1 shard or more, not of {window}")
    return window


def _shards_within(pictures: SoftLabelDataset | LabelledViews, room: int, views_per_image: int) -> int:
    labels = pictures.labels
    if labels is None:
        raise ConfigError("a window of so many bytes needs the shards of a label store")
    one = views_per_image * sum(labels.of(name).unit for name in labels.folders(pictures.teachers or None))
    if room < one:
        raise ConfigError(
            f"a window of {size(room)} has no room for one shard, whose labels of an epoch take {size(one)}; give "
            f"`shuffle_window={one}B` or more, or a number of shards"
        )
    return room // one


def window_notes(samples: LabelledViews, window: int | str | None, views_per_image: int = 1) -> list[str]:
    """Lines about the window, none without one.

    Raises:
        ConfigError: not even one shard's labels fit into a window of so many bytes.
    """
    if window is None:
        return []
    shards, within = len(np.unique(samples.runs())), shards_of_window(samples, window, views_per_image)
    return [f"images are shuffled within {min(within, shards):,} of {shards:,} shards at a time"]


def spread(images: int, views: int, count: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows and views of `count` samples picked over all images and views, for checks and estimates: int64 (n,) each."""
    rows = permutation(images, seed, _PICKS)[:count]
    return rows, np.resize(permutation(views, seed, _PICKS, 1), len(rows))
