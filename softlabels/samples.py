"""The waist: every picture that a teacher or a student sees is made here, and every order in which they come.

A sample's number is ``row * views + view``. It says all there is to know, so workers, ranks, epochs and batches play no
part in what a sample shows, and any sampler or loader that hands out numbers keeps pictures and labels paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from softlabels._philox import Words, hash_keys, permutation, philox
from softlabels.datasets import Images
from softlabels.errors import ConfigError, DataError
from softlabels.labels import Labels
from softlabels.networks import Preprocessing
from softlabels.views import Frame, Recipe

Rows = NDArray[np.int64]

DIGEST_FRAME = Frame(size=32)
"""How pictures are rendered whose digest is kept: small, square, bilinear, whatever the teacher sees."""

_OFFSETS, _ORDER, _ENCODING, _PICKS = 1, 2, 3, 5
"""Streams of chance beside the views': the first view of each image, the order of an epoch, a codec's own draws."""


def frame(preprocessing: Preprocessing) -> Frame:
    """What a model with this preprocessing sees."""
    return Frame(preprocessing.size, preprocessing.interpolation, preprocessing.resize)


@dataclass
class Batch:
    """Some samples: uint8 pictures (n, 3, H, W), rows and views (n,), hard labels or -1 (n,), codec arrays per teacher.

    `failed` names the images that could not be decoded; their pictures are black.
    """

    pictures: Tensor
    rows: Tensor
    views: Tensor
    hard: Tensor
    arrays: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def pin_memory(self) -> Batch:
        """Page-lock what goes to the device."""
        self.pictures, self.hard = self.pictures.pin_memory(), self.hard.pin_memory()
        return self


class Pictures(Dataset[Tensor]):
    """Every view of every image, rendered for one model: a map-style data set of ``len(images) * views`` samples.

    Item: uint8 (3, size, size). Views are drawn from (recipe, seed, key, view number) alone.

    Raises:
        ConfigError: the recipe mixes images.
    """

    def __init__(self, images: Images, recipe: Recipe, seed: int, views: int, frame: Frame) -> None:
        if recipe.mixes:
            raise ConfigError("recipes that mix two images (mixup, cutmix) cannot be labelled; choose one without them")
        self.images, self.recipe, self.seed, self.views, self.frame = images, recipe, seed, views, frame
        self.hashes = key_hashes(images.keys)

    def __len__(self) -> int:
        return len(self.images) * self.views

    def __getitem__(self, number: int) -> Tensor:
        row, view = divmod(_checked(number, len(self)), self.views)
        return self.render(np.array([row]), np.array([view]))[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Tensor]:
        rows, views = np.divmod(np.asarray(numbers, np.int64), self.views)
        return list(self.render(rows, views))

    def render(self, rows: Rows, views: Rows, failed: dict[int, str] | None = None) -> Tensor:
        """The pictures of these rows and views, uint8 (n, 3, size, size); each image is decoded once.

        With `failed`, images that cannot be decoded are entered there and left black.

        Raises:
            DataError: an image cannot be decoded and `failed` is not given; the message names it.
        """
        drawn = self.recipe.draw(self.seed, self.hashes[rows], views)
        if self.images.pixels is not None:
            return self.recipe.render_batch(self.images.pixels[torch.from_numpy(rows)], drawn, self.frame)
        pictures = torch.zeros(len(rows), 3, self.frame.size, self.frame.size, dtype=torch.uint8)
        for row, places in _places(rows):
            try:
                image = self.images.decode(row)
            except DataError as problem:
                if failed is None:
                    raise
                failed[row] = str(problem)
                continue
            for place in places:
                pictures[place] = self.recipe.render(image, drawn[place], self.frame)
        return pictures

    def words(self, rows: Rows, views: Rows) -> Words:
        """A random word for each label, for codecs that sample: uint64 (n,)."""
        return encoding_words(self.hashes[rows], self.seed, views)

    def digests(self, rows: Rows, views: Rows) -> list[str]:
        """The first 8 bytes of BLAKE2b of each rendered view at the fixed small size, as hex."""
        small = Pictures.__new__(Pictures)
        small.__dict__.update(self.__dict__, frame=DIGEST_FRAME)
        rendered = small.render(rows, views).contiguous().numpy()
        return [hashlib.blake2b(picture.tobytes(), digest_size=8).hexdigest() for picture in rendered]


class LabelledPictures(Dataset[Batch]):
    """Pictures with their hard labels and what the teachers said of them; one item is a whole `Batch`.

    `label_rows` (images,) maps a row of the pictures to its row in the store. Stored arrays travel as the codec wrote
    them, so that workers send few bytes; the receiver decodes.
    """

    def __init__(
        self,
        pictures: Pictures,
        labels: Labels | None = None,
        label_rows: Rows | None = None,
        teachers: Sequence[str] = (),
        *,
        tolerant: bool = False,
    ) -> None:
        self.pictures, self.labels, self.label_rows, self.teachers = pictures, labels, label_rows, tuple(teachers)
        self._tolerant = tolerant

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        rows, views = np.divmod(np.asarray(numbers, np.int64), self.pictures.views)
        failed: dict[int, str] = {}
        rendered = self.pictures.render(rows, views, failed if self._tolerant else None)
        batch = Batch(
            pictures=rendered,
            rows=torch.from_numpy(rows),
            views=torch.from_numpy(views),
            hard=torch.from_numpy(self.pictures.images.labels[rows].astype(np.int64)),
            failed=failed,
        )
        if self.labels is not None and self.label_rows is not None:
            taken = self.labels.take(self.label_rows[rows], views, self.teachers)
            batch.arrays = {name: {k: torch.from_numpy(a) for k, a in each.items()} for name, each in taken.items()}
        return batch


def batches(
    samples: LabelledPictures, numbers: Iterable[NDArray[np.int64]], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """A `Batch` for each array of sample numbers, in that order, made in this process or by `workers` others."""
    if workers == 0:
        return (samples.__getitems__(each) for each in numbers)  # type: ignore[arg-type]
    return iter(
        DataLoader(
            samples,
            batch_sampler=(each.tolist() for each in numbers),  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=4,
        )
    )


class SoftLabelDataset(Dataset[tuple[Tensor, int, Tensor]]):
    """Pictures with the teachers' probabilities, for anybody's training loop.

    Map-style, ``len(images) * labels.views`` items; item ``row * views + view`` is (uint8 picture (3, size, size), hard
    label or -1, probabilities float32 (classes,)). Works with `torch.utils.data.DataLoader` and
    `torch.nn.CrossEntropyLoss` as they are; give the loader a `OneViewEach` sampler to see one view of each image per
    epoch. Images are joined to labels by key.

    Args:
        labels: what `open_labels` gives.
        images: what `open_images` gives, or None to open the data set that the labels were made of.
        size: side of the pictures in pixels; any size shows the views that the teacher saw.
        teachers: names to blend; None for all.
        temperature: softens the probabilities.

    Raises:
        KeyError: images without labels; the first are named.
    """

    def __init__(
        self,
        labels: Labels,
        images: Images,
        size: int = 224,
        teachers: Sequence[str] | None = None,
        temperature: float = 1.0,
        *,
        blend: Any = "mean-probabilities",
        interpolation: str = "bilinear",
    ) -> None:
        self.labels, self.teachers, self.temperature, self.blend = labels, teachers, temperature, blend
        self._rows = labels.rows(images.keys)
        self.pictures = Pictures(images, labels.recipe, labels.seed, labels.views, Frame(size, interpolation))

    @property
    def views(self) -> int:
        """Views per image."""
        return self.pictures.views

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Tensor, int, Tensor]:
        return self.__getitems__([_checked(number, len(self))])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[Tensor, int, Tensor]]:
        rows, views = np.divmod(np.asarray(numbers, np.int64), self.views)
        pictures = self.pictures.render(rows, views)
        probabilities = self.labels.probabilities(
            self._rows[rows], views, self.temperature, teachers=self.teachers, blend=self.blend
        )
        hard = self.pictures.images.labels[rows].tolist()
        return list(zip(pictures, hard, probabilities, strict=True))


class OneViewEach(Sampler[int]):
    """Sample numbers of one epoch: each image once in a shuffled order, each time in its next view.

    After `views` epochs every image was seen in each of its views once. With ``views_per_image=m`` each image comes m
    times in a row with m different views, so that one decode feeds m rows of a batch. The order depends on (seed,
    epoch) alone; make one sampler per epoch, or call `set_epoch` before each.
    """

    def __init__(self, pictures: SoftLabelDataset | Pictures, epoch: int = 0, seed: int = 0, views_per_image: int = 1):
        self._images, self._views = len(pictures) // pictures.views, pictures.views
        self._seed, self._views_per_image = seed, views_per_image
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._images * self._views_per_image

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers().tolist())

    def numbers(self) -> NDArray[np.int64]:
        """The epoch's sample numbers, int64 (images * views_per_image,)."""
        rows = permutation(self._images, self._seed, self._epoch, _ORDER)
        offsets = philox((self._seed, _OFFSETS), (rows, 0, 0, 0))[:, 0] % np.uint64(self._views)
        turns = self._epoch * self._views_per_image + np.arange(self._views_per_image)
        views = (offsets.astype(np.int64)[:, None] + turns) % self._views
        return (rows[:, None] * self._views + views).reshape(-1)


