"""Files to pixels. The suffix alone decides which library decodes, so that the data set can say so without reading."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.errors import DataError

TORCHVISION = (".jpg", ".jpeg", ".png", ".webp", ".gif")
PILLOW = (".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
SUFFIXES = TORCHVISION + PILLOW
"""Lower-case endings of the files that count as pictures."""


def decoder_of(keys: pa.ChunkedArray) -> str:
    """The libraries, with versions, that decode files of these names."""
    import torchvision

    decoder = f"torchvision.io {torchvision.__version__}"
    pattern = "|".join(suffix.replace(".", r"\.") for suffix in PILLOW)
    if not pc.any(pc.match_substring_regex(keys, f"(?i)({pattern})$")).as_py():
        return decoder
    return f"{decoder}, Pillow {_pillow().__version__} for {'/'.join(s[1:] for s in PILLOW)}"


def decode_file(path: str) -> Tensor:
    """The picture in the file at `path`: uint8 (3, H, W), RGB, in whatever memory order the decoder leaves.

    Grey is repeated, an alpha channel dropped, 16 bits per channel cut to the upper 8, an animation cut to its first
    frame, an EXIF orientation ignored. `decode_image` refuses JPEG and PNG files that end early and lets pass what
    follows the end of a whole one, so nothing is checked twice here.

    Raises:
        DataError: the file cannot be read, is empty, truncated or not a picture; the message names it.
    """
    return decode_bytes(read_bytes(path), path, by_pillow=path.lower().endswith(PILLOW))


def decode_bytes(data: NDArray[np.uint8], where: str, *, by_pillow: bool = False) -> Tensor:
    """The picture in an encoded file's bytes, as `decode_file` gives it; `where` names it in messages."""
    if not data.size:
        raise DataError(f"{where} is empty (0 bytes); {_NEXT}")
    try:
        return _by_pillow(data) if by_pillow else _by_torchvision(data)
    except DataError:
        raise
    except Exception as problem:  # both libraries raise many kinds; each means that this file is no whole picture
        raise DataError(f"{where} cannot be decoded: {_reason(problem)}; {_NEXT}") from problem


def read_bytes(path: str) -> NDArray[np.uint8]:
    """The bytes of the file at `path`: uint8 (size,), writable, so that torch takes them without a copy."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise DataError(f"{path} cannot be read: {reason}; {_NEXT}") from problem


_NEXT = "mend or remove it, or leave bad images out with --on-bad-image skip"


def _by_torchvision(data: NDArray[np.uint8]) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    picture = decode_image(torch.from_numpy(data), mode=ImageReadMode.RGB)
    if picture.ndim == 4:
        picture = picture[0]
    if picture.dtype == torch.uint16:
        picture = picture.to(torch.int32) >> 8
    # Left as (H, W, 3) in memory: the copy would cost a fifth of the decode, and crops of it resize faster.
    return picture.to(torch.uint8)


def _by_pillow(data: NDArray[np.uint8]) -> Tensor:
    with _pillow().open(io.BytesIO(data.tobytes())) as picture:
        if picture.mode.startswith("I;16"):
            grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
            return torch.from_numpy(np.repeat(grey[None], 3, axis=0))
        if picture.mode in ("I", "F"):
            raise ValueError(f"its pixels are neither 8 nor 16 bits wide (Pillow mode {picture.mode})")
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as problem:
        raise DataError(f"{'/'.join(s[1:] for s in PILLOW)} files need Pillow: pip install pillow") from problem
    return Image


def _reason(problem: Exception) -> str:
    """The library's words in one line, without the place in its C++ source that precedes them."""
    lines = str(problem).splitlines()
    text = lines[0] if lines else type(problem).__name__
    return text.rpartition(".cpp:")[2].partition(", ")[2] or text if ".cpp:" in text else text
