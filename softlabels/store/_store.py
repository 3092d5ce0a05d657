"""A store: one data set's images, one recipe, and the labels of any number of teachers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from softlabels.core import locks as _lock
from softlabels.core.arrayfile import FORMATS
from softlabels.core.config import is_url
from softlabels.core.documents import (
    LARGEST,
    complete,
    differences,
    document,
    document_problems,
    joined,
    read_document,
)
from softlabels.core.files import remove_leftovers, whole, write_text
from softlabels.core.paths import SafePath
from softlabels.core.types import LOGITS
from softlabels.errors import StoreError, did_you_mean
from softlabels.store import _images
from softlabels.store._cache import Cache
from softlabels.store._folder import CARD
from softlabels.store._labels import TeacherLabels
from softlabels.store._layout import TeacherCard, check_chunks
from softlabels.store._manifest import NAME, ImageFile, Manifest, grown_id, identity, images_name, store_id
from softlabels.store._mirror import RemoteStore

_SUM = "# sha256 of all above: "
_SHARD = re.compile(r"\d{5,12}-v\d{1,6}-\d{1,6}\.(h5|zarr)")
RELABELLED = "relabelled.json"
"""Checksums of images that nobody could read when the store was made, and that were repaired since."""


class Relabelled(BaseModel):
    """What `RELABELLED` holds: for the rows of some images the checksum of their content now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    checksums: dict[int, Annotated[int, Field(ge=0, lt=1 << 64)]]


_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}(@[A-Za-z0-9_][A-Za-z0-9._-]{0,99})?")


def folder_name(teacher: str, output: str = LOGITS) -> str:
    """The folder of a teacher's labels: its name for logits, ``TEACHER@OUTPUT`` for another output."""
    return teacher if output == LOGITS else f"{teacher}@{output}"


def output_name(folder: str) -> str:
    """Which output the labels in a folder of this name are."""
    return folder.partition("@")[2] or LOGITS


