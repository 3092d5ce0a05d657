"""Labels moved, not made anew: into another format or codec, and from several stores into one.

Shards are read whole, every label checked, and written whole under the same names. What the target holds already is
passed over, so the same command goes on where a killed one stopped. Skipped rows and image digests go along.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs import CODECS, Codec, Dense, Field, FittedCodec, ShardCodec, SparseCodec, spelled
from softlabels.core.arrayfile.arrays import ArrayLayout
from softlabels.core.arrays import Arrays
from softlabels.core.philox import Words
from softlabels.core.progress import Terminal, duration, plural, size
from softlabels.core.types import FIT
from softlabels.dumping.dump import count, stored_as
from softlabels.dumping.fitting import fit_to_sample
from softlabels.errors import ConfigError, StoreError
from softlabels.loading.labels import Labels
from softlabels.loading.samplers import spread
from softlabels.loading.views import encoding_words
from softlabels.models import Preprocessing
from softlabels.store import Shard, ShardContent, Store, TeacherCard, TeacherLabels, differences, joined
from softlabels.views import RECIPES

Change = Callable[[Shard, ShardContent], Arrays]
"""What the arrays of a shard become, each (views, rows, ...)."""

RECODED = "recoded_from"
"""Entry of a card's versions: the codecs whose labels these were before."""

_PLACES = ("weights", "path")
"""Settings of a teacher that say where its weights lie; what they are is told by their hash."""


@dataclass(frozen=True)
class CopyReport:
    """What came of copying one teacher's labels: what was written, and how many shards the source itself lacks.

    `removed` of these were damaged and taken away by a repair. In the store `out` the teacher has `views` complete ones
    and `bytes` in all now.
    """

    teacher: str
    shards: int
    labels: int
    lacking: int
    seconds: float
    source: str = ""
    out: str = ""
    views: int = 0
    bytes: int = 0
    removed: int = 0

    def lines(self) -> list[str]:
        """What was done, in words."""
        there = f"{size(self.bytes)}, {plural(self.views, 'view')} complete in {self.out}"
        if self.shards:
            written = f"{plural(self.shards, 'shard')}, {plural(self.labels, 'label')}"
            lines = [f"{self.teacher}: copied {written} from {self.source} in {duration(self.seconds)}; {there}"]
        else:
            lines = [f"{self.teacher}: all labels of {self.source} are there already; nothing to do ({there})"]
        if self.lacking:
            lines.append(f"{self.teacher}: {self.source} lacks {plural(self.lacking, 'shard')} of its views itself")
        if self.lacking and self.removed:
            lines.append(
                f"  {self.removed:,} of them were damaged and removed; `softlabels repair` with `redump=True` makes "
                f"them again"
            )
        return lines


@dataclass(frozen=True)
class Recode:
    """Decodes labels of the `old` codec and encodes them in the `new` one, as a dump with it would.

    `hashes`, uint64 (images,), are of the store's keys; with `seed` they give a codec that draws its chance.
    """

    old: Codec
    new: Codec
    classes: int
    hashes: Words
    seed: int

    def __call__(self, shard: Shard, content: ShardContent) -> Arrays:
        """The arrays of a shard in the new codec; those of skipped rows are of logits of 0."""
        beside = {name: content.arrays[name] for name in content.arrays.keys() - self.old.layout(self.classes)}
        if isinstance(self.new, ShardCodec):
            logits = torch.stack([self._logits(shard, content, place) for place in range(shard.views)])
            return self.new.encode_shard(logits) | beside
        views = [self._view(shard, content, place) for place in range(shard.views)]
        return {name: np.stack([arrays[name] for arrays in views]) for name in views[0]} | beside

    def _view(self, shard: Shard, content: ShardContent, place: int) -> Arrays:
        hashes = self.hashes[shard.first_row : shard.stop_row]
        words = encoding_words(hashes, self.seed, shard.first_view + place)
        return self.new.encode(self._logits(shard, content, place), words)

    def _logits(self, shard: Shard, content: ShardContent, place: int) -> Tensor:
        own = self.old.layout(self.classes)
        of_view = {name: content.arrays[name][0 if each.per_image else place] for name, each in own.items()}
        logits = self.old.decode(of_view, self.classes)
        logits[[row - shard.first_row for row in content.skipped]] = 0.0
        return logits


def check_recoding(old: Codec, new: Codec, *, lossy: bool) -> None:
    """Refuse a change of codec after which the labels would be less than they seem.

    Raises:
        ConfigError: labels of the old codec have no logits of their own to encode, or the new one would round them
            and `lossy` does not allow it.
    """
    if isinstance(old, SparseCodec):
        raise ConfigError(
            f"{spelled(old)} labels stand for other logits at each temperature, so another codec could keep those of "
            f"one only; dump with `codec={spelled(new)}` instead"
        )
    exact = isinstance(new, Dense) and new.dtype == "fp32"
    if not (exact or lossy):
        raise ConfigError(
            f"{spelled(new)} would round labels that are {spelled(old)} now; allow it with `lossy=True`, or dump with "
            f"`codec={spelled(new)}`"
        )


