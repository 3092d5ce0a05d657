"""Losses on the logits themselves: their differences, and the KL divergence of rescaled ones.

Both sides are centred (less their mean over the classes) because a teacher's logits are known up to a constant per row,
which a softmax does not see either; `logit_mse` and `logit_l1` also take rows as they are, of labels that keep that
constant. Teacher logits must be finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor
from torch.linalg import vector_norm

from softlabels.errors import ConfigError
from softlabels.losses._base import LossPart
from softlabels.losses._divergences import kl_divergence
from softlabels.losses._rows import centred as less_mean
from softlabels.losses._rows import mean_over, pair_of, standardised

_LEAST = 1e-7
"""Added to a norm that is divided by: a constant row becomes zeros."""


Reduction = Literal["sum", "mean"]
"""Over the classes of a row."""


def logit_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    centred: bool = True,
    reduction: Reduction = "sum",
) -> Tensor:
    """Squared difference of logits: the sum over the classes (or their mean), the mean over the valid rows.

    ``sum_k (s_k - t_k)^2``, s and t the rows less their means or, with ``centred=False``, as they are; with
    ``reduction="mean"`` divided by the number of classes. Not centred and with the mean it is ``torch.nn.MSELoss``. The
    temperature changes nothing: logits / T, times T^2, is the same for every T. For large T, `kl_divergence` tends to
    the centred sum divided by 2 * classes.

    Source: Ba and Caruana 2014, "Do deep nets really need to be deep?", arXiv:1312.6184; Kim et al. 2021,
    arXiv:2105.08919. The centring is ours.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.logit_mse(student, teacher, temperature=4.0).item(), 3)
        2.417
    """
    difference = _difference(student_logits, teacher_logits, valid, centred)
    return mean_over(_over_classes(difference.square(), reduction), valid)


def logit_l1(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    centred: bool = True,
    reduction: Reduction = "sum",
) -> Tensor:
    """Absolute difference of logits: the sum over the classes (or their mean), the mean over the valid rows.

    ``sum_k |s_k - t_k|``, with `centred` and `reduction` as in `logit_mse`. The temperature is not used. Where a
    difference is 0, so is its gradient.

    Source: as `logit_mse`, with the absolute value in place of the square.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.logit_l1(student, teacher, temperature=4.0).item(), 3)
        2.5
    """
    difference = _difference(student_logits, teacher_logits, valid, centred)
    return mean_over(_over_classes(difference.abs(), reduction), valid)


def _difference(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None, centred: bool) -> Tensor:
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return less_mean(student - teacher) if centred else student - teacher


def _over_classes(values: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("sum", "mean"):
        raise ConfigError(f"reduction is 'sum' or 'mean' over the classes, not {reduction!r}")
    return values.sum(-1) if reduction == "sum" else values.mean(-1)


class _LogitDifference(LossPart):
    """A loss on differences of logits, centred or as they are, summed or averaged over the classes."""

    at_infinity: ClassVar[bool] = True

    centred: bool = True
    reduction: Reduction = "sum"

    @property
    def needs_offset(self) -> bool:
        """Whether the rows are compared as they are."""
        return not self.centred

    def formula(self, temperature: float) -> str:
        """See `Loss.formula`."""
        of = "logits of student and teacher" + (" less their mean over the classes" if self.centred else "")
        over = {"sum": "sum", "mean": "mean over classes of"}[self.reduction]
        return f"{over} {super().formula(temperature)}, s and t: {of}"


class LogitMSE(_LogitDifference):
    """Squared difference of logits, centred unless ``centred=false``; see `logit_mse`."""

    kind: Literal["mse"] = "mse"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(logit_mse)
    text: ClassVar[str] = "(s - t)^2"


class LogitL1(_LogitDifference):
    """Absolute difference of logits, centred unless ``centred=false``; see `logit_l1`."""

    kind: Literal["l1"] = "l1"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(logit_l1)
    text: ClassVar[str] = "|s - t|"


def standardized_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """`kl_divergence` between logits that are standardised row by row, so that the student is free in shift and scale.

    ``T^2 * sum_k p_k (ln p_k - ln q_k)``, p = softmax(Z(teacher) / T), q = softmax(Z(student) / T),
    ``Z(z) = (z - mean z) / (std z + 1e-7)``, mean and std over the K classes, ``std z = sqrt(sum (z - mean z)^2 /
    (K - 1))`` as ``torch.std`` has it. A constant row becomes zeros, and the gradient there is of the size 1e7. T is
    the paper's base temperature (there 2).

    Source: Sun et al. 2024, "Logit standardization in knowledge distillation", arXiv:2403.01427;
    the 1e-7 and the K - 1 as in the authors' code.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.standardized_kl(student, teacher, temperature=4.0).item(), 3)
        0.148
    """
    student, teacher = pair_of(student_logits, teacher_logits, valid)
    return kl_divergence(standardised(student), standardised(teacher), temperature=temperature, valid=valid)


class StandardizedKL(LossPart):
    """KL between logits standardised row by row; see `standardized_kl`."""

    kind: Literal["standardized-kl"] = "standardized-kl"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(standardized_kl)
    text: ClassVar[str] = (
        "{T2}sum p (ln p - ln q), p = softmax(Z(teacher){T}), q = softmax(Z(student){T}), "
        "Z(z) = (z - mean) / std over the K classes, std with K - 1"
    )


def spherical_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """`kl_divergence` between logits that are projected onto one sphere, so that only their direction is learnt.

    ``T^2 * sum_k p_k (ln p_k - ln q_k)``, p = softmax(S(teacher) / T), q = softmax(S(student) / T),
    ``S(z) = R * z' / (|z'| + 1e-7)``, z' a centred row, ``|z'|`` its Euclidean norm, and R the mean of the teacher's
    over the valid rows. A constant row becomes zeros. T is 4 in the authors' README.

    Source: Guo et al. 2020, "Reducing the teacher-student gap via spherical knowledge distillation", arXiv:2010.07485.
    The authors' code has two other radii: in its README a fixed one, 2 to 3 times the root of the number of classes
    (nearly `standardized_kl` at T / 2 to T / 3, but for T^2); in its script each row's own teacher norm.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.spherical_kd(student, teacher, temperature=4.0).item(), 3)
        0.164
    """
    student, teacher = (less_mean(each) for each in pair_of(student_logits, teacher_logits, valid))
    radius = mean_over(vector_norm(teacher, dim=-1), valid)
    student, teacher = (radius * _direction(each) for each in (student, teacher))
    return kl_divergence(student, teacher, temperature=temperature, valid=valid)


def _direction(logits: Tensor) -> Tensor:
    norm: Tensor = vector_norm(logits, dim=-1, keepdim=True)
    return logits / (norm + _LEAST)


class SphericalKD(LossPart):
    """KL between logits projected onto one sphere; see `spherical_kd`."""

    kind: Literal["spherical-kd"] = "spherical-kd"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(spherical_kd)
    text: ClassVar[str] = (
        "{T2}sum p (ln p - ln q), p = softmax(S(teacher){T}), q = softmax(S(student){T}), "
        "S(z) = R z' / |z'|, z' centred, R the mean norm of the teacher's rows"
    )
