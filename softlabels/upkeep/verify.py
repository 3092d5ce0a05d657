"""Whether a store can be trusted: whole, unchanged, of these images, and of this teacher."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from softlabels.codecs import Codec, ShardCodec, nearest_temperature
from softlabels.core.arrays import Arrays
from softlabels.core.philox import Words
from softlabels.core.progress import plural
from softlabels.core.types import LOGITS
from softlabels.datasets import Images
from softlabels.errors import ModelError
from softlabels.loading.checks import compare_digests, compare_images, compare_partners, compare_records, divergence
from softlabels.loading.labels import Labels, keys_at, layout_beside
from softlabels.loading.provenance import seen_from_a_device
from softlabels.loading.records import IMPORTED
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import ROUNDING, Preprocessing, Teacher, dependence_on_neighbours, is_rounding, spread_of
from softlabels.store import TeacherLabels
from softlabels.views import record_spec

BATCH = 64
"""Images that a teacher is shown at once when it is run again."""


_TRIES = 4
"""Perturbed labels for each one that is compared."""


_FARTHER = 4.0
"""How many times as far logits are moved to see how much a label changes that jumps a level."""


class Explained(NamedTuple):
    """What may differ between two labels of one image where only rounding does: the mean KL and the share of labels
    that differ at all, each at most, and the share of equal top-1, at least."""

    kl: float
    changed: float
    top1: float


@dataclass(frozen=True)
class RerunAgreement:
    """A teacher's re-run, encoded as its labels are, against what is stored.

    Mean and largest KL(again || stored) in nats at `temperature`, the shares of labels with equal top-1 and of those
    that `changed` at all, and what of this the precision of the two computations `explained`. `neighbours` says how far
    logits change when their batch is cut in two, in standard deviations of a row, `rounding` how far they may.
    `stored_top1` is how often the stored label's highest class is the image's own, None without labelled images.
    """

    teacher: str
    labels: int
    mean_kl: float
    largest_kl: float
    top1: float
    temperature: float = 1.0
    changed: float = 0.0
    explained: Explained = field(default_factory=lambda: Explained(0.0, 1.0, 0.0))
    neighbours: float = 0.0
    rounding: float = 0.0
    stored_top1: float | None = None


@dataclass
class Findings:
    """What `verify` found; an empty `problems` means that every check made was passed. `notes` are no problems."""

    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    agreements: list[RerunAgreement] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems

    def check(self, what: str, problems: Sequence[str]) -> None:
        """Enter a check with what it found."""
        self.checks.append(f"{what}: {'ok' if not problems else f'{len(problems)} problem(s)'}")
        self.problems.extend(problems)

    def enter(self, agreement: RerunAgreement, largest_kl: float | None = None) -> None:
        """Enter a teacher's re-run; a mean KL above `largest_kl` nats, or above what is explained, is a problem."""
        self.agreements.append(agreement)
        self.check(
            f"{agreement.teacher}: run again on {plural(agreement.labels, 'view')}",
            _disagreement(agreement, largest_kl),
        )


def check_store(labels: Labels) -> Findings:
    """Checksums of every file, that cards agree with the store, and that all views are there for all images."""
    findings = Findings()
    findings.check("manifest and images", labels.store.verify())
    if not labels.teachers:
        lacking = f"{labels.store.location} holds no teacher's labels; dump some first, or copy the store whole"
        findings.check("teachers", [lacking])
    for name in labels.store.folders:
        each, before = labels.of(name), len(findings.problems)
        wrong = check_card(labels, name)
        findings.check(f"{name}: card", wrong)
        if wrong:
            continue  # what its shards are to be compared with is not known
        findings.check(f"{name}: checksums of {plural(len(each.shards), 'shard')}", each.verify())
        findings.check(f"{name}: completeness", _incomplete(each))
        sound = len(findings.problems) == before
        if each.card.output != LOGITS:
            continue  # records and partners are beside the logits
        if sound and record_spec(labels.recipe) and name != labels.teachers[0]:
            findings.check(f"{name}: recorded views", compare_records(labels, name))
        if sound and labels.recipe.mixes:
            findings.check(f"{name}: recorded partners", compare_partners(labels, name, np.arange(len(labels))))
        if each.skipped:
            findings.notes.append(f"{name}: {len(each.skipped):,} images are unlabelled, and looked at no further")
    return findings


