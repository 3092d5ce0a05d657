"""Parts and tables: the same frozen value is a section of a config, an entry of a manifest and a line of a header."""

from __future__ import annotations

import math
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module, metadata
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

from softlabels.errors import ConfigError, did_you_mean, odd_value, split_advice


def byte_count(value: Any) -> Any:
    """A number of bytes of a text such as ``2GB`` or ``512 MiB``; anything else as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", value)
    if match is None:
        raise ValueError("bytes are a number such as 2000000, 500MB, 2GB or 1.5TiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("kMGT".find(match[2]) + 1 if match[2] else 0))


Bytes = Annotated[int, BeforeValidator(byte_count), Field(ge=1)]
"""A number of bytes; a text such as ``2GB`` will do."""


MOST = 1 << 24
"""The largest of numbers that count images, passes or epochs: beyond it they are mistyped."""


Side = Annotated[int, Field(ge=1, le=8192)]
"""Pixels of a side of square images."""


class Part(BaseModel):
    """A frozen, validated value with a `kind`; final classes of it are what tables hold.

    `shorthand` names the field that a short form such as ``topk:10`` sets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    shorthand: ClassVar[str | None] = None

    kind: str


P_co = TypeVar("P_co", covariant=True)
_Model = TypeVar("_Model", bound=BaseModel)

Given = str | Mapping[str, Any] | Sequence[Any] | BaseModel
"""How a part is written: a name with settings, a mapping, for some a list, or the part itself."""

OBJECT = "object"
"""The kind of a part that a Python caller hands over as an object, of which a file can hold the class alone."""


def is_object(value: object) -> bool:
    """Whether it is an object that no file can hold, such as a network or a data set."""
    plain = (str, bytes, int, float, type(None), PathLike, Mapping, Sequence, set, frozenset, BaseModel)
    return not isinstance(value, plain)


