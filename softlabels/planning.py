"""What a dump will hold and cost, before it is begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softlabels import journal
from softlabels._philox import Words
from softlabels.codecs import Codec, Dense, HeadTail, Quantized, Sampled, TopK, spelled
from softlabels.devices import CPU, Passes
from softlabels.errors import ConfigError, ModelError
from softlabels.labels import layout_beside
from softlabels.orders import spread
from softlabels.pictures import Pictures, Rows
from softlabels.rendering import Renderer
from softlabels.samples import Batch, LabelledPictures, Workers, batches
from softlabels.teachers import BatchSize, Teacher, teacher_passes

SAMPLE_BATCHES = 3
"""Real batches that are timed, after one that is not."""

TEMPERATURES = (1.0, 2.0, 4.0)
"""At which a codec report compares what is stored with what the teacher said."""

_ROWS = 256
"""Labels that are compared at once, in double precision."""


@dataclass(frozen=True)
class CodecReport:
    """What one codec costs and keeps of a sample of the teacher's logits.

    `kl` is the mean KL(teacher || stored) in nats by temperature, None where the codec is not honest and infinite for
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
        return f"{self.codec:<22}{self.bytes_per_label:>12,.1f}{journal.size(self.bytes):>12}{kl}{self.top1:>12.2%}"


@dataclass(frozen=True)
class Plan:
    """Counts, bytes and an estimate in seconds of one teacher's dump; `lines` says it to a person.

    `codecs` are compared on `sampled` real labels, where that was asked for.
    """

    teacher: str
    images: int
    views: int
    shards: int
    missing_shards: int
    missing_labels: int
    bytes_per_label: float
    codec: str
    pictures_per_second: float
    codecs: tuple[CodecReport, ...] = ()
    sampled: int = 0

    @property
    def bytes(self) -> float:
        """Bytes of all labels of this teacher, before compression."""
        return self.images * self.views * self.bytes_per_label

    @property
    def seconds(self) -> float:
        """Estimated time of what is still missing."""
        return self.missing_labels / self.pictures_per_second

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            f"teacher {self.teacher}: {self.images:,} images x {self.views} views = "
            f"{self.images * self.views:,} labels in {self.shards:,} shards",
            f"  {self.codec}: {self.bytes_per_label:,.1f} bytes per label, {journal.size(self.bytes)} in all",
            f"  still missing: {self.missing_shards:,} shards, {self.missing_labels:,} labels; at "
            f"{self.pictures_per_second:,.0f} pictures/s about {journal.duration(self.seconds)}",
            *self._codec_lines(),
        ]

    def _codec_lines(self) -> Iterator[str]:
        if not self.codecs:
            return
        yield f"  codecs on {self.sampled:,} of this teacher's labels; KL(teacher || stored) in nats:"
        heads = "".join(f"{f'KL, T={temperature:g}':>10}" for temperature in TEMPERATURES)
        yield f"    {'codec':<22}{'bytes/label':>12}{'in all':>12}{heads}{'top-1 kept':>12}"
        for each in self.codecs:
            yield f"    {each.line()}"


def measure_speed(
    pictures: Pictures, teacher: Passes, *, device: torch.device, workers: Workers, renderer: Renderer | None = None
) -> float:
    """Pictures per second of decoding, rendering and the teacher together, over a few real batches."""
    batch_size = teacher.size
    rows, views = spread(len(pictures.images), pictures.views, batch_size * (SAMPLE_BATCHES + 1))
    source = _batches(pictures, rows, views, batch_size, workers, renderer, device)
    teacher(next(source).pictures).cpu()
    began, seen = time.monotonic(), 0
    for batch in source:
        teacher(batch.pictures).cpu()
        seen += len(batch)
    if not seen:  # the data set fits in the batch that warms up
        batch = next(_batches(pictures, rows, views, batch_size, 0, renderer, device))
        teacher(batch.pictures).cpu()
        seen = len(batch)
    return seen / max(time.monotonic() - began, 1e-9)


def _batches(
    pictures: Pictures,
    rows: Rows,
    views: Rows,
    batch_size: int,
    workers: Workers,
    renderer: Renderer | None = None,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    numbers = rows * pictures.views + views
    todo = (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))
    return batches(LabelledPictures(pictures, tolerant=True, renderer=renderer), todo, workers=workers, device=device)


def usual_codecs(classes: int) -> list[Codec]:
    """Codecs to choose from, at settings that make sense for so many classes."""
    kept = sorted({min(k, classes) for k in (5, 10, 20)}, reverse=True)
    whole: list[Codec] = [Dense(), Quantized(), Quantized(bits=4)]
    tailed: list[Codec] = [HeadTail(bits=4), HeadTail()] if classes > HeadTail().k else []
    # The bytes of topk:10 hold one class more where the others' depths are coarser; which is nearer, the logits say.
    others: list[Codec] = [TopK(k=11, levels=12), TopK(k=10, record="fast")] if classes > 11 else []
    drawn = [Sampled()] if classes > Sampled().k else []
    return [*whole, *tailed, *(TopK(k=k) for k in kept), *others, *drawn]


