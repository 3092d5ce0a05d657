"""`softlabels list`."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from softlabels.choices import (
    BLENDS,
    CODECS,
    DATASETS,
    FEATURE_LOSSES,
    IMPORTERS,
    LOSSES,
    NETWORK_ALIASES,
    RECIPE_NAMES,
    SMALL_NETWORKS,
    STEPS,
    network_names,
    steps_in_words,
)
from softlabels.core.config import Table
from softlabels.core.installed import timm_optimizers
from softlabels.core.progress import Terminal
from softlabels.errors import ConfigError, did_you_mean
from softlabels.reporting.config import ListConfig

TIMM = "timm:"


def run_list(config: ListConfig, terminal: Terminal) -> dict[str, str]:  # noqa: ARG001
    """Each name that fits, with what it is; nothing that takes long is imported.

    Raises:
        ConfigError: no name fits; the nearest are given.
    """
    pattern = config.pattern or ""
    networks = config.kind in ("teachers", "students")
    if networks and pattern.startswith(TIMM):
        known = {f"{TIMM}{name}": "timm" for name in network_names("timm")}
    else:
        known = dict(_LISTS[config.kind]())
    wanted = pattern if any(letter in pattern for letter in "*?[") else f"*{pattern.removeprefix(TIMM)}*"
    found = {name: what for name, what in known.items() if fnmatchcase(name, wanted)}
    if not found:
        raise ConfigError(f"none of the {len(known):,} {config.kind} fits {pattern!r}; {did_you_mean(pattern, known)}")
    return found


def list_text(found: Mapping[str, str]) -> str:
    """The names in a column, and beside them what each is."""
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {what}".rstrip() for name, what in found.items()) + "\n"


def _networks() -> dict[str, str]:
    known = dict.fromkeys(network_names("torchvision"), "torchvision")
    known |= {name: f"short for {full}" for name, full in NETWORK_ALIASES.items()}
    known |= dict.fromkeys(SMALL_NETWORKS, "small, for images of 8x8 to 32x32")
    return dict(sorted(known.items()))


def _recipes() -> dict[str, str]:
    names = [*RECIPE_NAMES.usual, *RECIPE_NAMES.presets]
    return {name: ", ".join(map(_step, RECIPE_NAMES.expand(name))) for name in names}


def _step(step: str | Mapping[str, Any]) -> str:
    return step if isinstance(step, str) else steps_in_words({"steps": [step]})


def _described(table: Table[object]) -> dict[str, str]:
    """Each kind with the first line of its class's docstring, which is read and not imported."""
    return {kind: _first_line(table.home(kind)) for kind in table.names}


def _first_line(home: str) -> str:
    module, _, name = home.partition(":")
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root, *rest).with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return re.split(r"; see|\n", ast.get_docstring(node) or "")[0].replace("`", "").rstrip(".")
    return f"of {package}"


_LISTS: Mapping[str, Callable[[], Mapping[str, str]]] = {
    "teachers": _networks,
    "students": _networks,
    "losses": lambda: {**_described(LOSSES), **_described(FEATURE_LOSSES)},
    "blends": lambda: _described(BLENDS),
    "recipes": _recipes,
    "steps": lambda: _described(STEPS),
    "codecs": lambda: _described(CODECS),
    "datasets": lambda: _described(DATASETS),
    "importers": lambda: _described(IMPORTERS),
    "optimizers": lambda: dict.fromkeys(sorted(timm_optimizers()), "timm"),
}
