"""Weights meet networks: published ones, files, and functions that give a network."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.errors import ModelError, did_you_mean
from softlabels.models.networks._answers import materialise
from softlabels.models.networks._architectures import (
    SOURCES,
    build,
    head_classes,
    head_tensors,
    layout,
    preprocessing,
    published_weights,
    resolve,
    seeded,
    tensor_names,
)
from softlabels.models.networks._checkpoints import State
from softlabels.models.networks._preprocessing import Preprocessing, preprocessing_of
from softlabels.models.networks._source import Architecture
from softlabels.models.networks._weights import (
    Candidate,
    Description,
    Weights,
    compare,
    fit,
    read_weights,
    weights_exist,
    with_key,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Weights for one architecture, and what is known of them; `where` names them in messages, and `key` is that of a
    checkpoint in which they were found."""

    architecture: Architecture
    state: State = field(repr=False)
    classes: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    licence: str | None
    where: str
    key: str = ""


def trained(architecture: str | Architecture, weights: str | None, *, training: bool = False) -> Trained:
    """The published weights of the architecture (`weights` None, ``default`` or a name of torchvision's, such as
    ``IMAGENET1K_V1``), or those in the file `weights`, ``FILE`` or ``FILE:KEY``.

    A file with our metadata brings its preprocessing, and so does a copy of published weights that its library can tell
    by content; another one has that of the architecture's default weights, as they were trained if `training`, else as
    they are evaluated.

    Raises:
        ModelError: there are none, they cannot be read, or the file is of another architecture.
    """
    known = resolve(architecture)
    weights = weights or "default"
    if is_published(known, weights):
        return _published(known, weights, training)
    try:
        file = read_weights(weights)
    except ModelError as problem:
        named = SOURCES[known.source].named_weights(known.name)
        if weights_exist(weights) or not named:
            raise
        raise ModelError(f"{problem}; published ones are {', '.join(named[:8])}") from problem
    told = Description.from_metadata(file.metadata, file.path)
    if told is not None and told.architecture != str(known):
        raise ModelError(f"{file.path} holds the weights of {told.architecture}, not of {known}; name that one instead")
    if told is not None:
        return _from_file(known, file, told, told.preprocessing)
    copied = SOURCES[known.source].recognised(known.name, file.path)
    if copied is None:
        return _from_file(known, file, None, preprocessing(known, training=training))
    of_file = _from_file(known, file, None, copied.preprocessing)
    return replace(of_file, class_names=copied.class_names, licence=copied.licence)


def trained_file(path: str | Path) -> Trained:
    """The weights in a file that describes itself, as training writes it, or in a run's folder.

    Raises:
        ModelError: it cannot be read, does not describe itself, or names a network that only a function makes.
    """
    file = read_weights(path)
    where = str(file.path)
    told = Description.from_metadata(file.metadata, file.path)
    if told is None:
        raise ModelError(f"{where} does not say its architecture; name it and add `weights={where}`")
    if told.architecture.startswith("function:"):
        # A file of weights must never choose code that is then run.
        function = told.architecture.removeprefix("function:")
        raise ModelError(
            f"{where} belongs to a network of your own, and a file of weights may not choose code; name the function "
            f"yourself: {function} with `weights={where}`"
        )
    return _from_file(resolve(told.architecture), file, told, told.preprocessing)


def built(weights: Trained, *, size: int | None = None) -> nn.Module:
    """The network of `weights`, made for pictures of `size` (None: their own), with every tensor from them.

    Raises:
        ModelError: they do not fit the architecture; the first tensor that differs is named.
    """
    return _built(weights, weights.classes, 0, size, set())


def started(weights: Trained, classes: int, *, seed: int, size: int | None = None) -> nn.Module:
    """As `built`, but with a fresh head, drawn from `seed`, when `classes` differs from theirs.

    The fresh head starts near zero (weights of standard deviation `SMALL`, biases 0), whatever the architecture does:
    at a usual start its wide logits would first have to be unlearnt, and drive the other layers meanwhile.
    """
    leave = set(head_tensors(weights.architecture)) if classes != weights.classes else set()
    network = _built(weights, classes, seed, size, leave)
    if leave:
        _make_small(network, leave, seed)
    return network


