"""What teachers and students have in common when they are named in a config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from softlabels.core.config import Part, Table
from softlabels.core.tables import importable, unknown_source
from softlabels.models.networks._architectures import resolve
from softlabels.models.networks._preprocessing import Channels, Deviations, Interpolation, Preprocessing, Side
from softlabels.models.networks._weights import BEST

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class NetworkSettings(Part):
    """Settings of every part that stands for a network. Abstract: final parts add a `kind` and where it comes from.

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
        if name is not None and (not _SLUG.fullmatch(name) or len(name) > 100):
            raise ValueError("use letters, digits, '.', '_' and '-', beginning with a letter or digit")
        return name

    def over(self, own: Preprocessing) -> Preprocessing:
        """The network's `own` preprocessing with what is set here in its place.

        Raises:
            ConfigError: the two together contradict one another.
        """
        changes = {"size": self.size, "resize": self.resize, "mean": self.mean, "std": self.std}
        return own.changed(f"{self.kind} settings", **changes, interpolation=self.interpolation)


class ArchitectureSettings(NetworkSettings):
    """Settings of a part whose network is named: an architecture of the source that its `kind` is called after.

    Abstract. An alias is replaced by what it stands for and stays as the `name`.
    """

    shorthand = "architecture"

    architecture: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _without_alias(cls, value: Any) -> Any:
        typed = value.get("architecture") if isinstance(value, dict) else None
        if not isinstance(typed, str):
            return value
        source = value.get("kind") or cls.model_fields["kind"].default
        resolved = resolve(f"{source}:{typed}").name
        if resolved == typed:
            return value
        return {**value, "architecture": resolved, "name": value.get("name") or slug(typed)}

    @property
    def resolved(self) -> str:
        """The architecture's full name, such as ``torchvision:resnext101_32x8d``."""
        return f"{self.kind}:{self.architecture}"

    @property
    def slug(self) -> str:
        """The `name`, or else the architecture."""
        return self.name or slug(self.architecture)


def slug(text: str) -> str:
    """`text` as a name that is safe for a folder: letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:100] or "network"


def slug_of_file(path: str) -> str:
    """A name for the weights at `path`: the run's folder for its best or last weights, else the file without suffix."""
    file = Path(path).expanduser()
    if file.name in (BEST, "last.safetensors"):
        return slug(file.resolve().parent.name)
    return slug(file.resolve().name if file.is_dir() else file.stem)


def named(text: str, table: Table[Any]) -> dict[str, Any]:
    """The mapping for `table` that a name on the command line means.

    ``resnet18`` and ``mobilenetv3`` are architectures, ``KIND:VALUE`` is a kind of the table, and any other
    ``module:function`` is a function.

    Raises:
        ModelError: it is none of these; the nearest names are given.
    """
    kind, colon, rest = text.partition(":")
    part = table.find(kind)
    if part is not None:
        field = part.shorthand if colon else None
        return {"kind": kind, **({field: rest} if field else {})}
    if colon:
        if not rest.isidentifier() or not importable(kind):
            raise unknown_source(text, table)
        return {"kind": "function", "function": text}
    return {"kind": resolve(text).source, "architecture": text}
