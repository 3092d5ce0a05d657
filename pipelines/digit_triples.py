"""Three handwritten digits in one 8x8 image, red, green and blue: 1,000 classes (`data: function:digit_triples:train`).

Drawn once and for all from the digits that train, and from those that are held out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import softlabels

TRIPLES = {"train": 40_000, "test": 4_000}
"""How many triples each side has."""


class Triples(Dataset[tuple[Tensor, int]]):
    """The triples of one side; a key holds the triple's number and its digits' rows."""

    def __init__(self, split: str) -> None:
        digits = softlabels.open_images("digits" if split == "train" else {"kind": "digits", "split": "test"})
        grey = torch.stack([digits.decode(row)[0] for row in range(len(digits))])
        rows = np.random.default_rng([1000, len(digits)]).integers(0, len(digits), (TRIPLES[split], 3))
        self.pixels = grey[torch.from_numpy(rows)]
        self.labels = (digits.labels[rows] @ np.array([100, 10, 1])).tolist()
        self.classes = [f"{number:03d}" for number in range(1000)]
        self.keys = [f"{split}/{place:05d}-{'-'.join(map(str, row))}" for place, row in enumerate(rows.tolist())]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.pixels[place], self.labels[place]


def train() -> Any:
    """The triples that teacher and students learn from."""
    data = Triples("train")
    return softlabels.open_images(data, keys=data.keys)


def test() -> Any:
    """The triples that they are judged on, of other digits."""
    data = Triples("test")
    return softlabels.open_images(data, keys=data.keys)
