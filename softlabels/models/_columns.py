"""Which columns of a teacher's logits are the classes of a data set: teachers of some columns, and lists of names."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from softlabels.choices import TEACHERS
from softlabels.core.config import Part
from softlabels.core.files import read_json
from softlabels.core.types import LOGITS, Outputs
from softlabels.errors import ConfigError, ModelError, did_you_mean
from softlabels.models._preprocessing import Preprocessing
from softlabels.models._teacher import Amp, Teacher, TeacherSpec

Names = Sequence[str]

_WNID = re.compile(r"n\d{8}")
_SUBSETS = {1000: "imagenet-1k", 11821: "imagenet-12k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog"}
"""What timm calls the class lists of heads of so many classes."""


class ColumnsTeacher(Part):
    """The teacher `of`, answering with the `columns` of its logits; `class_names` are what these classes are called.

    A softmax over what is chosen is one over these classes alone.
    """

    kind: Literal["columns"] = "columns"
    of: dict[str, Any]
    columns: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.class_names and len(self.class_names) != len(self.columns):
            raise ValueError(f"{len(self.columns)} columns and {len(self.class_names)} class_names; give one for each")
        if self.of.get("kind") == self.kind:
            raise ValueError("columns of columns; choose among those of the teacher itself")
        return self

    @property
    def inner(self) -> TeacherSpec:
        """The spec of the whole teacher."""
        return TEACHERS.make(self.of)

    @property
    def short_name(self) -> str:
        """That of the whole teacher."""
        return self.inner.short_name

    @property
    def resolved(self) -> str:
        """That of the whole teacher."""
        return self.inner.resolved

    def check_weights(self, *, training: bool = False) -> None:
        """See `NetworkSpec.check_weights`."""
        self.inner.check_weights(training=training)

    def open(
        self,
        device: str | torch.device = "cpu",
        amp: Amp | None = None,
        classes: int | None = None,
        *,
        clean: bool = False,
        preprocessing: Preprocessing | None = None,
        role: str = "teacher",
    ) -> ChosenColumns:
        """See `NetworkSpec.open`.

        Raises:
            ModelError: as the whole teacher, or it has fewer classes than were chosen, or `classes` is another number.
        """
        whole = self.inner.open(device, amp, clean=clean, preprocessing=preprocessing, role=role)
        teacher = chosen(whole, self.columns, self.class_names)
        if classes is not None and classes != teacher.classes:
            raise ModelError(
                f"{teacher.name} answers with {teacher.classes} chosen columns, the data set has {classes} classes; "
                f"choose one column for each"
            )
        return teacher


@dataclass(frozen=True)
class ChosenColumns:
    """Some columns of a teacher's logits; make one with `chosen`. See `Teacher`."""

    teacher: Teacher
    columns: tuple[int, ...]
    name: str
    spec: dict[str, Any]
    classes: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    weights_sha256: str
    licence: str | None
    device: torch.device

    def compile(self, names: Collection[str] = (LOGITS,)) -> ChosenColumns:
        """The same columns of the whole teacher, compiled."""
        return replace(self, teacher=self.teacher.compile(names))

    def logits(self, pictures: Tensor) -> Tensor:
        """The chosen columns of the whole teacher's logits: float32 (n, columns)."""
        return self._chosen(self.teacher.logits(pictures))

    def outputs(self, pictures: Tensor, names: Collection[str] = (LOGITS,)) -> Outputs:
        """As `Teacher.outputs`; other outputs than the logits are the whole teacher's."""
        found = self.teacher.outputs(pictures, names)
        return {name: self._chosen(each) if name == LOGITS else each for name, each in found.items()}

    def _chosen(self, logits: Tensor) -> Tensor:
        return logits.index_select(1, torch.tensor(self.columns, device=logits.device))


def chosen(teacher: Teacher, columns: Sequence[int], class_names: Sequence[str] = ()) -> ChosenColumns:
    """`teacher`, answering with these columns of its logits.

    Raises:
        ModelError: it has no such column.
    """
    if max(columns) >= teacher.classes:
        raise ModelError(f"{teacher.name} has {teacher.classes} classes, so no column {max(columns)}; choose others")
    part = ColumnsTeacher(of=teacher.spec, columns=tuple(columns), class_names=tuple(class_names))
    weights = teacher.weights_sha256  # other columns are another teacher
    return ChosenColumns(
        teacher=teacher,
        columns=part.columns,
        name=teacher.name,
        spec=part.model_dump(mode="json"),
        classes=len(part.columns),
        class_names=part.class_names,
        preprocessing=teacher.preprocessing,
        weights_sha256=weights and hashlib.sha256(f"{weights} {json.dumps(part.columns)}".encode()).hexdigest(),
        licence=teacher.licence,
        device=teacher.device,
    )


