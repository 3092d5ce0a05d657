"""Students: networks to be trained.

A part of `STUDENTS` says which network, builds it from a seed, and describes its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from softlabels.core import tables
from softlabels.core.config import Table
from softlabels.errors import ConfigError
from softlabels.models.networks import Preprocessing, named
from softlabels.models.students._architecture import SmallStudent, TimmStudent, TorchvisionStudent
from softlabels.models.students._function import FunctionStudent

__all__ = [
    "STUDENTS",
    "FunctionStudent",
    "SmallStudent",
    "StudentPart",
    "TimmStudent",
    "TorchvisionStudent",
    "student_spec",
]


class StudentPart(Protocol):
    """A frozen, validated value that says which student; `slug` is its name in tables, `resolved` its network's."""

    @property
    def kind(self) -> str: ...
    @property
    def slug(self) -> str: ...
    @property
    def resolved(self) -> str: ...
    @property
    def preprocessing(self) -> Preprocessing:
        """How it wants its pictures."""

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the tensors of the layer that tells the classes; none where nobody knows."""

    def build(self, classes: int, *, seed: int) -> nn.Module:
        """The network on the CPU, in train mode, with a head of `classes`; `seed` alone decides what is drawn."""

    def metadata(self, classes: int, class_names: Sequence[str] = ()) -> dict[str, str]:
        """Text to be written with its weights, from which they can be loaded again by their path alone."""


STUDENTS: Table[StudentPart] = tables.STUDENTS


def student_spec(
    student: str | Mapping[str, Any] | StudentPart,
    weights: str | None = None,
    size: int | None = None,
    **settings: Any,
) -> StudentPart:
    """The part that `student=NAME` `weights=W` `size=S` means; further `settings` count where not None.

    A mapping or a part, as a config has it, is taken as it is and may not be given any of these as well.

    Raises:
        ModelError: the name is unknown; the nearest names are given.
        ConfigError: a setting is unknown or wrong.
    """
    given = {k: v for k, v in {"weights": weights, "size": size, **settings}.items() if v is not None}
    if not isinstance(student, str):
        if given:
            raise ConfigError(f"a student given as a mapping has its own {', '.join(given)}; put it there")
        return STUDENTS.make(student)
    return STUDENTS.make({**named(student, STUDENTS), **given})
