"""Features in 8 bits with a scale per row."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from softlabels.codecs._bits import RecordBytes
from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, layout_bytes, rows_of, tensor
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.errors import ConfigError

_SCALE_BYTES = 4
_MOST = 127


class Int8(Part):
    """Keeps every value in 8 bits, as a whole number from -127 to 127 times its row's scale: for features.

    The scale is the row's largest magnitude divided by 127, a float32, so a value is off by at most 1/254 of that
    magnitude. Zeros stay zeros, and signs stay. Not for logits, of which the highest could become the equal of the
    second: `quantized` keeps these in 8 bits.
    """

    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True
    for_logits: ClassVar[bool] = False
    keeps_offset: ClassVar[bool] = True
    """Whether a row comes back with its own mean, not only up to a constant."""
    deepest: ClassVar[float] = math.inf

    kind: Literal["int8"] = "int8"

    def layout(self, classes: int) -> dict[str, Field]:
        """One record of bytes: the scale, then the values."""
        return {RECORD: Field("uint8", (_SCALE_BYTES + classes,))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    @property
    def temperatures(self) -> tuple[float, float]:
        """Any: features are not softened."""
        return 0.0, math.inf

    def check_temperature(self, temperature: float) -> None:
        """Refuse what is no temperature."""
        check_lowest(temperature, 0.0, self.kind, "dense:fp16-raw")

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Records, uint8 (n, 4 + values), of finite rows (n, values). No chance is involved.

        Raises:
            ConfigError: the rows are no matrix of floats, or not finite.
        """
        rows = rows_of(logits)
        largest = rows.abs().amax(dim=1, keepdim=True)
        if not largest.isfinite().all():
            number = int((~largest.isfinite())[:, 0].nonzero()[0])
            raise ConfigError(f"int8 takes finite values, and row {number} has others; check the teacher's weights")
        # Tensors divide tensors: by a plain number a GPU multiplies with its reciprocal, which rounds otherwise.
        scale = largest / torch.full_like(largest, _MOST)
        numbers = (rows / scale.where(scale > 0, 1.0)).round_().clamp_(-_MOST, _MOST).to(torch.int8)
        return {RECORD: _record(scale, numbers)}

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """The values, float32 (n, values).

        Raises:
            StoreError: the arrays are not laid out so.
        """
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        scale = tensor(np.ascontiguousarray(record[:, :_SCALE_BYTES]).view("<f4").astype(np.float32, copy=False))
        numbers = tensor(np.ascontiguousarray(record[:, _SCALE_BYTES:]).view(np.int8))
        return numbers.float().mul_(scale)


def _record(scale: Tensor, numbers: Tensor) -> RecordBytes:
    scales = scale.cpu().numpy().astype("<f4", copy=False).view(np.uint8)
    return np.concatenate([scales, numbers.cpu().numpy().view(np.uint8)], axis=1)
