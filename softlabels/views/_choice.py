"""One of several steps, drawn for each view."""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from softlabels.choices import STEPS
from softlabels.core.config import Part
from softlabels.core.philox import Words, uniform
from softlabels.views._params import Params, Probability, as_params
from softlabels.views._pixels import apply_where


def _made(steps: Any) -> Any:
    if isinstance(steps, str):
        steps = [step.strip() for step in steps.split("|")]
    return tuple(STEPS.make(step) for step in steps) if isinstance(steps, list | tuple) else steps


class OneStepOf(Part):
    """With `probability`, one of `steps`, each equally likely or as its share of `weights`.

    As torchvision's RandomChoice, and its RandomApply where there is one step. As text the steps are separated by bars:
    ``choice:grayscale:1|solarize:1|gaussian-blur:1``. A step that is drawn still has a probability of its own, which
    here mostly is to be 1; for these three that is the 3-Augment of Touvron et al., "DeiT III: revenge of the ViT",
    2022. Crops, mixing steps and recorded ones cannot be chosen.
    """

    kind: Literal["choice"] = "choice"
    steps: Annotated[tuple[Any, ...], BeforeValidator(_made), Field(min_length=1, max_length=64)]
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    probability: Probability = 1.0

    shorthand: ClassVar[str] = "steps"

    @model_validator(mode="after")
    def _can_be_chosen(self) -> Any:
        for step in self.steps:
            if not hasattr(step, "apply"):
                raise ValueError(f"{step.kind!r} cannot be chosen; choose among steps that change colours or pixels")
        if self.weights is not None and (len(self.weights) != len(self.steps) or not sum(self.weights) > 0):
            raise ValueError(
                f"weights are {len(self.steps)} numbers, one for each step, and not all 0; got {list(self.weights)}"
            )
        return self

    @property
    def blocks(self) -> int:
        """One for the choice, then those of each step."""
        blocks: int = 1 + sum(step.blocks for step in self.steps)
        return blocks

    def make_params(self, words: Words) -> Params:
        """`chosen` (n,) int8, the place of the step, -1 for none; `step_0`, `step_1`, ... (n,): their parameters."""
        shares = np.full(len(self.steps), 1.0) if self.weights is None else np.array(self.weights)
        ends = np.cumsum(shares) / shares.sum()
        drawn = np.searchsorted(ends[:-1], uniform(words[:, 0]), side="right")
        chosen = np.where(uniform(words[:, 1]) < self.probability, drawn, -1).astype(np.int8)
        fields, start = {}, 4
        for place, step in enumerate(self.steps):
            stop = start + 4 * step.blocks
            fields[f"step_{place}"] = step.make_params(words[:, start:stop])
            start = stop
        return as_params(len(words), chosen=chosen, **fields)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, H, W), each changed by the step that was drawn for it."""
        for place, step in enumerate(self.steps):
            which = params["chosen"] == place
            own = params[f"step_{place}"][which]
            images = apply_where(images, which, functools.partial(step.apply, params=own))
        return images
