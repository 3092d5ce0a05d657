"""The orders in which samples come: pure functions of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from softlabels._philox import permutation, philox
from softlabels.pictures import Pictures, Rows
from softlabels.samples import LabelledPictures, SoftLabelDataset

_OFFSETS, _ORDER, _PICKS = 1, 2, 5
"""Streams of chance beside the views': the first view of each image, the order of an epoch, picks for checks."""

_WINDOW_ROWS, _SHARDS, _SHARD_OFFSETS = 8, 9, 10
"""The rows within a window, the shards of an epoch, the first view of each shard."""


class OneViewEach(Sampler[int]):
    """Sample numbers of one epoch: each image once in a shuffled order, each time in its next view.

    After `views` epochs every image was seen in each of its views once. With ``views_per_image=m`` each image comes m
    times in a row with m different views, so that one decode feeds m rows of a batch. The order depends on (seed,
    epoch) alone; make one sampler per epoch, or call `set_epoch` before each.
    """

    def __init__(self, pictures: SoftLabelDataset | Pictures, epoch: int = 0, seed: int = 0, views_per_image: int = 1):
        self._images, self._views = len(pictures) // pictures.views, pictures.views
        self._seed, self._views_per_image = seed, views_per_image
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._images * self._views_per_image

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers().tolist())

    def numbers(self) -> NDArray[np.int64]:
        """The epoch's sample numbers, int64 (images * views_per_image,)."""
        rows = permutation(self._images, self._seed, self._epoch, _ORDER)
        offsets = philox((self._seed, _OFFSETS), (rows, 0, 0, 0))[:, 0] % np.uint64(self._views)
        turns = self._epoch * self._views_per_image + np.arange(self._views_per_image)
        views = (offsets.astype(np.int64)[:, None] + turns) % self._views
        return (rows[:, None] * self._views + views).reshape(-1)


class ShuffledShards(Sampler[int]):
    """Sample numbers of one epoch: each image once, each time in its next view, from a few shards at a time.

    The shards come in a shuffled order, and the images of `window` of them together are shuffled among themselves: of
    the store, only that window need be in memory (and the next one, while it is made ready). All images of a shard are
    seen in one view per epoch, so that an epoch reads each byte that it needs once, and no others; images draw their
    views by themselves, so equal view numbers make them no more alike. After `views` epochs every image was seen in
    each of its views once. With ``views_per_image=m`` each image comes m times in a row with m different views.

    The order depends on (seed, epoch) alone; make one sampler per epoch, or call `set_epoch` before each.

    Args:
        pictures: of a label store.
        window: shards whose images are shuffled together.
    """

    def __init__(
        self,
        pictures: SoftLabelDataset | LabelledPictures,
        window: int,
        epoch: int = 0,
        seed: int = 0,
        views_per_image: int = 1,
    ) -> None:
        if window < 1:
            raise ValueError(f"a window is of 1 shard or more, not of {window}")
        self._runs = pictures.runs()
        self._views, self._window = pictures.views, window
        self._seed, self._views_per_image = seed, views_per_image
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._runs) * self._views_per_image

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers().tolist())

    def numbers(self) -> NDArray[np.int64]:
        """The epoch's sample numbers, int64 (images * views_per_image,)."""
        distinct, which = np.unique(self._runs, return_inverse=True)
        places = np.empty(len(distinct), np.int64)
        places[permutation(len(distinct), self._seed, self._epoch, _SHARDS)] = np.arange(len(distinct))
        shuffled = permutation(len(self._runs), self._seed, self._epoch, _WINDOW_ROWS)
        windows = places[which[shuffled]] // self._window
        rows = shuffled[np.argsort(windows, kind="stable")]
        offsets = philox((self._seed, _SHARD_OFFSETS), (self._runs[rows], 0, 0, 0))[:, 0] % np.uint64(self._views)
        turns = self._epoch * self._views_per_image + np.arange(self._views_per_image)
        views = (offsets.astype(np.int64)[:, None] + turns) % self._views
        return (rows[:, None] * self._views + views).reshape(-1)


def spread(images: int, views: int, count: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows and views of `count` samples picked over all images and views, for checks and estimates: int64 (n,) each."""
    rows = permutation(images, seed, _PICKS)[:count]
    return rows, np.resize(permutation(views, seed, _PICKS, 1), len(rows))
