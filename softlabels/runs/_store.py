"""The store that a dump writes to: made, opened, or grown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

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
    few = permutation(len(images))[:CONTENT_CHECKS]
    checksums = store.checksums.copy()
    checksums[few] = content_checksums(images, few)
    return pa.array(checksums, pa.uint64())


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
