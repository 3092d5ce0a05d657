"""Whether labels and images belong together: fingerprints, digests of rendered views, recorded draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.philox import hash_keys, permutation
from softlabels.datasets import Images, content_checksums
from softlabels.errors import ConfigError, StoreError
from softlabels.loading.labels import Labels, keys_at
from softlabels.loading.provenance import changed_versions, digest_in
from softlabels.loading.records import ViewRecords
from softlabels.loading.views import DIGEST_SPEC, ViewDataset
from softlabels.models import first_difference
from softlabels.store import TeacherLabels
from softlabels.views import param_source, record_spec

PIXEL_CHECKS = 4
"""Rendered views that are compared with the digests in a store before the first step."""

PARTNER_CHECKS = 1024
"""Images whose recorded partners are compared with the drawn ones before the first step, in every view."""

MOST_NAMED = 10
"""Images that one check names at most; the rest is counted."""


STRETCH_BYTES = 2 << 20
"""Bytes of stored labels that a check of what is recorded with them takes at once."""


LEAST = 1e-6
"""Probabilities below it count as this much where two labels are compared: of labels that leave classes out by chance
one class more or less must not weigh as much as a label of another image."""


def compare_records(labels: Labels, name: str) -> list[str]:
    """Views for which a teacher's labels record something else than those of the first teacher."""
    first, other = labels.of(labels.teachers[0]), labels.of(name)
    differing: list[str] = []
    for view in range(min(first.views, other.views)):
        for rows in _stretches(np.arange(len(labels)), first, other):
            known = rows[labels.labelled(rows, [first.name, name])]
            numbers = np.full(len(known), view)
            theirs, its = (labels.beside(each, known, numbers) for each in (first, other))
            same = np.ones(len(known), bool)
            for key in record_spec(labels.recipe):
                same &= (theirs[key] == its[key]).reshape(len(known), -1).all(axis=1)
            differing += [
                f"view {view} of {key!r} is recorded otherwise by {name} than by {first.name}"
                for key in keys_at(labels.keys, known[~same])
            ]
            if len(differing) >= MOST_NAMED:
                return differing[:MOST_NAMED]
    return differing


def compare_partners(labels: Labels, name: str, rows: NDArray[np.int64]) -> list[str]:
    """Where what a teacher's labels of these rows were mixed with, as recorded, is not what is drawn now."""
    teacher = labels.of(name)
    size, recorded = teacher.card.preprocessing["size"], record_spec(labels.recipe)
    differing: list[str] = []
    for some in _stretches(rows[labels.labelled(rows, [name])], teacher):
        hashes, pool = hash_keys(keys_at(labels.keys, some)), labels.store.population(some)
        taker = ViewRecords(teacher, tuple(recorded), some) if recorded else None
        source = param_source(labels.recipe, labels.seed, hashes, taker)
        for view in range(teacher.views):
            numbers = np.full(len(some), view)
            params = source.params(np.arange(len(some)), numbers)
            members = labels.recipe.partners(params, pool)
            partners, shares = labels.recorded_mixtures(teacher, some, numbers)
            same = (partners == np.where(members >= 0, members, some)) & np.isclose(
                shares, labels.recipe.shares(params, size)
            )
            differing += [
                f"view {view} of {key!r} was mixed by {name} with another image, or in another share, than is drawn "
                f"now; the labels were made by another version or are damaged"
                for key in keys_at(labels.keys, some[~same])
            ]
            if len(differing) >= MOST_NAMED:
                return differing[:MOST_NAMED]
    return differing


