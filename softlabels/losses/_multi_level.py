"""Multi-level logit distillation: how rows, and how classes, go together within a batch, and both beside KL.

p = softmax(teacher / T) and q = softmax(student / T) as matrices (batch, classes), rows that do not count left out. The
two correlations have no T^2, as in the authors' code.

Source: Jin, Wang and Lin 2023, "Multi-level logit distillation", CVPR 2023, equations for the instance, batch and class
levels, and https://github.com/Jin-Ying/Multi-Level-Logit-Distillation. Left out are the authors' masks (only rows and
classes of at most median confidence count in some terms) and their second view: a batch has one view of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from softlabels.losses._base import LossPart, number
from softlabels.losses._divergences import kl_divergence
from softlabels.losses._rows import log_softmaxes, student_rows

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
"""The authors' temperatures 2, 3, 4, 5 and 6, over their T = 4."""


def batch_correlation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """How alike the rows of a batch are, as the teacher has it: the batch level of multi-level logit distillation.

    ``1 / n * sum_ij ((p p^T)_ij - (q q^T)_ij)^2`` over the n valid rows. Takes time batch^2 * classes.

    Source: Jin, Wang and Lin 2023, "Multi-level logit distillation", CVPR 2023.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.batch_correlation(student, teacher).item(), 3)
        0.107
    """
    q, p = _probabilities(student_logits, teacher_logits, temperature, valid)
    total = _difference_of_products(q, p)
    return total / (max(len(q), 1) if valid is None else valid.sum().clamp(min=1))


def class_correlation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Which classes go together within a batch, as the teacher has it: the class level of multi-level distillation.

    ``1 / K * sum_kl ((p^T p)_kl - (q^T q)_kl)^2`` over the K classes; it grows with the square of the batch. Takes time
    batch * K^2 and memory K^2.

    Source: Jin, Wang and Lin 2023, "Multi-level logit distillation", CVPR 2023.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.class_correlation(student, teacher).item(), 3)
        0.196
    """
    q, p = _probabilities(student_logits, teacher_logits, temperature, valid)
    return _difference_of_products(q.T, p.T) / max(q.shape[1], 1)


def multi_level(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    factors: Sequence[float] = FACTORS,
    instance_weight: float = 1.0,
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
) -> Tensor:
    """Multi-level logit distillation: the sum of three levels over several temperatures.

    ``sum over f of instance_weight * KL(fT) + batch_weight * B(fT) + class_weight * C(fT)``: `kl_divergence` with its
    (fT)^2, `batch_correlation` and `class_correlation`, at the temperatures T times each of `factors`. At the authors'
    T = 4 these are 2, 3, 4, 5 and 6.

    Source: Jin, Wang and Lin 2023, "Multi-level logit distillation", CVPR 2023; sums, temperatures and weights as in
    the authors' code.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.multi_level(student, teacher, temperature=4.0).item(), 3)
        2.143
    """
    student_logits = student_rows(student_logits, valid)  # now, so that gradients of half precision are added in fp32
    total = student_logits.new_zeros(())
    for factor in factors:
        given: Any = {"temperature": factor * temperature, "valid": valid}
        total = total + instance_weight * kl_divergence(student_logits, teacher_logits, **given)
        total = total + batch_weight * batch_correlation(student_logits, teacher_logits, **given)
        total = total + class_weight * class_correlation(student_logits, teacher_logits, **given)
    return total


def _probabilities(student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(q, p), (batch, classes) each; rows that do not count are zeros."""
    both = (each.exp() for each in log_softmaxes(student, teacher, temperature, valid))
    q, p = both if valid is None else (each.where(valid[:, None], 0.0) for each in both)
    return q, p


def _difference_of_products(q: Tensor, p: Tensor) -> Tensor:
    """Sum of the squared differences of the products of rows."""
    with torch.autocast(q.device.type, enabled=False):
        return (p @ p.T - q @ q.T).square().sum()


class BatchCorrelation(LossPart):
    """Products of rows of probabilities (MLKD's batch level); see `batch_correlation`."""

    kind: Literal["batch-correlation"] = "batch-correlation"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(batch_correlation)
    needs_logits: ClassVar[bool] = False
    text: ClassVar[str] = "sum (p p^T - q q^T)^2 / rows, without T^2, {pq}"


class ClassCorrelation(LossPart):
    """Products of columns of probabilities (MLKD's class level); see `class_correlation`."""

    kind: Literal["class-correlation"] = "class-correlation"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(class_correlation)
    needs_logits: ClassVar[bool] = False
    text: ClassVar[str] = "sum (p^T p - q^T q)^2 / classes, without T^2, {pq}"


def _numbers(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class MultiLevel(LossPart):
    """KL, batch and class level at several temperatures (MLKD); see `multi_level`. As text: ``mlkd:0.5,1,1.5``."""

    kind: Literal["mlkd"] = "mlkd"
    shorthand: ClassVar[str | None] = "factors"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(multi_level)
    text: ClassVar[str] = (
        "sum over T' of {instance_weight} * T'^2 * KL(p || q) + {batch_weight} * sum (p p^T - q q^T)^2 / rows + "
        "{class_weight} * sum (p^T p - q^T q)^2 / classes, p = softmax(teacher / T'), q = softmax(student / T')"
    )

    factors: Annotated[
        tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], BeforeValidator(_numbers), Field(min_length=1)
    ] = FACTORS
    instance_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    batch_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    class_weight: float = Field(1.0, ge=0, allow_inf_nan=False)

    def formula(self, temperature: float) -> str:
        """See `Loss.formula`."""
        temperatures = ", ".join(number(factor * temperature) for factor in self.factors)
        return f"{super().formula(temperature)}, T' = {temperatures}"
