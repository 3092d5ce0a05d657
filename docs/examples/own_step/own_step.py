"""A step of your own for augmentation recipes: quarter turns, for images that have no upright.

pip install -e docs/examples/own_step     # makes the step known under its name, by pyproject.toml
softlabels dump --config docs/examples/own_step/dump.yaml
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from softlabels.views import Params, Part, as_params


class QuarterTurns(Part):
    """The image turned by 0, 90, 180 or 270 degrees, each as likely."""

    kind: Literal["quarter-turns"] = "quarter-turns"

    blocks: ClassVar[int] = 1
    """How many blocks of four random words the parameters of a view take."""

    def make_params(self, words: np.ndarray) -> Params:
        """The parameters of n views from random words (n, 4), uint64: a structured array (n,).

        All chance comes from `words`: a view must be the same whenever and wherever it is rendered.
        """
        return as_params(len(words), turns=(words[:, 0] >> np.uint64(62)).astype(np.int8))

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, size, size), each turned by its own parameters."""
        return torch.stack(
            [image.rot90(int(turns), (1, 2)) for image, turns in zip(images, params["turns"], strict=True)]
        )
