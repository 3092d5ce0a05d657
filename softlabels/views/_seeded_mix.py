"""Mixtures of neighbours whose chance comes from the seeds of the two: how TinyViT mixes the images it labels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from softlabels.core.elementary import Reals
from softlabels.errors import DataError
from softlabels.views._mix import area_outside
from softlabels.views._params import Params, Probability, as_params
from softlabels.views._recipe import Records, RecordSpec
from softlabels.views._recorded import RecordedMixStep

Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SeededMix(RecordedMixStep):
    """Mixup or cutmix of two images with chance from one seed, numpy's PCG64 seeded with it; both get the same.

    A share lam is drawn from Beta(mixup, mixup) or Beta(cutmix, cutmix), cutmix with probability `switch_prob` where
    both are above 0; with probability 1 - `prob` nothing is mixed. Mixup: ``lam * own + (1 - lam) * partner``. Cutmix:
    a box of sqrt(1 - lam) of each side, about a point drawn evenly and cut off at the edges, comes from the partner.

    `mix_partner` is the partner's row in the store, the image's own where nothing is mixed; `mix_seed` is the seed, or
    -1 where it is not known, which the label is then alone with. `size` is that of images whose shares are recorded.
    """

    kind: Literal["seeded-mix"] = "seeded-mix"
    mixup: Alpha
    cutmix: Alpha
    prob: Probability = 1.0
    switch_prob: Probability = 0.5
    size: PositiveInt = 224

    unknown: ClassVar[int] = -1
    """The `mix_seed` of a view whose partner's record is not in the files."""

    @property
    def records(self) -> RecordSpec:
        """`mix_partner` (), `mix_seed` ()."""
        return {"mix_partner": ("uint32", ()), "mix_seed": ("int64", ())}

    def replay(self, records: Records) -> Params:
        """What the seeds mean: `chosen` (n,) bool, `partner` (n,) row, `lam` (n,), `cut` (n,) bool, `at` (n, 2).

        `at` is the box's centre as shares of height and width. Where the seed is unknown, nothing is chosen and lam 0.

        Raises:
            DataError: a number that is no seed.
        """
        seeds = records["mix_seed"].tolist()
        if min(seeds, default=0) < self.unknown:
            raise DataError(f"a label records the seed {min(seeds)}; it is damaged")
        drawn = np.array([self._drawn(seed) for seed in seeds], np.float64).reshape(len(seeds), 4)
        return as_params(
            len(seeds),
            chosen=(drawn[:, 0] < 1) & (records["mix_seed"] != self.unknown),
            partner=records["mix_partner"].astype(np.int64),
            lam=drawn[:, 0],
            cut=drawn[:, 1] > 0,
            at=drawn[:, 2:],
        )

    def _drawn(self, seed: int) -> tuple[float, float, float, float]:
        """lam, whether it is a cutmix, and the centre of its box; the order of the calls is part of the format."""
        if seed == self.unknown:
            return 0.0, 0.0, 0.0, 0.0
        chance = np.random.Generator(np.random.PCG64(seed))
        if chance.random() >= self.prob or not (self.mixup or self.cutmix):
            return 1.0, 0.0, 0.0, 0.0
        cut = chance.random() < self.switch_prob if self.mixup and self.cutmix else self.cutmix > 0
        alpha = self.cutmix if cut else self.mixup
        lam = float(chance.beta(alpha, alpha))
        return (lam, 1.0, chance.random(), chance.random()) if cut and lam < 1 else (lam, 0.0, 0.0, 0.0)

    def edges(self, params: Params, height: int, width: int) -> NDArray[np.int64]:
        """Top, left, bottom and right of what comes from the partner, in pixels: int64 (n, 4); empty without cutmix."""
        sides = np.array([height, width])
        half = (sides * np.sqrt(1.0 - params["lam"])[:, None]).astype(np.int64) // 2
        centre = np.minimum((params["at"] * sides).astype(np.int64), sides - 1)
        edges = np.concatenate([np.clip(centre - half, 0, sides), np.clip(centre + half, 0, sides)], axis=1)
        return np.where(params["cut"][:, None], edges, 0)

    def shares(self, params: Params, size: int) -> Reals:
        """How much of each image of `size` is the image's own, 1 where it is not mixed: (n,)."""
        return np.where(params["cut"], area_outside(self.edges(params, size, size), size), params["lam"])

    def mix(self, images: Tensor, partners: Tensor, params: Params) -> Tensor:
        """Floats (n, channels, H, W) twice to new floats (n, channels, H, W), bit by bit as TinyViT has them."""
        made = images.clone()
        edges = self.edges(params, *images.shape[-2:])
        for place in np.flatnonzero(params["chosen"]).tolist():
            if params["cut"][place]:
                top, left, bottom, right = edges[place].tolist()
                made[place, :, top:bottom, left:right] = partners[place, :, top:bottom, left:right]
            else:
                lam = float(params["lam"][place])
                made[place].mul_(lam).add_(partners[place] * (1.0 - lam))
        return made
