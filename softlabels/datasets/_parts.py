"""Several data sets as one: a labelled set and an unlabelled pool, say, or photographs from two sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from softlabels.choices import DATASETS
from softlabels.core.config import Part
from softlabels.datasets._images import Images, in_short
from softlabels.datasets._subset import SomeImages
from softlabels.errors import ConfigError, DataError


def _made(values: Any) -> Any:
    return tuple(DATASETS.make(each) for each in values) if isinstance(values, list | tuple) else values


class Parts(Part):
    """Data sets one after the other. Written as a list: ``--data`` several times, or a list in a config file.

    `prefixes` are put before the keys of each part, with a slash between; an empty one leaves them as they are. As
    text it stands behind the part: ``'images:crawl prefix=crawl'``.
    """

    kind: Literal["parts"] = "parts"
    parts: Annotated[tuple[Any, ...], BeforeValidator(_made), Field(min_length=1)]
    prefixes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_for_each(self) -> Any:
        if len(self.prefixes) not in (0, len(self.parts)):
            raise ValueError(
                f"prefixes has {len(self.prefixes)} entries for {len(self.parts)} parts; give one for each"
            )
        return self

    @property
    def named(self) -> list[tuple[Any, str]]:
        """Each part with its prefix."""
        return list(zip(self.parts, self.prefixes or ("",) * len(self.parts), strict=True))

    def open(self) -> Images:
        """The images of all parts, under the classes of the labelled ones.

        Raises:
            DataError: two parts have an image of the same key, or one has classes that the others do not know.
        """
        return joined_images([part.open() for part in self.parts], [prefix for _, prefix in self.named])


@dataclass(frozen=True, eq=False)
class PartsImages:
    """The images of several `parts`, one part after the other; `ends` int64 (parts,) are the rows behind each."""

    name: str
    spec: Mapping[str, Any]
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    pixels: Tensor | None
    parts: tuple[Images, ...]
    ends: NDArray[np.int64]

    @cached_property
    def decoder(self) -> str:
        """See `Images`: those of the parts."""
        return ", ".join(dict.fromkeys(part.decoder for part in self.parts))

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return in_short(self)

    def content(self, row: int) -> bytes:
        """See `Images`."""
        part, own = self._place(row)
        return part.content(own)

    def decode(self, row: int) -> Tensor:
        """See `Images`."""
        part, own = self._place(row)
        return part.decode(own)

    def _place(self, row: int) -> tuple[Images, int]:
        number = int(np.searchsorted(self.ends, row, side="right"))
        part = self.parts[number]
        return part, int(row) - int(self.ends[number]) + len(part)


def joined_images(parts: Sequence[Images], prefixes: Sequence[str]) -> PartsImages:
    """Opened data sets as one; see `Parts`."""
    columns = [_prefixed(part.keys, prefix) for part, prefix in zip(parts, prefixes, strict=True)]
    _refuse_equal_keys(parts, columns)
    classes, labels = _one_numbering(parts)
    known = [part.pixels for part in parts if part.pixels is not None]
    alike = len(known) == len(parts) and len({each.shape[1:] for each in known}) == 1
    spec: dict[str, Any] = {"kind": "parts", "parts": [dict(part.spec) for part in parts]}
    if any(prefixes):
        spec["prefixes"] = list(prefixes)
    keys = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).combine_chunks()
    return PartsImages(
        name=" + ".join(part.name for part in parts),
        spec=spec,
        keys=keys if isinstance(keys, pa.ChunkedArray) else pa.chunked_array([keys], pa.string()),
        labels=np.concatenate(labels),
        classes=classes,
        pixels=torch.cat(known) if alike else None,
        parts=tuple(parts),
        ends=np.cumsum([len(part) for part in parts], dtype=np.int64),
    )


def by_part(images: Images) -> Iterator[tuple[Images, NDArray[np.int64], NDArray[np.int64]]]:
    """Each data set that holds some of `images`, whatever picks and joins them.

    Gives the data set as it was opened, the rows of `images` that it holds, and their rows in it: int64 (m,) each.
    """
    rows = np.arange(len(images))
    while isinstance(images, SomeImages):
        rows, images = images.rows[rows], images.images
    if not isinstance(images, PartsImages):
        yield images, np.arange(len(rows)), rows
        return
    number = np.searchsorted(images.ends, rows, side="right")
    for place, part in enumerate(images.parts):
        here = np.flatnonzero(number == place)
        own = rows[here] - images.ends[place] + len(part)
        for whole, inner, inner_own in by_part(part):
            at = np.full(len(part), -1, np.int64)
            at[inner] = inner_own
            held = at[own] >= 0
            yield whole, here[held], at[own][held]


def _prefixed(keys: pa.ChunkedArray, prefix: str) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(prefix.rstrip("/"), keys, "/") if prefix else keys


def _refuse_equal_keys(parts: Sequence[Images], columns: Sequence[pa.ChunkedArray]) -> None:
    for later in range(1, len(parts)):
        for earlier in range(later):
            found = pc.index_in(columns[later], value_set=columns[earlier])
            common = len(found) - found.null_count
            if common:
                key = columns[later].filter(pc.is_valid(found))[0].as_py()
                others = f" ({common:,} such keys)" if common > 1 else ""
                raise DataError(
                    f"the key {key!r} is in {parts[earlier].name} and in {parts[later].name}{others}, and labels are "
                    f"found by key; give one of the two a prefix, as in '{parts[later].name} prefix=NAME'"
                )


def _one_numbering(parts: Sequence[Images]) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """The classes of all parts, and the labels of each part as numbers of these.

    The classes are those of one part that knows all that the others have. Names that only count (0, 1, 2, ...) stand
    for class numbers.

    Raises:
        DataError: no part knows all classes; one that is missing is named.
    """
    known = [part for part in parts if part.classes]
    if not known:
        return (), [part.labels for part in parts]
    whole = max(known, key=lambda part: (not _only_count(part.classes), len(part.classes)))
    numbers = {name: number for number, name in enumerate(whole.classes)}
    labels = []
    for part in parts:
        other = next((name for name in part.classes if name not in numbers), None)
        if other is not None and not (_only_count(part.classes) and len(part.classes) <= len(whole.classes)):
            shown = ", ".join(whole.classes[:6]) + (", ..." if len(whole.classes) > 6 else "")
            raise DataError(
                f"class {other!r} of {part.name} is none of the {len(whole.classes):,} classes of {whole.name} "
                f"({shown}); give parts with the same classes, or a part without labels as images:DIR"
            )
        if other is not None:
            labels.append(part.labels)
            continue
        own = np.array([numbers[name] for name in part.classes] + [-1], np.int64)
        labels.append(own[part.labels])  # -1, no label, is the last
    return whole.classes, labels


def _only_count(names: Sequence[str]) -> bool:
    return all(name == str(number) for number, name in enumerate(names))


def prefix_of(text: str) -> tuple[str, str]:
    """A part as text without its ``prefix=NAME``, and the prefix, "" where there is none.

    Raises:
        ConfigError: it has two.
    """
    words = text.split(" ")
    found = [word for word in words[1:] if word.startswith("prefix=")]
    if len(found) > 1:
        raise ConfigError(f"`data={text}` gives prefix twice; give it once")
    if not found:
        return text, ""
    words.remove(found[0])
    prefix = found[0].removeprefix("prefix=").strip("/")
    if not prefix or any(step in ("", ".", "..") for step in prefix.split("/")):
        raise ConfigError(f"`data={text}`: a prefix is a name such as pool, put before the keys; give one, or none")
    return " ".join(words).rstrip(), prefix
