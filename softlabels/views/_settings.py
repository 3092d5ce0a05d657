"""Kinds of settings that steps share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = Level | tuple[Level, Level, Level]
"""A grey level or red, green and blue, each 0 to 255."""


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1] < float("inf"):
        raise ValueError("wants two numbers above 0, the smaller first")
    return bounds


def _share(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("is a share of an area, at most 1")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_rising)]
"""Two positive numbers, the smaller first."""
Shares = Annotated[Bounds, AfterValidator(_share)]
"""Two shares of an area, the smaller first."""


def rgb(colour: Colour) -> list[int]:
    """Red, green and blue of `colour`."""
    return [colour] * 3 if isinstance(colour, int) else list(colour)
