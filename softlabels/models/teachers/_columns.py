"""A teacher of which some classes are used: those of a data set, where the teacher knows more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from softlabels.core import tables
from softlabels.core.config import Part
from softlabels.errors import ModelError
from softlabels.models.networks import Preprocessing

Column = Annotated[int, Field(ge=0)]


class ColumnsTeacher(Part):
    """The teacher `of`, answering with the `columns` of its logits; `class_names` are what these classes are called.

    A softmax over what is chosen is one over these classes alone.
    """

    kind: Literal["columns"] = "columns"
    of: dict[str, Any]
    columns: tuple[Column, ...] = Field(min_length=1)
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.class_names and len(self.class_names) != len(self.columns):
            raise ValueError(f"{len(self.columns)} columns and {len(self.class_names)} class_names; give one for each")
        if self.of.get("kind") == self.kind:
            raise ValueError("columns of columns; choose among those of the teacher itself")
        return self

    @property
    def inner(self) -> Any:
        """The part of the whole teacher."""
        return tables.TEACHERS.make(self.of)

    @property
    def slug(self) -> str:
        """That of the whole teacher."""
        return str(self.inner.slug)

    @property
    def resolved(self) -> str:
        """That of the whole teacher."""
        return str(self.inner.resolved)

    def open(
        self, device: str | torch.device = "cpu", amp: Any = None, classes: int | None = None, **more: Any
    ) -> ChosenColumns:
        """The teacher, ready to answer; `classes` is the data set's count (None: not to be compared).

        Raises:
            ModelError: as the whole teacher, or it has fewer classes than were chosen, or `classes` is another number.
        """
        teacher = chosen(self.inner.open(device=device, amp=amp, **more), self.columns, self.class_names)
        if classes is not None and classes != teacher.classes:
            raise ModelError(
                f"{teacher.name} answers with {teacher.classes} chosen columns, the data set has {classes} classes; "
                f"choose one column for each"
            )
        return teacher


@dataclass(frozen=True)
class ChosenColumns:
    """Some columns of a teacher's logits; make one with `chosen`. All else is the whole teacher's."""

    teacher: Any
    columns: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.teacher.name)

    @property
    def spec(self) -> dict[str, Any]:
        return ColumnsTeacher(of=self.teacher.spec, columns=self.columns, class_names=self.class_names).model_dump(
            mode="json"
        )

    @property
    def classes(self) -> int:
        return len(self.columns)

    @property
    def preprocessing(self) -> Preprocessing:
        preprocessing: Preprocessing = self.teacher.preprocessing
        return preprocessing

    @property
    def weights_sha256(self) -> str:
        """Of the weights and the columns: other columns are another teacher."""
        weights = self.teacher.weights_sha256
        return weights and hashlib.sha256(f"{weights} {json.dumps(self.columns)}".encode()).hexdigest()

    @property
    def licence(self) -> str | None:
        licence: str | None = self.teacher.licence
        return licence

    @property
    def device(self) -> torch.device:
        device: torch.device = self.teacher.device
        return device

    def compile(self) -> ChosenColumns:
        """The same columns of the whole teacher, compiled."""
        return ChosenColumns(self.teacher.compile(), self.columns, self.class_names)

    def logits(self, pictures: Tensor) -> Tensor:
        """What the whole teacher says, the chosen columns of it: float32 (n, columns)."""
        whole = self.teacher.logits(pictures)
        return whole.index_select(1, torch.tensor(self.columns, device=whole.device))


def chosen(teacher: Any, columns: tuple[int, ...], class_names: tuple[str, ...] = ()) -> ChosenColumns:
    """`teacher`, answering with these columns of its logits.

    Raises:
        ModelError: it has no such column.
    """
    if max(columns) >= teacher.classes:
        raise ModelError(f"{teacher.name} has {teacher.classes} classes, so no column {max(columns)}; choose others")
    return ChosenColumns(teacher, tuple(columns), tuple(class_names))


def innermost(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping of the whole teacher that `spec` chooses columns of, or `spec` itself."""
    inner = spec.get("of") if spec.get("kind") == "columns" else None
    return inner if isinstance(inner, Mapping) else spec
