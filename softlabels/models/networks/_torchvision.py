"""Every classification network of torchvision, with the preprocessing of its default weights."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.core.installed import torchvision_networks
from softlabels.models.networks._hub import cached_file, fetch, file_sha256
from softlabels.models.networks._preprocessing import Preprocessing
from softlabels.models.networks._source import DefaultWeights, SourceName
from softlabels.models.networks._weights import read_weights

# Their auxiliary classifiers serve training only. The published weights were converted from TensorFlow and want their
# input transformed once more, inside the network; weights fine-tuned from them want it too.
_INCEPTIONS: dict[str, tuple[str, ...]] = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


class Torchvision:
    """torchvision.models."""

    name: SourceName = "torchvision"
    default_classes = 1000

    def names(self) -> tuple[str, ...]:
        """Every classification network of the installed torchvision."""
        return tuple(sorted(torchvision_networks()))

    def knows(self, network: str) -> bool:
        """Whether the installed torchvision has `network`."""
        return network in torchvision_networks()

    def current(self, network: str) -> str:
        """As it is: no name has changed."""
        return network

    def build(self, network: str, classes: int, size: int) -> nn.Module:
        """`network` as torchvision makes it without weights; auxiliary classifiers are left out."""
        from torchvision import models

        settings: dict[str, Any] = {"num_classes": classes}
        if network in _INCEPTIONS:
            settings |= {"aux_logits": False, "transform_input": True, "init_weights": True}
        if network.startswith("vit_"):
            settings["image_size"] = size
        if network.startswith("maxvit_"):
            settings["input_size"] = (size, size)
        return models.get_model(network, weights=None, **settings)

    def preprocessing(self, network: str, *, training: bool = False) -> Preprocessing:  # noqa: ARG002
        """What the default weights' own transforms say; torchvision does not state the size of training."""
        return _preprocessing(network, _enum(network).DEFAULT.name)

    def default_weights(self, network: str) -> DefaultWeights | None:
        """torchvision's DEFAULT weights of `network`."""
        return self.published_weights(network, _enum(network).DEFAULT.name)

    def named_weights(self, network: str) -> tuple[str, ...]:
        """Such as ``IMAGENET1K_V1``."""
        return tuple(_enum(network).__members__)

    def published_weights(self, network: str, name: str) -> DefaultWeights | None:
        """The weights that torchvision calls so, with or without the name of their enumeration."""
        enum = _enum(network)
        name = name.removeprefix(f"{enum.__name__}.")
        if name not in enum.__members__:
            return None
        weights = enum[name]
        categories = tuple(weights.meta["categories"])

        def load() -> dict[str, Tensor]:
            return _renamed(network, read_weights(fetch(weights.url, str(weights))).state)

        return DefaultWeights(
            name=str(weights),
            url=weights.url,
            file=cached_file(weights.url),
            classes=len(categories),
            class_names=categories,
            licence=weights.meta.get("license"),
            preprocessing=_preprocessing(network, weights.name),
            load=load,
        )

    def recognised(self, network: str, file: Path) -> DefaultWeights | None:
        """The weights whose URL ends in the first digits of the file's SHA-256, as torchvision's URLs do."""
        stated = {name: torch.hub.HASH_REGEX.search(each.url) for name, each in _enum(network).__members__.items()}
        digits = file_sha256(file) if any(stated.values()) else ""
        for name, match in stated.items():
            if match is not None and digits.startswith(match[1]):
                return self.published_weights(network, name)
        return None

    def converted(self, network: str, file: Path) -> dict[str, Tensor] | None:
        """The published DenseNets under the names of today."""
        if not network.startswith("densenet"):
            return None
        return _renamed(network, read_weights(file).state)

    def training_only(self, network: str) -> tuple[str, ...]:
        """The auxiliary classifiers of the two Inceptions."""
        return _INCEPTIONS.get(network, ())


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


def _renamed(network: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published DenseNets still have the names of an older torchvision: ``norm.1`` for ``norm1``."""
    if not network.startswith("densenet"):
        return state
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    return {old.sub(r"\1\2", key): tensor for key, tensor in state.items()}
