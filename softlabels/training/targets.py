"""What a student learns from: stored labels, teachers in the loop or none, and which of it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs import Codec, SparseCodec, spelled
from softlabels.core.arrays import Arrays
from softlabels.core.types import LOGITS
from softlabels.errors import ConfigError, StoreError, did_you_mean
from softlabels.loading.batches import Batch, LabelledViews, as_mapping
from softlabels.loading.distributed import Ranks
from softlabels.loading.labels import Labels, blending_words
from softlabels.loading.views import ViewDataset
from softlabels.losses import Blend, Loss, Objective, SparseLoss, Target
from softlabels.models import Teacher
from softlabels.models.devices import sent
from softlabels.store import folder_name
from softlabels.training.heads import AUXILIARY, Auxiliary
from softlabels.training.temperatures import TemperatureSchedule
from softlabels.views import ImageSpec


class Targets(Protocol):
    """The teachers' outputs for a batch by name, on `device`: their logits, up to a constant per row, and features.

    Empty where there is no teacher.
    """

    def __call__(self, batch: Batch, device: torch.device) -> dict[str, Target]: ...

    def at(self, temperature: float) -> Targets:
        """The same of another temperature, at which the labels must be valid."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one image's features, by name."""


@dataclass(frozen=True)
class NoTargets:
    """Hard labels alone."""

    def __call__(self, batch: Batch, device: torch.device) -> dict[str, Target]:  # noqa: ARG002
        return {}

    def at(self, temperature: float) -> NoTargets:  # noqa: ARG002
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}


@dataclass(frozen=True)
class StoredTargets:
    """Labels read from a store, decoded and blended at the objective's temperature.

    A sparse `codec`, of one teacher, is decoded as it names K classes: nothing of the shape (n, classes) is ever built.
    `features` are the folders of the teachers' other outputs by name.
    """

    labels: Labels
    label_rows: NDArray[np.int64]
    teachers: Sequence[str]
    blend: Blend
    temperature: float
    codec: SparseCodec | None = None
    features: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, batch: Batch, device: torch.device) -> dict[str, Target]:
        arrays = {name: as_mapping(each) for name, each in batch.arrays.items()}
        found: dict[str, Target] = {LOGITS: self._logits(batch, arrays, device)}
        for name, folder in self.features.items():
            values = self.labels.decode({folder: arrays[folder]}, device=device)[0]
            found[name] = values.reshape(-1, *self._shape(folder))
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._shape(folder) for name, folder in self.features.items()}

    def _shape(self, folder: str) -> tuple[int, ...]:
        card = self.labels.of(folder).card
        return card.shape or (card.classes,)

    @property
    def codecs(self) -> list[Codec]:
        """How the teachers' logits are stored."""
        return [self.labels.codec(name) for name in self.teachers]

    def _logits(self, batch: Batch, arrays: Mapping[str, Arrays], device: torch.device) -> Target:
        if self.codec is not None:
            own = arrays[self.teachers[0]]
            sparse = self.codec.sparse(own, self.labels.classes, temperature=self.temperature)
            return sparse.map(lambda tensor: sent(tensor, device))
        logits = self.labels.decode({name: arrays[name] for name in self.teachers}, self.temperature, device)
        words = None
        if self.blend.samples:
            words = self.labels.blend_words(self.label_rows[batch.rows.numpy()], batch.views.numpy())
        return self.blend(logits, temperature=self.temperature, words=words)

    def at(self, temperature: float) -> StoredTargets:
        return replace(self, temperature=temperature)


