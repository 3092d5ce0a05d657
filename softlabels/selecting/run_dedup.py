"""`softlabels dedup`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from softlabels.core.files import write_text
from softlabels.core.progress import Terminal, duration, plural
from softlabels.datasets import Images, check_list, write_list
from softlabels.errors import ConfigError, DataError
from softlabels.loading.opening import check_place, describe, offering_to_skip, open_data
from softlabels.selecting import duplicates
from softlabels.selecting.config import DedupConfig
from softlabels.selecting.duplicates import Pair, Sift, hashed
from softlabels.selecting.listing import opened_as
from softlabels.selecting.pages import page

KEPT, REMOVED, PAGE = "kept.csv", "removed.csv", "index.html"
"""The files of a report."""


@dataclass(frozen=True)
class Deduplication:
    """What was found: how many images of the `pool` there are, and how many of `held_out` ones it was compared with.

    `kept` stay; `equal` have the bytes of a held-out image and `near` were confirmed by `confirm`, of which `mirrored`
    are mirrored; `unreadable` are left out, too. `candidates` is of how many images the hashes are near those of a
    held-out one; `plain` have no contrast and so no hash. `pairs` are the duplicates and `others` the candidates that
    were not confirmed. `data` is how the list of what stays is opened as a data set, None where a config file must say
    it.
    """

    out: str
    pool: int
    held_out: int
    kept: int
    equal: int
    near: int
    mirrored: int
    unreadable: int
    candidates: int
    plain: int
    confirm: Literal["sift", "hash"]
    max_distance: int
    seconds: float
    data: str | None
    notes: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list, repr=False)
    others: list[Pair] = field(default_factory=list, repr=False)

    def lines(self) -> list[str]:
        """It for a person."""
        by = "SIFT matches" if self.confirm == "sift" else "their hashes alone, which nothing else confirms"
        found = [
            f"{self.equal + self.near:,} of {plural(self.pool, 'image')} are among the {self.held_out:,} held out: "
            f"{self.equal:,} with equal bytes, {self.near:,} near ones ({self.mirrored:,} mirrored) by {by}",
            f"{plural(self.candidates, 'candidate')} by hashes that differ in at most {self.max_distance} of 64 bits; "
            f"{len(self.others):,} of them were not confirmed and stay",
        ]
        if self.plain:
            found.append(f"{plural(self.plain, 'image')} without contrast are compared by their bytes alone")
        if self.unreadable:
            found.append(f"{plural(self.unreadable, 'image')} that cannot be read are left out")
        return [*found, *self.notes]


def run_dedup(config: DedupConfig, terminal: Terminal) -> Deduplication:
    """List the images of a pool that are no copies of held-out ones, and show the copies."""
    began, out = time.monotonic(), Path(config.out)
    if out.is_file():
        raise ConfigError(f"`out` is a folder, and {out} is a file; name another place")
    for name in (KEPT, REMOVED):
        check_list(out / name)
    if config.confirm == "sift":
        Sift()  # not after an hour of hashing
    if config.data is None or config.against is None:
        raise ConfigError("the pool and what is held out are to be named; give `data` and `against`")
    pool = describe(open_data(config.data, config.data_dir, config.split), terminal)
    held_out = open_data(config.against, config.data_dir, "test")
    for images in (pool, held_out):
        check_place(out, "report", images)
    with offering_to_skip(config.on_bad_image):
        found, others, counts, failed = _compared(config, pool, held_out, terminal)
    removed = sorted({pair.pool for pair in found} | failed.keys())
    kept = np.setdiff1d(np.arange(len(pool)), removed)
    if not len(kept):
        raise DataError(f"every image of {pool.name} is in {held_out.name}; give `data` and `against` that differ")
    columns, notes = _label_column(pool, kept)
    files = write_list(out / KEPT, pool, kept, columns)
    write_list(out / REMOVED, pool, np.array(removed, np.int64), _removed_columns(removed, found, held_out))
    result = Deduplication(
        out=config.out,
        pool=len(pool),
        held_out=len(held_out),
        kept=len(kept),
        equal=sum(pair.how == "content" for pair in found),
        near=sum(pair.how != "content" for pair in found),
        mirrored=sum(pair.mirrored for pair in found),
        unreadable=len(failed),
        **counts,
        confirm=config.confirm,
        max_distance=config.distance,
        seconds=time.monotonic() - began,
        data=opened_as(str(out / KEPT), pool, files=files),
        notes=notes,
        pairs=found,
        others=others,
    )
    title = f"Images of {pool.name} that are in {held_out.name}"
    write_text(out / PAGE, page(title, result.lines(), pool, held_out, found, others))
    return result


def dedup_text(done: Deduplication) -> str:
    """What `run_dedup` found, for a person."""
    where = f"{plural(done.kept, 'image')} stay, listed in {Path(done.out, KEPT)}; the pairs are in "
    return "\n".join([*done.lines(), f"{where}{Path(done.out, PAGE)} ({duration(done.seconds)})"])


def _compared(
    config: DedupConfig, pool: Images, held_out: Images, terminal: Terminal
) -> tuple[list[Pair], list[Pair], dict[str, int], dict[int, str]]:
    """Duplicates in the order of the pool, other candidates, how many candidates and plain images there are, and the
    images that cannot be read."""
    with terminal.progress("hashes", len(pool) + len(held_out), "images") as advance:
        theirs, mirrored = hashed(held_out, advance, mirrored=True)
        own, _ = hashed(pool, advance, skip_bad_images=config.on_bad_image == "skip")
    assert mirrored is not None
    readable = np.setdiff1d(np.arange(len(pool)), sorted(own.failed))
    equal = duplicates.equal_content(pool, held_out, readable)
    known = {pair.pool for pair in equal}
    groups = duplicates.candidates(own.hashes, theirs.hashes, mirrored, config.distance)
    groups = [group for group in groups if group[0].pool not in known]
    if config.confirm == "hash":
        looked = duplicates.by_hash(groups)
    else:
        with terminal.progress("SIFT", len(groups), "candidates") as advance:
            looked = duplicates.by_sift(groups, pool, held_out, advance)
    found = sorted([*equal, *(pair for pair in looked if pair.how)], key=lambda pair: pair.pool)
    others = [pair for pair in looked if not pair.how]
    plain = int(own.hashes.plain.sum()) - len(own.failed)
    return found, others, {"candidates": len(groups), "plain": plain}, own.failed


def _label_column(pool: Images, kept: Any) -> tuple[dict[str, Sequence[Any]], list[str]]:
    """The labels of what stays, and a line where the list does not show all classes."""
    if not (pool.labels >= 0).any():
        return {}, []
    labels = pool.labels[kept].tolist()
    names = sorted({pool.classes[label] for label in labels if label >= 0})
    notes = []
    if tuple(names) != tuple(sorted(pool.classes)):
        notes.append(
            f"{len(pool.classes) - len(names):,} of {len(pool.classes):,} classes have no image left; name all classes "
            f"of the list as `classes` in a config file"
        )
    return {"label": [pool.classes[label] if label >= 0 else "" for label in labels]}, notes


def _removed_columns(removed: Sequence[int], found: Sequence[Pair], held_out: Images) -> dict[str, Sequence[Any]]:
    pairs = {pair.pool: pair for pair in found}
    each = [pairs.get(row) for row in removed]
    return {
        "match": ["" if pair is None else held_out.keys[pair.held_out].as_py() for pair in each],
        "by": ["unreadable" if pair is None else pair.how for pair in each],
        "distance": ["" if pair is None else pair.distance for pair in each],
        "mirrored": ["" if pair is None else int(pair.mirrored) for pair in each],
        "keypoints": ["" if pair is None or pair.matches is None else pair.matches for pair in each],
    }
