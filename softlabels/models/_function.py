"""Networks that a function of the user's makes."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from softlabels.core.installed import working_directory_importable
from softlabels.errors import ModelError, did_you_mean, in_one_line
from softlabels.models._outputs import is_program, materialise, weight_dtype
from softlabels.models._preprocessing import Preprocessing, preprocessing_of
from softlabels.models._spec import StudentSpec, random_seed, seeded
from softlabels.models._teacher import LoadedNetwork
from softlabels.models._weights import load_weights

_log = logging.getLogger(__name__)

_ANY_COUNT = 2


class FunctionNetwork(StudentSpec):
    """What ``module:function`` returns when called: a torch.nn.Module, or one and its preprocessing.

    It gets the class count when it takes an argument. `weights` is a file to load (None: it comes with its own).
    """

    shorthand = "function"

    kind: Literal["function"] = "function"
    function: str = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _weights_are_a_file(cls, weights: str | None) -> str | None:
        if weights == "default" or random_seed(weights) is not None:
            raise ValueError("a function's network comes with its own weights; give a file or leave `weights` out")
        return weights

    def check_weights(self, *, training: bool = False) -> None:
        """See `NetworkSpec.check_weights`; the function must be there, too."""
        with working_directory_importable():
            _imported(self.function)
        super().check_weights(training=training)

    def load(self, classes: int | None, clean: bool, preprocessing: Preprocessing | None) -> LoadedNetwork:  # noqa: ARG002
        """See `NetworkSpec.load`; the function says how it takes its images, `clean` or not."""
        network, own = from_function(self.function, classes, over=lambda wanted: preprocessing or self.over(wanted))
        weights, described = None, None
        if self.weights is not None:
            weights, described = load_weights(network, self.weights, self.resolved)
        own, names = (described.preprocessing, described.class_names) if described else (own, ())
        shown, where = preprocessing or self.over(own), weights or self.resolved
        return LoadedNetwork(network, own, shown, None, names, where=where, weights=weights, foreign=True)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the function returns (it is called for it), or as set here."""
        return self.over(from_function(self.function, _ANY_COUNT)[1])

    @property
    def head(self) -> tuple[str, ...]:
        """None: only the function's author knows which layer is its head."""
        return ()

    def build(self, classes: int, *, seed: int) -> nn.Module:
        """See `StudentSpec.build`."""
        network, _ = from_function(self.function, classes, seed=seed, over=self.over)
        if is_program(network):
            raise ModelError(
                f"student {self.short_name} is a program of torch.export, which cannot go between training and "
                f"evaluation; return the network it was made of"
            )
        kind = weight_dtype(network)
        if kind != torch.float32:
            raise ModelError(
                f"student {self.short_name} has weights of {str(kind).removeprefix('torch.')}; return float32 ones "
                f"(network.float()), and compute in half precision with `amp`"
            )
        if self.weights is not None:
            where, _ = load_weights(network, self.weights, self.resolved)
            if where != self.weights:  # a key was found in the file
                _log.warning("student %s starts from %s", self.short_name, where)
        return network.train()


def from_function(
    path: str,
    classes: int | None = None,
    *,
    seed: int = 0,
    over: Callable[[Preprocessing], Preprocessing] = lambda own: own,
) -> tuple[nn.Module, Preprocessing]:
    """What ``module:function`` returns: a network, or a network and its preprocessing (a Preprocessing or a mapping).

    The module is imported by name, with the current directory on the path. The function is called with the class count
    when it is known and the function takes an argument, else with none; torch draws from `seed` meanwhile, also for
    lazy layers, which get their shapes from an image of the preprocessing that `over` makes of the function's.

    Raises:
        ModelError: the module or function is not there, it fails, or returns something else.
    """
    with working_directory_importable():
        function = _imported(path)
        try:
            with seeded(seed):
                result = function(classes) if classes is not None and _takes_one(function) else function()
        except Exception as problem:
            raise ModelError(f"{path} failed with {type(problem).__name__}: {in_one_line(problem)}") from problem
    network, wanted = result if isinstance(result, tuple) and len(result) == 2 else (result, Preprocessing())
    if not isinstance(network, nn.Module) or not isinstance(wanted, Preprocessing | Mapping):
        returned = ", ".join(type(part).__name__ for part in (result if isinstance(result, tuple) else (result,)))
        raise ModelError(
            f"{path} must return a torch.nn.Module, or one and its preprocessing (size, mean, std), not {returned}"
        )
    own = preprocessing_of(wanted, f"the preprocessing that {path} returns")
    with seeded(seed):
        materialise(network, over(own), f"the network of {path}")
    return network, own


def _imported(path: str) -> Any:
    module_name, colon, function_name = path.partition(":")
    if not colon or not module_name or not function_name.isidentifier():
        raise ModelError(f"{path!r} does not name a function; write module:function, such as my_models:teacher")
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:
        missing = isinstance(problem, ModuleNotFoundError) and problem.name == module_name.partition(".")[0]
        reason = "there is no such module" if missing else f"{type(problem).__name__}: {in_one_line(problem)}"
        raise ModelError(
            f"cannot import {module_name!r} ({reason}); for {path!r} it must be installed or in the current directory"
        ) from problem
    function = getattr(module, function_name, None)
    if not callable(function):
        known = did_you_mean(function_name, (name for name in dir(module) if not name.startswith("_")))
        raise ModelError(f"module {module_name!r} has no function {function_name!r}; {known}")
    return function


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind(1)
    except (TypeError, ValueError):
        return False
    return True