def stored_targets(
    labels: Labels,
    label_rows: NDArray[np.int64],
    teachers: Sequence[str],
    features: Mapping[str, str],
    blend: Blend,
    objective: Objective,
) -> StoredTargets:
    """How to read these teachers' labels: sparse when there is one, it is stored so, and the losses take it so.

    `features` are `stored_features`.

    Raises:
        ConfigError: a loss or the blend needs logits that the labels do not have, or the blend does not fit them.
    """
    # The soft part too where alpha begins at 1: a schedule may bring it in later.
    parts = [objective.loss, *(term.loss for term in objective.terms if term.output == LOGITS)]
    for loss in parts:
        if loss.needs_logits:
            instead = "choose kl, ce, js or dist, or dump with another codec such as topk"
            labels.check_logits(teachers, f"loss {loss.kind!r}", instead)
    labels.check_blend(blend, teachers)
    _check_offsets(labels, teachers, features, objective, blend)
    codec = labels.codec(teachers[0])
    # Asked once, so that a blend that does not fit these teachers is refused before a run has a folder.
    blend(
        torch.zeros(len(teachers), 1, labels.classes), temperature=objective.temperature, words=np.zeros(1, np.uint64)
    )
    sparse = len(teachers) == 1 and all(isinstance(each, SparseLoss) for each in parts)
    return StoredTargets(
        labels,
        label_rows,
        teachers,
        blend,
        objective.temperature,
        codec if sparse and isinstance(codec, SparseCodec) else None,
        features,
    )


def _check_offsets(
    labels: Labels, teachers: Sequence[str], features: Mapping[str, str], objective: Objective, blend: Blend
) -> None:
    """Raise ConfigError where a loss on rows as they are meets labels that are known up to a constant per row."""
    for output, loss in [(LOGITS, objective.loss), *((term.output, term.loss) for term in objective.terms)]:
        if not _needs_offset(loss):
            continue
        for name in teachers if output == LOGITS else [features[output]]:
            codec = labels.codec(name)
            if not getattr(codec, "keeps_offset", False):
                raise ConfigError(
                    f"loss {loss.kind!r} with `centred=false` compares rows as they are, and the {spelled(codec)} "
                    f"labels of {name} are known up to a constant per row; dump with `codec=dense:fp16-raw`, or leave "
                    f"`centred` out"
                )
        if output == LOGITS and len(teachers) > 1:
            check_offset(loss, blend)


def _needs_offset(loss: Loss) -> bool:
    # Parts of other packages need not say so; none of theirs is known to see more than differences.
    return bool(getattr(loss, "needs_offset", False))


def check_offset(loss: Loss, blend: Blend) -> None:
    """Raise ConfigError where `blend` of several teachers does not keep the constant of a row that `loss` sees."""
    if _needs_offset(loss) and not getattr(blend, "keeps_offset", False):
        raise ConfigError(
            f"loss {loss.kind!r} with `centred=false` compares rows as they are, and blend {blend.kind!r} knows its "
            f"target up to a constant per row; choose `blend=mean-logits`"
        )


def stored_features(labels: Labels, teachers: Sequence[str], objective: Objective) -> dict[str, str]:
    """The folder of each output beside the logits that the objective compares.

    Raises:
        ConfigError: it is not stored, or of several of these teachers.
    """
    found = {}
    for output in objective.outputs[1:]:
        holding = [name for name in teachers if output in labels.outputs(name)]
        if len(holding) != 1:
            known = {each for name in teachers for each in labels.outputs(name)}
            stored = f"is stored of {', '.join(holding)}; choose one with `teachers`"
            if not holding:
                stored = f"is not in {labels.store.location}; dump it with `output={output}`"
                stored += f" ({did_you_mean(output, known)})" if known else ""
            raise ConfigError(f"output {output!r} {stored}")
        found[output] = folder_name(holding[0], output)
    return found


@dataclass(frozen=True)
class LiveTargets:
    """Teachers in the loop, each on its own rendering of the very same views: the control of every offline claim."""

    teachers: Sequence[Teacher]
    pictures: Sequence[ViewDataset]
    image_spec: ImageSpec
    blend: Blend
    temperature: float
    outputs: tuple[str, ...] = (LOGITS,)

    def __call__(self, batch: Batch, device: torch.device) -> dict[str, Target]:
        rows, views = batch.rows.numpy(), batch.views.numpy()
        answers = []
        for teacher, pictures in zip(self.teachers, self.pictures, strict=True):
            same = pictures.image_spec == self.image_spec
            answers.append(teacher.outputs(batch.pictures if same else pictures.render(rows, views), self.outputs))
        words = None
        if self.blend.samples:
            pictures = self.pictures[0]
            words = blending_words(pictures.hashes[rows], pictures.seed, views)
        logits = torch.stack([each[LOGITS].to(device) for each in answers])
        features: dict[str, Target] = {name: answers[0][name].to(device) for name in self.outputs[1:]}
        return {LOGITS: self.blend(logits, temperature=self.temperature, words=words), **features}

    def at(self, temperature: float) -> LiveTargets:
        return replace(self, temperature=temperature)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        teacher, names = self.teachers[0], self.outputs[1:]
        if not names:
            return {}
        side = teacher.preprocessing.size
        found = teacher.outputs(torch.full((1, 3, side, side), 128, dtype=torch.uint8), names)
        return {name: tuple(each.shape[1:]) for name, each in found.items()}


