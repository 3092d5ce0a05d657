"""A store: one data set's images, one recipe, and the labels of any number of teachers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softlabels._files import remove_partial, whole, write_text
from softlabels.errors import StoreError, did_you_mean
from softlabels.store import _images, _lock
from softlabels.store._documents import (
    differences,
    document,
    document_problems,
    joined,
    read_document,
)
from softlabels.store._folder import CARD
from softlabels.store._inside import Place
from softlabels.store._labels import TeacherLabels
from softlabels.store._layout import TeacherCard
from softlabels.store._manifest import NAME, ImageFile, Manifest, identity, images_name, store_id

_TEACHER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,99}")


class Store:
    """All labels of a data set, in the folder `root`."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    def __len__(self) -> int:
        return self.manifest.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (str(self.root),)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}, images={len(self)}, teachers={self.teachers})"

    @cached_property
    def images(self) -> pa.Table:
        """The images in row order: key, label (-1: none), checksum of the content. Raises StoreError when damaged."""
        place = Place(self.root)
        tables = [
            _images.read(place / images_name(number), file.rows, file.sha256, file.size)
            for number, file in enumerate(self.manifest.images)
        ]
        return pa.concat_tables(tables)

    @property
    def keys(self) -> pa.ChunkedArray:
        """The images' keys in row order, strings."""
        return self.images["key"]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The images' hard labels in row order, -1 where there is none: int64 (n,)."""
        return self.images["label"].to_numpy()

    @cached_property
    def checksums(self) -> NDArray[np.uint64]:
        """The images' content checksums in row order: uint64 (n,)."""
        return self.images["checksum"].to_numpy()

    def find(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """The row of each key (an Arrow column or any strings), -1 where there is none: int64 (n,)."""
        return _images.find(self.keys, keys)

    def rows(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """The row of each key: int64 (n,). Raises KeyError, which names those that are not here."""
        given = _images.as_strings(keys)
        found = _images.find(self.keys, given)
        absent = np.flatnonzero(found < 0)
        if absent.size:
            named = ", ".join(repr(given[int(place)].as_py()) for place in absent[:5])
            more = f" and {absent.size - 5:,} more" if absent.size > 5 else ""
            raise KeyError(f"{self.root} has no images with the keys {named}{more}")
        return found

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers that have a folder here, sorted."""
        return tuple(name for name in _folders(self.root) if _TEACHER.fullmatch(name) and _has_card(self.root, name))

    def teacher(self, name: str) -> TeacherLabels:
        """The labels of one teacher.

        Raises:
            StoreError: there is no such teacher here, or its card is damaged.
        """
        if name not in self.teachers:
            raise StoreError(f"{self.root} has no teacher {name!r}; {did_you_mean(name, self.teachers)}")
        return self._labels(name)

    def prepare(self, name: str, card: TeacherCard) -> TeacherLabels:
        """The labels of teacher `name`, new ones or those that are there already.

        Raises:
            StoreError: the name cannot be a folder's, or the labels there are of another teacher, codec or format.
        """
        if not _TEACHER.fullmatch(name):
            raise StoreError(f"a teacher's name is a folder's: letters, digits and ._+=@- (at most 100), not {name!r}")
        if card.classes != self.manifest.classes:
            raise StoreError(
                f"{self.root} holds logits of {self.manifest.classes} classes, teacher {name} gives {card.classes}; "
                f"choose another folder for them"
            )
        place = Place(self.root, (name, CARD))
        if not place.path.exists():
            with _lock.alone(self.root):
                if not place.path.exists():
                    write_text(place.path, document(card))
        labels = self._labels(name)
        differing = differences(labels.card.identity, card.identity)
        if differing:
            raise StoreError(
                f"{self.root} holds other labels under the name {name}: {joined(differing)}; "
                f"use the same settings, another name or another folder"
            )
        return labels

    def append_images(self, images: pa.Table) -> Store:
        """The store with these images added after those it has; finished shards stay as they are.

        Views of the new images are `missing` for every teacher until they are dumped.

        Args:
            images: key (string), label (int64), checksum (uint64); no key that is here already.

        Raises:
            StoreError: a key is here already, or the store cannot be written.
        """
        added = _images.normalised(images)
        with _lock.alone(self.root):
            current = open_store(self.root)
            _images.check_unique(pa.concat_tables([current.images, added]))
            file = _write_images(self.root, len(current.manifest.images), added)
            manifest = current.manifest.model_copy(update={"images": (*current.manifest.images, file)})
            write_text(self.root / NAME, document(manifest))
        return open_store(self.root)

    def verify(self) -> list[str]:
        """Read every byte of the manifest and the table of images; what is damaged, one line each.

        Each teacher's labels are verified by `TeacherLabels.verify`.
        """
        problems = []
        try:
            problems += document_problems(Place(self.root, (NAME,)), self.manifest)
            problems += [f"{self.root / name} is not of this store" for name in self._strays()]
            images = open_store(self.root).images
            _images.check_unique(images)
            if not _same_images(self.manifest, images):
                problems.append(f"{self.root / NAME} has fingerprints that its tables of images do not give")
        except StoreError as problem:
            problems.append(str(problem))
        return problems

    def _strays(self) -> list[str]:
        """Files whose names look like ours but that the manifest does not know; others may keep files here, too."""
        known = {images_name(number) for number in range(len(self.manifest.images))}
        names = Place(self.root).entries()
        return [name for name in names if name.startswith("images") and name.endswith(".parquet") and name not in known]

    def _labels(self, name: str) -> TeacherLabels:
        card = read_document(Place(self.root, (name, CARD)), TeacherCard)
        return TeacherLabels(self.root, self.manifest, name, card)


def create(
    root: str | os.PathLike[str],
    *,
    data: Mapping[str, Any],
    images: pa.Table,
    checksums: Callable[[], NDArray[np.uint64]] | None = None,
    class_names: Sequence[str] = (),
    classes: int,
    recipe: Mapping[str, Any],
    seed: int,
    versions: Mapping[str, str] | None = None,
    rows_per_shard: int,
) -> Store:
    """Make a store at `root`, or open the one that is there when it was made of the same.

    Args:
        data: where the images came from, as JSON values. It opens them again and decides nothing: keys, labels and
            checksums tell data sets apart, so images may move.
        images: key (string), label (int64, -1: none) and checksum (uint64, of the content) of every image, in row
            order.
        checksums: gives the column `checksum` when the table has none. It is asked only when the store is made, since
            it may have to read every image; an existing store is then compared by keys and labels.
        class_names: in label order; empty when there are none.
        classes: width of the logits.
        recipe: of the views, as JSON values.
        seed: what the views are drawn from.
        versions: of libraries, for people to read.
        rows_per_shard: rows in one shard of a new store; one that is there keeps its own.

    Raises:
        StoreError: what is there is of other images, another recipe or another seed (both sides are shown), or the
            place cannot be written.
    """
    folder = Path(root).absolute()
    known = [name for name in _images.SCHEMA.names if name != "checksum" or checksums is None]
    table = _images.normalised(images, known)
    what = identity(classes, tuple(class_names), dict(recipe), seed)
    if not (folder / NAME).exists():
        with _lock.alone(folder):
            if not (folder / NAME).exists():
                full = (
                    table if checksums is None else table.append_column("checksum", pa.array(checksums(), pa.uint64()))
                )
                _make(folder, _images.normalised(full), dict(data), what, dict(versions or {}), rows_per_shard)
    store = open_store(folder)
    _refuse_differences(store, dict(data), what, table)
    return store


def open_store(root: str | os.PathLike[str]) -> Store:
    """The store at `root`.

    Raises:
        StoreError: there is none, it was not copied whole, it is damaged, or of a newer format.
    """
    folder = Path(root).absolute()
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder; a label store is made by `softlabels dump`")
    place = Place(folder)
    if NAME not in place.entries():
        raise StoreError(f"{folder} has no {NAME}: it is no label store, or was not copied whole")
    manifest = read_document(place / NAME, Manifest)
    if manifest.id != store_id(_identity(manifest), manifest.images[0]):
        raise StoreError(f"{place / NAME} has an id that its other values do not give; copy it again from its source")
    for number, file in enumerate(manifest.images):
        name = images_name(number)
        found = (place / name).size()
        if found != file.size:
            raise StoreError(
                f"{place / name} has {found:,} bytes instead of {file.size:,}; copy the store again, whole"
            )
        if file.rows * _images.SMALLEST_ROW > file.size:
            raise StoreError(f"{place / NAME} claims {file.rows:,} images, more than {name} has room for")
    return Store(folder, manifest)


def reopened(root: str, name: str) -> TeacherLabels:
    """What a process does that receives labels from another one."""
    return open_store(root).teacher(name)


def _make(
    folder: Path,
    table: pa.Table,
    data: dict[str, Any],
    what: dict[str, Any],
    versions: dict[str, str],
    rows_per_shard: int,
) -> None:
    orphans = [name for name in _folders(folder) if _has_card(folder, name)]
    if orphans:
        raise StoreError(
            f"{folder} has labels of {orphans[0]} but no {NAME}: it was not copied whole; copy that file, too, "
            f"or choose another folder"
        )
    _images.check_unique(table)
    remove_partial(folder)
    file = _write_images(folder, 0, table)
    manifest = Manifest(
        id=store_id(what, file),
        data=data,
        versions=versions,
        rows_per_shard=rows_per_shard,
        images=(file,),
        **what,
    )
    write_text(folder / NAME, document(manifest))


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _has_card(root: Path, name: str) -> bool:
    return (root / name / CARD).exists()


def write_images_file(path: Path, data: bytes) -> None:
    """Put a Parquet file of images in its place, whole."""
    with whole(path) as partial:
        partial.write_bytes(data)


def _write_images(folder: Path, number: int, table: pa.Table) -> ImageFile:
    data = _images.encoded(table)
    write_images_file(folder / images_name(number), data)
    return ImageFile(
        rows=len(table),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        fingerprint=_images.fingerprint(table),
        contents=_images.contents(table),
    )


def _refuse_differences(store: Store, data: dict[str, Any], what: dict[str, Any], table: pa.Table) -> None:
    clauses = differences(_identity(store.manifest), what)
    if not _same_images(store.manifest, table):
        # Where images lie makes no difference; when they differ, it says which data sets were meant.
        clauses += differences({"data": store.manifest.data}, {"data": data})
        clauses.append(_images.first_difference(store.images, table))
    if clauses:
        raise StoreError(
            f"{store.root} was made otherwise: {joined(clauses)}; use the same settings or choose another folder"
        )


def _identity(manifest: Manifest) -> dict[str, Any]:
    return identity(manifest.classes, manifest.class_names, manifest.recipe, manifest.seed)


def _same_images(held: Manifest, table: pa.Table) -> bool:
    first = 0
    for file in held.images:
        part = table.slice(first, file.rows)
        first += file.rows
        if len(part) != file.rows or _images.fingerprint(part) != file.fingerprint:
            return False
        if "checksum" in table.column_names and _images.contents(part) != file.contents:
            return False
    return first == len(table)
