"""Names become networks: resolving, seeded building, and the head that tells how many classes there are."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from softlabels.core.tables import NETWORK_ALIASES, unknown_network
from softlabels.errors import ModelError, did_you_mean
from softlabels.models.networks._preprocessing import Preprocessing
from softlabels.models.networks._small import Small
from softlabels.models.networks._source import Architecture, DefaultWeights, Source
from softlabels.models.networks._timm import Timm
from softlabels.models.networks._torchvision import Torchvision

_log = logging.getLogger(__name__)

SOURCES: Mapping[str, Source] = {source.name: source for source in (Small(), Torchvision(), Timm())}

_PLAIN = ("small", "torchvision")
"""Sources whose networks need no prefix."""


def resolve(name: str | Architecture) -> Architecture:
    """The architecture that `name` means: ``resnet18``, ``torchvision:resnet18``, ``timm:resnet50.a1_in1k``, an alias.

    Raises:
        ModelError: there is none; the nearest names are given.
    """
    if isinstance(name, Architecture):
        return name
    prefix, colon, rest = name.partition(":")
    if colon and prefix not in SOURCES:
        raise ModelError(f"unknown source {prefix!r} of networks in {name!r}; {did_you_mean(prefix, SOURCES)}")
    wanted = rest if colon else name
    for source in (prefix,) if colon else _PLAIN:
        known = NETWORK_ALIASES.get(wanted, wanted) if source == "torchvision" else SOURCES[source].current(wanted)
        if SOURCES[source].knows(known):
            if source == "timm" and known != wanted:
                _say_renamed(wanted, known)
            return Architecture(known, SOURCES[source].name)
    raise unknown_network(wanted, prefix if colon else None)


def build(architecture: str | Architecture, classes: int, *, seed: int = 0, size: int | None = None) -> nn.Module:
    """The network with a head of `classes`, on the CPU, in train mode, its weights drawn from `seed` alone.

    `size` matters to networks that are tied to one picture size (None: the one of `preprocessing`).
    torch's global generator is left as it was.

    Raises:
        ModelError: the architecture is unknown, or cannot be made for that size.
    """
    known = resolve(architecture)
    size = size or preprocessing(known).size
    with seeded(seed):
        return _made(known, classes, size)


def preprocessing(architecture: str | Architecture, *, training: bool = False) -> Preprocessing:
    """How the architecture's default pretrained weights want their pictures; small networks say it themselves.

    As their published accuracy was measured, or, for `training` and random crops, as they were trained: many networks
    of timm are evaluated on larger pictures than they were trained on.
    """
    known = resolve(architecture)
    return SOURCES[known.source].preprocessing(known.name, training=training)


def default_weights(architecture: str | Architecture) -> DefaultWeights | None:
    """The published weights of the architecture (not loaded), None when there are none."""
    return published_weights(architecture, "default")


def published_weights(architecture: str | Architecture, name: str) -> DefaultWeights | None:
    """Published weights by name, such as ``default`` or torchvision's ``IMAGENET1K_V1``; None when there are none."""
    known = resolve(architecture)
    source = SOURCES[known.source]
    return source.default_weights(known.name) if name == "default" else source.published_weights(known.name, name)


def default_classes(architecture: str | Architecture) -> int:
    """The class count of a network whose weights are random, when nobody says otherwise."""
    return SOURCES[resolve(architecture).source].default_classes


def head_tensors(architecture: str | Architecture) -> dict[str, int]:
    """The names of the tensors whose shape depends on the class count, and in which dimension."""
    known = resolve(architecture)
    return dict(_head_tensors(known, preprocessing(known).size))


def head_classes(architecture: str | Architecture, state: Mapping[str, Tensor], where: str) -> int:
    """How many classes the head in `state` tells apart.

    Raises:
        ModelError: `state` holds no head of that architecture; the message begins with `where`.
    """
    known = resolve(architecture)
    heads = head_tensors(known)
    for name, dimension in heads.items():
        if name in state and state[name].ndim > dimension:
            return int(state[name].shape[dimension])
    held = next(iter(state), "nothing")
    raise ModelError(
        f"{where} does not fit {known}: it has no {next(iter(heads), 'head')}, which would tell its classes "
        f"(its first tensor is {held})"
    )


def parameter_count(network: nn.Module) -> int:
    """How many numbers training would change."""
    return sum(parameter.numel() for parameter in network.parameters())


def is_convolutional(network: nn.Module) -> bool:
    """Whether most of the work lies in convolutions, so that channels_last serves it."""
    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 2


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's CPU generator starts from `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also set the generators of the devices, which fork_rng was told to leave alone.
        torch.random.default_generator.manual_seed(seed)
        yield


def random_seed(weights: str | None) -> int | None:
    """The seed that ``random`` (0) or ``random:SEED`` asks for; None when `weights` means something else.

    Raises:
        ModelError: what stands after ``random:`` is not a whole number.
    """
    if weights is None or not re.fullmatch(r"random(:.*)?", weights):
        return None
    text = weights.partition(":")[2] or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise ModelError(f"weights {weights!r} need a whole number after the colon, such as random:1")
    return int(text)


@functools.cache
def _say_renamed(former: str, current: str) -> None:
    """Say once that a former name was given."""
    _log.warning("timm:%s is called timm:%s now, which is taken", former, current)


def _made(known: Architecture, classes: int, size: int) -> nn.Module:
    try:
        return SOURCES[known.source].build(known.name, classes, size)
    except (ValueError, AssertionError, TypeError) as problem:
        reason = " ".join(str(problem).split())[:160]
        raise ModelError(f"{known} cannot be built for {size}x{size} pictures: {reason}") from problem


class _WithoutMemory(TorchFunctionMode):
    """Parameters are made without memory, all else with it.

    Only torch.empty is diverted, which is what layers allocate with: a few constructors compute with small tables.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@functools.cache
def _head_tensors(known: Architecture, size: int) -> tuple[tuple[str, int], ...]:
    # What differs between a network of 3 and one of 5 classes is the head, whatever the architecture calls it.
    few, more = ({name: tuple(t.shape) for name, t in layout(known, n, size).items()} for n in (3, 5))
    return tuple(
        (name, dimension)
        for name, shape in few.items()
        for dimension, length in enumerate(shape)
        if (length, more[name][dimension]) == (3, 5)
    )


def tensor_names(architecture: str | Architecture) -> tuple[str, ...]:
    """The names of all tensors of the architecture."""
    known = resolve(architecture)
    return tuple(layout(known, 3, preprocessing(known).size))


@functools.lru_cache(maxsize=16)
def layout(known: Architecture, classes: int, size: int) -> Mapping[str, Tensor]:
    """The state dict of a network, of tensors without memory, so that even the largest is laid out in a moment.

    Raises:
        ModelError: it cannot be made for that size.
    """
    for without in (lambda: torch.device("meta"), _WithoutMemory):
        try:
            with seeded(0), without():
                return _made(known, classes, size).state_dict()
        except (RuntimeError, NotImplementedError):
            continue  # a few constructors look at the values of their parameters
    return build(known, classes, size=size).state_dict()
