"""How an output of a network is written: the path of a module, and how what it gives is pooled: ``layer3:mean``."""

from __future__ import annotations

import re
from typing import NamedTuple

POOL_NAMES = ("mean", "token", "attention", "gridN")
"""What can follow a module's path; N is the side of the grid, 1 to 99."""

_POOL = re.compile(r"mean|token|attention|grid[1-9]\d?")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class Address(NamedTuple):
    """An output: the path of a module (or the name of an entry of what a network returns), and a pooling or none."""

    module: str
    pool: str | None = None

    def __str__(self) -> str:
        return self.module if self.pool is None else f"{self.module}:{self.pool}"


def is_pool(word: str) -> bool:
    """Whether it names a pooling."""
    return _POOL.fullmatch(word) is not None


def read_addresses(text: str) -> list[Address]:
    """The outputs in ``MODULE[:POOL][:MODULE[:POOL]]``: the names of poolings tell where one ends.

    Raises:
        ValueError: a path is none, or a pooling stands where a path should; the message says what is there.
    """
    found: list[Address] = []
    for word in text.split(":"):
        if is_pool(word) and found and found[-1].pool is None:
            found[-1] = Address(found[-1].module, word)
        elif _PATH.fullmatch(word):
            found.append(Address(word))
        else:
            raise ValueError(f"{word!r} in {text!r} is neither the path of a module nor a pooling")
    return found


def read_address(text: str) -> Address:
    """The one output in ``MODULE[:POOL]``.

    Raises:
        ValueError: it is no such text.
    """
    first, *others = read_addresses(text)
    if others:
        raise ValueError(f"there is no pooling {others[0].module!r}; choose {', '.join(POOL_NAMES)}, or leave it out")
    return first
