"""An importer of your own: logits of whole images in a NumPy file, with the images' names in a text file.

pip install -e docs/examples/own_importer     # makes the importer known under its name, by pyproject.toml
softlabels import answers/ --from npy-logits --data photos/ --codec topk:10
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from softlabels import DataError
from softlabels.importing.projects import Choices, ImageLabels
from softlabels.views import RECIPES


class NpyLogits:
    """Logits (images, classes) in ``logits.npy``; line i of ``keys.txt`` names the image of row i."""

    settings = frozenset({"codec"})  # of the settings of `softlabels import` that some importers need
    project = "npy-logits"
    views = 1
    views_at_once = None
    surplus = unpaired = 0
    size = interpolation = None
    notes = ()

    def __init__(self, folder: Path, images: Any, choices: Choices) -> None:
        try:
            self._logits = np.load(folder / "logits.npy", mmap_mode="r", allow_pickle=False)
            keys = (folder / "keys.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as problem:
            raise DataError(f"{folder} holds no logits.npy and keys.txt that can be read: {problem}") from problem
        if self._logits.shape != (len(keys), choices.classes):
            raise DataError(f"{folder}/logits.npy is {self._logits.shape}, not ({len(keys)}, {choices.classes})")
        place = {key: number for number, key in enumerate(keys)}
        self._places = np.array([place.get(key, -1) for key in images.keys.to_pylist()])
        self.missing = np.flatnonzero(self._places < 0)
        self.codec = choices.logits_codec()
        self.recipe = RECIPES.make("clean")  # the whole image; see "What is replayed" for crops of the files' own

    @staticmethod
    def by_place(folder: Path) -> bool:  # noqa: ARG004
        """Images are found by key."""
        return False

    def ready(self, rows: np.ndarray, views: np.ndarray) -> None:
        """Nothing is better read together."""

    def labels(self, row: int, views: Any) -> ImageLabels:
        """The logits of one image, for each of these views."""
        return ImageLabels(None, np.repeat(self._logits[self._places[row]][None], len(views), axis=0))
