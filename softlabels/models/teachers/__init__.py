"""Teachers: frozen networks that say their logits of pictures. A teacher knows no views and no files of labels.

A part of `TEACHERS` says which network and which weights; `open` makes the teacher. `teacher_spec` turns what stands on
a command line into such a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from softlabels.core import tables
from softlabels.core.config import Table
from softlabels.errors import ConfigError
from softlabels.models.networks import Preprocessing, named
from softlabels.models.teachers._answers import ROUNDING, dependence_on_neighbours, distance, is_rounding, spread_of
from softlabels.models.teachers._architecture import SmallTeacher, TimmTeacher, TorchvisionTeacher
from softlabels.models.teachers._columns import ChosenColumns, ColumnsTeacher, chosen, innermost
from softlabels.models.teachers._file import FileTeacher
from softlabels.models.teachers._function import FunctionTeacher
from softlabels.models.teachers._network import Amp, NetworkTeacher
from softlabels.models.teachers._passes import BatchSize, teacher_passes

__all__ = [
    "ROUNDING",
    "TEACHERS",
    "Amp",
    "BatchSize",
    "ChosenColumns",
    "ColumnsTeacher",
    "FileTeacher",
    "FunctionTeacher",
    "NetworkTeacher",
    "SmallTeacher",
    "Teacher",
    "TeacherPart",
    "TimmTeacher",
    "TorchvisionTeacher",
    "chosen",
    "dependence_on_neighbours",
    "distance",
    "innermost",
    "is_rounding",
    "spread_of",
    "teacher_passes",
    "teacher_spec",
]


class Teacher(Protocol):
    """A frozen network, ready to answer.

    `spec` is the part it was opened from, as JSON; `weights_sha256` is equal for equal weights, whatever file they came
    in; `class_names` is empty and `licence` None where they are not known.
    """

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def classes(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def licence(self) -> str | None: ...
    @property
    def device(self) -> torch.device: ...

    def compile(self) -> Teacher:
        """The same teacher, quicker for batches of one size; its logits are equal within rounding."""

    def logits(self, pictures: Tensor) -> Tensor:
        """uint8 pictures (n, 3, S, S) on any device to float32 logits (n, classes), each row its picture's alone."""


class TeacherPart(Protocol):
    """A frozen, validated value that says which teacher; `slug` is its folder's name, `resolved` its network's."""

    @property
    def kind(self) -> str: ...
    @property
    def slug(self) -> str: ...
    @property
    def resolved(self) -> str: ...

    def open(
        self,
        device: str | torch.device = "cpu",
        amp: Amp | None = None,
        classes: int | None = None,
        *,
        clean: bool = False,
        preprocessing: Preprocessing | None = None,
        role: str = "teacher",
    ) -> Teacher:
        """The teacher on `device`; raises ModelError when it has not `classes` classes (None: not compared).

        `clean` says that its pictures are clean views, on which a network may want another size; `preprocessing` stands
        over its own; `role` is what messages call it.
        """


TEACHERS: Table[TeacherPart] = tables.TEACHERS


def teacher_spec(
    teacher: str | Mapping[str, Any] | TeacherPart, weights: str | None = None, **settings: Any
) -> TeacherPart:
    """The part that `teacher=NAME` `weights=W` means; `settings` such as `size` or `name` count where not None.

    A mapping or a part, as a config has it, is taken as it is and may not be given `weights` or `settings` as well.

    Raises:
        ModelError: the name is unknown; the nearest names are given.
        ConfigError: a setting is unknown or wrong.
    """
    given = {key: value for key, value in {"weights": weights, **settings}.items() if value is not None}
    if not isinstance(teacher, str):
        if given:
            raise ConfigError(f"a teacher given as a mapping has its own {', '.join(given)}; put it there")
        return TEACHERS.make(teacher)
    return TEACHERS.make({**named(teacher, TEACHERS), **given})
