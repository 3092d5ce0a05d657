"""Features by their principal components: 8 bits for each of the K that tell most, and a scale per row."""

from __future__ import annotations

import base64
import functools
import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._label import RECORD, Field, array_of, check_lowest, layout_bytes, rows_of, tensor
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.errors import ConfigError, StoreError

MOST_NUMBERS = 1 << 22
"""Numbers in a basis, which lies in the teacher's card."""

MOST_VALUES = 1 << 15
"""Values of a row: with more, a sample to learn from would not fit into memory."""

_SCALE_BYTES = 4
_LARGEST = 127
_LEAST_DEVIATION = 0.01
"""Of the largest one. Of directions in which the sample varies less, rows that are not in it may lie far out, and the
scale of a row must not grow for their sake."""

_Floats = NDArray[np.float64]


class Components(pydantic.BaseModel):
    """What `pca` takes from its teacher.

    Attributes:
        basis: base64 of the directions, of length 1 each, float16 (components, values), row by row.
        mean: base64 of the mean row, float32 (values,).
        deviations: base64 of how far rows lie from the mean in each direction, root mean square and no less than 1 % of
            the largest one, float32 (components,).
        share: of the sample's squared distances from the mean, what lies in these directions.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    basis: str = pydantic.Field(repr=False)
    mean: str = pydantic.Field(repr=False)
    deviations: str = pydantic.Field(repr=False)
    share: float = pydantic.Field(ge=0, le=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Components:
        try:
            basis, mean, deviations = (
                len(base64.b64decode(text, validate=True)) for text in (self.basis, self.mean, self.deviations)
            )
        except ValueError as problem:
            raise ValueError("the basis is not base64") from problem
        if not basis or basis != 2 * (mean // 4) * (deviations // 4) or mean % 4 or deviations % 4:
            raise ValueError(f"a basis of {basis} bytes does not fit a mean of {mean} and deviations of {deviations}")
        return self

    @property
    def values(self) -> int:
        """Values of a row."""
        return len(base64.b64decode(self.mean)) // 4

    @property
    def components(self) -> int:
        """Directions."""
        return len(base64.b64decode(self.deviations)) // 4


class PrincipalComponents(Part):
    """Keeps how far a row lies from the mean row in the `k` directions in which rows vary most, in 8 bits each.

    For features (Pearson 1901; Jolliffe, "Principal Component Analysis", 2002). Directions and mean are learnt from a
    sample when a dump begins, and kept in the card. A coefficient is a whole number from -127 to 127 times the row's
    scale times the direction's deviation: the scale is the largest of the row's coefficients in deviations, divided by
    127, so that a coefficient is off by at most 1/254 of that many deviations.
    """

    shorthand: ClassVar[str] = "k"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True
    for_logits: ClassVar[bool] = False
    keeps_offset: ClassVar[bool] = True
    deepest: ClassVar[float] = math.inf
    sample: ClassVar[tuple[int, int]] = (2048, 2)
    """Images and views of each, of a sample to learn from, at most."""

    kind: Literal["pca"] = "pca"
    k: Annotated[int, pydantic.Field(ge=1, le=1 << 14)] = 64
    fit: Components | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fit is not None and self.fit.components != self.k:
            raise ValueError(f"a basis of {self.fit.components} components is not one of k={self.k}")
        return self

    @property
    def temperatures(self) -> tuple[float, float]:
        """Any: features are not softened."""
        return 0.0, math.inf

    def check_temperature(self, temperature: float) -> None:
        """Refuse what is no temperature."""
        check_lowest(temperature, 0.0, self.kind, "dense:fp16-raw")

    def layout(self, classes: int) -> dict[str, Field]:  # noqa: ARG002
        """One record of bytes: the scale, then the coefficients."""
        return {RECORD: Field("uint8", (_SCALE_BYTES + self.k,))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    def check_width(self, values: int) -> None:
        """Refuse rows that are too long to learn from, or no longer than `k`. Raises ConfigError."""
        if values > MOST_VALUES or self.k * values > MOST_NUMBERS:
            raise ConfigError(
                f"{self.kind}:{self.k} of {values:,} values is too much: rows have {MOST_VALUES:,} values at most, and "
                f"k times their values is {MOST_NUMBERS:,} at most; pool the output (`:grid4`, `:mean`), or take a "
                f"smaller k"
            )
        if self.k >= values:
            raise ConfigError(f"{self.kind}:{self.k} saves nothing for rows of {values:,} values; choose int8")

    def fit_to(self, logits: Tensor, *, views: int, weight: Tensor | None = None) -> Self:  # noqa: ARG002
        """This codec with the principal components of these rows, (views, images, values).

        Raises:
            ConfigError: the rows are too few, too long, or have no more than `k` values.
        """
        rows = logits.reshape(-1, logits.shape[-1]).double().cpu().numpy()
        count, values = rows.shape
        self.check_width(values)
        if self.k >= count:
            raise ConfigError(
                f"{self.kind}:{self.k} learns from more than {self.k} rows, and there are {count}; choose a smaller k, "
                f"or int8"
            )
        return self.model_copy(update={"fit": _principal(rows, self.k)})

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Records, uint8 (n, 4 + k), of finite rows (n, values). No chance is involved.

        Raises:
            ConfigError: the rows are no matrix of floats, or not finite.
        """
        rows = rows_of(logits).cpu().double().numpy()
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            number = int(np.flatnonzero(~finite)[0])
            raise ConfigError(f"{self.kind} takes finite values, and row {number} has others; check the weights")
        basis = self._of(rows.shape[1])
        own = (rows - basis.mean) @ basis.projection
        scale = (np.abs(own).max(axis=1, keepdims=True) / _LARGEST).astype("<f4")
        numbers = np.rint(own / np.where(scale > 0, scale, 1.0)).clip(-_LARGEST, _LARGEST).astype(np.int8)
        return {RECORD: np.concatenate([scale.view(np.uint8), numbers.view(np.uint8)], axis=1)}

    def decode(
        self,
        arrays: Arrays,
        classes: int,
        *,
        temperature: float | None = None,  # noqa: ARG002
        device: torch.device | None = None,
    ) -> Tensor:
        """The values, float32 (n, values), on `device`, the CPU if none is named; computed there.

        Raises:
            StoreError: the arrays are not laid out so.
        """
        basis = self._of(classes)
        record = array_of(arrays, RECORD, self.layout(classes)[RECORD], self.kind)
        scale = tensor(np.ascontiguousarray(record[:, :_SCALE_BYTES]).view("<f4").astype(np.float32, copy=False))
        numbers = tensor(np.ascontiguousarray(record[:, _SCALE_BYTES:]).view(np.int8))
        device = device or torch.device("cpu")
        rows, mean = basis.on(device)
        with torch.autocast(device.type, enabled=False):
            return torch.addmm(mean, numbers.to(device, non_blocking=True).float().mul_(scale.to(device)), rows)

    def _of(self, values: int) -> _Basis:
        """The basis. Raises ConfigError before it is learnt, StoreError where it is of another number of values."""
        if self.fit is None:
            raise ConfigError(
                f"{self.kind} needs directions that are learnt from a teacher; `softlabels dump` learns them, and "
                f"`fit_to` does"
            )
        if self.fit.values != values:
            raise StoreError(
                f"the basis has {self.fit.values:,} values, the rows {values:,}; the card is of other labels"
            )
        return _basis(self.fit)


