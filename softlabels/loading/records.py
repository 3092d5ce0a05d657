"""The records that views are replayed from, as a store has them: beside the labels of one teacher."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import StoreError
from softlabels.store import Store, TeacherLabels
from softlabels.views import Recipe, record_spec, recorded_steps

IMPORTED = "imported"
"""Kind of a teacher whose labels came from another project's files."""


class ViewRecords:
    """The records of a store's views, for the images of `rows` (n,) in it."""

    def __init__(self, labels: TeacherLabels, names: tuple[str, ...], rows: NDArray[np.int64]) -> None:
        self.labels, self._names, self._rows = labels, names, rows
        self._lock = threading.Lock()  # shards are opened at first use, and threads may ask at the same time

    @staticmethod
    def of_store(store: Store, recipe: Recipe, rows: NDArray[np.int64], views: int) -> ViewRecords | None:
        """Those of the first teacher that has them, imported ones before others; None where all views are drawn.

        Raises:
            StoreError: no teacher has records of them, or none of so many `views`.
            ConfigError: only another project can render these views.
        """
        steps, names = recorded_steps(recipe), tuple(record_spec(recipe))
        if not steps:
            return None
        for step in steps:
            step.check_renderable()
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
