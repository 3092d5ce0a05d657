from __future__ import annotations

import math
from typing import ClassVar, Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from softlabels.core.config import Part
from softlabels.errors import ConfigError
from softlabels.losses._kl import sparse_kl_divergence
from softlabels.losses._rows import Given, number, squared, true_class


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
    The target is never built as (batch, classes).

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: not used.
        temperature: T > 0. (The paper: 20.)
        labels: integers (batch,); rows with -1 are left out.
        valid: bool (batch,), further rows to leave out where False; None: none. No row counts: 0, with its graph.
        correct: the probability of the true class, between 0 and 1. (The paper: at least 0.9.)

    Raises:
        ConfigError: there are no labels, or `correct` is not between 0 and 1.

    Source: Yuan et al. 2020, "Revisiting knowledge distillation via label smoothing regularization", arXiv:1909.11723,
    Tf-KD_reg. (The authors' script softens only the teacher's side, and u itself, not ln u.)
    """
    if not 0 < correct < 1:
        raise ConfigError(f"teacher_free: correct must lie between 0 and 1, got {correct}")
    labels, counted = true_class(labels, valid, "teacher_free")
    other = (1 - correct) / max(student_logits.shape[-1] - 1, 1)
    # fp64 so that a student in half precision does not round ln 0.99.
    value = torch.full((len(labels), 1), math.log(correct), dtype=torch.float64, device=labels.device)
    tail = torch.full((len(labels),), math.log(other), dtype=torch.float64, device=labels.device)
    return sparse_kl_divergence(student_logits, labels[:, None], value, tail, temperature=temperature, valid=counted)


class TeacherFree(Part):
    """`teacher_free` as a part."""

    kind: Literal["teacher-free"] = "teacher-free"
    shorthand: ClassVar[str | None] = "correct"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False

    correct: float = Field(0.99, gt=0, lt=1)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, **given: Unpack[Given]) -> Tensor:
        return teacher_free(student_logits, teacher_logits, **given, correct=self.correct)

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {number(temperature)}"
        return (
            f"{squared(temperature)}sum p (ln p - ln q), p = softmax(ln u{over}), q = softmax(student{over}), "
            f"u = {number(self.correct)} for the true class, the rest spread over the others"
        )
