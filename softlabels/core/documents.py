"""JSON that carries its format version and its own checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from softlabels.core.config import essence
from softlabels.core.paths import Damaged, SafePath
from softlabels.errors import StoreError, odd_value

FORMAT = 1
"""Version of what is written: of headers, and of documents that do not name another one."""

LARGEST = 64 << 20
"""Bytes that a JSON text may have."""

_Model = TypeVar("_Model", bound=BaseModel)


def canonical(value: Any) -> bytes:
    """The one JSON text of `value` that checksums are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical text of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def document(model: BaseModel, version: int = FORMAT) -> str:
    """The text of a file that holds `model`, its format version and its checksum.

    Only what `model` was given is written, so that a model that was read gives the text that it was read from, also
    when its class has got another field with a default since then. A new one is written `complete`.
    """
    body = {"format_version": version, **model.model_dump(mode="json", exclude_unset=True)}
    text = json.dumps({**body, "sha256": json_digest(body)}, indent=2, ensure_ascii=False) + "\n"
    try:
        size = len(text.encode())
    except UnicodeEncodeError as problem:
        raise StoreError(
            f"{problem.object[problem.start - 20 : problem.end]!r} is no valid Unicode; rename it"
        ) from problem
    if size > LARGEST:
        raise StoreError(
            f"the document would have {size:,} bytes, more than the {LARGEST:,} that are read; use fewer classes, or "
            f"shorter names of classes"
        )
    return text


def complete(model: _Model) -> _Model:
    """`model` as it is written for the first time: with its defaults, but without later fields that it does not use."""
    return type(model).model_validate(essence(model))


def read_document(place: SafePath, model: type[_Model], versions: range = range(1, FORMAT + 1)) -> _Model:
    """What `document` wrote to `place`.

    Raises:
        StoreError: it is missing, changed, of another version than these, or no such document.
    """
    body = parse(place.read(LARGEST), str(place))
    odd = odd_value(body)
    if odd is not None:
        raise StoreError(f"{place} {odd}; it is of another program")
    found = body.pop("sha256", None)
    check_format(body.get("format_version"), str(place), versions)
    if found != json_digest(body):
        raise Damaged(f"{place} does not match its checksum; it was changed or damaged, copy it again from its source")
    del body["format_version"]
    return checked(model, body, str(place))


def document_problems(place: SafePath, model: BaseModel) -> list[str]:
    """What differs between the file and the text that `model` was read from, down to the last byte."""
    if place.read(LARGEST) == document(model).encode():
        return []
    return [f"{place} is not byte for byte as it was written; its values are unharmed"]


def parse(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises Damaged, naming `where`, for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise Damaged(f"{where} is not valid JSON ({problem}); it is damaged or of another program") from problem
    if not isinstance(value, dict):
        raise Damaged(f"{where} holds no JSON object; it is damaged or of another program")
    return value


def check_format(version: Any, where: str, versions: range = range(1, FORMAT + 1)) -> None:
    """Raise StoreError when `version` is none of those known here, Damaged when it is no version."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Damaged(f"{where} states no format version; it is damaged or of another program")
    if version < versions.start:
        raise Damaged(f"{where} is of format version {version}, made by a development version of softlabels")
    if version >= versions.stop:
        raise StoreError(
            f"{where} is of format version {version}, newer than version {versions[-1]} that this softlabels reads; "
            f"install a newer softlabels"
        )


def checked(model: type[_Model], value: Mapping[str, Any], where: str) -> _Model:
    """`value` as a `model`. Raises StoreError of one line that names `where` and the first wrong field."""
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as problem:
        if not isinstance(problem, ValidationError):
            raise StoreError(f"{where} is nested too deeply") from problem
        first = problem.errors()[0]
        field = ".".join(str(step) for step in first["loc"])[:100]
        raise StoreError(
            f"{where}: {field!r}: {first['msg'].removeprefix('Value error, ')} (got {repr(first['input'])[:80]})"
        ) from problem


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Where two JSON-like values differ, one clause for each place: ``codec.k is 10 there and 5 here``."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [*there, *(key for key in here if key not in there)]
        return [
            clause
            for key in keys
            for clause in differences(there.get(key, _ABSENT), here.get(key, _ABSENT), f"{name}.{key}" if name else key)
        ]
    if isinstance(there, list | tuple) and isinstance(here, list | tuple) and len(there) == len(here):
        return [
            clause
            for place, (old, new) in enumerate(zip(there, here, strict=True))
            for clause in differences(old, new, f"{name}.{place}")
        ]
    if there == here or (there != there and here != here):
        return []
    return [f"{name} is {_short(there)} there and {_short(here)} here"]


def joined(clauses: list[str], most: int = 6) -> str:
    """The first few clauses, and how many more there are."""
    rest = len(clauses) - most
    return "; ".join(clauses[:most]) + (f"; and {rest} more" if rest > 0 else "")


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
