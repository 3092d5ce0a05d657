"""Errors that a user can cause. Each message says what was found, what was wanted and what to do next, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SoftlabelsError(Exception):
    """Base of every error a user can cause; the command line prints it as one line and exits with 1."""


class ConfigError(SoftlabelsError):
    """An option, a config file or a part's setting is wrong."""


class DataError(SoftlabelsError):
    """A data set or one of its images cannot be used."""


class ImageError(DataError):
    """One image cannot be read or decoded; the other images of its data set can be used without it."""


class ModelError(SoftlabelsError):
    """A teacher, a student or a file of weights cannot be used."""


class StoreError(SoftlabelsError):
    """A label store is incomplete, damaged, of another kind, or cannot be written."""


class RunError(SoftlabelsError):
    """A run cannot go on: its folder belongs to another run, or training diverged."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A clause that offers the known names nearest to `name`, or all of them when none is near."""
    known = sorted(set(names))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    shown = ", ".join(known[:24]) + (", ..." if len(known) > 24 else "")
    return f"known: {shown}"
