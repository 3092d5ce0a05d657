"""What a dump will hold and cost, before it is begun."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from softlabels.codecs import CODECS, Codec, Int8, ShardCodec
from softlabels.core import progress as terminal
from softlabels.core.arrays import Rows
from softlabels.core.philox import Words
from softlabels.core.progress import plural, rate
from softlabels.core.types import LOGITS, Outputs
from softlabels.dumping.comparing import (
    TEMPERATURES,
    CodecReport,
    OutputReport,
    Recommendation,
    codec_lines,
    compare_codecs,
    compare_outputs,
    fit_codecs,
    output_lines,
    recommend,
)
from softlabels.dumping.dump import check_memory, count
from softlabels.dumping.fitting import needs_fit, read_outputs
from softlabels.loading.batches import LabelledViews, Workers, batches, prefetched
from softlabels.loading.samplers import spread
from softlabels.loading.views import ViewDataset
from softlabels.models import BatchSize, Teacher, classifier_weight, teacher_passes
from softlabels.models.devices import Passes
from softlabels.store import Runs, Shard, TeacherCard

LEAST_BATCHES, LEAST_SECONDS = 3, 1.0
"""Real batches, and seconds of them, that are timed."""

DRAIN_SECONDS = 10.0
"""How long at most batches are passed over that were made while the first one warmed up."""

_IMAGES = 1 << 16
"""Images, picked over the data set, that are labelled for an estimate, over again if need be."""

_VIEWS = 4
"""Views at most of each image of a codec report: one view's label is compared with another's."""

_FEATURES = 256
"""Labels on which the codecs of outputs are compared where no report on the logits' codecs is asked for."""


@dataclass(frozen=True)
class Plan:
    """Counts, bytes and an estimate in seconds of one teacher's dump; `lines` says it to a person.

    `bytes` are those of all its labels, before compression, `seconds` what is missing takes. What is missing is that
    of this `part`, (I, N). `shard_bytes` is what the largest of its shards takes in memory while it is made, and
    `written_bytes` while it is written. `codecs` are compared on `sampled` real labels, `sampled_views` of each image,
    where that was asked for; `left_out` says why a codec could not be.
    """

    teacher: str
    images: int
    views: int
    shards: int
    missing_shards: int
    missing_labels: int
    bytes_per_label: float
    bytes: float
    codec: str
    pictures_per_second: float
    seconds: float
    part: tuple[int, int] = (0, 1)
    shard_labels: int = 0
    shard_bytes: int = 0
    written_bytes: int = 0
    codecs: tuple[CodecReport, ...] = ()
    sampled: int = 0
    outputs: tuple[OutputReport, ...] = ()
    sampled_views: int = 1
    left_out: Mapping[str, str] = field(default_factory=dict)
    recommended: Recommendation | None = None

    def lines(self) -> list[str]:
        """The plan in words."""
        index, count = self.part
        stored = " and ".join([self.codec, *dict.fromkeys(each.output for each in self.outputs)])
        part = f" of part {index}/{count}" if count > 1 else ""
        return [
            f"teacher {self.teacher}: {plural(self.images, 'image')} x {plural(self.views, 'view')} = "
            f"{plural(self.images * self.views, 'label')} in {plural(self.shards, 'shard')}",
            f"  {stored}: {self.bytes_per_label:,.1f} bytes per label, {terminal.size(self.bytes)} in all",
            f"  still missing{part}: {plural(self.missing_shards, 'shard')}, {plural(self.missing_labels, 'label')}; "
            f"at {rate(self.pictures_per_second)} images/s about {terminal.duration(self.seconds)}",
            *self._shard_lines(),
            *codec_lines(self.codecs, self.sampled, self.sampled_views),
            *(f"  left out: {reason}" for reason in dict.fromkeys(self.left_out.values())),
            *([f"  {self.recommended.line()}"] if self.recommended is not None else []),
            *output_lines(self.outputs, self.sampled),
        ]

    def _shard_lines(self) -> Iterator[str]:
        if self.missing_shards:
            lost = terminal.duration(self.shard_labels / self.pictures_per_second)
            yield (
                f"  a shard takes up to {terminal.size(self.shard_bytes)} of memory while it is made, "
                f"{terminal.size(self.written_bytes)} while it is written; a crash costs up to one, {lost} of work"
            )


def measure_speed(
    pictures: ViewDataset,
    teacher: Passes[Outputs],
    *,
    device: torch.device,
    workers: Workers,
    views: range | None = None,
) -> float:
    """Images per second of decoding, rendering and the teacher together, as a dump of these `views` (None: all) goes.

    Batches are those of a dump: image by image, each decoded once for all of its views. What was made ahead while the
    first batch warmed up is passed over, so that neither waiting for workers nor what they had ready counts.
    """
    batch_size = teacher.size
    shown = range(pictures.views) if views is None else views
    rows, _ = spread(len(pictures.images), 1, _IMAGES)
    some = (rows[first : first + batch_size] for first in itertools.cycle(range(0, len(rows), batch_size)))
    todo = _whole(some, pictures.views, shown, batch_size)
    source = batches(LabelledViews(pictures, tolerant=True), todo, workers=workers, device=device)

    def answer() -> int:
        batch = next(source)
        for output in teacher(batch.pictures).values():
            output.cpu()
        return len(batch)

    answer()
    began = time.monotonic()
    for _ in range(prefetched(workers)):
        if time.monotonic() - began > DRAIN_SECONDS:
            break
        answer()
    began, seen, made = time.monotonic(), 0, 0
    while made < LEAST_BATCHES or time.monotonic() - began < LEAST_SECONDS:
        seen, made = seen + answer(), made + 1
    return seen / max(time.monotonic() - began, 1e-9)


