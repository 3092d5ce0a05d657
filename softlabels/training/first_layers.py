"""Layers with which a student begins, copied from another network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from softlabels.errors import ModelError, did_you_mean
from softlabels.models import unwrapped

_Tensors = Mapping[str, Tensor]

_SHOWN = 8


@dataclass(frozen=True)
class Copied:
    """Tensors of a student that were copied, and all that it has, by their names in its state dict."""

    names: tuple[str, ...]
    every: tuple[str, ...]

    def describe(self, source: str) -> str:
        """A line for the run's header."""
        layers = _layers(self.names, self.every)
        shown = ", ".join(layers[:_SHOWN]) + (f", ... ({len(layers)} layers)" if len(layers) > _SHOWN else "")
        return f"{len(self.names)} of the student's {len(self.every)} tensors are copied from {source}: {shown}"


def copy_layers(
    network: nn.Module, source: nn.Module, layers: Sequence[str], *, called: str, leave: Collection[str] = ()
) -> Copied:
    """Copy layers of `source` into `network`, which may be of another architecture.

    Args:
        network: the student; it is changed.
        source: where the layers come from; it is not.
        layers: names of layers or tensors, ``NAME`` where both call it alike, else ``STUDENT=SOURCE``. Each tensor of a
            layer must have its counterpart, of the same shape; those that the source has beside are left. Empty: every
            module whose tensors all match in name and shape.
        called: what messages call the source.
        leave: tensors that are not copied because they match by chance; those that are named are copied all the same.

    Raises:
        ModelError: a layer is not there (the nearest names are given), a tensor has no counterpart or another shape, or
            nothing matches.
    """
    own, theirs = _tensors(network), _tensors(source)
    if layers:
        pairs = dict(pair for layer in layers for pair in _named(layer, own, theirs, called, (network, source)))
    else:
        differing = {
            _module(name)
            for name, tensor in own.items()
            if name not in theirs or theirs[name].shape != tensor.shape or name in leave
        }
        pairs = {name: name for name in own if _module(name) not in differing}
        if not pairs:
            raise ModelError(
                f"no layer of the student has names and shapes of one of {called} (student: {_first(own)}; there: "
                f"{_first(theirs)}); pair them with `layers=STUDENT=SOURCE`"
            )
    with torch.no_grad():
        for name, other in pairs.items():
            own[name].copy_(theirs[other])
    return Copied(tuple(name for name in own if name in pairs), tuple(own))


def _named(
    layer: str, own: _Tensors, theirs: _Tensors, called: str, networks: tuple[nn.Module, nn.Module]
) -> Iterable[tuple[str, str]]:
    """The pairs of tensors of one layer."""
    name, equals, other = layer.partition("=")
    other = other if equals else name
    student, source = networks
    for wanted, state, where, modules in (
        (name, own, "the student", dict(student.named_modules())),
        (other, theirs, called, dict(source.named_modules())),
    ):
        if not any(_is_in(each, wanted) for each in state):
            if wanted in modules:
                raise ModelError(
                    f"`layers`: layer {wanted!r} of {where} has no tensors to copy; name one that has, or leave it out"
                )
            raise ModelError(f"`layers`: {where} has no layer {wanted!r}; {did_you_mean(wanted, _prefixes(state))}")
    for each, tensor in own.items():
        if not _is_in(each, name):
            continue
        counterpart = other + each[len(name) :]
        found = theirs.get(counterpart)
        if found is None:
            raise ModelError(
                f"`layers` {layer}: {each} of the student has no counterpart {counterpart} in {called}; name the "
                f"layers within {name} that both have"
            )
        if found.shape != tensor.shape:
            raise ModelError(
                f"`layers` {layer}: {each} is {tuple(tensor.shape)} in the student, and {counterpart} is "
                f"{tuple(found.shape)} in {called}; leave it out, or choose a student of that width"
            )
        yield each, counterpart


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict, which share memory with the network, without the names of wrappers."""
    state = network.state_dict()
    return {name: state[raw] for name, raw in unwrapped(state).items() if isinstance(state[raw], Tensor)}


def _layers(names: Sequence[str], every: Collection[str]) -> list[str]:
    """The longest layers of which all tensors are among `names`, in their order."""
    copied, found = set(names), []
    partial = {prefix for name in every if name not in copied for prefix in _of(name)}
    for name in names:
        found.append(next((prefix for prefix in _of(name) if prefix not in partial), name))
    return list(dict.fromkeys(found))


def _of(name: str) -> list[str]:
    """The layers that a tensor is in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _prefixes(state: _Tensors) -> set[str]:
    return {prefix for name in state for prefix in _of(name)[:-1]}


def _first(state: _Tensors) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(state.items())[:2])


def _is_in(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
