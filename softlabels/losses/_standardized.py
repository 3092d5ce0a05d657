from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor
from torch.linalg import vector_norm

from softlabels.core.config import Part
from softlabels.losses._kl import kl_divergence
from softlabels.losses._rows import Given, centred, number, pair_of, squared

_LEAST = 1e-7


def standardized_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """`kl_divergence` between logits that are standardised row by row, so that the student is free in shift and scale.

    ``T^2 * sum_k p_k (ln p_k - ln q_k)``, p = softmax(Z(teacher) / T), q = softmax(Z(student) / T),
    ``Z(z) = (z - mean z) / (std z + 1e-7)``, mean and std over the K classes, ``std z = sqrt(sum (z - mean z)^2 /
    (K - 1))`` as ``torch.std`` has it. A constant row becomes zeros, and the gradient there is of the size 1e7.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes), finite; takes no gradient.
        temperature: T > 0, the paper's base temperature. (The paper: 2.)
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: Sun et al. 2024, "Logit standardization in knowledge distillation", arXiv:2403.01427;
    the 1e-7 and the K - 1 as in the authors' code.
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return kl_divergence(_standardised(student), _standardised(teacher), temperature=temperature, valid=valid)


def _standardised(logits: Tensor) -> Tensor:
    logits = centred(logits)
    # A norm has gradient 0 at a row of zeros, where that of a square root would be NaN.
    deviation = vector_norm(logits, dim=-1, keepdim=True) / max(logits.shape[-1] - 1, 1) ** 0.5
    return logits / (deviation + _LEAST)


class StandardizedKL(Part):
    """`standardized_kl` as a part."""

    kind: Literal["standardized-kl"] = "standardized-kl"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return standardized_kl(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {number(temperature)}"
        return (
            f"{squared(temperature)}sum p (ln p - ln q), p = softmax(Z(teacher){over}), q = softmax(Z(student){over}), "
            "Z(z) = (z - mean) / std over the K classes, std with K - 1"
        )
