"""Every logit at any temperature in some 40 bytes: coefficients in a basis of the teacher's own, coded view by view.

Transform coding (Goyal, "Theoretical foundations of transform coding", IEEE Signal Processing Magazine 2001): most of
what a row of logits varies in lies in a few directions, those of the classifier's weights, and rows of one image in
several views differ little. So of each shard are kept, with logits in the basis B, (classes, components), int8:

    mean      of each image, the mean row of its views: whole numbers m, one for each component
    record    of each view: its scale g, the mass of the tail t, the k highest classes as gaps of rank, how far their
              logits are from those decoded, and the residual: whole numbers r, in steps `ratio` times as coarse

A logit is ``unit (g B m / 64 + ratio B r)``, which is an integer times `unit` / 64: so the order of the decoded
classes, in which ranks are counted, is the same on every processor. One step for all components is what rate and
distortion ask for; what is small becomes 0, and an entropy coder (zstd, component by component) does the rest.
"""

from __future__ import annotations

import base64
import functools
import math
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, rows_of
from softlabels.codecs._summary import highest
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.errors import ConfigError, StoreError

MEAN = "mean"
MOST_COMPONENTS = 1024
"""With more, a sum of products of two int8 numbers might not fit into a float32 without rounding."""

_NARROW = ("mps",)
"""Devices without float64: what is for them is decoded on the CPU."""

_LARGEST = 127
_SCALE = 64
"""A scale of 1."""
_VALUE_STEPS, _TAIL_STEPS = 8, 16
"""Steps to a logit of the highest classes' differences, and to a nat of the tail's mass."""
_AT_ONCE = 1 << 22
"""Logits that are encoded together, in double precision."""

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]


