"""Images per second beside torchvision's PIL transforms in a `DataLoader`, on the same crops, interleaved in one run.

    python benchmarks/pictures.py --photos DIR [--cifar DIR] [--rounds 5] [--size 224]

DIR holds photographs (JPEG files at any depth); without it the parts that need some are left out. PIL transforms end in
normalised floats, image by image, as they do; ours end in uint8 batches, which a training normalises where it
computes. What that costs on this core has a line of its own, and --normalise adds it to each of ours. Each round runs
every way once, so that what else the machine does falls on all of them; printed are the median rate and the median of
the rounds' ratios, with what the project asks for. Packs are made in a temporary folder at a longer side of 320. The
32x32 images are random ones, or those below --cifar DIR.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

import softlabels
from softlabels.codecs import CODECS
from softlabels.core.progress import Terminal
from softlabels.datasets import Images, MemoryImages
from softlabels.dumping import dump as dumping
from softlabels.dumping.dump import StoredOutput
from softlabels.dumping.run import card
from softlabels.dumping.stores import make_store
from softlabels.loading.batches import LabelledViews, Threads, Workers, batches
from softlabels.loading.views import ThreadPool, ViewDataset, image_spec
from softlabels.models import Preprocessing
from softlabels.views import RECIPES, Recipe, blank

BATCH, SMALL_BATCH = 64, 256
VIEWS = 8
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
Run = Callable[[], float]
"""Does its work once and gives images per second."""


class ByPil(Dataset[Tensor]):
    """Per-sample PIL transforms on the boxes and flips of our views: what most training scripts do."""

    def __init__(self, source: Images, recipe: Recipe, hashes: np.ndarray, size: int, pad: int = 0) -> None:
        self.source, self.recipe, self.hashes, self.size, self.pad = source, recipe, hashes, size, pad
        rows = np.arange(len(hashes))
        self.drawn = recipe.make_params(0, hashes, np.zeros_like(rows))

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, row: int) -> Tensor:
        image = self._open(row)
        view = self.drawn[np.array([row])]
        ((top, left, height, width),) = self.recipe.boxes(view, image.height, image.width).tolist()
        if self.pad:
            image = functional.pad(image, [self.pad])
            image = functional.crop(image, top + self.pad, left + self.pad, height, width)
        else:
            image = functional.resized_crop(image, top, left, height, width, [self.size, self.size])
        if view.by_step[1]["flip"][0]:
            image = functional.hflip(image)
        return functional.normalize(functional.to_tensor(image), IMAGENET["mean"], IMAGENET["std"])

    def _open(self, row: int) -> Image.Image:
        if self.source.pixels is not None:
            return Image.fromarray(self.source.pixels[row].permute(1, 2, 0).numpy())
        with Image.open(self.source.path(row)) as image:  # type: ignore[attr-defined]
            return image.convert("RGB")


def timed(made: Iterable[Tensor], clock: Callable[[], float] = time.process_time) -> float:
    """Images per second after the first batch, which waits for workers to start.

    What one core does is counted in its own seconds, whatever else the machine is at; what several do, by the wall.
    """
    source: Iterator[Tensor] = iter(made)
    next(source)
    began, seen = clock(), 0
    for batch in source:
        seen += len(batch)
    return seen / (clock() - began)


def by_pil(images: ByPil, rows: np.ndarray, workers: int, size: int = BATCH) -> float:
    loader = DataLoader(images, batch_size=size, sampler=rows.tolist(), num_workers=workers)
    return timed(loader, time.perf_counter if workers else time.process_time)


def by_us(
    pictures: ViewDataset, numbers: np.ndarray, workers: Workers, normalise: Preprocessing | None, size: int = BATCH
) -> float:
    todo = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    made = batches(LabelledViews(pictures), todo, workers=workers)
    pictures_made = (normalise.normalise(batch.pictures) if normalise else batch.pictures for batch in made)
    return timed(pictures_made, time.perf_counter if workers else time.process_time)


def normalising(preprocessing: Preprocessing) -> float:
    pictures = blank(BATCH, preprocessing.size).zero_()
    return timed(preprocessing.normalise(pictures) for _ in range(8))


def by_crew(pictures: ViewDataset, numbers: np.ndarray, thread_pool: ThreadPool, size: int = BATCH) -> float:
    """As `SoftLabelDataset` with threads: one batch after the other, each made by all of them together."""
    todo = [np.divmod(numbers[start : start + size], VIEWS) for start in range(0, len(numbers), size)]
    return timed((pictures.render(rows, views, thread_pool=thread_pool) for rows, views in todo), time.perf_counter)


def several(rows: np.ndarray, each: int) -> np.ndarray:
    """Sample numbers of `each` views of the first rows, as many samples as there are rows."""
    few = rows[: max(1, len(rows) // each)]
    return (few[:, None] * VIEWS + np.arange(each)).reshape(-1)


@dataclass(frozen=True)
class Way:
    """A way to make images; `against` names the one that its rate is divided by, `wanted` the least ratio."""

    name: str
    run: Run
    against: str | None = None
    wanted: float | None = None


def photo_ways(photos: str, size: int, repeats: int, folder: Path, normalise: bool) -> list[Way]:
    source = softlabels.open_images(f"images:{photos}")
    packs = {}
    for quality in (90, "raw"):
        softlabels.pack(data=f"images:{photos}", out=str(folder / str(quality)), quality=quality, quiet=True)
        packs[quality] = softlabels.open_images(f"pack:{folder / str(quality)}")
    preprocessing, recipe = Preprocessing(size=size, **IMAGENET), RECIPES.make("crop-flip")
    make = functools.partial(ViewDataset, recipe=recipe, seed=0, views=VIEWS, image_spec=image_spec(preprocessing))
    files, jpeg, raw = make(source), make(packs[90]), make(packs["raw"])
    rows = np.tile(np.arange(len(source)), repeats)
    # Workers have some batches ready when the clock starts; they must not be most of what is counted.
    longer = np.tile(rows, 4)
    pil = ByPil(source, recipe, files.hashes, size)
    ours = functools.partial(by_us, normalise=preprocessing if normalise else None)
    one, two = "PIL transforms, 1 core", "PIL transforms, 2 workers"

    def way(name: str, pictures: ViewDataset, each: int, workers: Workers, wanted: float | None = None) -> Way:
        numbers = several(longer if workers else rows, each)
        return Way(name, lambda: ours(pictures, numbers, workers), one if workers == 0 else two, wanted)

    ways = [Way(one, lambda: by_pil(pil, rows, 0)), way("files", files, 1, 0, 1.9)]
    ways += [way(f"files, {n} views per decode", files, n, 0, 4.5 if n == 4 else None) for n in (2, 4, 8)]
    ways += [way("JPEG pack", jpeg, 1, 0, 5.0), way("JPEG pack, 4 views per decode", jpeg, 4, 0)]
    ways += [way("raw pack", raw, 1, 0, 12.0), way("raw pack, 4 views per decode", raw, 4, 0)]
    ways.append(Way("normalising ready batches, 1 core", lambda: normalising(preprocessing), one))
    ways.append(Way(two, lambda: by_pil(pil, longer, 2)))
    for name, pictures in (("files", files), ("JPEG pack", jpeg), ("raw pack", raw)):
        ways += [way(f"{name}, 2 processes", pictures, 1, 2), way(f"{name}, 2 threads", pictures, 1, Threads(2))]
        together = functools.partial(by_crew, pictures, several(longer, 1), ThreadPool(2))
        ways.append(Way(f"{name}, 2 threads on each batch", together, two))
    return ways


def small_ways(cifar: str | None, normalise: bool) -> list[Way]:
    images: Images = softlabels.open_images("cifar10", data_dir=cifar) if cifar else random_pictures(10_000)
    preprocessing = Preprocessing(size=32, resize=32, **IMAGENET)
    rows = np.random.default_rng(0).permutation(len(images))[:10_000]
    one = "PIL transforms, 32x32 in memory, 1 core"

    def way(recipe: str, wanted: float | None = None) -> Way:
        pictures = ViewDataset(images, RECIPES.make(recipe), 0, VIEWS, image_spec(preprocessing))
        last = preprocessing if normalise else None
        return Way(
            f"32x32 in memory, {recipe}", lambda: by_us(pictures, rows * VIEWS, 0, last, SMALL_BATCH), one, wanted
        )

    hashes = ViewDataset(images, RECIPES.make("pad-flip"), 0, 1, image_spec(preprocessing)).hashes
    pil = ByPil(images, RECIPES.make("pad-flip"), hashes, 32, pad=4)
    return [Way(one, lambda: by_pil(pil, rows[:2048], 0, SMALL_BATCH)), way("pad-flip", 25.0), way("crop-flip")]


def random_pictures(count: int) -> MemoryImages:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8))
    keys = pa.chunked_array([pa.array([f"random/{row:05d}" for row in range(count)])])
    return MemoryImages("random", {"kind": "random"}, keys, np.full(count, -1), (), pixels)


@dataclass(frozen=True)
class Cheap:
    """A teacher that costs nothing, so that decoding is all that a dump does."""

    preprocessing: Preprocessing
    name: str = "cheap"
    classes: int = 3
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def outputs(self, pictures: Tensor, names: object) -> dict[str, Tensor]:  # noqa: ARG002
        return {"logits": pictures[:, :, ::16, ::16].float().mean((2, 3))}


def dump_ways(photos: str, size: int, folder: Path) -> list[Way]:
    images, recipe = softlabels.open_images(f"images:{photos}"), RECIPES.make("crop-flip")
    teacher, codec = Cheap(Preprocessing(size=size, **IMAGENET)), CODECS.make("dense")
    count = 0

    def dump(views: int) -> float:
        nonlocal count
        count += 1
        root = folder / f"store-{count}"
        store, _ = make_store(root, images, recipe, seed=count, classes=3, rows_per_shard=4096)
        said = {"spec": {"kind": "own"}, "weights_sha256": "", "licence": None, "format": "hdf5"}
        labels = store.prepare(
            "cheap",
            card(**said, preprocessing={"size": size}, codec=codec, classes=3, images=images, recipe=recipe),
        )
        pictures = ViewDataset.of_store(store, images, views, image_spec(teacher.preprocessing))
        began = time.process_time()
        dumping.dump(pictures, teacher, [StoredOutput(codec, labels)], batch_size=BATCH, terminal=Terminal(quiet=True))
        return len(images) * views / (time.process_time() - began)

    one = "a dump of 1 view"
    return [Way(one, lambda: dump(1)), Way("a dump of 8 views", lambda: dump(8), one, 4.0)]


def measure(ways: list[Way], rounds: int) -> list[str]:
    """Run every way once per round; a line for each."""
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            rates[way.name].append(way.run())
    lines = []
    for way in ways:
        line = f"| {way.name} | {statistics.median(rates[way.name]):,.0f} |"
        if way.against:
            pairs = zip(rates[way.name], rates[way.against], strict=True)
            ratios = sorted(own / other for own, other in pairs)
            line += f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        else:
            line += " 1 |"
        lines.append(line + (f" >= {way.wanted:g} |" if way.wanted else " |"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="folder of JPEG photographs")
    parser.add_argument("--cifar", help="folder of CIFAR-10 for the 32x32 images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="times each photograph is read per round")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--normalise", action="store_true", help="end in normalised floats on this core, too")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    print("| way | images/s | ratio (lowest to highest round) | wanted |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        groups = [small_ways(settings.cifar, settings.normalise)]
        if settings.photos:
            photos = photo_ways(settings.photos, settings.size, settings.repeats, folder, settings.normalise)
            groups.insert(0, photos)
            groups.append(dump_ways(settings.photos, settings.size, folder))
        for ways in groups:
            print("\n".join(measure(ways, settings.rounds)), flush=True)


if __name__ == "__main__":
    main()
