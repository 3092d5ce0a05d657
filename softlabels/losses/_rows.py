"""What losses do first and last: rows in fp32, the rows that count, softened log-probabilities, the mean over rows."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from softlabels.errors import ConfigError

FLOOR = -1e4
"""Least log-probability of a teacher. A logit of -inf (a one-hot teacher given as ln 0) then weighs exactly 0 and
makes no 0 * inf; every finite logit that a network puts out lies far above."""


MOST_IN_FP32 = 20.0
"""Above this temperature losses are computed in fp64: T^2 multiplies a divergence that falls with T^2, so that at T of
1,000 the rounding of fp32 logarithms is larger than the loss itself."""


class Given(TypedDict, total=False):
    """The keywords that every loss takes."""

    temperature: float
    labels: Tensor | None
    valid: Tensor | None


def rows_of(student_logits: Tensor, valid: Tensor | None) -> Tensor:
    """Student logits (batch, classes) in fp32, or in fp64 if they came so; rows that do not count are zeros.

    Such rows are cut off before anything is computed: not even their NaN reaches a value or a gradient.
    """
    if student_logits.ndim != 2:
        raise ConfigError(f"a loss takes logits of shape (batch, classes), got {tuple(student_logits.shape)}")
    return _counted(student_logits.to(torch.promote_types(student_logits.dtype, torch.float32)), valid)


def pair_of(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Student and teacher logits as `rows_of` makes them, of one dtype; the teacher's take no gradient."""
    student = rows_of(student_logits, valid)
    if teacher_logits.shape != student.shape:
        raise ConfigError(
            f"student logits have shape {tuple(student.shape)}, teacher logits {tuple(teacher_logits.shape)}; "
            "both must be (batch, classes) of the same images and classes"
        )
    return student, _counted(teacher_logits.detach().to(student.dtype), valid)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """ln softmax(logits / temperature) of rows that are fp32 already; in fp64 above `MOST_IN_FP32`."""
    if not temperature > 0:
        raise ConfigError(f"a temperature must be greater than 0, got {temperature}")
    return (widened(logits, temperature) / temperature).log_softmax(-1)


def widened(logits: Tensor, temperature: float) -> Tensor:
    """`logits` in the precision that a loss at `temperature` is computed in."""
    # Apple's GPUs have no fp64.
    return logits.double() if temperature > MOST_IN_FP32 and logits.device.type != "mps" else logits


def softened_pair(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(ln q, ln p) of student and teacher at `temperature`, each (batch, classes)."""
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return softened(student, temperature), softened(teacher, temperature).clamp(min=FLOOR)


def centred(logits: Tensor) -> Tensor:
    """Rows less their mean over the classes: logits are known up to a constant per row."""
    return logits - logits.mean(-1, keepdim=True)


def true_class(labels: Tensor | None, valid: Tensor | None, loss: str) -> tuple[Tensor, Tensor]:
    """Labels int64 (batch,) with 0 in place of -1, and the rows that count: valid ones that have a label.

    Raises:
        ConfigError: there are no labels; the message names the loss.
    """
    if labels is None:
        raise ConfigError(f"{loss} needs the true classes: give labels, or choose a loss without them such as kl")
    known = labels >= 0
    return labels.long().clamp(min=0), known if valid is None else known & valid


def mean_over(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of values (batch,) over the rows that count; 0 (with its graph) when none does."""
    if valid is None:
        return values.sum() / max(len(values), 1)
    # A device never waits here: the count stays a tensor.
    return values.where(valid, 0.0).sum() / valid.sum().clamp(min=1)


def number(value: float) -> str:
    """A number as a formula shows it."""
    return f"{value:.6g}"


def softmaxes(temperature: float) -> str:
    """Where p and q of a formula come from."""
    over = "" if temperature == 1 else f" / {number(temperature)}"
    return f"p = softmax(teacher{over}), q = softmax(student{over})"


def squared(temperature: float) -> str:
    """The factor T^2 as a formula shows it, with a multiplication sign, or nothing at T = 1."""
    return "" if temperature == 1 else f"{number(temperature**2)} * "


def check_valid(valid: Tensor | None, rows: int) -> None:
    """Raises ConfigError for a mask that is not bool (rows,)."""
    if valid is not None and (valid.dtype != torch.bool or valid.shape != (rows,)):
        raise ConfigError(
            f"valid must be bool of shape ({rows},), one per row of the logits, "
            f"got {valid.dtype} of shape {tuple(valid.shape)}"
        )


def _counted(logits: Tensor, valid: Tensor | None) -> Tensor:
    check_valid(valid, len(logits))
    return logits if valid is None else logits.where(valid[:, None], 0.0)
