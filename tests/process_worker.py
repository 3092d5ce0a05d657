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


def normed(classes: int) -> nn.Module:
    """With batch statistics, which several processes must share to compute the same."""
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    )


def pooled(classes: int) -> nn.Module:
    """With batch statistics over the pictures alone: of one picture there are none."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, classes))


def main(settings: dict[str, Any], notes: Path, cut: int) -> None:
    import softlabels
    from softlabels.training.state import Learner

    torch.set_num_threads(1)
    learn = Learner.learn

    def noted(self: Learner, passes: Any, step: int, loss: Any) -> Any:
        if step == cut:
            raise KeyboardInterrupt
        sums = learn(self, passes, step, loss)
        seen = [[row, view] for batch in passes for row, view in zip(batch.rows, batch.views, strict=True)]
        record = {"step": step, "rank": self._place.processes.rank, "seen": [[int(r), int(v)] for r, v in seen]}
        with (notes / f"{record['rank']}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        return sums

    Learner.learn = noted  # type: ignore[method-assign]
    softlabels.train(quiet=True, **settings)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
