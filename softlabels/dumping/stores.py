"""The store that a dump writes to: what it has to be, and how it is made, opened, or grown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from softlabels.datasets import Images, content_checksums, some_rows, subset
from softlabels.errors import DataError, SoftlabelsError, StoreError
from softlabels.loading.opening import check_place, matched
from softlabels.loading.provenance import versions
from softlabels.store import (
    Cache,
    Location,
    Runs,
    Shard,
    Store,
    TeacherCard,
    TeacherLabels,
    check_chunks,
    check_new,
    check_same,
    create,
    find_store,
    locate,
    open_store,
)
from softlabels.views import RECIPES, Recipe


@dataclass(frozen=True)
class Arrangement:
    """The store of some images and views as it has to be; nothing is written yet. Made by `arrange`.

    `images` are in the order of its rows, the `new` last ones of them not stored yet. `there` is what there is now.
    """

    root: Location
    cache: Cache | None
    there: Store | None
    images: Images
    new: int
    what: Mapping[str, Any]
    rows_per_shard: int

    @property
    def runs(self) -> Runs:
        """How its rows are cut into shards."""
        if self.there is None:
            return Runs((len(self.images),), self.rows_per_shard)
        held = self.there.manifest
        added = (self.new,) if self.new else ()
        return Runs((*(file.rows for file in held.images), *added), held.rows_per_shard)

    def card(self, name: str) -> TeacherCard | None:
        """The card of the folder of labels of this name, where there is one."""
        return None if self.there is None or name not in self.there.folders else self.there.teacher(name).card

    def check(self, name: str, card: TeacherCard) -> None:
        """Raise StoreError for all that keeps the labels of this card from being written here."""
        if self.there is not None:
            self.there.check_teacher(name, card)
        check_chunks(card.layout, self.runs.longest)

    def missing(self, name: str, views: int, part: tuple[int, int]) -> list[Shard]:
        """The shards of this part that a teacher's first `views` views will lack, as `TeacherLabels.due`."""
        runs, held, found = self.runs, 0, []
        if self.card(name) is not None and self.there is not None:
            held, found = len(self.there.manifest.runs), self.there.teacher(name).due(views, part)
        index, count = part
        return [*found, *(runs.shard(run, 0, views) for run in range(held, len(runs)) if run % count == index)]

    def made(self) -> Store:
        """The store, made, opened or grown.

        Raises:
            StoreError: it cannot be written.
        """
        known, table = self._known, self._table
        store = create(
            self.root,
            images=table,
            checksums=None if "checksum" in table.column_names else lambda: content_checksums(known),
            versions=versions(self.images),
            rows_per_shard=self.rows_per_shard,
            cache=self.cache,
            **self.what,
        )
        return _grown(store, self.images, self.what["data"], self.cache) if self.new else store

    def refuse_differences(self) -> None:
        """Raise StoreError when there is another store, or none can be made."""
        if self.there is None:
            check_new(self.root)
            return
        try:
            check_same(self.there, images=self._table, **self.what)
        except StoreError as problem:
            damaged = [
                f"{name}/{shard.name}" for name in self.there.teachers for shard in self.there.teacher(name).broken
            ]
            if not damaged:
                raise
            raise StoreError(
                f"{problem}; {len(damaged):,} shards are damaged (first: {damaged[0]}) and count as labels of all "
                f"their images: `softlabels repair` makes them again or removes them"
            ) from problem

    @cached_property
    def _known(self) -> Images:
        return subset(self.images, np.arange(len(self.images) - self.new)) if self.new else self.images

    @cached_property
    def _table(self) -> pa.Table:
        """Keys and labels of the known images; and their content checksums where a store of their keys is there.

        The store's stand for the contents but for some that are compared, since reading every image again would make
        "nothing to do" take hours; `verify` compares them all.
        """
        images = self._known
        table = pa.table({"key": images.keys, "label": images.labels})
        if self.there is None or self.there.keys != images.keys:
            return table
        few = np.setdiff1d(some_rows(images), unread_rows(self.there))
        checksums = self.there.images["checksum"].to_numpy().copy()
        now = content_checksums(images, few)
        checksums[few] = np.where(now == self.there.checksums[few], checksums[few], now)
        return table.append_column("checksum", pa.array(checksums, pa.uint64()))


