"""Images per second of a raw pack beside FFCV's loader of raw images, in turn in one run.

    python benchmarks/extra/ffcv_raw.py --photos DIR [--threads 2] [--rounds 5]

Needs an environment of its own with `ffcv` beside softlabels (FFCV is built from source, with the headers of OpenCV and
libjpeg-turbo). Both keep the photographs at a longer side of at most 320, as raw bytes; both give shuffled batches of
uint8 (64, 3, size, size) cut by random resized crop and flipped, by the same number of threads. FFCV resizes by area
with OpenCV, and draws whatever its own generator says; ours resizes antialiased, draws what every other run draws, and
has compared the checksum of each image when it was first read.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import softlabels
from softlabels.loading.batches import LabelledViews, Threads, batches
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import Preprocessing
from softlabels.views import RECIPES

BATCH, SIDE = 64, 320


class Decoded:
    """The photographs as FFCV's writer takes them: (height, width, 3) arrays and a class number."""

    def __init__(self, folder: str, repeats: int) -> None:
        self.images = softlabels.open_images(f"images:{folder}")
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.images) * self.repeats

    def __getitem__(self, number: int) -> tuple[np.ndarray[Any, Any], int]:
        image = self.images.decode(number % len(self.images))
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy()), 0


def ffcv_epochs(photos: str, path: Path, size: int, threads: int, repeats: int) -> Callable[[], Iterator[Any]]:
    """A function that gives the batches of an epoch."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="raw", max_resolution=SIDE), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Decoded(photos, repeats))
    steps = [RandomResizedCropRGBImageDecoder((size, size)), RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": steps, "label": None},
    )
    return lambda: (batch[0] for batch in loader)


def our_epochs(photos: str, folder: Path, size: int, threads: int, repeats: int) -> Callable[[], Iterator[Any]]:
    """A function that gives the batches of an epoch, each in other views than the last."""
    softlabels.pack(data=f"images:{photos}", out=str(folder), quality="raw", max_side=SIDE, quiet=True)
    images = softlabels.open_images(f"pack:{folder}")
    preprocessing = Preprocessing(size=size, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    pictures = ViewDataset(
        images, RECIPES.make("crop-flip"), seed=0, views=1 << 20, image_spec=image_spec(preprocessing)
    )
    generator = np.random.default_rng(0)

    def epoch() -> Iterator[Any]:
        rows = np.tile(np.arange(len(images)), repeats)
        generator.shuffle(rows)
        numbers = rows * pictures.views + generator.integers(0, pictures.views, len(rows))
        todo = [numbers[at : at + BATCH] for at in range(0, len(numbers) - BATCH + 1, BATCH)]
        return (batch.pictures for batch in batches(LabelledViews(pictures), todo, workers=Threads(threads)))

    return epoch


def rates(made: Iterable[Any]) -> tuple[float, float]:
    """Images per second by the wall, and per CPU second, of an epoch from its beginning to its end."""
    wall, cpu, seen = time.perf_counter(), time.process_time(), 0
    for batch in made:
        seen += len(batch)
    return seen / (time.perf_counter() - wall), seen / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="folder of photographs")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10, help="times each photograph is read per epoch")
    settings = parser.parse_args()
    try:
        import ffcv  # noqa: F401
    except ImportError:
        sys.exit("this benchmark needs ffcv, in an environment of its own: pip install ffcv")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        arguments = settings.size, settings.threads, settings.repeats
        ways = {
            "FFCV raw": ffcv_epochs(settings.photos, Path(place) / "photos.beton", *arguments),
            "raw pack": our_epochs(settings.photos, Path(place) / "pack", *arguments),
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for way in ways.values():  # the first epoch compiles, and compares checksums
            rates(way())
        for _ in range(settings.rounds):
            for name, way in ways.items():
                measured[name].append(rates(way()))
    print("| way | pictures/s by the wall | per CPU second |\n|---|---|---|")
    for name, each in measured.items():
        wall, cpu = (statistics.median(rate[place] for rate in each) for place in (0, 1))
        print(f"| {name}, {settings.threads} threads | {wall:,.0f} | {cpu:,.0f} |")
    for place, clock in enumerate(("the wall", "CPU seconds")):
        pairs = zip(measured["raw pack"], measured["FFCV raw"], strict=True)
        ratios = sorted(own[place] / other[place] for own, other in pairs)
        print(f"by {clock}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) of FFCV (target 1.0)")


if __name__ == "__main__":
    main()
