"""What a loss and a blend are: their protocols, and what all losses of this package have in common."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypedDict, Unpack, runtime_checkable

from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.core.types import SparseLogits


class LossInputs(TypedDict, total=False):
    """The keywords that every loss takes; `softlabels.losses` documents them."""

    temperature: float
    labels: Tensor | None
    valid: Tensor | None


@runtime_checkable
class Loss(Protocol):
    """A frozen part that measures how far a student is from its target."""

    needs_teacher: ClassVar[bool]
    """Whether it looks at `teacher_logits`; if not, they may be None."""
    needs_labels: ClassVar[bool]
    """Whether it looks at `labels`; if so, it leaves out rows with label -1."""
    needs_logits: ClassVar[bool]
    """Whether it needs a finite teacher's logit for every class. If not, labels that are probabilities and give some
    classes 0 will do."""

    @property
    def kind(self) -> str: ...

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[LossInputs]) -> Tensor:
        """A scalar from logits (batch, classes)."""

    def formula(self, temperature: float) -> str:
        """What one row contributes, in one line, with the numbers filled in."""


@runtime_checkable
class SparseLoss(Loss, Protocol):
    """A loss that takes sparse logits too and is exact on them, without a teacher's tensor (batch, classes)."""

    def sparse(self, student_logits: Tensor, teacher_logits: SparseLogits, **given: Unpack[LossInputs]) -> Tensor:
        """The scalar that the loss gives for ``teacher_logits.dense()``."""


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


class LossPart(Part):
    """A loss that calls `function` with its fields as keywords; it states where it differs from these values.

    `text` is its formula, with {T} for the division by T and {T2} for the factor T^2 (both nothing at T = 1), {pq} for
    where p and q come from, and the names of fields for their numbers.
    """

    function: ClassVar[Callable[..., Tensor]]
    text: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True
    at_infinity: ClassVar[bool] = False
    """Whether the temperature may be infinite: the loss has its limit there, or has no temperature at all."""

    @property
    def needs_offset(self) -> bool:
        """Whether it sees the constant that a row's logits share, which most codecs and blends do not keep."""
        return False

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **given: Unpack[LossInputs]) -> Tensor:
        return self.function(student_logits, teacher_logits, **given, **self._fields())

    def formula(self, temperature: float) -> str:
        t = over(temperature)
        squared = times(temperature**2)
        pq = f"p = softmax(teacher{t}), q = softmax(student{t})"
        fields = {name: _shown(value) for name, value in self._fields().items()}
        return self.text.format(T=t, T2=squared, pq=pq, **fields)

    def _fields(self) -> dict[str, Any]:
        """Those that `function` takes; a class that extends another may have more."""
        return {name: value for name, value in self if name in _taken(self.function)}


class SparseLossPart(LossPart):
    """A loss whose `function` takes sparse logits too."""

    def sparse(self, student_logits: Tensor, teacher_logits: SparseLogits, **given: Unpack[LossInputs]) -> Tensor:
        return self.function(student_logits, teacher_logits, **given, **self._fields())


def at_infinity(loss: Loss) -> bool:
    """See `LossPart.at_infinity`; losses of other packages need not have it."""
    return bool(getattr(loss, "at_infinity", False))


def two_temperatures(loss: Loss) -> bool:
    """Whether the student is softened with another temperature than the teacher."""
    return bool(getattr(loss, "two_temperatures", False))


@functools.cache
def _taken(function: Callable[..., Tensor]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)


def number(value: float) -> str:
    """A number as a formula shows it."""
    return f"{value:.6g}"


def times(factor: float) -> str:
    """A factor as a formula shows it, or nothing for 1."""
    return "" if factor == 1 else f"{number(factor)} * "


def over(temperature: float) -> str:
    """The division by T as a formula shows it, or nothing at T = 1."""
    return "" if temperature == 1 else f" / {number(temperature)}"
