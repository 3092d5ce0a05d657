"""Images that tests make for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.io import write_jpeg

TINY: dict[str, Any] = {
    "student": "cnn_tiny",
    "batch_size": 8,
    "epochs": 3,
    "device": "cpu",
    "workers": 0,
    "quiet": True,
}
"""A training of three epochs, each of three steps on the photos."""


def picture(seed: int, height: int = 40, width: int = 48) -> torch.Tensor:
    """A smooth random image, uint8 (3, height, width): noise would make JPEG files large and crops all alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (1, 3, 4, 5)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), (height, width), mode="bilinear")
    return smooth[0].round().to(torch.uint8)


def write_pictures(root: Path, classes: int = 3, each: int = 6) -> Path:
    """An ImageFolder of JPEG files of several sizes."""
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            shape = (40, 48) if number % 2 else (52, 36)
            write_jpeg(picture(100 * label + number, *shape), str(folder / f"{number:03d}.jpg"), quality=90)
    return root