def _stretches(rows: NDArray[np.int64], *teachers: TeacherLabels) -> Iterator[NDArray[np.int64]]:
    """`rows` in pieces whose labels of one view take `STRETCH_BYTES`."""
    record = max(sum(each.record for each in teacher.card.layout.values()) for teacher in teachers)
    step = max(1, STRETCH_BYTES // record)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def compare_images(labels: Labels, images: Images) -> list[str]:
    """Problems with the data set: keys without labels, changed hard labels, changed bytes."""
    try:
        rows = labels.rows(images.keys)
    except KeyError as problem:
        return [str(problem.args[0])]
    changed = np.flatnonzero(labels.store.labels[rows] != images.labels)
    problems = _named("other hard label than in the store", images, changed)
    # Of an image that no teacher could read there is no label that its content could contradict.
    read = labels.labelled_by_any(rows)
    differing = np.flatnonzero((labels.store.checksums[rows] != content_checksums(images)) & read)
    return problems + _named("other content than when the labels were made", images, differing)


def check_classes(images: Images, names: Sequence[str], whose: str) -> None:
    """Raises ConfigError where `names`, of `whose` classes in their order, are others than those of the data set.

    Names that are not known, on either side, or that only count (0, 1, 2, ...) are not compared.
    """
    differing = first_difference(images.classes, names)
    if differing is None:
        return
    place, name, other = differing
    if other is not None:
        raise ConfigError(
            f"class {name!r} is number {place} of {images.name} and number {other} of {whose}; give data "
            f"with the same classes in the same order"
        )
    shown = f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
    raise ConfigError(
        f"class {name!r} of {images.name} is none of the {len(names):,} classes of {whose} ({shown}); give data with "
        f"the same classes under the same names"
    )


def check_seen_views(
    labels: Labels, images: Images, teachers: Sequence[str], pixels: Literal["same", "other"] = "same"
) -> None:
    """Compare a few views with what the teachers saw, as far as the store has digests of them.

    With `pixels` "other" the images may show anything; recorded partners are compared all the same.

    Raises:
        StoreError: a view is another one; the first is named.
    """
    problems = [] if pixels == "other" else compare_digests(labels, images, most=PIXEL_CHECKS)[1]
    if problems:
        raise StoreError(
            f"{problems[0]}; `softlabels verify` lists every difference; images of other pixels that share the keys "
            f"are asked for with `pixels=other`"
        )
    if labels.recipe.mixes:
        rows = permutation(len(labels))[:PARTNER_CHECKS]
        problems += [each for name in teachers for each in compare_partners(labels, name, rows)]
    if problems:
        raise StoreError(f"{problems[0]}; `softlabels verify` lists every difference")


def compare_digests(labels: Labels, images: Images, most: int | None = None) -> tuple[int, list[str]]:
    """Render views whose digest is kept and compare: how many were compared, and what differs.

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
    pictures = ViewDataset.of_store(labels.store, images, int(views.max()) + 1, DIGEST_SPEC)
    found = pictures.digests(rows, views)
    return len(known), [
        f"image {images.keys[row].as_py()!r}, view {view}: the view is not the one that {name} saw "
        f"({changed_versions(labels.of(name).card.versions, images)})"
        for (row, view, text, name), now in zip(known, found, strict=True)
        if digest_in(text) != now
    ]


def divergence(some: Tensor, others: Tensor, temperature: float) -> Tensor:
    """KL(some || others) in nats of each pair of labels, given as logits (n, classes): float64 (n,), never below 0.

    Of softmax(logits / temperature), whose probabilities below `LEAST` count as `LEAST`.
    """
    p, q = ((each.double() / temperature).softmax(-1).clamp_min(LEAST) for each in (some, others))
    p, q = (each / each.sum(-1, keepdim=True) for each in (p, q))
    return (p * (p / q).log()).sum(-1).clamp_min(0)


def _named(what: str, images: Images, rows: NDArray[np.int64]) -> list[str]:
    problems = [f"image {images.keys[row].as_py()!r}: {what}" for row in rows[:MOST_NAMED].tolist()]
    if len(rows) > MOST_NAMED:
        problems.append(f"and {len(rows) - MOST_NAMED:,} more images with {what}")
    return problems
