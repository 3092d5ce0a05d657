"""Teachers on a GPU: the CPU's logits within what the precision rounds."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from gpus import DEVICE, PRECISIONS, apart, needs_gpu, tf32
from torch import Tensor

from softlabels.models import NetworkTeacher, teacher_spec
from softlabels.models.devices import Passes, find_device

pytestmark = [pytest.mark.cuda, needs_gpu]
NETWORKS = ("resnet18", "mobilenet_v3_small", "vit_b_32", "cnn_small")


def pictures(count: int, side: int) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (count, 3, 7, 7), generator=chance).float()
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").round().to(torch.uint8)


def opened(name: str, device: str, amp: str | None = None) -> NetworkTeacher:
    made = teacher_spec(name, "random:3").open(device, amp, 10 if name == "cnn_small" else None)  # type: ignore[arg-type]
    assert isinstance(made, NetworkTeacher)
    return made


@functools.cache
def trained(name: str) -> dict[str, Tensor]:
    """Weights with which activations are of usual size: batch statistics of some images, and a head that is not 0."""
    made = opened(name, "cpu")
    if name == "vit_b_32":  # torchvision's begin with a head of zeros
        head: Any = made.network.heads.head.weight  # type: ignore[union-attr]
        head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(0)) / 16)
    for module in made.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    made.network.train()
    with torch.no_grad():
        made.network(made.preprocessing.normalise(pictures(16, made.preprocessing.size)))
    return made.network.state_dict()


def teacher(name: str, device: str, amp: str | None = None) -> NetworkTeacher:
    made = opened(name, device, amp)
    made.network.load_state_dict(trained(name))
    return made


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_the_cpus_within_what_is_stated(name: str, precision: str) -> None:
    amp, allowed, far = PRECISIONS[precision]
    here, there = teacher(name, "cpu"), teacher(name, DEVICE, amp)
    assert there.weights_sha256 == here.weights_sha256
    shown = pictures(8, here.preprocessing.size)
    with tf32(allowed):
        said = there.logits(shown)
    assert said.device.type == DEVICE
    assert said.dtype == torch.float32
    assert apart(said, here.logits(shown)) < far


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layout_of_pictures_in_memory_changes_nothing(name: str) -> None:
    there = teacher(name, DEVICE)
    shown = pictures(4, there.preprocessing.size)
    assert torch.equal(there.logits(shown), there.logits(shown.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_batch_gives_the_same_bits(name: str) -> None:
    there = teacher(name, DEVICE, "bf16")
    shown = pictures(8, there.preprocessing.size)
    assert torch.equal(there.logits(shown), there.logits(shown))


def test_a_compiled_teacher_says_what_a_plain_one_says_of_any_number_of_pictures() -> None:
    plain = teacher("resnet18", DEVICE)
    shown = pictures(11, plain.preprocessing.size)
    with tf32(False):
        passes = Passes(plain.compile().logits, 4, padded=True)
        assert apart(passes(shown), plain.logits(shown)) < 1e-4


def test_auto_is_the_gpu() -> None:
    assert find_device("auto").type == DEVICE
