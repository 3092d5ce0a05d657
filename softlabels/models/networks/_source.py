"""Where architectures come from: the protocol of a source, and the names it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from softlabels.models.networks._preprocessing import Preprocessing

SourceName = Literal["small", "torchvision", "timm"]


@dataclass(frozen=True)
class Architecture:
    """A network by its full name; `str` of it is ``torchvision:resnet18``."""

    name: str
    source: SourceName

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"


@dataclass(frozen=True)
class DefaultWeights:
    """The published weights of an architecture: `name` as its library calls them, `file` where they lie once fetched.

    `licence` and `class_names` are None and empty where the library does not state them. `preprocessing` is that of
    their evaluation. `load` gives the state dict and raises ModelError when the file is neither here nor to be fetched.
    """

    name: str
    url: str
    file: Path
    classes: int
    class_names: tuple[str, ...]
    licence: str | None
    preprocessing: Preprocessing
    load: Callable[[], dict[str, Tensor]]


class Source(Protocol):
    """A family of architectures."""

    name: SourceName
    default_classes: int

    def names(self) -> tuple[str, ...]:
        """Every architecture, without the prefix."""

    def knows(self, network: str) -> bool:
        """Whether `network` can be built; may accept more than `names` lists."""

    def current(self, network: str) -> str:
        """`network` by its name of today, where it is known under a former one; else as it is."""

    def build(self, network: str, classes: int, size: int) -> nn.Module:
        """`network` for square pictures of side `size`, drawn from torch's global generator."""

    def preprocessing(self, network: str, *, training: bool = False) -> Preprocessing:
        """Of its default weights, or what it is meant for: as they are evaluated, or as they were trained."""

    def default_weights(self, network: str) -> DefaultWeights | None:
        """The published weights, not loaded; None when there are none."""

    def named_weights(self, network: str) -> tuple[str, ...]:
        """How to ask for its published weights by a name other than ``default``."""

    def published_weights(self, network: str, name: str) -> DefaultWeights | None:
        """The published weights of that name, not loaded; None when there are none."""

    def recognised(self, network: str, file: Path) -> DefaultWeights | None:
        """The published weights that `file` is a copy of, by its content; None when it is none or nobody can tell."""

    def converted(self, network: str, file: Path) -> dict[str, Tensor] | None:
        """The state dict in a published file whose names the library changes when it loads it; None when it cannot.

        Builds the network, so the caller sees to it that the file is large enough to hold it.
        """

    def training_only(self, network: str) -> tuple[str, ...]:
        """Prefixes of tensors that files hold for training and that the built network does without."""
