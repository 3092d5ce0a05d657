"""A second store of the same images, for labels to be copied to."""

from __future__ import annotations

from pathlib import Path

from softlabels.core import locks as _lock
from softlabels.core.documents import differences, document, joined
from softlabels.core.files import remove_leftovers, write_text
from softlabels.core.paths import SafePath
from softlabels.errors import StoreError
from softlabels.store._cache import Cache
from softlabels.store._manifest import NAME, images_name
from softlabels.store._mirror import RemoteStore
from softlabels.store._store import (
    RELABELLED,
    Location,
    Relabelled,
    Store,
    folder_of,
    making_store,
    mirrored,
    open_folder,
    publish_documents,
    refuse_inside,
    refuse_orphans,
    write_images_file,
)


def copy_images(source: Store, root: Location, cache: Cache | None = None) -> Store:
    """A store at `root`, a folder or a URL, of the same images, recipe and runs as `source`, without labels.

    An equal one that is there is opened. Shards that `TeacherLabels.read_shard` reads from the one can be written to
    the other, in any format.

    Args:
        cache: where a remote store has its local image.

    Raises:
        StoreError: another store is there (the difference is shown), or it cannot be written.
    """
    mirror = mirrored(root, cache)
    folder = folder_of(mirror or root)
    with making_store(mirror):
        if mirror is not None and NAME not in mirror.objects:
            _forget_others(source, mirror)
        if not (folder / NAME).exists():
            refuse_inside(folder)
            source.images  # noqa: B018  (read, and so checked, before it is copied)
            with _lock.alone(folder):
                if not (folder / NAME).exists():
                    _make(source, folder)
        target = open_folder(folder, mirror)
        _refuse_other(source, target)
        if mirror is not None:
            publish_documents(mirror, target.manifest)
    return target


def _forget_others(source: Store, mirror: RemoteStore) -> None:
    """Remove the local image of a store that is not there any more, unless another process is just making this one."""
    if (mirror.folder / NAME).exists():
        try:
            _refuse_other(source, open_folder(mirror.folder))
        except StoreError:
            mirror.forget()


def _make(source: Store, folder: Path) -> None:
    refuse_orphans(folder)
    remove_leftovers(folder)
    for number, file in enumerate(source.manifest.images):
        name = images_name(number)
        write_images_file(folder / name, SafePath(source.root, (name,)).read(file.size))
    if source.relabelled:
        write_text(folder / RELABELLED, document(Relabelled(store=source.manifest.id, checksums=source.relabelled)))
    write_text(folder / NAME, document(source.manifest))


def _refuse_other(source: Store, target: Store) -> None:
    # Neither where images lie makes a difference, nor which version of this package added them.
    target_is, source_is = (
        store.manifest.model_dump(exclude={"versions": True, "data": True, "images": {"__all__": {"id"}}})
        for store in (target, source)
    )
    clauses = differences(target_is, source_is)
    if clauses:
        raise StoreError(
            f"{target.location} and {source.location} (there and here) are not of the same: {joined(clauses)}"
        )
