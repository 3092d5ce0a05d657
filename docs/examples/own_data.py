"""A data set of your own: photos in a tar file, `own_data:photos` wherever `data` is asked for.

    PHOTOS=photos.tar softlabels dump --teacher resnext101 --data own_data:photos --out shards/

in the folder where this file lies. Each photo is named after its class: ``cat/001.jpg``.
"""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
from PIL import Image

import softlabels


class TarPhotos:
    """A map-style data set of (PIL image, class number)."""

    def __init__(self, path: str) -> None:
        self.path = path
        with tarfile.open(path) as tar:
            # Where each photo lies in the file, so that worker processes read without sharing an open file.
            self.members = sorted(
                (each.name.removeprefix("./"), each.offset_data, each.size) for each in tar if each.isfile()
            )
        folders = [name.partition("/")[0] for name, _, _ in self.members]
        self.classes = sorted(set(folders))
        self.targets = [self.classes.index(folder) for folder in folders]  # known without opening an image

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        _, start, size = self.members[number]
        photo = np.memmap(self.path, np.uint8, "r", start, size)
        return Image.open(io.BytesIO(photo.tobytes())), self.targets[number]


def photos() -> softlabels.Images:
    """What softlabels calls: the images, each under a key that never changes."""
    dataset = TarPhotos(os.environ["PHOTOS"])
    return softlabels.open_images(dataset, keys=[name for name, _, _ in dataset.members])
