"""Stored labels beside somebody's own images."""

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
from softlabels.importing.replayed import SeededMix, foreign_view
from softlabels.loading.labels import Labels
from softlabels.views import RECIPES

SEED, PARTNER_SEED = "view_seed", "other_seed"
"""Under which names the seeds of views are recorded, and those of the views that they are mixed with."""

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
        self._mix = next((step for step in labels.recipe.steps if isinstance(step, SeededMix)), None)
        # Where each of the store's images stands among the items, for partners of mixed views.
        self._numbers = np.full(len(labels) if self._mix else 0, -1, np.int64)
        if self._mix is not None:
            self._numbers[rows] = np.arange(len(rows))
            self._check_partners()

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
        """The items, each made while the seed of its view counts; mixed views with their partners made so, too."""
        made: dict[tuple[int, int], Any] = {}

        def item(number: int, seed: int) -> Any:
            if (number, seed) not in made:
                with seeded(seed):
                    made[number, seed] = self.dataset[number]
            return made[number, seed]

        recorded = self._recorded(rows)
        items = [item(number, seed) for number, seed in zip(numbers, recorded[SEED].tolist(), strict=True)]
        if self._mix is None:
            return items
        params = self._mix.replay(recorded)
        for place in np.flatnonzero(params["chosen"]).tolist():
            partner = int(self._numbers[params["partner"][place]])
            other = item(partner, int(recorded[PARTNER_SEED][place]))
            items[place] = _mixed(self._mix, items[place], other, params[place : place + 1])
        return items

    def _recorded(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return self.labels.recorded(rows, self._view, self.labels.select(self._teachers)[0])

    def _check_partners(self) -> None:
        """Refuse items whose images cannot be mixed as they were, before the first is asked for."""
        assert self._mix is not None
        keys, recorded = self.labels.keys, self._recorded(self._rows)
        unknown = np.flatnonzero(recorded["mix_seed"] == self._mix.unknown)
        if len(unknown):
            raise StoreError(
                f"attach: {len(unknown):,} images were mixed in view {self._view} with an image that is not in the "
                f"imported files (first: {keys[self._rows[unknown[0]]].as_py()!r}); leave them out with "
                f"torch.utils.data.Subset"
            )
        partners = recorded["mix_partner"].astype(np.int64)
        lacking = np.flatnonzero(self._numbers[partners] < 0)
        if len(lacking):
            own, partner = self._rows[lacking[0]], partners[lacking[0]]
            raise ConfigError(
                f"attach: {len(lacking):,} of the items were mixed with images that are none of them (first: "
                f"{keys[own].as_py()!r} with {keys[partner].as_py()!r}); attach the whole data set, and take a part of "
                f"what comes back with torch.utils.data.Subset"
            )


def _mixed(mix: SeededMix, item: Any, other: Any, params: NDArray[Any]) -> Any:
    """An item whose image, its first part, is mixed with that of another."""
    parts = [(each, ()) if isinstance(each, Tensor) else (each[0], tuple(each[1:])) for each in _parted(item, other)]
    (own, rest), (theirs, _) = parts
    known = all(isinstance(each, Tensor) and each.is_floating_point() and each.ndim == 3 for each in (own, theirs))
    if not known or own.shape != theirs.shape:
        found = [
            f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
            for each in (own, theirs)
        ]
        raise ConfigError(
            f"attach: the views of these labels are mixed, for which images must be float tensors (3, H, W) of one "
            f"size, normalised as for the teacher; these are {found[0]} and {found[1]}"
        )
    picture = mix.mix(own[None], theirs[None], params)[0]
    return (picture, *rest) if isinstance(item, tuple | list) else picture


def _parted(*items: Any) -> tuple[Any, ...]:
    if not all(isinstance(each, Tensor) or (isinstance(each, tuple | list) and each) for each in items):
        raise ConfigError(
            f"attach: the views of these labels are mixed, for which an item must be an image or a tuple that begins "
            f"with it, not {type(items[0]).__name__}"
        )
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
    """Wrap a map-style data set that makes its own images, so that its items come with their image's probabilities.

    A tuple ``(image, label)`` becomes ``(image, label, probabilities)``, a mapping gets ``"soft_labels"``, anything
    else becomes ``(item, probabilities)``; probabilities are float32 (classes,). Only for labels of the clean view:
    whatever the data set does to an image, the teacher saw the whole of it. Labels of random views belong to their
    very crops; `SoftLabelDataset` makes those.

    Imported labels whose views only their own project makes (docs/importing.md) are attached one view at a time, to the
    data set that makes that view: from the recorded seed, within ``with seeded(seed):``, where there is one. Where
    views were mixed, the partner's item is made as well and its image mixed in, as the teacher saw it (both must be
    normalised float tensors); a hard label in the item stays that of the image alone.

    Args:
        dataset: yours, with ``__getitem__`` and ``__len__``.
        labels: what `open_labels` gives.
        keys: the image's key for each item, as in ``labels.keys``. None: paths of an ``ImageFolder`` (or a ``Subset``
            of one) relative to its root.
        teachers: names to blend; None for all.
        temperature: softens the probabilities, usually 1 to 4.
        blend: how several teachers become one target: ``mean-probabilities``, ``mean-logits``, ...
        view: of imported labels, the view whose images the items are.
        seeded: of imported labels with seeds, what makes the data set draw from one; an item is asked for within it.

    Raises:
        ConfigError: the labels are of views that the items are not, or the keys are not to be had or not as many as
            the items.
        KeyError: images without labels; the first are named.
        StoreError: images that a teacher could not read.

    Example:
        >>> images, labels = softlabels.open_images("digits"), softlabels.open_labels("clean/")
        >>> pairs = softlabels.attach(images.pixels / 255, labels, keys=images.keys.to_pylist())
        >>> image, probabilities = pairs[0]
        >>> image.shape, probabilities.shape
        (torch.Size([3, 8, 8]), torch.Size([10]))
    """
    _check_views(labels, view, seeded, labels.complete_views(teachers))
    found = list(keys) if keys is not None else _keys(dataset)
    if len(found) != len(dataset):
        raise ConfigError(f"attach: {len(found):,} keys for {len(dataset):,} items; give one key for each item")
    labels.probabilities([], view, temperature, teachers=teachers, blend=blend)  # refuses now what items would
    rows = labels.rows(found)
    unread = np.flatnonzero(~labels.labelled(rows, teachers))
    if len(unread):
        raise StoreError(
            f"{len(unread):,} images have no label, a teacher could not read them (first: {found[unread[0]]!r}); leave "
            f"them out with torch.utils.data.Subset"
        )
    return AttachedLabels(dataset, labels, rows, teachers, temperature, blend, view, seeded)


def _check_views(labels: Labels, view: int, seeded: Any, views: int) -> None:
    foreign = foreign_view(labels.recipe.steps)
    if foreign is not None and foreign.seeded and foreign.mixed is None:
        raise ConfigError(
            f"attach: {labels.store.root} does not say whether its views were mixed with others; import the labels "
            f"again with `mixup` and `cutmix`"
        )
    if foreign is None:
        if view or seeded is not None:
            raise ConfigError("attach: view= and seeded= are for imported labels that softlabels cannot make views of")
        _check_clean(labels, views)
    elif not 0 <= view < views:
        raise ConfigError(f"attach: {labels.store.root} holds views 0 to {views - 1}, not {view}")
    elif foreign.seeded != (seeded is not None):
        wanted = "needs seeded=, which makes the data set draw from a recorded seed"
        raise ConfigError(
            f"attach: {labels.store.root} {wanted if foreign.seeded else 'has no seeds; leave seeded= out'}"
        )


def _check_clean(labels: Labels, views: int) -> None:
    clean = {step.kind for step in RECIPES.make("clean").steps}
    kinds = [step.kind for step in labels.recipe.steps]
    if views != 1 or not set(kinds) <= clean:
        raise ConfigError(
            f"{labels.store.root} holds {views} views of {' + '.join(kinds)}: such labels belong to the crops "
            f"that the teacher saw; use SoftLabelDataset, or dump labels with `recipe=clean` `views=1`"
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
