"""A network that a Python caller hands over."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from pydantic import field_serializer, field_validator, model_validator
from torch import nn

from softlabels.core.config import class_of
from softlabels.errors import ModelError, in_one_line
from softlabels.models._outputs import is_program, materialise, weight_dtype
from softlabels.models._preprocessing import Interpolation, Preprocessing, preprocessing_of
from softlabels.models._spec import StudentSpec, safe_name, seeded
from softlabels.models._teacher import LoadedNetwork
from softlabels.models._weights import digest


class ObjectNetwork(StudentSpec):
    """A torch.nn.Module that takes normalised images (n, 3, size, size), and how it wants them.

    The object itself is never changed: a teacher or student is a copy of it. A file that describes it has the name of
    its class in its place, from which nothing is opened again.
    """

    kind: Literal["object"] = "object"
    module: Any

    @field_validator("module")
    @classmethod
    def _is_a_module(cls, module: Any) -> Any:
        if not isinstance(module, nn.Module):
            raise ValueError("give the torch.nn.Module itself, in Python")
        return module

    @model_validator(mode="before")
    @classmethod
    def _with_its_preprocessing(cls, given: Any) -> Any:
        """A module that has a `network` and its `preprocessing`, as `load_student` gives one, stands for these."""
        module = given.get("module") if isinstance(given, Mapping) else None
        own, network = getattr(module, "preprocessing", None), getattr(module, "network", None)
        if not isinstance(own, Preprocessing) or not isinstance(network, nn.Module):
            return given
        known = {name: value for name, value in own.model_dump().items() if name in cls.model_fields}
        return {**known, **given, "module": network}

    @field_validator("weights")
    @classmethod
    def _weights_are_its_own(cls, weights: str | None) -> str | None:
        if weights is not None:
            raise ValueError("a torch.nn.Module comes with its weights; load others into it, and leave `weights` out")
        return weights

    @field_serializer("module", when_used="json")
    def _by_its_class(self, module: nn.Module) -> str:
        return class_of(module)

    @property
    def origin(self) -> str:
        """See `NetworkSpec.origin`: its class."""
        return class_of(self.module)

    @property
    def short_name(self) -> str:
        """The `name`, or else that of its class."""
        return self.name or safe_name(type(self.module).__name__)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of its weights as they are now; see `digest`."""
        return digest(self.module.state_dict())

    def load(self, classes: int | None, clean: bool, preprocessing: Preprocessing | None) -> LoadedNetwork:  # noqa: ARG002
        """See `NetworkSpec.load`."""
        own = self._own
        return LoadedNetwork(self._copy(), own, preprocessing or self.over(own), None, where=self.origin, foreign=True)

    @property
    def preprocessing(self) -> Preprocessing:
        """As set here, else as timm notes it in a network of its own, else what is usual for ImageNet."""
        return self.over(self._own)

    @property
    def head(self) -> tuple[str, ...]:
        """None: only its author knows which layer is its head."""
        return ()

    def build(self, classes: int, *, seed: int) -> nn.Module:  # noqa: ARG002  (it has its head and its weights)
        """See `StudentSpec.build`."""
        network, kind = self._copy(), weight_dtype(self.module)
        if is_program(network) or kind != torch.float32:
            what = "is a program" if is_program(network) else f"has weights of {str(kind).removeprefix('torch.')}"
            raise ModelError(f"student {self.short_name} {what}; give a network of float32 weights that can be trained")
        with seeded(seed):
            materialise(network, self.preprocessing, f"student {self.short_name}")
        for parameter in network.parameters():
            parameter.grad = None
        return network.train()

    @property
    def _own(self) -> Preprocessing:
        noted = getattr(self.module, "pretrained_cfg", None)
        if not isinstance(noted, Mapping) or not {"input_size", "mean", "std"} <= set(noted):
            return Preprocessing()
        usual = {"size": noted["input_size"][-1], "mean": noted["mean"], "std": noted["std"]}
        if noted.get("interpolation") in get_args(Interpolation):
            usual["interpolation"] = noted["interpolation"]
        return preprocessing_of(usual, f"the pretrained_cfg of {self.origin}")

    def _copy(self) -> nn.Module:
        try:
            network: nn.Module = copy.deepcopy(self.module)
        except Exception as problem:  # of the network's own code, or of tensors within a graph
            raise ModelError(f"{self.origin} cannot be copied ({in_one_line(problem)}); give a network that can") from (
                problem
            )
        return network
