"""Data sets: images with stable keys and, where known, labels.

A data set is a frozen part (``folder:DIR``, ``csv:FILE``, ``digits``, ...) whose `open` gives `Images`. `open_images`
takes whatever people write after `data`. Images are found by key: a data set says nothing about order or batches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, get_args

from softlabels.choices import DATASETS, importable, unknown_data
from softlabels.core.config import Part, is_object, validated, without_settings
from softlabels.datasets._checks import content_checksums, fingerprint, known_by, some_rows
from softlabels.datasets._cifar import Cifar10, Cifar100
from softlabels.datasets._csv import Csv
from softlabels.datasets._decode import decode_file, report_decoding
from softlabels.datasets._digits import DigitPairs, Digits
from softlabels.datasets._folder import Folder, Unlabelled
from softlabels.datasets._function import Function
from softlabels.datasets._imagenet import ImageNet
from softlabels.datasets._images import FileImages, Images, MemoryImages, Split, notes
from softlabels.datasets._object import Keys, MapStyleImages, images_of
from softlabels.datasets._subset import SomeImages, subset
from softlabels.datasets.packs._format import Packed, PackFormat, Packing
from softlabels.datasets.packs._pack import Pack, PackedImages
from softlabels.datasets.packs._writing import PackWriter, create_pack
from softlabels.errors import ConfigError, DataError

__all__ = [
    "DATASETS",
    "Cifar10",
    "Cifar100",
    "Csv",
    "DataSet",
    "DigitPairs",
    "Digits",
    "FileImages",
    "Folder",
    "Function",
    "ImageNet",
    "Images",
    "Keys",
    "MapStyleImages",
    "MemoryImages",
    "Pack",
    "PackFormat",
    "PackWriter",
    "Packed",
    "PackedImages",
    "Packing",
    "SomeImages",
    "Unlabelled",
    "check_there",
    "content_checksums",
    "create_pack",
    "data_set",
    "decode_file",
    "fingerprint",
    "images_of",
    "known_by",
    "notes",
    "open_images",
    "report_decoding",
    "some_rows",
    "subset",
]


class DataSet(Protocol):
    """A part that can be opened."""

    @property
    def kind(self) -> str: ...

    def model_dump(self, *, mode: str = ...) -> dict[str, Any]:
        """The part as a mapping."""

    def open(self) -> Images:
        """The images; DataError names what is missing or damaged."""


def open_images(
    value: Any,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    keys: Keys | None = None,
) -> Images:
    """Open a data set: images with stable keys and, where known, labels.

    Args:
        value: ``KIND`` or ``KIND:VALUE`` (``digits``, ``csv:FILE``, ...), a directory with a folder per class,
            ``module:function``, a mapping or a part. A known kind's name comes before a directory of that name (write
            ``./digits`` for the directory). Or an object: a `torchvision.datasets.ImageFolder` (or a `Subset` of one),
            whose images have the keys of ``folder:DIR``; with `keys`, any map-style data set whose items are
            (image, label), an image alone, or mappings with ``image`` and ``label``. An image is of Pillow or uint8,
            and whole: the data set has no transform of its own.
        data_dir: where the kinds that are downloaded lie, and what relative paths in a CSV are below.
        split: ``train``, ``test`` or ``val``; None leaves what `value` says (``train`` unless it says otherwise). Kinds
            without splits (``images``, ``csv``, functions, objects, a folder that is not divided) give the same for
            each.
        keys: of an object, the name of each item: a list, or a function of the item's number. Labels are found by it,
            so it must never change; the image's file name or number will do.

    Returns:
        n images: `keys` strings (n,), `labels` int64 (n,), -1 where there is none, `classes`, and `decode(row)`, uint8
        (3, H, W).

    Raises:
        ConfigError: the kind is unknown (the nearest names are given), or an object has no keys or has a transform.
        DataError: a directory or file is missing or damaged; it is named.

    Example:
        >>> images = softlabels.open_images("digits")
        >>> len(images), images.classes[:3], images.decode(0).shape
        (1347, ('0', '1', '2'), torch.Size([3, 8, 8]))
    """
    if split is not None and split not in get_args(Split):
        raise ConfigError(f"unknown split {split!r}; it is 'train', 'test' or 'val'")
    if keys is not None or is_object(value):
        return images_of(value, keys)
    part = data_set(value)
    settings = {"data_dir": None if data_dir is None else os.fspath(data_dir), "split": split}
    fields = getattr(type(part), "model_fields", {})
    changed = {name: given for name, given in settings.items() if given is not None and name in fields}
    if changed and isinstance(part, Part):
        part = validated(type(part), {**part.model_dump(), **changed}, f"data set {part.kind!r}")
    try:
        return part.open()
    except OSError as problem:
        where = problem.filename if problem.filename is not None else value
        raise DataError(f"{where} cannot be read: {problem.strerror or problem}") from problem


def check_there(part: DataSet, data_dir: str | None) -> None:
    """Raises DataError where a file or folder that the data set names is not there; nothing in it is read."""
    named = {name: getattr(part, name, None) for name in ("root", "file", "data_dir")}
    if "data_dir" in getattr(type(part), "model_fields", {}):
        named["data_dir"] = data_dir or named["data_dir"]
    for place in named.values():
        if place is not None and not Path(place).expanduser().exists():
            raise DataError(f"no such file or directory: {place}")


def data_set(value: str | os.PathLike[str] | Mapping[str, Any] | DataSet) -> DataSet:
    """The data set that `value` means, not opened; see `open_images`."""
    if isinstance(value, os.PathLike):
        return Folder(root=os.fspath(value))
    if not isinstance(value, str):
        return DATASETS.make(value)
    if value.partition(":")[0] in DATASETS.names:
        return DATASETS.make(value)
    path = Path(value).expanduser()
    if path.is_dir():
        return Folder(root=str(path))
    if Path(without_settings(value)).expanduser().is_dir():
        return DATASETS.make(f"folder:{value}")
    if path.is_file():
        hint = f"csv:{value}" if path.suffix == ".csv" else "a directory, or csv:FILE for a list of images"
        raise ConfigError(f"`data={value}` is a file; did you mean {hint}?")
    return _function_or_kind(value)


def _function_or_kind(text: str) -> DataSet:
    module, colon, function = text.partition(":")
    try:
        return DATASETS.make(text)  # a third party's kind
    except ConfigError:
        if colon and function.isidentifier() and importable(module):
            return Function(target=text)
        if not colon and ("/" in text or os.sep in text or text.startswith((".", "~"))):
            raise DataError(f"no such directory: {text}") from None
        if not DATASETS.has(module):
            raise unknown_data(text) from None
        raise
