"""Where the parameters of views come from: drawn from random words, or replayed from what labels record.

`ParamSource` is the one place that knows which; who renders views asks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from softlabels.core.arrays import Rows
from softlabels.core.philox import Words
from softlabels.views._params import ViewParams
from softlabels.views._recipe import Mix, Recipe, Recorded, RecordSpec

_OWN, _PARTNERS = "view_", "other_"
"""Prefixes of what is recorded of a view and of the partner that it is mixed with, whose crop belongs to the label too.
What a mix itself records has none."""


class ParamSource(Protocol):
    """Where the parameters of the views of some images come from: drawn here, or replayed from what is recorded."""

    def params(self, rows: Rows, views: Rows) -> ViewParams:
        """Those of these views of the images at these rows, (n,) each."""

    def partner_params(self, rows: Rows, views: Rows, hashes: Words) -> ViewParams:
        """Those of the partners, with these key hashes, in these views of the images at these rows, (n,) each."""

    def records(self, rows: Rows, views: Rows) -> dict[str, NDArray[Any]]:
        """What a label must record of its view to replay it, (n, ...) each; nothing where views are drawn."""


@dataclass(frozen=True, eq=False)
class DrawnParams:
    """Parameters that follow from the recipe, the seed and the hashes of the images' keys, uint64 (images,)."""

    recipe: Recipe
    seed: int
    hashes: Words

    def params(self, rows: Rows, views: Rows) -> ViewParams:
        """See `ParamSource.params`."""
        return self.recipe.make_params(self.seed, self.hashes[rows], views)

    def partner_params(self, rows: Rows, views: Rows, hashes: Words) -> ViewParams:  # noqa: ARG002
        """See `ParamSource.partner_params`."""
        return self.recipe.make_params(self.seed, hashes, views)

    def records(self, rows: Rows, views: Rows) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """See `ParamSource.records`."""
        return {}


def recorded_steps(recipe: Recipe) -> list[Recorded]:
    """The steps of which parameters are recorded."""
    return [step for step in recipe.steps if isinstance(step, Recorded)]


def record_spec(recipe: Recipe) -> RecordSpec:
    """Dtype and shape of what is recorded of each view, by name; empty where all of it is drawn."""
    steps = recorded_steps(recipe)
    mixed = {name: each for step in steps if isinstance(step, Mix) for name, each in step.records.items()}
    own = {name: each for step in steps if not isinstance(step, Mix) for name, each in step.records.items()}
    sides = (_OWN, _PARTNERS) if mixed else (_OWN,)
    return {side + name: each for side in sides for name, each in own.items()} | mixed


class Taker(Protocol):
    """Where records are taken from."""

    def take(self, rows: Rows, views: Rows) -> dict[str, NDArray[Any]]:
        """What is recorded of these views (n,) of the images at these rows (n,): (n, ...) each, by name."""


class ReplayedParams:
    """Parameters replayed from records; those of steps that are not recorded are drawn."""

    def __init__(self, recipe: Recipe, seed: int, hashes: Words, taker: Taker) -> None:
        self._taker = taker
        # Asked once, since asking a protocol takes long.
        self._recorded = [step if isinstance(step, Recorded) else None for step in recipe.steps]
        self._mix = next((step for step in self._recorded if isinstance(step, Mix)), None)
        drawn = tuple(step for step in recipe.steps if step not in self._recorded)
        self._drawn = DrawnParams(Recipe(version=recipe.version, steps=drawn), seed, hashes)

    def params(self, rows: Rows, views: Rows) -> ViewParams:
        """See `ParamSource.params`."""
        return self._replayed(self._drawn.params(rows, views), rows, _OWN)

    def partner_params(self, rows: Rows, views: Rows, hashes: Words) -> ViewParams:
        """See `ParamSource.partner_params`."""
        return self._replayed(self._drawn.partner_params(rows, views, hashes), rows, _PARTNERS)

    def records(self, rows: Rows, views: Rows) -> dict[str, NDArray[Any]]:
        """See `ParamSource.records`."""
        return self._taker.take(rows, views)

    def _replayed(self, params: ViewParams, rows: Rows, side: str) -> ViewParams:
        records, drawn = self.records(rows, params.numbers), iter(params.by_step)
        by_step = []
        for step in self._recorded:
            if step is None:
                by_step.append(next(drawn))
            else:
                prefix = "" if step is self._mix else side
                by_step.append(step.replay({name: records[prefix + name] for name in step.records}))
        return ViewParams(params.numbers, tuple(by_step))


def param_source(recipe: Recipe, seed: int, hashes: Words, taker: Taker | None = None) -> ParamSource:
    """Parameters of the views of images with these key hashes, uint64 (images,): replayed where there is a `taker`."""
    return DrawnParams(recipe, seed, hashes) if taker is None else ReplayedParams(recipe, seed, hashes, taker)
