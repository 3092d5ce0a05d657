"""Our own small networks for images of 8x8 to 32x32; all end in an average over positions, so any size will do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from softlabels.models._architecture import Architecture
from softlabels.models._preprocessing import Preprocessing

_CIFAR = Preprocessing(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
_PLAIN = Preprocessing(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution and its BatchNorm."""
    return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]


class PlainNet(nn.Module):
    """3x3 convolutions of the given widths and strides, each with BatchNorm and ReLU; average; dropout; linear head."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], dropout: float, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(itertools.pairwise((3, *widths)), strides, strict=True):
            layers += [*_convolution(inputs, outputs, stride), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)
        _he_initialisation(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised images (n, 3, H, W) to logits (n, classes)."""
        logits: Tensor = self.head(self.dropout(self.features(pictures).mean((2, 3))))
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A: strided pixels, new channels zero)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = _convolution(inputs, outputs, stride), _convolution(outputs, outputs)
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (n, inputs, H, W) to (n, outputs, H / stride, W / stride)."""
        shortcut = maps[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return F.relu(self.body(maps) + shortcut)


class CifarResNet(nn.Module):
    """The residual network of depth 6 `blocks` + 2 of He et al., "Deep residual learning" (CVPR 2016), section 4.2."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_convolution(3, 16), nn.ReLU(inplace=True)]
        for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
            layers.append(Residual(inputs, outputs, stride=outputs // inputs))
            layers += [Residual(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(64, classes)
        _he_initialisation(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised images (n, 3, H, W) to logits (n, classes)."""
        logits: Tensor = self.head(self.features(pictures).mean((2, 3)))
        return logits


def _he_initialisation(network: nn.Module) -> None:
    """He et al., "Delving deep into rectifiers" (ICCV 2015), for every convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_NETWORKS: dict[str, tuple[Callable[[int], nn.Module], Preprocessing]] = {
    "cnn_tiny": (partial(PlainNet, (12, 16, 32), (1, 2, 2), 0.0), _PLAIN),
    "cnn_mini": (partial(PlainNet, (16, 32, 64), (1, 2, 2), 0.0), _PLAIN),
    "cnn_small": (partial(PlainNet, (32, 32, 64, 64, 96), (1, 1, 2, 1, 2), 0.1), _PLAIN),
    "resnet8_cifar": (partial(CifarResNet, 1), _CIFAR),
    "resnet20_cifar": (partial(CifarResNet, 3), _CIFAR),
    "resnet56_cifar": (partial(CifarResNet, 9), _CIFAR),
}


class SmallNetwork(Architecture):
    """One of our own networks for small images; nobody has published weights of them."""

    kind: Literal["small"] = "small"
    default_classes: ClassVar[int] = 10

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(_NETWORKS)

    def create(self, classes: int, size: int) -> nn.Module:  # noqa: ARG002 - they run at any size
        return _NETWORKS[self.architecture][0](classes)

    def own_preprocessing(self, *, training: bool = False) -> Preprocessing:  # noqa: ARG002
        return _NETWORKS[self.architecture][1]
