"""The waist: every picture that a teacher or a student sees is made here, and every order in which they come.

A sample's number is ``row * views + view``. It says all there is to know, so workers, ranks, epochs and batches play no
part in what a sample shows, and any sampler or loader that hands out numbers keeps pictures and labels paired.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from softlabels._philox import Words, hash_keys, permutation, philox
from softlabels.datasets import Images, SomeImages
from softlabels.errors import DataError
from softlabels.labels import Labels
from softlabels.networks import Preprocessing
from softlabels.store import Store
from softlabels.views import RECIPES, Frame, Recipe, Views

Rows = NDArray[np.int64]

DIGEST_FRAME = Frame(size=32)
"""How pictures are rendered whose digest is kept: small, square, bilinear, whatever the teacher sees."""

_OFFSETS, _ORDER, _ENCODING, _PICKS = 1, 2, 3, 5
"""Streams of chance beside the views': the first view of each image, the order of an epoch, a codec's own draws."""


_AHEAD = 2
"""Batches that wait, beside those that threads are making."""


def frame(preprocessing: Preprocessing) -> Frame:
    """What a model with this preprocessing sees."""
    return Frame(preprocessing.size, preprocessing.interpolation, preprocessing.resize)


@dataclass
class Batch:
    """Some samples: uint8 pictures (n, 3, H, W), rows and views (n,), hard labels or -1 (n,), codec arrays per teacher.

    Where the recipe mixes, `partners` (n,) are the hard labels of the partners and `shares` float32 (n,) how much of
    each picture is the image's own. `failed` names the images that could not be decoded; their pictures are black.
    """

    pictures: Tensor
    rows: Tensor
    views: Tensor
    hard: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None
    arrays: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def pin_memory(self) -> Batch:
        """Page-lock what goes to the device."""
        self.pictures, self.hard = self.pictures.pin_memory(), self.hard.pin_memory()
        return self


@dataclass(frozen=True, eq=False)
class Population:
    """The images among which mixed views find their partners, in the order in which draws count them.

    Attributes:
        keys: of its N members.
        hashes: of the keys, uint64 (N,).
        images: where the members' pixels are; the whole data set when the pictures are of a part of it.
        rows: each member's row in `images`, -1 where it is missing: int64 (N,).
        sizes: how many members there were when each of the pictures' own images came: int64 (n,). Images that come
            later are no partners of earlier ones, so labels that were made stay true.
    """

    keys: pa.ChunkedArray
    hashes: Words
    images: Images
    rows: Rows
    sizes: Rows

    @staticmethod
    def of(images: Images, hashes: Words) -> Population:
        """The images themselves, all there from the beginning."""
        count = len(images)
        return Population(images.keys, hashes, images, np.arange(count), np.full(count, count))

    @staticmethod
    def of_store(store: Store, images: Images) -> Population:
        """Those of a store, in its order, for pictures of `images`, which are a part of it.

        Raises:
            KeyError: images that are not in the store; the first are named.
        """
        source = images
        while isinstance(source, SomeImages):
            source = source.images
        rows, found = np.full(len(store), -1, np.int64), store.find(source.keys)
        rows[found[found >= 0]] = np.flatnonzero(found >= 0)
        return Population(store.keys, key_hashes(store.keys), source, rows, store.population(store.rows(images.keys)))


class Pictures(Dataset[Tensor]):
    """Every view of every image, rendered for one model: a map-style data set of ``len(images) * views`` samples.

    Item: uint8 (3, size, size). Views are drawn from (recipe, seed, key, view number) alone; the partner of a mixed
    view also from the population, which is `images` where nothing is said. It is seen in its own view of that number.

    Raises:
        DataError: an image with which a view is mixed is missing; it is named.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        seed: int,
        views: int,
        frame: Frame,
        population: Population | None = None,
    ) -> None:
        self.images, self.recipe, self.seed, self.views, self.frame = images, recipe, seed, views, frame
        self.hashes = key_hashes(images.keys)
        self.population = population or Population.of(images, self.hashes)
        self._check_partners()

    @staticmethod
    def of_store(store: Store, images: Images, views: int, frame: Frame) -> Pictures:
        """The first views that the labels of a store are of, for images of it in any order and number.

        Raises:
            KeyError: images that are not in the store; the first are named.
            DataError: an image with which a view is mixed is missing; it is named.
        """
        recipe, seed = RECIPES.make(store.manifest.recipe), store.manifest.seed
        population = Population.of_store(store, images) if recipe.mixes else None
        return Pictures(images, recipe, seed, views, frame, population)

    def at(self, frame: Frame) -> Pictures:
        """The same views, rendered for another model."""
        other = Pictures.__new__(Pictures)
        other.__dict__.update(self.__dict__, frame=frame)
        return other

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

        With `failed`, images that cannot be decoded, or whose partner cannot, are entered there and left black.

        Raises:
            DataError: an image cannot be decoded and `failed` is not given; the message names it.
        """
        drawn = self.recipe.draw(self.seed, self.hashes[rows], views)
        pictures = self._unmixed(self.images, rows, drawn, failed)
        return self._mixed(pictures, rows, drawn, failed) if self.recipe.mixes else pictures

    def mixtures(self, rows: Rows, views: Rows) -> tuple[Rows, NDArray[np.float64]]:
        """With whom these views are mixed, and how much of each picture is the image's own: (n,) each.

        Partners are places in the population, -1 for views that are not mixed.
        """
        drawn = self.recipe.draw(self.seed, self.hashes[rows], views)
        return self._partners(rows, drawn), self.recipe.shares(drawn, self.frame.size)

    def words(self, rows: Rows, views: Rows) -> Words:
        """A random word for each label, for codecs that sample: uint64 (n,)."""
        return encoding_words(self.hashes[rows], self.seed, views)

    def digests(self, rows: Rows, views: Rows) -> list[str]:
        """The first 8 bytes of BLAKE2b of each rendered view at the fixed small size, as hex."""
        rendered = self.at(DIGEST_FRAME).render(rows, views).contiguous().numpy()
        return [hashlib.blake2b(picture.tobytes(), digest_size=8).hexdigest() for picture in rendered]

    def _unmixed(self, images: Images, rows: Rows, drawn: Views, failed: dict[int, str] | None) -> Tensor:
        if images.pixels is not None:
            return self.recipe.render_batch(images.pixels.index_select(0, torch.from_numpy(rows)), drawn, self.frame)
        pictures = torch.empty(len(rows), 3, self.frame.size, self.frame.size, dtype=torch.uint8)
        for row, places in _places(rows):
            try:
                image = images.decode(row)
            except DataError as problem:
                if failed is None:
                    raise
                failed[row] = str(problem)
                pictures[torch.from_numpy(places)] = 0
                continue
            views = self.recipe.render_batch(image.expand(len(places), *image.shape), drawn[places], self.frame)
            for place, view in zip(places.tolist(), views, strict=True):
                pictures[place] = view
        return pictures

    def _mixed(self, pictures: Tensor, rows: Rows, drawn: Views, failed: dict[int, str] | None) -> Tensor:
        members = self._partners(rows, drawn)
        mixed = np.flatnonzero(members >= 0)
        theirs = self.recipe.draw(self.seed, self.population.hashes[members[mixed]], drawn.numbers[mixed])
        sources = self.population.rows[members[mixed]]
        lost: dict[int, str] | None = None if failed is None else {}
        partners = torch.zeros_like(pictures)
        partners[torch.from_numpy(mixed)] = self._unmixed(self.population.images, sources, theirs, lost)
        made = self.recipe.mix(pictures, partners, drawn)
        for place, source in zip(mixed.tolist(), sources.tolist(), strict=True):
            if lost and failed is not None and source in lost:
                failed.setdefault(int(rows[place]), f"the partner of view {drawn.numbers[place]}: {lost[source]}")
        if failed:
            made[torch.from_numpy(np.isin(rows, list(failed)))] = 0
        return made

    def _partners(self, rows: Rows, drawn: Views) -> Rows:
        return self.recipe.partners(drawn, self.population.sizes[rows])

    def _check_partners(self) -> None:
        """Refuse to begin what could not end; only a data set that lacks members costs a look at every draw."""
        if not self.recipe.mixes or (self.population.rows >= 0).all():
            return
        every = np.arange(len(self.images))
        for view in range(self.views):
            members, _ = self.mixtures(every, np.full(len(every), view))
            for row in np.flatnonzero((members >= 0) & (self.population.rows[members] < 0))[:1].tolist():
                raise DataError(
                    f"{self.population.images.name} has no image {self.population.keys[int(members[row])].as_py()!r}, "
                    f"with which view {view} of {self.images.keys[row].as_py()!r} is mixed; give the whole data set "
                    f"that was labelled (--limit trains on a part of it)"
                )


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
        if labels is not None:
            labels.share()

    @property
    def views(self) -> int:
        """Views per image."""
        return self.pictures.views

    def runs(self) -> Rows:
        """The run of rows, and so the shards, in which each image's labels lie: int64 (images,)."""
        if self.labels is None or self.label_rows is None:
            return np.zeros(len(self.pictures.images), np.int64)
        return self.labels.store.manifest.runs.of(self.label_rows)

    def ahead(self, numbers: Sequence[Rows]) -> Iterator[Rows]:
        """These arrays of sample numbers, one by one, while a thread makes their labels ready where that takes time."""
        if self.labels is None or self.label_rows is None or not numbers:
            yield from numbers
            return
        rows, views = np.divmod(np.concatenate(numbers), self.pictures.views)
        with self.labels.ahead(self.label_rows[rows], views, self.teachers) as reached:
            place = 0
            for each in numbers:
                reached(place)
                place += len(each)
                yield each

    def __getitems__(self, numbers: Sequence[int] | Rows) -> Batch:
        return self.labelled(self.rendered(numbers))

    def rendered(self, numbers: Sequence[int] | Rows) -> Batch:
        """The batch without what the teachers said; threads may ask at the same time."""
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
        if self.pictures.recipe.mixes:
            batch.partners, batch.shares = self._mixtures(rows, views)
        return batch

    def labelled(self, batch: Batch) -> Batch:
        """The batch with what the teachers said; for one thread at a time, since shards are opened at first use."""
        if self.labels is not None and self.label_rows is not None:
            rows, views = self.label_rows[batch.rows.numpy()], batch.views.numpy()
            taken = self.labels.take(rows, views, self.teachers)
            batch.arrays = {name: {k: torch.from_numpy(a) for k, a in each.items()} for name, each in taken.items()}
        return batch

    def _mixtures(self, rows: Rows, views: Rows) -> tuple[Tensor, Tensor]:
        """Hard labels of the partners (the image's own where it is not mixed) and shares, (n,) each."""
        members, shares = self.pictures.mixtures(rows, views)
        population = self.pictures.population
        theirs = population.images.labels[population.rows[members]]
        hard = np.where(members >= 0, theirs, self.pictures.images.labels[rows]).astype(np.int64)
        return torch.from_numpy(hard), torch.from_numpy(shares.astype(np.float32))


