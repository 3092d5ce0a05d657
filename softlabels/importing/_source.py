"""What every project's label files give: labels and records of some images, image by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.codecs import Codec, Dense, Probabilities, ShardCodec, TopLogits, spelled
from softlabels.core.arrays import Rows
from softlabels.core.philox import Words
from softlabels.errors import ConfigError, DataError
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
        stored: how whole rows of logits are stored; None for half floats.
        order: file of the order in which images were labelled; None where the files or a seed tell it.
        order_seed: seed of that order; None where the user did not say.
        input_size: side of the images that the teacher saw; None where the user did not say.
        skip_missing: whether labels that are not there are passed over instead of refused.
        allow_mismatch: whether labels are read that name other classes than their images have.
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
    stored: Codec | None = None
    order: Path | None = None
    order_seed: int | None = None
    input_size: int | None = None
    skip_missing: bool = False
    allow_mismatch: bool = False

    def codec(self, k: int, dtype: np.dtype[Any], tail: Literal["uniform", "none"] | None = None) -> Probabilities:
        """How K probabilities that were written as `dtype` are stored."""
        written: Literal["fp16", "fp32"] = "fp16" if dtype == np.float16 else "fp32"
        return Probabilities(k=k, temperature=self.temperature, tail=tail or self.tail, dtype=self.values or written)

    def logits_codec(self) -> Codec:
        """How whole rows of logits are stored. Raises ConfigError for a codec that learns from a teacher."""
        if isinstance(self.stored, ShardCodec):
            raise ConfigError(
                f"`codec={spelled(self.stored)}` learns from a teacher that is run; import with `codec=dense`, and "
                f"convert what was imported"
            )
        return self.stored or Dense()


@dataclass(frozen=True)
class ImageLabels:
    """Labels of one image in n views: `values` float (n, K) of the classes `ids` int64 (n, K), and `records` (n, ...)
    by name.

    Values are what the source's codec takes: of `Probabilities` these, of `TopLogits` logits; of any other codec `ids`
    is None, and values are the logits of all classes. Partners in the records are rows of the data set. `mixed` (n,)
    says which views show two images, where it is not known of which they show most; `shown` (n,) is the row of which
    each view shows most, -1 where that is not known, and None for views of the image alone.
    """

    ids: Rows | None
    values: NDArray[np.floating[Any]]
    records: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    mixed: NDArray[np.bool_] | None = None
    shown: Rows | None = None

    @property
    def first(self) -> Rows:
        """The class of the highest value of each view: int64 (n,)."""
        places: Rows = self.values.argmax(axis=1)
        return places if self.ids is None else self.ids[np.arange(len(places)), places]


def encoded(
    labels: Sequence[ImageLabels], codec: Codec, classes: int, words: Callable[[], Words]
) -> dict[str, NDArray[Any]]:
    """What is stored of several images' labels, image by image: arrays (m, ...) by name; `words` gives uint64 (m,)."""
    values = np.concatenate([each.values for each in labels])
    ids = [each.ids for each in labels if each.ids is not None]
    if isinstance(codec, Probabilities) and ids:
        return codec.encode_probabilities(np.concatenate(ids), values, classes)
    if isinstance(codec, TopLogits) and ids:
        return codec.encode_logits(np.concatenate(ids), values, classes)
    return dict(codec.encode(torch.from_numpy(values.astype(np.float32)), words()))


class Source(Protocol):
    """The opened label files of one project, for one data set. Rows are the data set's.

    A class of them is called with the folder, the images and the `Choices`, and raises DataError or ConfigError where
    these do not belong together.
    """

    settings: ClassVar[frozenset[str]]
    """The settings of `softlabels import` that it takes, of those that are for some projects alone."""

    project: str
    """What people call it."""
    views: int
    """Views that the files hold of each image."""
    views_at_once: int | None
    """How many views are best read together; None: all."""
    recipe: Recipe
    """What the views are; its steps are recorded."""
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
    notes: Sequence[str]
    """Lines about what is to be known of these labels."""

    @property
    def codec(self) -> Codec:
        """How the labels are stored, and with that what `ImageLabels` holds."""

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
    known = checked_ids(ids, classes, where)
    # Half floats may round a little above 1.
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1.01).all()):
        raise DataError(f"{where} holds numbers that are no probabilities; it is damaged or of another layout")
    return known, values


def checked_ids(ids: NDArray[Any], classes: int, where: Path | str) -> Rows:
    """Class numbers (n, K), known to be such.

    Raises:
        DataError: a class does not exist or comes twice; the file is named.
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
    return known
