"""Divergences between the softened probabilities p = softmax(teacher / T) and q = softmax(student / T).

All of them are sums over the classes, exact on sparse logits too. A teacher's logit of -inf is a probability of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, PlainValidator, model_validator
from torch import Tensor

from softlabels.core.types import SparseLogits
from softlabels.losses._base import LossPart, SparseLossPart, number, over, times
from softlabels.losses._calibration import LEAST_RATIO, StudentTemperature, own_temperature
from softlabels.losses._rows import (
    centred,
    log_softmax,
    mean_divergence,
    mean_over,
    pair_of,
    student_rows,
    weighted_sum,
)


def _number_or_fit(value: Any) -> Any:
    if value is None or value == "fit":
        return value
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not 0 < found < math.inf:
        raise ValueError(f"a number above 0 or `fit`, not {value!r}")
    return found


_OwnTemperature = Annotated[StudentTemperature, PlainValidator(_number_or_fit)]


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    student_temperature: StudentTemperature = None,
    student_ratio: float | None = None,
) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T, the mean over the valid rows.

    ``T^2 * sum_k p_k (ln p_k - ln q_k)``. T^2 keeps the size of the gradient when T changes. At an infinite temperature
    its limit, which matches logits: ``sum_k (s_k - t_k)^2 / (2 * classes)``, s and t the rows less their means.

    With a temperature T_s of the student's own it is ``T * T_s * sum_k p_k (ln p_k - ln q_k)``, p = softmax(teacher /
    T), q = softmax(student / T_s). The gradient ``T * (q - p)`` keeps its size when either changes; at T_s = T the
    factor is T^2.

    Args:
        student_temperature: T_s > 0; ``"fit"``: the one from 0.01 * T to T for which the mean of KL over the valid rows
            of this call is least (dense and sparse logits alike). The gradient takes it as a constant: KL has slope 0
            in it, or it is at an end. None: T, or `student_ratio`.
        student_ratio: T_s / T > 0, for a T that changes. Excludes `student_temperature`.

    Raises:
        ConfigError: a student's temperature is wrong, or given beside an infinite T.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", arXiv:1503.02531, section 2;
    the limit is its section 2.1, where the gradient is (s_k - t_k) / (classes * T^2) before T^2 multiplies it.
    The student's own temperature: Xiao and He 2026, "Soft label pruning and quantization for large-scale dataset
    distillation", arXiv:2604.18135, section III-E (calibrated student-teacher alignment). Their script seeks T_s once
    an epoch, on the last batch, among 0.01, 0.02, ..., 1, and takes that number as T_s itself, where its help calls it
    a ratio to T; it has the factor T^2 on Tiny-ImageNet and none on ImageNet. The factor T * T_s is ours.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.kl_divergence(student, teacher, temperature=4.0).item(), 3)
        0.405
    """
    if math.isinf(temperature) and student_temperature is None and student_ratio is None:
        dense = teacher_logits.dense() if isinstance(teacher_logits, SparseLogits) else teacher_logits
        student, teacher = pair_of(student_logits, dense, valid)
        return mean_over(centred(student - teacher).square().mean(-1), valid) / 2
    own = (student_temperature, student_ratio)
    student_logits, ratio = own_temperature(student_logits, teacher_logits, temperature, valid, *own)
    return ratio * mean_divergence(_kl, student_logits, teacher_logits, temperature, valid, _sparse_kl)


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True)


def _sparse_kl(log_q: Tensor, ids: Tensor, log_p: Tensor, log_tail: Tensor) -> Tensor:
    named = (log_p.exp() * (log_p - log_q.gather(1, ids))).sum(-1)
    others, log_tail = log_q.shape[1] - ids.shape[1], log_tail.squeeze(-1)
    return named + log_tail.exp() * (others * log_tail - log_q.scatter(1, ids, 0.0).sum(-1))


