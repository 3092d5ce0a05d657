"""Write the golden store of the current format version: ``PYTHONPATH=tests python tests/store/make_golden.py``.

A golden store is never written again: a new format version gets a folder of its own beside the older ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

from store.stores import KINDS, card, make, of_shard, table, values

from softlabels.store import FORMAT

GOLDEN = Path(__file__).parents[1] / "golden"


def write(root: Path) -> None:
    """Four images, then two more, from four teachers, each in one format with one compression."""
    make(root, rows=4, rows_per_shard=3)
    store = make(root, rows=4).append_images(table(2, first=4))
    for kind in KINDS:
        labels = store.prepare("-".join(kind), card(*kind))
        for views in (1, 3):
            with labels.writing():
                for shard in labels.missing(views):
                    digests = {shard.first_row: [f"{view:016x}" for view in range(shard.first_view, shard.stop_view)]}
                    skipped = {1: "truncated"} if shard.run == 0 else {}
                    labels.write(shard, of_shard(values(6), shard), skipped=skipped, digests=digests)


if __name__ == "__main__":
    place = GOLDEN / f"store-{FORMAT}"
    if place.exists():
        sys.exit(f"{place} is there already")
    write(place)
