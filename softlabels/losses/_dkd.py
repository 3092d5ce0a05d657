from __future__ import annotations

from typing import ClassVar, Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, mean_over, number, softened_pair, softmaxes, squared, true_class


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation: the true class against the rest, and the rest among itself, each with its own weight.

    ``T^2 * (alpha * TCKD + beta * NCKD)``, p = softmax(teacher / T), q = softmax(student / T), y the true class:

    - ``TCKD = p_y ln(p_y / q_y) + (1 - p_y) ln((1 - p_y) / (1 - q_y))``
    - ``NCKD = sum over k != y of P_k ln(P_k / Q_k)``, P_k = p_k / (1 - p_y), Q_k = q_k / (1 - q_y)

    KL(p || q) = TCKD + (1 - p_y) NCKD; a beta above 1 - p_y is what sets the "dark knowledge" of sure rows free.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes); takes no gradient.
        temperature: T > 0. (The authors' settings: 4 on CIFAR-100, 1 on ImageNet.)
        labels: integers (batch,); rows with -1 are left out.
        valid: bool (batch,), further rows to leave out where False; None: none. No row counts: 0, with its graph.
        alpha: weight of TCKD.
        beta: weight of NCKD. (The authors' settings: 8 on CIFAR-100, 0.5 on ImageNet.)

    Raises:
        ConfigError: there are no labels.

    Source: Zhao et al. 2022, "Decoupled knowledge distillation", arXiv:2203.08679.
    """
    labels, counted = true_class(labels, valid, "decoupled_kd")
    log_q, log_p = softened_pair(student_logits, teacher_logits, temperature, counted)
    q_true, q_rest, q_others = _split(log_q, labels)
    p_true, p_rest, p_others = _split(log_p, labels)
    target = p_true.exp() * (p_true - q_true) + p_rest.exp() * (p_rest - q_rest)
    others = (p_others.exp() * (p_others - q_others)).sum(-1)
    return temperature**2 * mean_over(alpha * target + beta * others, counted)


def _split(log_probability: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ln of the true class's probability (batch,), of all others' together (batch,), of each among the others."""
    true = labels[:, None]
    # The least finite number and not -inf, so that the true class's own term among the others is 0 * 0, not 0 * NaN.
    others = log_probability.scatter(1, true, torch.finfo(log_probability.dtype).min)
    rest = others.logsumexp(-1, keepdim=True)
    return log_probability.gather(1, true).squeeze(-1), rest.squeeze(-1), others - rest


class DecoupledKD(Part):
    """`decoupled_kd` as a part."""

    kind: Literal["dkd"] = "dkd"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = True

    alpha: float = Field(1.0, ge=0, allow_inf_nan=False)
    beta: float = Field(8.0, ge=0, allow_inf_nan=False)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return decoupled_kd(student_logits, teacher_logits, **given, alpha=self.alpha, beta=self.beta)

    def formula(self, temperature: float) -> str:
        return (
            f"{squared(temperature)}({number(self.alpha)} * KL(true class against the rest) + {number(self.beta)} * "
            f"KL(among the other classes)), {softmaxes(temperature)}"
        )
