"""Steps whose parameters are replayed: the views of labels from other projects, recorded with each label.

They stand in a table of their own, since no random words make such a view: a recipe that holds one needs the records
of the labels. Nobody else knows these classes; what they record and how it is replayed is asked through the protocol
`softlabels.views.Recorded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_serializer
from torch import Tensor

from softlabels.core.arrays import Rows
from softlabels.core.config import Part
from softlabels.core.elementary import Reals
from softlabels.core.philox import Words
from softlabels.errors import ConfigError, DataError
from softlabels.views import (
    OPERATION_NAMES,
    Boxes,
    Colour,
    Lengths,
    Operations,
    Params,
    Probability,
    Records,
    RecordSpec,
    Step,
    apply_where,
    area_outside,
    as_params,
    blend,
    erase,
    paste,
    rgb,
)

_Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RecordedStep(Part):
    """What recorded steps share: they take no random words, and their views are rendered like others."""

    blocks: ClassVar[int] = 0

    def make_params(self, words: Words) -> Params:  # noqa: ARG002
        """Raises ConfigError: nothing is drawn."""
        raise ConfigError(
            f"views of {self.kind!r} are recorded with the labels they were made for and cannot be drawn; choose "
            f"another recipe, or name the store that holds them"
        )

    def check_renderable(self) -> None:
        """Nothing: views of this kind are rendered here."""


class RecordedMixStep(RecordedStep):
    """Recorded steps that mix: their parameters have `chosen` (n,) bool and `partner` (n,), the row of the partner."""

    def partners(self, params: Params, pool: int | Rows) -> Rows:  # noqa: ARG002
        """The row in the store of each view's partner: (n,), -1 for none."""
        return np.where(params["chosen"], params["partner"], -1)


class RecordedCrop(RecordedStep):
    """A box of the image, resized to the frame.

    `unit` says how `box` (top, left, height, width) is recorded: ``pixels`` of the image, int32; or ``shares`` of its
    height and width, float32. Of shares, the edges are the products in float64, rounded half to even, which is where
    PIL cuts a box of fractions.
    """

    kind: Literal["recorded-crop"] = "recorded-crop"
    unit: Literal["pixels", "shares"] = "pixels"

    shorthand: ClassVar[str] = "unit"

    @property
    def records(self) -> RecordSpec:
        """`box` (4,)."""
        return {"box": ("int32" if self.unit == "pixels" else "float32", (4,))}

    def replay(self, records: Records) -> Params:
        """`box` (n, 4)."""
        return as_params(len(records["box"]), box=records["box"])

    def boxes(self, params: Params, height: Lengths, width: Lengths) -> Boxes:
        """Each box in pixels of an image of that size: (n, 4).

        An image of one pixel, which stands for those that cannot be read, has no other box than itself.

        Raises:
            DataError: a box of pixels does not lie in the image, or one of shares is none.
        """
        box = params["box"].astype(np.float64)
        sides = np.broadcast_to(np.stack([height, width], axis=-1).astype(np.float64), (len(box), 2))
        if self.unit == "pixels":
            start, stop = box[:, :2], box[:, :2] + box[:, 2:]
        else:
            start, far = box[:, :2] * sides, box[:, 2:] * sides
            start, stop = np.rint(start), np.rint(start + far)
            # Half floats can bring an edge a pixel beyond the image, where the teacher saw nothing either.
            start, stop = np.clip(start, 0, sides - 1), np.clip(stop, 1, sides)
            stop = np.maximum(stop, start + 1)
        point = (sides == 1).all(axis=1, keepdims=True)
        start, stop = np.where(point, 0, start), np.where(point, 1, stop)
        wrong = ~((start >= 0) & (stop > start) & (stop <= sides)).all(axis=1)
        if wrong.any():
            top, left, tall, wide = params["box"][wrong][0].tolist()
            height, width = sides[wrong][0].astype(int).tolist()
            raise DataError(
                f"a recorded crop of {tall} x {wide} at ({top}, {left}) does not lie in an image of {height} x "
                f"{width}; the label is of another image"
            )
        return np.concatenate([start, stop - start], axis=1).astype(np.int64)


class RecordedFlip(RecordedStep):
    """The image mirrored left to right where `flip` says so."""

    kind: Literal["recorded-flip"] = "recorded-flip"

    @property
    def records(self) -> RecordSpec:
        """`flip` ()."""
        return {"flip": ("bool", ())}

    def replay(self, records: Records) -> Params:
        """`flip` (n,) bool."""
        return as_params(len(records["flip"]), flip=records["flip"])

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, H, W), some mirrored."""
        return apply_where(images, params["flip"], lambda some: some.flip(3))


class RecordedOperations(RecordedStep, Operations):
    """`n` operations of those that RandAugment knows, one after the other, each with its strength.

    `operation` holds places in `OPERATION_NAMES` (0 leaves the image as it is); strengths are as there: slopes, sides
    of the image, degrees, changes of a factor, bits, a share of 255.
    """

    kind: Literal["recorded-operations"] = "recorded-operations"
    n: PositiveInt = Field(2, le=8)

    shorthand: ClassVar[str] = "n"

    @property
    def records(self) -> RecordSpec:
        """`operation` (n,) and `strength` (n,)."""
        return {"operation": ("int8", (self.n,)), "strength": ("float32", (self.n,))}

    def replay(self, records: Records) -> Params:
        """`operation`, `strength` (views, n).

        Raises:
            DataError: an operation that does not exist.
        """
        operation = records["operation"]
        if operation.size and not 0 <= int(operation.min()) <= int(operation.max()) < len(OPERATION_NAMES):
            raise DataError(
                f"a label records operation {int(operation.max())} of {len(OPERATION_NAMES)}; it is damaged"
            )
        return as_params(len(operation), operation=operation, strength=records["strength"].astype(np.float64))


class RecordedErasing(RecordedStep):
    """A rectangle painted over with `fill`: `erased` (top, left, height, width) in pixels of an image of `size`.

    A rectangle without area erases nothing. In images of another size its edges are scaled and rounded.
    """

    kind: Literal["recorded-erasing"] = "recorded-erasing"
    size: PositiveInt
    fill: Colour = 0

    shorthand: ClassVar[str] = "size"

    @property
    def records(self) -> RecordSpec:
        """`erased` (4,)."""
        return {"erased": ("int16", (4,))}

    def replay(self, records: Records) -> Params:
        """`erased` (n, 4)."""
        return as_params(len(records["erased"]), erased=records["erased"])

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, S, S), some with a rectangle painted over."""
        box = params["erased"].astype(np.int64)
        edges = _scaled(np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1), self.size, images.shape[-1])
        return erase(images, edges, rgb(self.fill))


