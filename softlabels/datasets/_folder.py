"""Images in one folder per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from softlabels.core.config import Part
from softlabels.datasets._decode import SUFFIXES
from softlabels.datasets._images import FileImages, Split, absolute, key_column
from softlabels.datasets._scan import PassedOver, has_pictures, pictures, subfolders
from softlabels.errors import DataError

ClassOrder = Literal["text", "number"]

_SIDES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What folders of splits are called, in lower case."""


class Folder(Part):
    """``folder:DIR``: one folder per class, their sorted names are the classes, images at any depth below them.

    When `root` holds ``train/`` and ``val/`` or ``test/`` folders, `split` chooses among them (``val`` stands in for a
    missing ``test`` and the other way round); else `root` itself is meant, whatever `split` says. They may be called
    ``training``, ``valid``, ``validation``, ``dev`` or ``testing`` as well, in any case. `layout` ``classes`` says that
    each folder of `root` is a class whatever it is called.

    `class_order` says how names that are whole numbers are sorted: as ``text`` (0, 1, 10, 2, as torchvision's
    ImageFolder does) or by ``number``. It must be given where the two differ.
    """

    shorthand: ClassVar[str] = "root"
    kind: Literal["folder"] = "folder"
    root: str
    split: Split = "train"
    class_order: ClassOrder | None = None
    layout: Literal["classes"] | None = None

    def open(self) -> FileImages:
        """The data set; keys are posix paths below the split's folder.

        Raises:
            DataError: a folder is missing, holds no class folders, or a class holds no images; or it is not clear which
                folders are classes, or in which order; it is named.
        """
        root = absolute(self.root)
        chosen = root if self.layout == "classes" else split_folder(root, self.split)
        if self.layout is None:
            _refuse_splits(chosen)
        order = self.class_order or _only_order(chosen)
        spec = {name: value for name, value in self.model_dump().items() if value is not None}
        if self.class_order or _are_numbers(subfolders(chosen)):
            spec["class_order"] = order
        return class_folders(chosen, f"folder:{chosen}", {**spec, "root": root}, order)


def class_folders(root: str, name: str, spec: Mapping[str, Any], order: ClassOrder = "text") -> FileImages:
    """The images of `root`, whose folders are classes, class by class."""
    classes = subfolders(root)
    if order == "number":
        if not _are_numbers(classes):
            other = next((one for one in classes if not one.isdecimal()), "none at all")
            raise DataError(f"class_order=number, but the class folders of {root} are no numbers: {other}")
        classes.sort(key=int)
    passed_over = PassedOver()
    keys = [pictures(root, one, passed_over) for one in classes]
    if not any(keys):
        raise DataError(
            f"{root} has no class folders with images in them; put each class in a folder of its own, "
            f"or open images without labels as images:{root}"
        )
    for one, found in zip(classes, keys, strict=True):
        if not found:
            # Left out, it would shift the labels of all classes behind it.
            raise DataError(f"the class folder {root}/{one} holds no images; fill it or remove it")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in keys])
    lines = tuple(passed_over.lines(root))
    return FileImages(name, spec, root, key_column(keys), labels, tuple(classes), lines)


def split_folder(root: str, split: Split) -> str:
    """The folder below `root` that is meant by `split`; `root` itself when it is not divided.

    A class can be called ``train``: such a folder holds its images directly and has other classes beside it. One that
    is called ``valid`` or ``Test`` is a class where no folder of training images lies beside it.

    Raises:
        DataError: there is no folder of this split, or there are two.
    """
    present = subfolders(root)
    named = [one for one in present if one.lower() in _SIDES]
    if not named or (len(named) < len(present) and not any(_is_divided(f"{root}/{one}") for one in named)):
        return root
    sides = {side: [one for one in named if _SIDES[one.lower()] == side] for side in ("train", "val", "test")}
    usual = any(one in ("train", "val", "test") for one in named)
    if not sides["train"] and len(named) < len(present) and not usual:
        return root
    wanted = ("train",) if split == "train" else (("val", "test") if split == "val" else ("test", "val"))
    for side in wanted:
        found = [one for one in sides[side] if subfolders(f"{root}/{one}")] or sides[side]
        if len(found) > 1:
            raise DataError(f"{root} holds {' and '.join(found)}; say which one is meant, as folder:{root}/{found[0]}")
    found = [one for side in wanted for one in sides[side]]
    if not found:
        raise DataError(f"{root} holds {' and '.join(named)} but no {' or '.join(wanted)} folder for split {split!r}")
    return f"{root}/{next((one for one in found if subfolders(f'{root}/{one}')), found[0])}"


def _refuse_splits(root: str) -> None:
    """Raises DataError where the folders of `root` look like parts of a data set, and not like classes."""
    classes = subfolders(root)
    # The first folder with images in it ends the look: that of a usual data set.
    if not classes or any(has_pictures(f"{root}/{one}") for one in classes):
        return
    inner = subfolders(f"{root}/{classes[0]}")
    if len(inner) < 2 or any(subfolders(f"{root}/{one}") != inner for one in classes[1:]):
        return
    what = f"its one folder {classes[0]} holds" if len(classes) == 1 else f"its folders {_few(classes)} all hold"
    raise DataError(
        f"{root}: {what} nothing but the folders {_few(inner)}, so these look like the classes or splits; give "
        f"folder:{root}/{classes[0]}, or say that {_few(classes)} are classes: 'folder:{root} layout=classes'"
    )


def _few(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _only_order(root: str) -> ClassOrder:
    """The order of the class folders of `root`, where there is but one.

    Raises:
        DataError: the folders are numbers, of which two orders are usual.
    """
    classes = subfolders(root)
    if not _are_numbers(classes):
        return "text"
    for place, (text, number) in enumerate(zip(classes, sorted(classes, key=int), strict=True)):
        if text != number:
            raise DataError(
                f"the class folders of {root} are numbers: in the order of text, as torchvision's ImageFolder has "
                f"them, class {place} is folder {text!r}, in the order of numbers it is {number!r}; choose: "
                f"'folder:{root} class_order=number' or 'folder:{root} class_order=text'"
            )
    return "text"


def _are_numbers(names: list[str]) -> bool:
    return bool(names) and all(one.isdecimal() for one in names)


def _is_divided(folder: str) -> bool:
    return bool(subfolders(folder)) and not has_pictures(folder)


class Unlabelled(Part):
    """``images:DIR``: every image below a folder, at any depth, without labels."""

    shorthand: ClassVar[str] = "root"
    kind: Literal["images"] = "images"
    root: str

    def open(self) -> FileImages:
        """The data set; keys are posix paths below `root`, labels are -1.

        Raises:
            DataError: the folder is missing or holds no images; it is named.
        """
        root, passed_over = absolute(self.root), PassedOver()
        found = pictures(root, passed_over=passed_over)
        if not found:
            raise DataError(f"{root} holds no images ({', '.join(one[1:] for one in SUFFIXES)}) at any depth")
        labels, lines = np.full(len(found), -1, np.int64), tuple(passed_over.lines(root))
        spec = {**self.model_dump(), "root": root}
        return FileImages(f"images:{root}", spec, root, key_column(found), labels, (), lines)
