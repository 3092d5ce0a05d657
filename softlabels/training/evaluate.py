"""How good a student is on clean views, and how near it has come to its teachers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.core.types import LOGITS
from softlabels.datasets import Images, by_part, content_checksums
from softlabels.loading.batches import LabelledViews, Workers, batches
from softlabels.loading.checks import divergence
from softlabels.loading.distributed import SINGLE, Ranks
from softlabels.loading.samplers import OneViewEach
from softlabels.loading.views import ViewDataset
from softlabels.models import Preprocessing, logits_of
from softlabels.models.devices import Passes
from softlabels.training.state import Runtime
from softlabels.training.targets import Task

Classifier = Callable[[Tensor], Tensor]
"""uint8 images (n, 3, S, S) to logits (n, classes)."""


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1] and the mean cross-entropy in nats over `images` labelled images."""

    top1: float
    top5: float
    cross_entropy: float
    images: int

    @property
    def metrics(self) -> dict[str, float]:
        """What an epoch's record holds of it."""
        return {"top1": self.top1, "top5": self.top5, "cross_entropy": self.cross_entropy}

    def better_than(self, other: Score) -> bool:
        """Whether more is right at first guess, or as much at a lower cross-entropy."""
        return (self.top1, -self.cross_entropy) > (other.top1, -other.cross_entropy)


@dataclass(frozen=True)
class Agreement:
    """Student against teachers, over one view of each image that the student learnt from.

    `logit_difference` is the mean absolute difference of the logits, over images and classes, each row less its mean;
    None of labels without logits. `kl` is the mean KL(teacher || student) in nats at the temperature of the training
    (of its last step, where it changes), at 1 where that is infinite.
    `agreement` is how often both name the same class; `teacher_top1` is the teacher's accuracy on the labelled images,
    None when there are none.
    """

    logit_difference: float | None
    agreement: float
    teacher_top1: float | None
    images: int
    kl: float = 0.0


def classifier(network: nn.Module, preprocessing: Preprocessing, runtime: Runtime) -> Classifier:
    """`network` as it is evaluated: normalised images, evaluation mode, no gradients; its mode is put back after."""

    @torch.no_grad()
    def classify(pictures: Tensor) -> Tensor:
        was_training = network.training
        network.eval()
        with torch.autocast(runtime.device.type, dtype=runtime.amp, enabled=runtime.amp is not None):
            images = preprocessing.normalise(pictures.to(runtime.device).contiguous())
            logits = logits_of(network(images), "the student")
        network.train(was_training)
        return logits

    return classify


def evaluate(
    classify: Classifier, pictures: ViewDataset, *, batch_size: int, workers: Workers = 0, ranks: Ranks = SINGLE
) -> Score:
    """Score a classifier on the first view of every labelled image, each counted once by one of the processes.

    Where `batch_size` images do not fit into memory, fewer are classified at a time.
    """
    passes = Passes(classify, batch_size)
    rows = np.flatnonzero(pictures.images.labels >= 0)
    own = ranks.slice(rows)
    todo = [own[start : start + batch_size] * pictures.views for start in range(0, len(own), batch_size)]
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches(LabelledViews(pictures), todo, workers=workers):
        sums += _score(passes(batch.pictures).float().cpu(), batch.targets)
    top1, top5, loss = (ranks.all_reduce(sums) / max(len(rows), 1)).tolist()
    return Score(top1, top5, loss, len(rows))


@dataclass(frozen=True)
class Evaluator:
    """What a student is scored on while it is trained."""

    pictures: ViewDataset
    preprocessing: Preprocessing
    batch_size: int
    workers: Workers
    runtime: Runtime

    def score(self, network: nn.Module) -> Score:
        """`evaluate` of the network; every process calls this."""
        classify, ranks = classifier(network, self.preprocessing, self.runtime), self.runtime.ranks
        return evaluate(classify, self.pictures, batch_size=self.batch_size, workers=self.workers, ranks=ranks)


def agreement_with_teachers(
    classify: Classifier, task: Task, *, batch_size: int, workers: Workers = 0, ranks: Ranks = SINGLE
) -> Agreement:
    """Compare a student in evaluation mode with its blended teachers; each process takes its slice."""
    numbers = ranks.slice(OneViewEach(task.samples.pictures).numbers())
    todo = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    sums = torch.zeros(6, dtype=torch.float64)
    last = task.objective_at(1.0)
    targets = task.targets_of(last)
    for batch in batches(task.samples, todo, workers=workers):
        logits = classify(batch.pictures).float().cpu()
        target = targets(batch, torch.device("cpu")).get(LOGITS)
        if target is not None:
            teacher_logits = target if isinstance(target, Tensor) else target.dense()
            sums += _agreement(logits, teacher_logits.cpu(), batch.targets, last.temperature)
    difference, agreed, right, labelled, images, kl = ranks.all_reduce(sums).tolist()
    top1 = right / labelled if labelled else None
    mean = difference / max(images, 1) if task.has_logits else None
    return Agreement(mean, agreed / max(images, 1), top1, int(images), kl / max(images, 1))


def trained_on(tested: Images, trained: Images) -> NDArray[np.int64]:
    """The rows of `tested` that are images of `trained`: of equal key and equal content, int64 (n,) rising.

    Contents are read where equal keys do not tell: where two folders hold files of the same names.
    """
    number = pc.index_in(tested.keys, value_set=trained.keys)
    theirs: NDArray[np.int64] = number.fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(theirs >= 0)
    if not len(rows):
        return rows
    sources: dict[tuple[str, Path], int] = {}
    here, there = _sources(tested, sources)[rows], _sources(trained, sources)[theirs[rows]]
    unclear = np.flatnonzero((here != there) | (here < 0))
    same = np.ones(len(rows), bool)
    same[unclear] = content_checksums(tested, rows[unclear]) == content_checksums(trained, theirs[rows[unclear]])
    return rows[same]


def _sources(images: Images, known: dict[tuple[str, Path], int]) -> NDArray[np.int64]:
    """A number for each image, int64 (n,), of what a key names one image within: the kind of a data set and its folder.

    -1 where there is no folder. Numbers are entered in `known`.
    """
    numbers = np.full(len(images), -1, np.int64)
    for part, rows, _ in by_part(images):
        root = getattr(part, "root", None)
        if root is not None and getattr(part, "paths", None) is None:
            numbers[rows] = known.setdefault((type(part).__name__, Path(root).resolve()), len(known))
    return numbers


def _score(logits: Tensor, labels: Tensor) -> Tensor:
    """Right at first guess, right within five, and summed cross-entropy of a batch: float64 (3,)."""
    guesses = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([guesses[:, 0].sum(), guesses.any(1).sum(), loss]).double()


def _agreement(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Sums of a batch: difference, agreement, the teacher being right, labelled images, images, KL: float64 (6,)."""
    difference = _centred(logits).sub(_centred(teacher_logits)).abs().mean(-1).sum()
    named = teacher_logits.argmax(-1)
    counts = (logits.argmax(-1) == named).sum(), (named == labels).sum(), (labels >= 0).sum(), torch.tensor(len(labels))
    kl = divergence(teacher_logits, logits, temperature if math.isfinite(temperature) else 1.0).sum()
    return torch.stack([difference.double(), *(each.double() for each in counts), kl])


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)