def check_card(labels: Labels, name: str) -> list[str]:
    """Where a teacher's card contradicts the store, or itself."""
    card, codec, problems = labels.of(name).card, labels.codec(name), []
    where = f"the card of {name}"
    beside = layout_beside(labels.recipe) if card.output == LOGITS else {}
    wanted = {key: (each.dtype, each.shape) for key, each in (codec.layout(card.classes) | beside).items()}
    found = {key: (each.dtype, tuple(each.shape)) for key, each in card.layout.items()}
    if wanted != found:
        problems.append(f"{where} lists arrays that its codec {codec.kind!r} does not write: {found}, not {wanted}")
    if card.spec.get("kind") != IMPORTED:  # what imported labels say of their images is another project's
        try:
            Preprocessing.model_validate(card.preprocessing)
        except ValidationError as problem:
            first = problem.errors()[0]
            field = ".".join(str(step) for step in first["loc"])
            problems.append(f"{where} has no usable preprocessing: {field} {first['input']!r} ({first['msg']})")
    return problems


def check_images(findings: Findings, labels: Labels, images: Images, *, part: bool = False) -> None:
    """That these are the images that were labelled, and that their views show what the teachers saw.

    Args:
        part: `images` may be a part of those that were labelled; the others are counted.
    """
    findings.check(f"fingerprint of {plural(len(images), 'image')}", compare_images(labels, images))
    gone = labels.store.find(images.keys)
    lost = np.setdiff1d(np.arange(len(labels)), gone)
    if len(lost):
        named = ", ".join(repr(key) for key in keys_at(labels.keys, lost[:3])) + (", ..." if len(lost) > 3 else "")
        said = f"{len(lost):,} of the {len(labels):,} labelled images are not in {images.name} ({named})"
        if part:
            findings.notes.append(f"{said}; they are not looked at")
        else:
            findings.check("images of the store", [f"{said}; bring them back, or name the part with `data`"])
    if findings.ok:
        compared, differing = compare_digests(labels, images)
        findings.check(f"digests of {plural(compared, 'rendered view')}", differing)


def compare_teacher(
    labels: Labels,
    images: Images,
    teacher: Teacher,
    rows: NDArray[np.int64],
    views: NDArray[np.int64],
    name: str,
    precision: str = "fp32",
) -> RerunAgreement:
    """Run the teacher again on these samples (rows of `images`) and compare with what is stored under `name`.

    Its logits are encoded as the stored ones were, with the same chance, and labels are compared with labels.

    Args:
        precision: in which it computes, ``fp32``, or ``fp16`` or ``bf16`` of autocast.

    Raises:
        ModelError: it gives logits that are not finite.
    """
    codec, stored = labels.codec(name), labels.of(name)
    pictures = ViewDataset.of_store(labels.store, images, stored.views, image_spec(teacher.preprocessing))
    rounding = rounding_of(stored, precision)
    again, apart = [], 0.0
    for start in range(0, len(rows), BATCH):
        some = slice(start, start + BATCH)
        seen = pictures.render(rows[some], views[some])
        said = teacher.logits(seen).cpu()
        if not said.isfinite().all():
            raise ModelError(f"teacher {name} gives NaN or infinite logits; check its weights, or leave out `amp`")
        apart = max(apart, dependence_on_neighbours(teacher.logits, seen, said))
        again.append(said)
    fresh, addresses = torch.cat(again), labels.rows(images.keys.take(rows.tolist()))
    words = pictures.words(rows, views)
    temperature = nearest_temperature(codec, max(1.0, float(fresh.std(-1, correction=0).median())))
    taken = labels.take(addresses, views, [name])[name]
    there = labels.decode({name: taken}, temperature)[0]
    coded = functools.partial(_decoded, codec, words=words, temperature=temperature)
    if isinstance(codec, ShardCodec):
        coded = functools.partial(_decoded_like, codec, taken, temperature=temperature)
    here = coded(fresh)
    kl = divergence(here, there, temperature)
    known = torch.from_numpy(images.labels[rows].astype(np.int64))
    labelled = known >= 0
    return RerunAgreement(
        name,
        len(rows),
        mean_kl=kl.mean().item(),
        largest_kl=kl.max().item(),
        top1=_same(here, there),
        temperature=temperature,
        changed=_changed(kl),
        explained=explained(coded, fresh, temperature, rounding),
        neighbours=apart,
        rounding=rounding,
        stored_top1=(there.argmax(-1) == known)[labelled].double().mean().item() if labelled.any() else None,
    )


def rounding_of(labels: TeacherLabels, precision: str) -> float:
    """How far logits may lie from those behind these labels for reasons of precision, in deviations of a row."""
    causes = {precision, labels.card.precision or "fp32"}
    if seen_from_a_device(labels):
        causes.add("device")
    return max(ROUNDING[cause] for cause in causes)


