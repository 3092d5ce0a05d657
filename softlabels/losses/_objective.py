"""What a student is trained on: a hard part, a soft part and further terms, with their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)
from torch import Tensor

from softlabels.choices import LOSSES, term_losses
from softlabels.core.types import LOGITS, SparseLogits
from softlabels.errors import ConfigError
from softlabels.losses._base import Loss, SparseLoss, at_infinity, number, two_temperatures
from softlabels.losses._base import over as divided_by
from softlabels.losses._features import FeatureLossPart
from softlabels.losses._rows import MOST_IN_FP32
from softlabels.losses._true_class import NO_LABEL, hard_cross_entropy


def _dumped(loss: Any) -> Any:
    return loss.model_dump()


AnyLoss = Annotated[Loss, PlainValidator(LOSSES.make), PlainSerializer(_dumped)]
"""A loss: on the way in whatever `LOSSES.make` takes, on the way out its mapping."""


def _term_loss(loss: Any) -> Loss:
    return term_losses(loss).make(loss)


TermLoss = Annotated[Loss, PlainValidator(_term_loss), PlainSerializer(_dumped)]
"""A loss of logits or of features: on the way in whatever its table takes, on the way out its mapping."""

HIGHEST_TEMPERATURE = 10_000.0
"""Beyond it a softmax is uniform to the figures that fp64 has for T^2 times a divergence; infinity is its limit."""


def _has_figures(temperature: float) -> float:
    if HIGHEST_TEMPERATURE < temperature < math.inf:
        raise ValueError(
            f"a temperature must be less than or equal to {HIGHEST_TEMPERATURE:.0f}, or inf, with which kl matches "
            f"logits"
        )
    return temperature


Temperature = Annotated[float, Field(gt=0), AfterValidator(_has_figures)]
"""T of a loss; of some it may be infinite."""


Target = Tensor | SparseLogits
"""What a teacher says of a batch: logits (batch, classes), sparse ones, or another output of it (batch, values)."""


class Term(BaseModel):
    """A further term of an objective: `weight` times `loss`, at its own temperature or (None) the objective's.

    It compares the student's and the teacher's `output` of that name, or the student's `student_output` where its is
    called otherwise: ``logits``, an entry of the mapping that a network returns, or the path of a layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    weight: float = Field(allow_inf_nan=False)
    loss: TermLoss
    temperature: Temperature | None = None
    output: str = LOGITS
    student_output: str | None = None

    @model_validator(mode="after")
    def _compares_what_it_can(self) -> Term:
        if self.output == LOGITS and isinstance(self.loss, FeatureLossPart):
            raise ValueError(f"loss {self.loss.kind!r} compares features; name the `output` of the teacher")
        if self.weight < 0 and (self.output != LOGITS or isinstance(self.loss, FeatureLossPart)):
            raise ValueError(f"weight {number(self.weight)} drives features apart without end; give one above 0")
        return self

    @property
    def name(self) -> str:
        """What its part is called in reports: its loss's kind, with the output where that is not the logits."""
        return self.loss.kind if self.output == LOGITS else f"{self.loss.kind}@{self.output}"

    @property
    def of_student(self) -> str:
        """The student's output that is compared."""
        return self.student_output or self.output


