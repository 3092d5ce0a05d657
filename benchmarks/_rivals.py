"""How other packages keep labels and read them, written anew from what their readers do for each sample.

Each reader does what lies between the number of a sample and the tensors that its training loop receives, and no more:
no image is opened and no augmentation is made anew from what the file says of it. Where a file is a pickle, it is
loaded as one (`weights_only=False`, as in their time), which is quicker than the safe way.

- TinyViT (microsoft/Cream): one binary file of records per epoch and rank, beside it a text file with a key per line.
  Every epoch each worker reads all keys into a dict of (file, place). For a sample it asks a counter that the workers
  share which epoch it is, looks its key up, then seeks and reads once.
- FKD (szq0214/FKD): one file per image with the boxes, flips and top-K probabilities of all of its crops; a sample is
  `crops` of them, drawn by chance (four as they train; one in their last epochs).
- ml-dr (apple/ml-dr): one file per image with a dict of plain numbers for each view; one is drawn and made dense.
- torchdistill: one file per image with the logits, twice (of the model, and among the outputs of its modules).
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset

K, CLASSES = 10, 1000
RECORD = 4 + 4 * K
VIEWS_PER_FILE = 50
"""The fewest that ml-dr has published (50, 100, 400); FKD makes 500. Fewer are quicker to load."""


class TinyViT(Dataset[Any]):
    """Items are (class numbers, probabilities). With `draws`, the generator is made that the view is drawn from."""

    def __init__(self, folder: Path, keys: Sequence[str], *, draws: bool = False) -> None:
        self._folder, self._keys, self._draws = folder, keys, draws
        self._epoch = multiprocessing.Value("i", 0)
        self._opened = -1
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[int, int]] = {}

    def __getitem__(self, row: int) -> Any:
        epoch = self._epoch.value
        if epoch != self._opened:
            self._open()
            self._opened = epoch
        file, place = self._places[self._keys[row]]
        self._files[file].seek(place * RECORD)
        record = self._files[file].read(RECORD)
        seed = int(np.frombuffer(record[:4], np.int32)[0])
        ids = np.frombuffer(record[4 : 4 + 2 * K], np.int16).copy()
        probabilities = np.frombuffer(record[4 + 2 * K :], np.float16).copy()
        if self._draws:
            np.random.Generator(np.random.PCG64(seed))
        return ids, probabilities

    def _open(self) -> None:
        self._files = [(self._folder / "values.bin").open("rb")]
        with (self._folder / "keys.txt").open() as file:
            for place, line in enumerate(file.readlines()):
                self._places[line.strip()] = (0, place)

    @staticmethod
    def write(folder: Path, keys: Sequence[str]) -> None:
        """Records of random seeds and values."""
        folder.mkdir()
        chance = np.random.default_rng(0)
        with (folder / "values.bin").open("wb") as file:
            for start in range(0, len(keys), 8192):
                parts = np.zeros((min(8192, len(keys) - start), RECORD // 2), np.int16)
                parts[:, :2] = chance.integers(0, 2**15, (len(parts), 2))
                parts[:, 2 : 2 + K] = chance.integers(0, CLASSES, (len(parts), K))
                parts[:, 2 + K :] = chance.random((len(parts), K)).astype(np.float16).view(np.int16)
                file.write(parts.tobytes())
        with (folder / "keys.txt").open("w") as file:
            file.writelines(f"{key}\n" for key in keys)


class FKD(Dataset[Any]):
    """Items are (hard labels, top-K probabilities with their class numbers), `crops` of each."""

    def __init__(self, folder: Path, files: int, crops: int) -> None:
        self._folder, self._files, self._crops = str(folder), files, crops

    @staticmethod
    def path(folder: str, row: int) -> str:
        """One folder for each class."""
        name = f"n{row // 1300:08d}"
        return f"{folder}/{name}/{name}_{row % 1300}.tar"

    def __getitem__(self, row: int) -> Any:
        row %= self._files
        _, _, output = torch.load(self.path(self._folder, row), map_location="cpu", weights_only=False)
        chosen = torch.randperm(len(output))
        soft = [output[chosen[crop]] for crop in range(self._crops)]
        return [row // 1300] * self._crops, soft

    @staticmethod
    def write(folder: Path, files: int) -> None:
        """All files hold the same numbers."""
        chance = np.random.default_rng(0)
        output = torch.from_numpy(chance.random((VIEWS_PER_FILE, 2, K)).astype(np.float32))
        boxes, flips = chance.random((VIEWS_PER_FILE, 4)), np.zeros(VIEWS_PER_FILE, bool)
        _write_all((FKD.path(str(folder), row) for row in range(files)), [boxes, flips, output])


class DatasetReinforcement(Dataset[Any]):
    """Items are dense probabilities, float32 (classes,): what the top K leave over is spread evenly."""

    def __init__(self, folder: Path, files: int) -> None:
        self._folder, self._files = str(folder), files

    def __getitem__(self, row: int) -> Any:
        _, views = torch.load(f"{self._folder}/{row % self._files}.pth.tar", weights_only=False)
        values, ids = views[random.randint(0, len(views) - 1)]["prob"]
        values = torch.tensor(values)
        target = torch.ones(CLASSES) * (1.0 - values.sum()) / (CLASSES - len(values))
        target[ids] = values
        return target

    @staticmethod
    def write(folder: Path, files: int) -> None:
        """All files hold the same numbers: box, flip and the top K of each view."""
        chance = np.random.default_rng(0)
        views = [
            {
                "params": [chance.integers(0, 500, 4).tolist(), bool(view % 2)],
                "prob": (chance.dirichlet(np.ones(3 * K))[:K].tolist(), chance.permutation(CLASSES)[:K].tolist()),
            }
            for view in range(VIEWS_PER_FILE)
        ]
        _write_all((f"{folder}/{row}.pth.tar" for row in range(files)), (0, views))


class Torchdistill(Dataset[Any]):
    """Items are a dict with the cached logits, float32 (classes,), twice, and the path of their file."""

    def __init__(self, folder: Path, files: int) -> None:
        self._folder, self._files = str(folder), files

    @staticmethod
    def path(folder: str, row: int) -> str:
        """One folder for each value of the last four digits."""
        digits = f"{row:04d}"
        return f"{folder}/{digits[-4:]}/{digits}.pt"

    def __getitem__(self, row: int) -> Any:
        path = self.path(self._folder, row % self._files)
        found: dict[str, Any] = {}
        if os.path.exists(path):  # noqa: PTH110  (a Path would cost them time that their reader does not take)
            found["cached_data"] = torch.load(path, weights_only=False)
        found["cache_file_path"] = path
        return found

    @staticmethod
    def write(folder: Path, files: int) -> None:
        """All files hold the same numbers."""
        said, among = torch.randn(CLASSES), torch.randn(CLASSES)
        data = {"teacher_outputs": said, "extracted_outputs": {".": {"output": among}}}
        _write_all((Torchdistill.path(str(folder), row) for row in range(files)), data)


def _write_all(paths: Iterable[str], data: Any) -> None:
    memory = io.BytesIO()
    torch.save(data, memory, pickle_protocol=4)
    folders: set[Path] = set()
    for path in map(Path, paths):
        if path.parent not in folders:
            path.parent.mkdir(parents=True)
            folders.add(path.parent)
        path.write_bytes(memory.getvalue())
