"""Scikit-learn's handwritten digits, one in an image and two."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.core.config import Part
from softlabels.core.installed import required
from softlabels.core.philox import philox
from softlabels.datasets._images import MemoryImages, Split, key_column

_PAIRS = {"train": 20_000, "test": 2_000}
"""How many pairs each side has."""


class Digits(Part):
    """``digits``: 1,797 real handwritten digits of 8x8 pixels (UCI ML "Optical Recognition of Handwritten Digits").

    Our own fixed split: every fourth image, from the first, is held out (450); 1,347 train.
    """

    kind: Literal["digits"] = "digits"
    split: Split = "train"

    def open(self) -> MemoryImages:
        """The data set; a key holds the image's number in scikit-learn's order: ``train/0003``."""
        side, numbers, grey, labels = _digits(self.kind, self.split)
        return MemoryImages(
            name=_name(self.kind, side),
            spec=self.model_dump(),
            keys=key_column([f"{side}/{number:04d}" for number in numbers]),
            labels=labels,
            classes=tuple("0123456789"),
            pixels=torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1).contiguous(),
        )


class DigitPairs(Part):
    """``digit-pairs``: two of these digits in one 8x8 image, one red and one green, in 100 classes ``00`` to ``99``.

    20,000 pairs of the 1,347 training digits, and 2,000 of the 450 held-out ones, drawn once and for all. The red digit
    comes first in the name of the class. Harder than the digits themselves: of 1,000 pairs, ten show a class.
    """

    kind: Literal["digit-pairs"] = "digit-pairs"
    split: Split = "train"

    def open(self) -> MemoryImages:
        """The data set; a key holds the pair's number and its digits' in scikit-learn: ``train/00007-3-1240``."""
        side, numbers, grey, labels = _digits(self.kind, self.split)
        count = _PAIRS[side]
        words = philox((0, 0), (np.arange(count), 0, 0, 0))
        red, green = ((words[:, place] % np.uint64(len(numbers))).astype(np.int64) for place in (0, 1))
        pixels = np.zeros((count, 3, 8, 8), np.uint8)
        pixels[:, 0], pixels[:, 1] = grey[red], grey[green]
        pairs = zip(range(count), numbers[red].tolist(), numbers[green].tolist(), strict=True)
        return MemoryImages(
            name=_name(self.kind, side),
            spec=self.model_dump(),
            keys=key_column([f"{side}/{number:05d}-{one}-{other}" for number, one, other in pairs]),
            labels=10 * labels[red] + labels[green],
            classes=tuple(f"{number:02d}" for number in range(100)),
            pixels=torch.from_numpy(pixels),
        )


def _digits(
    kind: str, split: Split
) -> tuple[Literal["train", "test"], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """One side of the split: its name, the digits' numbers (n,), their grey levels (n, 8, 8), their labels (n,)."""
    digits = required("sklearn.datasets", "digits", f"the data set {kind}").load_digits()
    held_out = np.arange(len(digits.target)) % 4 == 0
    rows = np.flatnonzero(~held_out if split == "train" else held_out)
    # 0..16 levels become 0..255; scikit-learn's own float arithmetic plays no part after the rounding.
    grey = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    return "train" if split == "train" else "test", rows, grey, digits.target[rows].astype(np.int64)


def _name(kind: str, side: str) -> str:
    return kind if side == "train" else f"{kind} (test)"
