"""Losses between a student's and a teacher's logits, blends of several teachers, and the objective made of them.

One convention throughout: natural logarithm; forward direction KL(teacher || student); the mean over the valid rows
of the sum over classes; times T^2 always, for losses on softened probabilities; log-softmax in fp32, above T = 20
in fp64. A teacher's logits are known up to a constant per row, so every loss is blind to one. A loss knows no teachers,
a blend rolls no dice of its own.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, Unpack, runtime_checkable

from torch import Tensor

from softlabels.core import tables
from softlabels.core.config import Table
from softlabels.core.philox import Words
from softlabels.losses._ce import soft_cross_entropy, sparse_soft_cross_entropy
from softlabels.losses._confidence_penalty import confidence_penalty
from softlabels.losses._dist import dist
from softlabels.losses._dkd import decoupled_kd
from softlabels.losses._hard import hard_cross_entropy
from softlabels.losses._jeffreys import jeffreys, sparse_jeffreys
from softlabels.losses._js import js_divergence, sparse_js_divergence
from softlabels.losses._kl import kl_divergence, sparse_kl_divergence
from softlabels.losses._l1 import logit_l1
from softlabels.losses._mse import logit_mse
from softlabels.losses._objective import Objective, Term
from softlabels.losses._relational_angle import relational_angle
from softlabels.losses._relational_distance import relational_distance
from softlabels.losses._rows import Given
from softlabels.losses._sparse import SparseLogits
from softlabels.losses._spherical import spherical_kd
from softlabels.losses._standardized import standardized_kl
from softlabels.losses._teacher_free import teacher_free
from softlabels.losses._wsl import weighted_soft_labels

__all__ = [
    "BLENDS",
    "LOSSES",
    "Blend",
    "Loss",
    "Objective",
    "SparseLogits",
    "SparseLoss",
    "Term",
    "confidence_penalty",
    "decoupled_kd",
    "dist",
    "hard_cross_entropy",
    "jeffreys",
    "js_divergence",
    "kl_divergence",
    "logit_l1",
    "logit_mse",
    "relational_angle",
    "relational_distance",
    "soft_cross_entropy",
    "sparse_jeffreys",
    "sparse_js_divergence",
    "sparse_kl_divergence",
    "sparse_soft_cross_entropy",
    "spherical_kd",
    "standardized_kl",
    "teacher_free",
    "weighted_soft_labels",
]


@runtime_checkable
class Loss(Protocol):
    """A frozen part that measures how far a student is from its target."""

    needs_teacher: ClassVar[bool]
    """Whether it looks at `teacher_logits`; if not, they may be None."""
    needs_labels: ClassVar[bool]
    """Whether it looks at `labels`; if so, it leaves out rows with label -1."""
    needs_logits: ClassVar[bool]
    """Whether it looks at the teacher's logits themselves, or at logarithms of its probabilities with a weight of their
    own: what is said of a class of probability 0 then counts, which labels without logits leave open."""

    @property
    def kind(self) -> str: ...

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        """A scalar from logits (batch, classes); keywords `temperature`, `labels` (batch,), `valid` bool (batch,)."""

    def formula(self, temperature: float) -> str:
        """What one row contributes, in one line, with the numbers filled in."""


@runtime_checkable
class SparseLoss(Loss, Protocol):
    """A loss that is exact on sparse targets too, without a (batch, classes) tensor of theirs."""

    def sparse(
        self,
        student_logits: Tensor,
        ids: Tensor,
        values: Tensor,
        tail: Tensor,
        *,
        temperature: float = 1.0,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The same scalar when the teacher's logits are `values` at `ids` (batch, K) and `tail` (batch,) elsewhere."""


class Blend(Protocol):
    """A frozen part that makes one target of several teachers."""

    samples: ClassVar[bool]
    """Whether it draws, and so needs `words`."""
    needs_logits: ClassVar[bool]
    """Whether it adds up the logits of several teachers, and not their probabilities."""

    @property
    def kind(self) -> str: ...

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:
        """Logits (batch, classes) whose softmax at `temperature` is the target, from (teachers, batch, classes).

        One teacher's are returned as they are. `words`: uint64 (batch,), one random word per row.
        """

    def formula(self, temperature: float) -> str:
        """The target in one line."""


LOSSES: Table[Loss] = tables.LOSSES

BLENDS: Table[Blend] = tables.BLENDS
