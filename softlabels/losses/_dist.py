from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from pydantic import Field
from torch import Tensor
from torch.linalg import vector_norm

from softlabels.core.config import Part
from softlabels.losses._rows import Given, centred, mean_over, number, softened_pair, softmaxes, squared

_LEAST = 1e-8
"""Added to the product of two norms: a constant row or column has correlation 0 with anything."""


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Distillation from a stronger teacher: correlations within rows and within columns instead of a divergence.

    ``T^2 * (beta * inter + gamma * intra)``, p = softmax(teacher / T), q = softmax(student / T), r = Pearson's
    correlation (0 where a side is constant):

    - ``inter`` = the mean over the valid rows of 1 - r(p_row, q_row)
    - ``intra`` = the mean over the classes of 1 - r(p_column, q_column), columns over the valid rows

    `intra` sees the batch as a whole: with a single valid row every correlation is 0 and it is 1, without gradient.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes); takes no gradient.
        temperature: T > 0.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.
        beta: weight of `inter`.
        gamma: weight of `intra`.

    Source: Huang et al. 2022, "Knowledge distillation from a stronger teacher", arXiv:2205.10536;
    T^2 and the 1e-8 added to the correlation's denominator as in the authors' code (so that a column with a norm below
    some 1e-4 counts as constant).
    """
    log_q, log_p = softened_pair(student_logits, teacher_logits, temperature, valid)
    q, p = log_q.exp(), log_p.exp()
    inter = mean_over(1 - _correlation(centred(q), centred(p)), valid)
    columns = 1 - _correlation(_centred_columns(q, valid), _centred_columns(p, valid))
    intra = columns.mean() if valid is None else columns.mean() * valid.any()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (vector_norm(a, dim=-1) * vector_norm(b, dim=-1) + _LEAST)


def _centred_columns(probability: Tensor, valid: Tensor | None) -> Tensor:
    """Columns over the valid rows less their means, as rows (classes, batch); 0 where a row does not count."""
    columns = probability.T
    if valid is None:
        return centred(columns)
    mean = columns.where(valid, 0.0).sum(-1, keepdim=True) / valid.sum().clamp(min=1)
    return (columns - mean).where(valid, 0.0)


class DIST(Part):
    """`dist` as a part."""

    kind: Literal["dist"] = "dist"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    beta: float = Field(1.0, ge=0, allow_inf_nan=False)
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return dist(student_logits, teacher_logits, **given, beta=self.beta, gamma=self.gamma)

    def formula(self, temperature: float) -> str:
        return (
            f"{squared(temperature)}({number(self.beta)} * (1 - r(p, q) within rows) + {number(self.gamma)} * "
            f"(1 - r(p, q) within columns)), r: Pearson's correlation, {softmaxes(temperature)}"
        )
