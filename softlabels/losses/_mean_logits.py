from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.losses._teachers import Weights, shares, shown, teachers_of


class MeanLogits(Part):
    """The target's logits are the mean of the teachers' logits: ``z_k = sum_i w_i z_ik``, w scaled to sum 1.

    The softmax is the normalised geometric mean of the teachers' probabilities, at any temperature alike. A constant
    that a teacher adds to a row adds a constant to the row of the mean, which changes no target.
    """

    kind: Literal["mean-logits"] = "mean-logits"
    shorthand: ClassVar[str | None] = "weights"
    samples: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    weights: Weights | None = None

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        widened = teachers_of(logits)
        weights = shares(self.weights, widened)[:, None, None]
        return logits[0] if len(logits) == 1 else (widened * weights).sum(0)

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {temperature:.6g}"
        return f"softmax((mean over teachers of teacher_i){over}), {shown(self.weights)}"