def _whole(rows: Iterable[Rows], views: int, shown: range, batch_size: int) -> Iterator[Rows]:
    """Sample numbers of all `shown` views of these images, in batches of `batch_size` at most."""
    for each in rows:
        numbers = (each[:, None] * views + np.arange(shown.start, shown.stop)).reshape(-1)
        for first in range(0, len(numbers), batch_size):
            yield numbers[first : first + batch_size]


def bytes_on_disk(card: TeacherCard) -> float:
    """Bytes of one label and of what is recorded with it: as they are, or as its codec reckons with its compression."""
    codec = CODECS.make(card.codec)
    if not isinstance(codec, ShardCodec):
        return float(sum(each.record for each in card.layout.values()))
    own = codec.layout(card.classes)
    return codec.bytes_per_label(card.classes) + sum(a.record for name, a in card.layout.items() if name not in own)


def sample_outputs(
    pictures: ViewDataset,
    teacher: Teacher,
    count: int,
    names: Sequence[str] = (LOGITS,),
    *,
    views: int = 1,
    batch_size: int,
    workers: Workers = 0,
) -> tuple[Outputs, Words]:
    """What the teacher gives of some images: float32 (n, ...), and a word for each label, uint64 (n,).

    There are about `count` labels, `views` of each image, image by image. Images and views are spread over those that
    there are; images that cannot be read are left out.

    Raises:
        DataError: none of the images can be read.
        ModelError: values that are not finite.
    """
    rows, first = spread(len(pictures.images), pictures.views, max(1, round(count / views)))
    shown = (first[:, None] + np.arange(views)) % pictures.views
    rows, shown = np.repeat(rows, views), shown.reshape(-1)
    passes = Passes(partial(teacher.outputs, names=names), batch_size)
    outputs, kept = read_outputs(teacher, passes, pictures, rows * pictures.views + shown, workers=workers)
    return outputs, pictures.words(rows[kept], shown[kept])


def plan(
    teacher: Teacher,
    pictures: ViewDataset,
    codec: Codec,
    *,
    cards: Sequence[TeacherCard],
    runs: Runs,
    missing: Sequence[Shard],
    part: tuple[int, int] = (0, 1),
    format: str = "hdf5",
    batch_size: BatchSize,
    compile: bool = False,
    workers: Workers = 0,
    codecs: Sequence[Codec] = (),
    sample: int = 0,
    for_temperature: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """What a dump of these images will hold and cost.

    `runs` are the rows of all its shards, `missing` the shards of this `part` that it still has to make. `codecs` are
    compared on about `sample` of the teacher's labels, and one is recommended `for_temperature`. `say` is told what
    size of batches was found, and by which trials.

    Raises:
        DataError: none of the sampled images can be read.
        ModelError: the teacher gives values that are not finite.
        StoreError: one of the shards needs more memory than this machine has.
    """
    images, views = len(pictures.images), pictures.views
    needed, written = check_memory(cards, missing, format)
    ranges = Counter(range(shard.first_view, shard.stop_view) for shard in missing)
    timed = ranges.most_common(1)[0][0] if ranges else None
    most = max((count(shard) for shard in missing), default=images * views)
    names = [each.address for each in cards]
    passes = teacher_passes(teacher, batch_size, most=most, compile=compile, names=names, say=say)
    speed = measure_speed(pictures, passes, device=teacher.device, workers=workers, views=timed)
    compared: tuple[CodecReport, ...] = ()
    features: tuple[OutputReport, ...] = ()
    left_out: dict[str, str] = {}
    shown = min(_VIEWS, views, sample) if codecs else 1
    others = [each for each in cards if each.output != LOGITS]
    if codecs or others:
        wanted = [*([LOGITS] if codecs else []), *dict.fromkeys(each.address for each in others)]
        sample = sample if codecs else min(sample, _FEATURES)
        outputs, words = sample_outputs(
            pictures, teacher, sample, wanted, views=shown, batch_size=passes.size, workers=workers
        )
        sample = len(words)
        if codecs:
            logits, weight = outputs[LOGITS], None
            if any(map(needs_fit, codecs)):
                say(f"{teacher.name}: codecs that learn from a teacher are fitted to {sample:,} of its labels")
                weight = classifier_weight(teacher)
            fitted, left_out = fit_codecs(codecs, logits, views=shown, stored_views=views, weight=weight)
            compared = compare_codecs(
                logits,
                words,
                fitted,
                images * views,
                views=shown,
                alike=not pictures.recipe.mixes,
                temperatures=sorted({*TEMPERATURES, *([] if for_temperature is None else [for_temperature])}),
            )
        features = tuple(compare_outputs(others, outputs, words, (Int8(),), images * views))
    record, lacking = sum(map(bytes_on_disk, cards)), sum(map(count, missing))
    return Plan(
        teacher=teacher.name,
        images=images,
        views=views,
        shards=len(runs),
        missing_shards=len(missing),
        missing_labels=lacking,
        bytes_per_label=float(record),
        bytes=float(images * views * record),
        codec=codec.kind,
        pictures_per_second=speed,
        seconds=lacking / speed,
        part=part,
        shard_labels=max((count(shard) for shard in missing), default=0),
        shard_bytes=needed,
        written_bytes=written,
        codecs=compared,
        sampled=sample if compared or features else 0,
        outputs=features,
        sampled_views=shown,
        left_out=left_out,
        recommended=None if for_temperature is None else recommend(compared, for_temperature),
    )
