"""What a transform codec takes from a teacher: directions of its classifier's weights, and steps for so many bytes."""

from __future__ import annotations

import base64
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._label import RECORD
from softlabels.codecs._transform import MEAN, Fit, TransformCoding, thresholded
from softlabels.core.arrayfile.blosc import compressed_size
from softlabels.errors import ConfigError

_Floats = NDArray[np.float64]

FEWEST_VIEWS = 3
"""With fewer views of an image, its mean costs more than it gives."""

_COMPONENTS = 640
_ENTRY = 5.5 / 127
"""A step of the basis, in the deviation of its entries."""
_PRICE = 0.1
"""How much squared error, in squared steps, a bit may save: what rounds to few numbers other than 0 needs few bits."""
_STEPS, _HALVINGS = 12, 5
"""Steps that are tried, from the finest on, until one is coarse enough; then as many between it and the one before."""
_SEARCHED = 1024
"""Labels on which steps are tried."""
_MARGIN = 0.97
"""Of the bytes that are asked for, what a label of the sample may take: others take a little more or less."""
_RARE = 1e-3
"""Components of which no more coefficients than this share are not 0 are left out."""


def fit(codec: TransformCoding, logits: Tensor, *, views: int, weight: Tensor | None = None) -> Fit:
    """See `TransformCoding.fit_to`."""
    rows = logits.double().cpu().numpy()
    rows = rows - rows.mean(axis=-1, keepdims=True)
    shown, images, classes = rows.shape
    codec.check_width(classes)
    if weight is None:
        least = max(16, min(classes, _COMPONENTS) // 8)
        if images < least:
            raise ConfigError(
                f"{codec.kind} learns from {least} images or more where the logits do not come from one linear layer, "
                f"and there are {images}; choose `codec=quantized` or `codec=topk`"
            )
        basis = _basis(rows.reshape(-1, classes).T)
    else:
        basis = _basis(weight.double().cpu().numpy())
    searched = rows[:, : max(16, _SEARCHED // shown)]
    search = _Search(codec, searched, basis, views)
    # Coarser steps take fewer bytes, but not always: the highest classes, which they tell little of, take more.
    search.spend()
    steps = np.geomspace(search.finest, 64 * search.finest, _STEPS).tolist()
    tried, sizes, fine = None, [], steps[0]
    for step in steps:
        tried = search.made(step)
        sizes.append(tried.size)
        if tried.size <= _MARGIN * codec.bytes:
            break
        fine = step
    if tried is None or tried.size > _MARGIN * codec.bytes:
        raise ConfigError(
            f"{codec.kind}:{codec.bytes:g} is too little for the {min(codec.k, classes)} highest classes and a word on "
            f"the others, which take {min(sizes):.1f} bytes; allow more, or a smaller `k`"
        )
    best, coarse = tried, step
    for _ in range(_HALVINGS if fine < coarse else 0):
        middle = math.sqrt(fine * coarse)
        tried = search.made(middle)
        if tried.size <= _MARGIN * codec.bytes:
            coarse, best = middle, tried
        else:
            fine = middle
    return best


def _basis(table: _Floats) -> NDArray[np.int8]:
    """The directions in which columns of `table` (classes, n) vary most, up to a constant: int8 (classes, components).

    Eigenvectors of the centred ``table @ table.T``, those of the largest eigenvalues first.
    """
    centred = table - table.mean(axis=0, keepdims=True)
    classes, columns = centred.shape
    if classes <= columns:
        values, vectors = np.linalg.eigh(centred @ centred.T)
    else:  # the same by way of the smaller matrix
        values, right = np.linalg.eigh(centred.T @ centred)
        vectors = centred @ right
    order = np.argsort(-values)[: int((values > 1e-9 * values.max()).sum())][: min(_COMPONENTS, classes - 1)]
    if not len(order):
        raise ConfigError("the teacher gives all classes equal logits, so there is nothing to learn; check its weights")
    vectors = vectors[:, order]
    vectors /= np.linalg.norm(vectors, axis=0)
    # Either sign would do; this one is the same on every machine.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])
    entries = np.clip(np.rint(vectors * signs * (math.sqrt(classes) / _ENTRY)), -127, 127)
    return np.asarray(entries, np.int8)


class _Search:
    """Steps to try: each gives a codec, and what a label of the sample takes with it."""

    def __init__(self, codec: TransformCoding, rows: _Floats, basis: NDArray[np.int8], views: int) -> None:
        self._codec, self._basis, self._views = codec, basis, views
        self._has_mean = views >= FEWEST_VIEWS
        if self._has_mean and 1 < len(rows) < views:
            # The mean of many views lies farther from each of them than that of the few that the sample has.
            mean = rows.mean(axis=0)
            rows = mean + (rows - mean) * math.sqrt((1 - 1 / views) / (1 - 1 / len(rows)))
        self._rows = rows
        # One image's mean is paid for once, and serves all of its views.
        self._ratio = max(1, round(1.2 * math.sqrt(views))) if self._has_mean else 1
        entries = basis.astype(np.float64)
        self._length = float(np.sqrt((entries * entries).sum(axis=0)).mean())
        self._own = rows @ np.linalg.solve(entries.T @ entries, entries.T).T * self._length
        self.finest = float(np.abs(self._own).max()) / 127 or 1.0
        """With a finer step the largest coefficient would not fit into a byte."""

    def spend(self) -> None:
        """Give more of the bytes to each view where the finest step leaves some."""
        while self._ratio > 1 and self.made(self.finest).size <= _MARGIN * self._codec.bytes:
            self._ratio //= 2

    def made(self, step: float) -> Fit:
        """The fit with this step, and with what is left of the components."""
        ratio, own = self._ratio, self._own / step
        mean, zeros = np.zeros((own.shape[1], 0)), np.zeros(0)
        left = own
        if self._has_mean:
            mean, zeros = _priced(own.mean(axis=0))
            size = np.maximum((mean * mean).sum(axis=-1), 1.0)
            left = own - ((own * mean).sum(axis=-1) / size)[..., None] * mean
        residual, residual_zeros = _priced(left / ratio)
        kept = _used(mean), max(_used(residual), 0 if _used(mean) else 1)
        components = max(kept)
        found = Fit(
            basis=_text(np.ascontiguousarray(self._basis[:, :components])),
            components=components,
            mean=kept[0],
            residual=kept[1],
            zeros=_text((256 * np.concatenate([zeros[: kept[0]], residual_zeros[: kept[1]]])).astype(np.uint8)),
            unit=step / self._length,
            ratio=ratio,
            size=1.0,
        )
        return found.model_copy(update={"size": self._size(found)})

    def _size(self, found: Fit) -> float:
        """Bytes on disk of one label of the sample."""
        codec = self._codec.model_copy(update={"fit": found})
        arrays = codec.encode_shard(torch.from_numpy(self._rows))
        shown, images, _ = self._rows.shape
        size = sum(compressed_size(view.T) for view in arrays[RECORD]) / float(shown * images)
        if MEAN in arrays:
            size += compressed_size(arrays[MEAN][0].T) / (self._views * images)
        return size


def _priced(coefficients: _Floats) -> tuple[_Floats, _Floats]:
    """Whole numbers for coefficients (..., n) in steps, and the thresholds (n,) below which they became 0.

    What becomes 0 instead of 1 costs ``2 x - 1`` of squared error and saves ``log2(p0 / p1)`` bits, with the shares of
    0 and of 1 among a component's numbers.
    """
    zeros = np.full(coefficients.shape[-1], 0.6)
    for _ in range(2):
        whole = thresholded(coefficients, zeros)
        none = (whole == 0).mean(axis=tuple(range(whole.ndim - 1))).clip(1e-4, 1 - 1e-4)
        saved = np.maximum(np.log2(2 * none / (1 - none)), 0.0)
        zeros = np.floor(256 * np.clip(0.5 + _PRICE / 2 * saved, 0.5, 0.9)) / 256
    return thresholded(coefficients, zeros), zeros


def _used(numbers: _Floats) -> int:
    """How many components, from the first, have numbers other than 0 often enough."""
    if not numbers.shape[-1]:
        return 0
    used = np.flatnonzero((numbers != 0).mean(axis=tuple(range(numbers.ndim - 1))) > _RARE)
    return int(used[-1]) + 1 if len(used) else 0


def _text(array: NDArray[np.generic]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
