"""Targets that name K classes and give every other class one logit: exact sums without a (batch, classes) target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from softlabels.errors import ConfigError
from softlabels.losses._rows import FLOOR, check_valid, rows_of, softened, widened


class SparseLogits(Protocol):
    """Logits (n, classes) of which K per row are named and all others are equal."""

    @property
    def ids(self) -> Tensor:
        """Classes named: integers (n, K), distinct within a row."""

    @property
    def logits(self) -> Tensor:
        """Their logits: float (n, K)."""

    @property
    def tail_logit(self) -> Tensor:
        """The logit of each other class: float (n,); -inf gives them nothing."""


PerRow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Losses (n,) of rows: of student logits (n, classes), ids (n, K), values (n, K) and tail (n, 1), of one dtype."""

_AT_ONCE = {"cpu": 1 << 18}
_AT_ONCE_ELSEWHERE = 1 << 23
"""Student logits of a piece: what a core's cache holds; on a GPU more, since each piece costs its launches."""


def sparse_rows(
    per_row: PerRow, student_logits: Tensor, ids: Tensor, values: Tensor, tail: Tensor, valid: Tensor | None
) -> Tensor:
    """What `per_row` makes of each row, (batch,), computed piece by piece.

    Of large batches nothing of the shape (batch, classes) is kept but the gradient: a piece's values are made once more
    in the backward pass (which can itself not be differentiated).
    """
    if student_logits.ndim != 2:
        raise ConfigError(f"a loss takes logits of shape (batch, classes), got {tuple(student_logits.shape)}")
    rows, classes = student_logits.shape
    if ids.ndim != 2 or values.shape != ids.shape or tail.shape != ids.shape[:1] or len(ids) != rows:
        raise ConfigError(
            f"sparse targets of {rows} rows need ids and values of shape ({rows}, K) and a tail of "
            f"shape ({rows},), got {tuple(ids.shape)}, {tuple(values.shape)} and {tuple(tail.shape)}"
        )
    check_valid(valid, rows)
    step = max(1, _AT_ONCE.get(student_logits.device.type, _AT_ONCE_ELSEWHERE) // max(classes, 1))
    target = (ids, values.detach(), tail.detach(), valid)
    if rows <= step:
        return _piece(per_row, student_logits, *target)
    made: Tensor = _InPieces.apply(student_logits, per_row, target, step)
    return made


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, per_row: PerRow, target: tuple[Tensor | None, ...], step: int) -> Tensor:
        ctx.save_for_backward(student, *target)
        ctx.per_row, ctx.step = per_row, step
        return torch.cat([_piece(per_row, *part) for part in _parts(step, student, *target)])

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
                value = _piece(ctx.per_row, rows, *part[1:])
            into.copy_(torch.autograd.grad(value, rows, slope)[0])
        return gradient, None, None, None


def _parts(step: int, student: Tensor, *target: Tensor | None) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(student), step):
        yield tuple(None if each is None else each[start : start + step] for each in (student, *target))


def _piece(
    per_row: PerRow, student_logits: Tensor, ids: Tensor, values: Tensor, tail: Tensor, valid: Tensor | None
) -> Tensor:
    student = rows_of(student_logits, valid)
    values, tail = values.to(student.dtype), tail.to(student.dtype)[:, None]
    if valid is not None:
        values, tail = values.where(valid[:, None], 0.0), tail.where(valid[:, None], 0.0)
    return per_row(student, ids.long(), values, tail)


def sparse_softened(
    student: Tensor, ids: Tensor, values: Tensor, tail: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ln q (n, classes) of the student, ln p of the classes named (n, K) and of each other (n, 1)."""
    log_q = softened(student, temperature)
    values, tail = (widened(each, temperature) / temperature for each in (values, tail))
    others = student.shape[1] - ids.shape[1]
    masses = [values, tail + math.log(others)] if others > 0 else [values]
    log_total = torch.cat(masses, -1).logsumexp(-1, keepdim=True)
    return log_q, (values - log_total).clamp(min=FLOOR), (tail - log_total).clamp(min=FLOOR)


def sum_over_classes(
    term: Callable[[Tensor, Tensor], Tensor], student: Tensor, ids: Tensor, named: Tensor, other: Tensor
) -> Tensor:
    """Sum over the classes of term(student, teacher) per row, the teacher being `named` at `ids`, `other` elsewhere.

    The terms of the classes named are put in place of what `other` gives there, not added and taken away again:
    that would lose all figures when they are large.
    """
    return term(student, other).scatter(1, ids, term(student.gather(1, ids), named)).sum(-1)
