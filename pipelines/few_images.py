"""As many images of each class of CIFAR-10, by chance: `data: few_images:10-per-class-seed-3` and so on in a study.

All are of one `pool` of 100 images of each class, so that it alone needs labels. With one seed the images of fewer per
class are among those of more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

import softlabels

POOL = 100
"""Images of each class in the pool."""


def some_of_each(labels: NDArray[np.int64], count: int, *words: int) -> NDArray[np.int64]:
    """Rows of `count` images of each class, drawn by these numbers, in the order of the rows."""
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen.append(np.random.default_rng([*words, int(label)]).permutation(rows)[:count])
    return np.sort(np.concatenate(chosen))


class Some(Dataset[tuple[Tensor, int]]):
    """Some rows of a data set."""

    def __init__(self, images: Any, rows: NDArray[np.int64]) -> None:
        self.images, self.rows, self.classes = images, rows.tolist(), list(images.classes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        row = self.rows[place]
        return self.images.decode(row), int(self.images.labels[row])

    def opened(self) -> Any:
        """These images under their keys."""
        return softlabels.open_images(self, keys=[self.images.keys[row].as_py() for row in self.rows])


def pool() -> Any:
    """The images that students are given some of."""
    images = softlabels.open_images("cifar10")
    return Some(images, some_of_each(images.labels, POOL, 0)).opened()


def few(count: int, seed: int) -> Any:
    """So many of each class of the pool."""
    images = pool()
    return Some(images, some_of_each(images.labels, count, 1, seed)).opened()


def __getattr__(name: str) -> Callable[[], Any]:
    """The function of a name such as ``10-per-class-seed-3``, where ``seed-3`` is what a report takes for the seed."""
    asked = re.fullmatch(r"(\d+)-per-class-seed-(\d+)", name)
    if asked is None or not 0 < int(asked[1]) <= POOL:
        raise AttributeError(f"no images {name!r}; there are 1-per-class-seed-0 to {POOL}-per-class-seed-N, and pool")
    return partial(few, int(asked[1]), int(asked[2]))
