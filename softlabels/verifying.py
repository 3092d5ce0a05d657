"""Whether a store can be trusted: whole, unchanged, of these images, and of this teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.datasets import Images, content_checksums
from softlabels.labels import Labels
from softlabels.pictures import DIGEST_FRAME, Pictures, frame, key_hashes
from softlabels.provenance import CPU, changed_versions, mixture, renderers, untagged
from softlabels.samples import Batch
from softlabels.store import TeacherLabels
from softlabels.teachers import Teacher

MOST_NAMED = 10
"""Images that one check names at most; the rest is counted."""


@dataclass(frozen=True)
class Agreement:
    """A teacher's re-run against its stored labels: mean and largest KL(teacher || stored) in nats, equal top-1."""

    teacher: str
    labels: int
    mean_kl: float
    largest_kl: float
    top1: float


@dataclass
class Findings:
    """What `verify` found; an empty `problems` means that every check made was passed. `notes` are no problems."""

    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems

    def check(self, what: str, problems: Sequence[str]) -> None:
        """Enter a check with what it found."""
        self.checks.append(f"{what}: {'ok' if not problems else f'{len(problems)} problem(s)'}")
        self.problems.extend(problems)

    def enter(self, agreement: Agreement, largest_kl: float) -> None:
        """Enter a teacher's re-run; a mean KL above `largest_kl` nats is a problem."""
        self.agreements.append(agreement)
        self.check(f"{agreement.teacher}: run again on {agreement.labels} views", _disagreement(agreement, largest_kl))


def check_store(labels: Labels) -> Findings:
    """Checksums of every file, and that each teacher's views are there for all images."""
    findings = Findings()
    findings.check("manifest and images", labels.store.verify())
    if not labels.teachers:
        lacking = f"{labels.store.location} holds no teacher's labels; dump some first, or copy the store whole"
        findings.check("teachers", [lacking])
    for name in labels.teachers:
        each = labels.of(name)
        findings.check(f"{name}: checksums of {len(each.shards)} shards", each.verify())
        findings.check(f"{name}: completeness", _incomplete(each))
        if labels.recipe.records and name != labels.teachers[0]:
            findings.check(f"{name}: recorded views", compare_records(labels, name))
        if labels.recipe.mixes:
            findings.check(f"{name}: recorded partners", compare_partners(labels, name, np.arange(len(labels))))
    return findings


def compare_records(labels: Labels, name: str) -> list[str]:
    """Views for which a teacher's labels record something else than those of the first teacher."""
    rows, first, differing = np.arange(len(labels)), labels.teachers[0], []
    for view in range(min(labels.of(name).views, labels.of(first).views)):
        theirs, its = (labels.recorded(rows, view, each) for each in (first, name))
        same = np.ones(len(rows), bool)
        for key in labels.recipe.records:
            same &= (theirs[key] == its[key]).reshape(len(rows), -1).all(axis=1)
        differing += [
            f"view {view} of {labels.keys[row].as_py()!r} is recorded otherwise by {name} than by {first}"
            for row in np.flatnonzero(~same).tolist()
        ]
    return differing[:MOST_NAMED]


def compare_partners(labels: Labels, name: str, rows: NDArray[np.int64]) -> list[str]:
    """Where what a teacher's labels of these rows were mixed with, as recorded, is not what is drawn now."""
    hashes = key_hashes(labels.keys.take(rows))
    size = labels.of(name).card.preprocessing["size"]
    differing = []
    for view in range(labels.of(name).views):
        records = labels.recorded(rows, view, name) if labels.recipe.records else None
        drawn = labels.recipe.draw(labels.seed, hashes, view, records)
        members = labels.recipe.partners(drawn, labels.store.population(rows))
        partners, shares = labels.mixtures(rows, view, name)
        same = (partners == np.where(members >= 0, members, rows)) & np.isclose(
            shares, labels.recipe.shares(drawn, size)
        )
        differing += [
            f"view {view} of {labels.keys[row].as_py()!r} was mixed by {name} with another image, or in another share, "
            f"than is drawn now; the labels were made by another version or are damaged"
            for row in rows[~same].tolist()
        ]
    return differing[:MOST_NAMED]


