"""What codecs share: fields, rows of logits, records of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs._gpu import stays
from softlabels.core.arrays import Arrays
from softlabels.errors import ConfigError, StoreError

RECORD = "record"
"""Name of the one array of codecs that pack a label into bytes."""


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a label: its numpy dtype by name, and its shape without the labels' axis.

    `columns`: where it is compressed, values of one kind are stored beside each other. `per_image`: all views of an
    image have one.
    """

    dtype: str
    shape: tuple[int, ...]
    columns: bool = False
    per_image: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that one label takes in this array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def layout_bytes(layout: Mapping[str, Field]) -> float:
    """Bytes per label of a layout."""
    return float(sum(field.nbytes for field in layout.values()))


def rows_of(logits: Tensor) -> Tensor:
    """`logits` as a contiguous float32 tensor (n, classes): on their GPU, else on the CPU.

    Raises:
        ConfigError: they are not a matrix of floats with at least one class.
    """
    if logits.ndim != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise ConfigError(
            f"a codec takes floating-point logits of shape (labels, classes), got {logits.dtype} of shape "
            f"{tuple(logits.shape)}; give it one row per label"
        )
    rows = logits.detach().to(torch.float32)
    return (rows if stays(rows) else rows.cpu()).contiguous()


def array_of(arrays: Arrays, name: str, field: Field, codec: str) -> NDArray[Any]:
    """The array `name` of `arrays`, known to be (n, *field.shape) of the field's dtype.

    Raises:
        StoreError: it is missing or laid out otherwise.
    """
    if name not in arrays:
        raise StoreError(f"{codec} labels need an array {name!r}, found {sorted(arrays)}; they are of another codec")
    array = np.asarray(arrays[name])
    if array.shape[1:] != field.shape or array.ndim == 0 or array.dtype != np.dtype(field.dtype):
        raise StoreError(
            f"{codec} labels need {name!r} as {field.dtype} of shape {('labels', *field.shape)}, found {array.dtype} "
            f"of shape {array.shape}; they are of another codec or class count"
        )
    return array


def known_ids(ids: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """`ids` themselves, or a StoreError when one is no class."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        raise StoreError(f"a label names class {int(ids.max())} of {classes}; it is damaged, verify the store")
    return ids


def tensor(array: NDArray[Any]) -> Tensor:
    """A tensor of `array`'s values, over its memory where that may be written to."""
    array = np.ascontiguousarray(array)
    # Of a single row numpy calls any stride contiguous, also one that is no whole number of elements.
    whole = all(stride % array.itemsize == 0 for stride in array.strides)
    return torch.from_numpy(array if array.flags.writeable and whole else array.copy())


def check_lowest(temperature: float, lowest: float, codec: str, instead: str) -> None:
    """Refuse temperatures below `lowest` (and those that are no temperatures).

    Raises:
        ConfigError: with the codec, its range and the flags that help.
    """
    if not temperature > 0:
        raise ConfigError(f"a temperature is a number above 0, not {temperature}; set `temperature`")
    if temperature < lowest:
        raise ConfigError(
            f"{codec} labels are valid at temperatures from {lowest:g} upward, not at {temperature:g}; "
            f"train with `temperature={lowest:g}` or dump with `codec={instead}`"
        )
