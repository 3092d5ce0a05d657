from __future__ import annotations

from typing import ClassVar, Literal, Unpack

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, mean_over, softened_pair, softmaxes, squared
from softlabels.losses._sparse import sparse_rows, sparse_softened


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T, the mean over the valid rows.

    ``T^2 * sum_k p_k (ln p_k - ln q_k)``, p = softmax(teacher / T), q = softmax(student / T), natural logarithm.
    T^2 keeps the size of the gradient when T changes. A constant added to a row of either side changes nothing.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes); takes no gradient. -inf is a probability of 0.
        temperature: T > 0.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Returns:
        A scalar, fp32 or fp64.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", arXiv:1503.02531, section 2.
    """
    log_q, log_p = softened_pair(student_logits, teacher_logits, temperature, valid)
    per_row = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return temperature**2 * mean_over(per_row, valid)


def sparse_kl_divergence(
    student_logits: Tensor,
    ids: Tensor,
    values: Tensor,
    tail: Tensor,
    *,
    temperature: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """`kl_divergence` to a teacher whose logits are `values` at the classes `ids` and `tail` at every other class.

    Exact at any temperature, and no tensor of the teacher's has the shape (batch, classes).

    Args:
        student_logits: (batch, classes).
        ids: integers (batch, K), distinct within a row, K <= classes.
        values: (batch, K), the logits of those classes, up to a constant per row (the same one as the tail's).
        tail: (batch,), the logit of each class not named; -inf gives those classes nothing.
        temperature: T > 0.
        valid: bool (batch,), the rows that count; None: all.
    """

    def per_row(student: Tensor, ids: Tensor, values: Tensor, tail: Tensor) -> Tensor:
        log_q, log_p, log_tail = sparse_softened(student, ids, values, tail, temperature)
        named = (log_p.exp() * (log_p - log_q.gather(1, ids))).sum(-1)
        others = log_q.shape[1] - ids.shape[1]
        log_tail = log_tail.squeeze(-1)
        return named + log_tail.exp() * (others * log_tail - log_q.scatter(1, ids, 0.0).sum(-1))

    return temperature**2 * mean_over(sparse_rows(per_row, student_logits, ids, values, tail, valid), valid)


class KL(Part):
    """`kl_divergence` as a part."""

    kind: Literal["kl"] = "kl"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    sparse: ClassVar = staticmethod(sparse_kl_divergence)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return kl_divergence(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        return f"{squared(temperature)}sum p (ln p - ln q), {softmaxes(temperature)} [T^2 * KL(teacher || student)]"
