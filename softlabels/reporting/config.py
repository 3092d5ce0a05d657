"""Settings of `softlabels list`, `info`, `report` and `demo`."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator

from softlabels.core.config import MOST, CommandConfig
from softlabels.errors import did_you_mean


class ListConfig(CommandConfig):
    """What `softlabels list` does."""

    kind: Literal[
        "teachers",
        "students",
        "losses",
        "blends",
        "recipes",
        "steps",
        "codecs",
        "datasets",
        "importers",
        "optimizers",
    ] = Field(..., description="what to list", json_schema_extra={"argument": True})
    pattern: str | None = Field(
        None,
        description="only names that hold this text, or fit a pattern such as 'resnet*'; timm:PATTERN for timm's "
        "networks",
        json_schema_extra={"argument": True},
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _is_a_kind(cls, kind: object) -> object:
        known = get_args(cls.model_fields["kind"].annotation)
        if isinstance(kind, str) and kind not in known:
            raise ValueError(f"there is no list of {kind!r}; {did_you_mean(kind, known)}")
        return kind


class InfoConfig(CommandConfig):
    """What `softlabels info` does."""

    labels: str = Field("shards/", description="label store, a folder or a URL", json_schema_extra={"argument": True})


class ReportConfig(CommandConfig):
    """What `softlabels report` does."""

    LOCAL: ClassVar = CommandConfig.LOCAL | {"root", "out"}

    root: str = Field(..., description="folder under which the runs are", json_schema_extra={"argument": True})
    out: str | None = Field(
        None, description="folder of the report  [default: ROOT/report]", json_schema_extra={"leading": True}
    )
    baseline: str | None = Field(
        None,
        description="run that the others are compared with, as the table calls it  [default: the one student that "
        "learns from hard labels alone]",
    )


class DemoConfig(CommandConfig):
    """What `softlabels demo` does."""

    LOCAL: ClassVar = CommandConfig.LOCAL | {"out"}

    out: str = Field("runs/demo", description="folder of the demo's runs and labels")
    runs: int = Field(3, ge=1, le=MOST, description="students of each kind, with seeds from 0 upward")
