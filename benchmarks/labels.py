"""Reading labels: through a two-worker loader, against the loader's own ceiling and against others' ways.

    python benchmarks/labels.py [--quick] [--codecs topk:10 dense ...] [--rounds 3] [--folder DIR]

For each codec a store of one view is written in both formats, as it is and compressed, and random batches of 256 rows
are read through a `DataLoader` with two worker processes. All ways of a table are timed in turn, `--rounds` times over,
back and forth; printed are medians of the rates and of the rounds' ratios:

- "ceiling": the same loader, whose workers read nothing and send zeros of the arrays' size;
- "memmap": numpy's fancy indexing into one flat file, the practical limit of reading;
- "softlabels": `TeacherLabels.take` in the workers, which send the stored bytes, as `softlabels train` does. Compressed
  shards (zstd) are decoded view by view into memory that the workers share, and are all decoded when timing begins.
  "decoded" is the same with the codec's decoding of each batch by the process that receives it. "by the receiver": row
  numbers alone are sent, and the receiving process takes the labels, as in trainings whose workers are threads. "from
  S3" reads what was copied from a server of this machine (left out where moto is not installed);
- others: `_rivals.py` says what their readers do and what of it is counted. Their files are written just before and are
  warm in the page cache, as are ours. Packages that keep a file per image have `--files` of them.

Beside the rates: CPU microseconds per label of the receiving process and the workers together, which depend less on
what else the machine does; labels/s without a loader, in one process; seconds to the loader's first batch, the start
of the workers and all that they open included, files warm; and the anonymous memory that a worker adds by opening and
reading.

Then, in a new process each: seconds from opening a store to the first 256 random rows of it, interpreter and imports
done, after its files were dropped from the page cache (posix_fadvise; what is left there is printed; a virtual disk may
be cached once more outside), and the anonymous memory that reading adds. For one on the server, with nothing copied
yet. And the speed of writing one view, fsync and reading back included: shards of the usual 4,096 rows are small.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import json
import mmap
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median as middle
from typing import Any

import _rivals as rivals
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from softlabels.codecs import CODECS, Codec, ShardCodec, SparseCodec
from softlabels.dumping.dump import stored_as
from softlabels.store import Store, TeacherCard, TeacherLabels, create, open_store

BATCH, CLASSES, WORKERS, ROWS_PER_SHARD = 256, 1000, 2, 4096
CODES: dict[str, Any] = {
    "topk:10": "topk:10",
    "topk:10 fast": {"kind": "topk", "k": 10, "record": "fast"},
    "sampled:30": "sampled:30",
    "head_tail:10": "head_tail:10",
    "quantized:4": "quantized:4",
    "quantized:8": "quantized:8",
    "transform:40": "transform:40",
    "dense": "dense",
}
CEILING = "ceiling"


class ByBatch(Dataset[Any]):
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
        return tensors(rows, self.labels.take(rows, np.zeros_like(rows)))


class FromMemmap:
    """Rows of one flat file."""

    def __init__(self, path: Path, record: int) -> None:
        self.path, self.record = path, record
        self._map: np.ndarray[Any, Any] | None = None

    def __call__(self, rows: np.ndarray[Any, Any]) -> Any:
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r").reshape(-1, self.record)
        return tensors(rows, {"record": np.asarray(self._map[rows])})


class Zeros:
    """The ceiling: nothing is read."""

    def __init__(self, codec: Codec) -> None:
        self.layout = codec.layout(CLASSES)

    def __call__(self, rows: np.ndarray[Any, Any]) -> Any:
        return tensors(rows, {k: np.zeros((len(rows), *each.shape), each.dtype) for k, each in self.layout.items()})


def tensors(rows: np.ndarray[Any, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[Any, dict[str, torch.Tensor]]:
    return torch.from_numpy(rows), {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class Way:
    """One way to read labels.

    `fresh` makes a data set that has opened nothing; with `singly`, its items are single samples of `per_item` labels,
    which the loader's default collation stacks. `receive` is what the receiving process does with a batch.
    """

    name: str
    fresh: Callable[[], Dataset[Any]]
    singly: bool = False
    per_item: int = 1
    receive: Callable[[Any], object] | None = None

    def numbers(self, images: int) -> Iterator[list[int]]:
        random = np.random.default_rng(0)
        while True:
            yield random.integers(0, images, BATCH // self.per_item).tolist()

    def rate(self, images: int, seconds: float) -> tuple[float, float, float]:
        """Labels a second of a loader over random batches after its first ones, CPU microseconds for each of them, and
        seconds to the first batch.
        """
        began = time.perf_counter()
        loader = iter(
            DataLoader(
                self.fresh(),
                batch_sampler=self.numbers(images),  # type: ignore[arg-type]
                collate_fn=None if self.singly else _same,
                num_workers=WORKERS,
                prefetch_factor=8,
            )
        )
        next(loader)
        first = time.perf_counter() - began
        for _ in range(40):  # more than are made ahead
            self._received(next(loader))
        began, busy, count = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - began < seconds or count < 10:
            self._received(next(loader))
            count += 1
        labels = count * BATCH
        return labels / (time.perf_counter() - began), 1e6 * (cpu_seconds() - busy) / labels, first

    def alone(self, samples: Dataset[Any], images: int, seconds: float) -> float:
        """Labels per second of the reading itself, in this process."""
        numbers = self.numbers(images)
        batches = [next(numbers) for _ in range(64)]
        self._received(self.read(samples, batches[0]))
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            self._received(self.read(samples, batches[count % 64]))
            count += 1
        return count * BATCH / (time.perf_counter() - began)

    def read(self, samples: Any, rows: list[int]) -> Any:
        """One batch."""
        return default_collate([samples[row] for row in rows]) if self.singly else samples.__getitems__(rows)

    def memory(self, images: int) -> int:
        """Bytes of anonymous memory (no file's, not shared) that a forked process adds by opening and reading."""
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=self._told, args=(theirs, images))
        child.start()
        grown = ours.recv()
        child.join()
        return grown

    def _told(self, to: Any, images: int) -> None:
        numbers = self.numbers(images)
        before, samples = anonymous(), self.fresh()
        for _ in range(40 if self.singly else 400):
            self._received(self.read(samples, next(numbers)))
        to.send(anonymous() - before)

    def _received(self, batch: Any) -> None:
        if self.receive is not None:
            self.receive(batch)


