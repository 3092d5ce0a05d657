"""Files to pixels. The suffix alone decides which library decodes, so that the data set can say so without reading."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.datasets import _turbo
from softlabels.errors import DataError

Boxes = NDArray[np.int64]
"""Top, left, height and width of some boxes in an image: (n, 4)."""

TORCHVISION = (".jpg", ".jpeg", ".png", ".webp", ".gif")
PILLOW = (".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
SUFFIXES = TORCHVISION + PILLOW
"""Lower-case endings of the files that count as pictures."""


def decoder_of(keys: pa.ChunkedArray) -> str:
    """The libraries, with versions, that decode files of these names."""
    decoder = torchvision_decoder()
    pattern = "|".join(suffix.replace(".", r"\.") for suffix in PILLOW)
    if not pc.any(pc.match_substring_regex(keys, f"(?i)({pattern})$")).as_py():
        return decoder
    return f"{decoder}, Pillow {_pillow().__version__} for {'/'.join(s[1:] for s in PILLOW)}"


def torchvision_decoder() -> str:
    """What decodes JPEG, PNG, WebP and GIF, and what parts of JPEG."""
    import torchvision

    library = _turbo.library()
    parts = f", parts of JPEG by {library.name}" if library else ""
    return f"torchvision.io {torchvision.__version__}{parts}"


class Encoded(Protocol):
    """An image that is found and not yet decoded."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    def decode(self, boxes: Boxes) -> tuple[Tensor, Boxes]:
        """At least what lies in these boxes of the image, uint8 (3, h, w), and where in it they lie.

        The pixels are, byte for byte, those that a decode of the whole image has there.
        """


@dataclass(frozen=True, eq=False)
class Whole:
    """An image that had to be decoded to be looked at."""

    pixels: Tensor

    @property
    def height(self) -> int:
        """In pixels."""
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels.shape[2]

    def decode(self, boxes: Boxes) -> tuple[Tensor, Boxes]:
        """All of it, and the boxes as they are."""
        return self.pixels, boxes


_WORTH = 1 / 3
"""What must be left out for a part to be quicker than the whole, rows below it counted two times more: they are not
even read, pixels above and beside are read and not made, and to cut costs a tenth of a decode (of photographs)."""


@dataclass(frozen=True, eq=False)
class JpegFile:
    """A JPEG file of which parts can be decoded; `where` names it in messages."""

    data: NDArray[np.uint8]
    where: str
    shape: _turbo.Shape
    library: _turbo.TurboJpeg

    @property
    def height(self) -> int:
        """In pixels."""
        return self.shape.height

    @property
    def width(self) -> int:
        """In pixels."""
        return self.shape.width

    def decode(self, boxes: Boxes) -> tuple[Tensor, Boxes]:
        """What lies in the smallest box around these boxes, with a margin; all of it where that is quicker."""
        top, left = boxes[:, :2].min(axis=0).tolist()
        bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
        below = 1 - bottom / self.height
        beside = 1 - (bottom - top) * (right - left) / (self.height * self.width)
        worth = 2 * below + beside > _WORTH
        part = self.library.part(self.data, self.shape, (top, left, bottom, right)) if worth else None
        if part is None:
            # Should something be wrong with it, the decoder of whole files decides whether it can be shown.
            return decode_bytes(self.data, self.where), boxes
        pixels, corner = part
        return torch.from_numpy(pixels).permute(2, 0, 1), boxes - np.array([*corner, 0, 0])


def encoded_bytes(data: NDArray[np.uint8], where: str, *, by_pillow: bool = False) -> Encoded:
    """An encoded file's bytes, of which no more is decoded than must be where the size alone is asked for.

    Raises:
        DataError: as `decode_bytes`; a picture that cannot be decoded in parts is decoded here.
    """
    library = None if by_pillow else _turbo.library()
    shape = library.shape(data) if library else None
    if library is None or shape is None:
        return Whole(decode_bytes(data, where, by_pillow=by_pillow))
    return JpegFile(data, where, shape, library)


def encoded_file(path: str) -> Encoded:
    """The picture in the file at `path`, as `encoded_bytes` gives it.

    Raises:
        DataError: as `decode_file`.
    """
    return encoded_bytes(read_bytes(path), path, by_pillow=_is_for_pillow(path))


def decode_file(path: str) -> Tensor:
    """The picture in the file at `path`: uint8 (3, H, W), RGB, in whatever memory order the decoder leaves.

    Grey is repeated, an alpha channel dropped, 16 bits per channel cut to the upper 8, an animation cut to its first
    frame, an EXIF orientation ignored. `decode_image` refuses JPEG and PNG files that end early and lets pass what
    follows the end of a whole one, so nothing is checked twice here.

    Raises:
        DataError: the file cannot be read, is empty, truncated or not a picture; the message names it.
    """
    return decode_bytes(read_bytes(path), path, by_pillow=_is_for_pillow(path))


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


def _is_for_pillow(path: str) -> bool:
    return path.lower().endswith(PILLOW)


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
