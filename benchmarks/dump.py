"""A dump against a bare loop of the same teacher over images that are ready in memory.

    python benchmarks/dump.py [--teacher resnet50] [--images 96] [--rounds 5] [--threads N]

The bare loop is the limit: no decoding, no rendering, no encoding, no files. The dump decodes JPEG files made here,
draws and renders one view of each in threads, runs the same teacher at the same batch size with the same number of
intra-op threads, encodes, and writes a synced shard. Turns of a few seconds alternate, a bare loop before and after
each dump; a dump is compared with the mean of its two neighbours, and the median over the rounds is printed:

- "whole": all of the dump's time. A dump of so few images spends a share on its first batch and its only shard that
  one of thousands per shard does not;
- "steady": from the teacher's first call to its last one, in both;
- "CPU": the processor time of that stretch, of all threads; of the three it feels other work of the machine least.

The limit: where the teacher alone keeps every core busy, c CPU seconds an image on n threads, and preparing an image
(decode, render, encode; timed apart, on one thread) takes d, a dump cannot exceed c / (c + d). Where a core that
prepares lets all other threads of the teacher wait for theirs, as barriers do, it is c / (c + n d). With --threads
below the number of cores images are prepared beside the teacher, and the limit is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import write_jpeg

import softlabels
from softlabels.codecs import CODECS
from softlabels.core.progress import Terminal
from softlabels.dumping import dump as dumping
from softlabels.dumping.dump import StoredOutput
from softlabels.dumping.run import card
from softlabels.dumping.stores import make_store
from softlabels.loading.batches import Threads
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import teacher_spec
from softlabels.views import RECIPES

TARGET = 0.95


@dataclass
class Clocked:
    """A teacher that notes the wall clock and the processor time before each call, and the time spent within."""

    teacher: Any
    starts: list[tuple[float, float]] = field(default_factory=list)
    within: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def outputs(self, pictures: Tensor, names: Any) -> dict[str, Tensor]:
        """The teacher's outputs."""
        began = time.perf_counter()
        self.starts.append((began, time.process_time()))
        said = {name: each.cpu() for name, each in self.teacher.outputs(pictures, names).items()}
        self.within.append(time.perf_counter() - began)
        return said

    def steady(self) -> tuple[float, float, float]:
        """Per call from the first to the last: seconds, processor seconds, seconds within the teacher."""
        calls = len(self.starts) - 1
        wall, cpu = ((self.starts[-1][i] - self.starts[0][i]) / calls for i in (0, 1))
        return wall, cpu, statistics.mean(self.within[:-1])


@dataclass(frozen=True)
class Turn:
    """Seconds per picture: of the whole turn, of its steady part, of the processor there, within the teacher there."""

    whole: float
    steady: float
    cpu: float
    teacher: float

    @staticmethod
    def of(clocked: Clocked, seconds: float, images: int, batch: int) -> Turn:
        steady, cpu, within = (each / batch for each in clocked.steady())
        return Turn(seconds / images, steady, cpu, within)


def write_images(root: Path, count: int) -> None:
    """Random patches with some grain, 500x375 pixels as most of ImageNet's and some 70 kB; one class."""
    (root / "class").mkdir(parents=True)
    for number in range(count):
        chance = torch.Generator().manual_seed(number)
        coarse = 256 * torch.rand(1, 3, 12, 16, generator=chance)
        smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bilinear")[0]
        grained = smooth + 12 * torch.randn(375, 500, generator=chance)
        write_jpeg(grained.round().clamp(0, 255).to(torch.uint8), str(root / "class" / f"{number:05d}.jpg"), quality=85)


