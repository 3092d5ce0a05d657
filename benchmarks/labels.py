"""Reading labels: through a two-worker loader, against the loader's own ceiling and against others' ways.

    python benchmarks/labels.py [--images 1281167] [--dense-images 200000] [--folder DIR] [--rounds 5]

Writes a store of one view for each codec and format, then reads random batches of 256 rows. All ways are timed in turn,
`--rounds` times over, and medians are printed with their ratio to the ceiling: the same loader whose workers send zeros
of a label's size. "memmap" is the practical limit, numpy's fancy indexing into one flat file. Others' ways are written
anew from what their readers do: one seek and one read per sample by a text key (TinyViT's record, 44 bytes), one file
per image unpickled (ml-dr) or loaded by torch (FKD, torchdistill).

Then: seconds to the first batch in a new process with the files out of the page cache, private memory that a process
adds by reading, and the speed of writing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from softlabels.codecs import CODECS
from softlabels.store import Store, TeacherCard, TeacherLabels, create, open_store

BATCH, CLASSES, WORKERS = 256, 1000, 2
CODES: dict[str, Any] = {
    "topk:10": "topk:10",
    "topk:10 fast": {"kind": "topk", "k": 10, "record": "fast"},
    "dense": "dense",
}


class Reader(Dataset[Any]):
    """A map-style data set whose batches come from one function of the rows."""

    def __init__(self, read: Callable[[np.ndarray[Any, Any]], Any]) -> None:
        self._read = read

    def __getitems__(self, rows: list[int]) -> Any:
        return self._read(np.asarray(rows, np.int64))


class FromStore:
    """Rows of a store, as arrays of the codec."""

    def __init__(self, labels: TeacherLabels) -> None:
        self.labels = labels

    def __call__(self, rows: np.ndarray[Any, Any]) -> Any:
        taken = self.labels.take(rows, np.zeros_like(rows))
        return rows_and(rows, *taken.values())


class FromMemmap:
    """Rows of one flat file."""

    def __init__(self, path: Path, record: int) -> None:
        self.path, self.record, self._map = path, record, None

    def __call__(self, rows: np.ndarray[Any, Any]) -> Any:
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r").reshape(-1, self.record)
        return rows_and(rows, np.asarray(self._map[rows]))


class Zeros:
    """The ceiling: nothing is read."""

    def __init__(self, record: int) -> None:
        self.record = record

    def __call__(self, rows: np.ndarray[Any, Any]) -> Any:
        return rows_and(rows, np.zeros((len(rows), self.record), np.uint8))


class BySeek:
    """One seek and one read per sample, found by a text key, as TinyViT's reader does."""

    def __init__(self, path: Path, images: int, record: int = 44) -> None:
        self.path, self.record, self.images = path, record, images
        self._file: io.BufferedReader | None = None
        self._index: dict[str, int] = {}

    def __call__(self, rows: np.ndarray[Any, Any]) -> Any:
        if self._file is None:
            self._index = {str(row): row for row in range(self.images)}
            self._file = self.path.open("rb")
        items = []
        for row in rows.tolist():
            self._file.seek(self._index[str(row)] * self.record)
            data = self._file.read(self.record)
            values = np.frombuffer(data[4:24], np.float16)
            items.append((row, values.astype(np.float32), np.frombuffer(data[24:44], np.int16).astype(np.int64)))
        return stacked(items)


class ByFile:
    """One file per image."""

    def __init__(self, folder: Path, images: int, *, torch_load: bool) -> None:
        self.folder, self.images, self.torch_load = folder, images, torch_load

    def __call__(self, rows: np.ndarray[Any, Any]) -> Any:
        items = []
        for row in (rows % self.images).tolist():
            path = self.folder / f"{row}.{'pt' if self.torch_load else 'pkl'}"
            if self.torch_load:
                values, ids = torch.load(path, weights_only=True)
                items.append((row, values.numpy(), ids.numpy()))
            else:
                values, ids = pickle.loads(path.read_bytes())
                items.append((row, np.asarray(values, np.float32), np.asarray(ids, np.int64)))
        return stacked(items)


def rows_and(rows: np.ndarray[Any, Any], *arrays: np.ndarray[Any, Any]) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(rows), *(torch.from_numpy(array) for array in arrays)


def stacked(items: list[tuple[Any, ...]]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(np.stack([np.asarray(item[place]) for item in items])) for place in range(3))


