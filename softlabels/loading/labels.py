"""A store seen through its codecs: what every reader of soft labels uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from softlabels.codecs import (
    CODECS,
    LEAST_LOGARITHM,
    Codec,
    Field,
    FittedCodec,
    nearest_temperature,
    spelled,
)
from softlabels.core.arrays import Arrays
from softlabels.core.philox import Words, hash_keys, philox
from softlabels.core.progress import size
from softlabels.errors import ConfigError, StoreError
from softlabels.losses import BLENDS, Blend, ClassAccuracy
from softlabels.models.devices import CPU, sent
from softlabels.store import Cache, Store, TeacherLabels, folder_name, open_store, output_name
from softlabels.views import RECIPES, Recipe, record_spec

if TYPE_CHECKING:
    import pandas as pd

MIX_LAYOUT = {"mix_partner": Field("uint32", ()), "mix_share": Field("float32", ())}
"""What is recorded with each label where the recipe mixes: the partner's row in the store (the image's own in a view
that is not mixed), and how much of the image that the teacher saw was the image's own (1 in such a view)."""

_MOST_MEASURED = 100_000
"""Labels of each teacher that are read to measure its accuracy."""

_BLENDING = 4
"""Stream of chance for blends that pick a teacher per label."""


def layout_beside(recipe: Recipe) -> dict[str, Field]:
    """What is recorded with each label of such views, beside what its codec keeps."""
    recorded = {name: Field(dtype, shape) for name, (dtype, shape) in record_spec(recipe).items()}
    return recorded | (MIX_LAYOUT if recipe.mixes else {})


def blending_words(hashes: Words, seed: int, views: ArrayLike) -> Words:
    """A random word for each label, for blends that pick one teacher: of the key's hash (n,), uint64 (n,)."""
    return philox((hashes, seed), (0, views, 0, _BLENDING))[:, 0]


