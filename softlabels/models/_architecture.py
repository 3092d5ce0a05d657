"""Networks by name: an architecture of a library, with weights that are published, in a file, or drawn from a seed.

A library is a subclass of `Architecture` in a file of its own and a line in each of the tables TEACHERS and STUDENTS.
"""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from softlabels.choices import NETWORK_LIBRARIES, TEACHERS, unknown_network
from softlabels.errors import ModelError, did_you_mean, in_one_line
from softlabels.models._checkpoints import State
from softlabels.models._preprocessing import Preprocessing
from softlabels.models._published import PublishedWeights
from softlabels.models._spec import StudentSpec, random_seed, safe_name, seeded
from softlabels.models._teacher import LoadedNetwork
from softlabels.models._weights import (
    Candidate,
    Description,
    Weights,
    compare_tensors,
    load_state,
    read_description,
    read_weights,
    weights_exist,
    weights_file,
    with_key,
)

_log = logging.getLogger(__name__)

_WITHOUT_PREFIX = ("small", "torchvision")
"""Libraries whose networks need no prefix."""

_HEAD_STD = 0.01
"""Standard deviation of the weights of a head that starts anew."""


class Architecture(StudentSpec):
    """A network by its name in the library that the `kind` is called after. Abstract.

    A teacher has the published weights where `weights` is None, a student draws its own from the run's seed. An alias
    is replaced by what it stands for and stays as the `name`.
    """

    shorthand = "architecture"
    default_classes: ClassVar[int] = 1000
    """The class count of a network whose weights are random, when no other is given."""

    architecture: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _without_alias(cls, value: Any) -> Any:
        typed = value.get("architecture") if isinstance(value, dict) else None
        if not isinstance(typed, str):
            return value
        known = resolve(f"{value.get('kind') or cls.model_fields['kind'].default}:{typed}").architecture
        if known == typed:
            return value
        return {**value, "architecture": known, "name": value.get("name") or safe_name(typed)}

    # What a library states of its networks. Those with a body here are for libraries that do not state it.

    @classmethod
    @abstractmethod
    def names(cls) -> tuple[str, ...]:
        """Every network of the library."""

    @classmethod
    def find(cls, name: str) -> str | None:
        """`name` as the library spells it today; None when it has no such network. May know more than `names`."""
        return name if name in cls.names() else None

    @abstractmethod
    def create(self, classes: int, size: int) -> nn.Module:
        """The network for square images of side `size`, drawn from torch's global generator."""

    @abstractmethod
    def own_preprocessing(self, *, training: bool = False) -> Preprocessing:
        """Of its default weights, or what it is meant for: as they are evaluated, or as they were trained."""

    def published(self, name: str = "default") -> PublishedWeights | None:  # noqa: ARG002
        """The published weights of that name, not loaded; None when there are none."""
        return None

    def named_weights(self) -> tuple[str, ...]:
        """How to ask for its published weights by a name other than ``default``."""
        return ()

    def recognised(self, file: Path) -> PublishedWeights | None:  # noqa: ARG002
        """The published weights that `file` is a copy of, by its content; None when it is none or nobody can tell."""
        return None

    def converted(self, file: Path) -> dict[str, Tensor] | None:  # noqa: ARG002
        """The state dict in a published file whose names the library changes when it loads it; None when it cannot.

        Builds the network, so the caller sees to it that the file is large enough to hold it.
        """
        return None

    def training_only(self) -> tuple[str, ...]:
        """Prefixes of tensors that files hold for training and that the built network does without."""
        return ()

    # Teachers and students.

    def check_weights(self, *, training: bool = False) -> None:
        """See `NetworkSpec.check_weights`. A teacher has the published ones where none are named, a student draws."""
        if random_seed(self.weights) is None and not (training and self.weights is None):
            _found(self, self.weights or "default")

    def load(self, classes: int | None, clean: bool, preprocessing: Preprocessing | None) -> LoadedNetwork:
        """See `NetworkSpec.load`. Random weights take `classes`.

        For `clean` views it takes its images as its published weights are evaluated, else as they were trained.
        """
        seed = random_seed(self.weights)
        if seed is None:
            weights = load_pretrained(self.resolved, self.weights, training=not clean)
            # With the key that was found in a checkpoint, so that the same weights are found again.
            named = self.weights and with_key(self.weights, weights.key)
            loaded = weights.loaded(preprocessing or self.over(weights.preprocessing), named)
        else:
            own = self.own_preprocessing(training=not clean)
            shown, count = preprocessing or self.over(own), classes or self.default_classes
            network = build(self, count, seed=seed, size=shown.size)
            loaded = LoadedNetwork(network, own, shown, count, where=f"random:{seed}", weights=self.weights)
        if preprocessing is None and loaded.own.size == loaded.preprocessing.size:
            self._log_size(loaded.own, clean)
        return loaded

    @property
    def preprocessing(self) -> Preprocessing:
        """See `StudentSpec.preprocessing`."""
        described: PublishedWeights | Description | None = None
        if self.weights is not None and self.weights != "default" and random_seed(self.weights) is None:
            described = _published(self, self.weights) or read_description(self.weights)
        return self.over(described.preprocessing if described else self.own_preprocessing(training=True))

    @property
    def head(self) -> tuple[str, ...]:
        """See `StudentSpec.head`."""
        return tuple(head_tensors(self))

    def build(self, classes: int, *, seed: int) -> nn.Module:
        """See `StudentSpec.build`. Weights of another class count give all but the head, which is logged."""
        size, drawn = self.preprocessing.size, random_seed(self.weights)
        if self.weights is None or drawn is not None:
            return build(self, classes, seed=seed if drawn is None or self.weights == "random" else drawn, size=size)
        weights = load_pretrained(self.resolved, self.weights, training=True)
        if weights.key:
            _log.warning("student %s starts from %s", self.short_name, weights.where)
        if weights.classes != classes:
            _log.warning(
                "%s has %d classes, student %s %d: its head starts anew, near zero",
                *(weights.where, weights.classes, self.short_name, classes),
            )
        return weights.build_for_finetuning(classes, seed=seed, size=size)

    def _log_size(self, taken: Preprocessing, clean: bool) -> None:
        """Warn which of two sizes of images was taken, where training and evaluation differ."""
        other = self.own_preprocessing(training=clean)
        if self.own_preprocessing(training=not clean) == taken and other.size != taken.size:
            used, unused = ("evaluated", "trained") if clean else ("trained", "evaluated")
            _log.warning(
                "%s is shown images of %d px, at which it was %s (%s: %d px)",
                *(self.short_name, taken.size, used, unused, other.size),
            )


