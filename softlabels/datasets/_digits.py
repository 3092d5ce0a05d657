"""Scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from softlabels.core.config import Part
from softlabels.core.installed import required
from softlabels.datasets._images import MemoryImages, Split, key_column


class Digits(Part):
    """``digits``: 1,797 real handwritten digits of 8x8 pixels (UCI ML "Optical Recognition of Handwritten Digits").

    Our own fixed split: every fourth image, from the first, is held out (450); 1,347 train.
    """

    kind: Literal["digits"] = "digits"
    split: Split = "train"

    def open(self) -> MemoryImages:
        """The data set; a key holds the image's number in scikit-learn's order: ``train/0003``."""
        digits = required("sklearn.datasets", "digits", "the data set digits").load_digits()
        held_out = np.arange(len(digits.target)) % 4 == 0
        side, rows = ("train", ~held_out) if self.split == "train" else ("test", held_out)
        # 0..16 levels become 0..255; scikit-learn's own float arithmetic plays no part after the rounding.
        grey = torch.from_numpy(np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8))
        return MemoryImages(
            name="digits" if side == "train" else "digits (test)",
            spec=self.model_dump(),
            keys=key_column([f"{side}/{number:04d}" for number in np.flatnonzero(rows)]),
            labels=digits.target[rows].astype(np.int64),
            classes=tuple("0123456789"),
            pixels=grey[:, None].expand(-1, 3, -1, -1).contiguous(),
        )
