"""Blends: one target of the logits of several teachers, (teachers, batch, classes).

`weights` are one number per teacher, at least 0, in the teachers' order; they are scaled to sum 1, and None stands for
equal ones. One teacher's logits are returned as they are.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words, uniform
from softlabels.errors import ConfigError
from softlabels.losses._base import number, over


def _numbers(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def _some_weight(value: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(value) > 0:
        raise ValueError("weights must have a sum greater than 0")
    return value


Counts = NDArray[np.integer[Any]]

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Weights = Annotated[tuple[Weight, ...], BeforeValidator(_numbers), AfterValidator(_some_weight)]
"""One weight per teacher. As text: ``0.7,0.3``."""


class BlendPart(Part):
    """The usual values of what a `Blend` states of itself; a blend writes down where it differs."""

    samples: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    keeps_offset: ClassVar[bool] = False
    """Whether the target of several teachers has a constant of its own per row, where theirs have one."""


class MeanProbabilities(BlendPart):
    """The target is the mean of the teachers' softened probabilities: ``p_k = sum_i w_i softmax(z_i / T)_k``.

    This is what averaging KL terms means: the mean over teachers of KL(p_i || q) and KL(mean p_i || q) differ by
    what does not depend on the student, so their gradients are equal.
    """

    kind: Literal["mean-probabilities"] = "mean-probabilities"
    shorthand: ClassVar[str | None] = "weights"
    weights: _Weights | None = None

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        teachers = _checked(logits)
        log_weights = _normalised(self.weights, teachers).log()[:, None, None]
        return logits[0] if len(logits) == 1 else _log_mean(teachers, temperature, log_weights)

    def formula(self, temperature: float) -> str:
        if math.isinf(temperature):
            return f"mean over teachers of teacher_i less its mean over the classes, {_shown(self.weights)}"
        return f"mean over teachers of softmax(teacher_i{over(temperature)}), {_shown(self.weights)}"


class Weighted(BlendPart):
    """`MeanProbabilities` that insists on weights, one per teacher: ``weighted:0.7,0.3``."""

    kind: Literal["weighted"] = "weighted"
    shorthand: ClassVar[str | None] = "weights"
    weights: _Weights

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:
        return MeanProbabilities(weights=self.weights)(logits, temperature=temperature, words=words)

    def formula(self, temperature: float) -> str:
        return MeanProbabilities(weights=self.weights).formula(temperature)


class MeanLogits(BlendPart):
    """The target's logits are the mean of the teachers' logits: ``z_k = sum_i w_i z_ik``.

    The softmax is the normalised geometric mean of the teachers' probabilities, at any temperature alike. A constant
    that a teacher adds to a row adds a constant to the row of the mean, which changes no target.
    """

    kind: Literal["mean-logits"] = "mean-logits"
    shorthand: ClassVar[str | None] = "weights"
    needs_logits: ClassVar[bool] = True
    keeps_offset: ClassVar[bool] = True
    weights: _Weights | None = None

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        teachers = _checked(logits)
        weights = _normalised(self.weights, teachers)[:, None, None]
        return logits[0] if len(logits) == 1 else (teachers * weights).sum(0)

    def formula(self, temperature: float) -> str:
        return f"softmax((mean over teachers of teacher_i){over(temperature)}), {_shown(self.weights)}"


class RandomTeacher(BlendPart):
    """The target of each row is one teacher's, drawn with probability w_i.

    `words` are one random 64-bit word per row. With u = word / 2^64, the teacher is the first whose running sum of
    weights exceeds u. The same word draws the same teacher in any batch.
    """

    kind: Literal["random-teacher"] = "random-teacher"
    shorthand: ClassVar[str | None] = "weights"
    samples: ClassVar[bool] = True
    keeps_offset: ClassVar[bool] = True
    weights: _Weights | None = None

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        # The last edge is left out: rounding must not put it below 1 and the draw beyond the last teacher.
        edges = _normalised(self.weights, _checked(logits)).double().cpu().cumsum(0).numpy()[:-1]
        if len(logits) == 1:
            return logits[0]
        batch = logits.shape[1]
        if words is None or words.shape != (batch,) or words.dtype != np.uint64:
            got = "none" if words is None else f"{words.dtype} of shape {tuple(words.shape)}"
            raise ConfigError(f"blend 'random-teacher' needs words, uint64 of shape ({batch},), got {got}")
        chosen = torch.from_numpy(np.searchsorted(edges, uniform(np.asarray(words)), side="right"))
        return logits[chosen.to(logits.device), torch.arange(batch, device=logits.device)]

    def formula(self, temperature: float) -> str:
        return f"softmax(teacher_i{over(temperature)}), i drawn for each row, {_shown(self.weights)}"


class PerClass(BlendPart):
    """Each class is the mean of the teachers that know it: ``p_k = sum_i w_ik softmax(z_i / T)_k``, scaled to sum 1.

    `weights`: one list per teacher of one number per class, at least 0. They are scaled so that those of a class sum
    to 1 over the teachers; a class on which no teacher has weight is refused.
    """

    kind: Literal["per-class"] = "per-class"
    weights: tuple[tuple[Weight, ...], ...]

    @field_validator("weights")
    @classmethod
    def _every_class_has_weight(cls, weights: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        if not weights or len({len(row) for row in weights}) != 1:
            raise ValueError("give one list per teacher, all of one length")
        for k, column in enumerate(zip(*weights, strict=True)):
            if not sum(column) > 0:
                raise ValueError(f"class {k} has no teacher with a weight greater than 0")
        return weights

    @cached_property
    def _log_weights(self) -> Tensor:
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return (weights / weights.sum(0)).log()

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        teachers = _checked(logits)
        count, _, classes = teachers.shape
        if self._log_weights.shape != (count, classes):
            raise ConfigError(
                f"blend 'per-class' has weights for {len(self.weights)} teachers and {len(self.weights[0])} classes, "
                f"the labels have {count} and {classes}"
            )
        if count == 1:
            return logits[0]
        return _log_mean(teachers, temperature, self._log_weights.to(teachers)[:, None, :])

    def formula(self, temperature: float) -> str:
        t = over(temperature)
        return f"sum over teachers of w_ik softmax(teacher_i{t})_k, scaled to sum 1, weights per class"


class ClassAccuracy(BlendPart):
    """`PerClass` whose weights are each teacher's accuracy on the images of each class, measured on stored labels.

    ``w_ik = (r_ik + s) / (n_ik + 2 s)``, scaled to sum 1 over the teachers: teacher i names class k first for r_ik of
    the n_ik images whose hard label is k, and s is `smoothing`, by which no weight is 0 / 0 or 0, and a class without
    images has equal weights. With s = 1 it is Laplace's rule of succession.
    """

    kind: Literal["class-accuracy"] = "class-accuracy"
    shorthand: ClassVar[str | None] = "smoothing"
    smoothing: float = Field(1.0, gt=0, allow_inf_nan=False)

    def measured(self, right: Counts, images: Counts) -> PerClass:
        """The blend with the weights of these counts r_ik and n_ik, whole numbers (teachers, classes) each."""
        accuracy = (np.asarray(right) + self.smoothing) / (np.asarray(images) + 2 * self.smoothing)
        return PerClass(weights=tuple(map(tuple, (accuracy / accuracy.sum(0)).tolist())))

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        if len(_checked(logits)) == 1:
            return logits[0]
        raise ConfigError(
            "blend 'class-accuracy' takes its weights from stored labels and their hard labels; give `labels=STORE`, "
            "or in code the blend that `measured` makes of counts"
        )

    def formula(self, temperature: float) -> str:
        t = over(temperature)
        weights = "w_ik: accuracy of teacher i on class k"
        return f"sum over teachers of w_ik softmax(teacher_i{t})_k, scaled to sum 1, {weights}"


def _checked(logits: Tensor) -> Tensor:
    """Logits (teachers, batch, classes) in fp32, or in fp64 if they came so. Raises ConfigError."""
    if logits.ndim != 3 or not len(logits):
        raise ConfigError(f"a blend takes logits of shape (teachers, batch, classes), got {tuple(logits.shape)}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _normalised(weights: tuple[float, ...] | None, logits: Tensor) -> Tensor:
    """The weights (teachers,) with sum 1. Raises ConfigError when there are not as many as teachers."""
    if weights is None:
        weights = (1.0,) * len(logits)
    if len(weights) != len(logits):
        raise ConfigError(f"the blend has {len(weights)} weights for {len(logits)} teachers; give one for each")
    return torch.tensor([weight / sum(weights) for weight in weights], dtype=logits.dtype, device=logits.device)


def _log_mean(logits: Tensor, temperature: float, log_weights: Tensor) -> Tensor:
    """T * ln of the weighted sum over teachers of softmax(logits / T): (batch, classes).

    `log_weights` broadcast over (teachers, batch, classes). What the sums lack to 1 is a constant per row. At an
    infinite temperature the limit: the weighted sum of the centred logits.
    """
    if math.isinf(temperature):
        return ((logits - logits.mean(-1, keepdim=True)) * log_weights.exp()).sum(0)
    return temperature * torch.logsumexp((logits / temperature).log_softmax(-1) + log_weights, 0)


def _shown(weights: tuple[float, ...] | None) -> str:
    """The weights as a formula shows them."""
    return "equal weights" if weights is None else f"weights {', '.join(map(number, weights))}"