class Fit(pydantic.BaseModel):
    """What a transform codec takes from its teacher.

    Attributes:
        basis: base64 of the directions, int8 (classes, components), row by row.
        components: columns of the basis.
        mean: of these, how many an image's mean row has; 0 for labels that stand each for itself.
        residual: how many each view has.
        zeros: base64 of how large a coefficient must be not to become 0, in 1/256 of a step, uint8: those of the mean,
            then those of a residual. Coefficients that are rarely other than 0 cost more bits, and must be larger.
        unit: logits for each unit of a coefficient times an entry of the basis.
        ratio: steps of the mean to one of a residual.
        size: bytes on disk of one label, of the sample that all this was chosen on.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    basis: str = pydantic.Field(repr=False)
    components: int = pydantic.Field(ge=1, le=MOST_COMPONENTS)
    mean: int = pydantic.Field(ge=0)
    residual: int = pydantic.Field(ge=0)
    zeros: str = pydantic.Field(repr=False)
    unit: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
    ratio: int = pydantic.Field(ge=1, le=1000)
    size: float = pydantic.Field(gt=0)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Fit:
        if max(self.mean, self.residual) != self.components:
            raise ValueError(f"{self.mean} and {self.residual} components do not fit a basis of {self.components}")
        try:
            basis, zeros = (base64.b64decode(text, validate=True) for text in (self.basis, self.zeros))
        except ValueError as problem:
            raise ValueError("the basis is not base64") from problem
        if len(basis) % self.components or not basis:
            raise ValueError(f"the basis has {len(basis)} bytes, which are no rows of {self.components}")
        if len(zeros) != self.mean + self.residual:
            raise ValueError(f"{len(zeros)} thresholds do not fit {self.mean} and {self.residual} components")
        return self

    @property
    def classes(self) -> int:
        """Rows of the basis."""
        return len(_basis(self).rows)


class TransformCoding(Part):
    """Keeps every logit coarsely and the `k` highest finely, in about `bytes` on disk: for every temperature.

    Made for many classes and several views of an image. What it needs of a teacher, directions and steps, is found from
    its classifier's weights and a sample of its logits (`fit`) when a dump begins, and kept in the teacher's card. Its
    shards are compressed; labels of a shard are encoded together.
    """

    shorthand: ClassVar[str] = "bytes"
    compressed: ClassVar[bool] = True
    has_logits: ClassVar[bool] = True
    temperatures: ClassVar[tuple[float, float]] = (0.5, math.inf)
    deepest: ClassVar[float] = math.inf
    sample: ClassVar[tuple[int, int]] = (256, 16)
    """Images and views of each, of a sample to learn from, at most."""

    kind: Literal["transform"] = "transform"
    bytes: Annotated[float, pydantic.Field(ge=4, le=4096)] = 40.0
    k: pydantic.PositiveInt = 10
    fit: Fit | None = None

    @property
    def fitted(self) -> Fit:
        """What was found of the teacher. Raises ConfigError where that is still to be done."""
        if self.fit is None:
            raise ConfigError(
                f"{self.kind} labels need a basis that is learnt from a teacher; `softlabels dump` and `convert` learn "
                f"one, and `fit_to` does"
            )
        return self.fit

    def check_width(self, values: int) -> None:
        """Refuse a single class. Raises ConfigError."""
        if values < 2:
            raise ConfigError(f"a {self.kind} codec is for two classes and more; choose `codec=dense`")

    def fit_to(self, logits: Tensor, *, views: int, weight: Tensor | None = None) -> Self:
        """This codec with what it needs of the teacher that gave these logits.

        Args:
            logits: a sample, float32 (views, images, classes), of some views of some hundred images.
            views: how many views of an image a shard will hold.
            weight: of the linear layer that gives the logits, (classes, features); None to learn from `logits`.

        Raises:
            ConfigError: the images are too few to learn from, or the bytes for these classes.
        """
        from softlabels.codecs._fitting import fit

        return self.model_copy(update={"fit": fit(self, logits, views=views, weight=weight)})

    def layout(self, classes: int) -> dict[str, Field]:
        """The mean's coefficients of an image, where it has one, and a record of each view; both in columns."""
        fit = self._of(classes)
        record = Field("uint8", (self._residual_from(classes) + fit.residual,), columns=True)
        mean = Field("uint8", (fit.mean,), columns=True, per_image=True)
        return ({MEAN: mean} if fit.mean else {}) | {RECORD: record}

    def bytes_per_label(self, classes: int) -> float:  # noqa: ARG002
        """Bytes of one label of one view on disk, of the sample that the codec was fitted to; before, those asked."""
        return self.bytes if self.fit is None else self.fit.size

    def check_temperature(self, temperature: float) -> None:
        """Refuse temperatures below 0.5, which magnify the steps."""
        check_lowest(temperature, self.temperatures[0], self.kind, "dense")

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The arrays of finite `logits` (n, classes) that are the only views of n images: (n, ...) each."""
        arrays = self.encode_shard(rows_of(logits)[None])
        return {name: array[0] for name, array in arrays.items()}

    def encode_shard(self, logits: Tensor) -> dict[str, np.ndarray]:
        """The arrays of all views of some images, finite logits (views, images, classes).

        A label's bytes depend on the other views of its image, and on no other image.

        Returns:
            The record as (views, images, ...), and the mean, where there is one, as (1, images, ...).
        """
        views, images, classes = logits.shape
        fit, made = self._of(classes), []
        for start in range(0, max(images, 1), max(1, _AT_ONCE // (views * classes))):
            part = logits[:, start : start + max(1, _AT_ONCE // (views * classes))]
            rows = part.detach().cpu().double().numpy()
            made.append(self._encoded(rows - rows.mean(axis=-1, keepdims=True), fit))
        return {name: np.concatenate([each[name] for each in made], axis=1) for name in self.layout(classes)}

    def encode_like(self, logits: Tensor, arrays: Arrays) -> dict[str, np.ndarray]:
        """The arrays (n, ...) that these logits (n, classes) would have in the place of `arrays`, whose means stay."""
        rows = rows_of(logits).cpu().double().numpy()
        fit = self._of(rows.shape[1])
        mean = _unfolded(arrays[MEAN]).astype(np.float64) if fit.mean else np.zeros((len(rows), 0))
        found = self._viewed(rows[None] - rows.mean(axis=-1)[None, :, None], mean, fit)
        return {RECORD: found[0]} | ({MEAN: arrays[MEAN]} if fit.mean else {})

    def _encoded(self, rows: _Floats, fit: Fit) -> dict[str, NDArray[Any]]:
        """The arrays of centred logits (views, images, classes)."""
        if not fit.mean:
            return {RECORD: self._viewed(rows, np.zeros((rows.shape[1], 0)), fit)}
        project = _basis(fit).projection[: fit.mean]
        mean = thresholded(rows.mean(axis=0) @ project.T / fit.unit, _basis(fit).zeros[: fit.mean])
        return {MEAN: _folded(mean)[None], RECORD: self._viewed(rows, mean, fit)}

    def _viewed(self, rows: _Floats, mean: _Floats, fit: Fit) -> NDArray[np.uint8]:
        """The records of centred logits (views, images, classes) of images with these means (images, components)."""
        views, images, classes = rows.shape
        basis, flat = _basis(fit), rows.reshape(-1, classes)
        own = flat @ basis.projection.T / fit.unit
        means = np.broadcast_to(mean, (views, *mean.shape)).reshape(len(flat), fit.mean)
        size = np.maximum((means * means).sum(axis=-1), 1.0)
        scale = np.rint(_SCALE * (own[:, : fit.mean] * means).sum(axis=-1) / size).clip(0, 255)
        left = own[:, : fit.residual]
        shared = min(fit.mean, fit.residual)
        left[:, :shared] -= (scale / _SCALE)[:, None] * means[:, :shared]
        residual = thresholded(left / fit.ratio, basis.zeros[fit.mean :])
        numbers = np.rint(scale[:, None] * (means @ basis.rows[:, : fit.mean].T)).astype(np.int64)
        numbers += (_SCALE * fit.ratio) * np.rint(residual @ basis.rows[:, : fit.residual].T).astype(np.int64)
        logits = numbers * (fit.unit / _SCALE)
        return self._record(flat, logits, numbers, scale, residual).reshape(views, images, -1)

    def _record(
        self, rows: _Floats, logits: _Floats, numbers: _Integers, scale: _Floats, residual: _Floats
    ) -> NDArray[np.uint8]:
        """Records (n, bytes) of `rows`, of which `logits`, unit / 64 times `numbers`, is what the components give."""
        classes, count = rows.shape[1], len(rows)
        ids = highest(torch.from_numpy(rows), self._kept(classes)).numpy()
        keys = _keys(numbers)
        chosen = np.take_along_axis(keys, ids, axis=1)
        ranks = np.stack([(keys > each[:, None]).sum(axis=1) for each in chosen.T], axis=1)
        order = ranks.argsort(axis=1)
        ranks, ids = (np.take_along_axis(each, order, axis=1) for each in (ranks, ids))
        gaps = np.diff(ranks, axis=1, prepend=-1) - 1
        apart = np.rint(_VALUE_STEPS * np.take_along_axis(rows - logits, ids, axis=1)).astype(np.int64)
        others = np.ones(rows.shape, bool)
        np.put_along_axis(others, ids, values=False, axis=1)
        tail = np.zeros(count)
        if self._kept(classes) < classes:
            tail = np.rint(_TAIL_STEPS * (_mass(rows, others) - _mass(logits, others))).clip(-_LARGEST, _LARGEST)
        apart = _first_stays_first(rows, logits, ids, apart, others, np.maximum(tail, 0.0) / _TAIL_STEPS)
        folded = np.where(apart < 0, -2 * apart - 1, 2 * apart).clip(0, 0xFFFF)
        parts = [scale.astype(np.uint8)[:, None], _folded(tail)[:, None], *_bytes(gaps, _width(classes))]
        return np.concatenate([*parts, *_bytes(folded, 2), _folded(residual)], axis=1)

    def decode(
        self,
        arrays: Arrays,
        classes: int,
        *,
        temperature: float | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Logits, float32 (n, classes), on `device`, the CPU if none is named; computed there.

        Raises:
            StoreError: the arrays are not laid out so, or name a class that does not exist.
        """
        fit, layout = self._of(classes), self.layout(classes)
        record = array_of(arrays, RECORD, layout[RECORD], self.kind)
        mean = array_of(arrays, MEAN, layout[MEAN], self.kind) if fit.mean else record[:, :0]
        kept, width, end = self._kept(classes), _width(classes), self._residual_from(classes)
        ranks = np.cumsum(_number(record[:, 2 : 2 + kept * width], width) + 1, axis=1) - 1
        folded = _number(record[:, 2 + kept * width : end], 2)
        if ranks.size and ranks.max() >= classes:
            raise StoreError(f"a label names the {ranks.max() + 1:,}th of {classes:,} classes; verify the store")
        apart = _unfolded(folded) / _VALUE_STEPS
        wanted = device or torch.device("cpu")
        there = functools.partial(_there, device=torch.device("cpu") if wanted.type in _NARROW else wanted)
        coefficients = there(np.concatenate([mean, record[:, end:]], axis=1))
        numbers = _decoded(fit, coefficients, there(record[:, 0]))
        ids = _by_rank(_keys(numbers), ranks)
        logits = numbers.double().mul_(fit.unit / _SCALE).float()
        values = logits.gather(1, ids) + there(apart.astype(np.float32))
        tail = _unfolded(there(record[:, 1]).long()) / (_TAIL_STEPS * (1.0 if temperature is None else temperature))
        return logits.add_(tail[:, None]).scatter_(1, ids, values).to(wanted)

    def _of(self, classes: int) -> Fit:
        """The fit. Raises StoreError where it is of another number of classes."""
        fit = self.fitted
        if fit.classes != classes:
            raise StoreError(f"the basis has {fit.classes:,} classes, the labels {classes:,}; the card is of others")
        return fit

    def _kept(self, classes: int) -> int:
        return min(self.k, classes)

    def _residual_from(self, classes: int) -> int:
        """The first byte of a record's residual: before it the scale, the tail, the gaps of rank and the values."""
        return 2 + self._kept(classes) * (_width(classes) + 2)


