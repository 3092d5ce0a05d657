"""Cutmix with a recorded partner."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, Reals, records
from softlabels.views._mixing import BLOCKS, beta, cut_boxes, drawn, left_over, pasted, where_chosen
from softlabels.views._settings import Probability


class CutMix(Part):
    """With `probability`, a box of the picture filled from the partner's; its area is 1 - Beta(alpha, alpha).

    Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features", 2019.
    """

    kind: Literal["cutmix"] = "cutmix"
    alpha: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    probability: Probability = 1.0

    blocks: ClassVar[int] = BLOCKS
    shorthand: ClassVar[str] = "alpha"

    def draw(self, words: Words) -> Draws:
        """`chosen` (n,) bool; `partner` (n,), in [0, 1) of the population; `share` (n,); `place` (n, 2), the centre."""
        raw = drawn(words, self.probability)
        share = beta(raw["first"], raw["second"], self.alpha)
        return records(len(words), chosen=raw["chosen"], partner=raw["partner"], share=share, place=raw["place"])

    def shares(self, draws: Draws, size: int) -> Reals:
        """The share of each picture of `size` that is the image's own, after the box is cut off at edges: (n,)."""
        share = where_chosen(draws, draws["share"])
        return left_over(cut_boxes(draws["place"], share, size), size)

    def mix(self, pictures: Tensor, partners: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        share = where_chosen(draws, draws["share"])
        return pasted(pictures, partners, cut_boxes(draws["place"], share, pictures.shape[-1]))
