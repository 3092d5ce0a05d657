"""What the name of a teacher or student on a command line means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from softlabels.choices import STUDENTS, TEACHERS, importable, unknown_source
from softlabels.core.config import OBJECT, Given, Table
from softlabels.errors import ConfigError
from softlabels.models._architecture import resolve
from softlabels.models._spec import StudentSpec
from softlabels.models._teacher import TeacherSpec

V = TypeVar("V")


def teacher_spec(teacher: Given | TeacherSpec, weights: str | None = None, **settings: Any) -> TeacherSpec:
    """The spec that `teacher=NAME` `weights=W` means; `settings` such as `size` or `name` count where not None.

    A mapping or a spec, as a config has it, is taken as it is and may not be given `weights` or `settings` as well, but
    that of an object may.

    Raises:
        ModelError: the name is unknown; the nearest names are given.
        ConfigError: a setting is unknown or wrong.
    """
    return TEACHERS.make(_mapping(teacher, TEACHERS, weights=weights, **settings))


def student_spec(student: Given, weights: str | None = None, **settings: Any) -> StudentSpec:
    """As `teacher_spec`, of a student."""
    return STUDENTS.make(_mapping(student, STUDENTS, weights=weights, **settings))


def _mapping(value: V, table: Table[object], **settings: Any) -> V | dict[Any, Any]:
    given = {name: setting for name, setting in settings.items() if setting is not None}
    if isinstance(value, Mapping) and value.get("kind") == OBJECT and not given.keys() & value.keys():
        return {**value, **given}
    if not isinstance(value, str):
        if given:
            raise ConfigError(f"a {table.what} given as a mapping has its own {', '.join(given)}; put it there")
        return value
    return {**_named(value, table), **given}


def _named(text: str, table: Table[object]) -> dict[str, Any]:
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
