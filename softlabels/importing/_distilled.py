"""Labels of distilled data sets: SRe2L (Yin et al., "Squeeze, recover and relabel", 2023), LPLD (Xiao and He, "Are
large-scale soft labels necessary for large-scale dataset distillation?", 2024) and LPQLD (the same, "Soft label pruning
and quantization for large-scale dataset distillation", 2026): a file for each batch of a pass over the images.

``epoch_<E>/batch_<B>.tar``, for LPQLD ``batch_<B>.tar`` counted through all epochs, written by ``torch.save`` (read of
VILA-Lab/SRe2L at 8d00cba, he-y/soft-label-pruning-for-dataset-distillation at 63eee18 and
he-y/soft-label-pruning-quantization-for-dataset-distillation at 107c7a5), holds a list for a batch of n images:

    coords   (n, 4) float32, of LPQLD float16: top, left, height, width of each crop; the first and third as shares of
             the image's height, the others of its width
    flips    (n,) bool: mirrored after the crop. Of ImageNet-21K (n, 7) floats: a rectangle painted over
    changes  of LPQLD with RandAugment alone: a list of its operations and strengths
    index    None, or (n,) int64, of LPQLD uint8: the place in the batch of the image that each is mixed with
    lam      None, or the share of a mixup that is the image's own
    box      None, or first and last row, first and last column of what a cutmix takes from the other image: in the
             pixels of the batch, in the order top, left, bottom, right, the last ones not included
    logits   (n, classes) float16 or float32 of the mixed images; with LPQLD's quantisation (n, K), the K highest
    classes  with it alone, (n, K) int16: of which classes they are; to the others it gives nothing at any temperature

Crops, resized bilinear, and flips are the images' own, and the whole batch is then mixed with one lam or box.

Which images a batch holds is not in it. They come in the order of torch's ``RandomSampler`` with a generator of one
seed, 42 by default: it draws two permutations of all images in each epoch, and the first of them is the order. LPLD and
LPQLD write the order, too, as numbers of images: by epoch in ``sampler_indices_epoch.json``, by batch in
``sampler_indices_batch.json``. With pruning both leave out the last batch of an epoch if it is not full, and write the
first epochs alone.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from softlabels.codecs import Codec, TopLogits
from softlabels.core.arrays import Rows
from softlabels.core.pickles import read_torch_file
from softlabels.core.progress import plural
from softlabels.datasets import Images
from softlabels.errors import ConfigError, DataError
from softlabels.importing._pairing import of_others
from softlabels.importing._source import Choices, ImageLabels, checked_ids
from softlabels.views import RECIPES

SEED, SIZE = 42, 224
"""The seed of the order and the side of images that all three projects choose by default."""

_STRAYS = 1e-2
"""How far the rounded edges of a crop may lie beyond the image, in shares of it."""

_COMPARED = 128
"""Labels of each epoch that are compared with the images' own classes before anything is written."""

_SURE_BOXES = 32
"""Boxes of which some reach the last row or column of their images: each does with a chance above a half."""

_AT_ONCE = 1 << 29
"""Bytes of labels that are read together, and half of what is kept of files."""

_MOST = 1 << 20
"""Batches of an epoch are numbered below it: batch b of epoch e is number e * `_MOST` + b."""


Order = NDArray[np.integer[Any]]
"""Rows of a data set in the order in which they were labelled, or places in a batch."""


@dataclass(frozen=True)
class _Layout:
    """Where the batches of a project lie, and what its code leaves out.

    Attributes:
        epochs: whether they lie in folders of their epochs; without it they are counted through.
        prunes: whether the last batch of an epoch and the last of all may not be there.
        order: name of the file in which the order of images is written.
    """

    project: str
    epochs: bool = True
    prunes: bool = False
    order: str | None = None

    @property
    def advice(self) -> str:
        """What to give where the order is wrong."""
        return "the seed of its order (`order_seed`) or the order itself (`order`)" if self.epochs else "its `order`"

    def name(self, number: int) -> str:
        """The name of a batch's file below the folder."""
        return f"epoch_{number // _MOST}/batch_{number % _MOST}.tar" if self.epochs else f"batch_{number}.tar"