class _Basis:
    """A basis as arrays: its `rows` (classes, components), and the `projection` on it, (components, classes)."""

    def __init__(self, fit: Fit) -> None:
        self.rows = np.frombuffer(base64.b64decode(fit.basis), np.int8).reshape(-1, fit.components).astype(np.float64)
        self.zeros = np.frombuffer(base64.b64decode(fit.zeros), np.uint8) / 256
        self._there: dict[torch.device, Tensor] = {}

    @functools.cached_property
    def projection(self) -> _Floats:
        """What gives the coefficients that are nearest in the sense of least squares: (components, classes)."""
        return np.asarray(np.linalg.solve(self.rows.T @ self.rows, self.rows.T))

    def on(self, device: torch.device) -> Tensor:
        """Its transpose there, float32 (components, classes)."""
        if device not in self._there:
            self._there[device] = torch.from_numpy(self.rows.T.astype(np.float32, order="C")).to(device)
        return self._there[device]


_basis = functools.lru_cache(maxsize=16)(_Basis)


def _decoded(fit: Fit, coefficients: Tensor, scale: Tensor) -> Tensor:
    """The decoded logits in 1/64 of the unit, int64 (n, classes): exact, since no float32 rounds such sums.

    `coefficients` are those of the mean and of the residual, folded, uint8 (n, mean + residual).
    """
    basis = _basis(fit).on(coefficients.device)
    whole: Tensor = _unfolded(coefficients.short()).float()
    with torch.autocast(coefficients.device.type, enabled=False):
        mean = (whole[:, : fit.mean] @ basis[: fit.mean]).long()
        residual = (whole[:, fit.mean :] @ basis[: fit.residual]).long()
    return mean.mul_(scale.long()[:, None]).add_(residual, alpha=_SCALE * fit.ratio)