def arrange(
    root: Location,
    images: Images,
    recipe: Recipe,
    *,
    seed: int,
    classes: int,
    rows_per_shard: int,
    limit: int | None = None,
    grow: bool = False,
    cache: Cache | None = None,
) -> Arrangement:
    """The store of these images and views at `root` as it has to be; what cannot be is refused, nothing is written.

    Images that it lacks are added after those it has when it may `grow`; finished shards stay as they are.

    Raises:
        StoreError: another store is there (the difference is shown), some images are new to it and it may not grow, or
            none can be made at this place.
    """
    check_place(str(root), "label store", images)
    root = locate(root, cache)
    there = find_store(root, cache)
    arranged, new = in_store_order(there, images)
    if new and not grow:
        first = arranged.keys[len(arranged) - new].as_py()
        raise StoreError(
            f"{root} holds {len(arranged) - new:,} of these {len(arranged):,} images; add the {new:,} new ones (the "
            f"first is {first!r}) with `grow=True`, or choose another `out`"
        )
    what = {
        "data": dict(images.spec) | ({"limit": limit} if limit is not None else {}),
        "class_names": images.classes,
        "classes": classes,
        "recipe": as_written(there.manifest.recipe if there else None, recipe.model_dump(mode="json"), RECIPES.make),
        "seed": seed,
    }
    found = Arrangement(root, cache, there, arranged, new, what, rows_per_shard)
    found.refuse_differences()
    return found


def make_store(root: Location, images: Images, recipe: Recipe, **settings: Any) -> tuple[Store, Images]:
    """The store of these images and views at `root`, made, opened or grown, and the images in the order of its rows.

    `settings` and errors are those of `arrange`; StoreError also when it cannot be written.
    """
    arranged = arrange(root, images, recipe, **settings)
    return arranged.made(), arranged.images


def as_written(
    there: Mapping[str, Any] | None, now: Mapping[str, Any], meaning: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    """`now`, or what is written `there` where it has the same meaning.

    A part may have got a setting with a default since it was written; that makes it no other one.
    """
    try:
        same = there is not None and meaning(there) == meaning(now)
    except (SoftlabelsError, ValidationError):
        same = False
    return dict(there if there is not None and same else now)


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
            f"{store.keys[lost[0]].as_py()!r}); bring them back, mind `limit` and `split`, or choose another `out`"
        )
    return subset(images, np.concatenate([known, new])), len(new)


def unread_rows(store: Store) -> NDArray[np.int64]:
    """The rows of which no teacher has a label, int64 (n,): what lies there may be relabelled.

    A shard whose header is damaged may have a label of each of its rows.
    """
    unread = np.ones(len(store), bool)
    for labels in map(store.teacher, store.teachers):
        skips = dict(labels.skips())
        for shard in labels.shards:
            labelled = np.ones(shard.rows, bool)
            labelled[[row - shard.first_row for row in skips.get(shard, ())]] = False
            unread[shard.first_row : shard.stop_row] &= ~labelled
        for shard in labels.broken:
            unread[shard.first_row : shard.stop_row] = False
    return np.flatnonzero(unread)


def rows_to_recheck(store: Store, images: Images) -> NDArray[np.int64]:
    """The rows that nobody labelled and some teacher skipped, or that a dump that goes on compares, int64 (n,)."""
    skipped = {row for name in store.teachers for row in store.teacher(name).skipped}
    return np.intersect1d(unread_rows(store), sorted(skipped.union(some_rows(images).tolist())))


def update_checksums(store: Store, images: Images, rows: Sequence[int]) -> None:
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
        store.record_checksums(changed)


def check_labelled(store: Store, labels: TeacherLabels, images: Images, shards: Sequence[Shard]) -> None:
    """Compare the images that these shards have labels of with what was labelled, before they are dumped again.

    Raises:
        DataError: one has other content now, or cannot be read; it is named.
    """
    skips = dict(labels.skips())
    for shard in shards:
        rows = np.setdiff1d(np.arange(shard.first_row, shard.stop_row), list(skips.get(shard, ())))
        changed = rows[content_checksums(images, rows) != store.checksums[rows]]
        if len(changed):
            raise DataError(
                f"image {images.keys[int(changed[0])].as_py()!r} has other content than when it was labelled, and its "
                f"shard is to be dumped again, since other images of it can be read now; restore it, or make a new "
                f"store"
            )


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