class Bench:
    """One teacher, some images, and both ways to run the one over the others."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        write_images(root / "photos", options.images)
        self.images = softlabels.open_images(f"images:{root / 'photos'}")
        self.teacher = teacher_spec(options.teacher, "random").open(options.device)
        self.recipe, self.codec = RECIPES.make("crop-flip"), CODECS.make("topk:10")
        self.pictures = ViewDataset(self.images, self.recipe, 0, 1, image_spec(self.teacher.preprocessing))
        rows = np.arange(options.images)
        self.ready = self.pictures.render(rows, np.zeros_like(rows)).split(options.batch_size)
        self.stores = 0

    def bare(self) -> Turn:
        """The teacher over images in memory."""
        clocked, began = Clocked(self.teacher), time.perf_counter()
        for batch in self.ready:
            clocked.outputs(batch, ("logits",))
        return Turn.of(clocked, time.perf_counter() - began, self.options.images, self.options.batch_size)

    def dump(self) -> Turn:
        """A new store of one view."""
        self.stores += 1
        store, images = make_store(
            self.root / f"store-{self.stores}", self.images, self.recipe, seed=0, classes=self.teacher.classes,
            rows_per_shard=4096,
        )  # fmt: skip
        said = card(
            spec=self.teacher.spec, weights_sha256=self.teacher.weights_sha256, licence=None, codec=self.codec,
            preprocessing=self.teacher.preprocessing.model_dump(mode="json"), classes=self.teacher.classes,
            format="hdf5", images=images, recipe=self.recipe,
        )  # fmt: skip
        labels, clocked = store.prepare(self.teacher.name, said), Clocked(self.teacher)
        pictures = ViewDataset.of_store(store, images, 1, image_spec(self.teacher.preprocessing))
        began = time.perf_counter()
        dumping.dump(
            pictures,
            clocked,  # type: ignore[arg-type]
            [StoredOutput(self.codec, labels)],
            batch_size=self.options.batch_size,
            workers=Threads(self.options.workers),
            terminal=Terminal(quiet=True),
        )
        return Turn.of(clocked, time.perf_counter() - began, self.options.images, self.options.batch_size)

    def preparing(self) -> float:
        """Processor seconds on one thread that an image takes to decode and render, and its label to encode."""
        threads, rows = torch.get_num_threads(), np.arange(self.options.images)
        logits = self.teacher.logits(self.ready[0]).cpu()
        torch.set_num_threads(1)
        began = time.thread_time()
        for some in np.array_split(rows, len(self.ready)):
            self.pictures.render(some, np.zeros_like(some))
            self.codec.encode(logits)
        seconds = (time.thread_time() - began) / self.options.images
        torch.set_num_threads(threads)
        return seconds


def run(root: Path, options: argparse.Namespace) -> None:
    bench = Bench(root, options)
    bench.bare()
    bench.dump()
    before, ratios, bares, dumps = bench.bare(), [], [], []
    for _ in range(options.rounds):
        dumped, after = bench.dump(), bench.bare()
        pairs = [("whole", "whole"), ("steady", "steady"), ("cpu", "cpu"), ("steady", "teacher")]
        ratios.append([(getattr(before, a) + getattr(after, a)) / 2 / getattr(dumped, b) for a, b in pairs])
        print("  bare / dump: " + "  ".join(f"{each:.3f}" for each in ratios[-1]), flush=True)
        bares, dumps, before = [*bares, after], [*dumps, dumped], after
    whole, steady, cpu, teacher = (statistics.median(column) for column in zip(*ratios, strict=True))
    c, d = statistics.median(each.cpu for each in bares), bench.preparing()
    bare, dumped = (statistics.median(each.steady for each in turns) for turns in (bares, dumps))
    waiting = statistics.median(1 - each.teacher / each.steady for each in dumps)
    spare = options.device != "cpu" or torch.get_num_threads() < (os.cpu_count() or 1)
    low, limit = (1.0, 1.0) if spare else (c / (c + torch.get_num_threads() * d), c / (c + d))
    print(
        f"{options.teacher}, {torch.get_num_threads()} threads, {options.workers} threads prepare images, "
        f"{os.cpu_count()} cores; bare loop {1 / bare:.1f} images/s, dump {1 / dumped:.1f}\n"
        f"an image costs the bare loop {1e3 * c:.1f} ms of CPU and the dump {1e3 * c / cpu:.1f}; preparing one "
        f"{1e3 * d:.1f} ms\n"
        f"of a bare loop's speed: whole {whole:.3f}, steady {steady:.3f}, CPU {cpu:.3f}; limit {limit:.3f}, {low:.3f} "
        f"where cores wait for each other (target {TARGET})\n"
        f"the teacher itself runs at {teacher:.3f} of its speed in a dump, which is outside of it for {waiting:.1%} of "
        f"its time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the teacher; torch's choice without")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads that prepare images")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.images < 2 * options.batch_size or options.images % options.batch_size:
        parser.error("--images must be a multiple of --batch-size, at least two of them")
    if options.threads:
        torch.set_num_threads(options.threads)
    root = Path(tempfile.mkdtemp())
    try:
        run(root, options)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
