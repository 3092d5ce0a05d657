"""Parts of JPEG files, decoded by a TurboJPEG library of version 3 where one is installed.

A crop needs neither the rows below it nor the inverse transform of what lies beside it, which saves about a fifth of a
decode. The library is called through its plain C functions; `library` says where it is looked for.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softlabels.errors import DataError

VARIABLE = "SOFTLABELS_TURBOJPEG"
"""Environment variable: path of the library to use, or ``off`` to decode whole files always."""

_DECOMPRESS = 1  # TJINIT_DECOMPRESS
_RGB = 0  # TJPF_RGB
_SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLOURS, _LOSSLESS = 4, 5, 6, 7, 8, 15  # TJPARAM_...
_YCBCR, _GREY = 1, 2  # TJCS_...

_UNITS = {0: (8, 8), 1: (8, 16), 2: (16, 16), 3: (8, 8)}
"""Height and width of a coding unit at 4:4:4, 4:2:2, 4:2:0 and grey; files of other kinds are decoded whole."""

_SYSTEM = ("libturbojpeg.so.0", "libturbojpeg.0.dylib", "libturbojpeg.dylib", "turbojpeg.dll")
"""What the library is called where the system finds it."""

_PIXELS_MOST = 1 << 28


class _Region(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int))


class Shape(NamedTuple):
    """What a header says: height and width in pixels, and those of a coding unit."""

    height: int
    width: int
    unit: tuple[int, int]


class TurboJpeg:
    """A loaded library. Each thread has a decoder of its own.

    Raises:
        OSError: there is no library at `path`.
        AttributeError: it is older than version 3.
    """

    def __init__(self, path: str) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._library = ctypes.CDLL(path)
        for name, result, arguments in (
            ("tj3Init", pointer, (ctypes.c_int,)),
            ("tj3Destroy", None, (pointer,)),
            ("tj3Get", ctypes.c_int, (pointer, ctypes.c_int)),
            ("tj3DecompressHeader", ctypes.c_int, (pointer, pointer, size)),
            ("tj3SetCroppingRegion", ctypes.c_int, (pointer, _Region)),
            ("tj3Decompress8", ctypes.c_int, (pointer, pointer, size, pointer, ctypes.c_int, ctypes.c_int)),
        ):
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._own = threading.local()
        self.name = Path(os.path.realpath(path)).name

    def shape(self, data: NDArray[np.uint8]) -> Shape | None:
        """What the header of these bytes says; None for what is not decoded in parts.

        That is all but whole files of 8 bits, grey or YCbCr in the usual samplings. A file that does not end as one
        should is left to the decoder of whole files, which refuses it.
        """
        if data.size < 4 or bytes(data[:2]) != b"\xff\xd8" or bytes(data[-2:]) != b"\xff\xd9":
            return None
        handle, library = self._handle(), self._library
        if library.tj3DecompressHeader(handle, data.ctypes.data, data.size):
            return None
        unit = _UNITS.get(library.tj3Get(handle, _SUBSAMPLING))
        plain = library.tj3Get(handle, _COLOURS) in (_YCBCR, _GREY) and library.tj3Get(handle, _PRECISION) == 8
        height, width = library.tj3Get(handle, _HEIGHT), library.tj3Get(handle, _WIDTH)
        if unit is None or not plain or library.tj3Get(handle, _LOSSLESS) or not 0 < height * width <= _PIXELS_MOST:
            return None
        return Shape(height, width, unit)

    def part(
        self, data: NDArray[np.uint8], shape: Shape, box: tuple[int, int, int, int]
    ) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
        """At least what lies in `box` (top, left, bottom, right): uint8 (h, w, 3) and where its top left corner lies.

        Byte for byte what a decode of the whole has there. None where the library finds anything to complain about.
        """
        # Upsampled colours of a pixel depend on the neighbouring unit, so one more is decoded on each side.
        (down, across), (top, left, bottom, right) = shape.unit, box
        top, left = max(0, (top // down - 1) * down), max(0, (left // across - 1) * across)
        bottom = min(shape.height, (-(-bottom // down) + 1) * down)
        right = min(shape.width, (-(-right // across) + 1) * across)
        handle, library = self._handle(), self._library
        # The header again: another file's may have been read since.
        if library.tj3DecompressHeader(handle, data.ctypes.data, data.size):
            return None
        region = _Region(left, top, right - left, bottom - top)
        if library.tj3SetCroppingRegion(handle, region):
            return None
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        if library.tj3Decompress8(handle, data.ctypes.data, data.size, pixels.ctypes.data, 0, _RGB):
            return None
        return pixels, (top, left)

    def _handle(self) -> int:
        if not hasattr(self._own, "decoder"):
            self._own.decoder = _Decoder(self._library)
        handle: int = self._own.decoder.handle
        return handle


class _Decoder:
    """A decoder's memory, given back with the thread that used it."""

    def __init__(self, library: Any) -> None:
        self.handle = library.tj3Init(_DECOMPRESS)
        if not self.handle:
            raise MemoryError("TurboJPEG has no memory for a decoder")
        self._destroy = library.tj3Destroy

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._destroy(self.handle)


@functools.cache
def library() -> TurboJpeg | None:
    """The one that the environment variable names, or the first of version 3 of the system's and installed packages'.

    Raises:
        DataError: the environment variable names something else.
    """
    named = os.environ.get(VARIABLE)
    if named == "off":
        return None
    for path in [named] if named else _places():
        try:
            return TurboJpeg(path)
        except (OSError, AttributeError) as problem:
            if named:
                raise DataError(
                    f"{VARIABLE} names {named}, which is no TurboJPEG library of version 3 ({problem}); "
                    f"unset it, or set it to `off`"
                ) from problem
    return None


def _places() -> Iterator[str]:
    # The loader's own search: ctypes.util.find_library would start a compiler to look.
    yield from _SYSTEM
    yield from (str(path) for path in sorted(Path(sys.prefix, "lib").glob("libturbojpeg.*")))
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (str(file.locate()) for file in files if "libturbojpeg" in file.name)