@dataclass(frozen=True)
class _Batch:
    """A batch of n images as its file holds it.

    Attributes:
        file: where it was read.
        box, flip: crops as shares of the image, float32 (n, 4); mirrored, bool (n,).
        partner: place in the batch of what each image is mixed with, int64 (n,); None without mixtures.
        blend, cut: the image's own share of a mixup (1: none); the box of a cutmix (all 0: none), int16 (4,).
        ids, values: classes int64 (n, K) and their logits (n, K); or None and logits of all classes (n, classes).
        first: class of the highest logit, int64 (n,).
    """

    file: Path
    box: NDArray[np.float32]
    flip: NDArray[np.bool_]
    partner: Rows | None
    blend: float
    cut: NDArray[np.int16]
    ids: Rows | None
    values: NDArray[np.floating[Any]]
    first: Rows

    @staticmethod
    def read(file: Path, choices: Choices) -> _Batch:
        try:
            content = read_torch_file(file)
        except DataError as problem:
            raise DataError(f"{problem}; copy it again, or label its batch again") from problem
        if not isinstance(content, list | tuple) or not 6 <= len(content) <= 8:
            raise _no_batch(file, "a list of crops, flips, mixture and logits")
        parts = list(content)
        changed = parts.pop(2) if isinstance(parts[2], list) else None
        if not 6 <= len(parts) <= 7:
            raise _no_batch(file, "a list of crops, flips, mixture and logits")
        coords, flips, values = (_array(parts[place]) for place in (0, 1, 5))
        count = len(values) if values.ndim == 2 else 0
        cutout = flips.shape == (count, 7)
        numbers = coords.dtype.kind == values.dtype.kind == "f" and flips.dtype.kind in ("f" if cutout else "bu")
        if not numbers or not values.size or coords.shape != (count, 4) or not (cutout or flips.shape == (count,)):
            shapes = ", ".join(f"{each.dtype} {each.shape}" for each in (coords, flips, values))
            raise _no_batch(file, f"crops (n, 4), flips (n,) and logits (n, classes), and holds {shapes}")
        if choices.pictures and (cutout or changed is not None):
            raise ConfigError(
                f"{file} tells of {'rectangles painted over' if cutout else 'RandAugment'}, of which images are not "
                f"made here; import the labels alone with `labels_only=True`"
            )
        ids = None if len(parts) == 6 else _array(parts[6])
        ids = _checked(file, values, ids, choices.classes)
        coords = coords.astype(np.float32)
        inside = (coords[:, :2] >= 0) & (coords[:, 2:] > 0) & (coords[:, :2] + coords[:, 2:] <= 1 + _STRAYS)
        if not inside.all():
            raise DataError(f"{file} records crops that do not lie in an image; it is damaged or of another layout")
        places = values.argmax(axis=1)
        first = places if ids is None else ids[np.arange(count), places]
        return _Batch(file, coords, flips.astype(np.bool_), *_mixture(file, count, *parts[2:5]), ids, values, first)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.ids is None else self.ids.nbytes)

    def check_like(self, other: _Batch, count: int, size: int | None) -> None:
        """Refuse what another batch of the same run, of so many images of this size, would not hold.

        Raises:
            DataError, ConfigError: the file is named.
        """
        if len(self.flip) != count:
            raise DataError(
                f"{self.file} holds {len(self.flip):,} images where {count:,} belong; it is of another batch size or "
                f"data set: copy it again"
            )
        mixed = (self.partner is None, self.ids is None, self.values.shape[1], self.values.dtype)
        if mixed != (other.partner is None, other.ids is None, other.values.shape[1], other.values.dtype):
            raise DataError(
                f"{self.file} is not mixed, or does not hold its logits, as {other.file} does; files of two runs lie "
                f"in one folder: copy them again"
            )
        if size is not None and int(self.cut.max()) > size:
            raise ConfigError(
                f"{self.file} records a box of a cutmix up to pixel {int(self.cut.max())}, but images are {size} "
                f"pixels wide; give the size of those that the teacher saw: `input_size`"
            )

    def shown(self, rows: Order, size: int | None) -> Order:
        """Which of its images, of these rows (n,), each view shows most: rows (n,)."""
        if self.partner is None or size is None:
            return rows
        top, left, bottom, right = self.cut.tolist()
        own = self.blend * (1 - (bottom - top) * (right - left) / size**2)
        return rows if own >= 0.5 else rows[self.partner]

    def taken(self, places: Order, rows: Order, size: int | None) -> dict[str, NDArray[Any]]:
        """Labels and records of the images at these places (m,) of the batch, whose images are of `rows` (n,)."""
        made = {"values": self.values[places], "view_box": self.box[places], "view_flip": self.flip[places]}
        made |= {"shown": self.shown(rows, size)[places].astype(np.int64)}
        made |= {} if self.ids is None else {"ids": self.ids[places]}
        if self.partner is None:
            return made
        others, count = self.partner[places], len(places)
        made |= {"other_box": self.box[others], "other_flip": self.flip[others]}
        made |= {"mix_partner": rows[others].astype(np.uint32), "mix_blend": np.full(count, self.blend, np.float32)}
        return made | {"mix_cut": np.broadcast_to(self.cut, (count, 4))}