class Labels:
    """All soft labels of a data set, read only.

    `views` counts the views that every image has from every teacher: any finished prefix can be read. `views_of` counts
    those of some teachers, which others that are not finished take nothing from.

    Rows and views are whole numbers; a boolean mask of all images stands for the rows where it is true.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.teachers: tuple[str, ...] = store.teachers
        self._by_teacher = {name: store.teacher(name) for name in store.folders}
        self._codecs = {name: _codec(labels) for name, labels in self._by_teacher.items()}
        self._views: dict[str, int] = {}
        self._measured: dict[tuple[Blend, tuple[str, ...]], Blend] = {}

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return (
            f"Labels({self.store.location!r}, images={len(self)}, views={self.views}, classes={self.classes}, "
            f"teachers={self.teachers})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: a line for each teacher."""
        facts = f"{len(self):,} images, {self.views} complete views each, {self.classes:,} classes"
        cells = [
            (name, spelled(self._codecs[name]), f"{self.views_of([name])}", size(self.of(name).nbytes))
            for name in self.teachers
        ]
        lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in cells]
        head = "".join(f"<th>{name}</th>" for name in ("teacher", "codec", "complete views", "size"))
        return f"<p>{escape(self.store.location)}: {facts}</p><table><tr>{head}</tr>{''.join(lines)}</table>"

    @property
    def views(self) -> int:
        """Views that every image has from every teacher."""
        return self.views_of()

    def views_of(self, teachers: Sequence[str] | None = None) -> int:
        """Views that every image has from each of these teachers, None for all. StoreError for an unknown one."""
        names = self.folders(teachers)
        for name in names:
            if name not in self._views:
                self._views[name] = self._by_teacher[name].views
        return min((self._views[name] for name in names), default=0)

    def complete_views(self, teachers: Sequence[str] | None = None) -> int:
        """What `views_of` counts, where there is something to count.

        Raises:
            StoreError: there are no teachers, or one of them has no complete view.
        """
        names = self.folders(teachers)
        if not names:
            raise StoreError(
                f"{self.store.location} holds no teacher's labels; dump some first, or copy the store whole"
            )
        views = self.views_of(names)
        if views:
            return views
        begun = next(name for name in names if not self._views[name])
        others = [name for name in self.teachers if self.views_of([name])]
        instead = f", or choose among the teachers that have one: {', '.join(others)}" if others else ""
        raise StoreError(
            f"{self.store.location} has no complete view of {begun} yet ({len(self.of(begun).shards)} shards are "
            f"there); run the dump again to go on{instead}"
        )

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
        where, numbers = self._addresses(rows, view)
        labels = self.of(teacher or self.teachers[0])
        recorded = self.beside(labels, where, numbers)
        self._refuse_unlabelled(where, numbers, [labels.name])
        return recorded

    def beside(
        self, labels: TeacherLabels, rows: NDArray[np.int64], views: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """What was recorded with these labels, whether their images were labelled or not; rows and views int64 (n,)."""
        taken = labels.take(rows, views)
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
            return self.store.teacher(teacher)  # which says what is there
        return self._by_teacher[teacher]

    def codec(self, teacher: str | None = None) -> Codec:
        """How one teacher's labels are coded."""
        return self._codecs[self.of(teacher).name]

    def select(self, teachers: Sequence[str] | None) -> tuple[str, ...]:
        """The teachers of these names, all for None. Raises StoreError for an unknown one, or another output of one."""
        if teachers is None:
            return self.teachers
        names = self.folders(teachers)
        for name in names:
            if name not in self.teachers:
                teacher, output = name.partition("@")[0], output_name(name)
                raise StoreError(
                    f"{self.store.location}: {name!r} is the output {output!r} of teacher {teacher!r} and not its "
                    f"logits; name {teacher!r}"
                )
        return names

    def folders(self, teachers: Sequence[str] | None) -> tuple[str, ...]:
        """As `select`, where other outputs may be named, too, by their folders: ``TEACHER@OUTPUT``."""
        if teachers is None:
            return self.teachers
        return tuple(self.of(name).name for name in ([teachers] if isinstance(teachers, str) else teachers))

    def outputs(self, teacher: str | None = None) -> tuple[str, ...]:
        """Names of what is stored of a teacher beside its logits, sorted; StoreError for an unknown teacher."""
        name = self.of(teacher).name
        return tuple(output_name(each) for each in self._by_teacher if each.startswith(f"{name}@"))

    def output(
        self, rows: Sequence[int] | ArrayLike, view: int | ArrayLike, name: str, teacher: str | None = None
    ) -> Tensor:
        """Another output of a teacher than its logits, for one view of these rows: float32 (n, ...).

        Features come in the shape that they have in the teacher, such as (n, C, H, W); labels of earlier versions,
        which did not record it, as (n, values).

        Arguments and errors are those of `logits`; `name` is one of `outputs`, else a StoreError.
        """
        folder = self.of(folder_name(self.of(teacher).name, name)).name
        where, numbers = self._addresses(rows, view)
        taken = self.take(where, numbers, [folder])
        self._refuse_unlabelled(where, numbers, [folder])
        return self.decode(taken)[0].reshape(-1, *self.output_shape(name, teacher))

    def output_shape(self, name: str, teacher: str | None = None) -> tuple[int, ...]:
        """The shape of one label of an output; errors are those of `output`."""
        card = self.of(folder_name(self.of(teacher).name, name)).card
        return card.shape or (card.classes,)

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64], teachers: Sequence[str]) -> dict[str, Arrays]:
        """The stored arrays of these labels, by teacher and name, each (n, ...); rows and views are int64 (n,)."""
        taken: dict[str, Arrays] = {name: self._by_teacher[name].take(rows, views) for name in teachers}
        if not self._beside:
            return taken
        return {name: {k: a for k, a in each.items() if k not in self._beside} for name, each in taken.items()}

    def before_fork(self) -> None:
        """Make ready for forked processes: what one of them compares with its checksum, the others need not."""
        for each in self._by_teacher.values():
            each.before_fork()

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
        mixtures = self.recorded_mixtures(labels, where, numbers)
        self._refuse_unlabelled(where, numbers, [labels.name])
        return mixtures

    def recorded_mixtures(
        self, labels: TeacherLabels, where: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`mixtures` of one teacher's labels, whether their images were labelled or not; int64 (n,) each."""
        if not set(MIX_LAYOUT) <= set(labels.card.layout):
            raise StoreError(f"labels of {labels.name} are of mixed views, but do not say with what; dump them again")
        taken = labels.take(where, numbers)
        partners = taken["mix_partner"].astype(np.int64)
        if partners.size and partners.max() >= len(self):
            raise StoreError(f"labels of {labels.name} name partners that are no images of this store; it is damaged")
        return partners, taken["mix_share"]

    def partners(self, rows: Sequence[int] | ArrayLike, view: int | ArrayLike, teacher: str | None = None) -> list[str]:
        """The key of the image with which one view of each of these rows was mixed; its own where it was not."""
        return keys_at(self.keys, self.mixtures(rows, view, teacher)[0])

    def labelled(self, rows: NDArray[np.int64], teachers: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """Which of these rows every teacher labelled (none was skipped as unreadable), bool (n,)."""
        kept = np.ones(len(rows), bool)
        for name in self.folders(teachers):
            kept &= self._by_teacher[name].labelled(rows)
        return kept

    def labelled_by_any(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows some teacher labelled, bool (n,); all where there is no teacher."""
        each = [self._by_teacher[name].labelled(rows) for name in self.teachers]
        return np.any(each, axis=0) if each else np.ones(len(rows), bool)

    def decode(
        self, arrays: Mapping[str, Arrays], temperature: float | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Logits float32 (teachers, n, classes), each row up to a constant, valid at `temperature`, on `device`.

        Without a temperature each teacher's are valid at 1, or at the one that its labels are of. What can be, is
        computed on the device, the CPU where none is named.
        """
        device = device or CPU
        decoded = []
        for name, each in arrays.items():
            codec, classes = self._codecs[name], self._by_teacher[name].card.classes
            if isinstance(codec, FittedCodec):
                decoded.append(codec.decode(each, classes, temperature=temperature, device=device))
            else:
                decoded.append(sent(codec.decode(each, classes, temperature=temperature), device))
        return torch.stack(decoded)

    def logits(self, rows: Sequence[int] | ArrayLike, view: int | ArrayLike, teacher: str | None = None) -> Tensor:
        """Return a teacher's logits of one view of these rows: float32 (n, classes), up to a constant per row.

        Of labels of one temperature T alone (`sampled`, `probabilities`) it is T times the logarithm of their
        probabilities; it is -inf for classes that have none, as those that `top_logits` leaves out: losses on logits
        have no use for these.

        Args:
            rows: row numbers, or a mask; `rows(keys)` finds them.
            view: one number for all rows, or one for each.
            teacher: may be left out when the store has one.

        Raises:
            StoreError: a label is not there, or its image could not be read; it is named.
            TypeError, IndexError, ValueError: rows or views are no whole numbers, not of this store, or too many.
        """
        name = self.of(teacher).name
        where, numbers = self._addresses(rows, view)
        taken = self.take(where, numbers, [name])
        self._refuse_unlabelled(where, numbers, [name])
        logits, codec = self.decode(taken)[0], self._codecs[name]
        if codec.has_logits:
            return logits
        # What stands for the logarithm of 0 where sums are to stay finite is no logit of anybody's.
        return logits.masked_fill_(logits < LEAST_LOGARITHM * nearest_temperature(codec), -torch.inf)

    def probabilities(
        self,
        rows: Sequence[int] | ArrayLike,
        view: int | ArrayLike,
        temperature: float = 1.0,
        teachers: Sequence[str] | None = None,
        blend: Any = "mean-probabilities",
    ) -> Tensor:
        """Return the blended target of one view of these rows at `temperature`: float32 (n, classes), rows sum to 1.

        Raises:
            ConfigError: a codec is not valid at this temperature, or has no logits where the blend needs them.
            StoreError: a label is not there, or its image could not be read; it is named.
            TypeError, IndexError, ValueError: rows or views are no whole numbers, not of this store, or too many.
        """
        logits = self._blended(rows, view, temperature, self.select(teachers), BLENDS.make(blend))
        return (logits / temperature).softmax(-1)

    def blended_logits(
        self,
        rows: Sequence[int] | ArrayLike,
        view: int | ArrayLike,
        temperature: float = 1.0,
        teachers: Sequence[str] | None = None,
        blend: Any = "mean-probabilities",
    ) -> Tensor:
        """Return logits whose softmax at `temperature` is the blended target: float32 (n, classes), up to a constant.

        Those of a single teacher are its own. Arguments and errors are those of `probabilities`; a teacher whose labels
        have no logits is a ConfigError.
        """
        names = self.select(teachers)
        self.check_logits(names, "a target of logits", "choose the target 'probabilities'")
        return self._blended(rows, view, temperature, names, BLENDS.make(blend))

    def _blended(self, rows: Any, view: Any, temperature: float, names: Sequence[str], blend: Blend) -> Tensor:
        for name in names:
            self._codecs[name].check_temperature(temperature)
        self.check_blend(blend, names)
        blend = self._measured_here(blend, tuple(names))
        where, numbers = self._addresses(rows, view)
        taken = self.take(where, numbers, names)
        self._refuse_unlabelled(where, numbers, names)
        words = self.blend_words(where, numbers) if blend.samples else None
        return blend(self.decode(taken, temperature), temperature=temperature, words=words)

    def top(
        self,
        rows: Sequence[int] | ArrayLike,
        view: int | ArrayLike = 0,
        k: int = 5,
        *,
        temperature: float = 1.0,
        teachers: Sequence[str] | None = None,
        blend: Any = "mean-probabilities",
    ) -> pd.DataFrame:
        """Show the `k` likeliest classes of one view of each of these rows, beside the images' hard labels.

        Args:
            rows: row numbers, or a mask; `rows(keys)` finds them.
            view: one number for all rows, or one for each.
            k: how many classes, at most all.

        Returns:
            A table with `k` lines for each row, the likeliest class first: ``key``, ``hard_label``, ``rank`` (from 1),
            ``class`` and ``probability``. Classes are names where the store has them, else numbers as text; the hard
            label of an image without one is None.

        Raises:
            ConfigError, StoreError, TypeError, IndexError, ValueError: as `probabilities`.

        Example:
            >>> labels = softlabels.open_labels("shards/")
            >>> labels.top([0], k=2)[["rank", "class"]].shape
            (2, 2)
        """
        import pandas as pd

        where = self._rows_of(rows)
        probabilities = self.probabilities(where, view, temperature, teachers, blend)
        shown, classes = probabilities.topk(min(k, self.classes))
        width, names = shown.shape[1], self.class_names or [str(number) for number in range(self.classes)]
        hard = [names[label] if label >= 0 else None for label in self.store.labels[where].tolist()]
        return pd.DataFrame(
            {
                "key": np.repeat(np.array(keys_at(self.keys, where), object), width),
                "hard_label": np.repeat(np.array(hard, object), width),
                "rank": np.tile(np.arange(1, width + 1), len(where)),
                "class": [names[number] for number in classes.reshape(-1).tolist()],
                "probability": shown.reshape(-1).numpy(),
            }
        )

    def check_logits(self, teachers: Sequence[str], who: str, instead: str) -> None:
        """Refuse labels that have no logits where `who` needs them; `instead` says what helps.

        Raises:
            ConfigError: the first such teacher is named, with its codec.
        """
        for name in teachers:
            if not self._codecs[name].has_logits:
                raise ConfigError(
                    f"{who} needs a logit of every class, and the {spelled(self._codecs[name])} labels of {name} have "
                    f"probabilities alone, of which classes may have none; {instead}"
                )

    def check_blend(self, blend: Blend, teachers: Sequence[str]) -> None:
        """Refuse a blend of several teachers' logits where one of them has none. Raises ConfigError."""
        if blend.needs_logits and len(teachers) > 1:
            instead = "choose the blend mean-probabilities, or dump with another codec such as topk"
            self.check_logits(teachers, f"blend {blend.kind!r}", instead)

    def class_counts(
        self, teachers: Sequence[str], rows: NDArray[np.int64], hard: NDArray[np.int64], views: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How often each teacher's highest class is the hard label, by class, and of how many labels.

        Args:
            teachers: their names.
            rows: images that all of them labelled, int64 (n,); at most 100,000 are read, evenly spaced.
            hard: class numbers of these, -1 where there is none, int64 (n,).
            views: how many views there are; of each image one is read, the views in turn.

        Returns:
            int64 (teachers, classes) each.

        Raises:
            ConfigError: no image has a hard label, or the views are mixed of two images.
        """
        if self.recipe.mixes:
            raise ConfigError(
                "blend 'class-accuracy' needs the one true class of a view, and a mixed view has two; choose another "
                "blend, or give `per-class` weights"
            )
        rows, hard = rows[hard >= 0], hard[hard >= 0]
        if not len(rows):
            raise ConfigError(
                "blend 'class-accuracy' measures teachers on hard labels, and no image has one; choose another blend"
            )
        some = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_MEASURED)).round().astype(np.int64)
        rows, hard, numbers = rows[some], hard[some], some % views
        right, step = np.zeros((len(teachers), self.classes), np.int64), max(1, (1 << 23) // self.classes)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            named = self.decode(self.take(rows[part], numbers[part], teachers)).argmax(-1).numpy()
            for number, each in enumerate(named):
                right[number] += np.bincount(hard[part][each == hard[part]], minlength=self.classes)
        images = np.bincount(hard, minlength=self.classes)
        return right, np.broadcast_to(images, right.shape)

    def blend_words(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.uint64]:
        """A random word per label, for blends that pick one teacher: a function of (seed, key, view), uint64 (n,)."""
        return blending_words(hash_keys(keys_at(self.keys, rows)), self.seed, views)

    def _measured_here(self, blend: Blend, names: tuple[str, ...]) -> Blend:
        """`blend`, with the weights of all images of the store where they are measured: once."""
        if not isinstance(blend, ClassAccuracy) or len(names) == 1:
            return blend
        if (blend, names) not in self._measured:
            rows = np.arange(len(self))
            rows = rows[self.labelled(rows, names)]
            counts = self.class_counts(names, rows, self.store.labels[rows], self.complete_views(names))
            self._measured[blend, names] = blend.measured(*counts)
        return self._measured[blend, names]

    def _addresses(self, rows: Any, view: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and view of each label that is asked for, int64 (n,) each; nothing is cast that would change it."""
        where, numbers = self._rows_of(rows), _whole_numbers(view, "view")
        if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) not in (1, len(where))):
            raise ValueError(
                f"view is one number for all rows, or one for each of the {len(where):,} rows; these have the shape "
                f"{numbers.shape}"
            )
        return where, np.ascontiguousarray(np.broadcast_to(numbers, where.shape))

    def _rows_of(self, rows: Any) -> NDArray[np.int64]:
        array = _array(rows, "rows")
        if array.dtype == bool and array.ndim:
            if array.shape != (len(self),):
                raise IndexError(f"a mask of rows has one value for each of {len(self):,} images, not {array.shape}")
            return np.flatnonzero(array)
        where = np.atleast_1d(_whole_numbers(array, "rows"))
        if where.ndim != 1:
            raise ValueError(f"rows are one list of numbers; these have the shape {where.shape}")
        beyond = where[(where < 0) | (where >= len(self))]
        if len(beyond):
            raise IndexError(f"row {beyond[0]} is none of {self.store.location}, whose rows are 0 to {len(self) - 1}")
        return where

    def _refuse_unlabelled(self, rows: NDArray[np.int64], views: NDArray[np.int64], names: Sequence[str]) -> None:
        """Raise StoreError when a teacher could not read one of these images; what was taken of it is no label."""
        for name in names:
            lost = self._by_teacher[name].unlabelled(rows, views)
            if lost.any():
                raise StoreError(self.unlabelled_images(rows[lost], name))

    def unlabelled_images(self, rows: NDArray[np.int64], name: str) -> str:
        """That these rows have no label by a teacher, and what to do, in one line."""
        distinct = np.unique(rows)
        named = ", ".join(repr(key) for key in keys_at(self.keys, distinct[:3])) + (
            ", ..." if len(distinct) > 3 else ""
        )
        reason = self._by_teacher[name].skipped.get(int(distinct[0]), "it could not be read").partition(";")[0]
        return (
            f"{len(distinct):,} of these images have no label by {name} ({named}: {reason}); repair the files and dump "
            f"again, or leave the images out"
        )


def keys_at(keys: pa.ChunkedArray, rows: NDArray[np.int64]) -> list[str]:
    """The keys of these rows. Arrow's own `take` joins all chunks, of all keys, for a few of them."""
    ends = np.cumsum([len(chunk) for chunk in keys.iterchunks()])
    chunks = np.searchsorted(ends, rows, side="right")
    found = np.empty(len(rows), object)
    for number in np.unique(chunks).tolist():
        chunk, inside = keys.chunk(number), np.flatnonzero(chunks == number)
        found[inside] = chunk.take(pa.array(rows[inside] - (ends[number] - len(chunk)))).to_pylist()
    return list(found)


def _codec(labels: TeacherLabels) -> Codec:
    try:
        return CODECS.make(labels.card.codec)
    except ConfigError as problem:
        raise StoreError(f"the card of {labels.name} in {labels.location} is not usable: {problem}") from problem


_WANTED = {"rows": "rows: give whole numbers, or a boolean mask of all images", "view": "view: give whole numbers"}


def _array(value: Any, what: str) -> NDArray[Any]:
    """`value` as an array. Raises TypeError where it is none."""
    if value is None or isinstance(value, slice | str | bytes):
        raise TypeError(f"{_WANTED[what]}, not {value!r}")
    try:
        return np.asarray(value)
    except ValueError as problem:
        raise TypeError(f"{_WANTED[what]}, not lists of several lengths") from problem


def _whole_numbers(value: Any, what: str) -> NDArray[np.int64]:
    """`value` as int64 of any shape.

    Raises:
        TypeError: it holds anything but whole numbers.
        IndexError: a number is beyond all rows and views.
    """
    array = _array(value, what)
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.trunc(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{_WANTED[what]}, not {array.dtype} such as {array.reshape(-1)[0]}")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise IndexError(f"{what}: {array.max()} is beyond all rows and views")
    return array.astype(np.int64)


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
        location: the store's folder or URL. What a running dump has finished can be read meanwhile.
        cache_dir: where shards from a URL are copied to, whole and checked, and compressed ones are unpacked; without
            it ``$SOFTLABELS_CACHE``, or a folder in the user's cache.
        cache_size: bytes that copies in that folder may have together; those not used for longest go first.

    Raises:
        StoreError: there is no store at `location`, it is damaged, or it cannot be reached.

    Example:
        >>> labels = softlabels.open_labels("shards/")
        >>> labels.teachers, labels.views, len(labels)
        (('teacher',), 2, 1347)
        >>> labels.probabilities(labels.rows(["train/0007"]), view=0, temperature=4.0).shape
        torch.Size([1, 10])
    """
    return Labels(open_store(os.path.expanduser(location), Cache.at(cache_dir, cache_size)))  # noqa: PTH111