def _same(batch: Any) -> Any:
    return batch


def cpu_seconds() -> float:
    """What this process and its living children have used, in steps of the system's clock for the children."""
    stats = [Path(f"/proc/{child.pid}/stat").read_text() for child in multiprocessing.active_children()]
    ticks = sum(int(field) for stat in stats for field in stat.rpartition(") ")[2].split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def anonymous() -> int:
    """Bytes of this process that belong to no file and are not shared memory."""
    with Path("/proc/self/smaps_rollup").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:")) * 1024


def logits(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Rows with correlated top classes: cluster features times class vectors."""
    features = torch.randn(rows, 32, generator=generator)
    directions = torch.randn(32, CLASSES, generator=torch.Generator().manual_seed(0))
    return features @ directions * 0.6


@dataclass(frozen=True)
class Written:
    """A store of one view; bytes of labels a second and seconds a shard of its writing."""

    root: Path
    labels: TeacherLabels
    speed: float
    shard: float


def write(root: Path, images: int, codec: Codec, kind: str, compression: str) -> Written:
    """A store of one view in one format."""
    keys = pa.array([f"{row:08d}" for row in range(images)])
    table = {"key": keys, "label": np.zeros(images, np.int64), "checksum": np.zeros(images, np.uint64)}
    store: Store = create(
        root, data={}, images=pa.table(table), classes=CLASSES, recipe={}, seed=0, rows_per_shard=ROWS_PER_SHARD
    )
    card = TeacherCard(
        spec={}, weights_sha256="", preprocessing={}, classes=CLASSES, format=kind,
        **stored_as(codec, CLASSES, beside={}, compression=compression),
    )  # fmt: skip
    labels = store.prepare("teacher", card)
    # One shard's worth of labels is encoded; reading speed does not depend on what they say.
    rows = min(ROWS_PER_SHARD, images)
    block = codec.encode(logits(rows, torch.Generator().manual_seed(1)), np.arange(rows, dtype=np.uint64))
    began = time.perf_counter()
    with labels.writing():
        for shard in (missing := labels.missing(1)):
            labels.write(shard, {name: array[None, : shard.rows] for name, array in block.items()})
    seconds = time.perf_counter() - began
    speed = images * sum(each.nbytes for each in codec.layout(CLASSES).values()) / seconds
    return Written(root, open_store(root).teacher("teacher"), speed, seconds / len(missing))


FIRST_BATCH = """
import json, sys, time
import numpy as np
import softlabels.store

def anonymous():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:")) * 1024

random, images = np.random.default_rng(3), int(sys.argv[2])
rows, before, began = random.integers(0, images, 256), anonymous(), time.perf_counter()
labels = softlabels.store.open_store(sys.argv[1]).teacher("teacher")
labels.take(rows, np.zeros_like(rows))
seconds = time.perf_counter() - began
for _ in range(100):
    rows = random.integers(0, images, 256)
    labels.take(rows, np.zeros_like(rows))
print(json.dumps([seconds, anonymous() - before]))
"""


def first_batch(where: str, images: int) -> tuple[float, int]:
    """Of a new process: seconds from opening a store to 256 of its first `images` rows; bytes of anonymous memory that
    it has more after a hundred times as many.
    """
    command = [sys.executable, "-c", FIRST_BATCH, where, str(images)]
    seconds, added = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, added


def forget(root: Path) -> float:
    """Ask the kernel to drop a folder's files from its cache; the share of their pages that stayed."""
    os.sync()
    paths = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    there = [resident(path) for path in paths]
    return sum(held for held, _ in there) / max(sum(pages for _, pages in there), 1)


def resident(path: Path) -> tuple[int, int]:
    """(pages of a file that are in the page cache, all of its pages)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        array = np.frombuffer(memory, np.uint8)
        flags = np.zeros(-(-len(array) // mmap.PAGESIZE), np.uint8)
        address, out = (each.__array_interface__["data"][0] for each in (array, flags))
        done = ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(array)), ctypes.c_void_p(out))
        if done:
            raise OSError("mincore failed")
        del array
    return int((flags & 1).sum()), len(flags)


SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def bucket() -> Iterator[str | None]:
    """The URL of an empty bucket on a server of this machine; None where moto is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("moto", "boto3", "s3fs")):
        yield None
        return
    import boto3

    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        port = next(line.split()[1] for line in server.stdout if line.startswith("port "))
        url = f"http://127.0.0.1:{port}"
        os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="labels")
        yield "s3://labels"
        server.stdin.close()


