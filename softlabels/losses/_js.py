from __future__ import annotations

import math
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, mean_over, softened_pair, softmaxes, squared
from softlabels.losses._sparse import sparse_rows, sparse_softened, sum_over_classes


def js_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 times the Jensen-Shannon divergence at temperature T, the mean over the valid rows.

    ``T^2 * (KL(p || m) + KL(q || m)) / 2``, m = (p + q) / 2, p = softmax(teacher / T), q = softmax(student / T).
    Symmetric, and at T = 1 at most ln 2. What PaddleClas calls JS is something else: half of `jeffreys`.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes); takes no gradient. -inf is a probability of 0.
        temperature: T > 0.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37(1).
    """
    log_q, log_p = softened_pair(student_logits, teacher_logits, temperature, valid)
    return temperature**2 * mean_over(_terms(log_q, log_p).sum(-1), valid)


def sparse_js_divergence(
    student_logits: Tensor,
    ids: Tensor,
    values: Tensor,
    tail: Tensor,
    *,
    temperature: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """`js_divergence` to a teacher with logits `values` at the classes `ids` and `tail` at every other class.

    Arguments as those of `sparse_kl_divergence`; no tensor of the teacher's has the shape (batch, classes).
    """

    def per_row(student: Tensor, ids: Tensor, values: Tensor, tail: Tensor) -> Tensor:
        log_q, log_p, log_tail = sparse_softened(student, ids, values, tail, temperature)
        return sum_over_classes(_terms, log_q, ids, log_p, log_tail)

    return temperature**2 * mean_over(sparse_rows(per_row, student_logits, ids, values, tail, valid), valid)


def _terms(log_q: Tensor, log_p: Tensor) -> Tensor:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m))


class JS(Part):
    """`js_divergence` as a part."""

    kind: Literal["js"] = "js"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    sparse: ClassVar = staticmethod(sparse_js_divergence)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return js_divergence(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        return f"{squared(temperature)}(KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, {softmaxes(temperature)}"
