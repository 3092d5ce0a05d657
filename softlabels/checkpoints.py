"""Everything a run needs to go on, as one folder of safetensors and JSON that exists only when it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from softlabels._files import read_json, whole
from softlabels.errors import RunError

_TENSOR, _TUPLE, _DTYPE = "$tensor", "$tuple", "$dtype"
_DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `state` (nested mappings and lists of tensors and plain values) under `folder`, then drop older ones."""
    tensors: dict[str, Tensor] = {}
    skeleton = _part(state, "", tensors)
    path = folder / f"step-{step:09d}"
    if not path.exists():
        with whole(path) as partial:
            partial.mkdir()
            save_file(tensors, partial / "tensors.safetensors")
            (partial / "state.json").write_text(json.dumps(skeleton), encoding="utf-8")
    for older in _steps(folder)[:-1]:
        shutil.rmtree(older, ignore_errors=True)
    return path


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint under `folder`; None when there is none."""
    steps = _steps(folder)
    return int(steps[-1].name.removeprefix("step-")) if steps else None


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint under `folder` as (step, state), tensors on the CPU; None when there is none.

    Raises:
        RunError: it is damaged; the message names it.
    """
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    try:
        tensors = load_file(newest / "tensors.safetensors")
        skeleton = read_json(newest / "state.json", error=RunError)
        return int(newest.name.removeprefix("step-")), _joined(skeleton, tensors)
    except (SafetensorError, KeyError, OSError) as problem:
        raise RunError(f"checkpoint {newest} is damaged ({problem}); remove it to start this run anew") from problem


def after_checkpoint(state: Mapping[str, Any]) -> Any:
    """`state` as `load_checkpoint` gives it back, without a disk.

    Raises:
        TypeError: it holds what a checkpoint cannot.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.loads(json.dumps(_part(state, "", tensors)))
    return _joined(skeleton, load(save(tensors)))


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _part(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor moved to `tensors` and its name left in its place."""
    if isinstance(value, Tensor):
        # Cloned, since safetensors refuses tensors that share memory (tied weights).
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {
            "keys": [[type(key).__name__, str(key)] for key in value],
            "values": [_part(inner, f"{path}/{key}", tensors) for key, inner in value.items()],
        }
    if isinstance(value, list | tuple):
        parts = [_part(inner, f"{path}/{i}", tensors) for i, inner in enumerate(value)]
        return {_TUPLE: parts} if isinstance(value, tuple) else parts
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    return value


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_joined(inner, tensors) for inner in value]
    if isinstance(value, dict) and _TENSOR in value:
        return tensors[value[_TENSOR]]
    if isinstance(value, dict) and _TUPLE in value:
        return tuple(_joined(inner, tensors) for inner in value[_TUPLE])
    if isinstance(value, dict) and _DTYPE in value:
        return _DTYPES[value[_DTYPE]]
    if isinstance(value, dict):
        # JSON has no integer keys, an optimizer's state has nothing else.
        keys = [int(text) if kind == "int" else text for kind, text in value["keys"]]
        return dict(zip(keys, (_joined(inner, tensors) for inner in value["values"]), strict=True))
    return value
