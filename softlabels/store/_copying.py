"""A second store of the same images, for labels to be copied to."""

from __future__ import annotations

from pathlib import Path

from softlabels._files import write_text
from softlabels.errors import StoreError
from softlabels.store import _lock
from softlabels.store._documents import differences, document, joined
from softlabels.store._inside import Place
from softlabels.store._manifest import NAME, images_name
from softlabels.store._store import Store, open_store, write_images_file


def copy_images(source: Store, root: Path) -> Store:
    """A store at `root` of the same images, recipe and runs as `source`, without labels; an equal one is opened.

    Shards that `TeacherLabels.read_shard` reads from the one can be written to the other, in any format.

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


def _refuse_other(source: Store, target: Store) -> None:
    names = {"versions", "data"}  # where images lie makes no difference
    clauses = differences(target.manifest.model_dump(exclude=names), source.manifest.model_dump(exclude=names))
    if clauses:
        raise StoreError(f"{target.root} and {source.root} (there and here) are not of the same: {joined(clauses)}")
