"""The K highest logits and nothing else, as label quantisation for distilled data sets writes them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, known_ids, layout_bytes, rows_of, tensor
from softlabels.codecs._summary import highest
from softlabels.codecs._topk import id_dtype, join_parts, parted
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.core.types import SparseLogits

_LEAST_LOG, _DEEPEST = -1000.0, 800.0
"""Logits of classes that have nothing, and the lowest of the others, in units of the temperature: the exponential of
either is 0 in any float, and sums with it are finite."""

_LARGEST = 65504.0


class TopLogits(Part):
    """Keeps the logits of the `k` highest classes as half floats; the others have nothing, at any temperature.

    A label at temperature T is the softmax of the kept logits over T. LPQLD (Xiao and He, "Soft label pruning and
    quantization for large-scale dataset distillation", 2026) writes and reads labels so. What the others weighed is
    lost, which is little at temperature 1 and most of a label at high ones; `topk` keeps it in two numbers.
    """

    shorthand: ClassVar[str] = "k"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = False
    deepest: ClassVar[float] = math.inf
    temperatures: ClassVar[tuple[float, float]] = (0.1, math.inf)

    kind: Literal["top_logits"] = "top_logits"
    k: pydantic.PositiveInt = 10

    def layout(self, classes: int) -> dict[str, Field]:
        """One record of bytes: class numbers in the smallest integer that holds them, then the logits."""
        return {RECORD: Field("uint8", (min(self.k, classes) * (id_dtype(classes).itemsize + 2),))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    def check_temperature(self, temperature: float) -> None:
        """Refuse temperatures below 0.1, which magnify the rounding of half floats."""
        check_lowest(temperature, self.temperatures[0], self.kind, "dense:fp32")

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Records, uint8 (n, bytes), of finite `logits` (n, classes), less the row's highest. No chance is involved."""
        rows = rows_of(logits)
        ids = highest(rows, min(self.k, rows.shape[1]))
        kept = rows.gather(1, ids)
        below = (kept - kept[:, :1]).clamp_min(-_LARGEST)
        return self.encode_logits(ids.cpu().numpy(), below.cpu().numpy(), rows.shape[1])

    def encode_logits(self, ids: NDArray[Any], logits: NDArray[Any], classes: int) -> dict[str, np.ndarray]:
        """Records, uint8 (n, bytes), of classes (n, k) and their logits (n, k), in any order."""
        return {RECORD: join_parts(ids.astype(id_dtype(classes)), logits.astype("<f2"))}

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:
        """Logits, float32 (n, classes), whose softmax at `temperature` is the label.

        Raises:
            StoreError: the arrays are not laid out so, or name a class that does not exist.
        """
        return self.sparse(arrays, classes, temperature=temperature).dense()

    def sparse(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> SparseLogits:
        """What `decode` gives, without building rows of all classes."""
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        ids, halves = parted(record, id_dtype(classes), min(self.k, classes))
        scale = 1.0 if temperature is None else temperature
        # Damaged bytes may be any kind of NaN.
        logits = np.nan_to_num(halves.astype(np.float64), nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)
        logits = np.maximum(logits - logits.max(axis=1, keepdims=True), -_DEEPEST * scale)
        tail = np.full(len(logits), _LEAST_LOG * scale, np.float32)
        known = known_ids(ids.astype(np.int64), classes)
        return SparseLogits(tensor(known), tensor(logits.astype(np.float32)), tensor(tail), classes)
