from __future__ import annotations

from typing import ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from softlabels.core.config import Part
from softlabels.losses._rows import Given, centred, pair_of

_LEAST = 1e-12


def relational_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Relational distillation of distances: rows lie as far from one another as the teacher's do.

    The mean over the ordered pairs i != j of valid rows of ``huber(d^s_ij / m^s - d^t_ij / m^t)``: d the Euclidean
    distance of two rows of centred logits, m its mean over the same pairs, huber(x) = x^2 / 2 for abs x <= 1, else
    abs x - 1/2. Logits are centred (less their mean over the classes) because they are known up to a constant per row.
    The scale of the logits changes nothing. Takes time batch^2 * classes.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes), finite; takes no gradient.
        temperature: changes nothing.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. Fewer than two count: 0, with its graph.

    Source: Park et al. 2019, "Relational knowledge distillation", arXiv:1904.05068 (where it is a sum over the pairs).
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    pairs = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    if valid is not None:
        pairs = pairs & valid[:, None] & valid[None, :]
    count = pairs.sum().clamp(min=1)
    errors = F.smooth_l1_loss(_potential(student, pairs, count), _potential(teacher, pairs, count), reduction="none")
    return errors.where(pairs, 0.0).sum() / count


def _potential(logits: Tensor, pairs: Tensor, count: Tensor) -> Tensor:
    logits = centred(logits)
    # Differences, not norms and products: equal rows are then exactly 0 apart, and the gradient there is 0, not NaN.
    distance = torch.cdist(logits, logits, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.where(pairs, 0.0).sum() / count
    return distance / mean.clamp(min=_LEAST)


class RelationalDistance(Part):
    """`relational_distance` as a part."""

    kind: Literal["relational-distance"] = "relational-distance"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return relational_distance(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:  # noqa: ARG002
        return (
            "mean over pairs of rows of huber(student's distance / its mean - teacher's distance / its mean), "
            "centred logits"
        )
