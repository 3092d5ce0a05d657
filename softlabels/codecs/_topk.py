"""The K highest classes as they are, the others by their mass and their mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pydantic
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._bits import Ascending, RecordBytes, pack_bits, unpack_bits, width
from softlabels.codecs._gpu import encode_on_gpu, stays
from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, known_ids, layout_bytes, rows_of
from softlabels.codecs._steps import from_steps, to_steps
from softlabels.codecs._summary import Summary, summarise
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.core.types import SparseLogits

LOWEST_TEMPERATURE = 0.5
DEEPEST, _DEEPEST_FAST = 300.0, 65504.0


class TopK(Part):
    """Keeps the `k` highest classes of a row; the others share what is left, at any temperature.

    The others are stored as two numbers, the mass they have at temperature 1 and their mean (`_summary` has the
    formula), so that what they weigh is exact at temperature 1 and as the temperature grows, and near it between.
    Given the kept classes, one value for all others is what no label without more about them can improve on.

    `record` is how a label lies in its bytes:

    - ``compact``: a few bits per value (`levels` depths at least between the highest class and the others, more where
      the last byte has room) and as many bits per class as tell the classes apart; 18 bytes for 10 of 1,000 classes.
      At temperature 1 it costs at most e**2 / 2 nats above exact values, where e = (t + 8) * expm1(0.53 * s), t is
      the depth of the others, and s the larger of log(1 + t / 8) / (levels - 1) and 0.0112 (the step of t itself).
      Depths beyond 300 count as 300.
    - ``fast``: half floats and whole class numbers, 42 bytes; some four times as quick to decode.

    Both have a fixed size and need no compression, so single labels can be read from a memory map.
    """

    shorthand: ClassVar[str] = "k"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True
    temperatures: ClassVar[tuple[float, float]] = (LOWEST_TEMPERATURE, math.inf)

    kind: Literal["topk"] = "topk"
    k: pydantic.PositiveInt = 10
    record: Literal["compact", "fast"] = "compact"
    levels: int = pydantic.Field(default=32, ge=2, le=64)

    def layout(self, classes: int) -> dict[str, Field]:
        """One record of bytes."""
        return {RECORD: Field("uint8", (self._form(classes).size,))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    @property
    def deepest(self) -> float:
        """300 in a compact record, the largest half float in a fast one."""
        return DEEPEST if self.record == "compact" else _DEEPEST_FAST

    def check_temperature(self, temperature: float) -> None:
        """Refuse temperatures below 0.5, where the others' mass hangs on the few highest of them."""
        check_lowest(temperature, LOWEST_TEMPERATURE, self.kind, "dense")

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Records, uint8 (n, bytes), of finite `logits` (n, classes). No chance is involved."""
        rows = rows_of(logits)
        form = self._form(rows.shape[1])

        def there(part: Tensor, place: slice) -> tuple[RecordBytes, NDArray[np.bool_]]:  # noqa: ARG001
            low, high = (form.write(summary) for summary in summarise(part, self.k).apart())
            return low, (low != high).any(axis=1)

        def here(part: Tensor, numbers: NDArray[np.int64] | None = None) -> RecordBytes:  # noqa: ARG001
            return form.write(summarise(part, self.k))

        return {RECORD: encode_on_gpu(rows, there, here) if stays(rows) else here(rows)}

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:
        """Logits, float32 (n, classes), whose softmax at `temperature` is the label.

        Raises:
            StoreError: the arrays are not laid out so, or name a class that does not exist.
        """
        return self.sparse(arrays, classes, temperature=temperature).dense()

    def sparse(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> SparseLogits:
        """What `decode` gives, without building rows."""
        return self.summary(arrays, classes).at(1.0 if temperature is None else temperature, classes)

    def summary(self, arrays: Arrays, classes: int) -> Summary:
        """What is stored of each label."""
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        return self._form(classes).read(record)

    def _form(self, classes: int) -> _Form:
        if self.record == "fast":
            return _Fast(min(self.k, classes), classes)
        return _compact(min(self.k, classes), classes, self.levels)


class _Form(Protocol):
    """How a summary lies in `size` bytes."""

    @property
    def size(self) -> int: ...

    def write(self, summary: Summary) -> RecordBytes: ...

    def read(self, record: RecordBytes) -> Summary: ...


_TAIL_BITS, _SPREAD_BITS = 9, 5
_TAIL_KNEE, _KNEE = 1.0, 8.0


@dataclass(frozen=True)
class _Compact:
    """Bits, in this order: the tail's depth, its spread, the kept depths as one run, the class numbers.

    The run has its own steps in every row: they divide the way from the highest class to the tail.
    """

    kept: int
    classes: int
    fewest: int

    @cached_property
    def _run(self) -> Ascending:
        rest = _TAIL_BITS + _SPREAD_BITS + self.kept * width(self.classes)
        fewest = Ascending(self.kept - 1, self.fewest)
        return Ascending.within(-(rest + fewest.bits) // 8 * -8 - rest, self.kept - 1, self.fewest)

    @property
    def _ids_from(self) -> int:
        return _TAIL_BITS + _SPREAD_BITS + self._run.bits

    @cached_property
    def size(self) -> int:
        return (self._ids_from + self.kept * width(self.classes) + 7) // 8

    def write(self, summary: Summary) -> RecordBytes:
        tail = to_steps(summary.tail, DEEPEST, 2**_TAIL_BITS - 1, _TAIL_KNEE)
        spread = to_steps(summary.spread, DEEPEST, 2**_SPREAD_BITS - 1, _TAIL_KNEE)
        steps = self._run.levels - 1
        run = to_steps(summary.depths[:, 1:], _tail_depth(tail)[:, None], steps, _KNEE)
        if self.kept == self.classes:
            # The tail's depth is then the last class's, and has finer steps.
            run[:, -1:] = steps
        return pack_bits(
            [
                (tail[:, None], _TAIL_BITS),
                (spread[:, None], _SPREAD_BITS),
                self._run.columns(run),
                (summary.ids, width(self.classes)),
            ]
        )

    def read(self, record: RecordBytes) -> Summary:
        tail = _tail_depth(unpack_bits(record, 0, _TAIL_BITS, 1))
        spread = from_steps(unpack_bits(record, _TAIL_BITS, _SPREAD_BITS, 1), DEEPEST, 2**_SPREAD_BITS - 1, _TAIL_KNEE)
        ids = unpack_bits(record, self._ids_from, width(self.classes), self.kept)
        run = self._run.read(record, _TAIL_BITS + _SPREAD_BITS)
        # Classes of one level stand a hair apart, so that the highest class and the order stay what they were.
        rank = np.arange(1, self.kept) / (64 * self.kept)
        depths = np.zeros(ids.shape)
        depths[:, 1:] = np.minimum(from_steps(run + rank, tail, self._run.levels - 1, _KNEE), tail)
        return Summary(known_ids(ids, self.classes), depths, tail[:, 0], spread[:, 0])


@lru_cache(maxsize=64)
def _compact(kept: int, classes: int, fewest: int) -> _Compact:
    return _Compact(kept, classes, fewest)


def _tail_depth(number: NDArray[np.int64]) -> NDArray[np.float64]:
    return from_steps(number, DEEPEST, 2**_TAIL_BITS - 1, _TAIL_KNEE)


@dataclass(frozen=True)
class _Fast:
    """Class numbers in the smallest integer that holds them, then half floats: the kept depths but the first, the
    tail's depth, its spread. Little endian.
    """

    kept: int
    classes: int

    @property
    def _id(self) -> np.dtype:
        return id_dtype(self.classes)

    @property
    def size(self) -> int:
        return self.kept * self._id.itemsize + 2 * (self.kept + 1)

    def write(self, summary: Summary) -> RecordBytes:
        halves = np.column_stack([summary.depths[:, 1:], summary.tail, summary.spread])
        return join_parts(summary.ids.astype(self._id), np.minimum(halves, _DEEPEST_FAST).astype("<f2"))

    def read(self, record: RecordBytes) -> Summary:
        ids, halves = parted(record, self._id, self.kept)
        halves = halves.astype(np.float64)
        depths = np.zeros(ids.shape)
        depths[:, 1:] = halves[:, :-2]
        return Summary(known_ids(ids.astype(np.int64), self.classes), depths, halves[:, -2], halves[:, -1])


def id_dtype(classes: int) -> np.dtype:
    """The smallest unsigned integer that holds every class number, little endian."""
    return np.min_scalar_type(classes - 1).newbyteorder("<")


def join_parts(ids: NDArray[Any], halves: NDArray[Any]) -> RecordBytes:
    """Records of class numbers followed by half floats."""
    parts = [np.ascontiguousarray(part).view(np.uint8) for part in (ids, halves)]
    return np.concatenate(parts, axis=1)


def parted(record: RecordBytes, id_type: np.dtype, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The `count` class numbers and the half floats of records that `join_parts` made."""
    edge = count * id_type.itemsize
    return np.ascontiguousarray(record[:, :edge]).view(id_type), np.ascontiguousarray(record[:, edge:]).view("<f2")
