from __future__ import annotations

from typing import ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, mean_over, pair_of, softened, softmaxes, squared, true_class

_LEAST = 1e-7


def weighted_soft_labels(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Soft cross-entropy whose weight per row falls when the student knows the true class better than the teacher.

    ``T^2 * w * -sum_k p_k ln q_k``, p = softmax(teacher / T), q = softmax(student / T), and per row

    ``w = 1 - exp(-h_s / (h_t + 1e-7))``, h_s and h_t the cross-entropies of student and teacher with the true class at
    T = 1. No gradient goes through w. The paper's alpha is the weight of this loss in the objective.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes); takes no gradient.
        temperature: T > 0. (The authors' code: 2.)
        labels: integers (batch,); rows with -1 have no w and are left out.
        valid: bool (batch,), further rows to leave out where False; None: none. No row counts: 0, with its graph.

    Raises:
        ConfigError: there are no labels.

    Source: Zhou et al. 2021, "Rethinking soft labels for knowledge distillation: a bias-variance tradeoff perspective",
    arXiv:2102.00650; the 1e-7 as in the authors' code.
    """
    labels, counted = true_class(labels, valid, "weighted_soft_labels")
    student, teacher = pair_of(student_logits, teacher_logits, counted)
    with torch.no_grad():
        of_student = F.cross_entropy(student, labels, reduction="none")
        of_teacher = F.cross_entropy(teacher, labels, reduction="none")
        weight = -torch.expm1(-of_student / (of_teacher + _LEAST))
    per_row = -(softened(teacher, temperature).exp() * softened(student, temperature)).sum(-1)
    return temperature**2 * mean_over(weight * per_row, counted)


class WeightedSoftLabels(Part):
    """`weighted_soft_labels` as a part."""

    kind: Literal["wsl"] = "wsl"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return weighted_soft_labels(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        return (
            f"-{squared(temperature)}w sum p ln q, w = 1 - exp(-CE(student) / CE(teacher)) with the true class at "
            f"T = 1, {softmaxes(temperature)}"
        )
