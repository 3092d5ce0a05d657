"""The temperature of the student where it is not the teacher's: fixed, a share of the teacher's, or fitted to a batch.

A loss at two temperatures is computed as one at the teacher's: ``student / T_s = (student / r) / T``, with the ratio
``r = T_s / T``. So every path of a loss, dense, sparse or in pieces, serves for both.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from softlabels.core.types import SparseLogits
from softlabels.errors import ConfigError
from softlabels.losses._rows import FLOOR, log_softmax, pair_of, pieces, sparse_log_p, student_rows, weighted_sum

LEAST_RATIO = 0.01
"""Least fitted temperature of the student, over the teacher's; the greatest is 1."""

_STEPS = 20
"""Most steps of a fit. A handful reaches fp64's figures on nearly all batches; on a GPU all are made, so that nothing
waits for it."""

StudentTemperature = float | Literal["fit"] | None
"""Of a loss: a number, `fit`, or None for the teacher's."""


def own_temperature(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float,
    valid: Tensor | None,
    student_temperature: StudentTemperature,
    student_ratio: float | None,
) -> tuple[Tensor, Tensor | float]:
    """Student logits divided by r = T_s / T, and r: T^2 times r is T * T_s. Untouched, and 1, without either setting.

    Raises:
        ConfigError: both are given, one is no number above 0, or `temperature` is none.
    """
    if student_temperature is None and student_ratio is None:
        return student_logits, 1.0
    if student_temperature is not None and student_ratio is not None:
        raise ConfigError("student_temperature and student_ratio exclude each other; give one")
    if not 0 < temperature < math.inf:
        raise ConfigError(f"a student has its own temperature beside a number of the teacher's, not {temperature}")
    student = student_rows(student_logits, valid)
    if isinstance(student_temperature, str):
        if student_temperature != "fit":
            raise ConfigError(f"student_temperature is a number above 0 or 'fit', not {student_temperature!r}")
        fitted = fitted_ratio(student.detach(), teacher_logits, temperature, valid)
        return student / fitted, fitted
    given = student_ratio if student_temperature is None else student_temperature
    if given is None or not 0 < given < math.inf:
        name = "student_ratio" if student_temperature is None else "student_temperature"
        raise ConfigError(f"{name} is a number above 0, not {given}")
    ratio = given if student_temperature is None else given / temperature
    return student / ratio, ratio


@torch.no_grad()
def fitted_ratio(
    student: Tensor, teacher_logits: Tensor | SparseLogits, temperature: float, valid: Tensor | None
) -> Tensor:
    """The r from `LEAST_RATIO` to 1 for which the mean of KL(teacher || student) is least, the student at r * T.

    ``KL(softmax(teacher / T) || softmax(student / (r T)))`` is convex in 1 / r. Its slope, times T, is the mean over
    the rows of ``E_q[student] - E_p[student]``, which rises with 1 / r; r is its zero, or the end that is nearest. The
    zero is found in ln(1 / r) by Newton's method with a bracket. It needs p only in ``E_p[student]``, once.

    Args:
        student: rows (batch, classes) in fp32 or fp64, as `student_rows` makes them.

    Returns:
        A scalar of the student's dtype; 1 where the slope is 0 everywhere, as of a student of constant rows.
    """
    # Rows that do not count are constant: both expectations are 0. Apple's GPUs have no fp64.
    wide = torch.float32 if student.device.type == "mps" else torch.float64
    wanted = student.new_zeros((), dtype=wide)
    for rows, target, mask in pieces(student, teacher_logits, valid):
        wanted = wanted + _expected(_below_top(rows.to(wide)), target, temperature, mask).sum()

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        """That of the KL, times T, at r = exp(-x); and its own slope in x."""
        inverse, total, spread = x.exp() / temperature, torch.zeros_like(x), torch.zeros_like(x)
        for rows, _, _ in pieces(student, None, None):
            values = _below_top(rows.to(wide))
            q = (values * inverse).softmax(-1)
            mean = (q * values).sum(-1, keepdim=True)
            total, spread = total + mean.sum(), spread + (q * (values - mean).square()).sum()
        return total - wanted, inverse * spread

    low = torch.zeros_like(wanted)
    high = torch.full_like(wanted, -math.log(LEAST_RATIO))
    at_low, bend = slope(low)
    at_high, _ = slope(high)
    end = torch.where(at_low >= 0, low, high)
    within = (at_low < 0) & (at_high > 0)
    left, right, before, last = low, high, high, high
    x = _next(low, at_low, bend, left, right, before)
    free = student.device.type == "cpu"  # to look at a value costs nothing there
    for _ in range(0 if free and not within else _STEPS):
        value, bend = slope(x)
        left, right = torch.where(value < 0, x, left), torch.where(value < 0, right, x)
        following = _next(x, value, bend, left, right, before)
        if free and following == x:
            break
        before, last, x = last, (following - x).abs(), following
    return torch.where(within, x, end).neg().exp().to(student.dtype)


def _next(x: Tensor, value: Tensor, bend: Tensor, left: Tensor, right: Tensor, before: Tensor) -> Tensor:
    """Newton's step, or the middle of the bracket where it leads outside or is not half of the one `before` the last.

    Without the second condition it may creep along one side of the bracket. At the zero a step is rounding, which may
    lead outside: `x` stays.
    """
    figures = torch.finfo(x.dtype)
    newton = x - value / bend.clamp(min=figures.tiny)
    moved = (newton - x).abs()
    good = (newton >= left) & (newton <= right) & (moved <= before / 2)
    return torch.where(moved <= 64 * figures.eps, x, torch.where(good, newton, (left + right) / 2))


def _below_top(rows: Tensor) -> Tensor:
    """Rows less their highest value: a constant per row changes no softmax, and sums lose fewer figures."""
    return rows - rows.amax(-1, keepdim=True)


def _expected(values: Tensor, target: Tensor | SparseLogits | None, temperature: float, valid: Tensor | None) -> Tensor:
    """The mean of each row of values under the teacher's softmax at `temperature`, (batch,)."""
    if isinstance(target, SparseLogits):
        parts = target.ids, target.logits.detach(), target.tail.detach(), valid
        return weighted_sum(values, *sparse_log_p(values, temperature, *parts))
    assert target is not None
    _, teacher = pair_of(values, target, valid)
    return (log_softmax(teacher, temperature).clamp(min=FLOOR).exp() * values).sum(-1)