def resolve(name: str | Architecture) -> Architecture:
    """The architecture that `name` means: ``resnet18``, ``torchvision:resnet18``, ``timm:resnet50.a1_in1k``, an alias.

    Raises:
        ModelError: there is none; the nearest names are given.
    """
    if isinstance(name, Architecture):
        return name
    prefix, colon, rest = name.partition(":")
    if colon and prefix not in NETWORK_LIBRARIES:
        raise ModelError(
            f"unknown source {prefix!r} of networks in {name!r}; {did_you_mean(prefix, NETWORK_LIBRARIES)}"
        )
    wanted = rest if colon else name
    for library in (prefix,) if colon else _WITHOUT_PREFIX:
        kind: Any = TEACHERS.find(library)
        found = kind.find(wanted)
        if found is not None:
            architecture: Architecture = kind.model_construct(architecture=found)  # checked by `find`
            return architecture
    raise unknown_network(wanted, prefix if colon else None)


def build(architecture: str | Architecture, classes: int, *, seed: int = 0, size: int | None = None) -> nn.Module:
    """The network with a head of `classes`, on the CPU, in train mode, its weights drawn from `seed` alone.

    `size` matters to networks that are tied to one image size (None: the one of `preprocessing`).
    torch's global generator is left as it was.

    Raises:
        ModelError: the architecture is unknown, or cannot be made for that size.
    """
    known = resolve(architecture)
    with seeded(seed):
        return _created(known, classes, size or known.own_preprocessing().size)


