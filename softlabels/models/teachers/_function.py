"""A teacher that a function of the user's makes."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator

from softlabels.models import networks
from softlabels.models.teachers._network import Amp, NetworkTeacher, Origin, teach


class FunctionTeacher(networks.NetworkSettings):
    """What ``module:function`` returns when called: a torch.nn.Module, or one and its preprocessing.

    `weights` is a file to load into it (None: it comes with its own).
    """

    shorthand = "function"

    kind: Literal["function"] = "function"
    function: str = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _weights_are_a_file(cls, weights: str | None) -> str | None:
        if weights == "default" or networks.random_seed(weights) is not None:
            raise ValueError("a function's network comes with its own weights; give a file or leave `weights` out")
        return weights

    @property
    def slug(self) -> str:
        """The `name`, or else that of the function."""
        return self.name or networks.slug(self.function.replace(":", "-"))

    @property
    def resolved(self) -> str:
        """``function:`` and its path."""
        return f"function:{self.function}"

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

        The function gets `classes` when it takes an argument. It says how it takes its pictures, `clean` or not;
        `preprocessing`, that of a store, stands over it.

        Raises:
            ModelError: the function is not there or fails, the network does not answer as a classifier does, or the
                class counts differ.
        """
        network, own = networks.from_function(
            self.function, classes, over=lambda wanted: preprocessing or self.over(wanted)
        )
        spec, where, told = self.model_dump(mode="json"), self.resolved, None
        if self.weights is not None:
            where, told = networks.fitted(network, self.weights, self.resolved)
            spec["weights"] = where
        return teach(
            Origin(
                network=network,
                preprocessing=told.preprocessing if told else own,
                classes=None,
                class_names=told.class_names if told else (),
                licence=None,
                where=where,
                foreign=True,
            ),
            name=self.slug,
            spec=spec,
            preprocessing=preprocessing or self.over(told.preprocessing if told else own),
            device=device,
            amp=amp,
            classes=classes,
            role=role,
        )
