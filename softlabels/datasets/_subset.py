"""Some rows of a data set, as a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from softlabels.datasets._images import Images, in_short


@dataclass(frozen=True, eq=False)
class SomeImages:
    """The `rows` (n,) of `images`, in that order."""

    name: str
    spec: Mapping[str, Any]
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    decoder: str
    pixels: Tensor | None
    images: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return in_short(self)

    def content(self, row: int) -> bytes:
        return self.images.content(int(self.rows[row]))

    def decode(self, row: int) -> Tensor:
        return self.images.decode(int(self.rows[row]))


def subset(images: Images, rows: Sequence[int] | NDArray[np.integer[Any]]) -> Images:
    """The images of `rows`, in that order, under their own keys and labels; `spec` still opens the whole data set.

    Raises:
        IndexError: a row is not in 0..n-1.
        ValueError: a row comes twice (a key would).
    """
    chosen = np.asarray(rows, np.int64).reshape(-1)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(images)):
        raise IndexError(f"rows must be 0 to {len(images) - 1}, got {chosen.min()} to {chosen.max()}")
    if len(np.unique(chosen)) != len(chosen):
        raise ValueError("each row may be chosen once")
    return SomeImages(
        name=f"{images.name}, {len(chosen):,} of {len(images):,}",
        spec=images.spec,
        keys=images.keys.take(pa.array(chosen)),
        labels=images.labels[chosen],
        classes=images.classes,
        decoder=images.decoder,
        pixels=None if images.pixels is None else images.pixels[from_numpy(chosen)],
        images=images,
        rows=chosen,
    )
