"""Layers that are trained beside a student and are no part of it: regressors of features, and auxiliary classifiers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softlabels.core.philox import philox
from softlabels.core.types import LOGITS, Outputs
from softlabels.errors import ConfigError, split_advice
from softlabels.losses import FeatureLossPart, Objective, Target, kl_divergence
from softlabels.models import OutputReader

_HEADS = 8
"""Random stream of the first weights of these layers."""

AUXILIARY = "auxiliary"
"""What the part of the loss of auxiliary classifiers is called."""


class Heads(nn.Module):
    """Layers by the name of what they make, each with the output of the student that it takes."""

    def __init__(self, layers: Mapping[str, tuple[str, nn.Module]]) -> None:
        super().__init__()
        self._places = {name: source for name, (source, _) in layers.items()}
        self.layers = nn.ModuleList(layer for _, layer in layers.values())

    def forward(self, outputs: Outputs) -> Outputs:
        """The outputs, and what each layer makes of its own."""
        pairs = zip(self._places.items(), self.layers, strict=True)
        return outputs | {name: layer(outputs[source]) for (name, source), layer in pairs}


class WithHeads(nn.Module):
    """A student and its heads as one module, so that gradients of both are averaged over processes.

    `student` may be compiled; `reader` watches its layers.
    """

    def __init__(self, student: nn.Module, reader: OutputReader, heads: Heads) -> None:
        super().__init__()
        self.student, self.heads = student, heads
        self._reader = reader

    def forward(self, images: Tensor) -> Outputs:
        """Normalised images (n, 3, S, S) to the student's outputs and those of the heads."""
        found: Outputs = self.heads(self._reader.read(self.student(images), "the student"))
        return found


@dataclass(frozen=True)
class Auxiliary:
    """Classifiers at layers of the student, which learn from it: self-distillation in one network.

    Each adds ``(1 - weight) * objective + weight * T^2 * KL(softmax(student / T) || softmax(classifier / T))``, the
    objective being the student's own without its further terms (hard and stored labels), T its temperature; the KL
    moves the classifier alone, and with it the layers below.

    Source: Zhang et al. 2019, "Be your own teacher", arXiv:1905.08094, equations 1 and 2, without its hints.
    """

    layers: tuple[str, ...]
    weight: float

    def name(self, layer: str) -> str:
        """What the logits of the classifier at a layer are called."""
        return f"{AUXILIARY}@{layer}"

    def head(self, shape: Sequence[int], classes: int, layer: str) -> nn.Module:
        """The mean over all places, and a linear layer.

        Raises:
            ConfigError: the layer gives no maps, tokens or vectors.
        """
        if len(shape) == 3:
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))
        if len(shape) == 2:
            return nn.Sequential(_MeanToken(), nn.Linear(shape[-1], classes))
        if len(shape) == 1:
            return nn.Linear(shape[0], classes)
        raise ConfigError(
            f"`aux_heads` {layer}: the layer gives shape {tuple(shape)} for each image, and a classifier takes maps "
            f"(C, H, W), tokens (N, C) or vectors (C,); name another layer"
        )

    def loss(
        self,
        outputs: Outputs,
        objective: Objective,
        labels: Tensor,
        target: Mapping[str, Target],
        kept: Tensor | None,
        counts: Mapping[str, Tensor] | None,
        mixture: Mapping[str, Tensor],
    ) -> Tensor:
        """What the classifiers add to the loss; arguments are those of `Objective`, `counts` its `over`."""
        own = objective.model_copy(update={"terms": ()})
        deepest, temperature = outputs[LOGITS].detach(), objective.temperature
        total = deepest.new_zeros(())
        for layer in self.layers:
            logits = outputs[self.name(layer)]
            given, _ = own({LOGITS: logits}, labels, target, kept, over=counts, **mixture)
            from_deepest = kl_divergence(logits, deepest, temperature=temperature, valid=kept)
            if counts is not None:
                rows = len(logits) if kept is None else kept.sum()
                from_deepest = from_deepest * rows / counts["images" if kept is None else "kept"].clamp(min=1)
            total = total + (1 - self.weight) * given + self.weight * from_deepest
        return total

    def describe(self) -> str:
        """A line for the run's header."""
        return (
            f"{AUXILIARY} = sum over classifiers at {', '.join(self.layers)} of {1 - self.weight:g} * (hard and soft "
            f"parts) + {self.weight:g} * T^2 KL(student || classifier); they are no part of the student that is written"
        )


class _MeanToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def make_heads(
    objective: Objective,
    auxiliary: Auxiliary | None,
    student: Mapping[str, Sequence[int]],
    teacher: Mapping[str, Sequence[int]],
    classes: int,
    seed: int,
) -> Heads | None:
    """The layers that the terms and the auxiliary classifiers need, with first weights of `seed`; None for none.

    `student` and `teacher` have the shapes of one image's outputs.

    Raises:
        ConfigError: a term cannot compare what it names, or a classifier has no place.
    """
    layers: dict[str, tuple[str, nn.Module]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(philox((seed, _HEADS), (0, 0, 0, 0))[0] >> np.uint64(1)))
        for term in objective.terms:
            if term.output == LOGITS or term.output not in teacher or not term.weight:
                continue
            ours, theirs = student[term.of_student], teacher[term.output]
            compared = (
                f"term {term.name!r} compares {_shape(ours)} values of the student's {term.of_student} with "
                f"{_shape(theirs)} of the teacher's {term.output}"
            )
            if not isinstance(term.loss, FeatureLossPart) and math.prod(ours) != math.prod(theirs):
                raise ConfigError(
                    f"{compared}, and loss {term.loss.kind!r} takes equal numbers; choose a layer of that width, or "
                    f"`hint`, which learns a layer between them"
                )
            try:
                layer = _regressor(term.loss, ours, theirs)
                values = torch.zeros(4, *ours) if layer is None else layer(torch.zeros(4, *ours))
                pair = {term.of_student: values, LOGITS: torch.zeros(4, classes), term.name: values}
                only = Objective(alpha=1.0, terms=(term,))
                only(pair, torch.zeros(4, dtype=torch.int64), {term.output: torch.zeros(4, *theirs)})
            except ConfigError as problem:
                _, pooled, pool = term.of_student.rpartition(":")
                reason = str(problem)
                if pooled and len(ours) < len(theirs):
                    reason = f"{split_advice(reason)[0]}; leave :{pool} out"
                raise ConfigError(f"{compared}: {reason}") from problem
            if layer is not None:
                layers[term.name] = (term.of_student, layer)
        if auxiliary is not None:
            for place in auxiliary.layers:
                layers[auxiliary.name(place)] = (place, auxiliary.head(student[place], classes, place))
    return Heads(layers) if layers else None


def _regressor(loss: Any, student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
    make = getattr(loss, "regressor", None)
    found: nn.Module | None = None if make is None else make(student, teacher)
    return found


def _shape(shape: Sequence[int]) -> str:
    return "x".join(f"{axis:,}" for axis in shape)