def explained(coded: Callable[[Tensor], Tensor], logits: Tensor, temperature: float, rounding: float) -> Explained:
    """What `rounding` of these logits (n, classes) explains; `coded` encodes them as the stored ones and decodes.

    It is tried out, for each codec rounds in its own way: logits are moved by `rounding`, encoded and compared with
    those that were not. Of codecs that round to few levels most labels stay equal and some jump a level, so two such
    jumps are allowed, also where none was met: logits that are moved farther tell how large they are.
    """
    chance = torch.Generator().manual_seed(0)
    here, spread, few = coded(logits), rounding * spread_of(logits), len(logits)
    kls, changed, same = [], [], []
    most = farthest = 0.0
    for _ in range(_TRIES):
        noise = spread * torch.randn(logits.shape, generator=chance)
        there = coded(logits + noise)
        kl = divergence(here, there, temperature)
        kls.append(kl.mean().item())
        most = max(most, kl.max().item())
        changed.append(_changed(kl))
        same.append(_same(here, there))
        farther = coded(logits + _FARTHER * noise)
        farthest = max(farthest, divergence(here, farther, temperature).max().item())
    share = float(np.mean(changed))
    return Explained(
        2 * float(np.mean(kls)) + 2 * (most if share else farthest) / few + 1e-9,
        share + max(3 * (share * (1 - share) / few) ** 0.5, 3 / few),
        float(np.mean(same)) - max(0.02, 2 / few),
    )


def _changed(kl: Tensor) -> float:
    return (kl > 1e-12).double().mean().item()


def _same(some: Tensor, others: Tensor) -> float:
    return (some.argmax(-1) == others.argmax(-1)).double().mean().item()


def _decoded(codec: Codec, logits: Tensor, words: Words, temperature: float) -> Tensor:
    return codec.decode(codec.encode(logits, words), logits.shape[1], temperature=temperature)


def _decoded_like(codec: ShardCodec, stored: Arrays, logits: Tensor, temperature: float) -> Tensor:
    """As `_decoded`, where what a label's other views have in common with it is as it is stored."""
    return codec.decode(codec.encode_like(logits, stored), logits.shape[1], temperature=temperature)


def _disagreement(agreement: RerunAgreement, largest: float | None) -> list[str]:
    problems, name = [], agreement.teacher
    if not is_rounding(agreement.neighbours, agreement.rounding):
        problems.append(
            f"{name} answers otherwise when its batch is cut in two (logits move by {agreement.neighbours:.1e} of "
            f"their spread): its labels depend on their neighbours, or on chance such as dropout"
        )
    reasons, may = [], agreement.explained
    limit = may.kl if largest is None else largest
    if agreement.mean_kl > limit:
        reasons.append(
            f"mean KL of {agreement.mean_kl:.2e} nats between the teacher and its stored labels is above {limit:.2e}"
        )
    if largest is None and agreement.changed > may.changed:
        reasons.append(f"{agreement.changed:.1%} of its labels differ from the stored ones, above {may.changed:.1%}")
    if agreement.top1 < may.top1:
        reasons.append(f"top-1 agree on {agreement.top1:.1%} of the labels only")
    if reasons:
        problems.append(
            f"{name}: {', '.join(reasons)} (at temperature {agreement.temperature:.3g}, labels encoded alike); other "
            f"weights, other preprocessing or other pixels"
        )
    return problems


def check_teacher(labels: Labels, teacher: Teacher, name: str) -> list[str]:
    """Where a teacher that was opened again is not as its card says."""
    card, now = labels.of(name).card, teacher.preprocessing.model_dump(mode="json")
    if teacher.classes != card.classes:
        return [f"teacher {name} has {teacher.classes:,} classes, its card says {card.classes:,}"]
    then = {key: card.preprocessing.get(key, value) for key, value in now.items()}
    return [
        f"teacher {name} takes images of {key} {value}, its card says {then[key]}; name it with the settings that "
        f"the labels were made with"
        for key, value in now.items()
        if then[key] != value
    ]


def _incomplete(labels: TeacherLabels) -> list[str]:
    wanted = max((shard.stop_view for shard in labels.shards), default=1)
    missing = labels.missing(wanted)
    if not missing:
        return []
    return [
        f"{labels.name} is incomplete: {len(missing)} of its shards are missing for {wanted} views "
        f"(first: {missing[0].name}); run the dump again to fill them"
    ]
