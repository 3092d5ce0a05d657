"""Everything a run needs to go on, as one folder of safetensors and JSON that exists only when it is whole.

``state.json`` holds the state without its tensors, the digest of these, and a checksum of both.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from softlabels.core.files import read_json, whole
from softlabels.errors import RunError
from softlabels.models import digest

KEPT = 2
"""Checkpoints that are kept: should the newest be damaged, the one before it serves."""

_TENSOR, _TUPLE, _DTYPE = "$tensor", "$tuple", "$dtype"
_DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
_STEP = re.compile(r"step-(\d{1,18})")


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `state` (nested mappings and lists of tensors and plain values) under `folder`, then drop older ones."""
    tensors: dict[str, Tensor] = {}
    skeleton = _part(state, "", tensors)
    path = folder / f"step-{step:09d}"
    if not path.exists():
        body = {"state": skeleton, "tensors": digest(tensors)}
        with whole(path) as partial:
            partial.mkdir()
            save_file(tensors, partial / "tensors.safetensors")
            (partial / "state.json").write_text(json.dumps({**body, "sha256": _sum(body)}), encoding="utf-8")
    for older in _steps(folder)[:-KEPT]:
        shutil.rmtree(older, ignore_errors=True)
    return path


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint under `folder`; None when there is none."""
    steps = _steps(folder)
    return int(steps[-1].name.removeprefix("step-")) if steps else None


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any], list[str]] | None:
    """The newest sound checkpoint under `folder` as (step, state, what is wrong with newer ones); None without any.

    Tensors are on the CPU. Damaged checkpoints that are newer are removed, since their steps are made again.

    Raises:
        RunError: all that are there are damaged; the newest is named.
    """
    problems: list[str] = []
    steps = _steps(folder)
    for path in reversed(steps):
        try:
            state = _loaded(path)
        except RunError as problem:
            problems.append(str(problem))
            continue
        for damaged in steps[steps.index(path) + 1 :]:
            shutil.rmtree(damaged, ignore_errors=True)
        return int(path.name.removeprefix("step-")), state, problems
    if problems:
        raise RunError(f"{problems[0]}, and no other one is sound; remove {folder} to start this run anew")
    return None


def _loaded(path: Path) -> dict[str, Any]:
    try:
        body = read_json(path / "state.json", error=RunError)
        tensors = load_file(path / "tensors.safetensors")
        if set(body) == {"state", "tensors", "sha256"}:
            found = body.pop("sha256")
            if found != _sum(body) or body["tensors"] != digest(tensors):
                raise ValueError("it does not match its checksum")
            body = body["state"]
        elif set(body) != {"keys", "values"}:  # as the first versions wrote it
            raise ValueError("it holds no state")
        state = _joined(body, tensors)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise RunError(f"checkpoint {path} is damaged ({' '.join(str(problem).split())[:160]})") from problem
    return state


def _sum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def after_checkpoint(state: Mapping[str, Any]) -> Any:
    """`state` as `load_checkpoint` gives it back, without a disk.

    Raises:
        TypeError: it holds what a checkpoint cannot.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.loads(json.dumps(_part(state, "", tensors)))
    return _joined(skeleton, load(save(tensors)))


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _STEP.fullmatch(path.name) and path.is_dir())


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