@dataclass(frozen=True)
class Threads:
    """So many threads of this process, in the place of worker processes: decoders and kernels let go of the GIL."""

    count: int


Workers = int | Threads
"""Who makes batches ahead of their use: a number of processes (0: none, made when asked for), or threads."""


def batches(
    samples: LabelledPictures,
    numbers: Iterable[NDArray[np.int64]],
    *,
    workers: Workers = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """A `Batch` for each array of sample numbers, in that order, made in this process or by `workers`."""
    if workers == 0:
        return (samples.__getitems__(each) for each in numbers)
    if isinstance(workers, Threads):
        return _by_threads(samples, numbers, workers.count)
    loader: DataLoader[Batch] = DataLoader(
        samples,
        batch_sampler=(each.tolist() for each in numbers),
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4,
    )
    return iter(loader)


def _by_threads(samples: LabelledPictures, numbers: Iterable[NDArray[np.int64]], threads: int) -> Iterator[Batch]:
    """Each batch is one thread's, which fills its memory from end to end; nothing is copied or sent."""
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for each in numbers:
                waiting.append(pool.submit(samples.rendered, each))
                if len(waiting) > threads + _AHEAD:
                    yield samples.labelled(waiting.popleft().result())
            while waiting:
                yield samples.labelled(waiting.popleft().result())
        finally:
            for one in waiting:
                one.cancel()


class SoftLabelDataset(Dataset[tuple[Tensor, int, Tensor]]):
    """Pictures with the teachers' probabilities, for anybody's training loop.

    Map-style, ``len(images) * labels.views`` items; item ``row * views + view`` is (uint8 picture (3, size, size), hard
    label or -1, probabilities float32 (classes,)). A picture that is mixed of two images has no hard label. Works with
    `torch.utils.data.DataLoader` and `torch.nn.CrossEntropyLoss` as they are; give the loader a `OneViewEach` sampler
    to see one view of each image per epoch. Images are joined to labels by key.

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
        labels.share()
        self.pictures = Pictures.of_store(labels.store, images, labels.views, Frame(size, interpolation))

    @property
    def views(self) -> int:
        """Views per image."""
        return self.pictures.views

    def runs(self) -> Rows:
        """The run of rows, and so the shards, in which each image's labels lie: int64 (images,)."""
        return self.labels.store.manifest.runs.of(self._rows)

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
        hard = self.pictures.images.labels[rows]
        if self.pictures.recipe.mixes:
            hard = np.where(self.pictures.mixtures(rows, views)[1] < 1, -1, hard)
        return list(zip(pictures, hard.tolist(), probabilities, strict=True))


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


def _as_it_is(batch: Any) -> Any:
    return batch


def as_mapping(arrays: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors of a batch as the numpy arrays that a codec decodes, without a copy."""
    return {name: tensor.numpy() for name, tensor in arrays.items()}