def encoding_words(hashes: Words, seed: int, views: ArrayLike) -> Words:
    """A random word for the label of each view, for codecs that sample: of the key's hash (n,), uint64 (n,)."""
    return philox((hashes, seed), (0, views, 0, _ENCODING))[:, 0]


def spread(images: int, views: int, count: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows and views of `count` samples picked over all images and views, for checks and estimates: int64 (n,) each."""
    rows = permutation(images, seed, _PICKS)[:count]
    return rows, np.resize(permutation(views, seed, _PICKS, 1), len(rows))


def key_hashes(keys: pa.ChunkedArray) -> Words:
    """What stands for each image where chance is drawn: uint64 (n,)."""
    return hash_keys(key for chunk in keys.iterchunks() for key in _texts(chunk))


def _texts(chunk: Any, step: int = 65536) -> Iterator[str]:
    # Slices, so that a million keys are never a Python list at once.
    for start in range(0, len(chunk), step):
        yield from chunk.slice(start, step).to_pylist()


def _places(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """Each distinct row with the places where it stands."""
    order = np.argsort(rows, kind="stable")
    distinct, starts = np.unique(rows[order], return_index=True)
    yield from zip(distinct.tolist(), np.split(order, starts[1:]), strict=True)


def _checked(number: int, length: int) -> int:
    if not -length <= number < length:
        raise IndexError(f"sample {number} of {length}")
    return number % length


def _as_it_is(batch: Batch) -> Batch:
    return batch


def as_mapping(arrays: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors of a batch as the numpy arrays that a codec decodes, without a copy."""
    return {name: tensor.numpy() for name, tensor in arrays.items()}