def recoded_card(card: TeacherCard, old: Codec, new: Codec) -> TeacherCard:
    """The card of the same teacher whose labels were recoded; its versions tell so."""
    before = card.versions.get(RECODED)
    versions = {**card.versions, RECODED: f"{before}, {spelled(old)}" if before else spelled(old)}
    others = card.layout.keys() - old.layout(card.classes)
    beside = {name: Field(each.dtype, each.shape) for name, each in card.layout.items() if name in others}
    compression = None if new.compressed else card.compression
    stored = stored_as(new, card.classes, beside=beside, compression=compression)
    return TeacherCard.model_validate({**card.model_dump(), **stored, "versions": versions})


def recompressed(card: TeacherCard, compression: Literal["none", "zstd"]) -> TeacherCard:
    """The card of the same labels in shards that are compressed otherwise: in columns where that is of use."""
    fields = CODECS.make(card.codec).layout(card.classes)
    columns = {name for name, each in fields.items() if each.columns and compression != "none"}
    layout = {name: each.model_copy(update={"columns": name in columns}) for name, each in card.layout.items()}
    return card.model_copy(update={"compression": compression, "layout": layout})


def fitted_to_labels(labels: Labels, name: str, new: Codec) -> Codec:
    """The codec with what it needs of the teacher, from some of its labels."""
    assert isinstance(new, FittedCodec)
    held, (images, shown) = labels.of(name), new.sample
    rows, _ = spread(len(labels), 1, len(labels))
    rows = rows[held.labelled(rows)][:images]
    views = range(min(held.views, shown))
    taken = (labels.take(np.sort(rows), np.full(len(rows), view), [name]) for view in views)
    return fit_to_sample(new, torch.cat([labels.decode(each) for each in taken]), views=held.views, whose=name)


def copy(
    source: TeacherLabels, target: TeacherLabels, change: Change | None = None, *, terminal: Terminal
) -> CopyReport:
    """Write every label of `source` that `target` lacks, as it is or as `change` makes it.

    Raises:
        StoreError: the rows are cut into other runs, a shard of the source is damaged, the target cannot be written,
            or another process writes it.
    """
    began = time.monotonic()
    _check_runs(source, target)
    source.check_headers()  # a shard that cannot be told from a missing one would be left out
    with target.writing():
        held = {(shard.run, view) for shard in target.shards for view in _views(shard)}
        todo = [(shard, pieces) for shard in source.shards if (pieces := list(_lacking(shard, held)))]
        shards = [piece for _, pieces in todo for piece in pieces]
        labels = sum(count(piece) for piece in shards)
        with terminal.progress(f"copy {source.name}", labels, "labels") as advance:
            for shard, pieces in todo:
                content = source.read_shard(shard)
                for piece in pieces:
                    part = _cut(content, piece, shard, source.card.layout)
                    arrays = part.arrays if change is None else change(piece, part)
                    target.write(piece, arrays, skipped=part.skipped, digests=part.digests)
                    advance(count(piece))
    lacking = len(source.missing(max((shard.stop_view for shard in source.shards), default=1)))
    return CopyReport(source.name, len(shards), labels, lacking, time.monotonic() - began)


def check_mergeable(stores: Sequence[Store]) -> None:
    """Refuse stores of other images, recipes or seeds than the first; where the images lie makes no difference.

    Raises:
        StoreError: both sides of what differs.
    """
    first = stores[0]
    for other in stores[1:]:
        clauses = differences(_identity(first), _identity(other)) + _image_differences(first, other)
        if clauses:
            raise StoreError(
                f"{first.location} and {other.location} (there and here) are not of the same: {joined(clauses)}"
            )


def check_agreement(labels: Sequence[TeacherLabels], terminal: Terminal) -> None:
    """Refuse labels of another teacher or codec than the first, and labels that two of them hold but not as equals.

    Raises:
        StoreError: what differs; of labels, the shard is named.
    """
    holders: dict[tuple[int, int], tuple[TeacherLabels, Shard]] = {}
    twice: list[tuple[int, tuple[TeacherLabels, Shard], tuple[TeacherLabels, Shard]]] = []
    for each in labels:
        _check_runs(labels[0], each)
        _check_cards(labels[0], each)
        each.check_headers()
        for shard in each.shards:
            for view in _views(shard):
                holder = holders.setdefault((shard.run, view), (each, shard))
                if holder[0] is not each:
                    twice.append((view, holder, (each, shard)))
    with terminal.progress(f"compare {labels[0].name}", len(twice), "views of shards") as advance:
        for view, some, others in twice:
            _check_equal(view, some, others)
            advance(1)


