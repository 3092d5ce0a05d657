"""What an opened data set is, and the two ways its images lie: as files, or in memory at one size."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.datasets._decode import decode_file, decoder_of, read_bytes
from softlabels.errors import DataError

Split = Literal["train", "val", "test"]
"""Which side of a data set; one that has a single held-out side gives it for both ``val`` and ``test``."""


@runtime_checkable
class Images(Protocol):
    """An opened data set of n images. Rows are 0..n-1 in an order that is the same on every machine."""

    @property
    def name(self) -> str:
        """What people call it: ``digits``, ``folder:/data/train``."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """The part it was opened from, as a mapping with absolute paths: `open_images` opens it again."""

    @property
    def keys(self) -> pa.ChunkedArray:
        """A unique, stable name per image, string (n,): its posix path in the data set's folder or ``train/0042``."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class number per image, int64 (n,); -1 where there is none."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when nothing is labelled."""

    @property
    def decoder(self) -> str:
        """What turns content into pixels, with its version; ``memory`` when nothing is decoded."""

    @property
    def pixels(self) -> Tensor | None:
        """All images, uint8 (n, 3, H, W), when they are in memory at one size."""

    def __len__(self) -> int:
        """n."""

    def content(self, row: int) -> bytes:
        """The bytes of one image as they lie: the encoded file, or raw pixels in memory."""

    def decode(self, row: int) -> Tensor:
        """One whole image, uint8 (3, H, W), RGB; an EXIF orientation is not applied.

        Raises:
            DataError: the file is missing, truncated or not an image; the message names it.
        """


def in_short(images: Images) -> str:
    """What `repr` shows of images: never their pixels."""
    return f"{type(images).__name__}({images.name}: {len(images):,} images, {len(images.classes):,} classes)"


def notes(images: Images) -> list[str]:
    """What a person should know of these images before they are used, a line each.

    Files that were passed over, images without labels, classes without images; data sets add their own as `notes`.
    """
    while (whole := getattr(images, "images", None)) is not None:  # of some of them, what is known of all
        images = whole
    if isinstance(parts := getattr(images, "parts", None), tuple):
        return [line for part in parts for line in notes(part)]
    said = [*getattr(images, "notes", ())]
    labelled = images.labels[images.labels >= 0]
    unlabelled = len(images) - len(labelled)
    if unlabelled:
        share = "none has a label" if not len(labelled) else f"{unlabelled:,} of them have no label"
        said.append(f"{images.name} has {len(images):,} images, {share}")
    lacking = np.setdiff1d(np.arange(len(images.classes)), labelled)
    if len(labelled) and len(lacking):
        said.append(
            f"{images.name}: {len(lacking):,} of {len(images.classes):,} classes have no image (first: "
            f"{images.classes[lacking[0]]!r})"
        )
    elif len(images.classes) == 1:
        said.append(f"{images.name} has one class only, {images.classes[0]!r}")
    return said


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images that are files: `keys` are their paths below `root` (an absolute key stands for itself).

    `notes` are lines about it that commands print. `paths`, where there are some, are the paths of images
    whose keys are others.
    """

    name: str
    spec: Mapping[str, Any]
    root: str
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    paths: pa.ChunkedArray | None = None

    pixels: None = None

    @property
    def places(self) -> pa.ChunkedArray:
        """The path of each image below `root`: string (n,)."""
        return self.keys if self.paths is None else self.paths

    @cached_property
    def decoder(self) -> str:
        return decoder_of(self.places)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return in_short(self)

    def path(self, row: int) -> str:
        """Where the image of `row` lies."""
        return os.path.join(self.root, self.places[int(row)].as_py())  # noqa: PTH118 (Path costs more than the read)

    def content(self, row: int) -> bytes:
        return read_bytes(self.path(row)).tobytes()

    def decode(self, row: int) -> Tensor:
        return decode_file(self.path(row))


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """Images whose pixels, uint8 (n, 3, H, W), are in memory."""

    name: str
    spec: Mapping[str, Any]
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    pixels: Tensor
    decoder: str = "memory"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return in_short(self)

    def content(self, row: int) -> bytes:
        return self.pixels[row].numpy().tobytes()

    def decode(self, row: int) -> Tensor:
        return self.pixels[row]


def in_memory(files: FileImages, name: str, spec: Mapping[str, Any]) -> MemoryImages:
    """`files` decoded once, by several threads (the decoder lets go of the GIL).

    Raises:
        DataError: a file cannot be decoded, or its size is not that of the first; the message names it.
    """
    first = files.decode(0)
    pixels = torch.empty((len(files), *first.shape), dtype=torch.uint8)

    def fill(rows: range) -> None:
        for row in rows:
            picture = files.decode(row)
            if picture.shape != first.shape:
                height, width = picture.shape[1:]
                raise DataError(
                    f"{files.path(row)} is {width}x{height}, but {files.path(0)} is {first.shape[2]}x{first.shape[1]}; "
                    f"{spec['kind']} needs one size (folder:{files.root} takes any)"
                )
            pixels[row] = picture

    with ThreadPoolExecutor(thread_count()) as pool:
        for _ in pool.map(fill, stretches(len(files), 512)):
            pass
    return MemoryImages(name, spec, files.keys, files.labels, files.classes, pixels, files.decoder, files.notes)


def key_column(keys: list[str] | list[list[str]]) -> pa.ChunkedArray:
    """`keys`, or their lists one after the other, as one string column.

    Raises:
        DataError: a key is not valid Unicode (a file name of another encoding); the message shows it.
    """
    lists = keys if keys and isinstance(keys[0], list) else [keys]
    try:
        chunked = pa.chunked_array([pa.array(part, pa.string()) for part in lists], pa.string())
    except UnicodeEncodeError as problem:
        raise DataError(f"the name {problem.object!a} is not valid UTF-8; {_locale(problem.object)}") from problem
    joined = chunked.combine_chunks()
    return joined if isinstance(joined, pa.ChunkedArray) else pa.chunked_array([joined], pa.string())


def _locale(name: str) -> str:
    """What to do about a name that is not valid: it may be read with the wrong encoding."""
    encoding = sys.getfilesystemencoding()
    try:
        good = os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return "rename the file or folder"
    return f"it would be {good!r}, but this locale's encoding is {encoding}: set PYTHONUTF8=1 or LC_ALL=C.UTF-8"


def absolute(path: str) -> str:
    """`path` with ``~`` spelled out and made absolute; links stay as they are."""
    return str(Path(os.path.abspath(Path(path).expanduser())))  # noqa: PTH100 (resolve() would follow links)


def stretches(n: int, length: int) -> Iterator[range]:
    """0..n-1 cut into ranges of at most `length`."""
    return (range(start, min(start + length, n)) for start in range(0, n, length))


def thread_count() -> int:
    """How many threads decode or read at once where nothing else is said."""
    return min(16, max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2))
