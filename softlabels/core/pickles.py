"""Reading pickles that may hold plain values, arrays and tensors, and nothing that runs.

A pickle names callables and has them called. Ours are found in one table of stand-ins, none of which is numpy's or
torch's own, so that a hostile file can neither import anything nor reach their memory handling. Before that, its
instructions are looked through: none may be of a kind that plain values do not need, and none may ask for a place in
the reader's notebook beyond what the file itself has bytes for (Python's reader would allocate all places up to it).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import DataError

LARGEST_PICKLE = 1 << 30
"""Bytes of the largest pickle that is read."""

_NUMBERS = frozenset(["b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
_BYTES = frozenset(["u1"])


def read_plain_pickle(file: Path) -> Any:
    """The value in `file`: numbers, text, bytes, lists, tuples, dictionaries and uint8 arrays; bytes of Python 2 stay
    bytes.

    Raises:
        DataError: the file cannot be read, is damaged, or names anything else; nothing of it was executed.
    """
    return _guarded(file, lambda: _value(_content(file), _ADMITTED, _BYTES))


def read_torch_file(file: Path, instead: str = "write it with torch.save") -> Any:
    """The value that ``torch.save`` wrote to `file`: plain values, numpy scalars and arrays of numbers, and tensors,
    which come as numpy arrays.

    Args:
        instead: what the user can do about a file that joblib or another pickler wrote.

    Raises:
        DataError: as above, or the file is of another format; its first bytes tell which.
    """
    return _guarded(file, lambda: _archived(file, instead))


def _guarded(file: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except pickle.UnpicklingError as problem:
        raise DataError(f"{file} is refused: {problem}") from problem
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror or problem}") from problem
    except Exception as problem:  # a damaged pickle can fail in any way
        raise DataError(f"{file} is damaged: {type(problem).__name__} while reading its pickle") from problem


def _content(file: Path) -> bytes:
    if file.stat().st_size > LARGEST_PICKLE:
        raise pickle.UnpicklingError(
            f"it has {file.stat().st_size:,} bytes, more than the {LARGEST_PICKLE:,} that are read"
        )
    return file.read_bytes()


_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What torch.save began its files with before they were zip files."""
_COMPRESSED = {
    "gzip": rb"\x1f\x8b",
    "bzip2": rb"BZh",
    "xz": rb"\xfd7zXZ",
    "lzma": rb"\]\x00\x00",
    "lz4": rb"\x04\x22M\x18",
    "zlib": rb"x[\x01\x5e\x9c\xda]",
}
"""How the compressed pickles begin that joblib writes."""


def _no_archive(data: bytes, instead: str) -> str:
    """Why a file that is no zip file is not read, as its first bytes tell."""
    if data.startswith(_BEFORE_1_6):
        return "torch.save wrote it before version 1.6; load it and save it anew"
    if not data:
        return "it is empty"
    packed = next((name for name, begin in _COMPRESSED.items() if re.match(begin, data)), None)
    if packed:
        return f"it is compressed with {packed}, as joblib writes, whose pickles are not read; {instead}"
    if re.match(rb"\x80[\x01-\x05]", data):
        return f"it is a bare pickle, as joblib or pickle.dump write, which is not read; {instead}"
    return "it is no zip file, as torch.save writes since version 1.6; it is damaged or of another program"


def _archived(file: Path, instead: str) -> Any:
    content = _content(file)
    data = io.BytesIO(content)
    if not zipfile.is_zipfile(data):
        raise pickle.UnpicklingError(_no_archive(content[:64], instead))
    with zipfile.ZipFile(data) as archive:
        members = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        for name, entry in members.items():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"its member {name!r} is compressed, which torch.save never does")
        if "data.pkl" not in members:
            raise pickle.UnpicklingError("it is a zip file, but holds no data.pkl, as torch.save writes")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")

        def storage(key: str) -> bytes:
            return archive.read(members[f"data/{key}"])

        return _value(archive.read(members["data.pkl"]), _ADMITTED | _TORCH, _NUMBERS, storage)


def _value(
    data: bytes,
    admitted: Mapping[tuple[str, str], Any],
    elements: frozenset[str],
    storage: Callable[[str], bytes] | None = None,
) -> Any:
    _check_instructions(data)
    reader = _Reader(data, admitted, elements, storage)
    value = reader.load()
    return _finished(value, {}) if reader.arrays else value


