"""What the first bytes of an encoded image say: its format and its size, before a decoder asks for memory.

Decoders are C libraries to which a damaged file may be the end of the process, so what can be checked is checked here.
"""

from __future__ import annotations

import functools
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from softlabels.core.reading import FIRST_BYTES, FileKind, kind_of_file
from softlabels.errors import ConfigError

VARIABLE = "SOFTLABELS_MAX_PIXELS"
"""Environment variable: the most pixels (width x height) that an image may have."""

MOST_PIXELS = 178_956_970
"""The default: what Pillow decodes without an error; 512 MiB of RGB."""

TORCHVISION_KINDS = frozenset({"jpeg", "webp", "gif"})
PILLOW_KINDS = frozenset({"png", "bmp", "tiff", "pnm", "jp2", "avif"})
IMAGE_KINDS = TORCHVISION_KINDS | PILLOW_KINDS
"""Formats that are decoded, as `kind_of_file` names them."""

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row and the steps of the passes of an interlaced PNG."""

_MOST_INFLATED = 1032
"""Bytes that one byte of a zlib stream can become at most."""

_NOT_FRAMES = frozenset({0xC4, 0xC8, 0xCC})
"""Markers among those of JPEG frames that are none: tables, and one that is reserved."""


@functools.cache
def most_pixels() -> int:
    """The most pixels that an image may have: as the environment variable says, else `MOST_PIXELS`.

    Raises:
        ConfigError: the variable is no positive whole number.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        return MOST_PIXELS
    if not named.isdecimal() or not int(named):
        raise ConfigError(f"{VARIABLE} is {named!r}; give the most pixels that an image may have, a whole number")
    return int(named)


def check_pixels(width: int, height: int) -> None:
    """Raises ValueError for an image of no pixels or of more than may be."""
    if width < 1 or height < 1:
        raise ValueError(f"it states a size of {width} x {height} pixels")
    if width * height > most_pixels():
        raise ValueError(
            f"it states {width:,} x {height:,} pixels, more than the {most_pixels():,} that are decoded; make it "
            f"smaller, or set {VARIABLE}"
        )


def kind_of(data: NDArray[np.uint8]) -> FileKind | None:
    """As `kind_of_file`, of the bytes of a whole file."""
    return kind_of_file(data[:FIRST_BYTES].tobytes())


def stated_size(data: NDArray[np.uint8], kind: str) -> tuple[int, int] | None:
    """(width, height) that the header of a JPEG, WebP or GIF file states; None where none is found."""
    if kind == "jpeg":
        return _jpeg_size(data)
    first = data[:32].tobytes()
    if kind == "gif":
        return struct.unpack_from("<HH", first, 6) if len(first) >= 10 else None
    return _webp_size(first)


def _jpeg_size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    view, place = data.data, 2
    while place + 9 < len(view):
        if view[place] != 0xFF:
            return None
        marker = view[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            return view[place + 7] << 8 | view[place + 8], view[place + 5] << 8 | view[place + 6]
        elif 0xD0 <= marker <= 0xD9 or marker == 0x01:
            place += 2
        else:
            place += 2 + (view[place + 2] << 8 | view[place + 3])
    return None


def _webp_size(first: bytes) -> tuple[int, int] | None:
    if len(first) < 30:
        return None
    if first[12:16] == b"VP8X":
        return int.from_bytes(first[24:27], "little") + 1, int.from_bytes(first[27:30], "little") + 1
    if first[12:16] == b"VP8L":
        bits = int.from_bytes(first[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", first, 26)
    return width & 0x3FFF, height & 0x3FFF


def sound_png(data: NDArray[np.uint8]) -> bytes:
    """The chunks of a PNG file of which its pixels are made, as a PNG file, after their CRC-32 were compared.

    What else is in it, such as texts and colour profiles, plays no part in the pixels and does not reach the decoder.

    Raises:
        ValueError: a chunk that matters is damaged, missing or cut off; the reason is told.
    """
    view, place, colour = data.data, 8, -1
    kept: list[memoryview] = [view[:8]]
    names: list[bytes] = []
    while b"IEND" not in names:
        if place + 12 > len(view):
            raise ValueError("the file ends early")
        length, name = int.from_bytes(view[place : place + 4], "big"), bytes(view[place + 4 : place + 8])
        end = place + 12 + length
        if end > len(view):
            raise ValueError(f"the file ends early, in its chunk {name!a}")
        if name[:1].isupper():
            if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise ValueError(f"its chunk {name.decode('latin-1')!a} does not match its checksum (CRC-32)")
            if name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
                raise ValueError(f"its chunk {name!a} is none that is known")
            if (name == b"IHDR") != (not names):
                raise ValueError("its header chunk IHDR is not the first, and the only one")
            if name == b"IHDR":
                colour = _checked_header(bytes(view[place + 8 : end - 4]))
            kept.append(view[place:end])
            names.append(name)
        place = end
    if b"IDAT" not in names or (colour == 3 and b"PLTE" not in names[: names.index(b"IDAT")]):
        raise ValueError("it has no pixels (IDAT)" if b"IDAT" not in names else "it has no palette (PLTE)")
    png = b"".join(kept)
    if _filtered_bytes(png) > _MOST_INFLATED * len(png):  # before a decoder asks for the memory
        raise ValueError("its pixels end early")
    return png


def _checked_header(header: bytes) -> int:
    """The colour type in an IHDR chunk that makes sense."""
    if len(header) != 13:
        raise ValueError("its header chunk IHDR has a wrong length")
    width, height, depth, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", header)
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filters or interlaced > 1:
        raise ValueError("its header chunk IHDR states what no PNG has")
    check_pixels(width, height)
    return int(colour)


def check_png_is_full(png: bytes) -> None:
    """That the pixels of what `sound_png` gave are all there: a decoder may leave the rest black.

    Raises:
        ValueError: there are fewer.
    """
    missing, inflating = _filtered_bytes(png), zlib.decompressobj()
    for data in _pixel_data(png):
        while data and missing > 0 and not inflating.eof:
            missing -= len(inflating.decompress(data, min(missing, 1 << 20)))
            data = inflating.unconsumed_tail
    if missing > 0:
        raise ValueError("its pixels end early")


def _filtered_bytes(png: bytes) -> int:
    """How many bytes the pixels of a PNG file have before they are compressed."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    bits = depth * _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sides = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sides if columns > 0 and rows > 0)


def _pixel_data(png: bytes) -> Iterator[bytes]:
    place = 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] == b"IDAT":
            yield png[place + 8 : place + 8 + length]
        place += 12 + length