@dataclass(frozen=True)
class LabelRows:
    """Images that have labels: their rows in the data set and in the store, int64 (n,) each, and how many have none."""

    rows: NDArray[np.int64]
    label_rows: NDArray[np.int64]
    without: int


def match_labels(keys: Any, labels: Labels, teachers: Sequence[str], *, leave_out: bool) -> LabelRows:
    """Find the labels of a data set by key; the data set may be a subset, a superset or in another order.

    Raises:
        StoreError: images without labels, unless `leave_out`; or none has labels.
    """
    found = labels.store.find(keys)
    held = found >= 0
    held[held] = labels.labelled(found[held], teachers)
    without = int((~held).sum())
    if not held.any():
        raise StoreError(
            f"no image of this data set has labels in {labels.store.location}: the first is {keys[0].as_py()!r} here "
            f"and {labels.keys[0].as_py()!r} there; is `data` the right one?"
        )
    if without and not leave_out:
        first = keys[int(np.flatnonzero(~held)[0])].as_py()
        raise StoreError(
            f"{without:,} of {len(held):,} images have no labels in {labels.store.location} (first: {first!r}); "
            f"dump them, or train without them: `unlabelled=leave-out`"
        )
    return LabelRows(np.flatnonzero(held), found[held], without)


@dataclass(frozen=True)
class Filter:
    """Which soft labels count.

    A label whose highest probability (at temperature 1) is below `min_confidence` has no soft part: its image shows
    background, as far as the teacher can tell. With `wrong_teacher` "hard", a row whose teacher names another class
    than the true one is learnt from its hard label alone, in full.

    Source: Shen 2023, "FerKD: surgical label adaptation for efficient distillation", arXiv:2312.17473.
    """

    min_confidence: float = 0.0
    wrong_teacher: Literal["keep", "hard"] = "keep"

    @property
    def active(self) -> bool:
        """Whether any label may be left out."""
        return self.min_confidence > 0 or self.wrong_teacher == "hard"

    def select(self, target: Target, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows whose teacher counts, and rows whose hard label counts in its place, bool (n,) each."""
        probability, named = _highest(target)
        wrong = torch.zeros_like(labels, dtype=torch.bool)
        if self.wrong_teacher == "hard":
            wrong = (labels >= 0) & (named != labels)
        return (probability >= self.min_confidence) & ~wrong, wrong

    def describe(self) -> list[str]:
        """Lines for the run's header."""
        lines = []
        if self.min_confidence > 0:
            lines.append(f"rows whose teacher's highest probability is below {self.min_confidence:g} have no soft part")
        if self.wrong_teacher == "hard":
            lines.append("rows whose teacher is wrong are learnt from their hard label alone")
        return [*lines, "the mean is taken over the rows that count"] if lines else []


def _highest(target: Target) -> tuple[Tensor, Tensor]:
    """Probability at temperature 1 and number of each row's highest class, (n,) each."""
    if isinstance(target, Tensor):
        top = target.float().max(-1)
        return (top.values - target.float().logsumexp(-1)).exp(), top.indices
    others = target.classes - target.ids.shape[1]
    masses = [target.logits, target.tail[:, None] + math.log(others)] if others else [target.logits]
    return (target.logits.amax(-1) - torch.cat(masses, 1).logsumexp(-1)).exp(), _named(target)


def _named(target: Target) -> Tensor:
    """Number of each row's highest class, (n,)."""
    if isinstance(target, Tensor):
        return target.argmax(-1)
    return target.ids.gather(1, target.logits.argmax(-1, keepdim=True)).squeeze(1)


class Supervision:
    """A batch with its targets: what the student's logits are compared with.

    A mean is taken over the valid rows, which are known before the student sees an image: so the passes of a step, in
    all processes, are counted first, and what they add to the loss sums to the mean over the whole step.
    """

    def __init__(
        self,
        batch: Batch,
        device: torch.device,
        objective: Objective,
        targets: Targets,
        row_filter: Filter,
        auxiliary: Auxiliary | None = None,
        *,
        padding: bool = False,
        labelled: float = 0.0,
        differences: bool = False,
    ) -> None:
        self.batch, self._padding, self._auxiliary = batch, padding, auxiliary
        self._labelled, self._differences = labelled, differences
        self._device, self._objective, self._targets, self._filter = device, objective, targets, row_filter
        self._labels = sent(batch.targets, device)
        self._mixture = _mixture(batch, device)

    @property
    def rows(self) -> int:
        """How many rows of the batch take part: none of one that is padding."""
        return 0 if self._padding else len(self.batch)

    def counts(self) -> dict[str, Tensor]:
        """How many rows are valid in each part, and in all; where a filter is on also how many teachers are "kept"."""
        if self._padding:
            return {}
        kept, rest = self._selected
        partners = self._mixture.get("partners")
        counts = self._objective.counts(len(self.batch), self._labels, kept, partners=partners)
        counts["images"] = torch.tensor(len(self.batch))
        if kept is not None:
            counts["kept"] = kept.sum()
            counts["rows"] = kept.sum() + sum(mask.sum() for mask, weight in rest if weight > 0)
        return counts

    def loss(
        self, outputs: Mapping[str, Tensor], counts: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the student's outputs, logits (n, classes) and features (n, ...), and its parts.

        The mean over this batch; or, where `counts` are those of a whole step, what the batch adds to the step's mean.
        """
        if self._padding:
            return 0 * sum(each.sum() for each in outputs.values()), {}  # type: ignore[return-value]
        objective, (kept, rest), logits = self._objective, self._selected, outputs[LOGITS]
        value, parts = objective(outputs, self._labels, self._target, kept, over=counts, **self._mixture)
        if self._auxiliary is not None:
            given = (objective, self._labels, self._target, kept, counts, self._mixture)
            added = self._auxiliary.loss(dict(outputs), *given)
            value, parts = value + added, parts | {AUXILIARY: added.detach()}
        parts = parts | self._measured(logits.detach(), len(self.batch) if counts is None else counts["images"])
        if kept is None:
            part = logits.new_ones(()) if counts is None else len(self.batch) / counts["images"]
            return value, parts | {"kept": part}
        counts = self.counts() if counts is None else counts
        total = counts["kept"] * value
        # What is left of a row without its teacher: its hard label, in full where that stands in for the teacher.
        for mask, weight in rest:
            if weight > 0:
                left = objective.hard(logits, self._labels, mask, **self._mixture)
                total = total + weight * mask.sum() * left
        return total / counts["rows"].clamp(min=1), parts | {"kept": kept.sum() / counts["images"].clamp(min=1)}

    def _measured(self, logits: Tensor, images: Tensor | int) -> dict[str, Tensor]:
        """What these rows add to the means over `images` images that records hold beside the loss."""
        named, found, target = logits.argmax(-1), {}, self._target.get(LOGITS)
        if self._labelled:
            found["train_top1"] = (named == self._labels).sum() / images / self._labelled
        if target is None:
            return found
        by_teacher = _named(target)
        found["agreement"] = (named == by_teacher).sum() / images
        if self._labelled:
            found["teacher_top1"] = (by_teacher == self._labels).sum() / images / self._labelled
        if self._differences and isinstance(target, Tensor):
            difference = logits.float() - target
            found["logit_difference"] = (difference - difference.mean(-1, keepdim=True)).abs().mean(-1).sum() / images
        return found

    @cached_property
    def _target(self) -> dict[str, Target]:
        return self._targets(self.batch, self._device) if self._objective.needs_teacher else {}

    @cached_property
    def _target_at_1(self) -> Target | None:
        """The target that the filter looks at: that of temperature 1, whatever the loss softens it with.

        Of a top-K label the classes that it does not name have another share at each temperature.
        """
        target = self._target.get(LOGITS)
        if target is None or not self._filter.min_confidence or self._objective.temperature == 1:
            return target
        if isinstance(self._targets, LiveTargets) and len(self._targets.teachers) == 1:
            return target  # a network's logits are the same at any
        return self._targets.at(1.0)(self.batch, self._device)[LOGITS]

    @cached_property
    def _selected(self) -> tuple[Tensor | None, list[tuple[Tensor, float]]]:
        """Rows whose teacher counts, None for all; and rows whose hard label alone counts, with its weight."""
        labels, partners = self._labels, self._mixture.get("partners")
        if not self._filter.active or LOGITS not in self._target:
            return None, []
        if partners is not None and self._filter.wrong_teacher == "hard":
            raise ConfigError("wrong_teacher hard needs the one true class of a view, and a mixed view has two")
        target = self._target_at_1
        assert target is not None
        kept, wrong = self._filter.select(target, labels)
        labelled = labels >= 0 if partners is None else (labels >= 0) & (partners >= 0)
        ignored = self._objective.ignored(labels, partners)
        if ignored is not None:
            kept, wrong, labelled = kept & ~ignored, wrong & ~ignored, labelled & ~ignored
        return kept, [(wrong, 1.0), (~kept & ~wrong & labelled, self._objective.alpha)]


@dataclass(frozen=True)
class Task:
    """What a student is trained on: samples, their targets, and the objective that is minimised.

    With `alpha_end`, the weight of the hard part goes linearly from the objective's alpha at the first step to it at
    the last. The soft part rises in a line to its full weight within the first `soft_warmup` epochs. `labelled` is the
    share of the images that have a hard label; 0 where no accuracy on training views is reported. `temperatures` is how
    the temperature changes, from the objective's on; terms that have their own keep it.
    """

    samples: LabelledViews
    targets: Targets
    objective: Objective
    alpha_end: float | None = None
    filter: Filter = field(default_factory=Filter)
    soft_warmup: float = 0.0
    labelled: float = 0.0
    auxiliary: Auxiliary | None = None
    temperatures: TemperatureSchedule | None = None

    @property
    def has_logits(self) -> bool:
        """Whether the targets are logits of every class: those of live teachers, and of labels that have them."""
        labels = self.samples.labels
        return labels is None or all(labels.codec(name).has_logits for name in self.samples.teachers)

    @property
    def student_outputs(self) -> tuple[str, ...]:
        """The student's outputs that are compared, or have a classifier."""
        layers = () if self.auxiliary is None else self.auxiliary.layers
        return tuple(dict.fromkeys([*self.objective.student_outputs, *layers]))

    def teacher_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each output beside the logits that a term compares, of one image."""
        return self.targets.shapes()

    @property
    def reported(self) -> tuple[str, ...]:
        """Names of what `loss` reports beside the total.

        `agreement` is the share of images of which student and target name the same class, where all steps have one;
        `train_top1` and `teacher_top1` the shares of labelled ones of which student and target name the hard label;
        `logit_difference` as `softlabels.training.evaluate.Agreement` has it. All of the student in train mode, of the
        views that it is trained on, before each step.
        """
        compared = not isinstance(self.targets, NoTargets) and all(each.needs_teacher for each in self._objectives)
        more = {
            AUXILIARY: self.auxiliary is not None,
            "kept": self.filter.active,
            "agreement": compared,
            "train_top1": self.labelled > 0,
            "teacher_top1": compared and self.labelled > 0,
            "logit_difference": compared and self._differences,
        }
        terms = (term.name for term in self.objective.terms if term.weight)
        return ("hard", "soft", *terms, *(name for name, there in more.items() if there))

    @property
    def _differences(self) -> bool:
        """Whether targets come as a tensor of every class's logit: sparse ones are not made into one for a record."""
        targets = self.targets
        if isinstance(targets, StoredTargets):
            return targets.codec is None and all(each.has_logits for each in targets.codecs)
        return isinstance(targets, LiveTargets)

    @property
    def loss_parts(self) -> dict[str, str]:
        """What a person calls each part of the loss that has a weight, by its name in `reported`."""
        parts = {"soft": self.objective.loss.kind} if any(each.alpha < 1 for each in self._objectives) else {}
        parts |= {term.name: term.name for term in self.objective.terms if term.weight}
        parts |= {AUXILIARY: AUXILIARY} if self.auxiliary is not None else {}
        return parts | ({"hard": "hard"} if any(each.alpha > 0 for each in self._objectives) else {})

    @property
    def _objectives(self) -> tuple[Objective, Objective]:
        """Those of the first and of the last step."""
        return self.objective_at(0.0), self.objective_at(1.0)

    def objective_at(self, done: float, epochs: float = math.inf) -> Objective:
        """What is minimised when `done` of all steps, 0 to 1, are made; after the step `epochs` epochs will be."""
        changes = {}
        if self.alpha_end is not None:
            alpha = (1 - done) * self.objective.alpha + done * self.alpha_end
            changes["alpha"] = min(max(alpha, 0.0), 1.0)
        if self.temperatures is not None:
            changes["temperature"] = self.temperatures.at(done, epochs)
        if epochs < self.soft_warmup:
            changes["soft_scale"] = epochs / self.soft_warmup
        return self.objective.model_copy(update=changes) if changes else self.objective

    def targets_of(self, objective: Objective) -> Targets:
        """The targets at the temperature of one of `objective_at`."""
        return self.targets if self.temperatures is None else self.targets.at(objective.temperature)

    def supervision(
        self, batch: Batch, device: torch.device, done: float, epochs: float = math.inf, *, padding: bool = False
    ) -> Supervision:
        """The targets of a batch at this place in the training, see `objective_at`; a `padding` one adds nothing."""
        objective = self.objective_at(done, epochs)
        return Supervision(
            batch,
            device,
            objective,
            self.targets_of(objective),
            self.filter,
            self.auxiliary,
            padding=padding,
            labelled=self.labelled,
            differences=self._differences,
        )

    def counts(self, step: Sequence[Supervision], device: torch.device, ranks: Ranks) -> dict[str, Tensor] | None:
        """The valid rows of all passes of a step in all processes; None when it is one pass of one process.

        Every process calls this.
        """
        if ranks.count == 1 and len(step) == 1:
            return None
        names = (*self.reported, "rows", "images")
        counts = torch.zeros(len(names), dtype=torch.int64, device=device)
        for each in step:
            own = each.counts()
            counts += torch.stack([own.get(name, counts.new_zeros(())).to(device) for name in names])
        return dict(zip(names, ranks.all_reduce(counts), strict=True))

    def describe(self) -> list[str]:
        """The exact objective, in lines for the run's header."""
        codecs = self.targets.codecs if isinstance(self.targets, StoredTargets) else ()
        lines = self.objective.describe(
            top_k=any(isinstance(each, SparseCodec) for each in codecs),
            unlabelled=bool((self.samples.pictures.images.labels < 0).any()),
        )
        if self.alpha_end is not None:
            lines.append(
                f"the hard part's share goes in a line from {self.objective.alpha:g} at the first step to "
                f"{self.alpha_end:g} at the last"
            )
        if self.temperatures is not None:
            lines.append(self.temperatures.describe())
        if self.soft_warmup:
            lines.append(
                f"the soft part rises in a line to its full weight within the first {self.soft_warmup:g} epochs"
            )
        if self.samples.pictures.recipe.mixes and "hard" in lines[0]:
            lines.append("of a mixed view hard is the sum over both images' labels, weighted by their shares of it")
        lines += [
            f"{term.name} compares the student's {term.of_student} with the teacher's {term.output}"
            for term in self.objective.terms
            if term.output != LOGITS and term.weight
        ]
        if self.auxiliary is not None:
            lines[0] += f" + {AUXILIARY}"
            lines.append(self.auxiliary.describe())
        return lines + self.filter.describe()


def _mixture(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A loss's arguments about the second image of mixed views; none where the recipe does not mix."""
    if batch.partners is None or batch.shares is None:
        return {}
    return {"partners": batch.partners.to(device), "shares": batch.shares.to(device)}