_REFUSED = frozenset({"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"})
_LENGTH_BYTES = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4}
_LENGTH_BYTES |= {pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_SKIP: dict[int, int] = {}
"""Bytes of each instruction whose length is fixed, by its code."""
_COUNTED: dict[int, int] = {}
"""How many bytes tell the length of what follows the others."""
_LINES: dict[int, int] = {}
"""How many lines follow those of protocol 0."""
for _each in pickletools.opcodes:
    if _each.name not in _REFUSED:
        _code, _long = ord(_each.code), 0 if _each.arg is None else _each.arg.n
        if _long >= 0:
            _SKIP[_code] = 1 + _long
        elif _long in _LENGTH_BYTES:
            _COUNTED[_code] = _LENGTH_BYTES[_long]
        else:
            _LINES[_code] = 2 if _each.name == "GLOBAL" else 1
_STOP, _PUT, _LONG_PUT = ord("."), ord("p"), ord("r")


def _check_instructions(data: bytes) -> None:
    """Refuse instructions that plain values do not need, and notes beyond the file's length; stops at the end."""
    at, end = 0, len(data)
    while at < end:
        code = data[at]
        step = _SKIP.get(code)
        if step is not None:
            if code == _LONG_PUT and int.from_bytes(data[at + 1 : at + 5], "little") > end:
                raise pickle.UnpicklingError("it notes more values than it has bytes")
            if code == _STOP:
                return
            at += step
        elif code in _COUNTED:
            head = at + 1 + _COUNTED[code]
            at = head + int.from_bytes(data[at + 1 : head], "little")
        elif code in _LINES:
            start = at + 1
            for _ in range(_LINES[code]):
                at = data.find(b"\n", at + 1)
                if at < 0:
                    raise EOFError
            if code == _PUT and (at - start > 12 or int(data[start:at]) > end):
                raise pickle.UnpicklingError("it notes more values than it has bytes")
            at += 1
        else:
            raise pickle.UnpicklingError(f"it uses the instruction {bytes([code])!r}, which plain values do not need")
    raise EOFError


class _Reader(pickle.Unpickler):
    def __init__(
        self,
        data: bytes,
        admitted: Mapping[tuple[str, str], Any],
        elements: frozenset[str],
        storage: Callable[[str], bytes] | None,
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._admitted, self._elements, self._storage = admitted, elements, storage
        self.arrays = False

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain values do not need")
        self.arrays = True
        return _Element(self._elements) if (module, name) == ("numpy", "dtype") else self._admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None or not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something outside itself")
        if not isinstance(pid[1], _Stored):
            raise pickle.UnpicklingError("it holds a tensor of unknown elements")
        data = self._storage(str(pid[2]))
        if len(data) % pid[1].dtype.itemsize:
            raise pickle.UnpicklingError(f"its storage {pid[2]!r} is cut off")
        return np.frombuffer(data, pid[1].dtype)


class _Array:
    """What a pickled array or tensor is until the whole file is read."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _shaped(data, dtype, shape, fortran)


class _Element:
    """Stands for numpy's dtype, called with the code of one of the `known` element types."""

    def __init__(self, known: frozenset[str]) -> None:
        self._known = known

    def __call__(self, code: Any, *_: Any) -> _Dtype:
        text = code.decode("latin-1") if isinstance(code, bytes) else str(code)
        if text not in self._known:
            wanted = "of bytes" if self._known == _BYTES else "of numbers"
            raise pickle.UnpicklingError(f"it holds an array of {text!r}, not {wanted}")
        return _Dtype(text)


class _Dtype:
    def __init__(self, text: str) -> None:
        self.dtype = np.dtype(text).newbyteorder("<")

    def __setstate__(self, state: Any) -> None:
        if state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


@dataclass(frozen=True)
class _Stored:
    """Stands for one of torch's kinds of storage."""

    dtype: np.dtype[Any]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _shaped(data, dtype, shape, order == "F")
    return array


def _scalar(dtype: Any, data: Any) -> _Array:
    array = _Array()
    array.value = _shaped(data, dtype, (), False)[()].item()
    return array


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Array:
    """A tensor: `size` and `stride` over its storage, which it may show in part or turned, but not repeated."""
    whole = [offset, *size, *stride]
    if len(size) != len(stride) or not all(type(each) is int and each >= 0 for each in whole):
        raise pickle.UnpicklingError("it holds a tensor of no sensible shape")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if math.prod(size) > len(storage) or (math.prod(size) and last >= len(storage)):
        raise pickle.UnpicklingError(f"it holds a tensor whose shape {tuple(size)!r} does not fit its storage")
    array = _Array()
    strides = [step * storage.itemsize for step in stride]
    array.value = np.lib.stride_tricks.as_strided(
        storage[offset:] if math.prod(size) else storage, size, strides
    ).copy()
    return array


def _latin_1(text: Any, _encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    return str(text).encode("latin-1")


def _shaped(data: Any, dtype: Any, shape: Any, fortran: Any) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it holds an array without a type")
    data = bytes(memoryview(data))
    sides = all(type(side) is int and side >= 0 for side in shape)
    if not sides or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"it holds an array whose shape {shape!r} does not fit its {len(data):,} bytes")
    return np.frombuffer(bytearray(data), dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _finished(value: Any, seen: dict[int, Any]) -> Any:
    """`value` with the stand-ins replaced. Each container is looked into once, however often it is referred to."""
    if isinstance(value, _Array):
        return value.value
    if not isinstance(value, dict | list | tuple) or not value:
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, tuple):
        made = tuple(_finished(each, seen) for each in value)
        seen[id(value)] = (value, made)  # kept, so that no other object gets its id
        return made
    seen[id(value)] = (value, value)
    for place, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[place] = _finished(inner, seen)
    return value


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Element,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin_1,
}
_STORAGES = {"Bool": "?", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8"}
_STORAGES |= {"Half": "f2", "Float": "f4", "Double": "f8"}
_TORCH: dict[tuple[str, str], Any] = {
    **{("torch", f"{name}Storage"): _Stored(np.dtype(code)) for name, code in _STORAGES.items()},
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