def preprocessing(architecture: str | Architecture, *, training: bool = False) -> Preprocessing:
    """How the architecture's default pretrained weights want their images; small networks have their own.

    As their published accuracy was measured, or, for `training` and random crops, as they were trained: many networks
    of timm are evaluated on larger images than they were trained on.
    """
    return resolve(architecture).own_preprocessing(training=training)


def published_weights(architecture: str | Architecture, name: str = "default") -> PublishedWeights | None:
    """Published weights by name, such as ``default`` or torchvision's ``IMAGENET1K_V1``; None when there are none."""
    return resolve(architecture).published(name)


def head_tensors(architecture: str | Architecture) -> dict[str, int]:
    """The names of the tensors whose shape depends on the class count, and in which dimension."""
    known = resolve(architecture)
    # What differs between a network of 3 and one of 5 classes is the head, whatever the architecture calls it.
    few, more = (layout(str(known), n, known.own_preprocessing().size) for n in (3, 5))
    return {
        name: dimension
        for name, tensor in few.items()
        for dimension, lengths in enumerate(zip(tensor.shape, more[name].shape, strict=True))
        if lengths == (3, 5)
    }


def head_classes(architecture: str | Architecture, state: Mapping[str, Tensor], where: str) -> int:
    """How many classes the head in `state` tells apart.

    Raises:
        ModelError: `state` holds no head of that architecture; the message begins with `where`.
    """
    heads = head_tensors(architecture)
    for name, dimension in heads.items():
        if name in state and state[name].ndim > dimension:
            return int(state[name].shape[dimension])
    raise ModelError(
        f"{where} does not fit {resolve(architecture)}: it has no {next(iter(heads), 'head')}, which would tell its "
        f"classes (its first tensor is {next(iter(state), 'nothing')})"
    )


@functools.lru_cache(maxsize=16)
def layout(architecture: str, classes: int, size: int) -> Mapping[str, Any]:
    """The state dict of a network, of tensors without memory, so that even the largest is laid out in a moment.

    Raises:
        ModelError: it cannot be made for that size.
    """
    for without in (lambda: torch.device("meta"), _WithoutMemory):
        try:
            with seeded(0), without():
                return _created(resolve(architecture), classes, size).state_dict()
        except (RuntimeError, NotImplementedError):
            continue  # a few constructors look at the values of their parameters
    return build(architecture, classes, size=size).state_dict()


