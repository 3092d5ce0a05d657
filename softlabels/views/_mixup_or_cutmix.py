"""Either mixup or cutmix, by chance."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.views._chance import Draws, Reals, records
from softlabels.views._mixing import BLOCKS, beta, blended, cut_boxes, drawn, left_over, pasted, where_chosen
from softlabels.views._settings import Probability


class MixUpOrCutMix(Part):
    """With `probability`, cutmix with chance `switch` and mixup otherwise, each with its own alpha, view by view.

    The usual pair of vision transformers' training (Touvron et al., "Training data-efficient image transformers",
    2021, table 9).
    """

    kind: Literal["mixup-or-cutmix"] = "mixup-or-cutmix"
    mixup: Annotated[float, Field(ge=0.01, le=100)] = 0.8
    cutmix: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    switch: Probability = 0.5
    probability: Probability = 1.0

    blocks: ClassVar[int] = BLOCKS
    shorthand: ClassVar[str] = "switch"

    def draw(self, words: Words) -> Draws:
        """`chosen`, `cut` (n,) bool; `partner`, `share` (n,); `place` (n, 2), the centre of the box."""
        raw = drawn(words, self.probability)
        cut = raw["third"] < self.switch
        share = beta(raw["first"], raw["second"], np.where(cut, self.cutmix, self.mixup))
        return records(
            len(words), chosen=raw["chosen"], cut=cut, partner=raw["partner"], share=share, place=raw["place"]
        )

    def shares(self, draws: Draws, size: int) -> Reals:
        """The share of each picture of `size` that is the image's own: (n,)."""
        blend, cut = self._two(draws)
        return np.where(draws["cut"], left_over(cut_boxes(draws["place"], cut, size), size), blend)

    def mix(self, pictures: Tensor, partners: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        blend, cut = self._two(draws)
        # A share of 1 leaves a picture as it is, so each view goes through one of the two unchanged.
        return pasted(blended(pictures, partners, blend), partners, cut_boxes(draws["place"], cut, pictures.shape[-1]))

    def _two(self, draws: Draws) -> tuple[Reals, Reals]:
        """The shares for the blend and for the cut, 1 where the other is done or neither."""
        share = where_chosen(draws, draws["share"])
        return np.where(draws["cut"], 1.0, share), np.where(draws["cut"], share, 1.0)
