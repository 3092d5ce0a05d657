"""Losses that look at the true class: hard cross-entropy, decoupled KD, weighted soft labels, Tf-KD.

`labels` are class ids (batch,); rows with -1 have no label and are left out, besides those that are not `valid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor

from softlabels.core.types import SparseLogits
from softlabels.errors import ConfigError
from softlabels.losses._base import LossPart
from softlabels.losses._divergences import kl_divergence
from softlabels.losses._rows import (
    log_softmax,
    log_softmaxes,
    mean_over,
    pair_of,
    standardised,
    student_rows,
    true_class,
)

NO_LABEL = -1
"""The label of an image without one."""

_LEAST = 1e-7


def hard_cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    valid: Tensor | None = None,
    partners: Tensor | None = None,
    shares: Tensor | None = None,
    standardized: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy with the true classes, the mean over the valid rows that have a label.

    ``-sum_k y_k ln softmax(student / T)_k``, y = (1 - e) * one-hot + e / classes, e = label_smoothing; no T^2.

    Args:
        student_logits: (batch, classes).
        labels: class ids (batch,).
        label_smoothing: e, at least 0 and less than 1.
        valid: bool (batch,), the rows that count; None: all.
        partners: for views mixed of two images the class ids of the other one, (batch,); a row in which either label is
            -1 is left out. Its y is share * one-hot + (1 - share) * one-hot of the partner, before smoothing.
        shares: floats (batch,), given with `partners`.
        standardized: take Z(student) of `standardized_kl` in the student's place: its logits then have no scale of
            their own, and T alone says how sure it may become.
        temperature: T > 0.

    Source of the smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7. Source of the standardised logits: Guo et
    al. 2020, arXiv:2010.07485, whose authors' README has them times a multiplier, 1 / T here (and divides by K where Z
    has K - 1).

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> round(losses.hard_cross_entropy(student, torch.tensor([0, 1])).item(), 3)
        0.317
    """
    student = student_rows(student_logits, valid)
    student = standardised(student) if standardized else student
    if temperature != 1:
        student = student / temperature
    labels = labels.long() if valid is None else labels.long().where(valid, NO_LABEL)
    if partners is None or shares is None:
        total = _cross_entropy(student, labels, label_smoothing, "sum")
    else:
        labels = labels.where(partners != NO_LABEL, NO_LABEL)
        own = _cross_entropy(student, labels, label_smoothing, "none")
        other = _cross_entropy(student, partners.long().where(labels != NO_LABEL, NO_LABEL), label_smoothing, "none")
        total = (shares * own + (1 - shares) * other).sum()
    return total / (labels != NO_LABEL).sum().clamp(min=1)


def _cross_entropy(student: Tensor, labels: Tensor, smoothing: float, reduction: str) -> Tensor:
    return F.cross_entropy(student, labels, ignore_index=NO_LABEL, label_smoothing=smoothing, reduction=reduction)


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    standardized: bool = False,
) -> Tensor:
    """Decoupled distillation: the true class against the rest, and the rest among itself, each with its own weight.

    ``T^2 * (alpha * TCKD + beta * NCKD)``, p = softmax(teacher / T), q = softmax(student / T), y the true class:

    - ``TCKD = p_y ln(p_y / q_y) + (1 - p_y) ln((1 - p_y) / (1 - q_y))``
    - ``NCKD = sum over k != y of P_k ln(P_k / Q_k)``, P_k = p_k / (1 - p_y), Q_k = q_k / (1 - q_y)

    KL(p || q) = TCKD + (1 - p_y) NCKD; a beta above 1 - p_y is what sets the "dark knowledge" of sure rows free. The
    authors' settings: T = 4, beta = 8 on CIFAR-100; T = 1, beta = 0.5 on ImageNet. With `standardized` teacher and
    student are Z(teacher) and Z(student) of `standardized_kl`.

    Raises:
        ConfigError: there are no labels.

    Source: Zhao et al. 2022, "Decoupled knowledge distillation", arXiv:2203.08679; of standardised logits: Sun et al.
    2024, arXiv:2403.01427.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.decoupled_kd(student, teacher, temperature=4.0, labels=torch.tensor([0, 1])).item(), 3)
        1.451
    """
    labels, counted = true_class(labels, valid, "decoupled_kd")
    if standardized:
        pair = pair_of(student_logits, teacher_logits, counted)
        student_logits, teacher_logits = (standardised(each) for each in pair)
    log_q, log_p = log_softmaxes(student_logits, teacher_logits, temperature, counted)
    q_true, q_rest, q_others = _split(log_q, labels)
    p_true, p_rest, p_others = _split(log_p, labels)
    target = p_true.exp() * (p_true - q_true) + p_rest.exp() * (p_rest - q_rest)
    others = (p_others.exp() * (p_others - q_others)).sum(-1)
    return mean_over(alpha * target + beta * others, counted, temperature)


