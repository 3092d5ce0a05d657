"""What a dump will hold and cost, before it is begun."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from softlabels import journal
from softlabels.codecs import Codec
from softlabels.samples import LabelledPictures, Pictures, batches, spread
from softlabels.teachers import Teacher

SAMPLE_BATCHES = 3
"""Real batches that are timed, after one that is not."""


@dataclass(frozen=True)
class Plan:
    """Counts, bytes and an estimate in seconds of one teacher's dump; `lines` says it to a person."""

    teacher: str
    images: int
    views: int
    shards: int
    missing_shards: int
    missing_labels: int
    bytes_per_label: float
    codec: str
    pictures_per_second: float

    @property
    def bytes(self) -> float:
        """Bytes of all labels of this teacher, before compression."""
        return self.images * self.views * self.bytes_per_label

    @property
    def seconds(self) -> float:
        """Estimated time of what is still missing."""
        return self.missing_labels / self.pictures_per_second

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            f"teacher {self.teacher}: {self.images:,} images x {self.views} views = "
            f"{self.images * self.views:,} labels in {self.shards:,} shards",
            f"  {self.codec}: {self.bytes_per_label:,.1f} bytes per label, {journal.size(self.bytes)} in all",
            f"  still missing: {self.missing_shards:,} shards, {self.missing_labels:,} labels; at "
            f"{self.pictures_per_second:,.0f} pictures/s about {journal.duration(self.seconds)}",
        ]


def measure_speed(pictures: Pictures, teacher: Teacher, *, batch_size: int, workers: int) -> float:
    """Pictures per second of decoding, rendering and the teacher together, over a few real batches."""
    rows, views = spread(len(pictures.images), pictures.views, batch_size * (SAMPLE_BATCHES + 1))
    numbers = rows * pictures.views + views
    todo = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    source = batches(LabelledPictures(pictures, tolerant=True), todo, workers=workers)
    teacher.logits(next(source).pictures).cpu()
    began, seen = time.monotonic(), 0
    for batch in source:
        teacher.logits(batch.pictures).cpu()
        seen += len(batch)
    if not seen:  # the data set fits in the batch that warms up
        teacher.logits(next(batches(LabelledPictures(pictures, tolerant=True), todo[:1])).pictures).cpu()
        seen = len(todo[0])
    return seen / max(time.monotonic() - began, 1e-9)


def plan(
    teacher: Teacher,
    pictures: Pictures,
    codec: Codec,
    *,
    rows_per_shard: int,
    missing: tuple[int, int] | None,
    batch_size: int,
    workers: int = 0,
) -> Plan:
    """What a dump of these pictures will hold and cost.

    `missing` is (shards, labels) that an existing store still lacks; None when there is no store yet.
    """
    images, views = len(pictures.images), pictures.views
    shards = int(np.ceil(images / rows_per_shard))
    missing_shards, missing_labels = missing if missing is not None else (shards, images * views)
    return Plan(
        teacher=teacher.name,
        images=images,
        views=views,
        shards=shards,
        missing_shards=missing_shards,
        missing_labels=missing_labels,
        bytes_per_label=codec.bytes_per_label(teacher.classes),
        codec=codec.kind,
        pictures_per_second=measure_speed(pictures, teacher, batch_size=batch_size, workers=workers),
    )
