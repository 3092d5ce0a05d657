"""Every logit as a float."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._gpu import encode_on_gpu, stays
from softlabels.codecs._label import Field, array_of, check_lowest, layout_bytes, rows_of, tensor
from softlabels.core.arrays import Arrays
from softlabels.core.config import Part
from softlabels.core.philox import Words

_LOGITS = "logits"
_DEEPEST = 65504.0


class Dense(Part):
    """Keeps every logit: ``fp32`` as it is; ``fp16`` less the row's highest, so that what counts is finest.

    A half float is off by at most 2**-11 of a class's depth below the highest logit; 65,504 is the deepest.
    ``fp16-raw`` keeps half floats of the values as they are: for features, and for losses on raw logits.
    """

    shorthand: ClassVar[str] = "dtype"
    compressed: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True

    kind: Literal["dense"] = "dense"
    dtype: Literal["fp16", "fp32", "fp16-raw"] = "fp16"

    def layout(self, classes: int) -> dict[str, Field]:
        """One float per class."""
        return {_LOGITS: Field("float32" if self.dtype == "fp32" else "float16", (classes,))}

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view."""
        return layout_bytes(self.layout(classes))

    @property
    def temperatures(self) -> tuple[float, float]:
        """From 0.1 upward as half floats, any as full ones."""
        return (0.0 if self.dtype == "fp32" else 0.1), math.inf

    @property
    def keeps_offset(self) -> bool:
        """Whether a row comes back with its own mean, not only up to a constant."""
        return self.dtype != "fp16"

    @property
    def deepest(self) -> float:
        """The largest half float; none for full ones."""
        return math.inf if self.dtype == "fp32" else _DEEPEST

    def check_temperature(self, temperature: float) -> None:
        """Refuse temperatures below 0.1 of half floats, whose rounding such a temperature magnifies."""
        check_lowest(temperature, self.temperatures[0], f"dense:{self.dtype}", "dense:fp32")

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Floats (n, classes) of finite `logits` (n, classes). No chance is involved."""
        rows = rows_of(logits)
        if self.dtype == "fp32":
            return {_LOGITS: rows.cpu().numpy()}
        if self.dtype == "fp16-raw":
            return {_LOGITS: rows.clamp(-_DEEPEST, _DEEPEST).half().cpu().numpy()}
        return {_LOGITS: encode_on_gpu(rows, _halves_there, _halves) if stays(rows) else _halves(rows)}

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Logits, float32 (n, classes), the same for every temperature.

        Raises:
            StoreError: the arrays are not laid out so.
        """
        return tensor(array_of(arrays, _LOGITS, self.layout(classes)[_LOGITS], self.kind)).float()


def _halves(rows: Tensor, numbers: NDArray[np.int64] | None = None) -> NDArray[np.float16]:  # noqa: ARG001
    below = rows - rows.amax(dim=1, keepdim=True)
    return below.clamp_min(-_DEEPEST).half().cpu().numpy()


def _halves_there(rows: Tensor, place: slice) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:  # noqa: ARG001
    # Where 0 and -0 are both the highest, either may be taken, and tells the sign of what is left of it.
    return _halves(rows), (rows.amax(dim=1) == 0).cpu().numpy()
