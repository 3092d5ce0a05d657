from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor
from torch.linalg import vector_norm

from softlabels.core.config import Part
from softlabels.losses._kl import kl_divergence
from softlabels.losses._rows import Given, centred, mean_over, number, pair_of, squared

_LEAST = 1e-7


def spherical_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """`kl_divergence` between logits that are projected onto one sphere, so that only their direction is taught.

    ``T^2 * sum_k p_k (ln p_k - ln q_k)``, p = softmax(S(teacher) / T), q = softmax(S(student) / T),
    ``S(z) = R * z' / (|z'| + 1e-7)``, z' a row's logits less their mean over the classes, | | the Euclidean norm, and
    R the mean of the teacher's |z'| over the valid rows. A constant row becomes zeros.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        teacher_logits: (batch, classes), finite; takes no gradient.
        temperature: T > 0. (The authors' README: 4.)
        labels: not used.
        valid: bool (batch,), the rows that count; None: all. No row counts: 0, with its graph.

    Source: Guo et al. 2020, "Reducing the teacher-student gap via spherical knowledge distillation", arXiv:2010.07485.
    The authors' code has two other radii: in its README a fixed one, 2 to 3 times the root of the number of classes
    (nearly `standardized_kl` at T / 2 to T / 3, but for T^2); in its script each row's own teacher norm.
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    student, teacher = centred(student), centred(teacher)
    radius = mean_over(vector_norm(teacher, dim=-1), valid)
    return kl_divergence(
        radius * _direction(student), radius * _direction(teacher), temperature=temperature, valid=valid
    )


def _direction(logits: Tensor) -> Tensor:
    return logits / (vector_norm(logits, dim=-1, keepdim=True) + _LEAST)


class SphericalKD(Part):
    """`spherical_kd` as a part."""

    kind: Literal["spherical-kd"] = "spherical-kd"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[Given]) -> Tensor:
        return spherical_kd(student_logits, teacher_logits, **given)

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {number(temperature)}"
        return (
            f"{squared(temperature)}sum p (ln p - ln q), p = softmax(S(teacher){over}), q = softmax(S(student){over}), "
            "S(z) = R z' / |z'|, z' centred, R the mean norm of the teacher's rows"
        )
