"""What installed packages offer, found without importing them: torch, torchvision and timm take seconds to import."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from softlabels.errors import ConfigError

OLDEST_TORCH = (2, 6)
"""The oldest torch that the tests pass with; pyproject.toml asks for the same."""


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """Within the block modules of the current directory are found first, for a user's ``module:function``."""
    here = os.getcwd()  # noqa: PTH109
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def required(module: str, extra: str, what: str) -> ModuleType:
    """The module of a package that comes with an extra; `what` needs it.

    Raises:
        ConfigError: it is not installed; the extra is named.
    """
    try:
        return import_module(module)
    except ImportError as problem:
        package = (getattr(problem, "name", None) or module).partition(".")[0]
        raise ConfigError(f"{what} needs {package}: pip install 'softlabels[{extra}]'") from problem


def loaded(module: str, name: str) -> Any:
    """`name` of one of our modules that import torch.

    Raises:
        ConfigError: torch is missing or too old, or torchvision is missing or was built for another torch.
    """
    _check_torch()
    try:
        return getattr(import_module(module), name)
    except (ImportError, RuntimeError, OSError) as problem:
        if not _is_of_torch(problem):
            raise
        reason = " ".join(str(problem).split())[:160]
        raise ConfigError(f"torch and torchvision cannot be imported ({reason}); install them anew, together") from (
            problem
        )


@functools.cache
def _check_torch() -> None:
    oldest = ".".join(str(number) for number in OLDEST_TORCH)
    torch = _version("torch")
    if torch is None:
        raise ConfigError(f"torch is not installed: pip install 'torch>={oldest}' torchvision")
    if (numbers := re.match(r"(\d+)\.(\d+)", torch)) and (int(numbers[1]), int(numbers[2])) < OLDEST_TORCH:
        raise ConfigError(f"torch {torch} is too old; softlabels needs {oldest} or newer")
    torchvision = _version("torchvision")
    if torchvision is None:
        raise ConfigError("torchvision is not installed; install the one that belongs to your torch")
    needs = (re.match(r"torch\s*\(?==\s*([\d.]+)", each) for each in metadata.requires("torchvision") or ())
    built = next((match for match in needs if match), None)
    if built and built[1] != re.split(r"[^\d.]", torch)[0]:
        raise ConfigError(
            f"torchvision {torchvision} was built for torch {built[1]}, and torch {torch} is installed; install the "
            f"two that belong together"
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_of_torch(problem: BaseException) -> bool:
    """Whether an import failed within torch or torchvision and not in code of ours or of the user's."""
    trace, last = problem.__traceback__, ""
    while trace is not None:
        last, trace = trace.tb_frame.f_globals.get("__name__") or "", trace.tb_next
    name = getattr(problem, "name", None) or last
    return name.partition(".")[0] in ("torch", "torchvision")


@functools.cache
def torchvision_networks() -> frozenset[str]:
    """Names of the classification networks of the installed torchvision."""
    names = _matches(
        _sources("torchvision", "models", "*.py"),
        re.compile(r"^@register_model\((?:name=)?['\"]?(\w*)['\"]?\)\s*(?:^@.*\s)*^def (\w+)", re.M),
    )
    found = frozenset(given or function for given, function in names)
    return found or frozenset(
        import_module("torchvision.models").list_models(module=import_module("torchvision.models"))
    )


@functools.cache
def timm_networks() -> frozenset[str]:
    """Names of the networks of the installed timm, without the tags of their weights."""
    found = frozenset(
        name
        for (name,) in _matches(_sources("timm", "models", "*.py"), re.compile(r"^@register_model\s+def (\w+)", re.M))
    )
    return found or frozenset(import_module("timm").list_models())


@functools.cache
def timm_weights() -> frozenset[str]:
    """Names of the networks of the installed timm with the tags of their weights, such as ``resnet18.a1_in1k``."""
    pattern = re.compile(r"['\"](\w+\.\w+)['\"]\s*:")
    names = (name for (name,) in _matches(_sources("timm", "models", "*.py"), pattern))
    return frozenset(name for name in names if name.partition(".")[0] in timm_networks())


def timm_mentions(name: str) -> bool:
    """Whether the installed timm's models mention `name` in quotes, as former names and tags of weights are."""
    pattern = re.compile(rf"['\"]{re.escape(name)}['\"]")
    return next(_matches(_sources("timm", "models", "*.py"), pattern), None) is not None


@functools.cache
def timm_optimizers() -> frozenset[str]:
    """Names that timm's optimizer factory knows."""
    pattern = re.compile(r"(?:OptimInfo\(\s*(?:name=)?|register_alias\()['\"](\w+)['\"]")
    found = frozenset(name for (name,) in _matches(_sources("timm", "optim", "_optim_factory.py"), pattern))
    return found or frozenset(import_module("timm.optim").list_optimizers())


def _sources(package: str, *pattern: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    folder, names = pattern
    for root in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(root, folder).glob(names))


def _matches(files: Any, pattern: re.Pattern[str]) -> Iterator[tuple[str, ...]]:
    for path in files:
        yield from (match.groups() for match in pattern.finditer(path.read_text(encoding="utf-8")))
