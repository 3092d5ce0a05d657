"""What losses do around their formulas: dtype, mask, temperature, sparse logits, T^2 and the mean over valid rows.

`mean_divergence` is all of it for a loss that is a sum over the classes. Other losses take their rows from
`student_rows`, `pair_of` or `log_softmaxes`, and end in `mean_over`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from softlabels.core.types import SparseLogits
from softlabels.errors import ConfigError

FLOOR = -1e4
"""Least log-probability of a teacher. A logit of -inf (a one-hot teacher given as ln 0) then weighs exactly 0 and
makes no 0 * inf; every finite logit that a network puts out lies far above."""

MOST_IN_FP32 = 20.0
"""Above this temperature losses are computed in fp64: T^2 multiplies a divergence that falls with T^2, so that at T of
1,000 the rounding of fp32 logarithms is larger than the loss itself."""

_AT_ONCE = {"cpu": 1 << 18}
_AT_ONCE_ELSEWHERE = 1 << 23
"""Student logits of a piece: what a core's cache holds; on a GPU more, since each piece costs its launches."""

_LEAST = 1e-7
"""Added to a deviation that is divided by: a constant row becomes zeros."""

Terms = Callable[[Tensor, Tensor], Tensor]
"""What each class adds to a row's loss, of ln q (student) and ln p (teacher)."""

SparseRows = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Losses (n,) of ln q (n, classes), the ids of the classes named (n, K), their ln p (n, K) and each other's (n, 1)."""


def mean_divergence(
    terms: Terms,
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float,
    valid: Tensor | None,
    sparse_rows: SparseRows | None = None,
) -> Tensor:
    """T^2 times the mean over the valid rows of the sum over the classes of ``terms(ln q, ln p)``.

    Sparse logits give the same value without a tensor of the teacher's of shape (batch, classes), by `sparse_rows`
    where that is given because it is faster than `terms`.
    """
    if isinstance(teacher_logits, SparseLogits):
        by_rows = sparse_rows or functools.partial(_sum_of_terms, terms)
        losses = _sparse_losses(by_rows, student_logits, teacher_logits, temperature, valid)
    else:
        losses = terms(*log_softmaxes(student_logits, teacher_logits, temperature, valid)).sum(-1)
    return mean_over(losses, valid, temperature)


def student_rows(student_logits: Tensor, valid: Tensor | None) -> Tensor:
    """Student logits (batch, classes) in fp32, or in fp64 if they came so; rows that do not count are zeros.

    Such rows are set to 0 before anything is computed: not even their NaN reaches a value or a gradient.

    Raises:
        ConfigError: the logits or the mask have another shape or dtype.
    """
    _check(student_logits, None, valid)
    return _masked(student_logits.to(torch.promote_types(student_logits.dtype, torch.float32)), valid)


