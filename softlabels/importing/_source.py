"""What every project's label files give: labels and records of some images, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from softlabels.codecs import Probabilities
from softlabels.core.arrays import Rows
from softlabels.errors import DataError
from softlabels.views import Recipe


@dataclass(frozen=True)
class Choices:
    """What the files do not say of themselves.

    Attributes:
        classes: width of the teacher's logits.
        temperature: of the softmax that was written.
        tail: whether the classes that are not named share the rest of 1, or have nothing.
        values: float type of the stored probabilities; None for that of the files.
        pictures: whether the views are to be made here; without it only labels are read.
        mixup, cutmix: alphas of the mixtures that were labelled, 0 for none; None where the user did not say.
        mixup_prob, mixup_switch_prob: how likely a pair is mixed, and by cutmix where both alphas are above 0.
    """

    classes: int
    temperature: float = 1.0
    tail: Literal["uniform", "none"] = "uniform"
    values: Literal["fp16", "fp32"] | None = None
    pictures: bool = True
    mixup: float | None = None
    cutmix: float | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5

    def codec(self, k: int, dtype: np.dtype[Any], tail: Literal["uniform", "none"] | None = None) -> Probabilities:
        """How K probabilities that were written as `dtype` are stored."""
        written: Literal["fp16", "fp32"] = "fp16" if dtype == np.float16 else "fp32"
        return Probabilities(k=k, temperature=self.temperature, tail=tail or self.tail, dtype=self.values or written)


@dataclass(frozen=True)
class ImageLabels:
    """Labels of one image in n views: `ids` int64 (n, K), `values` float (n, K), and `records` (n, ...) by name.

    Partners in the records are rows of the data set. `mixed` (n,) says which views show two images.
    """

    ids: Rows
    values: NDArray[np.floating[Any]]
    records: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    mixed: NDArray[np.bool_] | None = None


class Source(Protocol):
    """The opened label files of one project, for one data set. Rows are the data set's."""

    project: str
    """What people call it."""
    views: int
    """Views that the files hold of each image."""
    recipe: Recipe
    """What the views are; its steps are recorded."""
    codec: Probabilities
    """How the labels are stored: K, temperature and tail of the files."""
    missing: Rows
    """Rows without labels."""
    surplus: int
    """Labels of images that the data set does not have."""
    size: int | None
    """Side of the teacher's images, where the files tell it."""
    interpolation: str | None
    """How the teacher's images were resized, where the project's code tells it."""
    unpaired: int
    """Labels of mixed views whose partners are not known."""

    @staticmethod
    def by_place(folder: Path) -> bool:
        """Whether the files in `folder` name an image by its place in the data set alone."""

    def ready(self, rows: Rows, views: Rows) -> None:
        """Say that labels of these rows in these views come next; what is better read together is."""

    def labels(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]]) -> ImageLabels:
        """The labels of one image in these views.

        Raises:
            DataError: a file cannot be read, or holds something else; it is named.
        """


@runtime_checkable
class MixedByWord(Protocol):
    """A source whose files do not tell whether views are mixed, so that the user says it; labels can contradict."""

    said: str | None
    """What the user said of the views, as in "they are said to be ..."; None: nothing."""
    otherwise: str
    """What they would be else."""

    def shown(self, row: int, views: Rows) -> tuple[Rows, Rows]:
        """The rows of which the views (n,) of one image show most: if the user is right, and if not; -1: not known."""


def checked_labels(
    ids: NDArray[Any], values: NDArray[Any], classes: int, where: Path | str
) -> tuple[Rows, NDArray[np.floating[Any]]]:
    """Class numbers and probabilities (n, K), known to be such.

    Raises:
        DataError: a class does not exist or comes twice, or a number is no probability; the file is named.
    """
    numbers = np.asarray(ids)
    if not np.isfinite(numbers).all() or (numbers != np.rint(numbers)).any():
        raise DataError(f"{where} names classes by numbers that are not whole; its layout is another one")
    known = numbers.astype(np.int64)
    if known.size and not 0 <= known.min() <= known.max() < classes:
        wrong = int(known.max()) if known.max() >= classes else int(known.min())
        raise DataError(f"{where} names class {wrong} of {classes:,}; give the teacher's number of classes: `classes`")
    ordered = np.sort(known, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise DataError(f"{where} names a class twice in one label; it is damaged or of another layout")
    # Half floats may round a little above 1.
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1.01).all()):
        raise DataError(f"{where} holds numbers that are no probabilities; it is damaged or of another layout")
    return known, values
