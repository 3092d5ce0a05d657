"""Teachers whose network is named: ours, torchvision's and timm's, with published, stored or random weights."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from softlabels.models import networks
from softlabels.models.teachers._network import Amp, NetworkTeacher, Origin, teach

_log = logging.getLogger(__name__)


class ArchitectureTeacher(networks.ArchitectureSettings):
    """Abstract: a final kind per source of architectures.

    `weights` None or ``default`` are the published ones; ``random`` and ``random:SEED`` are for trials.
    """

    def open(
        self,
        device: str | torch.device = "cpu",
        amp: Amp | None = None,
        classes: int | None = None,
        *,
        clean: bool = False,
        preprocessing: networks.Preprocessing | None = None,
        role: str = "teacher",
    ) -> NetworkTeacher:
        """The teacher, ready to answer. `classes` is the data set's count: random weights take it, others must have it.

        For `clean` views it takes its pictures as its published weights are evaluated, else as they were trained, where
        the two differ in size; `preprocessing`, that of a store, stands over both. `role` is its word in messages.

        Raises:
            ModelError: the weights are not to be had or do not fit, the class counts differ, or the device is missing.
        """
        seed, spec = networks.random_seed(self.weights), self.model_dump(mode="json")
        if seed is None:
            weights = networks.trained(self.resolved, self.weights, training=not clean)
            own = weights.preprocessing
            seen = preprocessing or self.over(own)
            network = networks.built(weights, size=seen.size)
            names, licence, where = weights.class_names, weights.licence, weights.where
            origin = Origin(network, own, weights.classes, names, licence, where, foreign=False)
            # With the key that was found in a checkpoint, so that the same weights are found again.
            spec["weights"] = self.weights and networks.with_key(self.weights, weights.key)
        else:
            own = networks.preprocessing(self.resolved, training=not clean)
            seen = preprocessing or self.over(own)
            count = classes or networks.default_classes(self.resolved)
            network = networks.build(self.resolved, count, seed=seed, size=seen.size)
            origin = Origin(network, own, count, (), None, f"random:{seed}", foreign=False)
        if preprocessing is None and own.size == seen.size:
            self._say_size(own, clean)
        return teach(
            origin,
            name=self.slug,
            spec=spec,
            preprocessing=seen,
            device=device,
            amp=amp,
            classes=classes,
            role=role,
        )

    def _say_size(self, taken: networks.Preprocessing, clean: bool) -> None:
        """Say in the log which of two sizes of pictures was taken, where training and evaluation differ."""
        other = networks.preprocessing(self.resolved, training=clean)
        if networks.preprocessing(self.resolved, training=not clean) == taken and other.size != taken.size:
            what = "evaluated" if clean else "trained"
            _log.warning(
                "%s is shown pictures of %d px, at which it was %s (%s: %d px)",
                self.slug,
                taken.size,
                what,
                "trained" if clean else "evaluated",
                other.size,
            )


class TorchvisionTeacher(ArchitectureTeacher):
    """A classification network of torchvision."""

    kind: Literal["torchvision"] = "torchvision"


class SmallTeacher(ArchitectureTeacher):
    """One of our own networks for small pictures."""

    kind: Literal["small"] = "small"


class TimmTeacher(ArchitectureTeacher):
    """A network of timm."""

    kind: Literal["timm"] = "timm"
