"""TinyViT (Wu et al., "TinyViT: fast pretraining distillation for small vision transformers", 2022): flat records.

``logits_top<K>_epoch<E>/rank<R>-values.bin`` (read of microsoft/Cream, TinyViT) holds records of 4 + 4 K bytes, little
endian: the seed of the augmentation, int32; K class numbers, int16; K probabilities at temperature 1, float16.
``rank<R>-keys.txt`` has the key of each record in a line of its own: an image's place in the data set, or its name
where the data set gives one (ImageNet-22k). Each epoch is one view. Ranks may hold an image twice, from padding.

The view is made from the seed by TinyViT's own transforms, with numpy's PCG64 behind them; it is not made here.

With mixup or cutmix on, as in its default config, each rank mixes the images of lines 2 i and 2 i + 1 of its keys
with each other, with chance from the exclusive or of their seeds (`SeededMix`). Nothing in the files says whether it
was on, or with which alphas, so the user must. An image that pads a rank which holds it already is not written again:
then the last line of the rank has no partner that is known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from softlabels.core.arrays import Rows
from softlabels.core.config import validated
from softlabels.datasets import Images
from softlabels.errors import ConfigError, DataError
from softlabels.importing._pairing import check_pairing
from softlabels.importing._source import Choices, ImageLabels, checked_labels
from softlabels.importing.replayed import SeededMix
from softlabels.views import RECIPES

_EPOCH = re.compile(r"logits_top(\d{1,5})_epoch(\d{1,6})")
_VALUES = re.compile(r"rank(\d{1,6})-values\.bin")

_MIXUP, _CUTMIX = 0.8, 1.0
"""The alphas of TinyViT's default config."""


