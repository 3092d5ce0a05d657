"""A run's folder: its config, its header, and its result, which is written last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from softlabels._files import remove_leftovers, write_text
from softlabels.config import read_yaml
from softlabels.errors import RunError
from softlabels.journal import read_result

ANYWHERE = frozenset(
    {
        "device",
        "workers",
        "out",
        "data_dir",
        "cache_dir",
        "cache_size",
        "label_memory",
        "compile",
        "channels_last",
        "track",
    }
)
"""Settings that may change between the parts of one run: they say where it runs, not what it is."""


def config_text(config: BaseModel) -> str:
    """The resolved config as a file that `--config` runs again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def begin(folder: Path, config: BaseModel, header: Sequence[str]) -> None:
    """Leave the config and the header in a run's folder."""
    write_text(folder / "config.yaml", config_text(config))
    write_text(folder / "header.txt", "\n".join(header) + "\n")


def finished(folder: Path, config: BaseModel) -> dict[str, Any] | None:
    """The result of this very run when it is done; None when it is to be begun or gone on with.

    Raises:
        RunError: the folder holds another run; what differs is shown.
    """
    saved = folder / "config.yaml"
    if not saved.exists():
        return None
    before, now = read_yaml(saved), config.model_dump(mode="json")
    differing = [name for name in now if name not in ANYWHERE and before.get(name) != now[name]]
    if differing:
        shown = "; ".join(f"{name}: {before.get(name)!r} there, {now[name]!r} now" for name in differing[:5])
        raise RunError(f"{folder} holds another run ({shown}); choose another --out or remove the folder")
    result = folder / "result.json"
    if not result.exists():
        return None
    remove_leftovers(folder)  # of a process that was killed after its last word
    return read_result(result)
