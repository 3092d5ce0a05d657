from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, centred, mean_over, pair_of


def logit_l1(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Absolute difference of centred logits: the sum over the classes, the mean over the valid rows.

    ``sum_k |s'_k - t'_k|``, where s' and t' are a row's logits less their mean over the classes. Both sides are
    centred because a teacher's logits are known up to a constant per row, which a softmax does not see either.
    Divide by the number of classes for the mean over them. Where a difference is 0, so is its gradient.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes), finite; takes no gradient.
        temperature: not used.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: as `logit_mse`, with the absolute value in place of the square.
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return mean_over(centred(student - teacher).abs().sum(-1), valid)


class LogitL1(Part):
    """`logit_l1` as a part."""

    kind: Literal["l1"] = "l1"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return logit_l1(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:  # noqa: ARG002
        return "sum |s - t|, s and t: logits of student and teacher less their mean over the classes"
