from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.errors import ConfigError
from softlabels.losses._teachers import Weight, mean_of_probabilities, teachers_of


class PerClass(Part):
    """Each class listens to the teachers that know it: ``p_k = sum_i w_ik softmax(z_i / T)_k``, scaled to sum 1.

    `weights`: one list per teacher of one number per class, at least 0. They are scaled so that those of a class sum
    to 1 over the teachers; a class on which no teacher has weight is refused.
    """

    kind: Literal["per-class"] = "per-class"
    samples: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    weights: tuple[tuple[Weight, ...], ...]

    @field_validator("weights")
    @classmethod
    def _every_class_has_weight(cls, weights: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        if not weights or len({len(row) for row in weights}) != 1:
            raise ValueError("give one list per teacher, all of one length")
        for k, column in enumerate(zip(*weights, strict=True)):
            if not sum(column) > 0:
                raise ValueError(f"class {k} has no teacher with a weight greater than 0")
        return weights

    @cached_property
    def _log_shares(self) -> Tensor:
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return (weights / weights.sum(0)).log()

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        widened = teachers_of(logits)
        teachers, _, classes = widened.shape
        if self._log_shares.shape != (teachers, classes):
            raise ConfigError(
                f"blend 'per-class' has weights for {len(self.weights)} teachers and {len(self.weights[0])} classes, "
                f"the labels have {teachers} and {classes}"
            )
        if teachers == 1:
            return logits[0]
        return mean_of_probabilities(widened, temperature, self._log_shares.to(widened)[:, None, :])

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {temperature:.6g}"
        return f"sum over teachers of w_ik softmax(teacher_i{over})_k, scaled to sum 1, weights per class"
