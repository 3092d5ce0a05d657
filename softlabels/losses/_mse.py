from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, centred, mean_over, pair_of


def logit_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Squared difference of centred logits: the sum over the classes, the mean over the valid rows.

    ``sum_k (s'_k - t'_k)^2``, where s' and t' are a row's logits less their mean over the classes. Both sides are
    centred because a teacher's logits are known up to a constant per row, which a softmax does not see either.
    Divide by the number of classes for the mean over them. For large T, `kl_divergence` tends to this divided by
    2 * classes.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes), finite; takes no gradient.
        temperature: changes nothing: logits / T, times T^2, is the same for every T.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: Ba and Caruana 2014, "Do deep nets really need to be deep?", arXiv:1312.6184; Kim et al. 2021,
    arXiv:2105.08919. The centring is ours.
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return mean_over(centred(student - teacher).square().sum(-1), valid)


class LogitMSE(Part):
    """`logit_mse` as a part."""

    kind: Literal["mse"] = "mse"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return logit_mse(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:  # noqa: ARG002
        return "sum (s - t)^2, s and t: logits of student and teacher less their mean over the classes"
