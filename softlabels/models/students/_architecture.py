"""Students whose network is named: ours, torchvision's and timm's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from torch import nn

from softlabels.models import networks
from softlabels.models.students._network import metadata

_log = logging.getLogger(__name__)


class ArchitectureStudent(networks.ArchitectureSettings):
    """Abstract: a final kind per source of architectures.

    `weights` None or ``random`` are drawn from the run's seed; ``default`` starts from the published ones, a file from
    those in it.
    """

    @property
    def preprocessing(self) -> networks.Preprocessing:
        """How the student wants its pictures: as its first weights were trained, or as set here."""
        if self.weights is None or self._starts_anew() or self.weights == "default":
            return self.over(networks.preprocessing(self.resolved, training=True))
        if networks.is_published(self.resolved, self.weights):
            published = networks.published_weights(self.resolved, self.weights)
            return self.over(published.preprocessing if published else networks.preprocessing(self.resolved))
        told = networks.read_description(self.weights)
        return self.over(told.preprocessing if told else networks.preprocessing(self.resolved, training=True))

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the tensors whose shape depends on the number of classes."""
        return tuple(networks.head_tensors(self.resolved))

    def build(self, classes: int, *, seed: int) -> nn.Module:
        """The network on the CPU, in train mode, with a head of `classes`; what is drawn depends on `seed` alone.

        Weights of another class count give all but the head, which is said in the log.

        Raises:
            ModelError: the weights are not to be had or do not fit.
        """
        if self._starts_anew():
            drawn = networks.random_seed(self.weights) if self.weights != "random" else None
            return networks.build(self.resolved, classes, seed=seed if drawn is None else drawn, size=self._size())
        weights = networks.trained(self.resolved, self.weights, training=True)
        if weights.key:
            _log.warning("student %s starts from %s", self.slug, weights.where)
        if weights.classes != classes:
            _log.warning(
                "%s has %d classes, student %s %d: its head starts anew, near zero",
                weights.where,
                weights.classes,
                self.slug,
                classes,
            )
        return networks.started(weights, classes, seed=seed, size=self._size())

    def metadata(self, classes: int, class_names: Sequence[str] = ()) -> dict[str, str]:
        """Text for the header of its weights, from which they can be loaded again by their path alone."""
        return metadata(self.resolved, self.preprocessing, classes, class_names)

    def _size(self) -> int:
        return self.preprocessing.size

    def _starts_anew(self) -> bool:
        return self.weights is None or networks.random_seed(self.weights) is not None


class TorchvisionStudent(ArchitectureStudent):
    """A classification network of torchvision."""

    kind: Literal["torchvision"] = "torchvision"


class SmallStudent(ArchitectureStudent):
    """One of our own networks for small pictures."""

    kind: Literal["small"] = "small"


class TimmStudent(ArchitectureStudent):
    """A network of timm."""

    kind: Literal["timm"] = "timm"
