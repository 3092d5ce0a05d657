"""Data sets that a Python caller hands over: opened ones of ours, torchvision's folders, any map-style data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import model_serializer
from torch import Tensor

from softlabels.core.config import OBJECT, Part, class_of
from softlabels.datasets._function import check_opened
from softlabels.datasets._images import FileImages, Images, absolute, in_short, key_column
from softlabels.datasets._subset import SomeImages, subset
from softlabels.errors import ConfigError, DataError, ImageError

Keys = Iterable[str] | Callable[[int], str]
"""The key of each item of a data set: a list, or a function of an item's number."""


class ObjectImages(Part):
    """What a Python caller hands over as a data set.

    A file says in its place how the same data set is opened again, where it is whole and one of ours; else its class.
    """

    kind: Literal["object"] = "object"
    images: Any

    @model_serializer(mode="plain", when_used="json")
    def _as_a_file_says(self) -> dict[str, Any]:
        images = self.images
        if isinstance(images, Images) and not isinstance(images, SomeImages) and images.spec.get("kind") != OBJECT:
            return dict(images.spec)
        return {"kind": OBJECT, "images": class_of(images)}

    def open(self) -> Images:
        """The images.

        Raises:
            ConfigError: it is no data set, or one whose items have no keys.
            DataError: it is the name alone of an object that was.
        """
        if isinstance(self.images, str):
            raise DataError(f"the data set was an object of a Python program ({self.images})")
        return images_of(self.images)


def images_of(dataset: Any, keys: Keys | None = None) -> Images:
    """What a Python caller hands over, as images; see `open_images`.

    Raises:
        ConfigError: its items have no keys, or a transform of its own would change them.
        DataError: items that are no images, or a key that comes twice.
    """
    if isinstance(dataset, Images) and keys is None:
        return dataset
    name = type(dataset).__name__
    for attribute in ("transform", "target_transform"):
        if getattr(dataset, attribute, None) is not None:
            raise ConfigError(
                f"this {name} has a {attribute}, and views are made by softlabels of whole images; make it with "
                f"{attribute}=None"
            )
    if keys is None and isinstance(dataset, torch.utils.data.Subset):
        return subset(images_of(dataset.dataset), list(dataset.indices))
    root, samples = getattr(dataset, "root", None), getattr(dataset, "samples", None)
    if keys is None and root is not None and samples is not None and _reads_files(dataset):
        return _of_folder(dataset, absolute(os.fspath(root)), samples)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ConfigError(
            f"a {name} is no data set with items by number; give a map-style one (__getitem__ and __len__), or what "
            f"`data` takes elsewhere"
        )
    if keys is None:
        raise ConfigError(
            f"the items of a {name} have no keys, by which labels find their images; open it as "
            f"softlabels.open_images(dataset, keys=[...]), with a name for each item that never changes"
        )
    return MapStyleImages.of(dataset, keys)


def _reads_files(dataset: Any) -> bool:
    """Whether its items are its files as they are: torchvision's own reading, neither replaced nor overridden."""
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader

    return type(dataset).__getitem__ is DatasetFolder.__getitem__ and dataset.loader is default_loader


def _of_folder(dataset: Any, root: str, samples: Sequence[tuple[str, int]]) -> FileImages:
    """A torchvision ImageFolder, under the keys that ``folder:ROOT`` gives its images."""
    keys = [Path(absolute(path)).relative_to(root).as_posix() for path, _ in samples]
    spec = {"kind": "folder", "root": root, "split": "train", "class_order": "text", "layout": "classes"}
    labels = np.array([label for _, label in samples], np.int64)
    return FileImages(f"folder:{root}", spec, root, key_column(keys), labels, tuple(dataset.classes))


@dataclass(frozen=True, eq=False)
class MapStyleImages:
    """A map-style data set of whole images, each with a key; made by `images_of`."""

    dataset: Any
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    pixels: ClassVar[None] = None

    @staticmethod
    def of(dataset: Any, keys: Keys) -> MapStyleImages:
        """The data set with a key for each item; see `images_of`.

        Labels are its `targets` or `labels` where it has one for each item; else each item is asked for once.
        """
        count = len(dataset)
        named = [keys(number) for number in range(count)] if callable(keys) else list(keys)
        if len(named) != count:
            raise ConfigError(f"{len(named):,} keys for {count:,} items; give one key for each item")
        labels = _labels(dataset, count)
        given = tuple(str(name) for name in getattr(dataset, "classes", ()))
        counted = tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))
        images = MapStyleImages(dataset, key_column([str(key) for key in named]), labels, given or counted)
        check_opened(images, images.name)
        return images

    @cached_property
    def name(self) -> str:
        """See `Images`."""
        return f"{OBJECT}:{type(self.dataset).__name__}"

    @property
    def spec(self) -> Mapping[str, Any]:
        """See `Images`; nothing opens it again."""
        return {"kind": OBJECT, "images": class_of(self.dataset)}

    @property
    def decoder(self) -> str:
        """See `Images`."""
        return class_of(self.dataset)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return in_short(self)

    def content(self, row: int) -> bytes:
        """See `Images`: the pixels."""
        return self.decode(row).contiguous().numpy().tobytes()

    def decode(self, row: int) -> Tensor:
        """See `Images`."""
        try:
            item = self.dataset[int(row)]
        except Exception as problem:
            raise ImageError(f"item {row} of {self.name} failed with {type(problem).__name__}: {problem}") from problem
        return _pixels(_parts(item)[0], f"item {row} of {self.name}")


def _parts(item: Any) -> tuple[Any, Any]:
    """The image in an item, and its label; None where it has none."""
    if isinstance(item, Mapping):
        return item.get("image"), item.get("label")
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _labels(dataset: Any, count: int) -> NDArray[np.int64]:
    """The label of each item, int64 (n,), -1 for none. Raises DataError for labels that are no class numbers."""
    known: list[Any] = [getattr(dataset, name, None) for name in ("targets", "labels")]
    found = next((each for each in known if hasattr(each, "__len__") and len(each) == count), None)
    if found is None:
        found = [_parts(dataset[number])[1] for number in range(count)]
    values = np.array([-1 if each is None else each for each in found]).reshape(-1)
    if values.dtype.kind not in "iub" or len(values) != count:
        raise DataError(f"the labels of a {type(dataset).__name__} are no class numbers such as 0, 1, 2")
    return values.astype(np.int64)


def _pixels(image: Any, whose: str) -> Tensor:
    """A PIL image, a uint8 tensor (3, H, W) or (1, H, W), or a uint8 array (H, W, 3) or (H, W), as uint8 (3, H, W).

    Raises:
        DataError: it is none of these.
    """
    if hasattr(image, "convert") and not isinstance(image, Tensor):  # of Pillow
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None])).permute(2, 0, 1)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3):
        return image if len(image) == 3 else image.repeat(3, 1, 1)
    kind = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    raise ImageError(
        f"{whose} is {kind}; an item is a PIL image or a uint8 tensor (3, H, W), alone or with its label behind it, "
        f"and made without a transform"
    )