class _WithoutMemory(TorchFunctionMode):
    """Parameters are made without memory, all else with it.

    Only torch.empty is diverted, which is what layers allocate with: a few constructors compute with small tables.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        meta = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **meta})


@dataclass(frozen=True)
class PretrainedWeights:
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

    def build(self, *, size: int | None = None) -> nn.Module:
        """The network, made for images of `size` (None: their own), with every tensor from these weights.

        Raises:
            ModelError: they do not fit the architecture; the first tensor that differs is named.
        """
        return self._build(self.classes, 0, size, set())

    def build_for_finetuning(self, classes: int, *, seed: int, size: int | None = None) -> nn.Module:
        """As `build`, but with a fresh head, drawn from `seed`, when `classes` differs from theirs.

        The fresh head starts near zero (weights of a small standard deviation, biases 0), whatever the architecture
        does: at a usual start its wide logits would first have to be unlearnt, and drive the other layers meanwhile.
        """
        leave = set(head_tensors(self.architecture)) if classes != self.classes else set()
        network = self._build(classes, seed, size, leave)
        parameters = dict(network.named_parameters())
        with seeded(seed), torch.no_grad():
            for name in sorted(leave & parameters.keys()):
                if parameters[name].ndim > 1:
                    parameters[name].normal_(0, _HEAD_STD)
                elif name.endswith("bias"):
                    parameters[name].zero_()
        return network

    def loaded(self, shown: Preprocessing, weights: str | None = None) -> LoadedNetwork:
        """The network with these weights, for images as `shown`; `weights` is how a spec finds them again."""
        network, names = self.build(size=shown.size), self.class_names
        return LoadedNetwork(network, self.preprocessing, shown, self.classes, names, self.licence, self.where, weights)

    def _build(self, classes: int, seed: int, size: int | None, leave: Collection[str]) -> nn.Module:
        known, size = self.architecture, size or self.preprocessing.size
        how: Any = {"leave": leave, "ignore": known.training_only()}
        where, what = self.where, f"{known} with {self.classes} classes"
        # A small file may name the largest of networks: names and shapes are compared before memory is asked for.
        compare_tensors(layout(str(known), classes, size), self.state, where, what, **how)
        network = build(known, classes, seed=seed, size=size)
        load_state(network, self.state, where, what, **how)
        return network


def load_pretrained(
    architecture: str | Architecture, weights: str | None, *, training: bool = False
) -> PretrainedWeights:
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
    named = _found(known, weights)
    if named is not None:
        own = known.own_preprocessing(training=True) if training and weights == "default" else named.preprocessing
        return PretrainedWeights(known, named.load(), named.classes, named.class_names, own, named.licence, named.name)
    file = read_weights(weights)
    described = Description.from_metadata(file.metadata, file.path)
    if described is not None and described.architecture != str(known):
        raise ModelError(
            f"{file.path} holds the weights of {described.architecture}, not of {known}; name that one instead"
        )
    if described is not None:
        return weights_of(known, file, described, described.preprocessing)
    copied = known.recognised(file.path)
    if copied is None:
        return weights_of(known, file, None, known.own_preprocessing(training=training))
    of_file = weights_of(known, file, None, copied.preprocessing)
    return replace(of_file, class_names=copied.class_names, licence=copied.licence)


def weights_of(
    known: Architecture, file: Weights, described: Description | None, own: Preprocessing
) -> PretrainedWeights:
    """The weights in `file` for an architecture, below whatever key they lie, with its `own` preprocessing.

    Raises:
        ModelError: there are none, or several.
    """
    names = layout(str(known), 3, known.own_preprocessing().size)
    found = file.fitting(names, str(known), heads=head_tensors(known))
    if found.missing and described is None:
        found = _converted(known, file, found)
    where, class_names = file.at(found), described.class_names if described else ()
    file.log_beside(found)
    classes = head_classes(known, found.state, where)
    return PretrainedWeights(known, found.state, classes, class_names, own, None, where, found.key)


def _found(known: Architecture, weights: str) -> PublishedWeights | None:
    """The published weights that `weights` name, not loaded; None where they are a file, which is there.

    Raises:
        ModelError: they are neither.
    """
    named = _published(known, weights)
    if named is None and weights == "default":
        raise ModelError(f"{known} has no published weights; give `weights=FILE`, or `weights=random` for a trial")
    if named is None:
        try:
            weights_file(weights)
        except ModelError as problem:
            others = known.named_weights()
            if weights_exist(weights) or not others:
                raise
            raise ModelError(f"{problem}; published ones are {', '.join(others[:8])}") from problem
    return named


def _published(known: Architecture, weights: str) -> PublishedWeights | None:
    """The published weights that `weights` name: ``default``, or a name that its library gives them and no file has."""
    return known.published(weights) if weights == "default" or not weights_exist(weights) else None


def _converted(known: Architecture, file: Weights, found: Candidate) -> Candidate:
    """The weights as their library loads the file, which may change their names; `found` where it cannot."""
    tensors = [tensor for state in file.held.values() for tensor in state.values() if isinstance(tensor, Tensor)]
    wanted = layout(str(known), 3, known.own_preprocessing().size).values()
    # The library builds the network, which a small file must not make it do.
    if file.key is not None or 2 * sum(map(Tensor.numel, tensors)) < sum(map(Tensor.numel, wanted)):
        return found
    try:
        state = known.converted(file.path)
    except ModelError:
        return found
    return found if state is None else Candidate("", state, (), 0)


def _created(known: Architecture, classes: int, size: int) -> nn.Module:
    try:
        return known.create(classes, size)
    except (ValueError, AssertionError, TypeError) as problem:
        raise ModelError(f"{known} cannot be built for {size}x{size} images: {in_one_line(problem)}") from problem