class Objective(BaseModel):
    """What a student is trained on: ``alpha * hard + (1 - alpha) * soft + sum of weight * term``.

    `hard` is `hard_cross_entropy` with `label_smoothing`, `soft` is `loss` at `temperature`. A part of weight 0 is
    not computed: alpha = 1 asks for no teacher, alpha = 0 for no label.

    Attributes:
        alpha: weight of the hard part, 0 to 1.
        loss: the soft part: a loss, its name or its mapping.
        temperature: T > 0 of the soft part, at most 10,000; infinite with kl (its limit, which matches logits) and with
            losses that have no temperature.
        label_smoothing: of the hard part.
        hard_logits: the student's logits in the hard part, ``plain`` or ``standardized`` row by row.
        hard_temperature: divides them; there is no T^2.
        soft_scale: multiplies the soft part beside 1 - alpha; less than 1 while it is warmed up.
        terms: further weighted terms, of distinct kinds or outputs.
        ignore_label: rows with this label count in no part, though they may have a teacher; None: no such label.
            (Rows with label -1 have no hard part in any case.)
        normalization: what sums over rows are divided by, as Caffe's layers name it: ``valid`` the rows that count in
            that part (their mean), ``full`` all predictions and ``batch-size`` all images, those that do not count
            too (with one label per image the same number), ``none`` 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    alpha: float = Field(0.0, ge=0, le=1)
    loss: AnyLoss = Field("kl", validate_default=True)
    temperature: Temperature = 1.0
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    hard_logits: Literal["plain", "standardized"] = "plain"
    hard_temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    soft_scale: float = Field(1.0, ge=0, le=1)
    terms: tuple[Term, ...] = ()
    ignore_label: int | None = None
    normalization: Literal["valid", "full", "batch-size", "none"] = "valid"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [term.name for term in self.terms]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:  # parts are reported by name
            advice = "give the output a second name in the store" if "@" in twice else "leave one out"
            raise ValueError(
                f"two terms are {twice!r}; further terms must be of distinct kinds, or of distinct outputs; {advice}"
            )
        return self

    @model_validator(mode="after")
    def _have_limits(self) -> Self:
        temperatures = [(self.loss, self.temperature)]
        temperatures += [(term.loss, term.temperature or self.temperature) for term in self.terms]
        for loss, temperature in temperatures:
            if math.isinf(temperature) and not at_infinity(loss):
                raise ValueError(
                    f"loss {loss.kind!r} has no limit at an infinite temperature; choose kl, or a finite temperature"
                )
            if math.isinf(temperature) and two_temperatures(loss):
                raise ValueError(
                    f"loss {loss.kind!r} with a temperature of the student's own has no limit at an infinite one; "
                    f"leave `student_temperature` and `student_ratio` out, or choose a finite temperature"
                )
        return self

    def __call__(
        self,
        student_logits: Tensor | Mapping[str, Tensor],
        labels: Tensor | None,
        teacher_logits: Target | Mapping[str, Target] | None = None,
        valid: Tensor | None = None,
        *,
        partners: Tensor | None = None,
        shares: Tensor | None = None,
        over: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and its parts without weights or gradients: "hard", "soft", and each further term by its kind.

        A part that was not computed is 0.

        Args:
            student_logits: (batch, classes); or outputs by name, the logits among them.
            labels: class ids (batch,), -1 where there is none; None: no labels.
            teacher_logits: (batch, classes), or sparse logits for losses that have an exact sparse path; None: none.
                Or outputs by name.
            valid: bool (batch,), the rows that count in any part; None: all.
            partners: for views mixed of two images the class ids of the other one, (batch,).
            shares: how much of each of these views is the image's own, (batch,).
            over: when these rows are one slice of a larger batch, the sum of the `counts` of all its slices. What comes
                back is then this slice's addend: the addends sum to what one call with all rows gives. (Of a loss that
                compares rows with each other, such as dist, each slice's own value counts, by its rows.) None: these
                rows are all.

        Raises:
            ConfigError: a part needs labels, a teacher or an output that are not there, or a loss that needs the true
                class meets mixed views; the message names it.
        """
        student = student_logits if isinstance(student_logits, Mapping) else {LOGITS: student_logits}
        teacher = teacher_logits if isinstance(teacher_logits, Mapping) else {LOGITS: teacher_logits}
        logits = student[LOGITS]
        valid = self._counted(labels, valid, partners)
        masks = self._masks(labels, valid, partners)

        def normalised(name: str, mean: Tensor) -> Tensor:
            if self.normalization == "valid" and over is None:
                return mean
            mask, batch = masks[name], len(logits)
            # In the dtype of the mean: integers would be divided in fp32.
            rows = batch if mask is None else mask.sum().to(mean.dtype)
            if self.normalization == "none":
                return mean * rows
            return mean * (rows / (max(batch, 1) if over is None else over[name].clamp(min=1).to(mean.dtype)))

        zero = torch.zeros((), device=logits.device)
        total, parts = zero, {"hard": zero, "soft": zero}
        if self.alpha > 0:
            if labels is None:
                raise ConfigError(f"alpha = {number(self.alpha)} needs labels and there are none; set alpha = 0")
            hard = normalised("hard", self.hard(logits, labels, valid, partners=partners, shares=shares))
            total, parts["hard"] = total + self.alpha * hard, hard.detach()
        for part in self._soft_parts():
            loss = part.loss
            if loss.needs_labels and partners is not None:
                raise ConfigError(
                    f"loss {loss.kind!r} needs the one true class of a view and a mixed view has two; choose "
                    f"another loss, or labels of a recipe without mixup and cutmix"
                )
            # What stands under the term's own name has been through its regressor.
            own = student.get(part.of_student)
            if part.output != LOGITS:
                own = student.get(part.name, own)
            if own is None:
                raise ConfigError(f"term {part.name!r} needs the student's output {part.of_student!r}; give it, too")
            target = teacher.get(part.output)
            if part.output != LOGITS and not isinstance(loss, FeatureLossPart):
                own, target = own.flatten(1), target.flatten(1) if isinstance(target, Tensor) else target
            soft = _soft(loss, own, target, part.temperature, labels, valid)
            soft = normalised(part.name, soft)
            total, parts[part.name] = total + part.weight * soft, soft.detach()
        return total, parts

    def hard(
        self,
        student_logits: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        *,
        partners: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> Tensor:
        """The hard part, without its weight: `hard_cross_entropy` as the objective has it."""
        return hard_cross_entropy(
            student_logits,
            labels,
            label_smoothing=self.label_smoothing,
            valid=valid,
            partners=partners,
            shares=shares,
            standardized=self.hard_logits == "standardized",
            temperature=self.hard_temperature,
        )

    def ignored(self, labels: Tensor, partners: Tensor | None = None) -> Tensor | None:
        """Rows that count in no part because of `ignore_label`, bool (batch,); None where there is no such label.

        A mixed view is one where either of its images has that label.
        """
        if self.ignore_label is None:
            return None
        own = labels == self.ignore_label
        return own if partners is None else own | (partners == self.ignore_label)

    def counts(
        self,
        rows: int,
        labels: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        partners: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the sum over `rows` rows is divided by in each part that is computed; arguments as those of a call.

        Summed over the slices of a batch they are what `over` takes.
        """
        masks = self._masks(labels, self._counted(labels, valid, partners), partners)
        whole = self.normalization != "valid"
        return {name: torch.tensor(rows) if whole or mask is None else mask.sum() for name, mask in masks.items()}

    @property
    def needs_teacher(self) -> bool:
        """Whether a part that is computed asks for a teacher."""
        return any(part.loss.needs_teacher for part in self._soft_parts())

    @property
    def needs_labels(self) -> bool:
        """Whether a part that is computed asks for labels."""
        return self.alpha > 0 or any(part.loss.needs_labels for part in self._soft_parts())

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses of all parts besides the hard one, whatever their weight: a schedule may bring them in later."""
        return (self.loss, *(term.loss for term in self.terms))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The teacher's outputs that a part compares, logits first."""
        return tuple(dict.fromkeys([LOGITS, *(term.output for term in self.terms if term.loss.needs_teacher)]))

    @property
    def student_outputs(self) -> tuple[str, ...]:
        """The student's outputs that a part compares, logits first."""
        return tuple(dict.fromkeys([LOGITS, *(term.of_student for term in self.terms)]))

    def describe(self, *, top_k: bool = True, unlabelled: bool = True) -> list[str]:
        """The exact objective, a line for each thing that implementations differ in and that plays a part in it.

        `top_k`: whether soft labels may name some classes only; `unlabelled`: whether images may have no hard label.
        """
        soft = list(self._soft_parts())
        formulas = [part.loss.formula(part.temperature) for part in soft]
        weights = {"hard": self.alpha} | {part.name: part.weight for part in soft}
        lines = ["loss = " + " + ".join(f"{number(w)} * {name}" for name, w in weights.items() if w)]
        if self.alpha > 0:
            smoothing = f", label smoothing {number(self.label_smoothing)}" if self.label_smoothing else ""
            left_out = "; rows with label -1 are left out" if unlabelled and self.ignore_label != NO_LABEL else ""
            z = "Z(student)" if self.hard_logits == "standardized" else "student"
            where = ", Z(z) = (z - mean) / std over the K classes, std with K - 1" if z != "student" else ""
            soft_max = f"softmax({z}{divided_by(self.hard_temperature)})"
            lines.append(f"hard = - ln {soft_max}[label]{smoothing}{where}{left_out}")
        lines += [f"{part.name} = {formula} ({part.loss.kind})" for part, formula in zip(soft, formulas, strict=True)]
        divisors = {
            "valid": "the mean over the valid rows",
            "full": "divided by all rows",
            "batch-size": "divided by the batch size",
            "none": "summed over rows",
        }
        means = any(getattr(part.loss, "reduction", "sum") == "mean" for part in soft)
        unless = " unless their mean is named" if means else ""
        lines.append(f"per row the sum over classes{unless}, then {divisors[self.normalization]}")
        if self.ignore_label is not None:
            lines.append(f"rows with label {self.ignore_label} count in no part")
        forward = any("KL(teacher" in formula for formula in formulas)
        finite = [part.temperature for part in soft if not math.isinf(part.temperature)]
        softened = any(temperature != 1 for temperature in finite)
        two = any(two_temperatures(part.loss) for part in soft)
        high = any(temperature > MOST_IN_FP32 for temperature in finite)
        precision = f"fp64 above T = {number(MOST_IN_FP32)}, else in fp32" if high else "fp32"
        conventions = {
            "natural logarithm": True,
            "KL is forward, KL(teacher || student)": forward,
            "T^2 multiplies softened losses always": softened and not two,
            "T * T_s multiplies losses at two temperatures, T^2 all others that soften": two,
            f"log-softmax in {precision}": True,
            "what a top-K label leaves over is clamped at 0 and spread per class": top_k and bool(soft),
        }
        lines.append("; ".join(said for said, there in conventions.items() if there))
        return lines

    def _soft_parts(self) -> Iterator[_Part]:
        """Each part besides the hard one that is computed."""
        if self.alpha < 1:
            yield _Part("soft", (1 - self.alpha) * self.soft_scale, self.loss, self.temperature, LOGITS, LOGITS)
        for term in self.terms:
            if term.weight:
                temperature = term.temperature or self.temperature
                yield _Part(term.name, term.weight, term.loss, temperature, term.output, term.of_student)

    def _counted(self, labels: Tensor | None, valid: Tensor | None, partners: Tensor | None) -> Tensor | None:
        ignored = None if labels is None else self.ignored(labels, partners)
        return valid if ignored is None else _both(~ignored, valid)

    def _masks(self, labels: Tensor | None, valid: Tensor | None, partners: Tensor | None) -> dict[str, Tensor | None]:
        """The rows that count in each part that is computed, bool (batch,); None: all."""
        known = None if labels is None else labels != NO_LABEL
        masks = {part.name: _both(known if part.loss.needs_labels else None, valid) for part in self._soft_parts()}
        if self.alpha > 0:
            masks["hard"] = _both(known if partners is None else _both(known, partners != NO_LABEL), valid)
        return masks


class _Part(NamedTuple):
    name: str
    weight: float
    loss: Loss
    temperature: float
    output: str
    of_student: str


def _soft(
    loss: Loss,
    student_logits: Tensor,
    teacher_logits: Target | None,
    temperature: float,
    labels: Tensor | None,
    valid: Tensor | None,
) -> Tensor:
    if teacher_logits is None and loss.needs_teacher:
        raise ConfigError(
            f"loss {loss.kind!r} needs a teacher's labels and there are none; give them, or leave that loss out"
        )
    if isinstance(teacher_logits, SparseLogits):
        if not isinstance(loss, SparseLoss):
            raise ConfigError(f"loss {loss.kind!r} has no exact sparse path; decode the labels to (batch, classes)")
        return loss.sparse(student_logits, teacher_logits, temperature=temperature, labels=labels, valid=valid)
    # A loss that needs no teacher takes None in its place.
    return loss(student_logits, cast(Tensor, teacher_logits), temperature=temperature, labels=labels, valid=valid)


def _both(some: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if some is None else some if other is None else some & other
