"""Reading a pickle that may hold plain values and byte arrays, and nothing that runs.

A pickle names callables and has them called. Ours are found in one table of three stand-ins, none of which is numpy's
own, so that a hostile file can neither import anything nor reach numpy's memory handling.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import DataError


def read_plain_pickle(file: Path) -> Any:
    """The value in `file`: numbers, text, bytes, lists, dictionaries and uint8 arrays; bytes of Python 2 stay bytes.

    Raises:
        DataError: the file cannot be read, is damaged, or names anything else; nothing of it was executed.
    """
    try:
        return _arrays(_Plain(io.BytesIO(file.read_bytes()), encoding="bytes").load())
    except pickle.UnpicklingError as problem:
        raise DataError(f"{file} is refused: {problem}") from problem
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror}") from problem
    except Exception as problem:  # a damaged pickle can fail in any way
        raise DataError(f"{file} is damaged: {type(problem).__name__} while reading its pickle") from problem


class _Array:
    """What a pickled array becomes until the whole file is read."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, _, fortran, data = state
        self.value = _bytes_as_array(data, shape, fortran)


class _Dtype:
    """Stands for uint8; any other element type is refused."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order and padding mean nothing for single bytes."""


def _from_buffer(data: Any, _dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _bytes_as_array(data, shape, order == "F")
    return array


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _latin_1(text: Any, _encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    return str(text).encode("latin-1")


def _bytes_as_array(data: Any, shape: Any, fortran: Any) -> NDArray[np.uint8]:
    data = bytes(memoryview(data))
    if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(data):
        raise pickle.UnpicklingError(f"it holds an array whose shape {shape!r} does not fit its {len(data):,} bytes")
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape, order="F" if fortran else "C")


def _arrays(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _arrays(inner) for key, inner in value.items()}
    return value


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin_1,
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain arrays do not need")
        return _ADMITTED[module, name]
