from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.losses._mean_probabilities import MeanProbabilities
from softlabels.losses._teachers import Weights


class Weighted(Part):
    """`MeanProbabilities` that insists on weights, one per teacher: ``weighted:0.7,0.3``."""

    kind: Literal["weighted"] = "weighted"
    shorthand: ClassVar[str | None] = "weights"
    samples: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    weights: Weights

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:
        return MeanProbabilities(weights=self.weights)(logits, temperature=temperature, words=words)

    def formula(self, temperature: float) -> str:
        return MeanProbabilities(weights=self.weights).formula(temperature)
