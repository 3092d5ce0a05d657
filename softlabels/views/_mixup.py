"""Mixup with a recorded partner."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, Reals, records
from softlabels.views._mixing import BLOCKS, beta, blended, drawn, where_chosen
from softlabels.views._settings import Probability


class MixUp(Part):
    """With `probability`, share * picture + (1 - share) * partner's picture, where share is Beta(alpha, alpha).

    Zhang et al., "mixup: beyond empirical risk minimization", 2018.
    """

    kind: Literal["mixup"] = "mixup"
    alpha: Annotated[float, Field(ge=0.01, le=100)] = 0.2
    probability: Probability = 1.0

    blocks: ClassVar[int] = BLOCKS
    shorthand: ClassVar[str] = "alpha"

    def draw(self, words: Words) -> Draws:
        """`chosen` (n,) bool; `partner` (n,), in [0, 1) of the population; `share` (n,), the picture's own."""
        raw = drawn(words, self.probability)
        share = beta(raw["first"], raw["second"], self.alpha)
        return records(len(words), chosen=raw["chosen"], partner=raw["partner"], share=share)

    def shares(self, draws: Draws, size: int) -> Reals:  # noqa: ARG002
        """The share of each picture that is the image's own: (n,)."""
        return where_chosen(draws, draws["share"])

    def mix(self, pictures: Tensor, partners: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        return blended(pictures, partners, where_chosen(draws, draws["share"]))
