"""Two teachers whose logits anybody can compute: a linear layer on the pixels of an 8x8 image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CLASSES, SIZE = 4, 8
SEEDS = {"first": 11, "second": 12}
NAMES = tuple(f"linear_teachers-{each}" for each in SEEDS)
"""What stores call them."""


def weights(seed: int) -> NDArray[np.float32]:
    """float32 (classes, pixels)."""
    return np.random.default_rng(seed).normal(0, 0.1, (CLASSES, 3 * SIZE * SIZE)).astype(np.float32)


def logits(name: str, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the teacher `name` says of these images (n, 3, 8, 8), in numpy: float64 (n, classes)."""
    values = (pictures.reshape(len(pictures), -1) / 255 - 0.5) / 0.25
    return values @ weights(SEEDS[name.rpartition("-")[2]]).T.astype(np.float64)


class Linear(nn.Module):
    """Gives the same bits whatever else is in a batch: sums in float64, rounded to steps of 1/1024."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, CLASSES, bias=False)
        self.layer.weight.data = torch.from_numpy(weights(seed))

    def forward(self, pictures: Tensor) -> Tensor:
        exact = pictures.flatten(1).double() @ self.layer.weight.double().T
        return (exact * 1024).round().float() / 1024


def first() -> tuple[nn.Module, dict[str, Any]]:
    return Linear(SEEDS["first"]), _PREPROCESSING


def second() -> tuple[nn.Module, dict[str, Any]]:
    return Linear(SEEDS["second"]), _PREPROCESSING


_PREPROCESSING = {"size": SIZE, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
