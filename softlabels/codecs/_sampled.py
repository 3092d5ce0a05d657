"""K classes drawn so that their weights are the probabilities in the mean."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._bits import RecordBytes
from softlabels.codecs._gpu import encode_on_gpu, nudged, rounded, stays
from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, known_ids, layout_bytes, rows_of, tensor
from softlabels.codecs._summary import highest
from softlabels.codecs._topk import id_dtype, join_parts, parted
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words, uniform
from softlabels.core.types import SparseLogits
from softlabels.errors import ConfigError

_LEAST_LOG = -600.0
_NOT_DRAWN = -1000.0
_LOG = np.dtype("<f2")


class Sampled(Part):
    """Draws `k` classes; their weights are an unbiased estimate of the softmax at `temperature`, and sum to 1.

    A class of probability p is drawn with probability min(1, p / c) and then weighs max(p, c), where c is such that k
    classes are drawn in all (Horvitz and Thompson 1952): high classes are kept with their probability, the others
    weigh c each. Classes are drawn by systematic sampling (Madow 1949), one random word per label. As the mean of the
    labels is the teacher's softmax, so is the mean of the gradients of a cross entropy; a top-K label has no noise but
    is wrong about its tail (Anshumann et al. 2025, Sparse logit sampling). Weights are half floats of their logarithms.

    Another temperature would need other weights, so a run at any but `temperature` is refused.
    """

    shorthand: ClassVar[str] = "k"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = False
    deepest: ClassVar[float] = math.inf

    kind: Literal["sampled"] = "sampled"
    k: pydantic.PositiveInt = 30
    temperature: float = pydantic.Field(default=1.0, ge=0.01, le=10_000, allow_inf_nan=False)

    def layout(self, classes: int) -> dict[str, Field]:
        """One record of bytes: class numbers in the smallest integer that holds them, then the weights."""
        kept = min(self.k, classes)
        return {RECORD: Field("uint8", (kept * (id_dtype(classes).itemsize + 2),))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    @property
    def temperatures(self) -> tuple[float, float]:
        """The one temperature that the labels are of."""
        return self.temperature, self.temperature

    def check_temperature(self, temperature: float) -> None:
        """Refuse every temperature but the one the labels were drawn for."""
        check_lowest(temperature, 0.0, self.kind, "topk")
        if abs(temperature - self.temperature) > 1e-6 * self.temperature:
            raise ConfigError(
                f"{self.kind} labels are valid at temperature {self.temperature:g} alone, for which they were drawn, "
                f"not at {temperature:g}; train with `temperature={self.temperature:g}` or dump with `codec=topk`"
            )

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:
        """Records, uint8 (n, bytes), of finite `logits` (n, classes), drawn with `words`, uint64 (n,).

        Raises:
            ConfigError: there is not one word per label.
        """
        rows = rows_of(logits)
        if words is None or words.shape != (len(rows),):
            raise ConfigError(f"{self.kind} labels are drawn: give encode one random word per label, {len(rows)} here")
        chance = torch.from_numpy(uniform(words))

        def drawn(part: Tensor, place: slice) -> _Draws:
            return _drawn(part, min(self.k, rows.shape[1]), self.temperature, chance[place].to(part.device))

        def record(ids: Tensor, logs: NDArray[np.float16]) -> RecordBytes:
            return join_parts(ids.cpu().numpy().astype(id_dtype(rows.shape[1])), logs)

        def there(part: Tensor, place: slice) -> tuple[RecordBytes, NDArray[np.bool_]]:
            ids, weights, doubtful = drawn(part, place)
            logs, unsure = rounded(weights.cpu().numpy(), _LOG, np.log)
            return record(ids, logs), doubtful.cpu().numpy() | unsure.any(axis=1)

        def here(part: Tensor, numbers: Any) -> RecordBytes:
            ids, weights, _ = drawn(part, numbers)
            return record(ids, np.log(weights.numpy()).astype(_LOG))

        return {RECORD: encode_on_gpu(rows, there, here) if stays(rows) else here(rows, slice(None))}

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:
        """Logits, float32 (n, classes), whose softmax at `temperature` is the label; classes not drawn have 0 of it.

        Raises:
            StoreError: the arrays are not laid out so, or name a class that does not exist.
        """
        return self.sparse(arrays, classes, temperature=temperature).dense()

    def sparse(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> SparseLogits:
        """What `decode` gives, without building rows."""
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        ids, logs = parted(record, id_dtype(classes), min(self.k, classes))
        scale = self.temperature if temperature is None else temperature
        logits = tensor(logs.astype(np.float32)) * scale
        others = torch.full((len(record),), _NOT_DRAWN * scale)
        return SparseLogits(tensor(known_ids(ids.astype(np.int64), classes)), logits, others, classes)


class _Draws(NamedTuple):
    """Class numbers and weights, (n, k) each: those that are certain by falling weight, then the drawn ones.

    `doubtful`, bool (n,): on a GPU, the rows of which the CPU might draw others.
    """

    ids: Tensor
    weights: Tensor
    doubtful: Tensor


def _drawn(rows: Tensor, k: int, temperature: float, chance: Tensor) -> _Draws:
    top = highest(rows, k)
    logs = (rows.double() / temperature).log_softmax(dim=1).clamp_(min=_LEAST_LOG)
    shares = logs.exp_()
    high = shares.gather(1, top)
    # The mass from each of the high classes downward, summed from the low end: a difference could be negative.
    rest = shares.scatter(1, top, 0.0)
    below = _sums(rest) + high.flip(1).cumsum(dim=1).flip(1)
    places = torch.arange(k, device=rows.device)
    claims = high * (k - places)
    certain = (claims >= below).long().cumprod(dim=1).sum(dim=1, keepdim=True)
    sure = places < certain
    rest.scatter_(1, top, high.masked_fill(sure, 0.0))
    weight = _sums(rest) / (k - certain).clamp(min=1)
    # One point in each of the k - certain equal stretches of the rest's mass, all at the same place of theirs.
    course = rest.cumsum(dim=1)
    points = (chance[:, None] + places - certain) / (k - certain).clamp(min=1) * course[:, -1:]
    last = rest.shape[1] - 1 - (rest > 0).flip(1).byte().argmax(dim=1, keepdim=True)
    drawn = torch.searchsorted(course, points, right=True).minimum(last)
    doubtful = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if stays(rows):
        low, high_claims = nudged(claims)
        before, after = (torch.searchsorted(course, each, right=True).minimum(last) for each in nudged(points))
        doubtful = ((low >= below) != (high_claims >= below)).any(dim=1) | ((before != after) & ~sure).any(dim=1)
    return _Draws(torch.where(sure, top, drawn), torch.where(sure, high, weight), doubtful)


def _sums(rows: Tensor) -> Tensor:
    """Row sums (n, 1), added up by numpy: torch's order may change with the number of rows and threads."""
    if stays(rows):
        return rows.sum(dim=1, keepdim=True)
    return torch.from_numpy(rows.numpy().sum(axis=1, keepdims=True))
