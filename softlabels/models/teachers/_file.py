"""A teacher that is a file of weights which describes itself."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator

from softlabels.models import networks
from softlabels.models.teachers._network import Amp, NetworkTeacher, Origin, teach


class FileTeacher(networks.NetworkSettings):
    """The weights at `path`, as training writes them: architecture, classes and preprocessing are read from the file.

    A folder means the best weights of that run.
    """

    shorthand = "path"

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _no_other_weights(cls, weights: str | None) -> str | None:
        if weights is not None:
            raise ValueError(
                "the file is the weights; leave `weights` out, or name an architecture instead of the file"
            )
        return weights

    @property
    def slug(self) -> str:
        """The `name`, or else that of the run or file."""
        return self.name or networks.slug_of_file(self.path)

    @property
    def resolved(self) -> str:
        """``file:`` and the path."""
        return f"file:{self.path}"

    def open(
        self,
        device: str | torch.device = "cpu",
        amp: Amp | None = None,
        classes: int | None = None,
        *,
        clean: bool = False,  # noqa: ARG002
        preprocessing: networks.Preprocessing | None = None,
        role: str = "teacher",
    ) -> NetworkTeacher:
        """The teacher, ready to answer; `classes` is the data set's count (None: not to be compared).

        The file says how it takes its pictures, `clean` or not; `preprocessing`, that of a store, stands over it.

        Raises:
            ModelError: the file cannot be read or does not describe itself, the class counts differ, or the device is
                not there.
        """
        weights = networks.trained_file(self.path)
        preprocessing = preprocessing or self.over(weights.preprocessing)
        network = networks.built(weights, size=preprocessing.size)
        names, where = weights.class_names, weights.where
        return teach(
            Origin(network, weights.preprocessing, weights.classes, names, weights.licence, where, foreign=False),
            name=self.slug,
            spec=self.model_dump(mode="json"),
            preprocessing=preprocessing,
            device=device,
            amp=amp,
            classes=classes,
            role=role,
        )
