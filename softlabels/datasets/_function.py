"""A data set that a function of the user's own gives."""

from __future__ import annotations

import importlib
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabels.core.config import Part
from softlabels.core.installed import working_directory_importable
from softlabels.datasets._images import Images
from softlabels.datasets._subset import SomeImages
from softlabels.errors import ConfigError, DataError


class Function(Part):
    """``module:function``: what the function, called without arguments, gives; it has all that `Images` promises.

    `softlabels.datasets.MemoryImages` and `FileImages` are ready-made for it to return.
    """

    shorthand: ClassVar[str] = "target"
    kind: Literal["function"] = "function"
    target: str

    def open(self) -> Images:
        """The function's data set, under the name and spec of this part.

        Raises:
            ConfigError: there is no such module or function.
            DataError: what it gives is not a data set; the message says what is missing.
        """
        module, _, function = self.target.partition(":")
        try:
            with working_directory_importable():
                make = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as problem:
            raise ConfigError(f"data set {self.target!r}: {problem}; is it on PYTHONPATH?") from problem
        except AttributeError as problem:
            raise ConfigError(f"data set {self.target!r}: {problem}") from problem
        made = make()
        check_opened(made, self.target)
        return SomeImages(
            self.target,
            self.model_dump(),
            made.keys,
            made.labels,
            made.classes,
            made.decoder,
            made.pixels,
            images=made,
            rows=np.arange(len(made)),
        )


def check_opened(made: object, target: str) -> None:
    """Raises DataError where `made`, which `target` gave, is not all that `Images` promises."""
    if not isinstance(made, Images):
        wanted = ("name", "spec", "keys", "labels", "classes", "decoder", "pixels", "__len__", "content", "decode")
        lacking = ", ".join(one for one in wanted if not hasattr(made, one))
        raise DataError(f"{target} gave a {type(made).__name__} without {lacking}; see softlabels.datasets.Images")
    if not isinstance(made.keys, pa.ChunkedArray) or not pa.types.is_string(made.keys.type):
        raise DataError(f"{target}: keys must be a pyarrow.ChunkedArray of strings, not a {type(made.keys).__name__}")
    if not len(made) or len({len(made), len(made.keys), len(made.labels)}) != 1:
        raise DataError(
            f"{target} gave {len(made):,} images, {len(made.keys):,} keys and {len(made.labels):,} labels; "
            "there must be one of each per image, and at least one image"
        )
    if pc.count_distinct(made.keys).as_py() != len(made):
        raise DataError(f"{target} gave a key twice; each image needs a key of its own")
    low, high = int(made.labels.min()), int(made.labels.max())
    if low < -1 or high >= len(made.classes):
        raise DataError(f"{target} gave labels {low} to {high} for {len(made.classes)} classes; -1 means none")
