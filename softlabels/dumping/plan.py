"""What a dump will hold and cost, before it is begun."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from softlabels.codecs import CODECS, Codec, Dense, HeadTail, Int8, Quantized, Sampled, ShardCodec, TopK, spelled
from softlabels.core import progress as terminal
from softlabels.core.arrays import Rows
from softlabels.core.philox import Words
from softlabels.core.progress import plural, rate
from softlabels.core.types import LOGITS, Outputs
from softlabels.dumping.dump import check_memory, count
from softlabels.errors import ConfigError, ModelError
from softlabels.loading.batches import Batch, LabelledViews, Workers, batches, prefetched
from softlabels.loading.samplers import spread
from softlabels.loading.views import ViewDataset
from softlabels.models import BatchSize, Teacher, teacher_passes
from softlabels.models.devices import CPU, Passes
from softlabels.store import Runs, Shard, TeacherCard

LEAST_BATCHES, LEAST_SECONDS = 3, 1.0
"""Real batches, and seconds of them, that are timed."""

DRAIN_SECONDS = 10.0
"""How long at most batches are passed over that were made while the first one warmed up."""

_IMAGES = 1 << 16
"""Images, picked over the data set, that are labelled for an estimate, over again if need be."""

TEMPERATURES = (1.0, 2.0, 4.0)
"""At which a codec report compares what is stored with what the teacher said."""

_FEATURES = 256
"""Labels on which the codecs of outputs are compared where no report on the logits' codecs is asked for."""

_ROWS = 256
"""Labels that are compared at once, in double precision."""


@dataclass(frozen=True)
class CodecReport:
    """What one codec costs and keeps of a sample of the teacher's logits.

    `kl` is the mean KL(teacher || stored) in nats by temperature, None where the codec is not valid and infinite for
    labels that leave classes out by chance; `top1` the share of labels whose highest class is still the highest.
    """

    codec: str
    bytes_per_label: float
    bytes: float
    kl: Mapping[float, float | None]
    top1: float

    def line(self) -> str:
        """The report as a row of a table."""
        kl = "".join(f"{'-' if value is None else f'{value:.1e}':>10}" for value in self.kl.values())
        return f"{self.codec:<22}{self.bytes_per_label:>12,.1f}{terminal.size(self.bytes):>12}{kl}{self.top1:>12.2%}"


@dataclass(frozen=True)
class OutputReport:
    """What one codec costs and keeps of an output beside the logits, on the same sample.

    `error` is the mean over the labels of |stored - given| / |given|, lengths of the vectors of all values.
    """

    output: str
    shape: tuple[int, ...]
    codec: str
    bytes_per_label: float
    bytes: float
    error: float
    chosen: bool = True

    def line(self) -> str:
        """The report as a row of a table."""
        shape = "x".join(map(str, self.shape))
        size, mark = terminal.size(self.bytes), "" if self.chosen else "  (not chosen)"
        numbers = f"{self.bytes_per_label:>12,.1f}{size:>12}{self.error:>10.1e}"
        return f"{self.output:<16}{shape:<12}{self.codec:<16}{numbers}{mark}"


