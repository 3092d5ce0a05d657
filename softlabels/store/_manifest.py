"""What a store is of: what its ``manifest.json`` holds."""

from __future__ import annotations

import itertools
import json
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from softlabels.core.arrayfile.arrays import HexDigits, Length
from softlabels.core.documents import canonical, json_digest
from softlabels.store._shard import Runs

NAME = "manifest.json"

MOST_CLASSES = 1 << 24
"""Width of logits: readers make a row of it before they have read a label."""


class ImageFile(BaseModel):
    """One addition of images: its Parquet file's size and SHA-256, and those of keys and labels, and of contents.

    `id` is that of the store with these images, which shards of them carry; None for the first ones, and where an
    earlier version of this package added them: then it is the manifest's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Length
    size: Length
    sha256: HexDigits
    fingerprint: HexDigits
    contents: HexDigits
    id: HexDigits | None = None


class Manifest(BaseModel):
    """What all labels of a store have in common. Only adding images changes it; `id` stays.

    `versions` are those at the time of its making and decide nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: HexDigits
    data: dict[str, Any]
    classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    class_names: tuple[str, ...] = ()
    recipe: dict[str, Any]
    seed: Annotated[int, Field(ge=0, lt=1 << 64)]
    versions: dict[str, str] = {}
    rows_per_shard: Length
    images: Annotated[tuple[ImageFile, ...], Field(min_length=1, max_length=9999)]

    @property
    def rows(self) -> int:
        """How many images there are."""
        return sum(file.rows for file in self.images)

    @property
    def ids(self) -> tuple[tuple[int, str], ...]:
        """For each addition, the row behind its last one and the id that shards of its rows carry."""
        stops = itertools.accumulate(file.rows for file in self.images)
        return tuple((stop, file.id or self.id) for stop, file in zip(stops, self.images, strict=True))

    @property
    def runs(self) -> Runs:
        """How the rows are cut into shards."""
        return Runs(tuple(file.rows for file in self.images), self.rows_per_shard)


def identity(classes: int, class_names: tuple[str, ...], recipe: dict[str, Any], seed: int) -> dict[str, Any]:
    """What two stores must have in common beside their images, as JSON values."""
    what = {"classes": classes, "class_names": class_names, "recipe": recipe, "seed": seed}
    return cast("dict[str, Any]", json.loads(canonical(what)))


def store_id(what: dict[str, Any], file: ImageFile) -> str:
    """The name of a store that its shards carry: equal for stores made of the same images in the same way."""
    return json_digest({**what, "fingerprint": file.fingerprint, "contents": file.contents})


def grown_id(before: str, file: ImageFile) -> str:
    """The id of the store of id `before` when the images of `file` have been added to it."""
    return json_digest({"store": before, "fingerprint": file.fingerprint, "contents": file.contents})


def images_name(addition: int) -> str:
    """The file of one addition of images."""
    return "images.parquet" if addition == 0 else f"images-{addition}.parquet"