def upload(root: Path, url: str) -> None:
    """Put a store's files below a URL."""
    import boto3

    name, _, below = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            client.upload_file(str(path), name, f"{below}/{path.relative_to(root)}")


def run(root: Path, options: argparse.Namespace, server: str | None) -> None:
    for name in options.codecs:
        codec_table(root, name, options, server)
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def codec_table(root: Path, name: str, options: argparse.Namespace, server: str | None) -> None:
    """Write the stores of one codec, read them in all ways, print what came out."""
    images = options.images if name.startswith("topk") else options.dense_images
    codec = CODECS.make(CODES[name])
    if isinstance(codec, ShardCodec):  # as for 8 views, so that labels have both of its arrays
        sample = logits(2048, torch.Generator().manual_seed(2)).reshape(8, 256, CLASSES)
        codec = codec.fit_to(sample + 0.5 * torch.randn(sample.shape), views=8)
    record, flat = sum(each.nbytes for each in codec.layout(CLASSES).values()), root / "flat"
    with flat.open("wb") as file:
        for start in range(0, images, ROWS_PER_SHARD):
            file.write(np.zeros((min(ROWS_PER_SHARD, images - start), record), np.uint8))
    ways = [
        Way(CEILING, lambda: ByBatch(Zeros(codec))),
        Way("memmap", lambda: ByBatch(FromMemmap(flat, record))),
    ]
    notes = []
    for kind, compression in (("hdf5", "none"), ("zarr", "none"), ("hdf5", "zstd"), ("zarr", "zstd")):
        called = kind if compression == "none" else f"{kind} {compression}"
        written = write(root / called.replace(" ", "-"), images, codec, kind, compression)
        ways.append(our_way(called, written.labels))
        notes.append(cold(called, written, images))
        if called == "hdf5":
            ways.append(by_receiver("hdf5, by the receiver", written.labels))
        if called == "hdf5" and isinstance(codec, SparseCodec):
            ways.append(our_way("hdf5, decoded", written.labels, codec))
        if server is not None and name == "topk:10" and compression == "none":
            upload(written.root, f"{server}/{called}")
            notes.append(copied(called, f"{server}/{called}", images, root / "cache"))
            if called == "hdf5":  # its copies are the last that were made: one shard; others are copied as it is read
                ways.append(our_way(f"{called} from S3", open_store(f"{server}/{called}").teacher("teacher")))
    theirs = others(root, options) if name == "topk:10" else []
    ways += [way for way, _ in theirs]
    print(f"\n{name}: {images:,} images, {record} bytes per label")
    rates = table(ways, images, options)
    print("\n".join(notes))
    compare(rates, theirs, images)
    sys.stdout.flush()


