"""Random rectangles of which the first that fits is taken: ten proposals each, drawn without a resolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.core.philox import Words
from softlabels.views._chance import Reals, between, between_logs, halves

PROPOSALS = 10
BLOCKS = 3
"""Philox blocks of one draw: 24 numbers of 32 bits, of which 2 place the rectangle, 20 shape it and 2 are spare."""


def proposals(words: Words, scale: tuple[float, float], ratio: tuple[float, float]) -> dict[str, NDArray[Any]]:
    """The fields of a draw from (n, 12) words.

    `place` (n, 2): where the rectangle lies in its room, down and across; `one` and `other` (n, 10): the proposed
    sides, of a square of side 1, of areas evenly from `scale` and quotients one / other log-evenly from `ratio`;
    `spare` (n,): a number in [0, 1) for the step's own use.
    """
    u = halves(words)
    area = between(u[:, 2 : 2 + PROPOSALS], scale)
    quotient = between_logs(u[:, 2 + PROPOSALS : 2 + 2 * PROPOSALS], ratio)
    return {"place": u[:, :2], "one": np.sqrt(area * quotient), "other": np.sqrt(area / quotient), "spare": u[:, -1]}


def first(fits: NDArray[np.bool_], *sides: Reals) -> tuple[NDArray[np.bool_], list[Reals]]:
    """Whether any proposal fits (n,), and the sides (n,) of the first that does."""
    each, which = np.arange(len(fits)), fits.argmax(axis=1)
    return fits[each, which], [side[each, which] for side in sides]
