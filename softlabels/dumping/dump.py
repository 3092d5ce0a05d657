"""Stage one: a frozen teacher labels every image whose shard is missing."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs import CODECS, Codec, Field, ShardCodec, spelled
from softlabels.core.philox import Words
from softlabels.core.progress import Terminal, duration, plural, rate, size
from softlabels.core.types import LOGITS, Outputs
from softlabels.datasets import Images
from softlabels.errors import DataError, ModelError, StoreError
from softlabels.loading.batches import Batch, LabelledViews, Workers, batches
from softlabels.loading.distributed import SINGLE, Ranks
from softlabels.loading.labels import machine_memory
from softlabels.loading.views import OF_PARTNER, ViewDataset
from softlabels.models import (
    ROUNDING,
    BatchSize,
    Teacher,
    dependence_on_neighbours,
    distance,
    is_rounding,
    spread_of,
    teacher_passes,
)
from softlabels.models.devices import SideStream, is_out_of_memory
from softlabels.store import Shard, TeacherCard, TeacherLabels
from softlabels.views import Recipe

OnOddLogits = Literal["fail", "warn"]
"""What becomes of a teacher whose logits are none: a refusal, or a line."""

LOOKED_AT = 256
"""Logits that are looked at for the usual mistakes before a dump takes a teacher at its word."""

FEWEST, FEWEST_FOR_CHANCE = 8, 30
"""Fewest images for the warnings that a teacher answers all alike, and that it is right no more than by chance."""

_WAITING = 4
"""Batches that a GPU may be ahead of their encoding."""

_COPIES = {"hdf5": 2, "zarr": 3}
"""How often a shard is in memory while it is written, by format."""

_WAITING_LOGITS = "waiting logits"
"""Name of the logits of a shard that wait to be encoded."""

DIGESTS_PER_SHARD = 8
"""Images of each shard whose rendered views are digested, evenly spread over its rows."""


@dataclass(frozen=True)
class DumpReport:
    """What a dump did: shards written, images rendered, seconds, labels kept, images that could not be read.

    `agreement` is the share of labelled views of which the teacher names the hard label, None where there are none;
    `notes` are lines about what it said. `views` are complete now in the store `out`, for all images, and `part` (I, N)
    of its shards was asked for; `size` is the side of the images that the teacher saw.
    """

    teacher: str
    shards: int
    pictures: int
    seconds: float
    labels: int
    skipped: dict[str, str] = field(default_factory=dict)
    agreement: float | None = None
    notes: tuple[str, ...] = ()
    views: int = 0
    out: str = ""
    part: tuple[int, int] = (0, 1)
    size: int = 224

    def lines(self) -> list[str]:
        """What was done, in words."""
        index, count = self.part
        complete = f"{plural(self.views, 'view')} complete in {self.out}"
        if count > 1:
            complete = f"part {index}/{count} is complete, and with the other parts so far {complete}"
        if not self.shards:
            return [f"{self.teacher}: all these labels are there already; nothing to do ({complete})"]
        speed = rate(self.pictures / max(self.seconds, 1e-9))
        return [
            f"{self.teacher}: wrote {plural(self.shards, 'shard')}, {plural(self.labels, 'label')} in "
            f"{duration(self.seconds)} ({speed} images/s); {complete}"
        ]


@dataclass(frozen=True)
class StoredOutput:
    """An output of a teacher, by name: how it is coded, and where its labels lie."""

    codec: Codec
    labels: TeacherLabels

    @classmethod
    def of(cls, labels: TeacherLabels) -> StoredOutput:
        """That of these labels, coded as their card says."""
        return cls(CODECS.make(labels.card.codec), labels)

    @property
    def name(self) -> str:
        """Its name, ``logits`` or another."""
        return self.labels.card.output

    @property
    def address(self) -> str:
        """What is read from the teacher."""
        return self.labels.card.address


def dump(
    pictures: ViewDataset,
    teacher: Teacher,
    outputs: Sequence[StoredOutput],
    *,
    batch_size: BatchSize,
    compile: bool = False,
    workers: Workers = 0,
    part: tuple[int, int] = (0, 1),
    views: int | None = None,
    again: Sequence[Shard] = (),
    skip_bad_images: bool = False,
    odd_logits: OnOddLogits = "fail",
    ranks: Ranks = SINGLE,
    terminal: Terminal,
) -> DumpReport:
    """Write every shard of this part that is not there yet, or was removed: of all `outputs` from the same passes.

    Of several processes, `ranks`, each has a part of its own, and the report is of what all of them did.

    `views` are wanted of each image (None: those of `pictures`); what was removed is written whole, also beyond them.
    The shards `again` are dumped once more in their places where they are there, as those of which an image can be read
    now (`readable_again`). `pictures` have the views of all of these.

    When the teacher's device is out of memory, the dump goes on with smaller batches.

    Batches never straddle shards, so what a batch holds, and with it the last bit of each logit, does not depend on
    where an earlier dump stopped.

    Raises:
        DataError: an image cannot be decoded (unless `skip_bad_images`).
        ModelError: the teacher gave logits that are not finite, or (unless `odd_logits` is "warn") that are none, as
            `LogitCheck` tells.
        StoreError: a shard cannot be written, or another process dumps the same part.
    """
    precision = getattr(teacher, "amp", None) or "fp32"
    codec = next((each.codec for each in outputs if each.name == LOGITS), None)
    look = None if codec is None else LogitCheck(teacher.name, codec, odd_logits, terminal.say, precision)
    todo: dict[Shard, list[StoredOutput]] = {}
    with ExitStack() as locks:
        for each in outputs:
            locks.enter_context(each.labels.writing(part))
            there = set(each.labels.shards)
            replaced = [shard for shard in again if shard in there and shard.run % part[1] == part[0]]
            for shard in (*replaced, *each.labels.due(pictures.views if views is None else views, part)):
                todo.setdefault(shard, []).append(each)
        report = dump_shards(
            pictures,
            teacher,
            todo,
            replaced=frozenset(again),
            batch_size=batch_size,
            compile=compile,
            workers=workers,
            skip_bad_images=skip_bad_images,
            look=look,
            terminal=terminal,
        )
    reports, looks = ranks.gather(report), ranks.gather(None if look is None else look.counts)
    return report if ranks.count == 1 else _together(reports, look, [each for each in looks if each is not None])


def _together(reports: Sequence[DumpReport], look: LogitCheck | None, counts: Sequence[LogitCounts]) -> DumpReport:
    """What several processes did that began and ended together."""
    agreement: float | None = None
    notes: list[str] = []
    if look is not None:
        look.counts = functools.reduce(LogitCounts.plus, counts)
        agreement, notes = look.agreement, look.lines()
    return DumpReport(
        reports[0].teacher,
        sum(each.shards for each in reports),
        sum(each.pictures for each in reports),
        max(each.seconds for each in reports),
        sum(each.labels for each in reports),
        {key: reason for each in reports for key, reason in each.skipped.items()},
        agreement,
        tuple(notes),
    )


def dump_shards(
    pictures: ViewDataset,
    teacher: Teacher,
    shards: Mapping[Shard, Sequence[StoredOutput]],
    *,
    batch_size: BatchSize,
    compile: bool = False,
    workers: Workers,
    skip_bad_images: bool,
    look: LogitCheck | None = None,
    replaced: Container[Shard] = (),
    terminal: Terminal,
) -> DumpReport:
    """Write these shards of these outputs, in the place of damaged ones; `dump` says what can go wrong.

    Within `labels.writing` of each.

    Those of `replaced` are whole; one goes when its successor is complete in memory.
    """
    began, device = time.monotonic(), teacher.device
    counts = [count(shard) for shard in shards]
    if not shards:
        return DumpReport(teacher.name, 0, 0, 0.0, 0)
    names = list(dict.fromkeys(each.address for outputs in shards.values() for each in outputs))
    passes = teacher_passes(teacher, batch_size, most=max(counts), compile=compile, names=names, say=terminal.say)
    batch_size, total = passes.size, sum(counts)
    todo = (numbers for shard in shards for numbers in shard_batches(shard, pictures.views, batch_size))
    source = batches(LabelledViews(pictures, tolerant=skip_bad_images), todo, workers=workers, device=device)
    recorder = Recorder(device, look, replaced)
    with terminal.progress(f"dump {teacher.name}", total, "images") as advance, recorder:
        for done, (shard, outputs) in enumerate(shards.items()):
            builder = ShardBuilder(shard, pictures, outputs)
            for _ in shard_batches(shard, pictures.views, batch_size):
                batch = next(source)
                answers = passes(batch.pictures)
                if look is not None and not look.done and LOGITS in answers:
                    look.begin(batch, answers[LOGITS], lambda some: passes(some)[LOGITS])
                recorder.enter(builder, batch, answers)
                advance(len(batch), f"{plural(len(shards) - done, 'shard')} to write")
            recorder.write(builder)
    skipped = {pictures.images.keys[row].as_py(): why for row, why in recorder.failed.items()}
    seconds, kept = time.monotonic() - began, total - recorder.unlabelled
    agreement, notes = (None, ()) if look is None else (look.agreement, tuple(look.lines()))
    return DumpReport(teacher.name, len(shards), total, seconds, kept, skipped, agreement, notes)


def readable_again(labels: TeacherLabels, images: Images, recipe: Recipe) -> tuple[list[Shard], list[int]]:
    """The shards with images that were skipped and can be read now, and the rows of these images.

    `images` are in the order of the store's rows. Where views are mixed, an image that can be read again may be what
    others lacked as a partner, so all shards with skipped images are named then.
    """
    skips = list(labels.skips())
    reasons = {row: reason for _, rows in skips for row, reason in rows.items()}
    readable = [row for row, reason in reasons.items() if not reason.startswith(OF_PARTNER) and _decodes(images, row)]
    found = [shard for shard, rows in skips if rows.keys() & set(readable) or (readable and recipe.mixes)]
    return found, sorted(readable)


def _decodes(images: Images, row: int) -> bool:
    try:
        images.decode(row)
    except DataError:
        return False
    return True


class LogitCounts(NamedTuple):
    """What was counted of a teacher's logits: labelled views, those where it is `right`, and the images of all these;
    labels of which a codec has `cut` off logits; how often each class was named, and was true, int64 (classes,).
    """

    right: int = 0
    labelled: int = 0
    images: int = 0
    cut: int = 0
    named: NDArray[np.int64] | None = None
    true: NDArray[np.int64] | None = None

    def plus(self, other: LogitCounts) -> LogitCounts:
        """Both together."""
        numbers = (self.right + other.right, self.labelled + other.labelled, self.images + other.images)
        cut, named, true = self.cut + other.cut, _sum(self.named, other.named), _sum(self.true, other.true)
        return LogitCounts(*numbers, cut, named, true)


def _sum(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    return other if one is None else one if other is None else one + other


class LogitCheck:
    """A look at what a teacher says: for the usual mistakes at the first batches, for its accuracy at all of them.

    Refused are probabilities in the place of logits (rows between 0 and 1 that sum to 1, or a sigmoid's), whose softmax
    would be next to uniform, and logits that change with the rest of the batch. A warning is due where a teacher says
    the same of different images, or gives all classes the same logit.

    Args:
        codec: how the logits will be stored; what it cuts off is counted.
        odd: "fail", or "warn" to have a line in the place of each refusal.
        say: what prints a warning.
        precision: what the teacher computes in, a key of `ROUNDING`.
    """

    def __init__(
        self, teacher: str, codec: Codec, odd: OnOddLogits, say: Callable[[str], None], precision: str = "fp32"
    ) -> None:
        self._teacher, self._codec, self._odd, self._say = teacher, codec, odd, say
        self._rounding = ROUNDING[precision]
        self._first: list[Tensor] = []
        self._pictures: list[Tensor] = []
        self._asked_again = False
        self.done = False
        """Whether enough was looked at; then only `count` is due."""
        self.counts = LogitCounts()
        """What `count` found so far."""

    def begin(self, batch: Batch, logits: Tensor, ask: Callable[[Tensor], Tensor] | None = None) -> None:
        """Look at the logits (n, classes) of one of the first batches; `ask`, images to logits, is asked once more.

        Raises:
            ModelError: they are no logits, or depend on the batch.
        """
        good, said = _read_rows(batch, logits)
        if not len(said) or not said.isfinite().all():
            return  # `check_finite` names the image
        if ask is not None and not self._asked_again and len(said) > 1:
            self._asked_again = True
            self._ask_again(batch.pictures, logits, ask)
        self._first.append(said.cpu())
        self._pictures.append(batch.pictures[good.to(batch.pictures.device)].cpu())
        seen = sum(map(len, self._first))
        if seen >= LOOKED_AT or len(self._first) == 1:
            self._look(torch.cat(self._first), torch.cat(self._pictures))
        if seen >= LOOKED_AT:
            self.done, self._first, self._pictures = True, [], []

    def count(self, batch: Batch, logits: Tensor) -> None:
        """Take the finite logits (n, classes) of a batch into account for what there is to tell in the end."""
        good, said = _read_rows(batch, logits)
        if not len(said):
            return
        cut = int((said.amax(-1) - said.amin(-1) > self._codec.deepest).sum())
        self.counts = self.counts._replace(cut=self.counts.cut + cut)
        hard, rows = batch.targets[good], batch.rows[good]
        known = (hard >= 0) & (hard < said.shape[1])
        if batch.shares is not None:
            known &= batch.shares[good] == 1  # a view of two images has no one class
        if not known.any():
            return
        hard, named = hard[known].cpu(), said.argmax(-1).cpu()[known]
        classes = [np.bincount(each.numpy(), minlength=said.shape[1]) for each in (named, hard)]
        found = LogitCounts(int((hard == named).sum()), len(hard), len(rows[known].unique()), 0, *classes)
        self.counts = self.counts.plus(found)

    @property
    def agreement(self) -> float | None:
        """The share of labelled views of which the teacher names the hard label; None where there are none."""
        return self.counts.right / self.counts.labelled if self.counts.labelled else None

    def lines(self) -> list[str]:
        """What there is to tell in the end: agreement with the labels, a warning at chance level, logits cut off."""
        lines, counts = [], self.counts
        if self.agreement is not None and counts.named is not None and counts.true is not None:
            lines.append(
                f"{self._teacher}: agrees with the labels on {self.agreement:.1%} of {counts.labelled:,} labelled views"
            )
            chance = float((counts.named / counts.labelled * (counts.true / counts.labelled)).sum())
            doubt = 3 * (chance * (1 - chance) / max(counts.images, 1)) ** 0.5
            if counts.images >= FEWEST_FOR_CHANCE and self.agreement <= chance + doubt:
                lines.append(
                    f"warning: that is no better than chance ({chance:.1%}): are the classes in another order, the "
                    f"weights not trained for them, or the images normalised otherwise?"
                )
        if counts.cut:
            lines.append(
                f"warning: {counts.cut:,} labels have logits more than {self._codec.deepest:,.6g} below their highest, "
                f"where {spelled(self._codec)} cuts them off; losses on logits want dense:fp32"
            )
        return lines

    def _look(self, logits: Tensor, pictures: Tensor) -> None:
        """Look at the logits (n, classes) of some images."""
        classes, low, high = logits.shape[1], float(logits.amin()), float(logits.amax())
        if classes < 2:
            return
        within = low >= 0 and high <= 1 + 1e-3
        if within and float((logits.double().sum(-1) - 1).abs().max()) < 5e-3:
            self._refuse(
                "says numbers between 0 and 1 that sum to 1: these are probabilities, of a softmax already; have it "
                "return the logits, or the logarithm of its probabilities"
            )
        elif within and len(logits) >= FEWEST and (classes >= 10 or (high > 0.9 and low < 0.1)):
            self._refuse(
                "says numbers between 0 and 1 alone, as a sigmoid does; have it return what goes into the sigmoid"
            )
        elif float(logits.std(-1, correction=0).max()) < 1e-3:
            self._say(
                f"warning: teacher {self._teacher} gives all classes next to the same logit (they lie within "
                f"{float((logits.amax(-1) - logits.amin(-1)).max()):.1e}): its labels are uniform"
            )
        elif (
            len(logits) >= FEWEST
            and float((logits - logits[0]).abs().max()) < 1e-6 * float(spread_of(logits).max())
            and not (pictures == pictures[0]).all()
        ):
            self._say(f"warning: teacher {self._teacher} says the same of {len(logits)} different images")

    def _ask_again(self, pictures: Tensor, logits: Tensor, ask: Callable[[Tensor], Tensor]) -> None:
        apart = dependence_on_neighbours(ask, pictures, logits)
        if is_rounding(apart, self._rounding):
            return
        if is_rounding(distance(logits, ask(pictures)), self._rounding):
            self._refuse(
                f"says something else of an image in another batch (logits move by {apart:.1e} of their spread): its "
                f"labels would depend on their neighbours, as under batch norms without running statistics"
            )
        else:
            self._refuse("does not say the same of an image twice, as with a dropout that eval() does not switch off")

    def _refuse(self, what: str) -> None:
        if self._odd == "fail":
            raise ModelError(f"teacher {self._teacher} {what} (`on_odd_logits=warn` goes on nevertheless)")
        self._say(f"warning: teacher {self._teacher} {what}")


def _read_rows(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which images of a batch could be read, bool (n,) on the CPU, and their logits."""
    good = torch.ones(len(batch), dtype=torch.bool)
    if batch.failed:
        good &= ~torch.isin(batch.rows, torch.tensor(list(batch.failed)))
    return good, logits.detach()[good.to(logits.device)]


def stored_as(
    codec: Codec, classes: int, *, beside: Mapping[str, Field], compression: str | None = None
) -> dict[str, Any]:
    """What a teacher's card says of how labels of so many values are coded, and what is recorded `beside` them.

    They are compressed as the codec says, or as `compression` does.
    """
    fields = codec.layout(classes) | dict(beside)
    chosen = compression or ("zstd" if codec.compressed else "none")
    layout: dict[str, dict[str, Any]] = {}
    for name, each in fields.items():
        layout[name] = {"dtype": each.dtype, "shape": each.shape}
        layout[name] |= {"columns": True} if each.columns and chosen != "none" else {}
        layout[name] |= {"per_image": True} if each.per_image else {}
    return {"codec": codec.model_dump(mode="json"), "layout": layout, "compression": chosen}


def count(shard: Shard) -> int:
    """Labels in a shard."""
    return (shard.stop_row - shard.first_row) * (shard.stop_view - shard.first_view)


def shard_batches(shard: Shard, views: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """The sample numbers of a shard in batches: image by image, so that one decode serves all views of an image."""
    rows = np.arange(shard.first_row, shard.stop_row)
    numbers = (rows[:, None] * views + np.arange(shard.first_view, shard.stop_view)).reshape(-1)
    for start in range(0, len(numbers), batch_size):
        yield numbers[start : start + batch_size]


def check_memory(cards: Iterable[TeacherCard], shards: Iterable[Shard], format: str) -> tuple[int, int]:
    """Bytes that the largest of these shards, of each card, takes in memory while it is made, and while it is written.

    Raises:
        StoreError: that is more than the machine has.
    """
    record = sum(each.record for card in cards for each in card.layout.values())
    # Of codecs that encode whole shards the values wait until all are there.
    record += sum(4 * card.classes for card in cards if isinstance(CODECS.make(card.codec), ShardCodec))
    largest = max(shards, key=count, default=None)
    made = 0 if largest is None else count(largest) * record
    written = made * _COPIES[format]
    if largest is not None and written > machine_memory():
        raise StoreError(
            f"a shard of {plural(largest.rows, 'image')} and {plural(largest.views, 'view')} takes {size(written)} of "
            f"memory, and there are {size(machine_memory())}; make a new store with fewer `rows_per_shard`, or dump "
            f"fewer `views` at a time"
        )
    return made, written


class ShardBuilder:
    """A shard of some outputs that is filled, batch by batch, and written when it is full."""

    def __init__(self, shard: Shard, pictures: ViewDataset, outputs: Sequence[StoredOutput]) -> None:
        extent = (shard.stop_view - shard.first_view, shard.stop_row - shard.first_row)
        try:
            self._arrays = [_empty(each, extent) for each in outputs]
        except MemoryError as problem:
            raise StoreError(
                f"a shard of {extent[1]:,} images and {extent[0]:,} views does not fit into memory; make a new store "
                f"with fewer `rows_per_shard`, or dump fewer `views` at a time"
            ) from problem
        self.shard, self._pictures, self._outputs = shard, pictures, outputs
        self.failed: dict[int, str] = {}

    def enter(self, batch: Batch, answers: Outputs) -> None:
        """Encode the teacher's outputs (n, ...) of a batch of this shard; unreadable images are left unlabelled.

        Raises:
            ModelError: an output that is not finite, of which the image and view are named, or of another shape than
                the first image's.
        """
        self.failed.update(batch.failed)
        rows, views = batch.rows.numpy(), batch.views.numpy()
        words, place = self._pictures.words(rows, views), (views - self.shard.first_view, rows - self.shard.first_row)
        for each, arrays in zip(self._outputs, self._arrays, strict=True):
            answer = answers[each.address]
            card = each.labels.card
            if tuple(answer.shape) != (len(batch), *(card.shape or (card.classes,))):
                answer = _as_stored(answer, len(batch), card)
            answer = answer.flatten(1)
            if batch.failed:
                answer = answer.clone()
                answer[torch.isin(batch.rows, torch.tensor(list(batch.failed))).to(answer.device)] = 0.0
            check_finite(answer, batch, self._pictures, each.name)
            if isinstance(each.codec, ShardCodec):
                label = {_WAITING_LOGITS: answer.cpu().numpy()}
            else:
                label = _encoded(each.codec, answer, words)
            if each.name == LOGITS:
                label |= self._beside(rows, views)
            for name, values in label.items():
                arrays[name][place] = values

    def _beside(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is recorded with these labels: of replayed views their records, of mixed ones partners and shares."""
        found = dict(self._pictures.source.records(rows, views))
        if self._pictures.recipe.mixes:
            members, found["mix_share"] = self._pictures.mixtures(rows, views)
            found["mix_partner"] = np.where(members >= 0, members, rows)
        return found

    @property
    def unlabelled(self) -> int:
        """Labels that are missing since their images failed."""
        return len(self.failed) * (self.shard.stop_view - self.shard.first_view)

    def write(self, *, replacing: bool = False) -> None:
        """Write the shard of each output, whole or not at all; when `replacing`, in the place of what is there."""
        digests = shard_digests(self.shard, self._pictures, self.failed)
        for each, arrays in zip(self._outputs, self._arrays, strict=True):
            there = replacing and self.shard in each.labels.shards
            if isinstance(each.codec, ShardCodec):
                waiting = torch.from_numpy(arrays.pop(_WAITING_LOGITS))
                arrays |= each.codec.encode_shard(waiting)
                del waiting
            each.labels.write(self.shard, arrays, skipped=self.failed, digests=digests, replacing=there)


def _empty(output: StoredOutput, extent: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Room for the arrays of a shard of (views, rows); for its logits where all of it is encoded together."""
    card = output.labels.card
    own = output.codec.layout(card.classes) if isinstance(output.codec, ShardCodec) else {}
    room = {name: np.zeros(each.extent(*extent), each.dtype) for name, each in card.layout.items() if name not in own}
    return room | ({_WAITING_LOGITS: np.zeros((*extent, card.classes), np.float32)} if own else {})


def _as_stored(answer: Tensor, images: int, card: TeacherCard) -> Tensor:
    """An output that is not of the card's shape: flat, where the card is of a version that recorded no shape.

    Raises:
        ModelError: it is of another shape than the card says.
    """
    if not card.shape and answer.ndim > 1 and len(answer) == images and answer[0].numel() == card.classes:
        return answer
    raise ModelError(
        f"the teacher's output {card.address!r} has shape {tuple(answer.shape)} for {images} images, and "
        f"{card.shape or (card.classes,)} for each is stored; name one whose shape is always the same, or pool it"
    )


def _encoded(codec: Codec, answer: Tensor, words: Words) -> dict[str, np.ndarray]:
    """The codec's arrays: made on the device of the values, or by the CPU when memory is full there."""
    try:
        return dict(codec.encode(answer, words))
    except RuntimeError as problem:
        if answer.device.type == "cpu" or not is_out_of_memory(problem):
            raise
    return dict(codec.encode(answer.cpu(), words))


class Recorder:
    """Encodes the outputs of batches and writes full shards: at once, or beside a GPU in two threads.

    There one thread encodes and one writes, so that the GPU waits for neither packed bits nor a synced disk. At most
    `_WAITING` batches and one shard wait; then the caller does. After an error nothing more is encoded or written.

    Attributes:
        failed: images that could not be read, by row, of shards that are written.
        unlabelled: labels of these.
    """

    def __init__(
        self,
        device: torch.device,
        look: LogitCheck | None = None,
        replaced: Container[Shard] = (),
    ) -> None:
        self._stream = SideStream(device)
        self._look, self._replaced = look, replaced
        self.failed: dict[int, str] = {}
        self.unlabelled = 0
        self._encoder, self._writer = (_Worker(device.type != "cpu") for _ in range(2))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._encoder.close(at_once=kind is not None)
        except BaseException:
            self._writer.close(at_once=True)
            raise
        self._writer.close(at_once=kind is not None)

    def enter(self, builder: ShardBuilder, batch: Batch, answers: Outputs) -> None:
        """Encode the outputs of a batch into its shard; raises what went wrong with an earlier batch or shard."""
        mark = self._stream.mark()
        batch.pictures = batch.pictures.new_empty(0)  # they may be on the device, and are not needed any more

        def encode() -> None:
            with self._stream.after(mark):
                builder.enter(batch, answers)
                if self._look is not None and LOGITS in answers:
                    self._look.count(batch, answers[LOGITS])

        self._encoder.submit(encode, waiting=_WAITING)

    def write(self, builder: ShardBuilder) -> None:
        """Write this shard when all of its batches are encoded."""
        self._encoder.submit(lambda: self._writer.submit(lambda: self._write(builder), waiting=1), waiting=_WAITING)

    def _write(self, builder: ShardBuilder) -> None:
        builder.write(replacing=builder.shard in self._replaced)
        self.failed |= builder.failed
        self.unlabelled += builder.unlabelled


class _Worker:
    """One thread that does what it is given in order, and nothing more after an error; or nobody, and all at once."""

    def __init__(self, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1) if beside else None
        self._given: deque[Future[None]] = deque()
        self._broken = False

    def submit(self, work: Callable[[], None], *, waiting: int) -> None:
        """Have this done, once fewer than `waiting` pieces of work wait; raises the error of an earlier one."""
        if self._thread is None:
            work()
            return
        while self._given and (len(self._given) >= waiting or self._given[0].done()):
            self._given.popleft().result()
        self._given.append(self._thread.submit(self._do, work))

    def close(self, *, at_once: bool) -> None:
        """Wait until all is done, or `at_once` only for what is being done; raises an error of it unless `at_once`."""
        if self._thread is None:
            return
        self._broken |= at_once
        self._thread.shutdown(wait=True, cancel_futures=at_once)
        if not at_once:
            for each in self._given:
                each.result()

    def _do(self, work: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            work()
        except BaseException:
            self._broken = True
            raise


def shard_digests(shard: Shard, pictures: ViewDataset, failed: Container[int]) -> dict[int, list[str]]:
    """Digests of the rendered views of a few of a shard's images, by row; those that `failed` are left out."""
    spread = np.linspace(shard.first_row, shard.stop_row - 1, DIGESTS_PER_SHARD).astype(np.int64)
    chosen = [row for row in np.unique(spread).tolist() if row not in failed]
    views = np.arange(shard.first_view, shard.stop_view)
    texts = pictures.digests(np.repeat(np.array(chosen, np.int64), len(views)), np.tile(views, len(chosen)))
    return {row: texts[i * len(views) : (i + 1) * len(views)] for i, row in enumerate(chosen)}


def check_finite(answer: Tensor, batch: Batch, pictures: ViewDataset, name: str = LOGITS) -> None:
    """Raise ModelError for values (n, values) of an output that are NaN or infinite, naming the image and view."""
    finite = answer.isfinite().all(dim=1)
    if not finite.all():
        place = int((~finite).nonzero()[0])
        key = pictures.images.keys[int(batch.rows[place])].as_py()
        raise ModelError(
            f"the teacher gave NaN or infinite {name} for image {key!r}, view {int(batch.views[place])}; check its "
            f"weights, or run it without `amp=fp16`"
        )
