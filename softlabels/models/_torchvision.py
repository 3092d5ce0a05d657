"""Every classification network of torchvision, with the preprocessing of its default weights."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softlabels.choices import NETWORK_ALIASES
from softlabels.core.installed import torchvision_networks
from softlabels.models._architecture import Architecture
from softlabels.models._preprocessing import Preprocessing
from softlabels.models._published import PublishedWeights, cached_file, download, file_sha256
from softlabels.models._weights import read_weights

# Their auxiliary classifiers serve training only. The published weights were converted from TensorFlow and want their
# input transformed once more, inside the network; weights fine-tuned from them want it too.
_INCEPTIONS: dict[str, tuple[str, ...]] = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


class TorchvisionNetwork(Architecture):
    """A classification network of torchvision."""

    kind: Literal["torchvision"] = "torchvision"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(sorted(torchvision_networks()))

    @classmethod
    def find(cls, name: str) -> str | None:
        name = NETWORK_ALIASES.get(name, name)
        return name if name in torchvision_networks() else None

    def create(self, classes: int, size: int) -> nn.Module:
        """As torchvision makes it without weights; auxiliary classifiers are left out."""
        from torchvision import models

        settings: dict[str, Any] = {"num_classes": classes}
        if self.architecture in _INCEPTIONS:
            settings |= {"aux_logits": False, "transform_input": True, "init_weights": True}
        if self.architecture.startswith("vit_"):
            settings["image_size"] = size
        if self.architecture.startswith("maxvit_"):
            settings["input_size"] = (size, size)
        network: nn.Module = models.get_model(self.architecture, weights=None, **settings)
        return network

    def own_preprocessing(self, *, training: bool = False) -> Preprocessing:  # noqa: ARG002
        """What the default weights' own transforms say; torchvision does not state the size of training."""
        return _preprocessing(self.architecture, self._enum.DEFAULT.name)

    def published(self, name: str = "default") -> PublishedWeights | None:
        """The weights that torchvision calls so, with or without the name of their enumeration."""
        enum, network = self._enum, self.architecture
        name = name.removeprefix(f"{enum.__name__}.")
        if name != "default" and name not in enum.__members__:
            return None
        weights = enum.DEFAULT if name == "default" else enum[name]
        categories = tuple(weights.meta["categories"])
        return PublishedWeights(
            name=str(weights),
            url=weights.url,
            file=cached_file(weights.url),
            classes=len(categories),
            class_names=categories,
            licence=weights.meta.get("license"),
            preprocessing=_preprocessing(network, weights.name),
            load=lambda: _renamed(network, read_weights(download(weights.url, str(weights))).state),
        )

    def named_weights(self) -> tuple[str, ...]:
        """Such as ``IMAGENET1K_V1``."""
        return tuple(self._enum.__members__)

    def recognised(self, file: Path) -> PublishedWeights | None:
        """The weights whose URL ends in the first digits of the file's SHA-256, as torchvision's URLs do."""
        stated = {name: torch.hub.HASH_REGEX.search(each.url) for name, each in self._enum.__members__.items()}
        digits = file_sha256(file) if any(stated.values()) else ""
        found = (name for name, match in stated.items() if match is not None and digits.startswith(match[1]))
        return next((self.published(name) for name in found), None)

    def converted(self, file: Path) -> dict[str, Tensor] | None:
        """The published DenseNets under the names of today."""
        return _renamed(self.architecture, read_weights(file).state) if _is_old(self.architecture) else None

    def training_only(self) -> tuple[str, ...]:
        """The auxiliary classifiers of the two Inceptions."""
        return _INCEPTIONS.get(self.architecture, ())

    @property
    def _enum(self) -> Any:
        return _enum(self.architecture)


def _enum(network: str) -> Any:
    from torchvision import models

    return models.get_model_weights(network)


@functools.cache
def _preprocessing(network: str, weights: str) -> Preprocessing:
    preset = _enum(network)[weights].transforms()
    return Preprocessing(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _is_old(network: str) -> bool:
    """Whether its published files still have the names of an older torchvision: ``norm.1`` for ``norm1``."""
    return network.startswith("densenet")


def _renamed(network: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not _is_old(network):
        return state
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    return {old.sub(r"\1\2", key): tensor for key, tensor in state.items()}
