"""A row of logits as its K highest classes and two numbers for all others.

With d_i the depth of class i (the row's highest logit less its own) and n classes in the tail, the numbers are

    tail   = -log(mean of exp(-d_i))       the depth at which n equal classes have the tail's mass at temperature 1
    spread = mean of d_i, less `tail`      half the variance that a Gaussian tail of that mass and mean would have

At temperature T the tail's mass is that of n classes at depth mean / T - spread / T**2: a Gaussian's second cumulant,
with the variance not measured but chosen so that the mass is right at T = 1. It is right as T grows, too, where only
the mean counts. No mass is a difference of rounded numbers, so none can be negative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._gpu import stays
from softlabels.codecs._label import tensor
from softlabels.core.types import SparseLogits

Floats = NDArray[np.float64]

_APART = 1e-10
"""How far a GPU's `tail` and `spread` may be from the CPU's, both of float64 numbers; relative above 1."""


class Summary(NamedTuple):
    """`ids` int64 (n, K) by falling logit, the lower class first among equals; `depths` float64 (n, K), the first 0;
    `tail` and `spread` float64 (n,), not below the last depth and 0; without a tail, the last depth and 0.
    """

    ids: NDArray[np.int64]
    depths: Floats
    tail: Floats
    spread: Floats

    def at(self, temperature: float, classes: int) -> SparseLogits:
        """The logits of all `classes` whose softmax at `temperature` has the masses described above."""
        last = self.depths[:, -1]
        gaussian = self.tail + self.spread * (1.0 - 1.0 / temperature)
        # Below 1 a Gaussian reaches above the kept classes. With no class above the last of them, what the tail weighs
        # is at most exp(-last * (1 / T - 1)) of what it weighs at 1: that is the depth below which it cannot come.
        tail = np.maximum(gaussian, last + (self.tail - last) * min(temperature, 1.0))
        logits, others = (tensor((-each).astype(np.float32)) for each in (self.depths, tail))
        return SparseLogits(tensor(self.ids), logits, others, classes)

    def apart(self) -> tuple[Summary, Summary]:
        """The least and the largest that `tail` and `spread` may be on the CPU, of a summary from a GPU."""
        far = _APART * np.maximum(self.tail + self.spread, 1.0)
        return (
            self._replace(tail=self.tail - far, spread=np.maximum(self.spread - far, 0.0)),
            self._replace(tail=self.tail + far, spread=self.spread + far),
        )


def summarise(logits: Tensor, k: int) -> Summary:
    """The summary of each row of `logits`, float32 (n, classes), with K = min(k, classes), computed where they are.

    Exponentials and sums are float64: of float32 ones, libraries and processors round the last bits differently, which
    would show in the stored numbers. `tail` and `spread` of a row from a GPU are right to within `Summary.apart`.
    """
    kept = min(k, logits.shape[1])
    ids, others = highest(logits, kept), logits.shape[1] - kept
    depths = (logits.gather(1, ids[:, :1]) - logits).clamp_(max=torch.finfo(torch.float32).max)
    values = depths.gather(1, ids).double()
    if others:
        tails = depths.scatter(1, ids, float("inf"))
        nearest = tails.amin(dim=1, keepdim=True)
        mass = (nearest - tails).double().exp_().sum(dim=1)
        mean = depths.scatter(1, ids, 0.0).double().sum(dim=1) / others
        tail = nearest[:, 0] + (others / mass).log()
        values = torch.cat([values, tail[:, None], (mean - tail).clamp(min=0.0)[:, None]], dim=1)
    table = values.cpu().numpy()
    if not others:
        return Summary(ids.cpu().numpy(), table, table[:, -1], np.zeros(len(table)))
    return Summary(ids.cpu().numpy(), np.ascontiguousarray(table[:, :kept]), table[:, kept], table[:, kept + 1])


def highest(logits: Tensor, k: int) -> Tensor:
    """Ids of the k highest logits of each row, falling, the lower class first among equals: int64 (n, k)."""
    if stays(logits):
        logits = logits + 0.0  # so that 0 and -0 are one value, also to a GPU that sorts by bits
    values, ids = logits.topk(k, dim=1)
    ids = ids.sort(dim=1).values
    ids = ids.gather(1, logits.gather(1, ids).argsort(dim=1, descending=True, stable=True))
    # torch.topk takes any of the classes that are equal to the last kept one.
    unsure = ((logits >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(unsure):
        ids[unsure] = logits[unsure].argsort(dim=1, descending=True, stable=True)[:, :k]
    return ids
