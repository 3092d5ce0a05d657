"""Weights meet networks: published ones, files, and functions that give a network."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from softlabels.errors import ModelError, did_you_mean
from softlabels.networks._architectures import (
    SOURCES,
    build,
    default_weights,
    head_classes,
    head_tensors,
    preprocessing,
    resolve,
    seeded,
)
from softlabels.networks._preprocessing import Preprocessing, preprocessing_of
from softlabels.networks._source import Architecture
from softlabels.networks._weights import Description, State, fit, read_weights


@dataclass(frozen=True)
class Trained:
    """Weights for one architecture, and what is known of them; `where` names them in messages."""

    architecture: Architecture
    state: State = field(repr=False)
    classes: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    licence: str | None
    where: str


def trained(architecture: str | Architecture, weights: str | None) -> Trained:
    """The published weights of the architecture (`weights` None or ``default``), or those in the file `weights`.

    A file with our metadata brings its preprocessing; another one has that of the architecture's published weights.

    Raises:
        ModelError: there are none, they cannot be read, or the file is of another architecture.
    """
    known = resolve(architecture)
    if weights is None or weights == "default":
        return _published(known)
    file = read_weights(weights)
    where = str(file.path)
    told = Description.from_metadata(file.metadata, file.path)
    if told is not None and told.architecture != str(known):
        raise ModelError(f"{where} holds the weights of {told.architecture}, not of {known}; name that one instead")
    return Trained(
        architecture=known,
        state=file.state,
        classes=head_classes(known, file.state, where),
        class_names=told.class_names if told else (),
        preprocessing=told.preprocessing if told else preprocessing(known),
        licence=None,
        where=where,
    )


def trained_file(path: str | Path) -> Trained:
    """The weights in a file that describes itself, as training writes it, or in a run's folder.

    Raises:
        ModelError: it cannot be read, does not describe itself, or names a network that only a function makes.
    """
    file = read_weights(path)
    where = str(file.path)
    told = Description.from_metadata(file.metadata, file.path)
    if told is None:
        raise ModelError(f"{where} does not say its architecture; name it and add --weights {where}")
    if told.architecture.startswith("function:"):
        # A file of weights must never choose code that is then run.
        function = told.architecture.removeprefix("function:")
        raise ModelError(f"{where} belongs to a network of your own; name the function and add --weights: {function}")
    known = resolve(told.architecture)
    classes = head_classes(known, file.state, where)
    return Trained(known, file.state, classes, told.class_names, told.preprocessing, None, where)


def built(weights: Trained, *, size: int | None = None) -> nn.Module:
    """The network of `weights`, made for pictures of `size` (None: their own), with every tensor from them.

    Raises:
        ModelError: they do not fit the architecture; the first tensor that differs is named.
    """
    network = build(weights.architecture, weights.classes, size=size or weights.preprocessing.size)
    fit(network, weights.state, weights.where, _what(weights), ignore=_training_only(weights))
    return network


def started(weights: Trained, classes: int, *, seed: int, size: int | None = None) -> nn.Module:
    """As `built`, but with a fresh head, drawn from `seed`, when `classes` differs from theirs."""
    network = build(weights.architecture, classes, seed=seed, size=size or weights.preprocessing.size)
    leave = set(head_tensors(weights.architecture)) if classes != weights.classes else set()
    fit(network, weights.state, weights.where, _what(weights), leave=leave, ignore=_training_only(weights))
    return network


def from_function(path: str, classes: int | None = None, *, seed: int = 0) -> tuple[nn.Module, Preprocessing]:
    """What ``module:function`` returns: a network, or a network and its preprocessing (a Preprocessing or a mapping).

    The module is imported by name, with the current directory on the path. The function is called with the class count
    when it is known and the function takes an argument, else with none; torch draws from `seed` meanwhile.

    Raises:
        ModelError: the module or function is not there, it fails, or returns something else.
    """
    with _current_directory_importable():
        function = _imported(path)
        try:
            with seeded(seed):
                result = function(classes) if classes is not None and _takes_one(function) else function()
        except Exception as problem:
            reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"
            raise ModelError(f"{path} failed with {reason}") from problem
    network, wanted = result if isinstance(result, tuple) and len(result) == 2 else (result, Preprocessing())
    if not isinstance(network, nn.Module) or not isinstance(wanted, Preprocessing | Mapping):
        returned = ", ".join(type(part).__name__ for part in (result if isinstance(result, tuple) else (result,)))
        raise ModelError(
            f"{path} must return a torch.nn.Module, or one and its preprocessing (size, mean, std), not {returned}"
        )
    return network, preprocessing_of(wanted, f"the preprocessing that {path} returns")


def _published(known: Architecture) -> Trained:
    default = default_weights(known)
    if default is None:
        raise ModelError(f"{known} has no published weights; give --weights FILE, or --weights random for a trial")
    wanted = preprocessing(known)
    return Trained(known, default.load(), default.classes, default.class_names, wanted, default.licence, default.name)


def _what(weights: Trained) -> str:
    return f"{weights.architecture} with {weights.classes} classes"


def _training_only(weights: Trained) -> tuple[str, ...]:
    return SOURCES[weights.architecture.source].training_only(weights.architecture.name)


def _imported(path: str) -> Any:
    module_name, colon, function_name = path.partition(":")
    if not colon or not module_name or not function_name.isidentifier():
        raise ModelError(f"{path!r} does not name a function; write module:function, such as my_models:teacher")
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:
        missing = isinstance(problem, ModuleNotFoundError) and problem.name == module_name.partition(".")[0]
        reason = (
            "there is no such module"
            if missing
            else f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"
        )
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


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