class RecordedMix(RecordedMixStep):
    """The image blended with its partner's, and then a box of it filled from the partner's.

    `mix_partner` is the partner's row in the store, `mix_blend` the image's own share of the blend (1: none), and
    `mix_cut` the box (top, left, bottom, right) in pixels of an image of `size`; one without area cuts nothing.
    """

    kind: Literal["recorded-mix"] = "recorded-mix"
    size: PositiveInt

    shorthand: ClassVar[str] = "size"

    @property
    def records(self) -> RecordSpec:
        """`mix_partner` (), `mix_blend` (), `mix_cut` (4,)."""
        return {"mix_partner": ("uint32", ()), "mix_blend": ("float32", ()), "mix_cut": ("int16", (4,))}

    def replay(self, records: Records) -> Params:
        """`chosen` (n,) bool, `partner` (n,) row, `blend` (n,), `cut` (n, 4)."""
        share, cut = records["mix_blend"].astype(np.float64), records["mix_cut"].astype(np.int64)
        chosen = (share < 1) | ((cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1]))
        partner = records["mix_partner"].astype(np.int64)
        return as_params(len(share), chosen=chosen, partner=partner, blend=share, cut=cut)

    def shares(self, params: Params, size: int) -> Reals:
        """How much of each image of `size` is the image's own, 1 where it is not mixed: (n,)."""
        return params["blend"] * area_outside(_scaled(params["cut"], self.size, size), size)

    def mix(self, images: Tensor, partners: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        blended = blend(images, partners, params["blend"])
        return paste(blended, partners, _scaled(params["cut"], self.size, images.shape[-1]))


class SeededMix(RecordedMixStep):
    """Mixup or cutmix of two images with chance from one seed, numpy's PCG64 seeded with it; both get the same.

    A share lam is drawn from Beta(mixup, mixup) or Beta(cutmix, cutmix), cutmix with probability `switch_prob` where
    both are above 0; with probability 1 - `prob` nothing is mixed. Mixup: ``lam * own + (1 - lam) * partner``. Cutmix:
    a box of sqrt(1 - lam) of each side, about a point drawn evenly and cut off at the edges, comes from the partner.

    `mix_partner` is the partner's row in the store, the image's own where nothing is mixed; `mix_seed` is the seed, or
    -1 where it is not known, which the label is then alone with. `size` is that of images whose shares are recorded.
    """

    kind: Literal["seeded-mix"] = "seeded-mix"
    mixup: _Alpha
    cutmix: _Alpha
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


class ForeignView(RecordedStep):
    """A view that only the project `of` can make, from a seed that is recorded where it is `seeded`.

    Labels of such views can be read, but their images come from somebody's own data set (`softlabels.attach`).
    `mixed` is what the user said of seeded views, whose files do not tell; where it is True, a `SeededMix` follows.
    """

    kind: Literal["foreign-view"] = "foreign-view"
    of: str
    seeded: bool = False
    mixed: bool | None = None

    shorthand: ClassVar[str] = "of"

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, usual: Any) -> dict[str, Any]:
        # As it was before there was such a field, so that older stores are those of the same recipe.
        return {name: value for name, value in usual(self).items() if name != "mixed" or value is not None}

    @property
    def records(self) -> RecordSpec:
        """`seed` (), where there is one."""
        return {"seed": ("int64", ())} if self.seeded else {}

    def replay(self, records: Records) -> Params:
        """`seed` (n,), where there is one."""
        count = len(next(iter(records.values()))) if records else 0
        return as_params(count, **dict(records))

    def boxes(self, params: Params, height: Lengths, width: Lengths) -> Boxes:  # noqa: ARG002
        """Raises ConfigError: what the view shows is not known here."""
        raise self._refusal()

    def check_renderable(self) -> None:
        """Raises ConfigError: what the view shows is not known here."""
        raise self._refusal()

    def _refusal(self) -> ConfigError:
        how = "softlabels.attach(dataset, labels, view=..., seeded=...)" if self.seeded else "softlabels.attach"
        return ConfigError(
            f"only {self.of}'s own code makes the views of these labels: pair them with its data set by {how}, "
            f"docs/importing.md says how"
        )


def foreign_view(steps: Sequence[Step]) -> ForeignView | None:
    """The step whose views only another project can make, if there is one."""
    return next((step for step in steps if isinstance(step, ForeignView)), None)


def _scaled(edges: NDArray[np.int64], old: int, new: int) -> NDArray[np.int64]:
    """Edges in pixels of images of `old` as those of `new`."""
    return edges if old == new else np.rint(edges * (new / old)).astype(np.int64)