class Store:
    """All labels of a data set, in the folder `root`, or behind a URL of which `root` is the local image."""

    def __init__(
        self, root: Path, manifest: Manifest, mirror: RemoteStore | None = None, cache: Cache | None = None
    ) -> None:
        self.root = root
        self.manifest = manifest
        self._mirror, self._cache = mirror, cache if mirror is None else mirror.cache

    @property
    def location(self) -> str:
        """The folder or the URL."""
        return str(self.root) if self._mirror is None else self._mirror.url

    def __len__(self) -> int:
        return self.manifest.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.location, self._cache)

    def __repr__(self) -> str:
        return f"Store({self.location!r}, images={len(self)}, teachers={self.teachers})"

    @cached_property
    def images(self) -> pa.Table:
        """The images in row order: key, label (-1: none), checksum of the content. Raises StoreError when damaged."""
        place = SafePath(self.root)
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
        labels: NDArray[np.int64] = self.images["label"].to_numpy()
        return labels

    @cached_property
    def checksums(self) -> NDArray[np.uint64]:
        """The images' content checksums in row order, of those that were relabelled the new ones: uint64 (n,)."""
        checksums: NDArray[np.uint64] = self.images["checksum"].to_numpy()
        relabelled = self.relabelled
        if relabelled:
            checksums = checksums.copy()
            checksums[list(relabelled)] = np.array(list(relabelled.values()), np.uint64)
        return checksums

    @cached_property
    def relabelled(self) -> dict[int, int]:
        """Rows whose image had other content when the store was made, which nobody could read, and its checksum now."""
        place = SafePath(self.root, (RELABELLED,))
        if not place.path.exists():
            return {}
        relabelled = read_document(place, Relabelled).checksums
        if any(not 0 <= row < len(self) for row in relabelled):
            raise StoreError(f"{place} names rows that {self.location} does not have; it is of another store")
        return relabelled

    def record_checksums(self, checksums: Mapping[int, int]) -> None:
        """Note that the images of these rows, of which there is no label yet, have other content now.

        Raises:
            StoreError: the note cannot be written.
        """
        with self._changing():
            self.__dict__.pop("relabelled", None)
            full = {**self.relabelled, **checksums}
            write_text(self.root / RELABELLED, document(Relabelled(store=self.manifest.id, checksums=full)))
            if self._mirror is not None:
                self._mirror.publish(RELABELLED)
        for name in ("relabelled", "checksums"):
            self.__dict__.pop(name, None)

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
            raise KeyError(f"{self.location} has no images with the keys {named}{more}")
        return found

    def population(self, rows: ArrayLike) -> NDArray[np.int64]:
        """How many images there were when each of these rows had just been added: int64 (n,)."""
        ends = np.cumsum([file.rows for file in self.manifest.images])
        return ends[np.searchsorted(ends, np.asarray(rows, np.int64), side="right")]

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers whose logits have a folder here, sorted."""
        return tuple(name for name in self.folders if output_name(name) == LOGITS)

    @property
    def folders(self) -> tuple[str, ...]:
        """Every folder of labels by name, sorted: of the teachers' logits, and of other outputs (`folder_name`)."""
        names = self._mirror.teachers() if self._mirror is not None else _folders(self.root)
        return tuple(name for name in names if _FOLDER.fullmatch(name) and _has_card(self.root, name))

    @property
    def orphans(self) -> list[str]:
        """Folders that hold shards but no card, one line each: whose labels they are is not known."""
        if self._mirror is not None:
            there = self._mirror.objects
            entries = {(parts[0], parts[1]) for name in there if len(parts := name.split("/")) > 1}
        else:
            entries = {(name, each) for name in _folders(self.root) for each in SafePath(self.root, (name,)).entries()}
        carded = {folder for folder, name in entries if name == CARD}
        lost = sorted(folder for folder, name in entries if folder not in carded and _SHARD.fullmatch(name))
        return [
            f"{self.location}/{folder} holds {lost.count(folder):,} shards but no {CARD}, so its labels cannot be "
            f"read; copy that file, too, or remove the folder"
            for folder in dict.fromkeys(lost)
        ]

    def teacher(self, name: str) -> TeacherLabels:
        """The labels of one teacher, or of another of its outputs (`folder_name`).

        Raises:
            StoreError: there is no such folder here, or its card is damaged.
        """
        if name not in self.folders:
            logits = output_name(name) == LOGITS
            what = "teacher" if logits else "output"
            known = [each for each in self.folders if (output_name(each) == LOGITS) == logits]
            raise StoreError(f"{self.location} has no {what} {name!r}; {did_you_mean(name, known)}")
        return self._labels(name)

    def prepare(self, name: str, card: TeacherCard) -> TeacherLabels:
        """The labels of teacher `name`, new ones or those that are there already.

        Raises:
            StoreError: the name cannot be a folder's, or the labels there are of another teacher, codec or format.
        """
        self.check_teacher(name, card)
        place, mirror = SafePath(self.root, (name, CARD)), self._mirror
        if mirror is not None and f"{name}/{CARD}" not in mirror.objects:
            with mirror.alone(name):  # of two machines that begin at the same time one makes the card
                if f"{name}/{CARD}" in mirror.objects:
                    mirror.bring(f"{name}/{CARD}")
                else:
                    write_text(place.path, document(complete(card)))
                    mirror.publish(f"{name}/{CARD}")
        elif not place.path.exists():
            with _lock.alone(self.root):
                if not place.path.exists():
                    write_text(place.path, document(complete(card)))
        self.check_teacher(name, card)  # once more: another process may have been first
        return self._labels(name)

    def check_teacher(self, name: str, card: TeacherCard) -> None:
        """Refuse what `prepare` refuses; nothing is written.

        Raises:
            StoreError: the name cannot be a folder's, the labels there are of another teacher, codec or format, or a
                shard of these labels would be larger than a reader takes.
        """
        if not _FOLDER.fullmatch(name) or output_name(name) != card.output:
            raise StoreError(
                f"a teacher's name is a folder's: letters, digits and ._+=- (at most 100), and @ before the name of "
                f"an output that is not its logits; not {name!r}"
            )
        if card.output == LOGITS and card.classes != self.manifest.classes:
            raise StoreError(
                f"{self.location} holds logits of {self.manifest.classes} classes, teacher {name} gives "
                f"{card.classes}; choose another folder for them"
            )
        FORMATS[card.format].check_compression(card.compression)
        differing = self._labels(name).card.differs(card) if name in self.folders else []
        if differing:
            raise StoreError(
                f"{self.location} holds other labels under the name {name}: {joined(differing)}; "
                f"use the same settings, another `name` or another folder"
            )
        check_chunks(card.layout, self.manifest.runs.longest)

    def append_images(self, images: pa.Table, data: Mapping[str, Any] | None = None) -> Store:
        """The store with these images added after those it has; finished shards stay as they are.

        Views of the new images are `missing` for every teacher until they are dumped.

        Args:
            images: key (string), label (int64), checksum (uint64); no key that is here already.
            data: where all images can be opened now; None when that is as before.

        Raises:
            StoreError: a key is here already, or the store cannot be written.
        """
        added = _images.normalised(images)
        with self._changing():
            remove_leftovers(self.root)
            current = open_folder(self.root)
            if current.manifest.images != self.manifest.images:
                raise StoreError(f"another process added images to {self.location}; run the same command again")
            _images.check_unique(pa.concat_tables([current.images, added]))
            file = _write_images(self.root, len(current.manifest.images), added)
            file = file.model_copy(update={"id": grown_id(current.manifest.ids[-1][1], file)})
            changes = {"images": (*current.manifest.images, file), **({} if data is None else {"data": dict(data)})}
            manifest = current.manifest.model_copy(update=changes)
            write_text(self.root / NAME, document(manifest))
            if self._mirror is not None:
                publish_documents(self._mirror, manifest)
        return open_folder(self.root, self._mirror, self._cache)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Be the only process that changes documents, which are as they are now; behind a URL, of all machines."""
        if self._mirror is None:
            with _lock.alone(self.root):
                yield
            return
        with self._mirror.alone(), _lock.alone(self.root):
            bring_documents(self._mirror)
            yield

    def keep(self, name: str, text: str) -> None:
        """Write a small text file of YAML beside the labels, with a checksum as its last line."""
        text += f"{_SUM}{hashlib.sha256(text.encode()).hexdigest()}\n"
        if self._mirror is not None:
            self._mirror.write(name, text)
        else:
            write_text(self.root / name, text)

    def verify(self) -> list[str]:
        """Read every byte of the manifest and the table of images; what is damaged, one line each.

        Each teacher's labels are verified by `TeacherLabels.verify`.
        """
        problems = []
        try:
            problems += document_problems(SafePath(self.root, (NAME,)), self.manifest)
            self.__dict__.pop("relabelled", None)
            self.relabelled  # noqa: B018  (read again, and so checked)
            problems += [f"{self.root / name} is not of this store" for name in self._strays()]
            problems += [*self.orphans, *self._changed_texts()]
            images = open_folder(self.root).images
            _images.check_unique(images)
            if not _same_images(self.manifest, images):
                problems.append(f"{self.root / NAME} has fingerprints that its tables of images do not give")
        except StoreError as problem:
            problems.append(str(problem))
        return problems

    def _strays(self) -> list[str]:
        """Files whose names look like ours but that the manifest does not know; others may keep files here, too."""
        known = {images_name(number) for number in range(len(self.manifest.images))}
        names = SafePath(self.root).entries()
        return [name for name in names if name.startswith("images") and name.endswith(".parquet") and name not in known]

    def _changed_texts(self) -> list[str]:
        """What `keep` wrote and is not as it was: commands may be run from it."""
        place, problems = SafePath(self.root), []
        for name in place.entries():
            if name.startswith(("dump-", "import-")) and name.endswith(".yaml"):
                text, mark, found = (place / name).read(LARGEST).rpartition(_SUM.encode())
                if mark and found.strip() != hashlib.sha256(text).hexdigest().encode():
                    problems.append(f"{place / name} does not match its checksum; it was changed or damaged")
        return problems

    def _labels(self, name: str) -> TeacherLabels:
        place = SafePath(self.root, (name, CARD))
        card = read_document(place, TeacherCard)
        if card.output != output_name(name):
            raise StoreError(
                f"{place} is of the output {card.output!r}; the folder was renamed, give it its name again"
            )
        if card.output == LOGITS and card.classes != self.manifest.classes:
            raise StoreError(
                f"{place} states {card.classes:,} classes and {NAME} {self.manifest.classes:,}; it is of another "
                f"store, copy it again from its source"
            )
        return TeacherLabels(self.root, self.manifest, name, card, self._mirror, self._cache)


def create(
    root: Location,
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
    cache: Cache | None = None,
) -> Store:
    """Make a store at `root`, a folder or a URL, or open the one that is there when it was made of the same.

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
        cache: where a remote store has its local image, and compressed shards are unpacked.

    Raises:
        StoreError: what is there is of other images, another recipe or another seed (both sides are shown), or the
            place cannot be written.
    """
    mirror = mirrored(root, cache)
    folder = folder_of(mirror or root)
    known = [name for name in _images.SCHEMA.names if name != "checksum" or checksums is None]
    table = _images.normalised(images, known)
    what = identity(classes, tuple(class_names), dict(recipe), seed)
    with making_store(mirror):
        if mirror is not None and NAME not in mirror.objects:
            _forget_others(mirror, dict(data), what, table)
        if not (folder / NAME).exists():
            refuse_inside(folder)
            with _lock.alone(folder):
                if not (folder / NAME).exists():
                    full = table
                    if checksums is not None:
                        full = table.append_column("checksum", pa.array(checksums(), pa.uint64()))
                    _make(folder, _images.normalised(full), dict(data), what, dict(versions or {}), rows_per_shard)
        else:
            remove_leftovers(folder)
        store = open_folder(folder, mirror, cache)
        _refuse_differences(store, dict(data), what, table)
        if mirror is None:
            _remove_unlisted_images(folder, store.manifest)
        else:
            publish_documents(mirror, store.manifest)
    return store


def check_new(root: Location) -> None:
    """Raise StoreError when no store can be made at `root`, where there is none; nothing is written."""
    if isinstance(root, RemoteStore) or is_url(root):
        return
    folder = folder_of(root)
    refuse_inside(folder)
    if folder.is_dir():
        refuse_orphans(folder)


def check_same(
    store: Store,
    *,
    data: Mapping[str, Any],
    images: pa.Table,
    class_names: Sequence[str] = (),
    classes: int,
    recipe: Mapping[str, Any],
    seed: int,
) -> None:
    """Refuse what `create` refuses of a store that is there; arguments and error are those of `create`."""
    known = [name for name in _images.SCHEMA.names if name in images.column_names]
    what = identity(classes, tuple(class_names), dict(recipe), seed)
    _refuse_differences(store, dict(data), what, _images.normalised(images, known))


Location = str | os.PathLike[str] | RemoteStore
"""Where a store is, or is to be: a folder, a URL, or a URL whose objects are listed already."""


def locate(root: Location, cache: Cache | None = None) -> Location:
    """What stands for `root` where several functions are called that take it: a URL is then listed once for all."""
    return mirrored(root, cache) or root


def open_store(root: Location, cache: Cache | None = None) -> Store:
    """The store at `root`, a folder or a URL; shards that are remote or compressed are copied to the cache when read.

    Raises:
        StoreError: there is none, it was not copied whole, it is damaged, of a newer format, or cannot be reached.
    """
    mirror = mirrored(root, cache)
    if mirror is None:
        return open_folder(folder_of(root), cache=cache)
    if NAME not in mirror.objects:
        raise StoreError(f"{mirror.url} has no {NAME}: it is no label store, or was not copied whole")
    return open_folder(mirror.folder, mirror)


def find_store(root: Location, cache: Cache | None = None) -> Store | None:
    """The store at `root`, a folder or a URL, or None where there is none. Raises StoreError as `open_store` does."""
    mirror = mirrored(root, cache)
    there = (folder_of(root) / NAME).exists() if mirror is None else NAME in mirror.objects
    return open_store(mirror or root, cache) if there else None


def mirrored(root: Location, cache: Cache | None) -> RemoteStore | None:
    """The local image of a remote store, its documents as they were there when it was listed; None for a folder."""
    if isinstance(root, RemoteStore):
        return root
    if not is_url(root):
        return None
    mirror = RemoteStore(str(root), cache or Cache.at())
    bring_documents(mirror)
    return mirror


def folder_of(root: Location) -> Path:
    """The folder in which this machine has a store: its own, or that of the local image."""
    return root.folder if isinstance(root, RemoteStore) else Path(root).absolute()


@contextlib.contextmanager
def making_store(mirror: RemoteStore | None) -> Iterator[None]:
    """Be the only process, of all machines, that makes a store behind a URL, where there is none yet.

    Another process that does is waited for, and what it made is seen then.
    """
    if mirror is None or NAME in mirror.objects:
        yield
        return
    with mirror.alone():
        bring_documents(mirror)
        yield


def bring_documents(mirror: RemoteStore) -> None:
    """Copy the documents of a remote store here, if there is one."""
    if NAME not in mirror.objects:
        return
    mirror.bring(NAME)
    manifest = read_document(SafePath(mirror.folder, (NAME,)), Manifest)
    for number in range(len(manifest.images)):
        mirror.bring(images_name(number))
    if RELABELLED in mirror.objects:
        mirror.bring(RELABELLED)
    for name in filter(_FOLDER.fullmatch, mirror.teachers()):
        mirror.bring(f"{name}/{CARD}")


def _forget_others(mirror: RemoteStore, data: dict[str, Any], what: dict[str, Any], table: pa.Table) -> None:
    """Remove the local image of a store that is not there any more, unless another process is just making this one."""
    if (mirror.folder / NAME).exists():
        try:
            _refuse_differences(open_folder(mirror.folder), data, what, table)
        except StoreError:
            mirror.forget()


def publish_documents(mirror: RemoteStore, manifest: Manifest) -> None:
    """Bring the remote documents up to date; the manifest, which makes it a store, comes last."""
    for number in range(len(manifest.images)):
        mirror.publish(images_name(number))
    if (mirror.folder / RELABELLED).exists():
        mirror.publish(RELABELLED)
    mirror.publish(NAME)


def open_folder(folder: Path, mirror: RemoteStore | None = None, cache: Cache | None = None) -> Store:
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder; a label store is made by `softlabels dump`")
    place = SafePath(folder)
    if NAME not in place.entries():
        raise StoreError(f"{folder} has no {NAME}: it is no label store, or was not copied whole")
    manifest = read_document(place / NAME, Manifest)
    if manifest.id != store_id(_identity(manifest), manifest.images[0]):
        raise _wrong_id(place)
    before = manifest.id
    for number, file in enumerate(manifest.images):
        if file.id is not None and (number == 0 or file.id != grown_id(before, file)):
            raise _wrong_id(place)
        before = file.id or manifest.id
    for number, file in enumerate(manifest.images):
        name = images_name(number)
        found = (place / name).size()
        if found != file.size:
            raise StoreError(
                f"{place / name} has {found:,} bytes instead of {file.size:,}; copy the store again, whole"
            )
        if file.rows * _images.SMALLEST_ROW > file.size:
            raise StoreError(f"{place / NAME} claims {file.rows:,} images, more than {name} has room for")
    return Store(folder, manifest, mirror, cache)


def _wrong_id(place: SafePath) -> StoreError:
    return StoreError(f"{place / NAME} has an id that its other values do not give; copy it again from its source")


def reopened(root: str, name: str, cache: Cache | None = None) -> TeacherLabels:
    """What a process does that receives labels from another one."""
    return open_store(root, cache).teacher(name)


def _make(
    folder: Path,
    table: pa.Table,
    data: dict[str, Any],
    what: dict[str, Any],
    versions: dict[str, str],
    rows_per_shard: int,
) -> None:
    refuse_orphans(folder)
    _images.check_unique(table)
    remove_leftovers(folder)
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


def refuse_orphans(folder: Path) -> None:
    """Raise StoreError when labels lie in a folder that is no store: whose they are is not known."""
    orphans = [name for name in _folders(folder) if _has_card(folder, name)]
    if orphans:
        raise StoreError(
            f"{folder} has labels of {orphans[0]} but no {NAME}: it was not copied whole; copy that file, too, "
            f"or choose another folder"
        )


def refuse_inside(folder: Path) -> None:
    """Raise StoreError when a store is to be made within another one, to which its files would be strangers."""
    for above in folder.parents:
        if (above / NAME).exists() and (above / images_name(0)).exists():
            raise StoreError(f"{folder} lies within the label store {above}; choose a folder beside it")


def _remove_unlisted_images(folder: Path, manifest: Manifest) -> None:
    """Remove the table of images that a killed growth left without an entry in the manifest."""
    if (folder / images_name(len(manifest.images))).exists():
        with _lock.alone(folder):  # a growth that is under way has this lock until the manifest is written
            unlisted = folder / images_name(len(open_folder(folder).manifest.images))
            unlisted.unlink(missing_ok=True)


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
    data = _images.to_parquet(table)
    write_images_file(folder / images_name(number), data)
    return ImageFile(
        rows=len(table),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        fingerprint=_images.table_fingerprint(table),
        contents=_images.contents(table),
    )


def _refuse_differences(store: Store, data: dict[str, Any], what: dict[str, Any], table: pa.Table) -> None:
    clauses = differences(_identity(store.manifest), what)
    if not _same_images(store.manifest, table):
        # Where images lie makes no difference; when they differ, it says which data sets were meant.
        clauses += differences({"data": store.manifest.data}, {"data": data})
        clauses.append(_images.first_row_difference(store.images, table))
    if clauses:
        raise StoreError(
            f"{store.location} was made otherwise: {joined(clauses)}; use the same settings or choose another folder"
        )


def _identity(manifest: Manifest) -> dict[str, Any]:
    return identity(manifest.classes, manifest.class_names, manifest.recipe, manifest.seed)


def _same_images(held: Manifest, table: pa.Table) -> bool:
    first = 0
    for file in held.images:
        part = table.slice(first, file.rows)
        first += file.rows
        if len(part) != file.rows or _images.table_fingerprint(part) != file.fingerprint:
            return False
        if "checksum" in table.column_names and _images.contents(part) != file.contents:
            return False
    return first == len(table)