def _check_equal(view: int, some: tuple[TeacherLabels, Shard], others: tuple[TeacherLabels, Shard]) -> None:
    (first, held), (second, shard) = some, others
    rows = np.arange(shard.first_row, shard.stop_row)
    here, there = (labels.take(rows, np.full(len(rows), view)) for labels in (first, second))
    differ = np.zeros(len(rows), bool)
    for name in here:
        differ |= (_bytes(here[name]) != _bytes(there[name])).any(axis=1)
    if not differ.any():
        return
    first.read_shard(held)  # it may be damage that makes the difference: then these say so
    second.read_shard(shard)
    raise StoreError(
        f"{first.location} and {second.location} hold other labels of {first.name} in shard {shard.name}: "
        f"{differ.sum():,} of {len(rows):,} rows of view {view} differ, the first is row {rows[differ][0]}; find out "
        f"which is right and remove the shard from the other store"
    )


def _check_cards(first: TeacherLabels, other: TeacherLabels) -> None:
    unknown = {"precision"} if None in (first.card.precision, other.card.precision) else set()
    here, there = ({k: v for k, v in _teaching(each.card).items() if k not in unknown} for each in (first, other))
    clauses = differences(here, there)
    if clauses and all(each.startswith((f"codec.{FIT}.", "layout.")) for each in clauses):
        raise StoreError(
            f"{first.location} and {other.location} hold labels of {first.name} in bases that each has learnt by "
            f"itself; dump one part from a copy of the other's store, or `convert` both with `codec=dense` first"
        )
    if clauses:
        raise StoreError(
            f"{first.location} and {other.location} (there and here) hold labels of different teachers under the name "
            f"{first.name}: {joined(clauses)}"
        )


def _check_runs(first: TeacherLabels, other: TeacherLabels) -> None:
    if first.runs != other.runs:
        raise StoreError(
            f"{first.location} and {other.location} cut their rows into other shards ({len(first.runs):,} and "
            f"{len(other.runs):,} runs); dump with the same `rows_per_shard`"
        )


def _identity(store: Store) -> dict[str, Any]:
    names = ("classes", "class_names", "seed", "rows_per_shard")
    additions = tuple(file.rows for file in store.manifest.images)  # they are cut into shards one by one
    # As it is read, since a step may have got a setting with a default between the two.
    recipe = RECIPES.make(store.manifest.recipe).model_dump(mode="json")
    return {name: getattr(store.manifest, name) for name in names} | {"recipe": recipe, "additions": additions}


def _teaching(card: TeacherCard) -> dict[str, Any]:
    """What makes labels those of one teacher in one codec: neither their format nor where the weights lay."""
    identity = card.model_dump(mode="json", exclude={"versions", "format", "compression"})
    # As they are read: a setting with a default may have come between the two.
    identity["preprocessing"] = {**Preprocessing().model_dump(mode="json"), **card.preprocessing}
    identity["codec"] = CODECS.make(card.codec).model_dump(mode="json")
    return {**identity, "spec": {name: value for name, value in card.spec.items() if name not in _PLACES}}


def _image_differences(first: Store, other: Store) -> list[str]:
    if len(first) != len(other):
        return [f"there are {len(first):,} images there and {len(other):,} here"]
    told = {"key": "", "label": "hard label ", "checksum": "content "}
    for name, what in told.items():
        differ = np.asarray(pc.not_equal(first.images[name], other.images[name]), bool)
        if differ.any():
            row = int(differ.argmax())
            there, here = (repr(store.images[name][row].as_py()) for store in (first, other))
            return [f"image {row} ({first.keys[row].as_py()!r}) is {what}{there} there and {what}{here} here"]
    return []


def _lacking(shard: Shard, held: set[tuple[int, int]]) -> Iterator[Shard]:
    """The stretches of views of `shard` that are not `held`; they are entered there."""
    views = [view for view in _views(shard) if (shard.run, view) not in held]
    held.update((shard.run, view) for view in views)
    for stretch in np.split(views, np.flatnonzero(np.diff(views) != 1) + 1):
        if len(stretch):
            yield replace(shard, first_view=int(stretch[0]), stop_view=int(stretch[-1]) + 1)


def _cut(content: ShardContent, piece: Shard, shard: Shard, layout: Mapping[str, ArrayLayout]) -> ShardContent:
    """The views of `piece`, of what `shard` holds."""
    kept = slice(piece.first_view - shard.first_view, piece.stop_view - shard.first_view)
    return ShardContent(
        {name: array if layout[name].per_image else array[kept] for name, array in content.arrays.items()},
        content.skipped,
        {row: texts[kept] for row, texts in content.digests.items()},
    )


def _views(shard: Shard) -> range:
    return range(shard.first_view, shard.stop_view)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of each record: uint8 (n, bytes)."""
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
