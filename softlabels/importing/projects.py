"""Labels that other projects published, made a store of: read without running anything that a file holds.

Each project has a file here with what its own code says of the layout; other packages add theirs by an entry point in
the group ``softlabels.importers`` (`choices.IMPORTERS`). The views are those that the files tell of, so crops and
changes are recorded with the labels (`softlabels.loading.records`) instead of being drawn.

Nothing in such files says which image a label is of, beyond a name or a place in a list or an order. The one check
there is, is made before anything is written: how often the class that is named first is the image's own
(`check_pairing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.choices import IMPORTERS
from softlabels.core.arrays import Rows
from softlabels.core.philox import Words
from softlabels.core.progress import Terminal, duration, plural, size
from softlabels.datasets import Images
from softlabels.dumping.dump import count, shard_digests
from softlabels.errors import ConfigError, DataError
from softlabels.importing._listing import Listing, as_image_folder
from softlabels.importing._pairing import Pairing, check_pairing
from softlabels.importing._source import Choices, ImageLabels, Source, checked_ids, checked_labels, encoded
from softlabels.importing.replayed import RecordedMix, SeededMix
from softlabels.loading.labels import layout_beside
from softlabels.loading.views import ViewDataset
from softlabels.store import Shard, TeacherLabels
from softlabels.views import record_spec

__all__ = [
    "IMPORTERS",
    "Choices",
    "ImageLabels",
    "ImportReport",
    "Listing",
    "Pairing",
    "ShardRecords",
    "Source",
    "check_pairing",
    "checked_ids",
    "checked_labels",
    "import_labels",
    "importer",
    "listed",
    "open_source",
    "source_fingerprint",
]

_ENCODED = 1 << 22
"""Logits that are encoded together: a codec spends much of its time on the call, not on its rows."""

FINGERPRINTED = 8
"""Images whose labels tell the files of one import from those of another."""


def importer(project: str) -> type[Any]:
    """The class that opens label files of a project: a `Source`. Raises ConfigError where there is none."""
    found = IMPORTERS.find(project)
    if found is None:
        raise IMPORTERS.unknown(project)
    return found


def open_source(project: str, path: str | Path, images: Images, choices: Choices) -> Source:
    """The label files of a project at `path`, for these images.

    Raises:
        ConfigError: the project is unknown, or what its files tell of cannot be replayed.
        DataError: a file is missing, damaged or refused; it is named. Files of another project are recognised.
    """
    folder, opened = Path(path).expanduser(), importer(project)
    try:
        source: Source = opened(folder, images, choices)
    except DataError as problem:
        other = recognised(folder)
        if other is None or other == _LIKE.get(project, project) or project not in IMPORTERS.own:
            raise
        raise DataError(f"{folder} holds labels of {other}; import them with `from_={other}`") from problem
    lacking = [name for name in (*Source.__annotations__, "codec") if not hasattr(source, name)]
    if lacking:
        raise ConfigError(f"{IMPORTERS.home(project)} reads label files, but has no {', '.join(lacking)}; see `Source`")
    return source


def recognised(folder: Path) -> str | None:
    """The project whose label files lie in `folder`, as the names of files tell; None where they tell nothing."""
    if folder.name.startswith("epoch_"):
        folder = folder.parent
    for project, pattern in _SIGNS.items():
        for glob in (pattern, f"*/{pattern}"):
            if next(folder.glob(glob), None) is not None:
                return project
    return None


_SIGNS = {
    "ml-dr": "config.pth.tar",
    "tinyvit": "logits_top*_epoch*/rank*-values.bin",
    "sre2l": "epoch_[0-9]*/batch_[0-9]*.tar",
    "lpqld": "batch_[0-9]*.tar",
}
"""Files that only one project writes, or one of several with the same files."""

_LIKE = {"lpld": "sre2l"}
"""Projects with the same files as another."""


def listed(project: str, path: str | Path, images: Images) -> Listing:
    """The images as a project counted them: as ImageFolder does, where labels are found by an image's place alone."""
    try:
        by_place = importer(project).by_place(Path(path).expanduser())
    except DataError:  # which `open_source` meets again, and says more of
        by_place = False
    return as_image_folder(images) if by_place else Listing(images)


def source_fingerprint(source: Source, images: int) -> str:
    """SHA-256 over the labels of a few images in their first view: it tells files of one project apart."""
    total = hashlib.sha256()
    held = np.setdiff1d(np.arange(images), source.missing)
    for place in np.unique(np.linspace(0, len(held) - 1, FINGERPRINTED).astype(int)):
        labels = source.labels(int(held[place]), [0])
        ids = b"" if labels.ids is None else labels.ids.astype("<i8").tobytes()
        total.update(ids + labels.values.astype("<f8").tobytes())
    return total.hexdigest()


