"""A dump against a bare loop of the same teacher over pictures that are ready in memory.

    python benchmarks/dump.py [--teacher resnet50] [--images 96] [--rounds 3]

The bare loop is the limit: no decoding, no rendering, no encoding, no files. The dump decodes JPEG files made here,
draws and renders one view of each, runs the same teacher at the same batch size, encodes, and writes synced shards.
Both run in turn; the median of the ratios is printed with the target, which holds where the teacher is the bottleneck.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.io import write_jpeg

import softlabels
from softlabels.pictures import Pictures, frame
from softlabels.teachers import teacher_spec
from softlabels.views import RECIPES

TARGET = 0.95


def write_images(root: Path, count: int) -> None:
    """Smooth random photographs of 256x256 pixels, one class."""
    (root / "class").mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (1, 3, 16, 16)).astype(np.float32)
        smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), (256, 256), mode="bilinear")[0]
        write_jpeg(smooth.round().to(torch.uint8), str(root / "class" / f"{number:05d}.jpg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        run(root, options)
    finally:
        shutil.rmtree(root)


def run(root: Path, options: argparse.Namespace) -> None:
    write_images(root / "photos", options.images)
    images = softlabels.open_images(f"images:{root / 'photos'}")
    teacher = teacher_spec(options.teacher, "random").open(options.device)
    pictures = Pictures(images, RECIPES.make("crop-flip"), 0, 1, frame(teacher.preprocessing))
    rows = np.arange(len(images))
    ready = pictures.render(rows, np.zeros_like(rows)).split(options.batch_size)
    for batch in ready[:2]:
        teacher.logits(batch).cpu()
    ratios = []
    for number in range(options.rounds):
        began = time.perf_counter()
        for batch in ready:
            teacher.logits(batch).cpu()
        bare = len(images) / (time.perf_counter() - began)
        (report,) = softlabels.dump(
            teacher=[options.teacher],
            weights=["random"],
            data=f"images:{root / 'photos'}",
            views=1,
            batch_size=options.batch_size,
            device=options.device,
            out=str(root / f"shards-{number}"),
            quiet=True,
        )
        dumped = report.pictures / report.seconds
        ratios.append(dumped / bare)
        print(
            f"  bare loop {bare:7.1f} pictures/s, dump {dumped:7.1f} pictures/s, ratio {dumped / bare:.3f}", flush=True
        )
    print(f"{options.teacher}: median ratio {statistics.median(ratios):.3f} (target {TARGET})")


if __name__ == "__main__":
    main()