def logits(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Rows with correlated top classes: cluster features times class vectors."""
    features = torch.randn(rows, 32, generator=generator)
    directions = torch.randn(32, CLASSES, generator=torch.Generator().manual_seed(0))
    return features @ directions * 0.6


def make(root: Path, images: int, code: Any, kind: str) -> tuple[TeacherLabels, float, int]:
    """A store of one view, the seconds its shards took to write, and its bytes of labels."""
    codec = CODECS.make(code)
    keys = pa.array([f"{row:08d}" for row in range(images)])
    table = {"key": keys, "label": np.zeros(images, np.int64), "checksum": np.zeros(images, np.uint64)}
    store: Store = create(
        root, data={}, images=pa.table(table), classes=CLASSES, recipe={}, seed=0, rows_per_shard=8192
    )
    layout = {name: {"dtype": each.dtype, "shape": each.shape} for name, each in codec.layout(CLASSES).items()}
    card = TeacherCard(
        spec={}, weights_sha256="", preprocessing={}, codec=codec.model_dump(mode="json"), layout=layout,
        classes=CLASSES, format=kind,
    )  # fmt: skip
    labels = store.prepare("teacher", card)
    # One shard's worth of labels is encoded; reading speed does not depend on what they say.
    block = codec.encode(logits(8192, torch.Generator().manual_seed(1)), np.arange(8192, dtype=np.uint64))
    began = time.perf_counter()
    with labels.writing():
        for shard in labels.missing(1):
            rows = shard.stop_row - shard.first_row
            labels.write(shard, {name: array[None, :rows] for name, array in block.items()})
    seconds = time.perf_counter() - began
    return open_store(root).teacher("teacher"), seconds, sum(array[0].nbytes * images for array in block.values())


def rate(reader: Any, images: int, seconds: float, *, workers: int = WORKERS) -> float:
    """Samples per second of a loader over random batches, after its first batches."""
    random = np.random.default_rng(0)

    def numbers() -> Iterator[list[int]]:
        while True:
            yield random.integers(0, images, BATCH).tolist()

    loader = iter(
        DataLoader(Reader(reader), batch_sampler=numbers(), collate_fn=_same, num_workers=workers, prefetch_factor=8)  # type: ignore[arg-type]
    )
    for _ in range(40):
        next(loader)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(loader)
        count += 1
    spent = time.perf_counter() - began
    del loader
    return count * BATCH / spent


def _same(batch: Any) -> Any:
    return batch


def bare(reader: Any, images: int, seconds: float) -> float:
    """Samples per second of the reading function alone."""
    random = np.random.default_rng(0)
    batches = [random.integers(0, images, BATCH) for _ in range(64)]
    for rows in batches:
        reader(rows)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        reader(batches[count % 64])
        count += 1
    return count * BATCH / (time.perf_counter() - began)


FIRST_BATCH = """
import sys, time, json
import numpy as np
import softlabels.store
began = time.perf_counter()
labels = softlabels.store.open_store(sys.argv[1]).teacher("teacher")
rows = np.random.default_rng(3).integers(0, int(sys.argv[2]), 256)
labels.take(rows, np.zeros_like(rows))
first = time.perf_counter() - began
def private():
    fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return int(fields["Private_Dirty"].split()[0]) * 1024  # clean pages of a map are the page cache's
before = private()
for batch in range(400):
    rows = np.random.default_rng(batch).integers(0, int(sys.argv[2]), 256)
    labels.take(rows, np.zeros_like(rows))
print(json.dumps({"first": first, "private": private() - before}))
"""


def forget(root: Path) -> None:
    """Ask the kernel to drop a store's pages from its cache."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def first_batch(root: Path, images: int) -> dict[str, float]:
    forget(root)
    done = subprocess.run(
        [sys.executable, "-c", FIRST_BATCH, str(root), str(images)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--dense-images", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=5_000, help="files of the ways that keep one per image")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        run(root, options)
    finally:
        shutil.rmtree(root)


def run(root: Path, options: argparse.Namespace) -> None:
    for name, code in CODES.items():
        images = options.dense_images if name == "dense" else options.images
        record = int(CODECS.make(code).bytes_per_label(CLASSES))
        flat = root / "flat"
        with flat.open("wb") as file:
            for start in range(0, images, 8192):
                file.write(np.zeros((min(8192, images - start), record), np.uint8))
        ways: dict[str, Any] = {"loader's ceiling": Zeros(record), "memmap": FromMemmap(flat, record)}
        notes = []
        for kind in ("hdf5", "zarr"):
            labels, seconds, size = make(root / f"{name}-{kind}", images, code, kind)
            ways[f"softlabels {kind}"] = FromStore(labels)
            told = first_batch(root / f"{name}-{kind}", images)
            notes.append(
                f"  {kind}: written at {size / seconds / 1e6:,.0f} MB/s; first batch {told['first']:.3f} s after the "
                f"files left the cache (target 0.2); private memory after 400 batches {told['private'] / 1e6:+.1f} MB"
            )
        if name == "topk:10":
            ways |= others(root, options)
        print(f"\n{name}: {images:,} images, {record} bytes per label")
        table(ways, images, options)
        print("\n".join(notes), flush=True)
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def others(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The access patterns of other packages, over files made here."""
    records = root / "records"
    with records.open("wb") as file:
        for start in range(0, options.images, 8192):
            file.write(np.zeros((min(8192, options.images - start), 44), np.uint8))
    folder = root / "files"
    folder.mkdir()
    values, ids = np.zeros(10, np.float32), np.arange(10)
    for row in range(options.files):
        (folder / f"{row}.pkl").write_bytes(pickle.dumps((values.tolist(), ids.tolist())))
        torch.save((torch.from_numpy(values), torch.from_numpy(ids)), folder / f"{row}.pt")
    return {
        "seek per sample (TinyViT)": BySeek(records, options.images),
        "pickle per image (ml-dr)": ByFile(folder, options.files, torch_load=False),
        "torch.load per image (FKD, torchdistill)": ByFile(folder, options.files, torch_load=True),
    }


def table(ways: dict[str, Any], images: int, options: argparse.Namespace) -> None:
    through: dict[str, list[float]] = {name: [] for name in ways}
    alone: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            through[name].append(rate(way, images, options.seconds))
            alone[name].append(bare(way, images, options.seconds / 3))
    ceiling = statistics.median(through["loader's ceiling"])
    ours = statistics.median(through["softlabels hdf5"])
    print(f"  {'way':42} {'samples/s, loader':>18} {'of ceiling':>10} {'hdf5 against it':>15} {'without loader':>15}")
    for name in ways:
        rate_through, rate_alone = statistics.median(through[name]), statistics.median(alone[name])
        print(
            f"  {name:42} {rate_through:18,.0f} {rate_through / ceiling:10.2f} {ours / rate_through:14.1f}x "
            f"{rate_alone:15,.0f}"
        )


if __name__ == "__main__":
    main()
