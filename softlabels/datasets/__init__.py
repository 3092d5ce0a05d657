"""Data sets: images with stable keys and, where known, labels.

A data set is a frozen part (``folder:DIR``, ``csv:FILE``, ``digits``, ...) whose `open` gives `Images`. `open_images`
takes whatever people write after `data`. Images are found by key: a data set says nothing about order or batches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from softlabels.choices import DATASETS, importable, unknown_data
from softlabels.core.config import Part, is_object, validated, without_settings
from softlabels.datasets._checks import content_checksums, fingerprint, known_by, some_rows
from softlabels.datasets._cifar import Cifar10, Cifar100
from softlabels.datasets._csv import Csv, check_list, write_list
from softlabels.datasets._decode import decode_file, report_decoding
from softlabels.datasets._digits import DigitPairs, Digits
from softlabels.datasets._folder import Folder, Unlabelled
from softlabels.datasets._function import Function
from softlabels.datasets._imagenet import ImageNet
from softlabels.datasets._images import FileImages, Images, MemoryImages, Split, notes, thread_count
from softlabels.datasets._object import Keys, MapStyleImages, ObjectImages, images_of
from softlabels.datasets._parts import Parts, PartsImages, by_part, joined_images, prefix_of
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
    "Parts",
    "PartsImages",
    "SomeImages",
    "Unlabelled",
    "by_part",
    "check_list",
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
    "thread_count",
    "write_list",
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
            and whole: the data set has no transform of its own. A list of these is one data set of several parts, whose
            keys must differ (``images:DIR prefix=NAME`` puts a name before those of one) and whose labelled parts have
            the same classes.
        data_dir: where the kinds that are downloaded lie, and what relative paths in a CSV are below.
        split: ``train``, ``test`` or ``val``; None leaves what `value` says (``train`` unless it says otherwise). Kinds
            without splits (``images``, ``csv``, functions, objects, a folder that is not divided) give the same for
            each. Of several parts, ``test`` and ``val`` leave out those without labels.
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
    if isinstance(value, list | tuple):
        value = [ObjectImages(images=images_of(each)) if is_object(each) else each for each in value]
    part = _changed(data_set(value), None if data_dir is None else os.fspath(data_dir), split)
    try:
        images = part.open()
    except OSError as problem:
        where = problem.filename if problem.filename is not None else value
        raise DataError(f"{where} cannot be read: {problem.strerror or problem}") from problem
    if isinstance(images, PartsImages) and split in ("test", "val"):
        return _labelled_parts(images, part)
    return images


def _changed(part: DataSet, data_dir: str | None, split: str | None) -> DataSet:
    """The data set with its images in `data_dir` and of that `split`, as far as its kind has these settings."""
    if isinstance(part, Parts):
        # Relative paths in a list are meant below another place than the downloads of the part beside it.
        needing = [each for each in part.parts if "data_dir" in _settings_of(each)]
        downloads = [each for each in needing if not isinstance(each, Csv)]
        own = tuple(
            _changed(each, data_dir if not downloads or each in downloads else None, split) for each in part.parts
        )
        return part.model_copy(update={"parts": own})
    if isinstance(part, Csv) and part.of is not None:
        return part.model_copy(update={"of": _changed(part.of, data_dir, None)})
    settings = {"data_dir": data_dir, "split": split}
    fields = _settings_of(part)
    changed = {name: given for name, given in settings.items() if given is not None and name in fields}
    if changed and isinstance(part, Part):
        return validated(type(part), {**part.model_dump(), **changed}, f"data set {part.kind!r}")
    return part


def _settings_of(part: DataSet) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(type(part), "model_fields", {})
    return fields


def _labelled_parts(images: PartsImages, part: DataSet) -> Images:
    """A pool without labels has no side that is held out."""
    prefixes = [prefix for _, prefix in part.named] if isinstance(part, Parts) else [""] * len(images.parts)
    pairs = zip(images.parts, prefixes, strict=True)
    kept = [(each, prefix) for each, prefix in pairs if (each.labels >= 0).any()]
    if not kept or len(kept) == len(images.parts):
        return images
    return joined_images([each for each, _ in kept], [prefix for _, prefix in kept])


def check_there(part: DataSet, data_dir: str | None) -> None:
    """Raises DataError where a file or folder that the data set names is not there; nothing in it is read."""
    if isinstance(part, Parts):
        for each in part.parts:
            check_there(each, data_dir)
        return
    if isinstance(part, Csv) and part.of is not None:
        check_there(part.of, data_dir)
        data_dir = None
    named = {name: getattr(part, name, None) for name in ("root", "file", "data_dir")}
    if "data_dir" in getattr(type(part), "model_fields", {}):
        named["data_dir"] = data_dir or named["data_dir"]
    for place in named.values():
        if place is not None and not Path(place).expanduser().exists():
            raise DataError(f"no such file or directory: {place}")


def data_set(value: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | DataSet) -> DataSet:
    """The data set that `value` means, not opened; see `open_images`."""
    if isinstance(value, list | tuple):
        if not value:
            raise ConfigError("`data` is an empty list; name at least one data set")
        made = [data_set(each) for each in value]
        if len(made) == 1:
            return made[0]
        named = [pair for each in made for pair in (each.named if isinstance(each, Parts) else [(each, "")])]
        return _parts(named)
    if isinstance(value, str):
        value, prefix = prefix_of(value)
        if prefix:
            return _parts([(data_set(value), prefix)])
        listed, of, whole = value.partition(" of=")
        if of and listed.startswith("csv:"):
            listing = DATASETS.make(listed)
            assert isinstance(listing, Csv)
            return listing.model_copy(update={"of": data_set(whole)})
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


def _parts(named: Sequence[tuple[DataSet, str]]) -> Parts:
    prefixes = tuple(prefix for _, prefix in named)
    return Parts(parts=tuple(part for part, _ in named), prefixes=prefixes if any(prefixes) else ())


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
