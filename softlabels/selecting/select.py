"""The images of each class that stored labels are surest of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from softlabels.core.progress import plural
from softlabels.loading.labels import Labels

_AT_ONCE = 16 << 20
"""Probabilities that are in memory at once."""


@dataclass(frozen=True)
class Prediction:
    """For each image of a store its likeliest class, int64 (n,), -1 where it has no label, and that one's probability,
    float32 (n,): both of the mean of the probabilities of all views."""

    classes: NDArray[np.int64]
    confidence: NDArray[np.float32]


@dataclass(frozen=True)
class Selection:
    """What was selected.

    `images` are listed in the file `out`, out of `pool` labelled ones; `short` of `classes` have fewer than `top_k`
    images of this `min_confidence`, and `empty` of these have none. `files` says whether the images are files. `data`
    is how the list is opened as a data set, None where a config file must say it.
    """

    out: str
    images: int
    pool: int
    classes: int
    top_k: int
    short: int
    empty: int
    min_confidence: float
    lowest_confidence: float
    mean_confidence: float
    files: bool
    data: str | None

    def lines(self) -> list[str]:
        """It for a person."""
        found = [
            f"{self.images:,} of {plural(self.pool, 'image')} of {self.classes:,} classes in {self.out}, of confidence "
            f"{self.lowest_confidence:.3f} or more, {self.mean_confidence:.3f} on average"
        ]
        if self.short:
            of = f" of a confidence of {self.min_confidence:g} or more" if self.min_confidence else ""
            none = f" ({self.empty:,} have none)" if self.empty else ""
            found.append(
                f"{self.short:,} of {self.classes:,} classes have fewer than {self.top_k:,} images{of}{none}: all of "
                f"these are taken"
            )
        return found


def predict(labels: Labels, teachers: Sequence[str] | None, temperature: float) -> Prediction:
    """What the stored labels name, by the mean of the probabilities of all complete views and of these teachers.

    Raises:
        ConfigError: a codec is not valid at this temperature.
        StoreError: there are no labels.
    """
    names, views = labels.select(teachers), labels.complete_views(teachers)
    classes, confidence = np.full(len(labels), -1, np.int64), np.zeros(len(labels), np.float32)
    step = max(1, _AT_ONCE // labels.classes)
    for start in range(0, len(labels), step):
        rows = np.arange(start, min(start + step, len(labels)))
        rows = rows[labels.labelled(rows, names)]
        if not len(rows):
            continue
        total = torch.zeros(len(rows), labels.classes, dtype=torch.float64)
        for view in range(views):
            total += labels.probabilities(rows, view, temperature, names)
        top = (total / views).max(-1)
        classes[rows], confidence[rows] = top.indices.numpy(), top.values.numpy()
    return Prediction(classes, confidence)


def surest(prediction: Prediction, keys: pa.ChunkedArray, top_k: int, min_confidence: float = 0.0) -> NDArray[np.int64]:
    """The rows of the `top_k` images of each class with the highest confidence, int64 (m,) rising.

    Of equally sure ones those whose keys come first.
    """
    rows = np.flatnonzero((prediction.classes >= 0) & (prediction.confidence >= np.float32(min_confidence)))
    table = pa.table(
        {
            "class": prediction.classes[rows],
            "confidence": prediction.confidence[rows],
            "key": keys.take(pa.array(rows)),
        }
    )
    order = pc.sort_indices(
        table, sort_keys=[("class", "ascending"), ("confidence", "descending"), ("key", "ascending")]
    ).to_numpy()
    ordered = prediction.classes[rows][order]
    first = np.searchsorted(ordered, ordered)  # where the class of each begins
    return np.sort(rows[order[np.arange(len(order)) - first < top_k]])
