"""Poolings of features: what is kept of a feature map or of tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from softlabels.errors import ModelError

LEAST_NORM = 1e-12
"""What the norm of an attention map is at least divided by: a map of zeros stays one."""


def mean_pool(features: Tensor) -> Tensor:
    """The mean over all places: (n, C, H, W) or tokens (n, N, C) to (n, C)."""
    if features.ndim == 4:
        return features.mean((2, 3))
    if features.ndim == 3:
        return features.mean(1)
    raise _wrong("mean", "maps (n, C, H, W) or tokens (n, N, C)", features)


def class_token(features: Tensor) -> Tensor:
    """The first token: (n, N, C) to (n, C)."""
    if features.ndim != 3:
        raise _wrong("token", "tokens (n, N, C)", features)
    return features[:, 0]


def attention_map(features: Tensor) -> Tensor:
    """The sum over the channels of squared activations, divided by its norm over all places: (n, C, H, W) to (n, H, W).

    In fp32 at least. Source: Zagoruyko and Komodakis 2017, "Paying more attention to attention", arXiv:1612.03928:
    F_sum^2 of equation 1, divided by its l2 norm as in equation 2.
    """
    if features.ndim != 4:
        raise _wrong("attention", "maps (n, C, H, W)", features)
    wide = features if features.element_size() >= 4 else features.float()
    return unit_map(wide.square().sum(1))


def unit_map(maps: Tensor) -> Tensor:
    """Maps (n, H, W) divided by their norms over all places."""
    return F.normalize(maps.flatten(1), dim=1, eps=LEAST_NORM).view_as(maps)


def grid_pool(features: Tensor, side: int) -> Tensor:
    """Means over a grid of side x side cells: (n, C, H, W) to (n, C, side, side)."""
    if features.ndim != 4:
        raise _wrong(f"grid{side}", "maps (n, C, H, W)", features)
    height, width = features.shape[2:]
    if side > min(height, width):
        raise ModelError(
            f"pooling grid{side} has more cells than the map of {height}x{width} has places; choose grid"
            f"{min(height, width)} at most, or leave the pooling out"
        )
    return F.adaptive_avg_pool2d(features, side)


def _wrong(pool: str, wanted: str, features: Tensor) -> ModelError:
    return ModelError(f"pooling {pool} takes {wanted}, not a tensor of shape {tuple(features.shape)}; choose another")


def find_pool(name: str) -> Callable[[Tensor], Tensor]:
    """The pooling of this name (`softlabels.core.outputs.is_pool`)."""
    if name.startswith("grid"):
        return partial(grid_pool, side=int(name.removeprefix("grid")))
    return {"mean": mean_pool, "token": class_token, "attention": attention_map}[name]
