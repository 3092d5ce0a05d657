"""The K highest probabilities at one temperature, as other projects write them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._bits import RecordBytes
from softlabels.codecs._gpu import encode_on_gpu, rounded, stays
from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, known_ids, layout_bytes, rows_of, tensor
from softlabels.codecs._summary import highest
from softlabels.codecs._topk import id_dtype
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.core.types import SparseLogits
from softlabels.errors import ConfigError

_LEAST_LOG = -1000.0
"""The logarithm that stands for a probability of 0: its exponential is 0 in any float, and sums with it are finite."""


class Probabilities(Part):
    """Keeps the softmax at `temperature` of the `k` highest classes; with tail ``uniform`` the others share what is
    left of 1 evenly, with tail ``none`` they have nothing.

    This is what FKD, TinyViT and dataset reinforcement write, and how they read it. Rounded values may add up to more
    than 1; then nothing is left (never less), and the kept ones are scaled to 1 as a softmax does. What the others
    weigh at another temperature is not known, so a run at any but `temperature` is refused; `topk` has no such limit.
    """

    shorthand: ClassVar[str] = "k"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = False
    deepest: ClassVar[float] = math.inf

    kind: Literal["probabilities"] = "probabilities"
    k: pydantic.PositiveInt = 10
    temperature: float = pydantic.Field(default=1.0, ge=0.01, le=10_000, allow_inf_nan=False)
    tail: Literal["uniform", "none"] = "uniform"
    dtype: Literal["fp16", "fp32"] = "fp16"

    def layout(self, classes: int) -> dict[str, Field]:
        """One record of bytes: class numbers in the smallest integer that holds them, then the probabilities."""
        kept = min(self.k, classes)
        return {RECORD: Field("uint8", (kept * (id_dtype(classes).itemsize + self._value.itemsize),))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    @property
    def temperatures(self) -> tuple[float, float]:
        """The one temperature that the labels are of."""
        return self.temperature, self.temperature

    def check_temperature(self, temperature: float) -> None:
        """Refuse every temperature but the one the probabilities are of."""
        check_lowest(temperature, 0.0, self.kind, "topk")
        if abs(temperature - self.temperature) > 1e-6 * self.temperature:
            raise ConfigError(
                f"{self.kind} labels are valid at temperature {self.temperature:g} alone, of which they are, not at "
                f"{temperature:g}; train with `temperature={self.temperature:g}` or dump with `codec=topk`"
            )

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Records, uint8 (n, bytes), of finite `logits` (n, classes). No chance is involved."""
        rows = rows_of(logits)
        return {RECORD: encode_on_gpu(rows, self._there, self._here) if stays(rows) else self._here(rows)}

    def _here(self, rows: Tensor, numbers: NDArray[np.int64] | None = None) -> RecordBytes:  # noqa: ARG002
        ids, values = self._kept(rows)
        return self.encode_probabilities(ids, values, rows.shape[1])[RECORD]

    def _there(self, rows: Tensor, place: slice) -> tuple[RecordBytes, NDArray[np.bool_]]:  # noqa: ARG002
        ids, values = self._kept(rows)
        near, doubtful = rounded(values, self._value)
        return self.encode_probabilities(ids, near, rows.shape[1])[RECORD], np.logical_or.reduce(doubtful, axis=1)

    def _kept(self, rows: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids = highest(rows, min(self.k, rows.shape[1]))
        values = (rows.double() / self.temperature).softmax(dim=1).gather(1, ids)
        return ids.cpu().numpy(), values.cpu().numpy()

    def encode_probabilities(self, ids: NDArray[Any], values: NDArray[Any], classes: int) -> dict[str, np.ndarray]:
        """Records, uint8 (n, bytes), of classes (n, k) and their probabilities (n, k), in any order."""
        parts = [np.ascontiguousarray(ids.astype(id_dtype(classes))), np.ascontiguousarray(values.astype(self._value))]
        return {RECORD: np.concatenate([part.view(np.uint8) for part in parts], axis=1)}

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:
        """Logits, float32 (n, classes), whose softmax at `temperature` is the label.

        Raises:
            StoreError: the arrays are not laid out so, or name a class that does not exist.
        """
        return self.sparse(arrays, classes, temperature=temperature).dense()

    def sparse(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> SparseLogits:
        """What `decode` gives, without building rows of all classes."""
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        kept = min(self.k, classes)
        edge = kept * id_dtype(classes).itemsize
        ids = np.ascontiguousarray(record[:, :edge]).view(id_dtype(classes)).astype(np.int64)
        with np.errstate(invalid="ignore"):  # damaged bytes may be any kind of NaN
            values = np.ascontiguousarray(record[:, edge:]).view(self._value).astype(np.float64)
        values = np.clip(np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
        left = np.maximum(1.0 - values.sum(axis=1), 0.0) if self.tail == "uniform" else np.zeros(len(values))
        others = left / max(classes - kept, 1)
        scale = self.temperature if temperature is None else temperature
        logs, tail = ((_logs(each) * scale).astype(np.float32) for each in (values, others))
        return SparseLogits(tensor(known_ids(ids, classes)), tensor(logs), tensor(tail), classes)

    @property
    def _value(self) -> np.dtype:
        return np.dtype("<f2" if self.dtype == "fp16" else "<f4")


def _logs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(values, out=np.full(values.shape, _LEAST_LOG), where=values > 0)