class TinyViT:
    """TinyViT: seeds of views that its own code makes, and probabilities.

    The epochs of saved labels below `folder`, for the images of a data set.
    """

    settings: ClassVar[frozenset[str]] = frozenset(
        {"temperature", "tail", "values", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob"}
    )
    project = "tinyvit"
    views_at_once: int | None = None
    notes: Sequence[str] = ()
    surplus = 0
    interpolation: str | None = None  # the seed chooses it, or TinyViT's config says it

    def __init__(self, folder: Path, images: Images, choices: Choices) -> None:
        k, epochs = _epochs(folder)
        if k > choices.classes:
            raise DataError(f"{epochs[0]} holds {k} classes of each label, but there are {choices.classes} (`classes`)")
        self._choices = choices
        names = _names(images.keys)
        self._epochs = [_Epoch.opened(epoch, k, images, names) for epoch in epochs]
        self.views = len(epochs)
        self.codec = choices.codec(k, np.dtype(np.float16))
        lacking = np.zeros(len(images), bool)
        for epoch in self._epochs:
            lacking |= epoch.places < 0
        self.missing = np.flatnonzero(lacking)
        self.surplus = max(epoch.surplus for epoch in self._epochs)
        self._held: tuple[Rows, list[int], NDArray[Any]] = (np.zeros(0, np.int64), [], np.zeros((0, 0)))
        said = [alpha for alpha in (choices.mixup, choices.cutmix) if alpha is not None]
        if len(said) == 1 or (choices.pictures and not said):
            raise ConfigError(f"{folder} does not tell {_question(folder, images, choices, self.missing)}")
        self._mix = _mix(choices) if any(said) else None
        self._likely = self._mix or _mix(replace(choices, mixup=_MIXUP, cutmix=_CUTMIX))
        words = ["not mixed", f"mixed with mixup {self._likely.mixup:g} and cutmix {self._likely.cutmix:g}"]
        self.otherwise = words[self._mix is None]
        self.said: str | None = words[self._mix is not None] if said else None
        seeded, mixed = choices.pictures, bool(self._mix) if choices.pictures else None
        steps: list[Any] = [{"kind": "foreign-view", "of": "TinyViT", "seeded": seeded, "mixed": mixed}]
        self.recipe = RECIPES.make([*steps, self._mix] if mixed and self._mix else steps)
        self.size: int | None = self._mix.size if mixed and self._mix else None
        self.unpaired = sum(epoch.unpaired for epoch in self._epochs) if mixed else 0

    @staticmethod
    def by_place(folder: Path) -> bool:
        """See `Source.by_place`. Data sets that give names are asked for them."""
        _, epochs = _epochs(folder)
        files = sorted(each for each in epochs[0].iterdir() if _VALUES.fullmatch(each.name))
        return bool(files) and _are_places(_lines(files[0]))

    def ready(self, rows: Rows, views: Rows) -> None:
        """See `Source.ready`. Epoch by epoch, since their files together are more than a process may have open."""
        there = np.setdiff1d(rows, self.missing)
        records = [self._epochs[view].records(there) for view in views.tolist()]
        self._held = (there, views.tolist(), np.stack(records, axis=1))

    def labels(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]]) -> ImageLabels:
        """See `Source.labels`."""
        found = self._found(row, views)
        ids = np.ascontiguousarray(found["ids"])
        # More classes than int16 holds come round as negative numbers.
        ids = ids.view("<u2") if self._choices.classes > 1 << 15 else ids
        where = f"the label of image {row} in {self._epochs[int(views[0])].folder}"
        known, values = checked_labels(ids, found["values"], self._choices.classes, where)
        if not self._choices.pictures:
            return ImageLabels(known, values)
        seeds = found["seed"].astype(np.int64)
        if seeds.min() < 0:
            raise DataError(f"{where} has the seed {seeds.min()}, which is none; it is damaged or of another layout")
        mixture = self._mixture(row, views, seeds) if self._mix else {}
        return ImageLabels(known, values, {"view_seed": seeds} | mixture)

    def shown(self, row: int, views: Rows) -> tuple[Rows, Rows]:
        """See `MixedByWord.shown`."""
        mixture = self._mixture(row, views, self._found(row, views)["seed"].astype(np.int64))
        own = self._likely.shares(self._likely.replay(mixture), self._likely.size)
        known = mixture["mix_seed"] != SeededMix.unknown
        mixed = np.where(known, np.where(own >= 0.5, row, mixture["mix_partner"]), SeededMix.unknown)
        unmixed = np.where(known, row, SeededMix.unknown)
        return (mixed, unmixed) if self._mix else (unmixed, mixed)

    def _found(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The records of one image in these views, (n,)."""
        rows, held, records = self._held
        place = int(np.searchsorted(rows, row))
        if held != [int(view) for view in views] or place == len(rows) or rows[place] != row:
            self.ready(np.array([row]), np.asarray(views, np.int64))
            place, records = 0, self._held[2]
        found: NDArray[Any] = records[place]
        return found

    def _mixture(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]], seeds: Rows) -> dict[str, Rows]:
        """What is recorded of the mixtures of one image in these views, which have these seeds."""
        partners, others = np.array([self._epochs[int(view)].partner(row) for view in views], np.int64).T
        known = others != SeededMix.unknown
        return {
            "mix_partner": np.where(known, partners, row),
            "mix_seed": np.where(known, seeds ^ others, SeededMix.unknown),
            "other_seed": others,
        }


def _mix(choices: Choices) -> SeededMix:
    given = {"mixup": choices.mixup, "cutmix": choices.cutmix}
    chance = {"prob": choices.mixup_prob, "switch_prob": choices.mixup_switch_prob}
    made: SeededMix = validated(SeededMix, {**given, **chance}, "mixtures")
    return made


def _question(folder: Path, images: Images, choices: Choices, missing: Rows) -> str:
    """What the user is asked of the mixtures, with what a sample of the labels says."""
    seen = ""
    if len(missing) < len(images):
        told = check_pairing(TinyViT(folder, images, replace(choices, mixup=_MIXUP, cutmix=_CUTMIX)), images)
        if told.labels:
            seen = (
                f" (of {told.labels:,} labels, {told.agreement:.0%} name the class that such mixtures show most, "
                f"{told.rival:.0%} that of the image)"
            )
    return (
        f"whether mixup or cutmix was on; say so: `mixup={_MIXUP:g}` `cutmix={_CUTMIX:g}` as in "
        f"TinyViT's default config (AUG.MIXUP, AUG.CUTMIX){seen}, or `mixup=0` `cutmix=0`"
    )


@dataclass(frozen=True)
class _Epoch:
    """One epoch: its files, where the records of each begin, and each image's place (-1: none), int32 (images,)."""

    folder: Path
    record: np.dtype[Any]
    files: tuple[Path, ...]
    starts: Rows
    places: NDArray[np.int32]
    surplus: int
    images: Images
    names: pa.ChunkedArray

    @staticmethod
    def opened(folder: Path, k: int, images: Images, names: pa.ChunkedArray) -> _Epoch:
        ranks = sorted((int(found[1]), file) for file in folder.iterdir() if (found := _VALUES.fullmatch(file.name)))
        if not ranks:
            raise DataError(f"{folder} holds no rank0-values.bin; is it a folder that TinyViT's save_logits.py wrote?")
        record = np.dtype([("seed", "<i4"), ("ids", "<i2", (k,)), ("values", "<f2", (k,))])
        files = tuple(file for _, file in ranks)
        keys: list[pa.Array] = []
        for file in files:
            listed = _lines(file)
            if file.stat().st_size != len(listed) * record.itemsize:
                raise DataError(
                    f"{file} has {file.stat().st_size:,} bytes, not {record.itemsize} for each of the {len(listed):,} "
                    f"keys beside it; it is cut off or of another K"
                )
            keys.append(listed)
        rows = _rows(pa.chunked_array(keys, pa.string()), images, names, folder)
        places = np.full(len(images), -1, np.int32)
        known = np.flatnonzero(rows >= 0)[::-1]
        places[rows[known]] = known  # of several, the first counts: it is assigned last
        starts = np.cumsum([0, *(len(each) for each in keys)])
        return _Epoch(folder, record, files, starts, places, int((rows < 0).sum()), images, names)

    def records(self, rows: Rows) -> NDArray[Any]:
        """The records of these rows, (n,)."""
        return self._at(self.places[rows])

    def partner(self, row: int) -> tuple[int, int]:
        """The row and the seed of what an image is mixed with; -1 both where that is not in the files."""
        rows, seeds = self._partners
        return int(rows[row]), int(seeds[row])

    @property
    def unpaired(self) -> int:
        """Images with a label whose partner is not in the files."""
        return int(((self._partners[1] == SeededMix.unknown) & (self.places >= 0)).sum())

    @functools.cached_property
    def _partners(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The row and the seed of each image's partner, int32 (images,) each; read when they are first needed."""
        keys = pa.chunked_array([_lines(file) for file in self.files], pa.string())
        rows = _rows(keys, self.images, self.names, self.folder)
        held = np.flatnonzero(self.places >= 0)
        places = self.places[held].astype(np.int64)
        file = np.searchsorted(self.starts, places, side="right") - 1
        neighbours = self.starts[file] + ((places - self.starts[file]) ^ 1)
        paired = neighbours < self.starts[file + 1]
        paired[paired] = rows[neighbours[paired]] >= 0
        found = np.full((2, len(self.places)), SeededMix.unknown, np.int32)
        found[0, held[paired]] = rows[neighbours[paired]]
        found[1, held[paired]] = self._at(neighbours[paired])["seed"]
        return found[0], found[1]

    def _at(self, places: NDArray[np.integer[Any]]) -> NDArray[Any]:
        found = np.empty(len(places), self.record)
        for number, file in enumerate(self.files):
            inside = (places >= self.starts[number]) & (places < self.starts[number + 1])
            if inside.any():
                found[inside] = np.memmap(file, self.record, "r")[places[inside] - self.starts[number]]
        return found


def _epochs(folder: Path) -> tuple[int, list[Path]]:
    """K, and the folders of the epochs in order."""
    if not folder.is_dir():
        raise DataError(f"no such directory: {folder}")
    candidates = [folder] if _EPOCH.fullmatch(folder.name) else [each for each in folder.iterdir() if each.is_dir()]
    found = sorted(
        (int(match[2]), int(match[1]), each) for each in candidates if (match := _EPOCH.fullmatch(each.name))
    )
    if not found:
        raise DataError(f"{folder} holds no folder such as logits_top10_epoch0; give the folder that holds them")
    kept = {k for _, k, _ in found}
    if len(kept) > 1:
        raise DataError(f"{folder} holds labels of several K ({sorted(kept)}); move those of one elsewhere")
    return kept.pop(), [each for _, _, each in found]


def _lines(values: Path) -> pa.Array:
    """The keys of the records in a file."""
    file = values.with_name(values.name.replace("-values.bin", "-keys.txt"))
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{file} is no list of keys; it is damaged") from problem
    return pa.array([line.strip() for line in text.splitlines()], pa.string())


def _names(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The images' file names without folder and ending."""
    bare = pc.replace_substring_regex(keys, r"^.*/", "")
    return pc.replace_substring_regex(bare, r"\.[^.]*$", "")


def _are_places(keys: pa.Array | pa.ChunkedArray) -> bool:
    return bool(len(keys)) and bool(pc.all(pc.match_substring_regex(keys, r"^(0|[1-9][0-9]{0,9})$")).as_py())


def _rows(keys: pa.ChunkedArray, images: Images, names: pa.ChunkedArray, folder: Path) -> Rows:
    """The row of each key, -1 where the data set has no such image.

    Raises:
        DataError: places in a data set of another size, or names that several images have.
    """
    if _are_places(keys):
        places = np.asarray(pc.cast(keys, pa.int64()))
        if places.max() >= len(images):
            raise DataError(
                f"{folder} names images by their places, up to {places.max():,}, but {images.name} has {len(images):,} "
                f"images; it is another data set"
            )
        return places
    if pc.count_distinct(names).as_py() != len(names):
        raise DataError(f"{folder} names images by file name, but two images of {images.name} have the same one")
    return np.asarray(pc.fill_null(pc.index_in(keys, value_set=names.combine_chunks()), -1), np.int64)
