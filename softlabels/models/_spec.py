"""One spec for every network: what a config, a teacher's card and a command line say of it.

A final class adds a `kind` and the field that says where the network comes from. Teachers are opened from it with
`open`; kinds that can be trained build students with `build`.
"""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from pydantic import field_validator
from torch import nn

from softlabels.core.config import Part, Side
from softlabels.errors import ModelError
from softlabels.models._preprocessing import Channels, Deviations, Interpolation, Preprocessing
from softlabels.models._teacher import Amp, LoadedNetwork, NetworkTeacher, freeze
from softlabels.models._weights import Description, weights_file


class NetworkSpec(Part):
    """Settings of every part that stands for a network. Abstract.

    `name` is what it is called in a store and in tables; None takes it from where it comes from. `weights` is a file,
    ``default``, ``random`` or ``random:SEED``. The other fields override the network's own preprocessing where given.
    """

    name: str | None = None
    weights: str | None = None
    size: Side | None = None
    resize: Side | None = None
    mean: Channels | None = None
    std: Deviations | None = None
    interpolation: Interpolation | None = None

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or len(name) > 100):
            raise ValueError("use letters, digits, '.', '_' and '-', beginning with a letter or digit")
        return name

    @property
    def origin(self) -> str:
        """The architecture, function or path that the network comes from."""
        return str(getattr(self, self.shorthand or "kind"))

    @property
    def resolved(self) -> str:
        """The full name of where it comes from, such as ``torchvision:resnext101_32x8d``."""
        return f"{self.kind}:{self.origin}"

    @property
    def short_name(self) -> str:
        """The `name`, or else one made of where it comes from; a teacher's folder has it."""
        return self.name or safe_name(self.origin)

    def __str__(self) -> str:
        return self.resolved

    def over(self, own: Preprocessing) -> Preprocessing:
        """The network's `own` preprocessing with what is set here in its place.

        Raises:
            ConfigError: the two together contradict one another.
        """
        changes = {"size": self.size, "resize": self.resize, "mean": self.mean, "std": self.std}
        return own.changed(f"{self.kind} settings", **changes, interpolation=self.interpolation)

    def open(
        self,
        device: str | torch.device = "cpu",
        amp: Amp | None = None,
        classes: int | None = None,
        *,
        clean: bool = False,
        preprocessing: Preprocessing | None = None,
        role: str = "teacher",
    ) -> NetworkTeacher:
        """The teacher on `device`. `classes` is the data set's count (None: not compared).

        `clean` says that it is shown clean views, on which a network may want another size; `preprocessing`, that of a
        store, stands over its own; `role` is what messages call it.

        Raises:
            ModelError: the network is not to be had or does not answer as a classifier does, its weights do not fit,
                or the class counts differ.
            ConfigError: `amp` is unknown, or `device` cannot be used.
        """
        loaded = self.load(classes, clean, preprocessing)
        spec = {**self.model_dump(mode="json"), "weights": loaded.weights}
        return freeze(loaded, name=self.short_name, spec=spec, device=device, amp=amp, classes=classes, role=role)

    def check_weights(self, *, training: bool = False) -> None:  # noqa: ARG002
        """Raises ModelError where its weights are not there, to be opened or, for `training`, to start from.

        Nothing is loaded. Here for networks whose weights are a file, or come with them.
        """
        if self.weights is not None:
            weights_file(self.weights)

    @abstractmethod
    def load(self, classes: int | None, clean: bool, preprocessing: Preprocessing | None) -> LoadedNetwork:
        """The network with its weights; see `open`. One that is made for a class count takes `classes`."""


class StudentSpec(NetworkSpec):
    """A network that can be trained. Abstract."""

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """How the student wants its images: as its first weights were trained, or as set here."""

    @property
    @abstractmethod
    def head(self) -> tuple[str, ...]:
        """Names of the tensors whose shape depends on the number of classes; none where nobody knows."""

    @abstractmethod
    def build(self, classes: int, *, seed: int) -> nn.Module:
        """The network on the CPU, in train mode, with a head of `classes`; what is drawn depends on `seed` alone.

        Raises:
            ModelError: the network or its weights are not to be had, or do not fit.
        """

    def metadata(self, classes: int, class_names: Sequence[str] = ()) -> dict[str, str]:
        """Text for the header of its weights, from which they can be loaded again by their path.

        Weights of a function's network need the function too.
        """
        names = tuple(class_names)
        return Description(
            architecture=self.resolved, classes=classes, class_names=names, preprocessing=self.preprocessing
        ).to_metadata()


def safe_name(text: str) -> str:
    """`text` as a name that is safe for a folder: letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:100] or "network"


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


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's CPU generator starts from `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also set the generators of the devices, which fork_rng leaves alone here.
        torch.default_generator.manual_seed(seed)
        yield
