from __future__ import annotations

from typing import ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softlabels.core.config import Part
from softlabels.losses._rows import Given, centred, pair_of

_AT_ONCE = 1 << 21
"""Angles held at a time (some 100 MB): their number grows with the cube of the batch."""


def relational_angle(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Relational distillation of angles: any three rows form the triangle that the teacher's do.

    The mean over the ordered triples of distinct valid rows (i, j, k) of ``huber(cos^s_ijk - cos^t_ijk)``, where
    ``cos_ijk = <z_i - z_j, z_k - z_j> / (|z_i - z_j| |z_k - z_j|)`` is the angle at j between rows of centred logits (0
    where two rows are equal), huber(x) = x^2 / 2 for abs x <= 1, else abs x - 1/2. The scale of the logits changes
    nothing. Takes time batch^2 * classes + batch^3, and memory batch^2.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp64, the value is fp32 (fp64 when given so).
        teacher_logits: (batch, classes), finite; takes no gradient.
        temperature: changes nothing.
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. Fewer than three count: 0, with its graph.

    Source: Park et al. 2019, "Relational knowledge distillation", arXiv:1904.05068 (where it is a sum over the
    triples).
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    counted = torch.ones_like(student[:, 0], dtype=torch.bool) if valid is None else valid
    arms = counted[:, None] & counted & ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    of_both = (*_geometry(student), *_geometry(teacher))
    total = student.sum().double() * 0.0
    for corners in torch.arange(len(student), device=student.device).split(max(1, _AT_ONCE // max(arms.numel(), 1))):
        # The angles of these corners are made again in the backward pass, not kept until then.
        errors = checkpoint(_errors, corners, arms, *of_both, use_reentrant=False)
        total = total + errors.where(counted[corners], 0.0).sum()
    rows = counted.sum()
    return (total / (rows * (rows - 1) * (rows - 2)).clamp(min=1)).to(student.dtype)


def _geometry(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of all rows and the inverse of their distances (0 for none): (batch, batch) each, fp64.

    In fp64 because <a - c, b - c> is made of four inner products, which cancel when rows are close.
    """
    points = centred(logits.double())
    points = points - points.mean(0)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances > 0
    return points @ points.T, distances.where(apart, 1.0).reciprocal().where(apart, 0.0)


def _errors(corners: Tensor, arms: Tensor, *of_both: Tensor) -> Tensor:
    """Sum of the errors of the cosines at each of the corners, over the pairs of arms: (corners,)."""
    student_products, student_inverses, teacher_products, teacher_inverses = of_both
    student = _cosines(corners, student_products, student_inverses)
    teacher = _cosines(corners, teacher_products, teacher_inverses)
    return F.smooth_l1_loss(student, teacher, reduction="none").where(arms, 0.0).sum((1, 2))


def _cosines(corners: Tensor, products: Tensor, inverses: Tensor) -> Tensor:
    """Cosines of the angles at corner j between rows i and k, 0 when i or k lies there: (corners, batch, batch)."""
    at, inverse = products[corners], inverses[corners]
    own = products.diagonal()[corners]
    inner = products - at[:, :, None] - at[:, None, :] + own[:, None, None]
    return inner * inverse[:, :, None] * inverse[:, None, :]


class RelationalAngle(Part):
    """`relational_angle` as a part."""

    kind: Literal["relational-angle"] = "relational-angle"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return relational_angle(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:  # noqa: ARG002
        return "mean over triples of rows of huber(student's cosine - teacher's cosine), centred logits"
