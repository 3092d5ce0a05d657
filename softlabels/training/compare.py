"""How near a student has come to its teacher, over all the images that it learnt from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softlabels.loading.batches import Workers, batches
from softlabels.loading.checks import divergence
from softlabels.loading.samplers import OneViewEach
from softlabels.training.distributed import ALONE, Processes
from softlabels.training.evaluate import Classifier
from softlabels.training.targets import Lesson


@dataclass(frozen=True)
class Closeness:
    """Over one view of each image that a student learnt from.

    `logit_difference` is the mean absolute difference of the logits, over images and classes, each row less its mean;
    None of labels that have no logits, but probabilities of which classes may have none. `kl` is the mean KL(teacher ||
    student) in nats at the temperature that was trained at, as `softlabels.upkeep.verify.divergence` compares labels.
    `agreement` is how often both name the same class; `teacher_top1` is the teacher's accuracy on the labelled images,
    None when there are none.
    """

    logit_difference: float | None
    agreement: float
    teacher_top1: float | None
    images: int
    kl: float = 0.0


def compare(
    classify: Classifier, lesson: Lesson, *, batch_size: int, workers: Workers = 0, processes: Processes = ALONE
) -> Closeness:
    """Compare a student in evaluation mode with its blended teachers; every process takes its share."""
    numbers = processes.share(OneViewEach(lesson.samples.pictures).numbers())
    todo = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    sums = torch.zeros(6, dtype=torch.float64)
    temperature = lesson.objective.temperature
    for batch in batches(lesson.samples, todo, workers=workers):
        said = classify(batch.pictures).float().cpu()
        target = lesson.targets(batch, torch.device("cpu"))
        if target is not None:
            teacher = target if isinstance(target, Tensor) else target.dense()
            sums += _count(said, teacher.cpu(), batch.hard, temperature)
    difference, agreed, right, labelled, images, kl = processes.total(sums).tolist()
    top1 = right / labelled if labelled else None
    mean = difference / max(images, 1) if lesson.has_logits else None
    return Closeness(mean, agreed / max(images, 1), top1, int(images), kl / max(images, 1))


def _count(student: Tensor, teacher: Tensor, hard: Tensor, temperature: float) -> Tensor:
    """Sums of a batch: difference, agreement, the teacher being right, labelled images, images, KL: float64 (6,)."""
    difference = _centred(student).sub(_centred(teacher)).abs().mean(-1).sum()
    named = teacher.argmax(-1)
    counts = (student.argmax(-1) == named).sum(), (named == hard).sum(), (hard >= 0).sum(), torch.tensor(len(hard))
    kl = divergence(teacher, student, temperature).sum()
    return torch.stack([difference.double(), *(each.double() for each in counts), kl])


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)
