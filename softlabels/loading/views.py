"""The waist: every image that a teacher or a student sees is made here."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from softlabels.core.arrays import Rows
from softlabels.core.philox import Words, hash_keys, philox
from softlabels.datasets import Images, SomeImages
from softlabels.errors import DataError
from softlabels.loading.records import ViewRecords
from softlabels.models import Preprocessing
from softlabels.store import Store
from softlabels.views import RECIPES, ImageSpec, Recipe, Taker, ViewParams, blank, param_source

Places = Sequence[tuple[int, Rows]]
"""Distinct rows, each with the places in a batch where it stands."""

_T = TypeVar("_T")

_ENCODING = 3
"""Stream of chance beside the views': a codec's own draws."""

OF_PARTNER = "the partner of view "
"""How the reason begins for which an image failed that can be read, but not what its view is mixed with."""

_AT_ONCE = 16
"""Images that are looked at together."""

DIGEST_SPEC = ImageSpec(size=32)
"""How images are rendered whose digest is kept: small, square, bilinear, whatever the teacher sees."""


def image_spec(preprocessing: Preprocessing) -> ImageSpec:
    """What a model with this preprocessing sees."""
    return ImageSpec(preprocessing.size, preprocessing.interpolation, preprocessing.resize, preprocessing.crop)


@dataclass(frozen=True, eq=False)
class MixPool:
    """The images among which mixed views find their partners, in the order in which partners are counted.

    Attributes:
        keys: of its N members.
        hashes: of the keys, uint64 (N,).
        images: where the members' pixels are; the whole data set when the images are of a part of it.
        rows: each member's row in `images`, -1 where it is missing: int64 (N,).
        sizes: how many members there were when each of the data set's images came: int64 (n,). Images that come
            later are no partners of earlier ones, so labels that were made stay true.
    """

    keys: pa.ChunkedArray
    hashes: Words
    images: Images
    rows: Rows
    sizes: Rows

    @staticmethod
    def of(images: Images, hashes: Words) -> MixPool:
        """The images themselves, all there from the beginning."""
        count = len(images)
        return MixPool(images.keys, hashes, images, np.arange(count), np.full(count, count))

    @staticmethod
    def of_store(store: Store, images: Images) -> MixPool:
        """Those of a store, in its order, for views of `images`, which are a part of it.

        Raises:
            KeyError: images that are not in the store; the first are named.
        """
        source = images
        while isinstance(source, SomeImages):
            source = source.images
        rows, found = np.full(len(store), -1, np.int64), store.find(source.keys)
        rows[found[found >= 0]] = np.flatnonzero(found >= 0)
        return MixPool(store.keys, key_hashes(store.keys), source, rows, store.population(store.rows(images.keys)))


class ThreadPool:
    """So many threads of this process that fill parts of one batch at the same time; decoders let go of the GIL.

    They are started when they are first needed, in each process that is handed the thread_pool.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process = 0
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[type[ThreadPool], tuple[int]]:
        return ThreadPool, (self.threads,)

    def share(self, count: int, most: int) -> int:
        """Into pieces of how many `count` things are best cut: two or more for each thread, of at most `most`."""
        return max(1, min(most, -(-count // (2 * self.threads))))

    def map(self, work: Callable[[_T], None], pieces: Sequence[_T]) -> Iterable[None]:
        """Each piece worked on by some thread; to be gone through, for the errors."""
        # A forked process has a copy of the pool but not its threads, and would wait for them for ever.
        if self._pool is None or self._process != os.getpid():
            self._process = os.getpid()
            self._pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        return self._pool.map(work, pieces)


class ViewDataset(Dataset[Tensor]):
    """Every view of every image, rendered for one model: a map-style data set of ``len(images) * views`` samples.

    Item: uint8 (3, size, size). Views are drawn from (recipe, seed, key, view number) alone; the partner of a mixed
    view also from the pool, by default `images`. It is seen in its own view of that number. With a `taker`, recorded
    steps are replayed from the records that it takes.

    Raises:
        DataError: an image with which a view is mixed is missing; it is named.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        seed: int,
        views: int,
        image_spec: ImageSpec,
        pool: MixPool | None = None,
        taker: Taker | None = None,
    ) -> None:
        self.images, self.recipe, self.seed, self.views, self.image_spec = images, recipe, seed, views, image_spec
        self.hashes = key_hashes(images.keys)
        self.source = param_source(recipe, seed, self.hashes, taker)
        self.pool = pool or MixPool.of(images, self.hashes)
        self._check_partners()

    @staticmethod
    def of_store(store: Store, images: Images, views: int, image_spec: ImageSpec) -> ViewDataset:
        """The first views that the labels of a store are of, for images of it in any order and number.

        Raises:
            KeyError: images that are not in the store; the first are named.
            DataError: an image with which a view is mixed is missing; it is named.
            ConfigError: only another project can make the images of these views.
        """
        recipe, seed = RECIPES.make(store.manifest.recipe), store.manifest.seed
        rows = store.rows(images.keys)
        taker = ViewRecords.of_store(store, recipe, rows, views)
        pool = MixPool.of_store(store, images) if recipe.mixes else None
        return ViewDataset(images, recipe, seed, views, image_spec, pool, taker)

    def at(self, image_spec: ImageSpec) -> ViewDataset:
        """The same views, rendered for another model."""
        other = ViewDataset.__new__(ViewDataset)
        other.__dict__.update(self.__dict__, image_spec=image_spec)
        return other

    def __len__(self) -> int:
        return len(self.images) * self.views

    def __getitem__(self, number: int) -> Tensor:
        row, view = divmod(check_number(number, len(self)), self.views)
        return self.render(np.array([row]), np.array([view]))[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Tensor]:
        rows, views = np.divmod(np.asarray(numbers, np.int64), self.views)
        return list(self.render(rows, views))

    def render(
        self, rows: Rows, views: Rows, failed: dict[int, str] | None = None, thread_pool: ThreadPool | None = None
    ) -> Tensor:
        """The images of these rows and views, uint8 (n, 3, size, size); each image is decoded once.

        In memory a pixel's channels lie together (torch.channels_last) where images are decoded.

        With `failed`, images that cannot be decoded, or whose partner cannot, are entered there and left black. A
        `thread_pool` shares the images among its threads.

        Raises:
            DataError: an image cannot be decoded and `failed` is not given; the message names it.
        """
        params = self.source.params(rows, views)
        pictures = self._unmixed(self.images, rows, params, failed, thread_pool)
        return self._mixed(pictures, rows, params, failed, thread_pool) if self.recipe.mixes else pictures

    def mixtures(self, rows: Rows, views: Rows) -> tuple[Rows, NDArray[np.float64]]:
        """With whom these views are mixed, and how much of each view is the image's own: (n,) each.

        Partners are places in the pool, -1 for views that are not mixed.
        """
        params = self.source.params(rows, views)
        return self._partners(rows, params), self.recipe.shares(params, self.image_spec.size)

    def words(self, rows: Rows, views: Rows) -> Words:
        """A random word for each label, for codecs that sample: uint64 (n,)."""
        return encoding_words(self.hashes[rows], self.seed, views)

    def digests(self, rows: Rows, views: Rows) -> list[str]:
        """The first 8 bytes of BLAKE2b of each rendered view at the fixed small size, as hex."""
        rendered = self.at(DIGEST_SPEC).render(rows, views).contiguous().numpy()
        return [hashlib.blake2b(picture.tobytes(), digest_size=8).hexdigest() for picture in rendered]

    def _unmixed(
        self,
        images: Images,
        rows: Rows,
        params: ViewParams,
        failed: dict[int, str] | None,
        thread_pool: ThreadPool | None,
    ) -> Tensor:
        if images.pixels is not None:
            return self.recipe.render_batch(
                images.pixels.index_select(0, torch.from_numpy(rows)), params, self.image_spec
            )
        pictures, distinct = blank(len(rows), self.image_spec.size), list(_places(rows))
        each = _AT_ONCE if thread_pool is None else thread_pool.share(len(distinct), _AT_ONCE)
        pieces = [distinct[start : start + each] for start in range(0, len(distinct), each)]
        fill = functools.partial(self._fill, pictures, images, params, failed)
        for _ in map(fill, pieces) if thread_pool is None else thread_pool.map(fill, pieces):
            pass
        return pictures

    def _fill(
        self, pictures: Tensor, images: Images, params: ViewParams, failed: dict[int, str] | None, some: Places
    ) -> None:
        """The views of some images where they stand in `pictures`; those of an image that failed are black."""
        found: list[tuple[int, Rows, Tensor]] = []
        for row, places in some:
            try:
                found.append((row, places, images.decode(row)))
            except DataError as problem:
                _note(row, places, problem, failed, pictures)
        for (row, places, image), boxes in zip(found, self._boxes(found, params), strict=True):
            first, last = int(places[0]), int(places[-1]) + 1
            together = last - first == len(places)
            out = pictures[first:last] if together else blank(len(places), self.image_spec.size)
            try:
                self._render_one(image, boxes, params[first:last] if together else params[places], out)
            except DataError as problem:
                _note(row, places, problem, failed, pictures)
                continue
            if not together:
                for place, picture in zip(places.tolist(), out, strict=True):
                    pictures[place] = picture

    def _boxes(self, found: list[tuple[int, Rows, Tensor]], params: ViewParams) -> Sequence[Rows | None]:
        """The boxes (n, 4) of each image's views, worked out together: alone, each takes a tenth of an image's time.

        Of several images at once, not of a whole batch, since an image is decoded before its size is known. None where
        the recipe does more than crop.
        """
        if not self.recipe.crops or not found:
            return [None] * len(found)
        counts = [len(places) for _, places, _ in found]
        sizes = np.repeat([image.shape[1:] for _, _, image in found], counts, axis=0)
        order = np.concatenate([places for _, places, _ in found])
        return np.split(self.recipe.boxes(params[order], sizes[:, 0], sizes[:, 1]), np.cumsum(counts)[:-1])

    def _render_one(self, image: Tensor, boxes: Rows | None, params: ViewParams, out: Tensor) -> None:
        """The views of one image into `out` (n, 3, size, size)."""
        if boxes is not None:
            self.recipe.render_boxes(image, boxes, params, self.image_spec, out)
        else:
            out.copy_(self.recipe.render_batch(image.expand(len(params), *image.shape), params, self.image_spec))

    def _mixed(
        self,
        pictures: Tensor,
        rows: Rows,
        params: ViewParams,
        failed: dict[int, str] | None,
        thread_pool: ThreadPool | None,
    ) -> Tensor:
        members = self._partners(rows, params)
        mixed = np.flatnonzero(members >= 0)
        sources, numbers = self.pool.rows[members[mixed]], params.numbers[mixed]
        theirs = self.source.partner_params(rows[mixed], numbers, self.pool.hashes[members[mixed]])
        lost: dict[int, str] | None = None if failed is None else {}
        partners = self._unmixed(self.pool.images, sources, theirs, lost, thread_pool)
        if len(mixed) < len(rows):
            some, partners = partners, torch.zeros_like(pictures)
            partners[torch.from_numpy(mixed)] = some
        made = self.recipe.mix(pictures, partners, params)
        for place, source in zip(mixed.tolist(), sources.tolist(), strict=True):
            if lost and failed is not None and source in lost:
                failed.setdefault(int(rows[place]), f"{OF_PARTNER}{params.numbers[place]}: {lost[source]}")
        if failed:
            made[torch.from_numpy(np.isin(rows, list(failed)))] = 0
        return made

    def _partners(self, rows: Rows, params: ViewParams) -> Rows:
        return self.recipe.partners(params, self.pool.sizes[rows])

    def _check_partners(self) -> None:
        """Refuse to begin what could not end; only a data set that lacks members costs a look at every draw."""
        if not self.recipe.mixes or (self.pool.rows >= 0).all():
            return
        every = np.arange(len(self.images))
        for view in range(self.views):
            members, _ = self.mixtures(every, np.full(len(every), view))
            for row in np.flatnonzero((members >= 0) & (self.pool.rows[members] < 0))[:1].tolist():
                raise DataError(
                    f"{self.pool.images.name} has no image {self.pool.keys[int(members[row])].as_py()!r}, "
                    f"with which view {view} of {self.images.keys[row].as_py()!r} is mixed; give the whole data set "
                    f"that was labelled (`limit` trains on a part of it)"
                )


def encoding_words(hashes: Words, seed: int, views: ArrayLike) -> Words:
    """A random word for the label of each view, for codecs that sample: of the key's hash (n,), uint64 (n,)."""
    return philox((hashes, seed), (0, views, 0, _ENCODING))[:, 0]


def key_hashes(keys: pa.ChunkedArray) -> Words:
    """What stands for each image where chance is drawn: uint64 (n,)."""
    return hash_keys(key for chunk in keys.iterchunks() for key in _texts(chunk))


def _texts(chunk: Any, step: int = 65536) -> Iterator[str]:
    # Slices, so that a million keys are never a Python list at once.
    for start in range(0, len(chunk), step):
        yield from chunk.slice(start, step).to_pylist()


def _note(row: int, places: Rows, problem: DataError, failed: dict[int, str] | None, pictures: Tensor) -> None:
    """Enter an image that failed and make its images black, or raise where nobody wants to know."""
    if failed is None:
        raise problem
    failed[row] = str(problem)
    for place in places.tolist():
        pictures[place].zero_()


def _places(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """Each distinct row with the places where it stands."""
    order = np.argsort(rows, kind="stable")
    distinct, starts = np.unique(rows[order], return_index=True)
    # Not strict: of no rows at all, numpy makes one empty part.
    yield from zip(distinct.tolist(), np.split(order, starts[1:]), strict=False)


def check_number(number: int, length: int) -> int:
    """The sample of this number, counted from the end where it is negative, as of any sequence."""
    if not -length <= number < length:
        raise IndexError(f"sample {number} of {length}")
    return number % length
