"""A temperature that changes while a student is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["linear", "cosine", "step"]
"""How a temperature goes from one end to the other."""


@dataclass(frozen=True)
class TemperatureSchedule:
    """The temperature of the soft loss, from `start` to `end`; d is the share of the steps that are made, 0 to 1.

    ``linear``: ``(1 - d) * start + d * end``. ``cosine``: ``end + (start - end) * (1 + cos(pi * d)) / 2``. ``step``:
    ``max(end, start * decay ** (epoch // decay_epochs))``, epochs counted from 0.

    Source: Xiao and He 2026, "Soft label pruning and quantization for large-scale dataset distillation",
    arXiv:2604.18135, section III-D (dynamic knowledge reuse), after the authors' code: their scripts use ``step`` from
    20 to 2 with a decay of 0.7 every 30 epochs. Their cosine changes once an epoch, this one with each step; ``linear``
    is not theirs.
    """

    start: float
    end: float
    shape: Shape = "linear"
    decay: float = 0.7
    decay_epochs: int = 30
    run_epochs: int = 1

    def at(self, done: float, epochs: float = math.inf) -> float:
        """The temperature of a step before which `done` of all are made, and after which `epochs` epochs will be."""
        if self.shape == "step":
            current = min(math.floor(done * self.run_epochs), self.run_epochs - 1)
            if math.isfinite(epochs):
                current = math.ceil(epochs) - 1
            return max(self.end, self.start * self.decay ** (current // self.decay_epochs))
        share = done if self.shape == "linear" else (1 - math.cos(math.pi * done)) / 2
        temperature = (1 - share) * self.start + share * self.end
        return min(max(temperature, min(self.start, self.end)), max(self.start, self.end))

    def describe(self) -> str:
        """A line for the run's header."""
        ways = {
            "linear": f"goes in a line from {self.start:g} at the first step to {self.end:g} at the last",
            "cosine": f"goes along half a cosine from {self.start:g} at the first step to {self.end:g} at the last",
            "step": f"begins at {self.start:g} and is multiplied by {self.decay:g} every {self.decay_epochs} epochs, "
            f"down to {self.end:g}",
        }
        return f"the temperature {ways[self.shape]}, and T^2 with it; the formulas have that of the first step"