def check_images(findings: Findings, labels: Labels, images: Images) -> None:
    """That these are the images that were labelled, and that their views show what the teachers saw."""
    findings.check(f"fingerprint of {len(images):,} images", compare_images(labels, images))
    if findings.ok:
        compared, differing = compare_digests(labels, images)
        findings.check(f"digests of {compared:,} rendered views", differing)
        for name in labels.teachers:
            findings.notes += mixture(name, renderers(labels.of(name)), CPU)


def compare_images(labels: Labels, images: Images) -> list[str]:
    """Problems with the data set: keys without labels, changed hard labels, changed bytes."""
    try:
        rows = labels.rows(images.keys)
    except KeyError as problem:
        return [str(problem.args[0])]
    changed = np.flatnonzero(labels.store.labels[rows] != images.labels)
    problems = _named("other hard label than in the store", images, changed)
    differing = np.flatnonzero(labels.store.checksums[rows] != content_checksums(images))
    return problems + _named("other content than when the labels were made", images, differing)


def compare_digests(labels: Labels, images: Images, most: int | None = None) -> tuple[int, list[str]]:
    """Render views whose digest is kept and compare: how many were compared, and what differs.

    Digests are of what the CPU renders, also where the teacher saw what a device rendered.

    Args:
        most: views to compare at most, evenly spread over the store; None for all.
    """
    here = np.full(len(labels), -1, np.int64)
    here[labels.rows(images.keys)] = np.arange(len(images))
    known = [
        (int(here[row]), view, text, name)
        for name in labels.teachers
        for row, view, text in labels.of(name).digests()
        if here[row] >= 0
    ]
    if most is not None and len(known) > most:
        known = [known[i] for i in np.linspace(0, len(known) - 1, most).astype(int)]
    if not known:
        return 0, []
    rows, views = (np.array([each[column] for each in known], np.int64) for column in (0, 1))
    pictures = Pictures.of_store(labels.store, images, int(views.max()) + 1, DIGEST_FRAME)
    found = pictures.digests(rows, views)
    return len(known), [
        f"image {images.keys[row].as_py()!r}, view {view}: the picture is not the one that {name} saw "
        f"({changed_versions(labels.of(name).card.versions, images)})"
        for (row, view, text, name), now in zip(known, found, strict=True)
        if untagged(text)[0] != now
    ]


def compare_teacher(
    labels: Labels, images: Images, teacher: Teacher, rows: NDArray[np.int64], views: NDArray[np.int64], name: str
) -> Agreement:
    """Run the teacher again on these samples (rows of `images`) and compare with what is stored under `name`."""
    pictures = Pictures.of_store(labels.store, images, labels.views, frame(teacher.preprocessing))
    batch = Batch(
        pictures=pictures.render(rows, views),
        rows=torch.from_numpy(rows),
        views=torch.from_numpy(views),
        hard=torch.from_numpy(images.labels[rows]),
    )
    fresh = teacher.logits(batch.pictures).cpu().log_softmax(-1)
    addresses = labels.rows(images.keys.take(rows.tolist()))
    stored = labels.logits(addresses, views, name).log_softmax(-1)
    kl = (fresh.exp() * (fresh - stored)).sum(-1)
    same = fresh.argmax(-1) == stored.argmax(-1)
    return Agreement(name, len(rows), kl.mean().item(), kl.max().item(), same.double().mean().item())


def _disagreement(agreement: Agreement, largest: float) -> list[str]:
    if agreement.mean_kl <= largest:
        return []
    return [
        f"{agreement.teacher}: mean KL of {agreement.mean_kl:.2e} between the teacher and its stored labels is above "
        f"{largest:.2e}, top-1 agree {agreement.top1:.1%}; other weights, other preprocessing or other pixels"
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


def _named(what: str, images: Images, rows: NDArray[np.int64]) -> list[str]:
    problems = [f"image {images.keys[row].as_py()!r}: {what}" for row in rows[:MOST_NAMED].tolist()]
    if len(rows) > MOST_NAMED:
        problems.append(f"and {len(rows) - MOST_NAMED:,} more images with {what}")
    return problems
