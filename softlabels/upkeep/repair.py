"""Damage found: shards that are not what was written, to be taken away or dumped again in their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from softlabels.datasets import Images, content_checksums
from softlabels.errors import DataError
from softlabels.store import Shard, Store, TeacherLabels


@dataclass(frozen=True)
class RepairReport:
    """The damaged shards of one teacher, by name, and whether they were dumped again or only taken away.

    `removed` names those that had been taken away before: dumped again as well, or `missing` still.
    """

    teacher: str
    damaged: tuple[str, ...]
    redumped: bool
    removed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Repairs(list[RepairReport]):
    """What a repair did, teacher by teacher, in `lines` too, and the `problems` that it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.problems: list[str] = []


def find_damage(labels: TeacherLabels) -> list[Shard]:
    """The shards of which a byte is not as it was written; all are read.

    Raises:
        StoreError: a shard is of another store or a newer format: that is no damage, and not ours to remove.
    """
    labels.shards  # noqa: B018  (reading the headers tells foreign shards from damaged ones)
    return labels.damaged()


def find_removed(labels: TeacherLabels, damaged: Sequence[Shard]) -> list[Shard]:
    """The shards that a repair took away, now or before it was killed, and that nobody made again since.

    Views that a `damaged` shard has are left out: they are made again with it.
    """
    found = []
    for shard in labels.removed:
        views = np.arange(shard.first_view, shard.stop_view)
        for other in damaged:
            if other.run == shard.run:
                views = views[(views < other.first_view) | (views >= other.stop_view)]
        for stretch in np.split(views, np.flatnonzero(np.diff(views) != 1) + 1):
            if len(stretch):
                found.append(replace(shard, first_view=int(stretch[0]), stop_view=int(stretch[-1]) + 1))
    return found


def remove(labels: TeacherLabels, shards: Sequence[Shard]) -> None:
    """Take these shards away, so that a dump misses them. Within `labels.writing`."""
    for shard in shards:
        labels.remove(shard)


def check_contents(store: Store, images: Images, shards: Sequence[Shard]) -> None:
    """Compare the images of these shards' rows, which are rows of `images` too, with what was labelled.

    Raises:
        DataError: an image has other content now; it is named.
    """
    rows = np.unique(np.concatenate([np.arange(shard.first_row, shard.stop_row) for shard in shards]))
    changed = rows[content_checksums(images, rows) != store.checksums[rows]]
    if len(changed):
        raise DataError(
            f"image {images.keys[int(changed[0])].as_py()!r} has other content than when it was labelled "
            f"({len(changed):,} of the damaged shards' images have); restore it, or make a store of what is there now"
        )
