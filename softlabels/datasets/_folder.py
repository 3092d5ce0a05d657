"""Pictures in one folder per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from softlabels.config import Part
from softlabels.datasets._decode import SUFFIXES
from softlabels.datasets._images import FileImages, Split, absolute, key_column
from softlabels.datasets._scan import has_pictures, pictures, subfolders
from softlabels.errors import DataError

_SPLITS = frozenset({"train", "val", "test"})


class Folder(Part):
    """``folder:DIR``: one folder per class, their sorted names are the classes, pictures at any depth below them.

    When `root` holds ``train/`` and ``val/`` or ``test/`` folders, `split` chooses among them (``val`` stands in for a
    missing ``test`` and the other way round); else `root` itself is meant, whatever `split` says.
    """

    shorthand: ClassVar[str] = "root"
    kind: Literal["folder"] = "folder"
    root: str
    split: Split = "train"

    def open(self) -> FileImages:
        """The data set; keys are posix paths below the split's folder.

        Raises:
            DataError: a folder is missing, holds no class folders, or a class holds no pictures; it is named.
        """
        root = absolute(self.root)
        chosen = split_folder(root, self.split)
        return class_folders(chosen, f"folder:{chosen}", {**self.model_dump(), "root": root})


def class_folders(root: str, name: str, spec: Mapping[str, Any]) -> FileImages:
    """The pictures of `root`, whose folders are classes, class by class."""
    classes = subfolders(root)
    keys = [pictures(root, one) for one in classes]
    if not any(keys):
        raise DataError(
            f"{root} has no class folders with pictures in them; put each class in a folder of its own, "
            f"or open pictures without labels as images:{root}"
        )
    for one, found in zip(classes, keys, strict=True):
        if not found:
            # Left out, it would shift the labels of all classes behind it.
            raise DataError(f"the class folder {root}/{one} holds no pictures; fill it or remove it")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in keys])
    return FileImages(name, spec, root, key_column(keys), labels, tuple(classes))


def split_folder(root: str, split: Split) -> str:
    """The folder below `root` that is meant by `split`; `root` itself when it is not divided.

    A class can be called ``train``: such a folder holds its pictures directly and has other classes beside it.
    """
    present = subfolders(root)
    named = [one for one in present if one in _SPLITS]
    if not named or (len(named) < len(present) and not any(_is_divided(f"{root}/{one}") for one in named)):
        return root
    wanted = ("train",) if split == "train" else (("val", "test") if split == "val" else ("test", "val"))
    found = [f"{root}/{one}" for one in wanted if one in named]
    if not found:
        raise DataError(f"{root} holds {' and '.join(named)} but no {' or '.join(wanted)} folder for split {split!r}")
    return next((one for one in found if subfolders(one)), found[0])


def _is_divided(folder: str) -> bool:
    return bool(subfolders(folder)) and not has_pictures(folder)


class Unlabelled(Part):
    """``images:DIR``: every picture below a folder, at any depth, without labels."""

    shorthand: ClassVar[str] = "root"
    kind: Literal["images"] = "images"
    root: str

    def open(self) -> FileImages:
        """The data set; keys are posix paths below `root`, labels are -1.

        Raises:
            DataError: the folder is missing or holds no pictures; it is named.
        """
        root = absolute(self.root)
        found = pictures(root)
        if not found:
            raise DataError(f"{root} holds no pictures ({', '.join(one[1:] for one in SUFFIXES)}) at any depth")
        labels = np.full(len(found), -1, np.int64)
        return FileImages(f"images:{root}", {**self.model_dump(), "root": root}, root, key_column(found), labels, ())
