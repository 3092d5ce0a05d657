"""Losses that compare rows with each other: distances, angles, and the correlations of DIST.

Their value depends on the batch as a whole. Logits are centred because they are known up to a constant per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor
from torch.linalg import vector_norm
from torch.utils.checkpoint import checkpoint

from softlabels.losses._base import LossPart
from softlabels.losses._rows import centred, log_softmaxes, mean_over, pair_of

_LEAST_DISTANCE = 1e-12
_LEAST_NORM = 1e-8
"""Added to the product of two norms: a constant row or column has correlation 0 with anything."""

_AT_ONCE = 1 << 21
"""Angles held at a time (some 100 MB): their number grows with the cube of the batch."""


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
    abs x - 1/2. Neither the scale of the logits nor the temperature changes anything. With fewer than two valid rows 0,
    with its graph. Takes time batch^2 * classes. Teacher logits must be finite.

    Source: Park et al. 2019, "Relational knowledge distillation", arXiv:1904.05068 (where it is a sum over the pairs).

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.relational_distance(student, teacher, temperature=4.0).item(), 3)
        0.0
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return distance_error(centred(student), centred(teacher), valid)


def distance_error(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """The formula of `relational_distance` for rows (batch, C) and (batch, C') as they are, zeros where not valid."""
    pairs = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    if valid is not None:
        pairs = pairs & valid[:, None] & valid[None, :]
    count = pairs.sum().clamp(min=1)
    errors = F.smooth_l1_loss(_potential(student, pairs, count), _potential(teacher, pairs, count), reduction="none")
    return errors.where(pairs, 0.0).sum() / count


def _potential(rows: Tensor, pairs: Tensor, count: Tensor) -> Tensor:
    # Differences, not norms and products: equal rows are then exactly 0 apart, and the gradient there is 0, not NaN.
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.where(pairs, 0.0).sum() / count
    return distance / mean.clamp(min=_LEAST_DISTANCE)


class RelationalDistance(LossPart):
    """Distances between the images of a batch as the teacher has them (RKD); see `relational_distance`."""

    kind: Literal["relational-distance"] = "relational-distance"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(relational_distance)
    at_infinity: ClassVar[bool] = True
    text: ClassVar[str] = (
        "mean over pairs of rows of huber(student's distance / its mean - teacher's distance / its mean), "
        "centred logits"
    )


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
    where two rows are equal), huber(x) = x^2 / 2 for abs x <= 1, else abs x - 1/2. Neither the scale of the logits nor
    the temperature changes anything. With fewer than three valid rows 0, with its graph. Computed in fp64. Takes time
    batch^2 * classes + batch^3, and memory batch^2. Teacher logits must be finite.

    Source: Park et al. 2019, "Relational knowledge distillation", arXiv:1904.05068 (where it is a sum over the
    triples).

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.relational_angle(student, teacher, temperature=4.0).item(), 3)
        0.0
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return angle_error(centred(student.double()), centred(teacher.double()), valid).to(student.dtype)


