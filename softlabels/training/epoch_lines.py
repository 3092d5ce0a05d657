"""One line per epoch, for a person who watches a training or reads its log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softlabels.core.progress import Terminal, clock, percent, rate
from softlabels.training.evaluate import Score

LEAST_SECONDS = 1.0
"""Epochs that end sooner after the last line have none, unless they are the best so far or the last."""


@dataclass
class EpochLines:
    """Prints how a training of `epochs` epochs goes; `parts` are what the parts of its loss are called, by name."""

    terminal: Terminal
    epochs: int
    parts: Mapping[str, str]
    printed: float = -math.inf

    def ended(
        self, record: Mapping[str, Any], best: Score | None, best_epoch: int | None, left: float, *, wanted: bool
    ) -> None:
        """An epoch ended with this record, `left` seconds before the last one will; a `wanted` line is printed always.

        `best` is the best score so far, and `best_epoch` when it was reached, where that is known.
        """
        if wanted or time.monotonic() - self.printed >= LEAST_SECONDS:
            self.terminal.say(self._line(record, best, best_epoch, left))
            self.printed = time.monotonic()

    def _line(self, record: Mapping[str, Any], best: Score | None, best_epoch: int | None, left: float) -> str:
        cells = [f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}", self._loss(record)]
        if "top1" in record:
            cells.append(f"top-1 {percent(record['top1'], 1)}")
        if best is not None:
            cells.append(f"best {percent(best.top1, 1)}" + ("" if best_epoch is None else f" ({best_epoch})"))
        if "agreement" in record:
            cells.append(f"agrees with teacher {percent(record['agreement'], 1)}")
        cells += [f"lr {_exponent(record['lr'])}", f"{rate(record['pictures_per_second'])} images/s"]
        return "   ".join([*cells, f"{clock(left)} left"])

    def _loss(self, record: Mapping[str, Any]) -> str:
        parts = ", ".join(f"{shown} {record[name]:.3g}" for name, shown in self.parts.items())
        return f"loss {record['loss']:.3g}" + (f" ({parts})" if len(self.parts) > 1 else "")


def _exponent(value: float) -> str:
    """``2.9e-3``."""
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}"
