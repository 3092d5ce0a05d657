"""Codecs compared on a sample of a teacher's labels: bytes, and what they keep of probabilities and of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softlabels.codecs import (
    CODECS,
    Codec,
    Dense,
    HeadTail,
    Quantized,
    Sampled,
    ShardCodec,
    TopK,
    TransformCoding,
    spelled,
)
from softlabels.core import progress as terminal
from softlabels.core.arrays import Arrays
from softlabels.core.philox import Words
from softlabels.core.types import Outputs
from softlabels.dumping.fitting import needs_fit
from softlabels.errors import ConfigError, split_advice
from softlabels.store import TeacherCard

TEMPERATURES = (1.0, 2.0, 4.0, 20.0)
"""At which a codec report compares what is stored with what the teacher said."""

LEAST_NEW, LEAST_GOOD = 0.95, 0.85
"""Cosines of gradients, of a new and of a good student, from which a codec is recommended."""

_DIGITS = 3
"""Of a cosine: as many are printed, and decide."""

_LEAST_GRADIENT = 1e-6
"""The direction of a shorter gradient is the rounding of float32 logits, as where two views are one image."""

_MANY_CLASSES = 100
"""From here on a transform codec is worth its basis."""

_ROWS = 256
"""Labels that are compared at once, in double precision."""


@dataclass(frozen=True)
class GradientCosine:
    """The mean cosine between the gradients that a stored label and the teacher's own logits give a student.

    At temperature T a gradient in the student's logits is softmax(student / T) - softmax(label / T), up to a factor.
    The `new` student gives every class the same probability; the `good` one gives the teacher's logits on another view
    of the image. None at a temperature of which the codec holds no labels, where no label has a gradient, and for the
    good student where the sample has no other view of the image.
    """

    new: float | None = None
    good: float | None = None


@dataclass(frozen=True)
class CodecReport:
    """What one codec costs and keeps of a sample of the teacher's logits.

    `kl` is the mean KL(teacher || stored) in nats by temperature, None where the codec is not valid and infinite for
    labels that leave classes out by chance; `top1` the share of labels whose highest class is still the highest;
    `cosine` that of gradients, by the same temperatures.
    """

    codec: str
    bytes_per_label: float
    bytes: float
    kl: Mapping[float, float | None]
    top1: float
    cosine: Mapping[float, GradientCosine]

    def line(self) -> str:
        """Bytes, divergences and `top1` as a row of a table."""
        kl = "".join(f"{'-' if value is None else f'{value:.1e}':>10}" for value in self.kl.values())
        return f"{self.codec:<28}{self.bytes_per_label:>12,.1f}{terminal.size(self.bytes):>12}{kl}{self.top1:>12.2%}"

    def cosine_line(self, *, good: bool) -> str:
        """The cosines as a row of a table, those of a good student too if they are wanted."""
        cells = (value for each in self.cosine.values() for value in ([each.new, each.good] if good else [each.new]))
        return f"{self.codec:<28}" + "".join(f"{'-' if cell is None else f'{cell:.{_DIGITS}f}':>8}" for cell in cells)


@dataclass(frozen=True)
class Recommendation:
    """The codec of a report that is recommended for students that train at this `temperature`.

    That of fewest bytes whose gradients have a cosine of `LEAST_NEW` or more for a new student and of `LEAST_GOOD` or
    more for a good one; where none has (`enough` is False) that of the highest cosine for the good student. `good` says
    whether there was one to compare; else the new student decides alone. `codec` is None where none can be compared.
    """

    temperature: float
    codec: str | None = None
    bytes_per_label: float | None = None
    enough: bool = False
    good: bool = True

    def line(self) -> str:
        """The recommendation and its rule in words."""
        start = f"for T={self.temperature:g}"
        if self.codec is None:
            return f"{start}: none of these codecs can be compared there; dense:fp32 keeps every logit as it is"
        limits = f">= {LEAST_NEW:g} (new)" + (f" and >= {LEAST_GOOD:g} (good)" if self.good else "")
        start = f"{start}: {self.codec} ({self.bytes_per_label:,.1f} bytes per label), the"
        if self.enough:
            return f"{start} smallest with cosines {limits}"
        return f"{start} highest {'good' if self.good else 'new'} cosine; none has cosines {limits}"


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


def codec_lines(reports: Sequence[CodecReport], sampled: int, views: int) -> Iterator[str]:
    """The tables of a report on so many labels, of so many `views` of an image."""
    if not reports:
        return
    heads = [f"T={temperature:.3g}" for temperature in reports[0].kl]
    columns = "".join(f"{head:>10}" for head in heads)
    yield f"  codecs on {sampled:,} of this teacher's labels; KL(teacher || stored) in nats:"
    yield f"    {'codec':<28}{'bytes/label':>12}{'in all':>12}{columns}{'top-1 kept':>12}"
    for each in reports:
        yield f"    {each.line()}"
    good = any(cosine.good is not None for each in reports for cosine in each.cosine.values())
    students = ("new", "good") if good else ("new",)
    yield "  cosine between the gradients of the stored label and of the teacher's logits; new: a uniform student;"
    if good:
        yield "  good: a student that gives the teacher's logits on another view of the image:"
    elif views == 1:
        yield "  a good student is left out: it takes another view of the image, and the sample has one:"
    else:
        yield "  a good student is left out: the views of an image are mixed with other images, or all alike:"
    yield f"    {'codec':<28}{''.join(f'{head:>{8 * len(students)}}' for head in heads)}"
    yield f"    {'':<28}{''.join(f'{student:>8}' for student in students) * len(heads)}"
    for each in reports:
        yield f"    {each.cosine_line(good=good)}"


def output_lines(reports: Sequence[OutputReport], sampled: int) -> Iterator[str]:
    """The table of a report on other outputs than the logits, on so many labels."""
    if not reports:
        return
    yield f"  outputs on {sampled:,} of this teacher's labels; error: |stored - given| / |given|:"
    yield f"    {'output':<16}{'shape':<12}{'codec':<16}{'bytes/label':>12}{'in all':>12}{'error':>10}"
    for each in reports:
        yield f"    {each.line()}"


def usual_codecs(classes: int) -> list[Codec]:
    """Codecs to choose from, at settings that make sense for so many classes; some of them are still to be fitted."""
    kept = sorted({min(k, classes) for k in (5, 10, 20)}, reverse=True)
    whole: list[Codec] = [Dense(), Quantized(), Quantized(bits=4)]
    tailed: list[Codec] = [HeadTail(bits=4), HeadTail()] if classes > HeadTail().k else []
    learnt = [TransformCoding(bytes=size) for size in (60, 40, 25)] if classes >= _MANY_CLASSES else []
    # The bytes of topk:10 hold one class more where the others' depths are coarser; which is nearer, the logits say.
    others: list[Codec] = [TopK(k=11, levels=12), TopK(k=10, record="fast")] if classes > 11 else []
    drawn = [Sampled()] if classes > Sampled().k else []
    return [*whole, *tailed, *learnt, *(TopK(k=k) for k in kept), *others, *drawn]


def fit_codecs(
    codecs: Iterable[Codec], logits: Tensor, *, views: int, stored_views: int, weight: Tensor | None = None
) -> tuple[list[Codec], dict[str, str]]:
    """These codecs, each with what it needs of the teacher, and why others cannot be fitted: a line for each.

    Args:
        codecs: those that need nothing, or have it already, stay as they are.
        logits: of the teacher, float32 (images * views, classes), image by image.
        views: of each image in `logits`.
        stored_views: of each image in the dump that the codecs are for.
        weight: of the linear layer that gives the logits, (classes, features), if one does.
    """
    sample, fitted, left_out = _by_view(logits, views), list[Codec](), dict[str, str]()
    for codec in codecs:
        if not needs_fit(codec):
            fitted.append(codec)
            continue
        try:
            fitted.append(codec.fit_to(sample, views=stored_views, weight=weight))
        except ConfigError as problem:
            left_out[spelled(codec)] = split_advice(str(problem))[0]
    return fitted, left_out


def compare_codecs(
    logits: Tensor,
    words: Words,
    codecs: Iterable[Codec],
    labels: int,
    *,
    views: int = 1,
    alike: bool = True,
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[CodecReport, ...]:
    """What each codec keeps of these logits, and its bytes for `labels` labels in all.

    Args:
        logits: of the teacher, float32 (images * views, classes), image by image.
        words: a random word of each label, uint64 (images * views,), for codecs that draw.
        codecs: those that take something from a teacher have done so: see `fit_codecs`.
        labels: of the whole dump.
        views: of each image in `logits`.
        alike: whether views of an image show the same, so that the teacher on one is a good student on the next.
        temperatures: at which labels are compared.
    """
    sums = [_Sums(codec, temperatures) for codec in codecs]
    step = max(1, _ROWS // views) * views
    for first in range(0, len(logits), step):
        rows, chance = logits[first : first + step], words[first : first + step]
        encoded = [_encoded(each.codec, rows, chance, views) for each in sums]
        for each, arrays in zip(sums, encoded, strict=True):
            each.same += int((each.codec.decode(arrays, rows.shape[1]).argmax(-1) == rows.argmax(-1)).sum())
        for temperature in temperatures:
            teacher = _TeacherRows(rows, temperature, views, good=alike and views > 1)
            for each, arrays in zip(sums, encoded, strict=True):
                if temperature in each.valid:
                    each.add(teacher, each.codec.decode(arrays, rows.shape[1], temperature=temperature))
    return tuple(each.report(len(logits), logits.shape[1], labels) for each in sums)


class _TeacherRows:
    """What the teacher's own logits (n, classes) give at one temperature: probabilities, and students' gradients."""

    def __init__(self, rows: Tensor, temperature: float, views: int, *, good: bool) -> None:
        self.temperature = temperature
        self.p = (rows.double() / temperature).softmax(-1)
        self.students = [torch.full_like(self.p[:1], 1 / rows.shape[1])]
        if good:
            by_image = self.p.reshape(-1, views, rows.shape[1])
            self.students.append(by_image.roll(-1, dims=1).reshape_as(self.p))
        self.gradients = [student - self.p for student in self.students]
        self.lengths = [gradient.norm(dim=1) for gradient in self.gradients]

    def kl(self, stored: Tensor) -> float:
        """The sum of KL(teacher || stored) in nats; infinite where a class of some weight is not stored."""
        p = self.p.where(self.p > 1e-30, 0.0)
        return (torch.xlogy(p, p) - torch.xlogy(p, stored)).sum().item()

    def cosines(self, stored: Tensor) -> Iterator[tuple[float, int]]:
        """For each student the sum of cosines of its gradients, and of how many labels; stored ones of length 0 are 0.

        Labels on which the student has nothing to learn from the teacher are left out.
        """
        for student, wanted, length in zip(self.students, self.gradients, self.lengths, strict=True):
            found, there = student - stored, length > _LEAST_GRADIENT
            size = found.norm(dim=1) * length
            cosine = (found * wanted).sum(dim=1) / size.where(size > 0, 1.0)
            yield float(cosine[there].sum()), int(there.sum())


class _Sums:
    """What is summed over the labels of a sample for one codec, by temperature."""

    def __init__(self, codec: Codec, temperatures: Sequence[float]) -> None:
        self.codec, self.temperatures, self.same = codec, temperatures, 0
        self.valid = [each for each in temperatures if _is_valid(codec, each)]
        self._kl = dict.fromkeys(self.valid, 0.0)
        self._cosines: dict[float, list[tuple[float, int]]] = {each: [(0.0, 0), (0.0, 0)] for each in temperatures}

    def add(self, teacher: _TeacherRows, logits: Tensor) -> None:
        """Count decoded labels, at the temperature of `teacher`."""
        temperature = teacher.temperature
        stored = (logits.double() / temperature).softmax(-1)
        self._kl[temperature] += teacher.kl(stored)
        for student, (total, count) in enumerate(teacher.cosines(stored)):
            before = self._cosines[temperature][student]
            self._cosines[temperature][student] = before[0] + total, before[1] + count

    def report(self, sampled: int, classes: int, labels: int) -> CodecReport:
        """The means over `sampled` labels."""
        size = self.codec.bytes_per_label(classes)
        kl = {each: self._kl[each] / sampled if each in self._kl else None for each in self.temperatures}
        cosine = {
            each: GradientCosine(*(total / count if count else None for total, count in self._cosines[each]))
            for each in self.temperatures
        }
        return CodecReport(spelled(self.codec), size, size * labels, kl, self.same / sampled, cosine)


def recommend(reports: Sequence[CodecReport], temperature: float) -> Recommendation:
    """The codec for this temperature, which is one that is compared, by the figures that the table prints."""
    compared = [(each, each.cosine[temperature]) for each in reports if each.cosine[temperature].new is not None]
    good = any(cosine.good is not None for _, cosine in compared)
    if not compared:
        return Recommendation(temperature)

    def enough(cosine: GradientCosine) -> bool:
        return _shown(cosine.new) >= LEAST_NEW and (not good or _shown(cosine.good) >= LEAST_GOOD)

    def preference(pair: tuple[CodecReport, GradientCosine]) -> tuple[float, float]:
        report, cosine = pair
        decisive = cosine.good if good else cosine.new
        return (0.0 if enough(cosine) else -_shown(decisive)), report.bytes_per_label

    able = [pair for pair in compared if enough(pair[1])]
    report, _ = min(able or compared, key=preference)
    return Recommendation(temperature, report.codec, report.bytes_per_label, bool(able), good)


def _shown(cosine: float | None) -> float:
    """A cosine as it is printed; that of no gradient is below all others."""
    return -1.0 if cosine is None else round(cosine, _DIGITS)


def _by_view(rows: Tensor, views: int) -> Tensor:
    """Rows (images * views, classes), image by image, as (views, images, classes)."""
    return rows.reshape(-1, views, rows.shape[1]).transpose(0, 1)


def _encoded(codec: Codec, rows: Tensor, words: Words, views: int) -> Arrays:
    """The arrays of each label (n, ...), of logits that come image by image."""
    if not isinstance(codec, ShardCodec):
        return codec.encode(rows, words)
    arrays = codec.encode_shard(_by_view(rows, views))
    # What an image has once goes with each of its views.
    whole = {name: array.repeat(views // len(array), axis=0) for name, array in arrays.items()}
    return {name: array.swapaxes(0, 1).reshape(len(rows), *array.shape[2:]) for name, array in whole.items()}


def _is_valid(codec: Codec, temperature: float) -> bool:
    try:
        codec.check_temperature(temperature)
    except ConfigError:
        return False
    return True


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
