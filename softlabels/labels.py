"""A store seen through its codecs: what every reader of soft labels uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from softlabels._philox import hash_keys, philox
from softlabels.codecs import CODECS, Codec, Field
from softlabels.errors import StoreError, did_you_mean
from softlabels.losses import BLENDS
from softlabels.store import Cache, Store, TeacherLabels, open_store
from softlabels.views import RECIPES, Recipe

Arrays = Mapping[str, NDArray[Any]]

MIX_LAYOUT = {"mix_partner": Field("uint32", ()), "mix_share": Field("float32", ())}
"""What is recorded with each label where the recipe mixes: the partner's row in the store (the image's own in a view
that is not mixed), and how much of the picture that the teacher saw was the image's own (1 in such a view)."""

_BLENDING = 4
"""Stream of chance for blends that pick a teacher per label."""


def layout_beside(recipe: Recipe) -> dict[str, Field]:
    """What is recorded with each label of such views, beside what its codec keeps."""
    recorded = {name: Field(dtype, shape) for name, (dtype, shape) in recipe.records.items()}
    return recorded | (MIX_LAYOUT if recipe.mixes else {})


class Labels:
    """All soft labels of a data set, read only.

    `views` counts the views that every image has from every teacher: any finished prefix can be read.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.teachers: tuple[str, ...] = store.teachers
        self._by_teacher = {name: store.teacher(name) for name in self.teachers}
        self._codecs: dict[str, Codec] = {
            name: CODECS.make(labels.card.codec) for name, labels in self._by_teacher.items()
        }
        self._shared = False

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return (
            f"Labels({self.store.location!r}, images={len(self)}, views={self.views}, classes={self.classes}, "
            f"teachers={self.teachers})"
        )

    @cached_property
    def views(self) -> int:
        """Views that every image has from every teacher."""
        return min((labels.views for labels in self._by_teacher.values()), default=0)

    @property
    def classes(self) -> int:
        """Width of the logits."""
        return self.store.manifest.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in logit order; empty when the data set has none."""
        return tuple(self.store.manifest.class_names)

    @property
    def keys(self) -> pa.ChunkedArray:
        """The images' keys in row order."""
        return self.store.keys

    @property
    def seed(self) -> int:
        """What the views are drawn from, beside recipe, key and number."""
        return self.store.manifest.seed

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the views, read back from the manifest."""
        return RECIPES.make(self.store.manifest.recipe)

    @cached_property
    def _beside(self) -> frozenset[str]:
        return frozenset(layout_beside(self.recipe))

    def recorded(
        self, rows: Sequence[int] | ArrayLike, view: int | ArrayLike, teacher: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """What was recorded with these labels of one view of these rows, (n, ...) each: crops, seeds of other projects.

        Raises:
            StoreError: a label is not there.
        """
        taken = self.of(teacher or self.teachers[0]).take(*self._addresses(rows, view))
        return {name: array for name, array in taken.items() if name in self._beside}

    def rows(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Row numbers of these keys, int64 (n,). Raises KeyError, which names the missing ones."""
        return self.store.rows(keys)

    def of(self, teacher: str | None = None) -> TeacherLabels:
        """One teacher's stored arrays; the name may be left out when there is one teacher.

        Raises:
            StoreError: no such teacher, or several and none is named.
        """
        if teacher is None:
            if len(self.teachers) != 1:
                raise StoreError(
                    f"{self.store.location} holds {len(self.teachers)} teachers; name one: {self.teachers}"
                )
            teacher = self.teachers[0]
        if teacher not in self._by_teacher:
            raise StoreError(
                f"{self.store.location} has no teacher {teacher!r}; {did_you_mean(teacher, self.teachers)}"
            )
        return self._by_teacher[teacher]

    def codec(self, teacher: str | None = None) -> Codec:
        """How one teacher's labels are coded."""
        return self._codecs[self.of(teacher).name]

    def select(self, teachers: Sequence[str] | None) -> tuple[str, ...]:
        """The teachers of these names, all for None. Raises StoreError for an unknown one."""
        if teachers is None:
            return self.teachers
        return tuple(self.of(name).name for name in ([teachers] if isinstance(teachers, str) else teachers))

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64], teachers: Sequence[str]) -> dict[str, Arrays]:
        """The stored arrays of these labels, by teacher and name, each (n, ...); rows and views are int64 (n,)."""
        taken: dict[str, Arrays] = {name: self._by_teacher[name].take(rows, views) for name in teachers}
        if not self._beside:
            return taken
        return {name: {k: a for k, a in each.items() if k not in self._beside} for name, each in taken.items()}

    def share(self, memory: int | None = None) -> None:
        """Make ready for processes that this one starts; what is decoded for one of them, all of them use.

        Args:
            memory: bytes that decoded labels of compressed shards may take, of all teachers together; without it a
                quarter of the machine's memory. What was not used for longest makes room.
        """
        packed = [each for each in self._by_teacher.values() if each.card.compression != "none"]
        for each in self._by_teacher.values():
            if memory is not None or not self._shared:
                each.share((memory or machine_memory() // 4) // max(len(packed), 1))
        self._shared = True

    def offered(self) -> dict[str, tuple[str, str]]:
        """Where other processes of this machine find what this one decodes, by teacher. To be called after `share`."""
        return {name: each.shared for name, each in self._by_teacher.items() if each.shared is not None}

    def adopt(self, offers: Mapping[str, tuple[str, str]]) -> None:
        """Use what another process `offered`; its memory in the place of one's own. To be called after `share`."""
        for name, shared in offers.items():
            self._by_teacher[name].adopt(self._by_teacher[name].memory, shared)

    @contextmanager
    def ahead(
        self, rows: NDArray[np.int64], views: NDArray[np.int64], teachers: Sequence[str]
    ) -> Iterator[Callable[[int], None]]:
        """While this lasts, threads make these labels ready in this order, as far ahead as there is room.

        Gives a function that is to be told up to which place they were read.
        """
        helpers = [each for name in teachers if (each := self._by_teacher[name].ahead(rows, views)) is not None]

        def reached(place: int) -> None:
            for helper in helpers:
                helper.reached(place)

        try:
            yield reached
        finally:
            for helper in helpers:
                helper.close()

    def mixtures(
        self, rows: Sequence[int] | ArrayLike, view: int | ArrayLike, teacher: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """With whom one view of these rows was mixed, and how much of what the teacher saw was the image's own.

        Partners are rows, the image's own where the view is not mixed; (n,) each. Both are read as they were recorded.
        An imported mixture whose partner is not in the files has the image's own row and the share 0.

        Raises:
            StoreError: a label is not there, or nothing true is recorded with it.
        """
        where, numbers = self._addresses(rows, view)
        if not self.recipe.mixes:
            return where, np.ones(len(where), np.float32)
        labels = self.of(teacher or self.teachers[0])
        if not set(MIX_LAYOUT) <= set(labels.card.layout):
            raise StoreError(f"labels of {labels.name} are of mixed views, but do not say with what; dump them again")
        taken = labels.take(where, numbers)
        partners = taken["mix_partner"].astype(np.int64)
        if partners.size and partners.max() >= len(self):
            raise StoreError(f"labels of {labels.name} name partners that are no images of this store; it is damaged")
        return partners, taken["mix_share"]

    def partners(self, rows: Sequence[int] | ArrayLike, view: int | ArrayLike, teacher: str | None = None) -> list[str]:
        """The key of the image with which one view of each of these rows was mixed; its own where it was not."""
        return self.keys.take(pa.array(self.mixtures(rows, view, teacher)[0])).to_pylist()

    def labelled(self, rows: NDArray[np.int64], teachers: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """Which of these rows every teacher labelled (none was skipped as unreadable), bool (n,)."""
        kept = np.ones(len(rows), bool)
        for name in self.select(teachers):
            kept &= self._by_teacher[name].labelled(rows)
        return kept

    def decode(self, arrays: Mapping[str, Arrays], temperature: float = 1.0) -> Tensor:
        """Logits float32 (teachers, n, classes), each row up to a constant, honest at `temperature`."""
        return torch.stack(
            [self._codecs[name].decode(each, self.classes, temperature=temperature) for name, each in arrays.items()]
        )

    def logits(self, rows: Sequence[int] | ArrayLike, view: int | ArrayLike, teacher: str | None = None) -> Tensor:
        """What a teacher said of one view of these rows: float32 (n, classes), up to a constant per row.

        Args:
            rows: row numbers; `rows(keys)` finds them.
            view: one number for all rows, or one for each.
            teacher: may be left out when the store has one.
        """
        name = self.of(teacher).name
        return self.decode(self.take(*self._addresses(rows, view), [name]))[0]

    def probabilities(
        self,
        rows: Sequence[int] | ArrayLike,
        view: int | ArrayLike,
        temperature: float = 1.0,
        teachers: Sequence[str] | None = None,
        blend: Any = "mean-probabilities",
    ) -> Tensor:
        """The blended target of one view of these rows at `temperature`: float32 (n, classes), rows sum to 1.

        Raises:
            ConfigError: a codec is not honest at this temperature.
        """
        names = self.select(teachers)
        for name in names:
            self._codecs[name].check_temperature(temperature)
        where, numbers = self._addresses(rows, view)
        logits = self.decode(self.take(where, numbers, names), temperature)
        words = self.blend_words(where, numbers)
        target = BLENDS.make(blend)(logits, temperature=temperature, words=words)
        return (target / temperature).softmax(-1)

    def blend_words(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.uint64]:
        """A random word per label, for blends that pick one teacher: a function of (seed, key, view), uint64 (n,)."""
        hashes = hash_keys(self.keys.take(pa.array(rows)).to_pylist())
        return philox((hashes, self.seed), (0, views, 0, _BLENDING))[:, 0]

    def _addresses(self, rows: Any, view: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        where = np.atleast_1d(np.asarray(rows, np.int64))
        numbers = np.ascontiguousarray(np.broadcast_to(np.asarray(view, np.int64), where.shape))
        return where, numbers


def machine_memory() -> int:
    """The machine's memory, or what a container may have of it, in bytes."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(int(Path("/sys/fs/cgroup", limit).read_text()))  # "max" where there is none
    return min(found)


def open_labels(
    location: str | PathLike[str], *, cache_dir: str | PathLike[str] | None = None, cache_size: int | None = None
) -> Labels:
    """Open a label store for reading, HDF5 or Zarr, in a folder or behind a URL such as ``s3://bucket/shards``.

    Args:
        cache_dir: where shards from a URL are copied to, whole and checked; without it ``$SOFTLABELS_CACHE``, or a
            folder in the user's cache.
        cache_size: bytes that copies in that folder may have together; those not used for longest go first.

    Raises:
        StoreError: there is no store at `location`, it is damaged, or it cannot be reached.
    """
    return Labels(open_store(os.path.expanduser(location), Cache.at(cache_dir, cache_size)))  # noqa: PTH111
