"""Targets that name K classes and give every other class one logit: exact sums without a (batch, classes) target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from softlabels.errors import ConfigError
from softlabels.losses._rows import FLOOR, rows_of, softened


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


def sparse_pair(
    student_logits: Tensor, ids: Tensor, values: Tensor, tail: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student rows (batch, classes), ids (batch, K), values (batch, K) and tail (batch, 1), of one float dtype."""
    student = rows_of(student_logits, valid)
    if ids.ndim != 2 or values.shape != ids.shape or tail.shape != ids.shape[:1] or len(ids) != len(student):
        raise ConfigError(
            f"sparse targets of {len(student)} rows need ids and values of shape ({len(student)}, K) and a tail of "
            f"shape ({len(student)},), got {tuple(ids.shape)}, {tuple(values.shape)} and {tuple(tail.shape)}"
        )
    values, tail = values.detach().to(student.dtype), tail.detach().to(student.dtype)[:, None]
    if valid is not None:
        values, tail = values.where(valid[:, None], 0.0), tail.where(valid[:, None], 0.0)
    return student, ids.long(), values, tail


def sparse_softened_pair(
    student_logits: Tensor, ids: Tensor, values: Tensor, tail: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ln q (batch, classes) of the student; ids (batch, K); ln p of the classes named (batch, K) and of each other."""
    student, ids, values, tail = sparse_pair(student_logits, ids, values, tail, valid)
    log_q = softened(student, temperature)
    values, tail = values / temperature, tail / temperature
    others = student.shape[1] - ids.shape[1]
    masses = [values, tail + math.log(others)] if others > 0 else [values]
    log_total = torch.cat(masses, -1).logsumexp(-1, keepdim=True)
    return log_q, ids, (values - log_total).clamp(min=FLOOR), (tail - log_total).clamp(min=FLOOR)


def sum_over_classes(
    term: Callable[[Tensor, Tensor], Tensor], student: Tensor, ids: Tensor, named: Tensor, other: Tensor
) -> Tensor:
    """Sum over the classes of term(student, teacher) per row, the teacher being `named` at `ids`, `other` elsewhere.

    The terms of the classes named are put in place of what `other` gives there, not added and taken away again:
    that would lose all figures when they are large.
    """
    return term(student, other).scatter(1, ids, term(student.gather(1, ids), named)).sum(-1)