def sample_logits(
    pictures: Pictures, teacher: Teacher, count: int, *, batch_size: int, workers: Workers = 0
) -> tuple[Tensor, Words]:
    """What the teacher says of `count` views spread over the images: float32 (n, classes), and a word for each label.

    Images that cannot be read are left out.

    Raises:
        ModelError: logits that are not finite.
    """
    rows, views = spread(len(pictures.images), pictures.views, count)
    said: list[Tensor] = []
    kept: list[Tensor] = []
    passes = Passes(teacher.logits, batch_size)
    for batch in _batches(pictures, rows, views, batch_size, workers, device=teacher.device):
        readable = ~torch.isin(batch.rows, torch.tensor(list(batch.failed), dtype=torch.int64))
        said.append(passes(batch.pictures).cpu()[readable])
        kept.append(readable)
    logits, places = torch.cat(said), torch.cat(kept).numpy()
    if not logits.isfinite().all():
        raise ModelError(f"teacher {teacher.name} gave NaN or infinite logits; check its weights, or leave out --amp")
    return logits, pictures.words(rows[places], views[places])


def compare_codecs(logits: Tensor, words: Words, codecs: Iterable[Codec], labels: int) -> tuple[CodecReport, ...]:
    """What each codec makes of these logits, float32 (n, classes), and its bytes for `labels` labels in all."""
    return tuple(_codec_report(codec, logits, words, labels) for codec in codecs)


def _codec_report(codec: Codec, logits: Tensor, words: Words, labels: int) -> CodecReport:
    classes = logits.shape[1]
    honest = [temperature for temperature in TEMPERATURES if _is_honest(codec, temperature)]
    total, same = dict.fromkeys(honest, 0.0), 0
    for first in range(0, len(logits), _ROWS):
        rows = logits[first : first + _ROWS]
        arrays = codec.encode(rows, words[first : first + _ROWS])
        for temperature in honest:
            total[temperature] += _kl(rows, codec.decode(arrays, classes, temperature=temperature), temperature)
        same += int((codec.decode(arrays, classes).argmax(-1) == rows.argmax(-1)).sum())
    size = codec.bytes_per_label(classes)
    kl = {each: total[each] / len(logits) if each in total else None for each in TEMPERATURES}
    return CodecReport(spelled(codec), size, size * labels, kl, same / len(logits))


def _kl(said: Tensor, stored: Tensor, temperature: float) -> float:
    """The sum over the rows of KL(said || stored) in nats; infinite where a class of some weight is not stored."""
    p, q = ((rows.double() / temperature).softmax(-1) for rows in (said, stored))
    p = p.where(p > 1e-30, 0.0)
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum().item()


def _is_honest(codec: Codec, temperature: float) -> bool:
    try:
        codec.check_temperature(temperature)
    except ConfigError:
        return False
    return True


def plan(
    teacher: Teacher,
    pictures: Pictures,
    codec: Codec,
    *,
    rows_per_shard: int,
    missing: tuple[int, int] | None,
    batch_size: BatchSize,
    compile: bool = False,
    workers: Workers = 0,
    renderer: Renderer | None = None,
    codecs: Sequence[Codec] = (),
    sample: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """What a dump of these pictures will hold and cost.

    `missing` is (shards, labels) that an existing store still lacks; None when there is no store yet. `codecs` are
    compared on `sample` of the teacher's labels. `say` is told what size of batches was found, and by which trials.
    """
    images, views = len(pictures.images), pictures.views
    most = min(rows_per_shard, images) * views
    passes = teacher_passes(teacher, batch_size, most=most, compile=compile, say=say)
    speed = measure_speed(pictures, passes, device=teacher.device, workers=workers, renderer=renderer)
    compared: tuple[CodecReport, ...] = ()
    if codecs:
        logits, words = sample_logits(pictures, teacher, sample, batch_size=passes.size, workers=workers)
        sample, compared = len(logits), compare_codecs(logits, words, codecs, images * views)
    shards = int(np.ceil(images / rows_per_shard))
    missing_shards, missing_labels = missing if missing is not None else (shards, images * views)
    beside = sum(each.nbytes for each in layout_beside(pictures.recipe).values())
    return Plan(
        teacher=teacher.name,
        images=images,
        views=views,
        shards=shards,
        missing_shards=missing_shards,
        missing_labels=missing_labels,
        bytes_per_label=codec.bytes_per_label(teacher.classes) + beside,
        codec=codec.kind,
        pictures_per_second=speed,
        codecs=compared,
        sampled=sample if compared else 0,
    )