def pair_of(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Student and teacher logits as `student_rows` makes them, of one dtype; the teacher's take no gradient."""
    _check(student_logits, teacher_logits, valid)
    student = student_rows(student_logits, valid)
    return student, _masked(teacher_logits.detach().to(student.dtype), valid)


def log_softmaxes(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(ln q, ln p) of student and teacher at `temperature`, each (batch, classes)."""
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return log_softmax(student, temperature), log_softmax(teacher, temperature).clamp(min=FLOOR)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """ln softmax(logits / temperature) of rows that are fp32 already; in fp64 above `MOST_IN_FP32`."""
    if not temperature > 0:
        raise ConfigError(f"a temperature must be greater than 0, got {temperature}")
    if math.isinf(temperature):
        raise ConfigError("this loss has no limit at an infinite temperature; choose kl, or a finite temperature")
    return _divided(logits, temperature).log_softmax(-1)


def centred(logits: Tensor) -> Tensor:
    """Rows less their mean over the classes: logits are known up to a constant per row."""
    return logits - logits.mean(-1, keepdim=True)


def standardised(logits: Tensor) -> Tensor:
    """Rows less their mean over the K classes, divided by their deviation (with K - 1, as ``torch.std``) plus 1e-7."""
    logits = centred(logits)
    # A norm has gradient 0 at a row of zeros, where that of a square root would be NaN.
    deviation: Tensor = vector_norm(logits, dim=-1, keepdim=True) / max(logits.shape[-1] - 1, 1) ** 0.5
    return logits / (deviation + _LEAST)


def true_class(labels: Tensor | None, valid: Tensor | None, loss: str) -> tuple[Tensor, Tensor]:
    """Labels int64 (batch,) with 0 in place of -1, and the rows that count: valid ones that have a label.

    Raises:
        ConfigError: there are no labels; the message names the loss.
    """
    if labels is None:
        raise ConfigError(f"{loss} needs the true classes: give labels, or choose a loss without them such as kl")
    if labels.is_floating_point() or labels.ndim != 1:
        raise ConfigError(
            f"labels of {loss} are class numbers, int64 (batch,), not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    known = labels >= 0
    return labels.long().clamp(min=0), known if valid is None else known & valid


def mean_over(values: Tensor, valid: Tensor | None, temperature: float = 1.0) -> Tensor:
    """T^2 times the mean of values (batch,) over the rows that count; 0 (with its graph) when none does."""
    if valid is None:
        mean = values.sum() / max(len(values), 1)
    else:
        # The count stays a tensor, so that nothing waits for a GPU.
        mean = values.where(valid, 0.0).sum() / valid.sum().clamp(min=1)
    return temperature**2 * mean


def _check(student: Tensor, teacher: Tensor | SparseLogits | None, valid: Tensor | None) -> None:
    if student.ndim != 2:
        raise ConfigError(f"a loss takes logits of shape (batch, classes), got {tuple(student.shape)}")
    if teacher is not None and teacher.shape != student.shape:
        raise ConfigError(
            f"student logits have shape {tuple(student.shape)}, teacher logits {tuple(teacher.shape)}; "
            "both must be (batch, classes) of the same images and classes"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != student.shape[:1]):
        raise ConfigError(
            f"valid must be bool of shape ({len(student)},), one per row of the logits, "
            f"got {valid.dtype} of shape {tuple(valid.shape)}"
        )


def _masked(rows: Tensor, valid: Tensor | None) -> Tensor:
    return rows if valid is None else rows.where(valid[:, None], 0.0)


def _divided(logits: Tensor, temperature: float) -> Tensor:
    # Apple's GPUs have no fp64.
    wide = temperature > MOST_IN_FP32 and logits.device.type != "mps"
    return (logits.double() if wide else logits) / temperature


def _sum_of_terms(terms: Terms, log_q: Tensor, ids: Tensor, log_p: Tensor, log_tail: Tensor) -> Tensor:
    """The terms of the classes named are put in place of the tail's there, not added and taken away again: that would
    lose all figures when they are large."""
    return terms(log_q, log_tail).scatter(1, ids, terms(log_q.gather(1, ids), log_p)).sum(-1)


def _sparse_losses(
    by_rows: SparseRows, student_logits: Tensor, teacher: SparseLogits, temperature: float, valid: Tensor | None
) -> Tensor:
    """What `by_rows` makes of each row, (batch,), computed piece by piece.

    Of large batches nothing of the shape (batch, classes) is kept but the gradient: a piece's values are computed again
    in the backward pass (which can itself not be differentiated).
    """
    _check(student_logits, teacher, valid)
    step = _rows_at_once(student_logits)
    target = (teacher.ids, teacher.logits.detach(), teacher.tail.detach(), valid)
    piece = functools.partial(_piece, by_rows, temperature)
    if len(student_logits) <= step:
        return piece(student_logits, *target)
    losses: Tensor = _InPieces.apply(student_logits, piece, target, step)
    return losses


def _piece(
    by_rows: SparseRows,
    temperature: float,
    student_logits: Tensor,
    ids: Tensor,
    logits: Tensor,
    tail: Tensor,
    valid: Tensor | None,
) -> Tensor:
    student = student_rows(student_logits, valid)
    log_q = log_softmax(student, temperature)
    return by_rows(log_q, *sparse_log_p(student, temperature, ids, logits, tail, valid))


def sparse_log_p(
    student: Tensor, temperature: float, ids: Tensor, logits: Tensor, tail: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of sparse logits and a student's rows: the ids int64 (n, K), ln p of their classes, and of each other (n, 1)."""
    named, other = (_divided(_masked(each.to(student.dtype), valid), temperature) for each in (logits, tail[:, None]))
    others = student.shape[1] - ids.shape[1]
    masses = [named, other + math.log(others)] if others > 0 else [named]
    log_total = torch.cat(masses, -1).logsumexp(-1, keepdim=True)
    log_p, log_tail = ((each - log_total).clamp(min=FLOOR) for each in (named, other))
    return ids.long(), log_p, log_tail


def weighted_sum(values: Tensor, ids: Tensor, log_p: Tensor, log_tail: Tensor) -> Tensor:
    """``sum_k p_k values_k`` of values (n, classes), with the p of `sparse_log_p`: (n,)."""
    named = (log_p.exp() * values.gather(1, ids)).sum(-1)
    return named + log_tail.squeeze(-1).exp() * values.scatter(1, ids, 0.0).sum(-1)


def pieces(
    student: Tensor, target: Tensor | SparseLogits | None, valid: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | SparseLogits | None, Tensor | None]]:
    """Student rows with their targets and mask, as many at once as a sparse loss computes."""
    _check(student, target, valid)
    step = _rows_at_once(student)
    for start in range(0, len(student), step):
        some = slice(start, start + step)
        if isinstance(target, SparseLogits):
            cut: Tensor | SparseLogits | None = target.map(lambda each, some=some: each[some])  # type: ignore[misc]
        else:
            cut = None if target is None else target[some]
        yield student[some], cut, None if valid is None else valid[some]


def _rows_at_once(student: Tensor) -> int:
    return max(1, _AT_ONCE.get(student.device.type, _AT_ONCE_ELSEWHERE) // max(student.shape[1], 1))


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, piece: Any, target: tuple[Tensor | None, ...], step: int) -> Tensor:
        ctx.save_for_backward(student, *target)
        ctx.piece, ctx.step = piece, step
        return torch.cat([piece(*part) for part in _parts(step, student, *target)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        student, *target = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for part, slope, into in zip(
            _parts(ctx.step, student, *target), slopes[0].split(ctx.step), gradient.split(ctx.step), strict=True
        ):
            with torch.enable_grad():
                rows = part[0].detach().requires_grad_()
                value = ctx.piece(rows, *part[1:])
            into.copy_(torch.autograd.grad(value, rows, slope)[0])
        return gradient, None, None, None


def _parts(step: int, student: Tensor, *target: Tensor | None) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(student), step):
        yield tuple(None if each is None else each[start : start + step] for each in (student, *target))