def class_of(value: object) -> str:
    """The full name of an object's class, such as ``torchvision.models.resnet.ResNet``."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _in_file(given: Any) -> Any:
    """`given` as a file holds it: objects by their classes."""
    if isinstance(given, Mapping):
        return {name: _in_file(each) for name, each in given.items()}
    return class_of(given) if is_object(given) else given


@dataclass(frozen=True)
class Choice(ABC, Generic[P_co]):
    """A part that is chosen and not made yet, since to make it may take imports of seconds. Abstract.

    A config holds it as it was `given`, writes it so, and compares it so.
    """

    given: Given
    what: ClassVar[str] = "part"

    @staticmethod
    @abstractmethod
    def check(given: Given, /) -> Given:
        """`given`, as it is kept. Raises ConfigError or ModelError for an unknown name; nothing is imported."""

    @abstractmethod
    def make(self) -> P_co:
        """The part.

        Raises:
            SoftlabelsError: one of its settings is wrong.
        """

    def in_file(self) -> Given:
        """It as a file holds it: what was given, but objects by their classes."""
        held: Given = _in_file(self.given)
        return held

    def check_settings(self) -> None:
        """As `make`, for what can be known of its settings alone."""
        self.make()

    @classmethod
    def of(cls, value: object) -> Self:
        """The choice of what a user gave. Raises ConfigError or ModelError where the name is unknown."""
        if isinstance(value, Choice):
            value = value.given
        if is_object(value):
            value = cls.of_object(value)
        if not isinstance(value, str | Mapping | list | tuple | BaseModel):
            raise ConfigError(f"a {cls.what} is a name or a mapping with a `kind`, not {value!r}")
        if isinstance(value, Mapping) and value.get("kind") == OBJECT and not any(map(is_object, value.values())):
            named = ", ".join(str(each) for name, each in value.items() if name != "kind")
            raise ConfigError(
                f"the {cls.what} was an object of a Python program ({named}), which no file holds; give the object "
                f"itself, in Python"
            )
        return cls(cls.check(value))

    @classmethod
    def of_object(cls, value: object) -> Given:
        """The mapping that stands for an object. Raises ConfigError where this part is never one."""
        raise ConfigError(f"a {cls.what} is a name or a mapping with a `kind`, not {value!r}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        """How pydantic reads and writes it."""
        written = core_schema.plain_serializer_function_ser_schema(lambda choice: choice.in_file())
        return core_schema.no_info_plain_validator_function(cls.of, serialization=written)


class CommandConfig(BaseModel):
    """Settings of a command, as flags, files and Python give them.

    Paths may be `os.PathLike`, networks and data sets may be objects, one value may stand for a list of one, and ``~``
    is spelled out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LOCAL: ClassVar[frozenset[str]] = frozenset(
        {
            "data_dir",
            "cache_dir",
            "init",
            "class_map",
            "source",
            "weights",
            "teacher_weights",
            "init_from_weights",
            "order",
        }
    )
    """Settings that name a file or folder of this machine, and never a URL."""

    @model_validator(mode="before")
    @classmethod
    def _as_given(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        settled = {name: _settled(name, value) for name, value in given.items()}
        for name, value in settled.items():
            for each in value if isinstance(value, list) else [value]:
                if name in cls.LOCAL and is_url(each):
                    raise ConfigError(f"`{name}`: {each} is a URL; give a file or folder of this machine")
            one = isinstance(value, str | int | float | Mapping | Part) or is_object(value)
            if one and _takes_many(cls.model_fields.get(name)):
                settled[name] = [value]
        return settled

    def check_parts(self) -> None:
        """Raises SoftlabelsError where a setting of a chosen part is wrong; the parts' classes are imported."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else [value]:
                if isinstance(each, Choice):
                    each.check_settings()


def is_url(value: Any) -> bool:
    """Whether it is a text such as ``s3://bucket/folder``."""
    return isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", value) is not None


def _settled(name: str, value: Any) -> Any:
    """`value` with texts in the place of paths and without ``~``. Raises ConfigError where it is empty."""
    if isinstance(value, PathLike):
        value = fspath(value)
    if isinstance(value, str):
        if not value.strip():
            raise ConfigError(f"`{name}` is empty; give a value, or leave it out")
        return str(Path(value).expanduser()) if value == "~" or value.startswith("~/") else value
    if isinstance(value, list | tuple):
        return [_settled(name, each) for each in value]
    return {key: _settled(str(key), each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _takes_many(field: Any) -> bool:
    kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
    return any(get_origin(kind) is tuple for kind in kinds)


_SETTING = re.compile(r"(\S.*?)\s+([a-z_]\w*)=([\w.+-]+)", re.DOTALL)
"""A setting that follows a kind, as in ``topk:11 levels=12``."""


def without_settings(text: str) -> str:
    """`text` without the settings that follow it, as in ``photos class_order=number``."""
    while found := _SETTING.fullmatch(text):
        text = found[1]
    return text


class Table(Generic[P_co]):
    """The kinds of one part, by name. A third party adds one through the entry point group ``softlabels.<group>``.

    `kinds` maps a kind to its class, or to ``module:Class``, which is imported when a part of that kind is made: the
    names can be read without importing what stands behind them. `short` maps short names to the mapping they stand for.
    """

    def __init__(
        self,
        what: str,
        group: str,
        kinds: Mapping[str, type[Any] | str],
        short: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.what = what
        self._group = f"softlabels.{group}"
        self._kinds = dict(kinds)
        self.own = tuple(kinds)
        """The kinds of this package."""
        self._short = dict(short or {})

    @property
    def names(self) -> tuple[str, ...]:
        """Every kind and short name that can be written, of other packages too, sorted; nothing is imported."""
        others = (entry.name for entry in metadata.entry_points(group=self._group))
        return tuple(sorted({*self._kinds, *self._short, *others} - {OBJECT}))

    def home(self, kind: str) -> str:
        """Where the class of one of `names` is, as ``module:Class``; nothing is imported."""
        found = self._kinds.get(kind) or next(entry.value for entry in self._entries(kind))
        return found if isinstance(found, str) else f"{found.__module__}:{found.__qualname__}"

    @property
    def kinds(self) -> Mapping[str, type[Any]]:
        """The part class of each kind."""
        return {kind: self._class(kind) for kind in self._kinds}

    def check(self, value: Given) -> Given:
        """`value` itself, of which the kind is known where it names one; nothing is imported.

        Raises:
            ConfigError: the kind is unknown; the nearest names are given.
        """
        kind = value.get("kind") if isinstance(value, Mapping) else value
        if isinstance(kind, str):
            kind = re.split(r"[:\s]", kind, maxsplit=1)[0]
            if not self.has(kind):
                raise self.unknown(kind)
        return value

    def has(self, kind: str) -> bool:
        """Whether it is the name of a kind or a short name; nothing is imported."""
        return kind in self._kinds or kind in self._short or bool(self._entries(kind))

    def unknown(self, kind: str) -> ConfigError:
        """The error for a `kind` that is none of these."""
        return ConfigError(f"unknown {self.what} {kind!r}; {did_you_mean(kind, self.names)}")

    def make(self, value: object) -> P_co:
        """The part that `value` describes: a part, a mapping with a `kind`, ``KIND``, ``KIND:VALUE`` or a short name.

        Further settings may follow, as in ``topk:11 levels=12``; their values are read as in YAML.

        Raises:
            ConfigError: the kind is unknown (the nearest names are given) or a field is wrong (it is named).
        """
        if isinstance(value, Part):
            found = self.find(value.kind)
            if found is not None and isinstance(value, found):
                own: P_co = value
                return own
        if isinstance(value, str):
            value = self._expand(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
            raise ConfigError(f"a {self.what} is a name or a mapping with a `kind`, not {value!r}")
        made: P_co = validated(self._class(value["kind"]), value, f"{self.what} {value['kind']!r}")
        return made

    def find(self, kind: str) -> type[Any] | None:
        """The part class of `kind`, an entry point's if need be; None when there is none."""
        found = self._kinds.get(kind)
        if isinstance(found, str):
            module, _, name = found.partition(":")
            found = getattr(import_module(module), name)
        for entry in self._entries(kind) if found is None else ():
            try:
                found = entry.load()
            except Exception as problem:
                raise ConfigError(
                    f"{self.what} {kind!r} of another package ({entry.value}) cannot be imported: "
                    f"{type(problem).__name__}: {problem}"
                ) from problem
        if found is not None:
            self._kinds[kind] = found
        return found

    def _entries(self, kind: str) -> metadata.EntryPoints:
        return metadata.entry_points(group=self._group, name=kind)

    def _expand(self, text: str) -> Mapping[str, Any]:
        text, settings = self._settings(text)
        if text in self._short:
            return {**self._short[text], **settings}
        kind, colon, argument = text.partition(":")
        if not colon:
            return {"kind": kind, **settings}
        field = self._class(kind).shorthand
        if field is None:
            raise ConfigError(f"{self.what} {kind!r} takes no value after a colon, got {text!r}")
        return {"kind": kind, field: argument, **settings}

    def _settings(self, text: str) -> tuple[str, dict[str, Any]]:
        """`text` without the settings at its end, and these."""
        settings: dict[str, Any] = {}
        while found := _SETTING.fullmatch(text):
            before, name, value = found.groups()
            kind, colon, _ = before.partition(":")
            fields = self._class(kind).model_fields if colon else {name: None}
            if name not in fields:
                taken = getattr(fields.get(self._class(kind).shorthand or ""), "annotation", None)
                if str in (taken, *get_args(taken)):
                    break  # of a path with spaces, say
                others = (other for other in fields if other != "kind")
                raise ConfigError(f"{self.what} {kind!r} has no setting {name!r}; {did_you_mean(name, others)}")
            text, settings = before, {name: yaml.safe_load(value), **settings}
        return text, settings

    def _class(self, kind: str) -> type[Any]:
        found = self.find(kind)
        if found is None:
            raise self.unknown(kind)
        return found


_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "string_type": "a text",
    "tuple_type": "a list, such as [{input}]",
}
"""What a setting must be, by the type of pydantic's error."""


def validated(model: type[_Model], value: Mapping[str, Any], where: str, *, named: bool = True) -> _Model:
    """`value` as a `model`, or a ConfigError of one line that names the setting and, unless not `named`, `where`."""
    for name, each in value.items():
        odd = odd_value(each)
        if odd is not None:
            raise ConfigError(f"{where}: {name} {odd}")
    try:
        return model.model_validate(dict(value))
    except ValidationError as problem:
        # A mistyped name before what lacks a value: the one is most likely meant for the other.
        first = min(problem.errors(), key=lambda each: each["type"] != "extra_forbidden")
        names = [str(step) for step in first["loc"]]
        if first["type"] == "extra_forbidden":
            known = did_you_mean(names[-1], (name for name in model.model_fields if name != "kind"))
            raise ConfigError(f"{where} has no setting {'.'.join(names)!r}; {known}") from problem
        if issubclass(model, CommandConfig) and names:
            names[0] = f"`{names[0]}`"  # the command line spells it as an option
        field = ".".join(names)
        if first["type"] == "missing":
            raise ConfigError(f"{where} needs {field}") from problem
        raise ConfigError(f"{f'{where}: ' if named else ''}{_fault(field, first)}") from problem


def _limit(value: Any) -> Any:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return f"{int(value):,}" if whole else value


def _fault(field: str, error: Any) -> str:
    """What is wrong with the value of a field, of one of pydantic's errors."""
    value = error["input"]
    if error["type"] in _WANTED:
        limits = {name: _limit(each) for name, each in error.get("ctx", {}).items()}
        return f"{field} must be {_WANTED[error['type']].format(**limits, input=value)}, not {_shown(value)}"
    message = error["msg"].removeprefix("Value error, ")
    if message.startswith("must be"):
        return f"{field} {message}, not {_shown(value)}"
    found, tip = split_advice(message)
    # Of a rule between several fields the value is all of them.
    got = "" if not field or repr(value) in message or str(value) in message else f" (got {value!r})"
    return f"{field}{': ' if field else ''}{found}{got}{'; ' if tip else ''}{tip}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value) else repr(value)


def essence(value: Any) -> Any:
    """JSON values of a model or of what holds models, to take a digest of.

    A field that is not one of the class's `FIRST` counts only where it differs from its default: a field that came
    later changes no digest of what was written before it, and with it at its default the digest is the old one, too.
    """
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        first: frozenset[str] = getattr(type(value), "FIRST", frozenset())
        given = {name: getattr(value, name) for name in fields}
        counts = (name for name in fields if name in first or given[name] != fields[name].get_default())
        return {name: essence(given[name]) for name in counts}
    if isinstance(value, Mapping):
        return {name: essence(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [essence(inner) for inner in value]
    return value


def plain(value: Any) -> Any:
    """What a command returned, as JSON values: models and dataclasses by field, tables by row, paths as text."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if hasattr(value, "to_dict"):  # a table of pandas
        return [plain(row) for row in value.to_dict(orient="records")]
    if hasattr(value, "tolist"):  # numpy's and torch's numbers and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice, of which YAML readers take the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:  # as written: what `<<` brings in comes later, and may be overridden
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise ConfigError(f"gives {key.value!r} twice, in lines {lines[key.value]} and {line}; keep one")
            lines[str(key.value)] = line
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file at `path`; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is missing or not a YAML mapping; the message names it.
    """
    try:
        if stat.S_ISFIFO(path.stat().st_mode) and path.parts[:2] not in (("/", "dev"), ("/", "proc")):
            raise ConfigError("is a pipe, not a file")  # it may never be written to
        value = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except ConfigError as problem:
        raise ConfigError(f"config {path} {problem}") from problem
    except OSError as problem:
        raise ConfigError(f"config {path} cannot be read: {problem.strerror}") from problem
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise ConfigError(f"config {path} is not valid YAML: {' '.join(str(problem).split())}") from problem
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"config {path} must be a mapping of settings, not a {type(value).__name__}")
    return value


def config_text(config: BaseModel) -> str:
    """The resolved config as a file that `--config` runs again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
