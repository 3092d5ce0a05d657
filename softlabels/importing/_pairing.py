"""Whether labels and images belong together: the one thing that such files can be asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softlabels.core.arrays import Rows
from softlabels.datasets import Images
from softlabels.errors import DataError
from softlabels.importing._source import ImageLabels, MixedByWord, Source
from softlabels.importing.replayed import RecordedCrop
from softlabels.views import Recipe

SAMPLE, SAMPLE_VIEWS, SAMPLE_DECODED = 512, 8, 64
"""Images and views of each that the pairing is checked on, and images that are decoded to see whether crops fit."""

LEAST_KAPPA = 0.25
"""Cohen's kappa of named and own classes below which labels and images do not belong together."""

CONTRADICTED = 4.0
"""Standard deviations by which labels must fit another mixture better for the user to be asked again."""

SURELY = 4.0
"""Standard deviations by which few labels must agree less often than the least for them to be refused."""

SURE = 0.99
"""Agreement by chance above which nothing can be told: nearly all images are of one class."""


@dataclass(frozen=True)
class Pairing:
    """How often the class that a label names first is its image's own: `agreement`, on `labels` of `images` images.

    `chance` is what labels of other images would reach; `kappa` is Cohen's (0: chance, 1: always). `fitting` counts
    images in which all their crops lie, of `decoded`. Of `mixed` views the image counts that they show most; `rival` is
    the agreement if views are mixed otherwise than the user said, and `doubt` says so where labels contradict the user.
    """

    images: int
    labels: int
    agreement: float
    chance: float
    fitting: int
    decoded: int
    mixed: bool = False
    rival: float = 0.0
    doubt: str | None = None

    @property
    def kappa(self) -> float:
        """(agreement - chance) / (1 - chance)."""
        return (self.agreement - self.chance) / max(1 - self.chance, 1e-9)

    @property
    def problem(self) -> str | None:
        """Why labels and images do not seem to belong together; None when they do."""
        if self.labels and self.chance < SURE and self.kappa < LEAST_KAPPA:
            return (
                f"the class named first is the image's own for {self.agreement:.1%} of {self.labels:,} labels, where "
                f"chance gives {self.chance:.1%}"
            )
        if self.fitting < self.decoded:
            return f"{self.decoded - self.fitting} of {self.decoded} images are too small for their recorded crops"
        return None

    def lines(self) -> list[str]:
        """What was found, for people."""
        said = ["nothing in the files ties a label to its image but its name, its number or its place in an order"]
        whose = "that of the image shown most, of the two in a view," if self.mixed else "the image's own"
        if self.labels:
            said.append(
                f"the class named first is {whose} for {self.agreement:.1%} of {self.labels:,} labels of "
                f"{self.images:,} images (chance: {self.chance:.1%})"
            )
        else:
            said.append("there are no hard labels, or only mixed views, to compare with: the pairing is unchecked")
        if self.decoded:
            said.append(f"recorded crops lie in their images for {self.fitting} of {self.decoded} images")
        return said


def check_pairing(source: Source, images: Images) -> Pairing:
    """Compare labels of a sample of images, evenly spread, with their hard labels; mixed views are left out.

    Raises:
        DataError: a file cannot be read; it is named.
    """
    held = np.setdiff1d(np.arange(len(images)), source.missing)
    rows = held[np.unique(np.linspace(0, len(held) - 1, min(SAMPLE, len(held))).astype(int))]
    views = np.unique(np.linspace(0, source.views - 1, min(SAMPLE_VIEWS, source.views)).astype(int))
    decoded = set(rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE_DECODED).astype(int))].tolist())
    crops, word = _pixel_crops(source.recipe), source if isinstance(source, MixedByWord) and source.said else None
    source.ready(rows, views)
    said, own, others, fitting, mixed = [], [], [], 0, False
    for row in rows.tolist():
        labels = source.labels(row, views)
        counted = np.ones(len(views), bool) if labels.mixed is None else ~labels.mixed
        first = labels.first
        own_rows = np.full(len(views), row) if labels.shown is None else labels.shown
        shown, otherwise = word.shown(row, views) if word else (own_rows, own_rows)
        mixed |= bool((shown[shown >= 0] != row).any())
        true = np.where(shown >= 0, images.labels[shown], -1)
        counted &= true >= 0
        said.append(first[counted])
        own.append(true[counted])
        others.append(images.labels[otherwise][counted])
        if crops is not None and row in decoded:
            fitting += _fit(crops, labels, images, row)
    named, true, else_true = (np.concatenate(each) if each else np.zeros(0, np.int64) for each in (said, own, others))
    return Pairing(
        images=sum(len(each) > 0 for each in own),
        labels=len(named),
        agreement=float((named == true).mean()) if len(named) else 0.0,
        chance=_chance(named, true),
        fitting=fitting,
        decoded=len(decoded) if crops is not None else 0,
        mixed=mixed,
        rival=float((named == else_true).mean()) if len(named) else 0.0,
        doubt=_doubt(word, named == true, named == else_true) if word else None,
    )


def _chance(named: Rows, true: Rows) -> float:
    """How often the two classes (n,) of a label would be equal if labels were of any images."""
    if not len(named):
        return 0.0
    most = int(max(named.max(), true.max())) + 1
    shares = [np.bincount(each, minlength=most) / len(each) for each in (named, true)]
    return float((shares[0] * shares[1]).sum())


def of_others(named: Rows, true: Rows) -> str | None:
    """Why labels that name these classes (n,) first are not of images of those classes (n,), -1 for none; None where
    they may be, or are too few to say.

    They are not if they agree with each other far more seldom than the least that is taken for a match, `LEAST_KAPPA`.
    """
    named, true = named[true >= 0], true[true >= 0]
    chance, count = _chance(named, true), len(named)
    least = chance + LEAST_KAPPA * (1 - chance)
    hits = int((named == true).sum())
    if chance >= SURE or hits + SURELY * (count * least * (1 - least)) ** 0.5 >= count * least:
        return None
    return (
        f"the class named first is that of the image shown most for {hits / count:.1%} of {count:,} labels, where "
        f"chance gives {chance:.1%}"
    )


def _doubt(source: MixedByWord, right: NDArray[np.bool_], otherwise: NDArray[np.bool_]) -> str | None:
    """What contradicts the user: labels that fit the other views alone are far more than those that fit these alone."""
    here, there = int((right & ~otherwise).sum()), int((otherwise & ~right).sum())
    if there - here <= CONTRADICTED * (here + there) ** 0.5:  # McNemar's test
        return None
    return (
        f"views are said to be {source.said}, but the class named first fits images that are {source.otherwise} "
        f"better ({otherwise.mean():.1%} against {right.mean():.1%} of {len(right):,} labels)"
    )


def _pixel_crops(recipe: Recipe) -> RecordedCrop | None:
    return next((step for step in recipe.steps if isinstance(step, RecordedCrop) and step.unit == "pixels"), None)


def _fit(crops: RecordedCrop, labels: ImageLabels, images: Images, row: int) -> bool:
    height, width = images.decode(row).shape[-2:]
    try:
        crops.boxes(crops.replay({"box": labels.records["view_box"]}), height, width)
    except DataError:
        return False
    return True
