"""How good a classifier is, each image counted once on its clean view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.datasets import Images, SomeImages, content_checksums
from softlabels.loading.batches import LabelledPictures, Workers, batches
from softlabels.loading.views import Pictures
from softlabels.models import Preprocessing, logits_of
from softlabels.models.devices import Passes
from softlabels.training.distributed import ALONE, Processes

Classifier = Callable[[Tensor], Tensor]
"""uint8 pictures (n, 3, S, S) to logits (n, classes)."""


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1] and the mean cross-entropy in nats over `images` labelled images."""

    top1: float
    top5: float
    cross_entropy: float
    images: int

    def better_than(self, other: Score) -> bool:
        """Whether more is right at first guess, or as much at a lower cross-entropy."""
        return (self.top1, -self.cross_entropy) > (other.top1, -other.cross_entropy)


def classifier(
    network: nn.Module, preprocessing: Preprocessing, device: torch.device, amp: torch.dtype | None = None
) -> Classifier:
    """`network` as it is evaluated: normalised pictures, evaluation mode, no gradients; its mode is put back after."""

    @torch.no_grad()
    def classify(pictures: Tensor) -> Tensor:
        was_training = network.training
        network.eval()
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            logits = logits_of(network(preprocessing.normalise(pictures.to(device).contiguous())), "the student")
        network.train(was_training)
        return logits

    return classify


def evaluate(
    classify: Classifier, pictures: Pictures, *, batch_size: int, workers: Workers = 0, processes: Processes = ALONE
) -> Score:
    """Score a classifier on the first view of every labelled image, each counted once whatever the processes.

    Where `batch_size` pictures do not fit into memory, fewer are classified at a time.
    """
    passes = Passes(classify, batch_size)
    rows = np.flatnonzero(pictures.images.labels >= 0)
    share = processes.share(rows)
    todo = [share[start : start + batch_size] * pictures.views for start in range(0, len(share), batch_size)]
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches(LabelledPictures(pictures), todo, workers=workers):
        sums += _count(passes(batch.pictures).float().cpu(), batch.hard)
    top1, top5, loss = (processes.total(sums) / max(len(rows), 1)).tolist()
    return Score(top1, top5, loss, len(rows))


def trained_on(tested: Images, trained: Images) -> NDArray[np.int64]:
    """The rows of `tested` that are images of `trained`: of equal key and equal content, int64 (n,) rising.

    Contents are read where equal keys do not tell: where two folders hold files of the same names.
    """
    number = pc.index_in(tested.keys, value_set=trained.keys)
    theirs = number.fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(theirs >= 0)
    if not len(rows) or _source(tested) == _source(trained) is not None:
        return rows
    same = content_checksums(tested, rows) == content_checksums(trained, theirs[rows])
    return rows[same]


def _source(images: Images) -> tuple[str, Path] | None:
    """Within which a key names one image: the kind of a data set and its folder; None where there is no folder."""
    while isinstance(images, SomeImages):
        images = images.images
    root = getattr(images, "root", None)
    return None if root is None else (type(images).__name__, Path(root).resolve())


def _count(logits: Tensor, labels: Tensor) -> Tensor:
    """Right at first guess, right within five, and summed cross-entropy of a batch: float64 (3,)."""
    guesses = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([guesses[:, 0].sum(), guesses.any(1).sum(), loss]).double()
