"""The order in which torchvision's ImageFolder lists the images of a folder: projects count them by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from softlabels.datasets import Images, PackedImages, subset

_FOLDERS = frozenset({"folder", "imagenet"})


@dataclass(frozen=True)
class Listing:
    """The `images` as ImageFolder lists them; `lines` say where that differs from the data set."""

    images: Images
    lines: tuple[str, ...] = ()


def as_image_folder(images: Images) -> Listing:
    """`images` in ImageFolder's order, without files that it does not count; other data sets than folders as they are.

    It goes through the classes by name, through the folders of each by path, and through the files of each by name:
    the files of a folder come before those of its subfolders, where our keys are sorted as a whole.
    """
    source = images.manifest.source if isinstance(images, PackedImages) else images.spec
    if source.get("kind") not in _FOLDERS:
        return Listing(images)
    counted = _counted(images)
    rows = np.flatnonzero(counted)
    nested = pc.any(pc.match_substring_regex(images.keys, "/.*/")).as_py()
    ordered = np.array(sorted(rows.tolist(), key=_places(images)), np.int64) if nested else rows
    lines = []
    if len(rows) < len(images):
        first = images.keys[int(np.flatnonzero(~counted)[0])].as_py()
        lines.append(
            f"{len(images) - len(rows):,} of {len(images):,} images are of kinds that torchvision's ImageFolder does "
            f"not count (first: {first!r}); labels that are found by place pass over them, and they stay unlabelled"
        )
    if (ordered != rows).any():
        lines.append(
            "labels are found by place, and images are counted as torchvision's ImageFolder lists them: the files of a "
            "folder before those of its subfolders"
        )
    if not lines:
        return Listing(images)
    return Listing(subset(images, ordered), tuple(lines))


def _counted(images: Images) -> NDArray[np.bool_]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    pattern = "|".join(ending.replace(".", r"\.") for ending in IMG_EXTENSIONS)
    found = pc.match_substring_regex(images.keys, f"(?i)({pattern})$").combine_chunks()
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


def _places(images: Images) -> Callable[[int], tuple[str, str, str]]:
    """What rows are sorted by: class, folder and file."""
    keys = images.keys.to_pylist()

    def place(row: int) -> tuple[str, str, str]:
        folder, _, name = keys[row].rpartition("/")
        return folder.partition("/")[0], folder, name

    return place
