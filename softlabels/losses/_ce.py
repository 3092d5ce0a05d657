from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, mean_over, softened_pair, softmaxes, squared
from softlabels.losses._sparse import sparse_rows, sparse_softened


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 times the cross-entropy of the student under the teacher at temperature T, the mean over the valid rows.

    ``-T^2 * sum_k p_k ln q_k``, p = softmax(teacher / T), q = softmax(student / T), natural logarithm. It is
    `kl_divergence` plus T^2 times the teacher's entropy: the same gradient, another value.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes); takes no gradient. -inf is a probability of 0.
        temperature: T > 0.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.
    """
    log_q, log_p = softened_pair(student_logits, teacher_logits, temperature, valid)
    return -(temperature**2) * mean_over((log_p.exp() * log_q).sum(-1), valid)


def sparse_soft_cross_entropy(
    student_logits: Tensor,
    ids: Tensor,
    values: Tensor,
    tail: Tensor,
    *,
    temperature: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """`soft_cross_entropy` to a teacher with logits `values` at the classes `ids` and `tail` at every other class.

    Arguments as those of `sparse_kl_divergence`; no tensor of the teacher's has the shape (batch, classes).
    """

    def per_row(student: Tensor, ids: Tensor, values: Tensor, tail: Tensor) -> Tensor:
        log_q, log_p, log_tail = sparse_softened(student, ids, values, tail, temperature)
        named = (log_p.exp() * log_q.gather(1, ids)).sum(-1)
        return named + log_tail.squeeze(-1).exp() * log_q.scatter(1, ids, 0.0).sum(-1)

    return -(temperature**2) * mean_over(sparse_rows(per_row, student_logits, ids, values, tail, valid), valid)


class SoftCrossEntropy(Part):
    """`soft_cross_entropy` as a part."""

    kind: Literal["ce"] = "ce"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    sparse: ClassVar = staticmethod(sparse_soft_cross_entropy)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return soft_cross_entropy(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        return f"-{squared(temperature)}sum p ln q, {softmaxes(temperature)}"