def innermost(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping of the whole teacher that `spec` chooses columns of, or `spec` itself."""
    inner = spec.get("of") if spec.get("kind") == "columns" else None
    return inner if isinstance(inner, Mapping) else spec


class Columns(NamedTuple):
    """Which column of a head is each class of a data set, and how they were found, as a clause."""

    columns: tuple[int, ...]
    how: str


def are_numbers(names: Names) -> bool:
    """Whether the names are only the classes' numbers: 0, 1, 2, ..."""
    return all(name == str(place) for place, name in enumerate(names))


def same_classes(some: Names, others: Names) -> bool:
    """Whether both lists name the same classes in the same order; ImageNet's wnids and words mean each other."""
    if tuple(some) == tuple(others):
        return True
    some_wnids, other_wnids = (all(map(_WNID.fullmatch, names)) for names in (some, others))
    if len(some) != len(others) or some_wnids == other_wnids:
        return False
    lists = [places for _, known in known_lists(len(some)) if (places := _places(some, known)) is not None]
    return any(_places(others, known) in lists for _, known in known_lists(len(some)))


def first_difference(some: Names, others: Names) -> tuple[int, str, int | None] | None:
    """The first of `some` that has another number among `others`: its number, its name, and that number or None.

    None where both are lists of the same classes, where one is empty, or where `some` are the first of `others`.
    """
    if not some or not others or same_classes(some, others):
        return None
    number = {name: place for place, name in enumerate(others)}
    if (are_numbers(some) or are_numbers(others)) and set(number) != set(some):
        return None  # numbers alone, which fit any names
    for place, name in enumerate(some):
        if (place >= len(others) or others[place] != name) and number.get(name) != place:
            return place, name, number.get(name)
    return None


def columns_by_name(wanted: Names, names: Names, head: int) -> Columns:
    """The columns of a head of `head` classes, whose `names` are empty where they are not known, for these classes.

    Names are compared as they are, then without regard to case, ``_`` and ``-``. A head without names that is as wide
    as one of ImageNet's class lists is taken to have its order where all classes are found there.

    Raises:
        ConfigError: a class is not found, or is found twice; it is named with the nearest.
    """
    lists: list[tuple[str, Names]] = [("by name", names)] if names else []
    for how, known in known_lists(head) if not are_numbers(wanted) else ():
        if not names:
            lists.append((f"{how}, as its {head:,} classes are taken to be ImageNet's", known))
        elif same_classes(names, known):
            lists.append((how, known))
    for how, known in lists:
        places = _places(wanted, known)
        if places is not None:
            return Columns(places, how)
    if not lists or are_numbers(wanted):
        raise ConfigError("its classes have no names to find them by")
    _, known = max(lists, key=lambda pair: len(set(map(_plain, pair[1])) & set(map(_plain, wanted))))
    plain = [_plain(name) for name in known]
    lost = next(name for name in wanted if plain.count(_plain(name)) != 1)
    if plain.count(_plain(lost)) > 1:
        raise ConfigError(f"class {lost!r} is among its classes more than once")
    near = did_you_mean(lost, known)
    raise ConfigError(f"class {lost!r} is none of its classes{'; ' + near if near.startswith('did') else ''}")


def columns_from_file(file: str, wanted: Names, names: Names, head: int) -> Columns:
    """As `columns_by_name`, from a file: CSV lines ``class,column`` or a JSON object, columns by number or name.

    Raises:
        ConfigError: the file cannot be read, or lacks one of the classes, or names a column that the head has not.
    """
    path = Path(file).expanduser()
    known = _read_map(path)
    columns = []
    for name in wanted:
        if name not in known:
            raise ConfigError(f"{path} names no column for class {name!r}; {did_you_mean(name, known)}")
        value = known[name]
        if str(value).isdecimal():
            column = int(value)
        else:
            try:
                column = columns_by_name([str(value)], names, head).columns[0]
            except ConfigError as problem:
                raise ConfigError(f"{path}: for class {name!r}: {problem}") from problem
        if column >= head:
            raise ConfigError(f"{path} gives class {name!r} the column {column}; there are 0 to {head - 1:,}")
        columns.append(column)
    return Columns(tuple(columns), f"as {path} says")


def check_class_map(file: str) -> None:
    """Raises ConfigError where the file of a class map cannot be read or is no such file."""
    _read_map(Path(file).expanduser())


def _read_map(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".json":
        read = read_json(path, error=ConfigError)
        if not isinstance(read, dict):
            raise ConfigError(f"{path} is no JSON object of class: column")
        return read
    try:
        with path.open(newline="", encoding="utf-8-sig") as opened:
            lines = [line for line in csv.reader(opened) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ConfigError(f"the class map {path} cannot be read: {reason}") from problem
    wrong = next((number for number, line in enumerate(lines, 1) if len(line) != 2), None)
    if wrong or not lines:
        raise ConfigError(f"{path}, line {wrong or 1}: a class map has lines CLASS,COLUMN")
    read = {}
    for name, column in ((name.strip(), column.strip()) for name, column in lines):
        if read.setdefault(name, column) != column:
            raise ConfigError(f"{path} names class {name!r} twice")
    return read


def known_lists(classes: int) -> list[tuple[str, Names]]:
    """ImageNet's class lists of this length, by wnid and by word, as far as timm and torchvision have them here."""
    lists: list[tuple[str, Names]] = []
    if classes in _SUBSETS:
        try:
            from timm.data import ImageNetInfo

            lists.append(("by wnid", ImageNetInfo(_SUBSETS[classes]).label_names()))
        except ImportError:
            pass  # an optional package of ours, or one from before it had such lists
    if classes == 1000:
        try:
            from torchvision.models._meta import _IMAGENET_CATEGORIES

            lists.append(("by ImageNet's words", _IMAGENET_CATEGORIES))
        except ImportError:
            pass
    return lists


def _places(wanted: Names, known: Names) -> tuple[int, ...] | None:
    """The place of each name; None unless each is there once."""
    for change in (str, _plain):
        number: dict[str, int] = {}
        twice = set()
        for place, name in enumerate(map(change, known)):
            twice |= {name} & number.keys()
            number[name] = place
        found = [number.get(change(name), -1) if change(name) not in twice else -1 for name in wanted]
        if min(found, default=-1) >= 0 and len(set(found)) == len(found):
            return tuple(found)
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
