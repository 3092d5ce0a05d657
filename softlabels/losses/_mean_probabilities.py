from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.losses._teachers import Weights, mean_of_probabilities, shares, shown, teachers_of


class MeanProbabilities(Part):
    """The target is the mean of the teachers' softened probabilities: ``p_k = sum_i w_i softmax(z_i / T)_k``.

    This is what averaging KL terms means: the mean over teachers of KL(p_i || q) and KL(mean p_i || q) differ by
    what does not depend on the student, so their gradients are equal. `weights` need not sum to 1; None: equal.
    """

    kind: Literal["mean-probabilities"] = "mean-probabilities"
    shorthand: ClassVar[str | None] = "weights"
    samples: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    weights: Weights | None = None

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        widened = teachers_of(logits)
        log_shares = shares(self.weights, widened).log()[:, None, None]
        return logits[0] if len(logits) == 1 else mean_of_probabilities(widened, temperature, log_shares)

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {temperature:.6g}"
        return f"mean over teachers of softmax(teacher_i{over}), {shown(self.weights)}"