def our_way(name: str, labels: TeacherLabels, codec: SparseCodec | None = None) -> Way:
    def receive(batch: Any) -> object:
        assert codec is not None
        return codec.sparse({key: array.numpy() for key, array in batch[1].items()}, CLASSES)

    # A copy by pickle has opened nothing.
    fresh = functools.partial(pickle.loads, pickle.dumps(labels))
    return Way(f"softlabels {name}", lambda: ByBatch(FromStore(fresh())), receive=receive if codec else None)


def by_receiver(name: str, labels: TeacherLabels) -> Way:
    read = FromStore(pickle.loads(pickle.dumps(labels)))
    return Way(f"softlabels {name}", lambda: ByBatch(torch.from_numpy), receive=lambda rows: read(rows.numpy()))


def cold(called: str, written: Written, images: int) -> str:
    """How a store was written, and its first batch when nothing of it is in the page cache."""
    stayed = forget(written.root)
    seconds, added = first_batch(str(written.root), images)
    return (
        f"  {called}: written at {written.speed / 1e6:,.0f} MB/s, {1e3 * written.shard:.1f} ms a shard; first batch "
        f"{seconds:.3f} s cold ({stayed:.1%} of its pages stayed cached); a new process adds {added / 1e6:.1f} MB"
    )


def copied(called: str, url: str, images: int, cache: Path) -> str:
    """The first batch of a store that is nowhere but on the server."""
    seconds = []
    for rows in (images, min(ROWS_PER_SHARD, images)):
        os.environ["SOFTLABELS_CACHE"] = str(cache / f"{called}-{rows}")
        seconds.append(first_batch(url, rows)[0])
    shards = -(-images // ROWS_PER_SHARD)
    return (
        f"  {called} from S3: first batch {seconds[0]:.2f} s of any rows, for which most of the {shards} shards are "
        f"copied and compared with their checksums; {seconds[1]:.2f} s of rows of one shard"
    )


@dataclass(frozen=True)
class Wanted:
    """How many times faster than a package our reading is to be; whether it reads all keys in every epoch."""

    factor: float
    keys: bool = False


def others(root: Path, options: argparse.Namespace) -> list[tuple[Way, Wanted]]:
    """The ways of other packages, over files made here."""
    files = options.files
    records, fkd, reinforced, cached = (root / name for name in ("records", "fkd", "ml-dr", "torchdistill"))
    keys = [str(row) for row in range(options.images)]
    rivals.TinyViT.write(records, keys)
    rivals.FKD.write(fkd, files)
    rivals.DatasetReinforcement.write(reinforced, files)
    rivals.Torchdistill.write(cached, files)
    return [
        (Way("TinyViT", lambda: rivals.TinyViT(records, keys), singly=True), Wanted(7, keys=True)),
        (
            Way("TinyViT and a generator", lambda: rivals.TinyViT(records, keys, draws=True), singly=True),
            Wanted(7, keys=True),
        ),
        (Way("FKD, 4 crops", lambda: rivals.FKD(fkd, files, 4), singly=True, per_item=4), Wanted(45)),
        (Way("FKD, 1 crop", lambda: rivals.FKD(fkd, files, 1), singly=True), Wanted(45)),
        (Way("torchdistill", lambda: rivals.Torchdistill(cached, files), singly=True), Wanted(45)),
        (Way("ml-dr", lambda: rivals.DatasetReinforcement(reinforced, files), singly=True), Wanted(25)),
    ]


@dataclass(frozen=True)
class Rates:
    """What was measured of a way, one number a round."""

    loader: list[float]
    cpu: list[float]
    first: list[float]
    alone: list[float]


def table(ways: list[Way], images: int, options: argparse.Namespace) -> dict[str, Rates]:
    """Time all ways in turn and print their lines."""
    rates = {way.name: Rates([], [], [], []) for way in ways}
    opened = {way.name: way.fresh() for way in ways}
    ways[0].rate(images, options.seconds)  # the first loader of a process is slower than the next
    for number in range(options.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            each, (rate, cpu, first) = rates[way.name], way.rate(images, options.seconds)
            each.loader.append(rate)
            each.cpu.append(cpu)
            each.first.append(first)
            each.alone.append(way.alone(opened[way.name], images, options.seconds / 3))
    ceiling, ours = rates[CEILING].loader, rates["softlabels hdf5"].loader
    print(
        f"  {'':32} {'samples/s':>10} {'of ceiling':>10} {'(of rounds)':>11} {'hdf5 against':>12} {'cpu us':>7} "
        f"{'alone':>11} {'first':>7} {'memory':>9}"
    )
    for way in ways:
        each = rates[way.name]
        of = [rate / top for rate, top in zip(each.loader, ceiling, strict=True)]
        span = f"{min(of):.2f}-{max(of):.2f}"
        print(
            f"  {way.name:32} {middle(each.loader):10,.0f} {middle(of):10.2f} {span:>11} "
            f"{factor(ours, each.loader):11.1f}x {middle(each.cpu):7.2f} {middle(each.alone):11,.0f} "
            f"{middle(each.first):6.2f}s {way.memory(images) / 1e6:+6.1f} MB",
            flush=True,
        )
    return rates


def factor(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios."""
    return middle(one / other for one, other in zip(ours, theirs, strict=True))


def compare(rates: dict[str, Rates], theirs: list[tuple[Way, Wanted]], images: int) -> None:
    """Ours against the others: labels as they are stored, and decoded."""
    for way, wanted in theirs:
        stored, decoded = rates["softlabels hdf5"], rates["softlabels hdf5, decoded"]
        rival = rates[way.name]
        line = f"  against {way.name}: {factor(stored.loader, rival.loader):.1f}x, decoded "
        line += (
            f"{factor(decoded.loader, rival.loader):.1f}x; in CPU time {factor(rival.cpu, stored.cpu):.1f}x, decoded "
        )
        line += f"{factor(rival.cpu, decoded.cpu):.1f}x"
        if wanted.keys:
            each = [epoch(rates, images) for rates in (stored, decoded, rival)]
            line += f"; whole epochs with their first batch {factor(each[0], each[2]):.1f}x, decoded "
            line += f"{factor(each[1], each[2]):.1f}x"
        print(f"{line} (target {wanted.factor:g})")


def epoch(rates: Rates, images: int) -> list[float]:
    """Samples per second of an epoch over all images, the start of its workers and what they read first included."""
    return [images / (images / rate + first) for rate, first in zip(rates.loader, rates.first, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="+", choices=CODES, default=list(CODES), metavar="CODEC", help="(all)")
    parser.add_argument("--images", type=int, help="of the top-K stores and TinyViT's records (1,281,167)")
    parser.add_argument("--dense-images", type=int, help="of the other stores (200,000)")
    parser.add_argument("--files", type=int, help="of each package that keeps one per image (50,000)")
    parser.add_argument("--seconds", type=float, help="of each timing (0.6)")
    parser.add_argument("--rounds", type=int, help="(3)")
    parser.add_argument("--folder", type=Path, help="where a temporary folder is made; it takes 3 GB")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, one round")
    usual: dict[str, Any] = {"images": 1_281_167, "dense_images": 200_000, "files": 50_000, "seconds": 0.6, "rounds": 3}
    quick: dict[str, Any] = {"images": 128_000, "dense_images": 20_000, "files": 3_000, "seconds": 0.2, "rounds": 1}
    options = parser.parse_args()
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    torch.set_num_threads(1)
    began, root = time.perf_counter(), Path(tempfile.mkdtemp(dir=options.folder))
    os.environ["SOFTLABELS_CACHE"] = str(root / "cache")
    try:
        with bucket() as server:
            run(root, options, server)
    finally:
        shutil.rmtree(root)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