def _split(log_probability: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ln of the true class's probability (batch,), of all others' together (batch,), of each among the others."""
    true = labels[:, None]
    # The least finite number and not -inf, so that the true class's own term among the others is 0 * 0, not 0 * NaN.
    others = log_probability.scatter(1, true, torch.finfo(log_probability.dtype).min)
    rest = others.logsumexp(-1, keepdim=True)
    return log_probability.gather(1, true).squeeze(-1), rest.squeeze(-1), others - rest


class DecoupledKD(LossPart):
    """KL in two parts, the true class against the rest and the rest among itself (DKD); see `decoupled_kd`."""

    kind: Literal["dkd"] = "dkd"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(decoupled_kd)
    needs_labels: ClassVar[bool] = True
    text: ClassVar[str] = "{T2}({alpha} * KL(true class against the rest) + {beta} * KL(among the other classes)), {pq}"

    alpha: float = Field(1.0, ge=0, allow_inf_nan=False)
    beta: float = Field(8.0, ge=0, allow_inf_nan=False)
    standardized: bool = False

    def formula(self, temperature: float) -> str:
        """See `Loss.formula`."""
        text = super().formula(temperature)
        return f"{text}, teacher and student standardised row by row" if self.standardized else text


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
    T = 1. No gradient goes through w. The paper's alpha is the weight of this loss in the objective; T is 2 in the
    authors' code.

    Raises:
        ConfigError: there are no labels.

    Source: Zhou et al. 2021, "Rethinking soft labels for knowledge distillation: a bias-variance tradeoff perspective",
    arXiv:2102.00650; the 1e-7 as in the authors' code.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.weighted_soft_labels(student, teacher, temperature=4.0, labels=torch.tensor([0, 1])).item(), 3)
        9.601
    """
    labels, counted = true_class(labels, valid, "weighted_soft_labels")
    student, teacher = pair_of(student_logits, teacher_logits, counted)
    with torch.no_grad():
        of_student, of_teacher = (F.cross_entropy(each, labels, reduction="none") for each in (student, teacher))
        weight = -torch.expm1(-of_student / (of_teacher + _LEAST))
    losses = -(log_softmax(teacher, temperature).exp() * log_softmax(student, temperature)).sum(-1)
    return mean_over(weight * losses, counted, temperature)


class WeightedSoftLabels(LossPart):
    """Soft cross-entropy that counts less where the student knows better (WSL); see `weighted_soft_labels`."""

    kind: Literal["wsl"] = "wsl"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(weighted_soft_labels)
    needs_labels: ClassVar[bool] = True
    text: ClassVar[str] = (
        "-{T2}w sum p ln q, w = 1 - exp(-CE(student) / CE(teacher)) with the true class at T = 1, {pq}"
    )


def teacher_free(
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,  # noqa: ARG001
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
    correct: float = 0.99,
) -> Tensor:
    """`kl_divergence` to a virtual teacher that gives the true class the probability `correct`, the others the rest.

    ``T^2 * sum_k p_k (ln p_k - ln q_k)``, p = softmax(ln u / T), q = softmax(student / T), u_k = correct for the true
    class and (1 - correct) / (classes - 1) for each other. Label smoothing whose target is softened with the student.
    The target is never built as (batch, classes). The paper: T = 20, `correct` at least 0.9.

    Raises:
        ConfigError: there are no labels, or `correct` is not between 0 and 1.

    Source: Yuan et al. 2020, "Revisiting knowledge distillation via label smoothing regularization", arXiv:1909.11723,
    Tf-KD_reg. (The authors' script softens only the teacher's side, and u itself, not ln u.)

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.teacher_free(student, teacher, temperature=4.0, labels=torch.tensor([0, 1])).item(), 3)
        1.49
    """
    if not 0 < correct < 1:
        raise ConfigError(f"teacher_free: correct must lie between 0 and 1, got {correct}")
    labels, counted = true_class(labels, valid, "teacher_free")
    classes = student_logits.shape[-1]
    # fp64 so that a student in half precision does not round ln 0.99.
    named = torch.full((len(labels), 1), math.log(correct), dtype=torch.float64, device=labels.device)
    tail = torch.full_like(named[:, 0], math.log((1 - correct) / max(classes - 1, 1)))
    teacher = SparseLogits(labels[:, None], named, tail, classes)
    return kl_divergence(student_logits, teacher, temperature=temperature, valid=counted)


class TeacherFree(LossPart):
    """KL to a virtual teacher made of the hard label; see `teacher_free`."""

    kind: Literal["teacher-free"] = "teacher-free"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(teacher_free)
    shorthand: ClassVar[str | None] = "correct"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    text: ClassVar[str] = (
        "{T2}sum p (ln p - ln q), p = softmax(ln u{T}), q = softmax(student{T}), "
        "u = {correct} for the true class, the rest spread over the others"
    )

    correct: float = Field(0.99, gt=0, lt=1)
