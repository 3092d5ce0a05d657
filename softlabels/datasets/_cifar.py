"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in any of the three ways in which they are handed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from softlabels.core.config import Part
from softlabels.core.pickles import read_plain_pickle
from softlabels.datasets._folder import class_folders
from softlabels.datasets._images import MemoryImages, Split, in_memory, key_column
from softlabels.datasets._roots import data_root
from softlabels.errors import DataError

_PIXELS = 3 * 32 * 32
_Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pixels (n, 3072), channel by channel, and labels (n,)."""


@dataclass(frozen=True)
class _Edition:
    """What tells the two data sets apart on disk."""

    kind: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    bytes_before_pixels: int
    label_key: str
    classes: tuple[str, ...]


_TEN_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_HUNDRED_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_TEN = _Edition(
    kind="cifar10",
    folder="cifar-10-batches",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    bytes_before_pixels=1,
    label_key="labels",
    classes=tuple(_TEN_CLASSES.split()),
)
_HUNDRED = _Edition(
    kind="cifar100",
    folder="cifar-100",
    train=("train",),
    test=("test",),
    bytes_before_pixels=2,  # the coarse label, then the fine one
    label_key="fine_labels",
    classes=tuple(_HUNDRED_CLASSES.split()),
)


class Cifar10(Part):
    """``cifar10``: 32x32 images of 10 classes, below `data_dir` or ``$CIFAR10_DIR``, kept in memory.

    Either ``train/`` and ``test/`` with a folder per class, or the binary (``data_batch_1.bin``) or Python
    (``data_batch_1``) version.
    """

    shorthand: ClassVar[str] = "data_dir"
    kind: Literal["cifar10"] = "cifar10"
    data_dir: str | None = None
    split: Split = "train"

    def open(self) -> MemoryImages:
        """The data set; keys are paths below ``train/`` or ``test/``, or ``train/00042`` in the batches' order.

        Raises:
            DataError: a file is missing, damaged or refused; it is named.
        """
        return _open(_TEN, self, self.data_dir, self.split)


class Cifar100(Part):
    """``cifar100``: 32x32 images of 100 fine classes, below `data_dir` or ``$CIFAR100_DIR``, kept in memory.

    Either ``train/`` and ``test/`` with a folder per class, or the binary (``train.bin``) or the Python (``train``)
    version.
    """

    shorthand: ClassVar[str] = "data_dir"
    kind: Literal["cifar100"] = "cifar100"
    data_dir: str | None = None
    split: Split = "train"

    def open(self) -> MemoryImages:
        """The data set; keys as those of `Cifar10`.

        Raises:
            DataError: a file is missing, damaged or refused; it is named.
        """
        return _open(_HUNDRED, self, self.data_dir, self.split)


def _open(edition: _Edition, part: Part, data_dir: str | None, split: Split) -> MemoryImages:
    kind = edition.kind
    holding = f"train/ and test/ with a folder per class, or {edition.train[0]}[.bin] and {edition.test[0]}[.bin]"
    root = data_root(data_dir, kind, f"{kind.upper()}_DIR", holding)
    side, stems = ("train", edition.train) if split == "train" else ("test", edition.test)
    name = kind if side == "train" else f"{kind} (test)"
    spec = {**part.model_dump(), "data_dir": str(root)}
    tops = (root, root / kind, *(root / f"{edition.folder}-{ending}" for ending in ("bin", "py", "binary", "python")))
    for top in tops:
        if (top / side).is_dir():
            return in_memory(class_folders(str(top / side), name, spec), name, spec)
        for ending, read in ((".bin", _binary), ("", _pickled)):
            if any((top / (stem + ending)).is_file() for stem in stems):
                batches = [read(_present(top / (stem + ending)), edition) for stem in stems]
                return _memory(batches, edition, side, name, spec)
    raise DataError(f"{root} holds no {side} images of {kind}; it should hold {holding}")


def _present(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"{file} is missing beside the other batches; unpack the archive again")
    return file


def _memory(batches: Sequence[_Batch], edition: _Edition, side: str, name: str, spec: dict[str, Any]) -> MemoryImages:
    labels = np.concatenate([labels for _, labels in batches])
    pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
    keys = key_column([f"{side}/{number:05d}" for number in range(len(labels))])
    return MemoryImages(name, spec, keys, labels, edition.classes, torch.from_numpy(pixels))


def _binary(file: Path, edition: _Edition) -> _Batch:
    """Records of the label's byte (coarse and fine for CIFAR-100) and 3072 bytes of pixels."""
    length = edition.bytes_before_pixels + _PIXELS
    data = np.fromfile(file, np.uint8)
    if not data.size or data.size % length:
        raise DataError(f"{file} has {data.size:,} bytes, not a whole number of {length:,}-byte records; it is damaged")
    records = data.reshape(-1, length)
    return records[:, -_PIXELS:], _checked(records[:, -_PIXELS - 1].astype(np.int64), file, edition)


def _pickled(file: Path, edition: _Edition) -> _Batch:
    """A pickled dictionary of an array (n, 3072) and a list of labels."""
    content = read_plain_pickle(file)
    if isinstance(content, dict):
        content = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = content.get("data"), content.get(edition.label_key)
        if isinstance(pixels, np.ndarray) and isinstance(labels, list):
            numbers = all(type(label) is int for label in labels)
            if numbers and labels and pixels.shape == (len(labels), _PIXELS):
                return pixels, _checked(np.array(labels, np.int64), file, edition)
    raise DataError(
        f"{file} is no batch of {edition.kind}: it should hold 'data', uint8 (n, {_PIXELS}), and {edition.label_key!r}"
    )


def _checked(labels: NDArray[np.int64], file: Path, edition: _Edition) -> NDArray[np.int64]:
    wrong = labels[(labels < 0) | (labels >= len(edition.classes))]
    if len(wrong):
        raise DataError(f"{file} holds the label {wrong[0]}; {edition.kind} has 0 to {len(edition.classes) - 1}")
    return labels
