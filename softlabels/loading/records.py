"""Views that are not drawn but replayed: their parameters were recorded with the labels of one teacher."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from softlabels.core.philox import Words
from softlabels.errors import StoreError
from softlabels.store import Store, TeacherLabels
from softlabels.views import DrawnParams, Mix, ParamSource, Recipe, Recorded, RecordSpec, ViewParams

IMPORTED = "imported"
"""Kind of a teacher whose labels came from another project's files."""

_OWN, _PARTNERS = "view_", "other_"
"""Prefixes of what is recorded of a view and of the partner that it is mixed with, whose crop belongs to the label too.
What a mix itself records has none."""


def recorded_steps(recipe: Recipe) -> list[Recorded]:
    """The steps of which parameters are recorded."""
    return [step for step in recipe.steps if isinstance(step, Recorded)]


def record_spec(recipe: Recipe) -> RecordSpec:
    """Dtype and shape of what is recorded of each view, by name; empty where all of it is drawn."""
    steps = recorded_steps(recipe)
    mixed = {name: each for step in steps if isinstance(step, Mix) for name, each in step.records.items()}
    own = {name: each for step in steps if not isinstance(step, Mix) for name, each in step.records.items()}
    sides = (_OWN, _PARTNERS) if mixed else (_OWN,)
    return {side + name: each for side in sides for name, each in own.items()} | mixed


class Taker(Protocol):
    """Where records are taken from."""

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is recorded of these views (n,) of the images at these rows (n,): (n, ...) each, by name."""


class ReplayedParams:
    """Parameters replayed from records; those of steps that are not recorded are drawn."""

    def __init__(self, recipe: Recipe, seed: int, hashes: Words, taker: Taker) -> None:
        self._taker = taker
        # Asked once, since asking a protocol takes long.
        self._recorded = [step if isinstance(step, Recorded) else None for step in recipe.steps]
        self._mix = next((step for step in self._recorded if isinstance(step, Mix)), None)
        drawn = tuple(step for step in recipe.steps if step not in self._recorded)
        self._drawn = DrawnParams(Recipe(version=recipe.version, steps=drawn), seed, hashes)

    def params(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> ViewParams:
        """See `ParamSource.params`."""
        return self._replayed(self._drawn.params(rows, views), rows, _OWN)

    def partner_params(self, rows: NDArray[np.int64], views: NDArray[np.int64], hashes: Words) -> ViewParams:
        """See `ParamSource.partner_params`."""
        return self._replayed(self._drawn.partner_params(rows, views, hashes), rows, _PARTNERS)

    def records(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See `ParamSource.records`."""
        return self._taker.take(rows, views)

    def _replayed(self, params: ViewParams, rows: NDArray[np.int64], side: str) -> ViewParams:
        records, drawn = self.records(rows, params.numbers), iter(params.by_step)
        by_step = []
        for step in self._recorded:
            if step is None:
                by_step.append(next(drawn))
            else:
                prefix = "" if step is self._mix else side
                by_step.append(step.replay({name: records[prefix + name] for name in step.records}))
        return ViewParams(params.numbers, tuple(by_step))


def param_source(recipe: Recipe, seed: int, hashes: Words, taker: Taker | None = None) -> ParamSource:
    """Parameters of the views of images with these key hashes, uint64 (images,): replayed where there is a `taker`."""
    return DrawnParams(recipe, seed, hashes) if taker is None else ReplayedParams(recipe, seed, hashes, taker)


class ViewRecords:
    """The records of a store's views, for the images of `rows` (n,) in it."""

    def __init__(self, labels: TeacherLabels, names: tuple[str, ...], rows: NDArray[np.int64]) -> None:
        self.labels, self._names, self._rows = labels, names, rows
        self._lock = threading.Lock()  # shards are opened at first use, and threads may ask at the same time

    @staticmethod
    def of_store(store: Store, recipe: Recipe, rows: NDArray[np.int64], views: int) -> ViewRecords:
        """Those of the first teacher that has them, imported ones before others.

        Raises:
            StoreError: no teacher has records of them, or none of so many `views`.
            ConfigError: only another project can render these views.
        """
        for step in recorded_steps(recipe):
            step.check_renderable()
        names = tuple(record_spec(recipe))
        teachers = [store.teacher(name) for name in store.teachers]
        holders = [labels for labels in teachers if set(names) <= set(labels.card.layout)]
        holders.sort(key=lambda labels: labels.card.spec.get("kind") != IMPORTED)
        if not holders:
            raise StoreError(
                f"{store.location} is of views that are recorded with labels, but has no labels yet that record them; "
                f"import some with `softlabels import`, or choose another recipe and folder"
            )
        held = max((shard.stop_view for shard in holders[0].shards), default=0)
        if views > held:
            raise StoreError(
                f"{store.location} records {held} views of each image, asked for were {views}: they came with the "
                f"labels of {holders[0].name} and cannot be drawn; choose `views={held}`"
            )
        return ViewRecords(holders[0], names, rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return ViewRecords, (self.labels, self._names, self._rows)

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is recorded of these views of the images at these rows: (n, ...) each, by name.

        Raises:
            StoreError: nothing is recorded of some view.
        """
        where, numbers = self._rows[rows], np.broadcast_to(views, np.shape(rows)).astype(np.int64)
        with self._lock:
            try:
                taken = self.labels.take(where, numbers)
            except StoreError as problem:
                held = self.labels.held(where, numbers)
                if held.all():
                    raise
                raise StoreError(
                    f"{self.labels.name} records no view {numbers[~held][0]} of row {where[~held][0]}: the views of "
                    f"this store are its own, so no teacher labels more of them ({self.labels.views} of all images)"
                ) from problem
        return {name: taken[name] for name in self._names}
