from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, mean_over, number, rows_of, softened, squared


def confidence_penalty(
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,  # noqa: ARG001
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Entropy regularisation: T^2 times the negative entropy of the student at temperature T, over the valid rows.

    ``T^2 * sum_k q_k ln q_k``, q = softmax(student / T), natural logarithm; at T = 1 between -ln classes and 0. With a
    positive weight in an objective it keeps the student from being sure; with a negative one it asks for that.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: not used.
        temperature: T > 0.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: Pereyra et al. 2017, "Regularizing neural networks by penalizing confident output distributions",
    arXiv:1701.06548.
    """
    log_q = softened(rows_of(student_logits, valid), temperature)
    return temperature**2 * mean_over((log_q.exp() * log_q).sum(-1), valid)


class ConfidencePenalty(Part):
    """`confidence_penalty` as a part."""

    kind: Literal["confidence-penalty"] = "confidence-penalty"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, **given: Unpack[Given]) -> Tensor:
        return confidence_penalty(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {number(temperature)}"
        return f"{squared(temperature)}sum q ln q, q = softmax(student{over})"
