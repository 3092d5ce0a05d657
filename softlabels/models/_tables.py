"""The kinds of teachers and students, and what a name on a command line means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from softlabels.core import tables
from softlabels.core.config import Table
from softlabels.core.tables import importable, unknown_source
from softlabels.errors import ConfigError
from softlabels.models._architecture import resolve
from softlabels.models._preprocessing import Preprocessing
from softlabels.models._spec import StudentSpec
from softlabels.models._teacher import Amp, Teacher


class TeacherSpec(Protocol):
    """A frozen, validated value that says which teacher: a `NetworkSpec`, or one that stands on another."""

    @property
    def kind(self) -> str: ...
    @property
    def short_name(self) -> str: ...
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
        """See `NetworkSpec.open`."""


TEACHERS: Table[TeacherSpec] = tables.TEACHERS
STUDENTS: Table[StudentSpec] = tables.STUDENTS


def teacher_spec(
    teacher: str | Mapping[str, Any] | TeacherSpec, weights: str | None = None, **settings: Any
) -> TeacherSpec:
    """The spec that `teacher=NAME` `weights=W` means; `settings` such as `size` or `name` count where not None.

    A mapping or a spec, as a config has it, is taken as it is and may not be given `weights` or `settings` as well.

    Raises:
        ModelError: the name is unknown; the nearest names are given.
        ConfigError: a setting is unknown or wrong.
    """
    return TEACHERS.make(_mapping(teacher, TEACHERS, weights=weights, **settings))


def student_spec(
    student: str | Mapping[str, Any] | StudentSpec, weights: str | None = None, **settings: Any
) -> StudentSpec:
    """As `teacher_spec`, of a student."""
    return STUDENTS.make(_mapping(student, STUDENTS, weights=weights, **settings))


def _mapping(value: Any, table: Table[Any], **settings: Any) -> Any:
    given = {name: setting for name, setting in settings.items() if setting is not None}
    if not isinstance(value, str):
        if given:
            raise ConfigError(f"a {table.what} given as a mapping has its own {', '.join(given)}; put it there")
        return value
    return {**_named(value, table), **given}


def _named(text: str, table: Table[Any]) -> dict[str, Any]:
    """``resnet18`` is an architecture, ``KIND:VALUE`` a kind of the table, any other ``module:function`` a function."""
    kind, colon, rest = text.partition(":")
    part = table.find(kind)
    if part is not None:
        field = part.shorthand if colon else None
        return {"kind": kind, **({field: rest} if field else {})}
    if colon:
        if not rest.isidentifier() or not importable(kind):
            raise unknown_source(text, table)
        return {"kind": "function", "function": text}
    return {"kind": resolve(text).kind, "architecture": text}