class _Basis:
    """Components as arrays: the `mean` (values,), and the `projection` (values, components) into deviations."""

    def __init__(self, fit: Components) -> None:
        self.mean = np.frombuffer(base64.b64decode(fit.mean), "<f4").astype(np.float64)
        self._deviations = np.frombuffer(base64.b64decode(fit.deviations), "<f4").astype(np.float64)
        self._rows = np.frombuffer(base64.b64decode(fit.basis), "<f2").reshape(-1, len(self.mean)).astype(np.float64)
        self._there: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @functools.cached_property
    def projection(self) -> _Floats:
        """Gives the coefficients that are nearest in the sense of least squares: (values, components)."""
        return np.asarray(np.linalg.pinv(self._rows * self._deviations[:, None], rcond=1e-9))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Directions times their deviations, and the mean, float32 (components, values) and (values,), there."""
        if device not in self._there:
            rows = (self._rows * self._deviations[:, None]).astype(np.float32)
            mean = self.mean.astype(np.float32)
            self._there[device] = torch.from_numpy(rows).to(device), torch.from_numpy(mean).to(device)
        return self._there[device]


_basis = functools.lru_cache(maxsize=16)(_Basis)


def _principal(rows: _Floats, k: int) -> Components:
    """The `k` principal components of rows (n, values)."""
    mean = rows.mean(axis=0)
    centred = rows - mean
    count, values = centred.shape
    if values <= count:
        variances, vectors = np.linalg.eigh(centred.T @ centred)
        vectors = vectors[:, ::-1][:, :k].T
    else:  # the same by way of the smaller matrix
        variances, left = np.linalg.eigh(centred @ centred.T)
        vectors = left[:, ::-1][:, :k].T @ centred
    total = max(float((centred * centred).sum()), np.finfo(np.float64).tiny)
    largest = np.maximum(variances[::-1][:k], 0.0)
    if not largest[0] > 0:
        raise ConfigError("all rows of the sample are equal, so there is nothing to learn; look at the output's layer")
    # Directions in which nothing varies become rows of zeros.
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths > 0, lengths, 1.0)
    # Either sign would do; this one is the same on every machine.
    signs = np.sign(vectors[np.arange(k), np.abs(vectors).argmax(axis=1)])
    deviations = np.sqrt(largest / count)
    return Components(
        basis=_text((vectors * signs[:, None]).astype("<f2")),
        mean=_text(mean.astype("<f4")),
        deviations=_text(np.maximum(deviations, _LEAST_DEVIATION * deviations[0]).astype("<f4")),
        share=min(float(largest.sum()) / total, 1.0),
    )


def _text(array: NDArray[np.generic]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