class _TwoTemperatures(SparseLossPart):
    """A loss whose student may have a temperature of its own."""

    student_temperature: _OwnTemperature = None
    student_ratio: float | None = Field(None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.student_temperature is not None and self.student_ratio is not None:
            raise ValueError("`student_temperature` and `student_ratio` exclude each other; give one")
        return self

    @property
    def two_temperatures(self) -> bool:
        """See `softlabels.losses._base.two_temperatures`."""
        return self.student_temperature is not None or self.student_ratio is not None

    def formula(self, temperature: float) -> str:
        """See `Loss.formula`."""
        if not self.two_temperatures:
            return super().formula(temperature)
        text, p = self.text.replace("T^2 *", "T * T_s *"), f"p = softmax(teacher{over(temperature)})"
        if isinstance(self.student_temperature, str):
            pq = f"{p}, q = softmax(student / T_s)"
            least, most = number(LEAST_RATIO * temperature), number(temperature)
            fitted = f", T_s from {least} to {most} where KL over the rows of a pass is least"
            return text.format(T2=f"{times(temperature)}T_s * ", pq=pq) + fitted
        own = (
            (self.student_ratio or 1.0) * temperature if self.student_temperature is None else self.student_temperature
        )
        pq = f"{p}, q = softmax(student{over(own)})"
        return text.format(T2=times(temperature * own), pq=pq)


class KL(_TwoTemperatures):
    """KL(teacher || student) at temperature T, times T^2; see `kl_divergence`.

    As text with the student's own temperature: ``kl student_temperature=fit``, ``kl student_temperature=1`` or
    ``kl student_ratio=0.5``.
    """

    kind: Literal["kl"] = "kl"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(kl_divergence)
    needs_logits: ClassVar[bool] = False
    at_infinity: ClassVar[bool] = True
    text: ClassVar[str] = "{T2}sum p (ln p - ln q), {pq} [T^2 * KL(teacher || student)]"

    def formula(self, temperature: float) -> str:
        """See `Loss.formula`."""
        if math.isinf(temperature):
            limit = "sum (s - t)^2 / (2 * classes), s and t: logits of student and teacher less their mean over the"
            return f"{limit} classes [the limit of T^2 * KL(teacher || student) for an infinite T]"
        return super().formula(temperature)


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    student_temperature: StudentTemperature = None,
    student_ratio: float | None = None,
) -> Tensor:
    """T^2 times the cross-entropy of the student under the teacher at temperature T, the mean over the valid rows.

    ``-T^2 * sum_k p_k ln q_k``: `kl_divergence` plus T^2 times the teacher's entropy, so the same gradient and another
    value; `student_temperature` and `student_ratio` as there.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.soft_cross_entropy(student, teacher, temperature=4.0).item(), 3)
        17.527
    """
    own = (student_temperature, student_ratio)
    student_logits, ratio = own_temperature(student_logits, teacher_logits, temperature, valid, *own)
    return -ratio * mean_divergence(_p_ln_q, student_logits, teacher_logits, temperature, valid, weighted_sum)


def _p_ln_q(log_q: Tensor, log_p: Tensor) -> Tensor:
    return log_p.exp() * log_q


class SoftCrossEntropy(_TwoTemperatures):
    """Cross-entropy of the student under the teacher at temperature T, times T^2; see `soft_cross_entropy`."""

    kind: Literal["ce"] = "ce"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(soft_cross_entropy)
    needs_logits: ClassVar[bool] = False
    text: ClassVar[str] = "-{T2}sum p ln q, {pq}"


def js_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 times the Jensen-Shannon divergence at temperature T, the mean over the valid rows.

    ``T^2 * (KL(p || m) + KL(q || m)) / 2``, m = (p + q) / 2. Symmetric, and at T = 1 at most ln 2. What PaddleClas
    calls JS is something else: half of `jeffreys`.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37(1).

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.js_divergence(student, teacher, temperature=4.0).item(), 3)
        0.103
    """
    return mean_divergence(_js, student_logits, teacher_logits, temperature, valid)


def _js(log_q: Tensor, log_p: Tensor) -> Tensor:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m))


class JS(SparseLossPart):
    """Jensen-Shannon divergence at temperature T, times T^2; see `js_divergence`."""

    kind: Literal["js"] = "js"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(js_divergence)
    needs_logits: ClassVar[bool] = False
    text: ClassVar[str] = "{T2}(KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, {pq}"


def jeffreys(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 times the Jeffreys divergence at temperature T, the mean over the valid rows.

    ``T^2 * (KL(p || q) + KL(q || p)) = T^2 * sum_k (p_k - q_k) (ln p_k - ln q_k)``. Symmetric, without bound. For a
    probability of 0 the true value is infinite; here e^-10000 stands for it. Half of this is the "JS" loss of SSLD and
    PaddleClas.

    Source: Jeffreys 1946, "An invariant form for the prior probability in estimation problems", Proc. R. Soc. A 186;
    in distillation: Cui et al. 2021, "Beyond self-supervision", arXiv:2103.05959 (halved).

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.jeffreys(student, teacher, temperature=4.0).item(), 3)
        0.826
    """
    return mean_divergence(_jeffreys, student_logits, teacher_logits, temperature, valid)


def _jeffreys(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()) * (log_p - log_q)


class Jeffreys(SparseLossPart):
    """Symmetric KL at temperature T, times T^2 (JS in SSLD); see `jeffreys`."""

    kind: Literal["jeffreys"] = "jeffreys"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(jeffreys)
    text: ClassVar[str] = "{T2}sum (p - q) (ln p - ln q), {pq}"


def confidence_penalty(
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,  # noqa: ARG001
    *,
    temperature: float = 1.0,
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Entropy regularisation: T^2 times the negative entropy of the student at temperature T, over the valid rows.

    ``T^2 * sum_k q_k ln q_k``: at T = 1 between -ln classes and 0. With a positive weight in an objective it keeps the
    student from being sure; with a negative one it asks for that.

    Source: Pereyra et al. 2017, "Regularizing neural networks by penalizing confident output distributions",
    arXiv:1701.06548.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.confidence_penalty(student, teacher).item(), 3)
        -0.715
    """
    log_q = log_softmax(student_rows(student_logits, valid), temperature)
    return mean_over((log_q.exp() * log_q).sum(-1), valid, temperature)


class ConfidencePenalty(LossPart):
    """Negative entropy of the student: needs no teacher; see `confidence_penalty`."""

    kind: Literal["confidence-penalty"] = "confidence-penalty"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(confidence_penalty)
    needs_teacher: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    text: ClassVar[str] = "{T2}sum q ln q, q = softmax(student{T})"
