"""The K highest classes as `topk` keeps them, each other class in a few bits."""

from __future__ import annotations

import math
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, layout_bytes, rows_of, tensor
from softlabels.codecs._quantized import packed, packed_size, unpacked
from softlabels.codecs._summary import Summary
from softlabels.codecs._topk import DEEPEST, LOWEST_TEMPERATURE, TopK
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words

# Where the levels lie: they are quantiles of a Gaussian, drawn apart by the first number, which is between the 1 that
# would copy it and the 3**0.5 that is best for many bits (Panter and Dite 1951). Its centre moves from the tail's depth
# toward the mean by this share of the spread: temperature 1 wants less, 4 wants more.
_APART = {2: 1.3, 4: 1.6}
_TOWARD_MEAN = 0.25


class HeadTail(Part):
    """Keeps the `k` highest classes as ``topk`` does, and 2 or 4 `bits` for each other class.

    The bits choose among levels that follow from the two tail numbers of the record, so they cost no bytes of their
    own: quantiles of a Gaussian about the tail's depth, none above the lowest kept class.
    """

    shorthand: ClassVar[str] = "k"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True
    temperatures: ClassVar[tuple[float, float]] = (LOWEST_TEMPERATURE, math.inf)
    deepest: ClassVar[float] = DEEPEST

    kind: Literal["head_tail"] = "head_tail"
    k: pydantic.PositiveInt = 10
    bits: Annotated[Literal[2, 4], pydantic.BeforeValidator(lambda bits: int(bits))] = 2

    def layout(self, classes: int) -> dict[str, Field]:
        """One record of bytes: that of ``topk``, then the bits of all classes."""
        return {RECORD: Field("uint8", (self._head_size(classes) + packed_size(classes, self.bits),))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    def check_temperature(self, temperature: float) -> None:
        """Refuse temperatures below 0.5, which magnify the levels of the highest of the other classes."""
        check_lowest(temperature, LOWEST_TEMPERATURE, self.kind, "quantized:8")

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Records, uint8 (n, bytes), of finite `logits` (n, classes). No chance is involved."""
        rows = rows_of(logits)
        classes = rows.shape[1]
        head = self._head.encode(rows)
        levels = self._levels(self._head.summary(head, classes))
        between = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous().to(rows.device)
        numbers = torch.searchsorted(between, rows.amax(dim=1, keepdim=True) - rows)
        return {RECORD: np.concatenate([head[RECORD], packed(numbers.byte(), self.bits).cpu().numpy()], axis=1)}

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Logits, float32 (n, classes), the same for every temperature.

        Raises:
            StoreError: the arrays are not laid out so, or name a class that does not exist.
        """
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        edge = self._head_size(classes)
        summary = self._head.summary({RECORD: record[:, :edge]}, classes)
        numbers = tensor(unpacked(record[:, edge:], self.bits, classes)).long()
        rows = self._levels(summary).neg_().gather(1, numbers)
        return rows.scatter_(1, tensor(summary.ids), tensor((-summary.depths).astype(np.float32)))

    @cached_property
    def _head(self) -> TopK:
        return TopK(k=self.k)

    def _head_size(self, classes: int) -> int:
        return int(self._head.bytes_per_label(classes))

    def _levels(self, summary: Summary) -> Tensor:
        """The depths that the bits choose from, rising: float32 (n, 2**bits)."""
        count = 2**self.bits
        quantiles = [_APART[self.bits] * NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
        centre = summary.tail + _TOWARD_MEAN * summary.spread
        levels = centre[:, None] + np.sqrt(2.0 * summary.spread)[:, None] * np.array(quantiles)
        return tensor(np.maximum(levels, summary.depths[:, -1:]).astype(np.float32))
