"""The store that a dump writes to: made, opened, or grown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels._philox import permutation
from softlabels.datasets import Images, content_checksums, subset
from softlabels.errors import StoreError
from softlabels.provenance import versions
from softlabels.runs._parts import matched
from softlabels.store import Cache, Store, create, holds_store, open_store
from softlabels.views import Recipe

CONTENT_CHECKS = 64
"""Images whose content is compared with the store's checksums when a dump goes on."""


def make_store(
    root: str | os.PathLike[str],
    images: Images,
    recipe: Recipe,
    *,
    seed: int,
    classes: int,
    rows_per_shard: int,
    limit: int | None = None,
    grow: bool = False,
    cache: Cache | None = None,
) -> tuple[Store, Images]:
    """The store of these images and views at `root`, made or opened, and the images in the order of its rows.

    Images that it lacks are added after those it has when it may `grow`; finished shards stay as they are.

    Raises:
        StoreError: another store is there (the difference is shown), some images are new to it and it may not grow, or
            it cannot be written.
    """
    there = open_store(root, cache) if holds_store(root, cache) else None
    arranged, new = in_store_order(there, images)
    if new and not grow:
        first = arranged.keys[len(arranged) - new].as_py()
        raise StoreError(
            f"{root} holds {len(arranged) - new:,} of these {len(arranged):,} images; add the {new:,} new ones (the "
            f"first is {first!r}) with --grow, or choose another --out"
        )
    known = subset(arranged, np.arange(len(arranged) - new)) if new else arranged
    columns, stored = {"key": known.keys, "label": known.labels}, _stored_checksums(there, known)
    data = dict(images.spec) | ({"limit": limit} if limit is not None else {})
    store = create(
        root,
        data=data,
        images=pa.table(columns if stored is None else {**columns, "checksum": stored}),
        checksums=(lambda: content_checksums(known)) if stored is None else None,
        class_names=images.classes,
        classes=classes,
        recipe=recipe.model_dump(mode="json"),
        seed=seed,
        versions=versions(images),
        rows_per_shard=rows_per_shard,
        cache=cache,
    )
    return (_grown(store, arranged, data, cache) if new else store), arranged


def in_store_order(store: Store | None, images: Images) -> tuple[Images, int]:
    """`images` as the store has them, then those that it lacks, and how many these are.

    They are as they were when there is no store yet.

    Raises:
        StoreError: the store has images that these lack; their number and the first are told.
    """
    if store is None or store.keys == images.keys:
        return images, 0
    known, new = matched(store, images)
    lost = np.flatnonzero(known < 0)
    if len(lost):
        raise StoreError(
            f"{store.location} has {len(store):,} images, of which {images.name} lacks {len(lost):,} (the first is "
            f"{store.keys[lost[0]].as_py()!r}); bring them back, mind --limit and --split, or choose another --out"
        )
    return subset(images, np.concatenate([known, new])), len(new)


def _stored_checksums(store: Store | None, images: Images) -> pa.Array | None:
    """Content checksums of the images where a store of their keys is there; None where there is none.

    The store's stand for the contents but for a few that are compared, since reading every image again would make
    "nothing to do" take hours; `verify` compares them all.
    """
    if store is None or store.keys != images.keys:
        return None
    few = np.setdiff1d(permutation(len(images))[:CONTENT_CHECKS], unread_rows(store))
    checksums = store.images["checksum"].to_numpy().copy()
    now = content_checksums(images, few)
    checksums[few] = np.where(now == store.checksums[few], checksums[few], now)
    return pa.array(checksums, pa.uint64())


def unread_rows(store: Store) -> NDArray[np.int64]:
    """The rows of which a teacher made an attempt and none has a label, int64 (n,): what lies there may be mended."""
    skipped = [set(labels.skipped) for labels in map(store.teacher, store.teachers) if labels.shards]
    return np.array(sorted(set.intersection(*skipped)) if skipped else [], np.int64)


def mend(store: Store, images: Images, rows: Sequence[int]) -> None:
    """Have the store know the content of images that can be read again; `images` are in the order of its rows.

    Raises:
        StoreError: some teacher labelled an image when it had other content.
    """
    if not len(rows):
        return
    now = content_checksums(images, np.array(rows, np.int64))
    changed = {row: int(checksum) for row, checksum in zip(rows, now, strict=True) if checksum != store.checksums[row]}
    labelled = sorted(changed.keys() - set(unread_rows(store).tolist()))
    if labelled:
        raise StoreError(
            f"image {images.keys[labelled[0]].as_py()!r} can be read again, but is not the one that other teachers of "
            f"{store.location} labelled; restore that one, or make a new store"
        )
    if changed:
        store.mend(changed)


def _grown(store: Store, images: Images, data: Mapping[str, Any], cache: Cache | None) -> Store:
    """The store with those of `images` that come after its own; `data` opens them all."""
    rows = np.arange(len(store), len(images))
    keys, labels = images.keys.slice(len(store)), images.labels[len(store) :]
    try:
        table = pa.table({"key": keys, "label": labels, "checksum": content_checksums(images, rows)})
        return store.append_images(table, data)
    except StoreError:
        # Another process of the same command may have added them while this one read them.
        current = open_store(store.location, cache)
        if current.keys != images.keys:
            raise
        return current
