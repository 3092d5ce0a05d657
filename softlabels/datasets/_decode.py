"""Files to pixels. The first bytes of a file decide which library decodes it, whatever its name says.

The name decides whether a file counts as an image, and what `decoder_of` tells of a data set without reading it.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.datasets import _formats
from softlabels.errors import DataError, ImageError, SoftlabelsError

TORCHVISION = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif")
PILLOW = (".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
SUFFIXES = TORCHVISION + PILLOW
"""Lower-case endings of the files that count as images."""


def decoder_of(keys: pa.ChunkedArray) -> str:
    """The libraries, with versions, that decode files of these names."""
    decoder = torchvision_decoder()
    pattern = "|".join(suffix.replace(".", r"\.") for suffix in PILLOW)
    if not pc.any(pc.match_substring_regex(keys, f"(?i)({pattern})$")).as_py():
        return decoder
    return f"{decoder}, Pillow {_pillow().__version__} for {'/'.join(s[1:] for s in PILLOW)}"


def torchvision_decoder() -> str:
    """What decodes JPEG, WebP and GIF."""
    import torchvision

    return f"torchvision.io {torchvision.__version__}"


_reports: Callable[[str], None] | None = None


def report_decoding(report: Callable[[str], None] | None) -> None:
    """Have `report` called with the name of each image before it is decoded in this process, and with "" after.

    Should the process die in a decoder, somebody else can then say at which image.
    """
    global _reports
    _reports = report


def decode_file(path: str) -> Tensor:
    """The image in the file at `path`: uint8 (3, H, W), RGB, in whatever memory order the decoder leaves.

    Grey is repeated, an alpha channel dropped, 16 bits per channel cut to the upper 8, an animation cut to its first
    frame, an EXIF orientation ignored.

    Raises:
        ImageError: the file cannot be read, is empty, truncated, damaged, too large or no image; the message names it
            and says what it is instead, where its first bytes tell.
    """
    return decode_bytes(read_bytes(path), path)


def decode_bytes(data: NDArray[np.uint8], where: str) -> Tensor:
    """The image in an encoded file's bytes, as `decode_file` gives it; `where` names it in messages."""
    kind = _formats.kind_of(data)
    if kind is None:
        raise ImageError(f"{where} cannot be decoded: its first bytes are of no image format known here; {_NEXT}")
    if kind.name not in _formats.IMAGE_KINDS:
        unknown = "which is not decoded here; convert it to JPEG or PNG" if kind.name in _OTHER_IMAGES else "no image"
        what = f"it is {kind}" if kind.advice else f"it is {kind.text}, {unknown}"
        raise ImageError(f"{where} cannot be decoded: {what}; {_NEXT}")
    if kind.name == "avif" and not _pillow_has_avif():
        what = f"it is {kind.text}, which needs Pillow 11.3 or newer"
        raise ImageError(f"{where} cannot be decoded: {what}: pip install --upgrade pillow")
    if _reports is not None:
        _reports(where)
    try:
        return _by_torchvision(data, kind.name) if kind.name in _formats.TORCHVISION_KINDS else _by_pillow(data)
    except (SoftlabelsError, MemoryError):
        raise
    except Exception as problem:  # both libraries raise many kinds; each means that this file is no whole image
        reason = _reason(problem)
        raise ImageError(f"{where} cannot be decoded: {reason}{_unlike(where, kind.text)}; {_NEXT}") from problem
    finally:
        if _reports is not None:
            _reports("")


def read_bytes(path: str) -> NDArray[np.uint8]:
    """The bytes of the file at `path`: uint8 (size,), writable, so that torch takes them without a copy."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise ImageError(f"{path} cannot be read: {reason}; {_NEXT}") from problem


_NEXT = "repair or remove it"

_OTHER_IMAGES = frozenset({"heic", "jxl", "psd", "pdf", "svg"})


def _unlike(where: str, text: str) -> str:
    """That a file is not what its name says, as a clause."""
    ending = where.rpartition(".")[2].lower()
    usual = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "mpo": "jpeg", "tif": "tiff", "pgm": "ppm", "pbm": "ppm"}
    return "" if usual.get(ending, ending) in text.lower() or f".{ending}" not in SUFFIXES else f" (it is {text})"


def _by_torchvision(data: NDArray[np.uint8], kind: str) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    size = _formats.stated_size(data, kind)
    if size is not None:
        _formats.check_pixels(*size)
    image: Tensor = decode_image(torch.from_numpy(data), mode=ImageReadMode.RGB)
    # Left as (H, W, 3) in memory: the copy would cost a fifth of the decode, and crops of it resize faster.
    return (image[0] if image.ndim == 4 else image).to(torch.uint8)


def _by_pillow(data: NDArray[np.uint8]) -> Tensor:
    # libpng, as torchvision calls it, ends the process at an error in a PNG file; Pillow has a reader of its own.
    png = _formats.sound_png(data) if data[:4].tobytes() == b"\x89PNG" else None
    with _pillow().open(io.BytesIO(data.tobytes() if png is None else png)) as image:
        _formats.check_pixels(*image.size)
        image.load()
        if png is not None and _ends_in_black(image):
            _formats.check_png_is_full(png)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            return torch.from_numpy(np.repeat(grey[None], 3, axis=0))
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels are neither 8 nor 16 bits wide (Pillow mode {image.mode})")
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        return pixels if png is not None else pixels.contiguous()


def _ends_in_black(image: Any) -> bool:
    """Whether pixels may be missing at the end of a PNG file: those that Pillow does not find are left at zero."""
    width, height = image.size
    interlaced = bool(image.info.get("interlace"))
    return interlaced or image.crop((0, height - 1, width, height)).getbbox() is None


@functools.cache
def _pillow_has_avif() -> bool:
    return ".avif" in _pillow().registered_extensions()


@functools.cache
def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as problem:
        raise DataError(f"{'/'.join(s[1:] for s in PILLOW)} files need Pillow: pip install pillow") from problem
    if _formats.most_pixels() > _formats.MOST_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, _formats.most_pixels())  # the user asked for more
    return Image


def _reason(problem: Exception) -> str:
    """The library's words in one line, without the place in its C++ source that precedes them."""
    lines = str(problem).splitlines()
    text = lines[0] if lines else type(problem).__name__
    text = text.rpartition(".cpp:")[2].partition(", ")[2] or text if ".cpp:" in text else text
    if "cannot identify image file" in text:  # with the address of a buffer behind it
        return "its header is damaged or cut off"
    return "its pixels end early" if "image file is truncated" in text else text
