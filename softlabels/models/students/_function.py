"""A student that a function of the user's makes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from softlabels.errors import ModelError
from softlabels.models import networks
from softlabels.models.students._network import metadata


class FunctionStudent(networks.NetworkSettings):
    """What ``module:function`` returns: a torch.nn.Module, or one and its preprocessing.

    It is called with the class count when it takes an argument. `weights` is a file to start from.
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

    @property
    def preprocessing(self) -> networks.Preprocessing:
        """What the function says (it is called for it), or as set here."""
        return self.over(networks.from_function(self.function, _ANY_COUNT)[1])

    @property
    def head(self) -> tuple[str, ...]:
        """None: only the function's author knows which layer tells the classes."""
        return ()

    def build(self, classes: int, *, seed: int) -> nn.Module:
        """The network on the CPU, in train mode; what torch draws for it depends on `seed` alone.

        Raises:
            ModelError: the function is not there or fails, or the file of weights does not fit.
        """
        network, _ = networks.from_function(self.function, classes, seed=seed, over=self.over)
        if networks.is_program(network):
            raise ModelError(
                f"student {self.slug} is a program of torch.export, which cannot go between training and evaluation; "
                f"return the network it was made of"
            )
        kind = networks.weight_dtype(network)
        if kind != torch.float32:
            raise ModelError(
                f"student {self.slug} has weights of {str(kind).removeprefix('torch.')}; return float32 ones "
                f"(network.float()), and compute in half precision with `amp`"
            )
        if self.weights is not None:
            where, _ = networks.fitted(network, self.weights, self.resolved)
            if where != self.weights:  # a key was found in the file
                _log.warning("student %s starts from %s", self.slug, where)
        return network.train()

    def metadata(self, classes: int, class_names: Sequence[str] = ()) -> dict[str, str]:
        """Text for the header of its weights; loading them again needs the function too."""
        return metadata(self.resolved, self.preprocessing, classes, class_names)


_ANY_COUNT = 2
_log = logging.getLogger(__name__)
