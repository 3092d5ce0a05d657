from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, mean_over, softened_pair, softmaxes, squared
from softlabels.losses._sparse import sparse_rows, sparse_softened, sum_over_classes


def jeffreys(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 times the Jeffreys divergence at temperature T, the mean over the valid rows.

    ``T^2 * (KL(p || q) + KL(q || p)) = T^2 * sum_k (p_k - q_k) (ln p_k - ln q_k)``, p = softmax(teacher / T),
    q = softmax(student / T). Symmetric, without bound. Half of it is the "JS" loss of SSLD and PaddleClas.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes); takes no gradient. For -inf the true value is infinite; here e^-10000 stands
            for the probability 0.
        temperature: T > 0.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: Jeffreys 1946, "An invariant form for the prior probability in estimation problems", Proc. R. Soc. A 186;
    in distillation: Cui et al. 2021, "Beyond self-supervision", arXiv:2103.05959 (halved).
    """
    log_q, log_p = softened_pair(student_logits, teacher_logits, temperature, valid)
    return temperature**2 * mean_over(_terms(log_q, log_p).sum(-1), valid)


def sparse_jeffreys(
    student_logits: Tensor,
    ids: Tensor,
    values: Tensor,
    tail: Tensor,
    *,
    temperature: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """`jeffreys` to a teacher with logits `values` at the classes `ids` and `tail` at every other class.

    Arguments as those of `sparse_kl_divergence`; no tensor of the teacher's has the shape (batch, classes).
    """

    def per_row(student: Tensor, ids: Tensor, values: Tensor, tail: Tensor) -> Tensor:
        log_q, log_p, log_tail = sparse_softened(student, ids, values, tail, temperature)
        return sum_over_classes(_terms, log_q, ids, log_p, log_tail)

    return temperature**2 * mean_over(sparse_rows(per_row, student_logits, ids, values, tail, valid), valid)


def _terms(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()) * (log_p - log_q)


class Jeffreys(Part):
    """`jeffreys` as a part."""

    kind: Literal["jeffreys"] = "jeffreys"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True
    sparse: ClassVar = staticmethod(sparse_jeffreys)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return jeffreys(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        return f"{squared(temperature)}sum (p - q) (ln p - ln q), {softmaxes(temperature)}"