def fitted(network: nn.Module, weights: str, what: str) -> tuple[str, Description | None]:
    """Copy the weights at ``FILE`` or ``FILE:KEY`` into a network of any make.

    Returns what `Trained` calls `source`, and what the file says of itself.

    Raises:
        ModelError: they cannot be read or do not fit; the first tensor that differs is named.
    """
    file = read_weights(weights)
    found = file.fitting(network.state_dict(), what)
    where = file.at(found)
    _say_beside(file, found)
    fit(network, found.state, where, what)
    return with_key(weights, found.key), Description.from_metadata(file.metadata, file.path)


SMALL = 0.01
"""Standard deviation of the weights of a head that starts anew."""


def _make_small(network: nn.Module, names: Collection[str], seed: int) -> None:
    parameters = dict(network.named_parameters())
    with seeded(seed), torch.no_grad():
        for name in sorted(names):
            if name in parameters and parameters[name].ndim > 1:
                parameters[name].normal_(0, SMALL)
            elif name in parameters and name.endswith("bias"):
                parameters[name].zero_()


def is_published(architecture: str | Architecture, weights: str) -> bool:
    """Whether `weights` name published ones: ``default``, or a name that its library gives them and no file has."""
    known = resolve(architecture)
    return weights == "default" or (
        not weights_exist(weights) and SOURCES[known.source].published_weights(known.name, weights) is not None
    )


def _converted(known: Architecture, file: Weights, found: Candidate) -> Candidate:
    """The weights as their library loads the file, which may change their names; `found` where it cannot."""
    held = sum(
        tensor.numel() for state in file.held.values() for tensor in state.values() if isinstance(tensor, Tensor)
    )
    wanted = sum(tensor.numel() for tensor in layout(known, 3, preprocessing(known).size).values())
    # The library builds the network, which a small file must not make it do.
    if file.key is not None or 2 * held < wanted:
        return found
    try:
        state = SOURCES[known.source].converted(known.name, file.path)
    except ModelError:
        return found
    return found if state is None else Candidate("", state, (), 0)


def _from_file(known: Architecture, file: Weights, told: Description | None, wanted: Preprocessing) -> Trained:
    found = file.fitting(tensor_names(known), str(known), heads=head_tensors(known))
    if found.missing and told is None:
        found = _converted(known, file, found)
    where = file.at(found)
    _say_beside(file, found)
    return Trained(
        architecture=known,
        state=found.state,
        classes=head_classes(known, found.state, where),
        class_names=told.class_names if told else (),
        preprocessing=wanted,
        licence=None,
        where=where,
        key=found.key,
    )


def _say_beside(file: Weights, found: Candidate) -> None:
    """Say in the log which tensors are passed over in a file of which nobody named a part."""
    if found.beside and file.key is None:
        count, first = len(found.beside), found.beside[0]
        _log.warning("%s: taken without %d other tensors of the file, such as %s", file.at(found), count, first)


def _built(weights: Trained, classes: int, seed: int, size: int | None, leave: Collection[str]) -> nn.Module:
    known, size = weights.architecture, size or weights.preprocessing.size
    what, ignore = _what(weights), SOURCES[known.source].training_only(known.name)
    # A small file may name the largest of networks: names and shapes are compared before memory is asked for.
    compare(layout(known, classes, size), weights.state, weights.where, what, leave=leave, ignore=ignore)
    network = build(known, classes, seed=seed, size=size)
    fit(network, weights.state, weights.where, what, leave=leave, ignore=ignore)
    return network


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
    lazy layers, which get their shapes from a picture of the preprocessing that `over` makes of the function's.

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
    own = preprocessing_of(wanted, f"the preprocessing that {path} returns")
    with seeded(seed):
        materialise(network, over(own), f"the network of {path}")
    return network, own


def _published(known: Architecture, name: str, training: bool) -> Trained:
    weights = published_weights(known, name)
    if weights is None:
        raise ModelError(f"{known} has no published weights; give `weights=FILE`, or `weights=random` for a trial")
    wanted = preprocessing(known, training=True) if training and name == "default" else weights.preprocessing
    return Trained(known, weights.load(), weights.classes, weights.class_names, wanted, weights.licence, weights.name)


def _what(weights: Trained) -> str:
    return f"{weights.architecture} with {weights.classes} classes"


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
