"""Every logit in a few bits, with a scale per row."""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._bits import RecordBytes
from softlabels.codecs._gpu import encode_on_gpu, stays
from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, layout_bytes, rows_of, tensor
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words

_KNEE = 8.0
_SCALE_BYTES = 2
_NEAR = (1.0 - 5e-7, 1.0 + 5e-7)
"""How far the CPU's float32 logarithms, and quotients of them, may be from exact ones: four times what they are."""

_LOWEST_TEMPERATURE = {8: 0.25, 4: 1.0}


class Quantized(Part):
    """Keeps every class in 8 or 4 `bits`: its depth below the row's highest logit, in steps of log(1 + depth / 8).

    A row's deepest class has the last step; the scale, log(1 + deepest / 8) / (2**bits - 1), is a half float. Step 0 is
    for the highest class (and its equals) alone, so the first class stays the first: of two classes nearer than half a
    step the lower moves by up to a step. For range r the depths are off by e = (r + 8) * expm1(scale) at most, and
    KL(source || stored) at temperature T is at most (e / T)**2 / 2; in the mean it is far less. Depths beyond 1e38
    count as 1e38: farther down a rounded scale would lead beyond all floats.
    """

    shorthand: ClassVar[str] = "bits"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True
    deepest: ClassVar[float] = 1e38

    kind: Literal["quantized"] = "quantized"
    bits: Annotated[Literal[8, 4], pydantic.BeforeValidator(lambda bits: int(bits))] = 8

    def layout(self, classes: int) -> dict[str, Field]:
        """One record of bytes: the scale, then the classes."""
        return {RECORD: Field("uint8", (_SCALE_BYTES + packed_size(classes, self.bits),))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    @property
    def temperatures(self) -> tuple[float, float]:
        """From 0.25 upward with 8 bits, from 1 with 4."""
        return _LOWEST_TEMPERATURE[self.bits], math.inf

    def check_temperature(self, temperature: float) -> None:
        """Refuse temperatures that magnify the steps: below 0.25 with 8 bits, below 1 with 4."""
        instead = "dense" if self.bits == 8 else "quantized:8"
        check_lowest(temperature, self.temperatures[0], f"{self.kind}:{self.bits}", instead)

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Records, uint8 (n, bytes), of finite `logits` (n, classes). No chance is involved."""
        rows = rows_of(logits)
        return {RECORD: encode_on_gpu(rows, self._there, self._here) if stays(rows) else self._here(rows)}

    def _here(self, rows: Tensor, numbers: NDArray[np.int64] | None = None) -> RecordBytes:  # noqa: ARG002
        depths = self._depths(rows)
        places = _places(depths)
        scale = (places.amax(dim=1, keepdim=True) / self._steps).half()
        return self._record(scale, self._numbers(depths, places, scale))

    def _there(self, rows: Tensor, place: slice) -> tuple[RecordBytes, NDArray[np.bool_]]:  # noqa: ARG002
        depths = self._depths(rows)
        places = (depths.double() / _KNEE).log1p_()
        widest = places.amax(dim=1, keepdim=True) / self._steps
        low, high = ((widest * factor).float().half() for factor in _NEAR)
        numbers, highest = (self._numbers(depths, places * factor, low) for factor in _NEAR)
        # A class in doubt has its number from the CPU, a row whose scale is in doubt all of them.
        unsure = (numbers != highest).nonzero(as_tuple=True)
        few, scales = depths[unsure].cpu(), low[unsure[0], 0].cpu()
        numbers[unsure] = self._numbers(few, _places(few), scales).to(numbers.device)
        # A scale of 0 may have either sign.
        return self._record(low, numbers), ((low != high) | (low == 0))[:, 0].cpu().numpy()

    @property
    def _steps(self) -> int:
        return (1 << self.bits) - 1

    def _depths(self, rows: Tensor) -> Tensor:
        return (rows.amax(dim=1, keepdim=True) - rows).clamp_(max=self.deepest)

    def _numbers(self, depths: Tensor, places: Tensor, scale: Tensor) -> Tensor:
        spacing = scale.to(places.dtype)
        numbers = (places / spacing.masked_fill(spacing == 0, 1.0)).round_().clamp_(max=self._steps)
        return numbers.maximum((depths > 0).to(places.dtype)).byte()

    def _record(self, scale: Tensor, numbers: Tensor) -> RecordBytes:
        parts = [scale.cpu().numpy().view(np.uint8), packed(numbers, self.bits).cpu().numpy()]
        return np.concatenate(parts, axis=1)

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Logits, float32 (n, classes), the same for every temperature.

        Raises:
            StoreError: the arrays are not laid out so.
        """
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        scale = tensor(np.ascontiguousarray(record[:, :_SCALE_BYTES]).view(np.float16)).float()
        numbers = tensor(unpacked(record[:, _SCALE_BYTES:], self.bits, classes)).float()
        # Five times as quick as expm1, and the error, 1e-6, is far below any step.
        return numbers.mul_(scale).exp_().sub_(1.0).mul_(-_KNEE)


def packed_size(classes: int, bits: int) -> int:
    """Bytes of one number of `bits` bits per class."""
    return (classes * bits + 7) // 8


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Numbers, uint8 (n, classes), of 2, 4 or 8 bits side by side in bytes, the lower class in the lower bits."""
    each = 8 // bits
    if each == 1:
        return numbers
    places = numbers.new_zeros(len(numbers), packed_size(numbers.shape[1], bits) * each)
    places[:, : numbers.shape[1]] = numbers
    record = places[:, ::each].clone()
    for i in range(1, each):
        record |= places[:, i::each] << (bits * i)
    return record


def _places(depths: Tensor) -> Tensor:
    return (depths / _KNEE).log1p_()


def unpacked(record: RecordBytes, bits: int, classes: int) -> NDArray[np.uint8]:
    """The numbers (n, classes) of bytes that `packed` made."""
    if bits == 8:
        return record
    rows = _numbers_of_bytes(bits).take(record).view(np.uint8)
    return rows[:, :classes]


@cache
def _numbers_of_bytes(bits: int) -> NDArray[np.unsignedinteger]:
    """For each byte the numbers in it, seen as one wider integer, so that one look-up gives them all."""
    shifts = bits * np.arange(8 // bits)
    numbers = (np.arange(256)[:, None] >> shifts) & (2**bits - 1)
    wider: NDArray[np.unsignedinteger] = numbers.astype(np.uint8).view(f"u{8 // bits}")
    return wider[:, 0]
