"""Stored labels beside somebody's own pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from softlabels.errors import ConfigError, StoreError
from softlabels.labels import Labels
from softlabels.views import RECIPES

SEED = "view_seed"
"""Under which name the seeds of views are recorded."""

SOFT = "soft_labels"
"""Name of the probabilities in items that are mappings."""


class AttachedLabels(Dataset[Any]):
    """Somebody's items, each with its image's probabilities; made by `attach`."""

    def __init__(
        self,
        dataset: Any,
        labels: Labels,
        rows: NDArray[np.int64],
        teachers: Sequence[str] | None,
        temperature: float,
        blend: Any,
        view: int = 0,
        seeded: Callable[[int], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.dataset, self.labels, self._rows, self._view, self._seeded = dataset, labels, rows, view, seeded
        self._teachers, self._temperature, self._blend = teachers, temperature, blend

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Any:
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return self.__getitems__([number % len(self)])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        rows = self._rows[np.asarray(numbers, np.int64)]
        fetch = getattr(self.dataset, "__getitems__", None)
        if self._seeded is not None:
            items = self._replayed(numbers, rows, self._seeded)
        else:
            items = fetch(numbers) if fetch is not None else [self.dataset[number] for number in numbers]
        probabilities = self.labels.probabilities(rows, self._view, self._temperature, self._teachers, self._blend)
        return [_joined(item, soft) for item, soft in zip(items, probabilities, strict=True)]

    def _replayed(
        self, numbers: Sequence[int], rows: NDArray[np.int64], seeded: Callable[[int], AbstractContextManager[Any]]
    ) -> list[Any]:
        """The items, each made while the seed of its view counts."""
        teacher = self.labels.select(self._teachers)[0]
        items = []
        for number, seed in zip(numbers, self.labels.recorded(rows, self._view, teacher)[SEED].tolist(), strict=True):
            with seeded(seed):
                items.append(self.dataset[number])
        return items


def attach(
    dataset: Any,
    labels: Labels,
    *,
    keys: Iterable[str] | None = None,
    teachers: Sequence[str] | None = None,
    temperature: float = 1.0,
    blend: Any = "mean-probabilities",
    view: int = 0,
    seeded: Callable[[int], AbstractContextManager[Any]] | None = None,
) -> AttachedLabels:
    """Wrap a map-style data set that makes its own pictures; its items come with their image's probabilities.

    A tuple ``(picture, label)`` becomes ``(picture, label, probabilities)``, a mapping gets ``"soft_labels"``, anything
    else becomes ``(item, probabilities)``; probabilities are float32 (classes,). Only for labels of the clean view:
    whatever the data set does to a picture, the teacher saw the whole of it. Labels of random views belong to their
    very crops; `SoftLabelDataset` makes those.

    Imported labels whose views only their own project makes (docs/importing.md) are attached one view at a time, to the
    data set that makes that view: from the recorded seed, within ``with seeded(seed):``, where there is one.

    Args:
        keys: the image's key for each item, as in ``labels.keys``. None: paths of an ``ImageFolder`` (or a ``Subset``
            of one) relative to its root.
        teachers: names to blend; None for all.
        view: of imported labels, the view whose pictures the items are.
        seeded: of imported labels with seeds, what makes the data set draw from one; an item is asked for within it.

    Raises:
        ConfigError: the labels are of views that the items are not, or the keys are not to be had or not as many as
            the items.
        KeyError: images without labels; the first are named.
        StoreError: images that a teacher could not read.
    """
    _check_views(labels, view, seeded)
    found = list(keys) if keys is not None else _keys(dataset)
    if len(found) != len(dataset):
        raise ConfigError(f"attach: {len(found):,} keys for {len(dataset):,} items; give one key for each item")
    rows = labels.rows(found)
    unread = np.flatnonzero(~labels.labelled(rows, teachers))
    if len(unread):
        raise StoreError(
            f"{len(unread):,} images have no label, a teacher could not read them (first: {found[unread[0]]!r}); leave "
            f"them out with torch.utils.data.Subset"
        )
    return AttachedLabels(dataset, labels, rows, teachers, temperature, blend, view, seeded)


def _check_views(labels: Labels, view: int, seeded: Any) -> None:
    foreign = labels.recipe.foreign
    if foreign is None:
        if view or seeded is not None:
            raise ConfigError("attach: view= and seeded= are for imported labels that softlabels cannot make views of")
        _check_clean(labels)
    elif not 0 <= view < labels.views:
        raise ConfigError(f"attach: {labels.store.root} holds views 0 to {labels.views - 1}, not {view}")
    elif foreign.seeded != (seeded is not None):
        wanted = "needs seeded=, which makes the data set draw from a recorded seed"
        raise ConfigError(
            f"attach: {labels.store.root} {wanted if foreign.seeded else 'has no seeds; leave seeded= out'}"
        )


def _check_clean(labels: Labels) -> None:
    clean = {step.kind for step in RECIPES.make("clean").steps}
    kinds = [step.kind for step in labels.recipe.steps]
    if labels.views != 1 or not set(kinds) <= clean:
        raise ConfigError(
            f"{labels.store.root} holds {labels.views} views of {' + '.join(kinds)}: such labels belong to the crops "
            f"that the teacher saw; use SoftLabelDataset, or dump labels with --recipe clean --views 1"
        )


def _keys(dataset: Any) -> list[str]:
    if isinstance(dataset, Subset):
        whole = _keys(dataset.dataset)
        return [whole[number] for number in dataset.indices]
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    if samples is None or root is None:
        raise ConfigError(f"attach: {type(dataset).__name__} does not say which image an item is; give keys=")
    return [Path(path).relative_to(root).as_posix() for path, *_ in samples]


def _joined(item: Any, probabilities: Tensor) -> Any:
    if isinstance(item, Mapping):
        return {**item, SOFT: probabilities}
    return (*item, probabilities) if isinstance(item, tuple | list) else (item, probabilities)