class BatchFiles:
    """The batch files below `folder`, for the images of a data set in the order in which `ImageFolder` lists them.

    View v of an image is its v-th label, which is that of epoch v where no batch is missing. An image in fewer batches
    than others has its own labels again, from the first on. Abstract: the projects differ in what they leave out.
    """

    layout: ClassVar[_Layout]
    project: str
    settings: ClassVar[frozenset[str]] = frozenset({"codec", "order", "order_seed", "input_size"})
    surplus = 0
    unpaired = 0
    interpolation: str | None = "bilinear"

    def __init__(self, folder: Path, images: Images, choices: Choices) -> None:
        self._folder, self._images, self._choices = folder, images, choices
        self._files = _files(folder, self.layout)
        self._first = _Batch.read(self._files[min(self._files)], choices)
        self._rows, note = _ordered(folder, self._files, self.layout, images, choices)
        self._slots = np.array(sorted(self._files))
        rows = [self._rows[slot] for slot in self._slots.tolist()]
        lengths = np.array([len(each) for each in rows])
        every = np.concatenate(rows)
        order = np.argsort(every, kind="stable")  # of each image, its labels in the order of the batches
        self._counts = np.bincount(every, minlength=len(images))
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._where = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)[order]
        self._places = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])[order]
        self.views = int(self._counts.max())
        self.missing = np.flatnonzero(self._counts == 0)
        self.views_at_once: int | None = max(1, _AT_ONCE // (len(images) * self._first.nbytes // len(self._first.flip)))
        self.codec = self._stored()
        self.size = choices.input_size if self._first.partner is None else choices.input_size or SIZE
        self._kept: OrderedDict[int, _Batch] = OrderedDict()
        self._kept_bytes = 0
        self._held: tuple[Rows, list[int], dict[str, NDArray[Any]]] = (np.zeros(0, np.int64), [], {})
        self._check_sample()
        self.notes: Sequence[str] = (note, *self._left_out())
        drawn: list[dict[str, Any]] = [{"kind": "recorded-crop", "unit": "shares"}, {"kind": "recorded-flip"}]
        drawn += [] if self._first.partner is None else [{"kind": "recorded-mix", "size": self.size}]
        self.recipe = RECIPES.make(drawn if choices.pictures else [{"kind": "foreign-view", "of": self.project}])

    @staticmethod
    def by_place(folder: Path) -> bool:  # noqa: ARG004
        """See `Source.by_place`."""
        return True

    def ready(self, rows: Rows, views: Rows) -> None:
        """See `Source.ready`. Each file is read once, for all of its images that are asked for."""
        rows = np.setdiff1d(rows, self.missing)
        if not len(rows):
            return
        entries = self._starts[rows][:, None] + np.asarray(views) % self._counts[rows][:, None]
        where, places = self._where[entries], self._places[entries]
        held: dict[str, NDArray[Any]] = {}
        order = np.argsort(where, axis=None, kind="stable")
        wanted, firsts = np.unique(where.reshape(-1)[order], return_index=True)
        for number, some in zip(wanted.tolist(), np.split(order, firsts[1:]), strict=True):
            slot = int(self._slots[number])
            taken = self._batch(slot).taken(places.reshape(-1)[some], self._rows[slot], self.size)
            for name, array in taken.items():
                if name not in held:
                    held[name] = np.zeros((places.size, *array.shape[1:]), array.dtype)
                held[name][some] = array
        shaped = {name: array.reshape(*places.shape, *array.shape[1:]) for name, array in held.items()}
        self._held = (rows, np.asarray(views).tolist(), shaped)

    def labels(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]]) -> ImageLabels:
        """See `Source.labels`."""
        numbers = [int(view) for view in views]
        rows, held, arrays = self._held
        place = int(np.searchsorted(rows, row))
        if held != numbers or place == len(rows) or rows[place] != row:
            self.ready(np.array([row]), np.array(numbers, np.int64))
            place, arrays = 0, self._held[2]
        one = {name: array[place] for name, array in arrays.items()}
        ids, values, shown = one.pop("ids", None), one.pop("values"), one.pop("shown")
        return ImageLabels(ids, values, one if self._choices.pictures else {}, shown=shown)

    def _stored(self) -> Codec:
        kept = self._first.ids
        if kept is None:
            return self._choices.logits_codec()
        codec = TopLogits(k=kept.shape[1])
        if self._choices.stored not in (None, codec):
            raise ConfigError(
                f"{self._folder} holds the {codec.k} highest logits and nothing of the other classes, as "
                f"`codec=top_logits:{codec.k}` keeps them; leave `codec` out"
            )
        return codec

    def _batch(self, slot: int) -> _Batch:
        """The batch of a file, known to be like the first one and to be of its images."""
        if slot in self._kept:
            self._kept.move_to_end(slot)
            return self._kept[slot]
        file, rows = self._files[slot], self._rows[slot]
        batch = _Batch.read(file, self._choices)
        batch.check_like(self._first, len(rows), self.size)
        self._check(batch.first, batch.shown(rows, self.size), str(file))
        self._kept[slot] = batch
        self._kept_bytes += batch.nbytes
        while len(self._kept) > 1 and self._kept_bytes > 2 * _AT_ONCE:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return batch

    def _check(self, named: Rows, shown: Order, what: str) -> None:
        """Refuse labels that name these classes first and are not of the rows that their views show most."""
        why = of_others(named, self._images.labels[shown].astype(np.int64))
        if why is not None and not self._choices.allow_mismatch:
            raise DataError(
                f"{what} does not seem to be of these images in this order: {why}; give the data set that was "
                f"labelled, {self.layout.advice}, or import them all the same with `allow_mismatch=True`"
            )

    def _check_sample(self) -> None:
        """Look at some labels of each epoch: a wrong seed or a run that was begun again shows in some epochs alone."""
        edges: list[int] = []
        for span in self._spans():
            named, shown, count = [], [], 0
            for slot in span:
                batch = self._batch(slot)
                named.append(batch.first)
                shown.append(batch.shown(self._rows[slot], self.size))
                edges += [int(batch.cut[2:].max())] if batch.cut.any() else []
                count += len(named[-1])
                if count >= _COMPARED:
                    break
            self._check(np.concatenate(named), np.concatenate(shown), f"{self._files[span[0]]} and what follows")
        if len(edges) >= _SURE_BOXES and max(edges) < (self.size or 0):
            raise ConfigError(
                f"{self._folder}: of {len(edges):,} boxes of a cutmix none reaches beyond pixel {max(edges)}, so the "
                f"images that the teacher saw were not {self.size} pixels wide; give their size: `input_size`"
            )

    def _spans(self) -> list[list[int]]:
        """The files of each epoch, in order."""
        each = max(1, len(self._images) // len(self._first.flip))
        found: dict[int, list[int]] = {}
        for slot in self._slots.tolist():
            found.setdefault(slot // (_MOST if self.layout.epochs else each), []).append(slot)
        return list(found.values())

    def _left_out(self) -> Iterable[str]:
        """What is to be known where batches are missing."""
        absent = len(self._rows) - len(self._files)
        if absent:
            yield f"{absent:,} of {len(self._rows):,} batch files are missing"
        counts = self._counts[self._counts > 0]
        repeated = int((self.views - counts).sum())
        if repeated:
            yield (
                f"{repeated:,} of {self.views * len(counts):,} labels are repeated, of images that are in fewer "
                f"batches than others; `views={counts.min()}` repeats none"
            )


class Sre2l(BatchFiles):
    """SRe2L: crops, flips, mixtures and logits of whole batches of a distilled data set."""

    project = "sre2l"
    layout = _Layout("SRe2L")


class Lpld(BatchFiles):
    """LPLD: as SRe2L, with a part of the batches alone."""

    project = "lpld"
    layout = _Layout("LPLD", prunes=True, order="sampler_indices_epoch.json")


class Lpqld(BatchFiles):
    """LPQLD: a part of the batches, with the K highest logits alone."""

    project = "lpqld"
    layout = _Layout("LPQLD", epochs=False, prunes=True, order="sampler_indices_batch.json")
    settings = frozenset({"codec", "order", "input_size"})


def _no_batch(file: Path, wanted: str) -> DataError:
    return DataError(f"{file} is no batch file of these projects: it should hold {wanted}")


def _array(value: Any) -> NDArray[Any]:
    """What a file holds as an array; an empty one of objects for what is none."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        return np.zeros(0, object)


def _shown(value: Any) -> str:
    """A value of a file in a short line."""
    return " ".join(repr(value).split())[:80]


def _checked(file: Path, values: NDArray[Any], ids: NDArray[Any] | None, classes: int) -> Rows | None:
    """The classes (n, K) that logits (n, K) are of, None for all; both known to be such."""
    if not np.isfinite(values).all():
        raise DataError(f"{file} holds NaN or infinite logits; copy it again, or label its batch again")
    if ids is None and values.shape[1] != classes:
        raise DataError(
            f"{file} holds logits of {values.shape[1]:,} classes, where the data set has {classes:,}; give the "
            f"teacher's number of classes: `classes={values.shape[1]}`"
        )
    sums = values.sum(axis=1, dtype=np.float64)
    if (values >= 0).all() and (sums > 0.05).all() and (sums < 1.02).all():
        raise DataError(f"{file} holds probabilities where logits belong; it is of another project or layout")
    if ids is None:
        return None
    if ids.shape != values.shape or ids.dtype.kind not in "iu":
        raise _no_batch(file, f"a class for each logit, and holds {ids.dtype} {ids.shape} for {values.shape}")
    return checked_ids(ids, classes, file)


def _mixture(file: Path, count: int, index: Any, lam: Any, box: Any) -> tuple[Rows | None, float, NDArray[np.int16]]:
    """Partner, blend and cut of a batch, as `_Batch` has them."""
    if index is None:
        return None, 1.0, np.zeros(4, np.int16)
    partner = _array(index)
    whole = partner.shape == (count,) and partner.dtype.kind in "iu"
    if not whole or (np.sort(partner) != np.arange(count)).any():
        bits = "; LPQLD writes them in 8 bits, which are too few for more than 256" if count > 256 else ""
        raise DataError(f"{file} does not name each of its {count:,} images once as a partner in a mixture{bits}")
    partner = partner.astype(np.int64)
    if box is None:
        share = _array(lam)
        if share.shape != () or share.dtype.kind not in "iuf" or not 0 <= share <= 1:
            raise _no_batch(file, f"a share of a mixup from 0 to 1, and holds {_shown(lam)}")
        return partner, float(share), np.zeros(4, np.int16)
    edges = _array(box)
    ordered = edges.shape == (4,) and edges.dtype.kind in "iu" and (edges[:2] <= edges[2:]).all()
    if not ordered or edges.min() < 0 or edges.max() >= 1 << 15:
        raise _no_batch(file, f"a box of four edges of a cutmix, and holds {_shown(box)}")
    return partner, 1.0, edges.astype(np.int16)


_EPOCH, _BATCH = re.compile(r"epoch_(\d{1,6})"), re.compile(r"batch_(\d{1,6})\.tar")


def _files(folder: Path, layout: _Layout) -> dict[int, Path]:
    """The files of the batches that are there, by number."""
    if not folder.is_dir():
        raise DataError(f"no such directory: {folder}")
    if not layout.epochs:
        found = dict(_numbered(folder, _BATCH))
    else:
        if _EPOCH.fullmatch(folder.name):
            raise DataError(f"{folder} holds one epoch; give the folder that holds all: {folder.parent}")
        epochs = dict(_numbered(folder, _EPOCH))
        batches = {epoch: dict(_numbered(below, _BATCH)) for epoch, below in epochs.items() if below.is_dir()}
        found = {epoch * _MOST + batch: file for epoch, some in batches.items() for batch, file in some.items()}
    if not found:
        raise DataError(f"{folder} holds no {layout.name(0)}; give the folder that {layout.project}'s code wrote")
    return found


def _numbered(folder: Path, pattern: re.Pattern[str]) -> Iterable[tuple[int, Path]]:
    return ((int(match[1]), each) for each in folder.iterdir() if (match := pattern.fullmatch(each.name)))


def _ordered(
    folder: Path, files: Mapping[int, Path], layout: _Layout, images: Images, choices: Choices
) -> tuple[dict[int, Order], str]:
    """The rows of every batch that should be there, by number, and a line about where they are from."""
    file = choices.order
    if file is not None and choices.order_seed is not None:
        raise ConfigError("`order` and `order_seed` both say how the images were ordered; give one of them")
    if file is None and choices.order_seed is None and layout.order and (folder / layout.order).is_file():
        file = folder / layout.order
    lists = None if file is None else _listed(file, images)
    note = f"the order of the images is that in {file}"
    if not layout.epochs:
        if lists is None:
            raise DataError(
                f"{folder} lacks {layout.order}, in which {layout.project} writes which images a batch holds; copy it "
                f"too, or give such a file with `order`"
            )
        unlisted = sorted(files.keys() - lists.keys())
        if unlisted:
            raise DataError(f"{file} does not list the images of {files[unlisted[0]]}; it is of other labels")
        _check_complete(folder, files, sorted(lists), layout, choices)
        return lists, note
    count, epochs = max(number % _MOST for number in files) + 1, max(files) // _MOST + 1
    ended = max(number % _MOST for number in files if number // _MOST == epochs - 1) + 1 if layout.prunes else count
    wanted = [range(epoch * _MOST, epoch * _MOST + (count if epoch < epochs - 1 else ended)) for epoch in range(epochs)]
    _check_complete(folder, files, itertools.chain.from_iterable(wanted), layout, choices)
    each, last = _batch_sizes(files, choices)
    if lists is None:
        _check_total(folder, (count, each, last, epochs), layout, images)
        seed = SEED if choices.order_seed is None else choices.order_seed
        lists = seeded_orders(seed, epochs, len(images))
        note = f"the order of the images is that of seed {seed}"
    rows: dict[int, Order] = {}
    for epoch, numbers in enumerate(wanted):
        for batch, number in enumerate(numbers):
            start, stop = batch * each, batch * each + (last if batch == count - 1 else each)
            if len(lists.get(epoch, ())) < stop:
                raise DataError(
                    f"{file} lists {len(lists.get(epoch, ())):,} images of epoch {epoch}, of which labels of {stop:,} "
                    f"or more are in {folder}; it is of other labels"
                )
            rows[number] = lists[epoch][start:stop]
    return rows, note


def _check_complete(
    folder: Path, files: Mapping[int, Path], wanted: Iterable[int], layout: _Layout, choices: Choices
) -> None:
    """Refuse a file that is missing, unless the user does without it."""
    lacking = None if choices.skip_missing else next((number for number in wanted if number not in files), None)
    if lacking is not None:
        raise DataError(
            f"{folder} lacks {layout.name(lacking)}; copy it again, or import the labels of the other batches "
            f"with `on_missing=skip`"
        )


def _batch_sizes(files: Mapping[int, Path], choices: Choices) -> tuple[int, int]:
    """How many images a batch holds, and how many the last one of an epoch."""
    last = max(number % _MOST for number in files)
    some = [min((number for number in files if number % _MOST == batch), default=min(files)) for batch in (0, last)]
    first, final = (len(_Batch.read(files[number], choices).flip) for number in some)
    return first, final


def _check_total(folder: Path, found: tuple[int, int, int, int], layout: _Layout, images: Images) -> None:
    """Refuse epochs of more or fewer images than the data set has."""
    count, each, last, epochs = found
    total, whole = (count - 1) * each + last, len(images) // each
    dropped = layout.prunes and last == each and (count == whole or (epochs == 1 and count < whole))
    if total != len(images) and not dropped:
        raise DataError(
            f"{folder} holds labels of {plural(total, 'image')} in an epoch ({count:,} files of "
            f"{each:,}), but {images.name} has {len(images):,}; give the data set that was labelled"
        )


def seeded_orders(seed: int, epochs: int, count: int) -> dict[int, Order]:
    """The order of the images in each epoch, as torch's RandomSampler takes it from one generator."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Order] = {}
    for epoch in range(epochs):
        made[epoch] = torch.randperm(count, generator=generator).numpy().astype(np.int32)
        # At the end of an epoch the sampler draws a further permutation, of which it takes nothing.
        torch.randperm(count, generator=generator)
    return made


def _listed(file: Path, images: Images) -> dict[int, Order]:
    """The rows that a file lists for each epoch or batch: a JSON object of lists by number, or a list of lists."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{file} is no JSON file; the order of images is lists of keys or numbers in one") from problem
    lists = dict(enumerate(content)) if isinstance(content, list) else content
    if not isinstance(lists, dict) or not all(isinstance(each, list) for each in lists.values()):
        raise DataError(f"{file} holds no lists of images; write one for each epoch (of LPQLD: batch), by number")
    if not all(str(number).isdecimal() for number in lists):
        raise DataError(f"{file} names lists by other words than numbers of epochs or batches")
    return {int(number): _known(each, file, str(number), images) for number, each in lists.items()}


def _known(names: list[Any], file: Path, number: str, images: Images) -> Order:
    """The rows of images that are given by key or by number."""
    kinds = {type(name) for name in names}
    if kinds == {str}:
        found = pc.fill_null(pc.index_in(pa.array(names, pa.string()), value_set=images.keys.combine_chunks()), -1)
        rows = np.asarray(found, np.int64)
    elif kinds <= {int}:
        rows = np.array([name if 0 <= name < len(images) else -1 for name in names], np.int64)
    else:
        raise DataError(f"{file}: list {number} holds neither keys of images nor their numbers alone")
    if (rows < 0).any():
        unknown = names[int(np.flatnonzero(rows < 0)[0])]
        raise DataError(
            f"{file}: list {number} names {_shown(unknown)}, which {images.name} does not have; give that data set"
        )
    if len(np.unique(rows)) < len(rows):
        raise DataError(f"{file}: list {number} names an image twice; it is damaged, or no order of images")
    return rows.astype(np.int32)
