"""One of the processes of a run, which notes the samples of each step and may be cut off: run by test_processes.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn


def student(classes: int) -> nn.Module:
    """Without batch statistics, so that any number of processes computes the same up to rounding."""
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, classes))


class Spare(nn.Module):
    """With a layer that is never used."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head, self.spare = nn.Linear(3 * 8 * 8, 16), nn.Linear(16, classes), nn.Linear(2, 2)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(nn.functional.avg_pool2d(pictures, 2).flatten(1)).relu())


def spare(classes: int) -> nn.Module:
    return Spare(classes)


def normed(classes: int) -> nn.Module:
    """With batch statistics of every pixel."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 49, classes))


def pooled(classes: int) -> nn.Module:
    """With batch statistics over the images alone: of one image there are none."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, classes))


def voted(device: str) -> list[int]:
    """The steps after which two processes stop, of which the second is asked to at its step 3."""
    from softlabels.loading.distributed import StopVote, process_group

    assert device == "cpu"
    with process_group(gpus=False) as ranks:
        vote = StopVote(ranks)
        step = next(step for step in range(10) if vote.stop(ranks.rank == 1 and step >= 3))
        return ranks.gather(step)


def main(settings: dict[str, Any], notes: Path, cut: int) -> None:
    import softlabels
    from softlabels.loading.distributed import Ranks
    from softlabels.training.state import TrainState
    from softlabels.training.targets import Supervision

    torch.set_num_threads(1)
    begin, loss = TrainState.begin, Supervision.loss
    at = {"step": 0, "rank": 0}

    def noted_begin(self: TrainState, step: int, passes: int = 1) -> None:
        if step == cut:
            raise KeyboardInterrupt
        ranks: Ranks = self._runtime.ranks
        at.update(step=step, rank=ranks.rank)
        begin(self, step, passes)

    def noted_loss(self: Supervision, *given: Any) -> Any:
        seen = list(zip(self.batch.rows.tolist(), self.batch.views.tolist(), strict=True))[: self.rows]
        with (notes / f"{at['rank']}.jsonl").open("a") as file:
            file.write(json.dumps({**at, "seen": seen}) + "\n")
        return loss(self, *given)

    TrainState.begin, Supervision.loss = noted_begin, noted_loss  # type: ignore[method-assign]
    try:
        softlabels.train(quiet=True, **settings)
    finally:
        TrainState.begin, Supervision.loss = begin, loss  # type: ignore[method-assign]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
