"""Teachers whose network is named: ours, torchvision's and timm's, with published, stored or random weights."""

from __future__ import annotations

from typing import Literal

import torch

from softlabels import networks
from softlabels.teachers._network import Amp, NetworkTeacher, Origin, teach


class ArchitectureTeacher(networks.ArchitectureSettings):
    """Abstract: a final kind per source of architectures.

    `weights` None or ``default`` are the published ones; ``random`` and ``random:SEED`` are for trials.
    """

    def open(
        self, device: str | torch.device = "cpu", amp: Amp | None = None, classes: int | None = None
    ) -> NetworkTeacher:
        """The teacher, ready to answer. `classes` is the data set's count: random weights take it, others must have it.

        Raises:
            ModelError: the weights are not to be had or do not fit, the class counts differ, or the device is missing.
        """
        seed = networks.random_seed(self.weights)
        origin = self._trained() if seed is None else self._random(seed, classes)
        return teach(
            origin,
            name=self.slug,
            spec=self.model_dump(mode="json"),
            preprocessing=self.over(origin.preprocessing),
            device=device,
            amp=amp,
            classes=classes,
        )

    def _trained(self) -> Origin:
        weights = networks.trained(self.resolved, self.weights)
        network = networks.built(weights, size=self.over(weights.preprocessing).size)
        names, licence = weights.class_names, weights.licence
        return Origin(network, weights.preprocessing, weights.classes, names, licence, weights.where, foreign=False)

    def _random(self, seed: int, classes: int | None) -> Origin:
        own = networks.preprocessing(self.resolved)
        count = classes or networks.default_classes(self.resolved)
        network = networks.build(self.resolved, count, seed=seed, size=self.over(own).size)
        return Origin(network, own, count, (), None, f"random:{seed}", foreign=False)


class TorchvisionTeacher(ArchitectureTeacher):
    """A classification network of torchvision."""

    kind: Literal["torchvision"] = "torchvision"


class SmallTeacher(ArchitectureTeacher):
    """One of our own networks for small pictures."""

    kind: Literal["small"] = "small"


class TimmTeacher(ArchitectureTeacher):
    """A network of timm."""

    kind: Literal["timm"] = "timm"
