"""What tests of a GPU share. SOFTLABELS_TEST_DEVICE=cpu runs most of them without one, to see that they are sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

DEVICE = os.environ.get("SOFTLABELS_TEST_DEVICE", "cuda")
HERE = DEVICE == "cpu" or torch.cuda.is_available()

needs_gpu = pytest.mark.skipif(not HERE, reason="needs a CUDA device")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PRECISIONS = {
    "fp32": (None, False, 1e-4),
    "tf32": (None, True, 2e-2),
    "fp16": ("fp16", True, 2e-2),
    "bf16": ("bf16", True, 1.5e-1),
}
"""--amp, whether float32 may be computed as TF32, and how far logits may be from the CPU's, as docs/gpu.md states."""


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether convolutions and matrix products of float32 round their factors to 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def memory(most: float) -> Iterator[None]:
    """torch may hold so many bytes of the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / torch.cuda.get_device_properties(0).total_memory))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def apart(one: Tensor, other: Tensor) -> float:
    """The norm of the difference over that of `other`, both less their rows' means: logits are known up to those."""
    one, other = (each.double().cpu() for each in (one, other))
    one, other = (each - each.mean(1, keepdim=True) for each in (one, other))
    return ((one - other).norm() / other.norm()).item()