@dataclass(frozen=True)
class Plan:
    """Counts, bytes and an estimate in seconds of one teacher's dump; `lines` says it to a person.

    `bytes` are those of all its labels, before compression, `seconds` what is missing takes. What is missing is that
    of this `part`, (I, N). `shard_bytes` is what the largest of its shards takes in memory while it is made, and
    `written_bytes` while it is written. `codecs` are compared on `sampled` real labels, where that was asked for.
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
            *self._codec_lines(),
            *self._output_lines(),
        ]

    def _shard_lines(self) -> Iterator[str]:
        if self.missing_shards:
            lost = terminal.duration(self.shard_labels / self.pictures_per_second)
            yield (
                f"  a shard takes up to {terminal.size(self.shard_bytes)} of memory while it is made, "
                f"{terminal.size(self.written_bytes)} while it is written; a crash costs up to one, {lost} of work"
            )

    def _codec_lines(self) -> Iterator[str]:
        if not self.codecs:
            return
        yield f"  codecs on {self.sampled:,} of this teacher's labels; KL(teacher || stored) in nats:"
        heads = "".join(f"{f'KL, T={temperature:g}':>10}" for temperature in TEMPERATURES)
        yield f"    {'codec':<22}{'bytes/label':>12}{'in all':>12}{heads}{'top-1 kept':>12}"
        for each in self.codecs:
            yield f"    {each.line()}"

    def _output_lines(self) -> Iterator[str]:
        if not self.outputs:
            return
        yield f"  outputs on {self.sampled:,} of this teacher's labels; error: |stored - given| / |given|:"
        yield f"    {'output':<16}{'shape':<12}{'codec':<16}{'bytes/label':>12}{'in all':>12}{'error':>10}"
        for each in self.outputs:
            yield f"    {each.line()}"


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
    source = _made(pictures, _whole(some, pictures.views, shown, batch_size), workers, device)

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


def _batches(
    pictures: ViewDataset,
    rows: Rows,
    views: Rows,
    batch_size: int,
    workers: Workers,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    numbers = rows * pictures.views + views
    todo = (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))
    return _made(pictures, todo, workers, device)


def _made(pictures: ViewDataset, todo: Iterable[Rows], workers: Workers, device: torch.device = CPU) -> Iterator[Batch]:
    return batches(LabelledViews(pictures, tolerant=True), todo, workers=workers, device=device)


def bytes_on_disk(card: TeacherCard) -> float:
    """Bytes of one label and of what is recorded with it: as they are, or as its codec reckons with its compression."""
    codec = CODECS.make(card.codec)
    if not isinstance(codec, ShardCodec):
        return float(sum(each.record for each in card.layout.values()))
    own = codec.layout(card.classes)
    return codec.bytes_per_label(card.classes) + sum(a.record for name, a in card.layout.items() if name not in own)


def usual_codecs(classes: int) -> list[Codec]:
    """Codecs to choose from, at settings that make sense for so many classes."""
    kept = sorted({min(k, classes) for k in (5, 10, 20)}, reverse=True)
    whole: list[Codec] = [Dense(), Quantized(), Quantized(bits=4)]
    tailed: list[Codec] = [HeadTail(bits=4), HeadTail()] if classes > HeadTail().k else []
    # The bytes of topk:10 hold one class more where the others' depths are coarser; which is nearer, the logits say.
    others: list[Codec] = [TopK(k=11, levels=12), TopK(k=10, record="fast")] if classes > 11 else []
    drawn = [Sampled()] if classes > Sampled().k else []
    return [*whole, *tailed, *(TopK(k=k) for k in kept), *others, *drawn]


def sample_outputs(
    pictures: ViewDataset,
    teacher: Teacher,
    count: int,
    names: Sequence[str] = (LOGITS,),
    *,
    batch_size: int,
    workers: Workers = 0,
) -> tuple[Outputs, Words]:
    """What the teacher gives of `count` views spread over the images: float32 (n, ...), and a word for each label.

    Images that cannot be read are left out.

    Raises:
        ModelError: values that are not finite.
    """
    rows, views = spread(len(pictures.images), pictures.views, count)
    given: dict[str, list[Tensor]] = {name: [] for name in names}
    kept: list[Tensor] = []
    passes = Passes(partial(teacher.outputs, names=names), batch_size)
    for batch in _batches(pictures, rows, views, batch_size, workers, device=teacher.device):
        readable = ~torch.isin(batch.rows, torch.tensor(list(batch.failed), dtype=torch.int64))
        for name, values in passes(batch.pictures).items():
            given[name].append(values.cpu()[readable])
        kept.append(readable)
    outputs, places = {name: torch.cat(each) for name, each in given.items()}, torch.cat(kept).numpy()
    for name, values in outputs.items():
        if not values.isfinite().all():
            raise ModelError(
                f"teacher {teacher.name} gave NaN or infinite {name}; check its weights, or leave out `amp`"
            )
    return outputs, pictures.words(rows[places], views[places])


def compare_codecs(logits: Tensor, words: Words, codecs: Iterable[Codec], labels: int) -> tuple[CodecReport, ...]:
    """What each codec makes of these logits, float32 (n, classes), and its bytes for `labels` labels in all."""
    return tuple(_codec_report(codec, logits, words, labels) for codec in codecs)


def _codec_report(codec: Codec, logits: Tensor, words: Words, labels: int) -> CodecReport:
    classes = logits.shape[1]
    valid = [temperature for temperature in TEMPERATURES if _is_valid(codec, temperature)]
    total, same = dict.fromkeys(valid, 0.0), 0
    for first in range(0, len(logits), _ROWS):
        rows = logits[first : first + _ROWS]
        arrays = codec.encode(rows, words[first : first + _ROWS])
        for temperature in valid:
            total[temperature] += _kl(rows, codec.decode(arrays, classes, temperature=temperature), temperature)
        same += int((codec.decode(arrays, classes).argmax(-1) == rows.argmax(-1)).sum())
    size = codec.bytes_per_label(classes)
    kl = {each: total[each] / len(logits) if each in total else None for each in TEMPERATURES}
    return CodecReport(spelled(codec), size, size * labels, kl, same / len(logits))


def compare_outputs(
    cards: Sequence[TeacherCard], outputs: Outputs, words: Words, codecs: Iterable[Codec], labels: int
) -> Iterator[OutputReport]:
    """What the chosen codec of each output, and each of these `codecs`, keep of its values."""
    for card in cards:
        rows, own = outputs[card.address].flatten(1), CODECS.make(card.codec)
        for codec in (own, *(each for each in codecs if each != own)):
            error = _relative_error(rows, codec, words)
            size = codec.bytes_per_label(card.classes)
            shape = card.shape or (card.classes,)
            yield OutputReport(card.output, shape, spelled(codec), size, size * labels, error, codec == own)


def _relative_error(rows: Tensor, codec: Codec, words: Words) -> float:
    """The mean over the rows (n, values) of |stored - given| / |given|; rows of zeros have an error of 0."""
    total = 0.0
    for first in range(0, len(rows), _ROWS):
        given = rows[first : first + _ROWS]
        stored = codec.decode(codec.encode(given, words[first : first + _ROWS]), rows.shape[1])
        size = given.double().norm(dim=1)
        total += float(((stored.double() - given.double()).norm(dim=1) / size.where(size > 0, 1.0)).sum())
    return total / max(len(rows), 1)


def _kl(said: Tensor, stored: Tensor, temperature: float) -> float:
    """The sum over the rows of KL(said || stored) in nats; infinite where a class of some weight is not stored."""
    p, q = ((rows.double() / temperature).softmax(-1) for rows in (said, stored))
    p = p.where(p > 1e-30, 0.0)
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum().item()


def _is_valid(codec: Codec, temperature: float) -> bool:
    try:
        codec.check_temperature(temperature)
    except ConfigError:
        return False
    return True


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
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """What a dump of these images will hold and cost.

    `runs` are the rows of all its shards, `missing` the shards of this `part` that it still has to make. `codecs` are
    compared on `sample` of the teacher's labels. `say` is told what size of batches was found, and by which trials.

    Raises:
        StoreError: one of the shards needs more memory than this machine has.
    """
    images, views = len(pictures.images), pictures.views
    needed, written = check_memory(cards, missing, format)
    ranges = Counter(range(shard.first_view, shard.stop_view) for shard in missing)
    shown = ranges.most_common(1)[0][0] if ranges else None
    most = max((count(shard) for shard in missing), default=images * views)
    names = [each.address for each in cards]
    passes = teacher_passes(teacher, batch_size, most=most, compile=compile, names=names, say=say)
    speed = measure_speed(pictures, passes, device=teacher.device, workers=workers, views=shown)
    compared: tuple[CodecReport, ...] = ()
    features: tuple[OutputReport, ...] = ()
    others = [each for each in cards if each.output != LOGITS]
    if codecs or others:
        wanted = [*([LOGITS] if codecs else []), *dict.fromkeys(each.address for each in others)]
        sample = sample if codecs else min(sample, _FEATURES)
        outputs, words = sample_outputs(pictures, teacher, sample, wanted, batch_size=passes.size, workers=workers)
        sample = len(words)
        if codecs:
            compared = compare_codecs(outputs[LOGITS], words, codecs, images * views)
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
    )
