"""Errors that a user can cause. Each message says what was found, what was wanted and what to do next, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_MOST_LEVELS = 64
_ADVICE = re.compile(
    r"(?:did you mean|known:|(?:add|allow|ask|bring|call|check|choose|convert|copy|decode|download|dump|fill|find|free|"
    r"give|import|install|join|keep|label|leave|list|look|make|move|name|number|pack|put|raise|read|remove|rename|render|"
    r"repair|restore|return|run|save|say|see|set|start|take|train|unpack|update|use|wait|write)\b)"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class SoftlabelsError(Exception):
    """Base of every error a user can cause; the command line prints it as one line and exits with 1.

    What follows the last semicolon of a message, where it is an instruction, is advice: see `split_advice`.
    """

    repeated = False
    """Whether it is that of another process of the same job, which prints it."""


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


def split_advice(message: str) -> tuple[str, str]:
    """What is wrong, and the advice after the last semicolon where an instruction follows it; else "" for it."""
    found, semicolon, last = message.rpartition("; ")
    return (found, last) if semicolon and _ADVICE.match(last) else (message, "")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A clause that offers the known names nearest to `name`, or all of them when none is near."""
    known = sorted(set(names))
    # Of short names the ratio of a swap is low.
    swapped = [each for each in known if sorted(each) == sorted(name)]
    near = list(dict.fromkeys([*swapped, *difflib.get_close_matches(name, known, n=3, cutoff=0.6)]))[:3]
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    shown = ", ".join(known[:24]) + (", ..." if len(known) > 24 else "")
    return f"known: {shown}"


def in_one_line(problem: BaseException, most: int = 160) -> str:
    """The message of another library's error in one line of at most `most` characters; its type where it is empty."""
    return " ".join(str(problem).split())[:most] or type(problem).__name__


def printable(text: str) -> str:
    """`text` for a terminal: control characters and what is no Unicode are spelled out, as ``\\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def odd_value(value: Any) -> str | None:
    """What is wrong with a JSON-like value that others will write, print or open: one clause; None when it is sound."""
    left = [(value, 0)]
    while left:
        each, level = left.pop()
        if level > _MOST_LEVELS:
            return f"is nested more than {_MOST_LEVELS} levels deep"
        if isinstance(each, Mapping):
            left += [(inner, level + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list | tuple):
            left += [(inner, level + 1) for inner in each]
        elif isinstance(each, str):
            if "\0" in each:
                return f"holds a NUL character in {printable(each)[:80]!r}"
            if not each.isascii() and any("\ud800" <= letter <= "\udfff" for letter in each):
                return f"holds text that is no valid Unicode: {printable(each)[:80]!r}"
    return None