def angle_error(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """The formula of `relational_angle` for rows (batch, C) and (batch, C') as they are, zeros where not valid."""
    counted = torch.ones_like(student[:, 0], dtype=torch.bool) if valid is None else valid
    arms = counted[:, None] & counted & ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    of_both = (*_geometry(student), *_geometry(teacher))
    total = student.sum().double() * 0.0
    for corners in torch.arange(len(student), device=student.device).split(max(1, _AT_ONCE // max(arms.numel(), 1))):
        # The angles of these corners are computed again in the backward pass, not kept until then.
        errors = checkpoint(_errors, corners, arms, *of_both, use_reentrant=False)
        total = total + errors.where(counted[corners], 0.0).sum()
    rows = counted.sum()
    return (total / (rows * (rows - 1) * (rows - 2)).clamp(min=1)).to(student.dtype)


def _geometry(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of all rows and the inverse of their distances (0 for none): (batch, batch) each, fp64.

    In fp64 because <a - c, b - c> is made of four inner products, which cancel when rows are close.
    """
    points = rows.double()
    points = points - points.mean(0)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances > 0
    return points @ points.T, distances.where(apart, 1.0).reciprocal().where(apart, 0.0)


def _errors(corners: Tensor, arms: Tensor, *of_both: Tensor) -> Tensor:
    """Sum of the errors of the cosines at each of the corners, over the pairs of arms: (corners,)."""
    student, teacher = _cosines(corners, *of_both[:2]), _cosines(corners, *of_both[2:])
    return F.smooth_l1_loss(student, teacher, reduction="none").where(arms, 0.0).sum((1, 2))


def _cosines(corners: Tensor, products: Tensor, inverses: Tensor) -> Tensor:
    """Cosines of the angles at corner j between rows i and k, 0 when i or k lies there: (corners, batch, batch)."""
    at, inverse = products[corners], inverses[corners]
    own = products.diagonal()[corners]
    inner = products - at[:, :, None] - at[:, None, :] + own[:, None, None]
    return inner * inverse[:, :, None] * inverse[:, None, :]


class RelationalAngle(LossPart):
    """Angles between the images of a batch as the teacher has them (RKD); see `relational_angle`."""

    kind: Literal["relational-angle"] = "relational-angle"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(relational_angle)
    at_infinity: ClassVar[bool] = True
    text: ClassVar[str] = "mean over triples of rows of huber(student's cosine - teacher's cosine), centred logits"


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Distillation from a stronger teacher: correlations within rows and within columns instead of a divergence.

    ``T^2 * (beta * inter + gamma * intra)``, p = softmax(teacher / T), q = softmax(student / T), r = Pearson's
    correlation (0 where a side is constant):

    - ``inter`` = the mean over the valid rows of 1 - r(p_row, q_row)
    - ``intra`` = the mean over the classes of 1 - r(p_column, q_column), columns over the valid rows

    With a single valid row every correlation within columns is 0 and `intra` is 1, without gradient.

    Source: Huang et al. 2022, "Knowledge distillation from a stronger teacher", arXiv:2205.10536;
    T^2 and the 1e-8 added to the correlation's denominator as in the authors' code (so that a column with a norm below
    some 1e-4 counts as constant).

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.dist(student, teacher, temperature=4.0).item(), 3)
        3.548
    """
    log_q, log_p = log_softmaxes(student_logits, teacher_logits, temperature, valid)
    q, p = log_q.exp(), log_p.exp()
    inter = mean_over(1 - _correlation(centred(q), centred(p)), valid)
    columns = 1 - _correlation(_centred_columns(q, valid), _centred_columns(p, valid))
    intra = columns.mean() if valid is None else columns.mean() * valid.any()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    norms: Tensor = vector_norm(a, dim=-1) * vector_norm(b, dim=-1)
    return (a * b).sum(-1) / (norms + _LEAST_NORM)


def _centred_columns(probability: Tensor, valid: Tensor | None) -> Tensor:
    """Columns over the valid rows less their means, as rows (classes, batch); 0 where a row does not count."""
    columns = probability.T
    if valid is None:
        return centred(columns)
    mean = columns.where(valid, 0.0).sum(-1, keepdim=True) / valid.sum().clamp(min=1)
    return (columns - mean).where(valid, 0.0)


class DIST(LossPart):
    """Correlations within rows and within columns instead of a divergence (DIST); see `dist`."""

    kind: Literal["dist"] = "dist"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(dist)
    needs_logits: ClassVar[bool] = False
    text: ClassVar[str] = (
        "{T2}({beta} * (1 - r(p, q) within rows) + {gamma} * (1 - r(p, q) within columns)), "
        "r: Pearson's correlation, {pq}"
    )

    beta: float = Field(1.0, ge=0, allow_inf_nan=False)
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False)
