"""Names of teachers that would else share one: labels of each lie in a folder of its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from softlabels.errors import ConfigError
from softlabels.models import FileNetwork, NetworkSpec, TeacherSpec, innermost, safe_name
from softlabels.store import Store


def distinct(specs: Sequence[TeacherSpec], there: Store | None = None) -> list[TeacherSpec]:
    """The teachers, each under a name of its own: of ``x/seed-0`` and ``y/seed-0``, x-seed-0 and y-seed-0.

    A teacher that shares its name with no other keeps it, and so does one that the store `there` has under it. Others
    are told apart by the folders they lie in, by weights, size or library. The same teachers get the same names again.

    Raises:
        ConfigError: two have the same given name, or nothing tells them apart.
    """
    named = list(specs)
    shared = {name for name in map(_name, specs) if sum(_name(each) == name for each in specs) > 1}
    for name in sorted(shared):
        group = [place for place, spec in enumerate(specs) if _name(spec) == name]
        for number, place in enumerate(group):
            spec = specs[place]
            if isinstance(spec, NetworkSpec) and spec.name is None and not _stored(spec, there):
                others = [specs[other] for other in group]
                named[place] = spec.model_copy(update={"name": _apart(others, number)})
    names = [_name(spec) for spec in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two teachers are called {twice!r}; give each a name of its own with `name`, in their order")
    return named


def _name(spec: TeacherSpec) -> str:
    return spec.short_name


def _stored(spec: NetworkSpec, there: Store | None) -> bool:
    """Whether the store has labels of this very teacher under its own name, as far as its settings tell."""
    if there is None or spec.short_name not in there.teachers:
        return False
    card = innermost(there.teacher(spec.short_name).card.spec)
    given = {name: value for name, value in spec.model_dump(mode="json").items() if value is not None}
    return all(_same(card.get(name), value) for name, value in given.items())


def _same(stored: Any, given: Any) -> bool:
    if isinstance(stored, str) and isinstance(given, str):
        return stored == given or Path(stored).expanduser().resolve() == Path(given).expanduser().resolve()
    return bool(stored == given)


def _apart(specs: Sequence[TeacherSpec], number: int) -> str:
    """A name for one of the teachers that share theirs, of what differs among them."""
    if all(isinstance(spec, FileNetwork) for spec in specs):
        for names in _ends(specs):
            if names.count(names[number]) == 1:
                return names[number]
    tokens = [(spec.kind, _weights(spec), getattr(spec, "size", None)) for spec in specs]
    differing = [place for place in range(3) if len({each[place] for each in tokens}) > 1]
    chosen = [str(tokens[number][place]) for place in differing if tokens[number][place] is not None]
    return safe_name("-".join([_name(specs[number]), *chosen]))


def _ends(specs: Sequence[TeacherSpec]) -> Iterator[list[str]]:
    """For each teacher of a file its name with ever more of the folders it lies in before it."""
    parents = [spec.named_after.parent.parts[:0:-1] for spec in specs if isinstance(spec, FileNetwork)]
    for depth in range(1, max(map(len, parents)) + 1):
        yield [
            safe_name("-".join([*reversed(folders[:depth]), _name(spec)]))
            for folders, spec in zip(parents, specs, strict=True)
        ]


def _weights(spec: TeacherSpec) -> str | None:
    weights = getattr(spec, "weights", None)
    if weights in (None, "default"):
        return None
    return Path(weights).stem if Path(weights).exists() else str(weights)
