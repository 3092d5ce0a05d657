"""Labels from one store into another: into another format, or from the parts that several machines dumped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from softlabels._files import write_text
from softlabels.errors import StoreError
from softlabels.store import _lock
from softlabels.store._documents import differences, document, joined
from softlabels.store._inside import Place
from softlabels.store._labels import ShardContent, TeacherLabels
from softlabels.store._manifest import NAME, images_name
from softlabels.store._shard import Shard
from softlabels.store._store import Store, open_store, write_images_file


def copy_images(source: Store, root: Path) -> Store:
    """A store at `root` of the same images, recipe and runs as `source`, without labels; an equal one is opened.

    Raises:
        StoreError: another store is there (the difference is shown), or it cannot be written.
    """
    folder = Path(root).absolute()
    if not (folder / NAME).exists():
        source.images  # noqa: B018  (read, and so checked, before it is copied)
        with _lock.alone(folder):
            for number, file in enumerate(source.manifest.images):
                name = images_name(number)
                write_images_file(folder / name, Place(source.root, (name,)).read(file.size))
            write_text(folder / NAME, document(source.manifest))
    target = open_store(folder)
    _refuse_other(source, target)
    return target


def merge(source: Store, target: Store) -> int:
    """Copy every label that `target` lacks, of every teacher of `source`; how many shards were written.

    Raises:
        StoreError: the stores are of different images, recipes or teachers, or a shard of `source` is damaged.
    """
    _refuse_other(source, target)
    return sum(
        copy_labels(source.teacher(name), target.prepare(name, source.teacher(name).card)) for name in source.teachers
    )


def copy_labels(source: TeacherLabels, target: TeacherLabels) -> int:
    """Copy every label that `target` lacks, whatever the formats of the two; how many shards were written.

    Raises:
        StoreError: the arrays or the runs of rows differ, or a shard of `source` is damaged.
    """
    if source.runs != target.runs or source.card.layout != target.card.layout:
        raise StoreError(f"{source!r} and {target!r} have other arrays or other runs of rows; dump or convert anew")
    written = 0
    with target.writing():
        held = {(shard.run, view) for shard in target.shards for view in _views(shard)}
        for shard in source.shards:
            ranges = list(_ranges([view for view in _views(shard) if (shard.run, view) not in held]))
            content = source.read_shard(shard) if ranges else None
            for first, stop in ranges:
                assert content is not None
                piece = Shard(shard.run, shard.first_row, shard.stop_row, first, stop)
                _write(target, piece, content, first - shard.first_view)
                written += 1
            held.update((shard.run, view) for view in _views(shard))
    return written


def _write(target: TeacherLabels, piece: Shard, content: ShardContent, first: int) -> None:
    views = slice(first, first + piece.views)
    target.write(
        piece,
        {name: array[views] for name, array in content.arrays.items()},
        skipped=content.skipped,
        digests={row: texts[views] for row, texts in content.digests.items()},
    )


def _views(shard: Shard) -> range:
    return range(shard.first_view, shard.stop_view)


def _ranges(views: list[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as ranges (first, stop)."""
    for place, view in enumerate(views):
        if place == 0 or views[place - 1] != view - 1:
            first = view
        if place + 1 == len(views) or views[place + 1] != view + 1:
            yield first, view + 1


def _refuse_other(source: Store, target: Store) -> None:
    there, here = target.manifest, source.manifest
    clauses = differences(there.model_dump(exclude={"versions"}), here.model_dump(exclude={"versions"}))
    if clauses:
        raise StoreError(f"{target.root} and {source.root} (there and here) are not of the same: {joined(clauses)}")