def thresholded(coefficients: _Floats, zeros: _Floats) -> _Floats:
    """Whole numbers in the place of coefficients (..., n), -127 to 127; 0 for those below `zeros` (n,)."""
    whole = np.floor(np.abs(coefficients) + (1.0 - zeros))
    return np.copysign(np.minimum(whole, _LARGEST), coefficients)


def _folded(numbers: _Floats) -> NDArray[np.uint8]:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ...: small numbers of either sign have few bits."""
    return np.where(numbers < 0, -2 * numbers - 1, 2 * numbers).astype(np.uint8)


def _unfolded(numbers: Any) -> Any:
    """What `_folded` was given, of signed integers or uint8."""
    if isinstance(numbers, np.ndarray) and numbers.dtype == np.uint8:
        numbers = numbers.astype(np.int16)
    return (numbers >> 1) ^ -(numbers & 1)


def _keys(numbers: Any) -> Any:
    """Numbers (n, classes) that have an order without equals: of equal ones the lower class is higher."""
    classes = numbers.shape[1]
    if isinstance(numbers, Tensor):
        return numbers * classes - torch.arange(classes, device=numbers.device)
    return numbers * classes - np.arange(classes)


def _by_rank(keys: Tensor, ranks: _Integers) -> Tensor:
    """The classes of these ranks (n, k), rising within a row, 0 for the highest key: int64 (n, k)."""
    ids = torch.empty(ranks.shape, dtype=torch.int64, device=keys.device)
    deepest, left = ranks[:, -1], np.ones(len(ranks), bool)
    for most in (32, 128, keys.shape[1]):
        rows = np.flatnonzero(left & (deepest < most))
        if len(rows):
            here, wanted = (torch.from_numpy(each).to(keys.device) for each in (rows, ranks[rows]))
            ids[here] = keys[here].topk(min(most, keys.shape[1]), dim=1).indices.gather(1, wanted)
            left[rows] = False
    return ids


def _first_stays_first(
    rows: _Floats, logits: _Floats, ids: _Integers, apart: _Integers, others: NDArray[np.bool_], raised: _Floats
) -> _Integers:
    """`apart` (n, k), larger where the highest of the classes `ids` would not be decoded as the highest of all.

    `others` are the classes that are not among `ids`, of which none is `raised` by more at a temperature of 1.
    """
    place = np.take_along_axis(rows, ids, axis=1).argmax(axis=1)[:, None]
    own = np.take_along_axis(logits, ids, axis=1)
    values = own + apart / _VALUE_STEPS
    np.put_along_axis(values, place, -np.inf, axis=1)
    tail = np.where(others, logits, -np.inf).max(axis=1) + raised / TransformCoding.temperatures[0]
    needed = np.maximum(values.max(axis=1), tail)[:, None] - np.take_along_axis(own, place, axis=1)
    steps = np.where(np.isfinite(needed), np.floor(_VALUE_STEPS * needed + 0.01) + 1, -np.inf)
    first = np.take_along_axis(apart, place, axis=1)
    np.put_along_axis(apart, place, np.maximum(first, steps).astype(np.int64), axis=1)
    return apart


def _mass(logits: _Floats, among: NDArray[np.bool_]) -> _Floats:
    """The logarithm of the sum of the exponentials of some classes' logits: (n,)."""
    chosen = np.where(among, logits, -np.inf)
    highest_one = chosen.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(chosen - highest_one).sum(axis=1)) + highest_one[:, 0])


def _width(classes: int) -> int:
    """Bytes of a rank."""
    return np.min_scalar_type(classes - 1).itemsize


def _bytes(table: _Integers, width: int) -> list[NDArray[np.uint8]]:
    """The lowest bytes of all numbers (n, k), then the next ones: they compress apart."""
    return [(table >> 8 * place & 255).astype(np.uint8) for place in range(width)]


def _number(planes: NDArray[np.uint8], width: int) -> _Integers:
    """The numbers of which `_bytes` made these, int64 (n, k)."""
    parts = planes.reshape(len(planes), width, planes.shape[1] // width).astype(np.int64)
    return np.asarray((parts << 8 * np.arange(width)[:, None]).sum(axis=1))


def _there(array: NDArray[Any], *, device: torch.device) -> Tensor:
    """The array on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