class ShardRecords:
    """The records of the shard that is being written, for views of its images."""

    def __init__(self) -> None:
        self._shard: Shard | None = None
        self._arrays: Mapping[str, NDArray[Any]] = {}

    def hold(self, shard: Shard, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Answer for this shard's arrays, (views, rows, ...) each, from now on."""
        self._shard, self._arrays = shard, arrays

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See `Taker.take`."""
        assert self._shard is not None
        where, numbers = rows - self._shard.first_row, np.asarray(views) - self._shard.first_view
        return {name: array[numbers, where] for name, array in self._arrays.items()}


@dataclass(frozen=True)
class ImportReport:
    """What an import did: shards and labels written, seconds it took, images that have no labels, and the pairing.

    In the store `out` there are `views` complete ones and `bytes` now, valid at these `temperatures` (lowest, highest).
    `notes` are lines about what is to be known of the labels.
    """

    teacher: str
    shards: int
    labels: int
    seconds: float
    pairing: Pairing
    skipped: tuple[str, ...] = field(default=())
    out: str = ""
    views: int = 0
    bytes: int = 0
    temperatures: tuple[float, float] = (1.0, 1.0)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was done, in words."""
        if not self.shards:
            return [f"{self.teacher}: all labels of this part are in {self.out} already; nothing to do"]
        lowest, highest = self.temperatures
        valid = f"at temperature {lowest:g} alone" if lowest == highest else f"at temperatures from {lowest:g} upward"
        return [
            f"{self.teacher}: wrote {plural(self.shards, 'shard')}, {plural(self.labels, 'label')} in "
            f"{duration(self.seconds)}; {size(self.bytes)}, {plural(self.views, 'view')} complete in {self.out}; they "
            f"are valid {valid}",
            *self.notes,
        ]


def import_labels(
    source: Source,
    places: NDArray[np.int64],
    labels: TeacherLabels,
    *,
    views: int,
    pictures: ViewDataset | None,
    records: ShardRecords,
    words: Callable[[Rows, Rows], Words],
    part: tuple[int, int] = (0, 1),
    terminal: Terminal,
) -> tuple[int, int]:
    """Write every shard of this part that is not there yet; how many shards and labels were written.

    Args:
        places: the row of each of the store's images in the source's data set, -1 for those that it does not count:
            int64 (rows,).
        pictures: makes the images whose digests are kept, from `records`; None for views that are not made here.
        records: hold those of the shard that is written.
        words: gives a random word for each of some views (v,) of some rows (r,) of the store: uint64 (r * v,).

    Raises:
        DataError: a file cannot be read, or holds something else; it is named.
        StoreError: a shard cannot be written, or another process writes the same part.
    """
    missing = frozenset(source.missing.tolist())
    of_place = np.full(int(places.max(initial=-1)) + 1, -1, np.int64)
    of_place[places[places >= 0]] = np.flatnonzero(places >= 0)
    with labels.writing(part):
        total, written = sum(count(shard) for shard in labels.missing(views, part)), 0
        step = min(source.views_at_once or views, views)
        with terminal.progress(f"import {labels.name}", total, "labels") as advance:
            for shard in _in_turn(labels, views, step, part):
                arrays, failed = _filled(source, shard, places, of_place, labels, missing, advance, words)
                digests: dict[int, list[str]] = {}
                if pictures is not None:
                    records.hold(shard, {name: arrays[name] for name in record_spec(source.recipe)})
                    digests = _digests(shard, pictures, failed)
                labels.write(shard, arrays, skipped=failed, digests=digests)
                written += 1
    return written, total


def _in_turn(labels: TeacherLabels, views: int, step: int, part: tuple[int, int]) -> Iterator[Shard]:
    """The shards of this part that are missing, of so many views at a time."""
    for stop in range(step, views + step, step):
        yield from labels.missing(min(stop, views), part)


def _digests(shard: Shard, pictures: ViewDataset, failed: Mapping[int, str]) -> dict[int, list[str]]:
    try:
        return shard_digests(shard, pictures, failed)
    except DataError as problem:
        raise DataError(f"{problem} (rows {shard.first_row:,} to {shard.stop_row - 1:,} of the store)") from problem


def _filled(
    source: Source,
    shard: Shard,
    places: NDArray[np.int64],
    of_place: NDArray[np.int64],
    labels: TeacherLabels,
    missing: frozenset[int],
    advance: Any,
    words: Callable[[Rows, Rows], Words],
) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
    """The arrays of a shard, and its rows that have no label."""
    layout, views = labels.card.layout, np.arange(shard.first_view, shard.stop_view)
    arrays = {name: np.zeros((shard.views, shard.rows, *each.shape), each.dtype) for name, each in layout.items()}
    failed: dict[int, str] = {}
    mixer = next((step for step in source.recipe.steps if isinstance(step, RecordedMix | SeededMix)), None)
    beside = layout_beside(source.recipe)
    here = places[shard.first_row : shard.stop_row]
    source.ready(here[here >= 0], views)
    together: list[tuple[int, ImageLabels]] = []

    def encode() -> None:
        rows = np.array([row for row, _ in together], np.int64)
        said = [each for _, each in together]
        for name, array in encoded(said, source.codec, labels.card.classes, lambda: words(rows, views)).items():
            shaped = array.reshape(len(rows), len(views), *array.shape[1:])
            arrays[name][:, rows - shard.first_row] = shaped.swapaxes(0, 1)
        together.clear()

    for row in range(shard.first_row, shard.stop_row):
        place = int(places[row])
        if place < 0:
            failed[row] = f"the {source.project} files count no images of its kind"
        elif place in missing:
            failed[row] = f"the {source.project} files have no label of it"
        else:
            said = source.labels(place, views)
            made = {name: array for name, array in said.records.items() if name in beside}
            if mixer is not None:
                params = mixer.replay(made)
                partners = of_place[np.where(params["chosen"], said.records["mix_partner"], place)]
                made["mix_partner"] = partners.astype(np.uint32)
                made["mix_share"] = mixer.shares(params, mixer.size).astype(np.float32)
            for name, array in made.items():
                arrays[name][:, row - shard.first_row] = array
            together.append((row, said))
            if len(together) * len(views) * labels.card.classes > _ENCODED:
                encode()
        advance(shard.views)
    if together:
        encode()
    return arrays, failed
