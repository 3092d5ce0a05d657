"""Writes softlabels/__init__.pyi: the promised names with their types, each setting of each command with its default.

    python tests/make_stub.py

A test compares what it writes with the file.
"""

from __future__ import annotations

import inspect
import json
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import softlabels
from softlabels.choices import DataChoice, StudentChoice, TeacherChoice
from softlabels.commands import COMMANDS, Command, leads

PATH = Path(softlabels.__file__).with_suffix(".pyi")

HEAD = '''"""Offline knowledge distillation of image classifiers: the promised names. Written by tests/make_stub.py."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel
from torch import nn
from torch.utils.data import Dataset

from softlabels import losses as losses
'''

TYPES = """
__version__: str

Part = str | PathLike[str] | Mapping[str, Any] | BaseModel
Network = Part | nn.Module
Data = Part | Images | Dataset[Any]
Text = str | PathLike[str]
"""

RETURNS = {
    "list": "dict[str, str]",
    "plan": "list[Plan]",
    "pack": "PackReport",
    "dump": "list[DumpReport]",
    "train": "TrainResult",
    "sweep": "SweepReport",
    "eval": "NetworkScore",
    "dedup": "Deduplication",
    "select": "Selection",
    "verify": "Findings",
    "repair": "list[RepairReport]",
    "convert": "list[CopyReport]",
    "import": "ImportReport",
    "merge": "list[CopyReport]",
    "info": "dict[str, Any]",
    "report": "pd.DataFrame",
    "export": "Exported",
    "demo": "DemoResult",
}
"""What the function of each command gives back."""

HOMES = {
    "Plan": "dumping.plan",
    "PackReport": "dumping.pack",
    "DumpReport": "dumping.dump",
    "SweepReport": "reporting.run_sweep",
    "NetworkScore": "training.run_eval",
    "Deduplication": "selecting.run_dedup",
    "Selection": "selecting.select",
    "Findings": "upkeep.verify",
    "RepairReport": "upkeep.repair",
    "CopyReport": "upkeep.convert",
    "ImportReport": "importing.projects",
    "Exported": "training.export",
    "DemoResult": "reporting.run_demo",
}


def stub() -> str:
    """The text of the file."""
    functions = {each.function or each.name: each for each in COMMANDS.values()}
    homes = softlabels._HOMES
    lines = [f"from softlabels.{HOMES[name]} import {name}" for name in sorted(HOMES)]
    lines += [f"from softlabels.{homes[name]} import {name} as {name}" for name in homes if name not in functions]
    return "\n".join([HEAD + "\n".join(sorted(lines)), TYPES, *(function(*each) for each in sorted(functions.items()))])


def function(name: str, command: Command) -> str:
    """One command as a typed function."""
    fields = command.settings().model_fields
    named = [argument(key, field) for key, field in fields.items() if not leads(field)]
    first = [argument(key, field) for key, field in fields.items() if leads(field)]
    usual = ["    *,", "    config: Text | None = None,", "    quiet: bool = False,"]
    first_line, *others = wrapped('"""' + command.help.partition("\n")[0], 4), *command.help.splitlines()[1:]
    doc = [*first_line, *(line for each in others for line in wrapped(each, 4)), "", "    Args:"]
    doc += [line for key, field in fields.items() for line in wrapped(f"{key}: {field.description}", 8)]
    return "\n".join([f"def {name}(", *first, *usual, *named, f") -> {RETURNS[command.name]}:", *doc, '    """', ""])


def argument(key: str, field: Any) -> str:
    """A line for one argument of a function, or three where it is long."""
    line = f"    {key}: {annotation(field)},"
    if len(line) <= 120:
        return line
    kind, bracket, default = line.rpartition("]")
    return f"{kind.replace('[', '[' + chr(10) + 8 * ' ', 1)}\n    {bracket}{default}"


def wrapped(text: str, indent: int) -> list[str]:
    """`text` in lines of 120 characters."""
    first, others = " " * indent, " " * (indent + 4 * (indent > 4))
    return textwrap.wrap(text, 120, initial_indent=first, subsequent_indent=others) or [""]


def annotation(field: Any) -> str:
    """Type and default of a setting as they are written."""
    if field.is_required():  # a config file may give it
        return f"{spelled(field.annotation)} = ..."
    default, kind = field.get_default(call_default_factory=True), spelled(field.annotation)
    return f"{kind}{' | None' if default is None and not kind.endswith('None') else ''} = {quoted(default)}"


def spelled(kind: Any) -> str:
    """What a caller may give for a setting of this type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(spelled(each) for each in inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(quoted, inner))}]"
    if origin is Annotated:
        return spelled(inner[0])
    if origin is tuple:
        return f"{spelled(inner[0])} | Sequence[{spelled(inner[0])}]"
    if origin is dict:
        return "str | Mapping[str, Any]"
    if kind is type(None):
        return "None"
    if kind is str:
        return "Text"
    if inspect.isclass(kind) and issubclass(kind, TeacherChoice | StudentChoice):
        return "Network"
    if kind is DataChoice:
        return "Data | Sequence[Data]"
    return kind.__name__ if inspect.isclass(kind) and kind in (int, float, bool) else "Part"


def quoted(value: Any) -> str:
    """`value` as Python writes it, texts in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    PATH.write_text(stub(), encoding="utf-8")
