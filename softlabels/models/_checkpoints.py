"""Files of weights as they lie on disk: what they are, and every state dict in them, read without running code."""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from softlabels.core.reading import kind_at
from softlabels.errors import ModelError, in_one_line

State = dict[str, Tensor]
"""Tensors by name. Under names that end in ``_extra_state`` there may be plain values instead of tensors."""

EXTRA = "_extra_state"
"""How torch ends the name of what a module's `get_extra_state` returns."""

_PLAIN = frozenset(
    f"builtins.{name}"
    for name in ("bool", "bytearray", "complex", "dict", "float", "int", "list", "object", "set", "str", "tuple")
)
_EXTRA_METADATA = "extra_states"
_SAVE = "save the weights alone, with torch.save(network.state_dict(), FILE) or as safetensors"
_WEIGHTS = frozenset({"zip", "torch", "pickle", "safetensors"})
_DEPTH = 6
"""Mappings within mappings that are looked through for state dicts."""

_BESIDE = frozenset(
    (
        *("numpy", "argparse", "pathlib", "collections", "datetime", "omegaconf"),
        *("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "mmengine", "mmcv"),
        *("mmcls", "mmpretrain", "fairseq", "yacs", "addict", "easydict"),
        *("ml_collections", "timm", "transformers"),
    )
)
"""Packages whose objects trainers keep beside the weights. They are passed over: stand-ins take their place."""


def read_tensors(path: Path) -> tuple[dict[str, State], dict[str, str]]:
    """Every state dict in a safetensors or torch file by the path of its key (``a.b``, "" for the file itself), and the
    text metadata of a safetensors header.

    Raises:
        ModelError: the file is damaged or something else, or would need code to be run.
    """
    _refuse_other_kinds(path)
    try:
        if is_safetensors(path):
            metadata = header(path)
            return {"": _with_extras(safetensors.torch.load_file(path), metadata)}, metadata
        with torch.serialization.safe_globals(_stand_ins(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise _needs_code(path, problem) from problem
    except Exception as problem:
        # Readers of damaged files raise nearly anything: EOFError, RuntimeError, KeyError, UnicodeDecodeError, ...
        why = in_one_line(problem)
        raise ModelError(f"{path} is not a whole safetensors or torch file of weights ({why})") from problem
    if isinstance(content, _StandIn):
        raise ModelError(f"{path} holds a pickled {type(content).__name__}, no weights; {_SAVE}")
    _refuse_repetition(path, content)
    return dict(_states(content)), {}


def header(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file."""
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def extra_metadata(state: Mapping[str, Any]) -> dict[str, str]:
    """The extra states that are no tensors, as text for a header; nothing where there are none.

    Raises:
        ModelError: one of them is not of plain values.
    """
    extras = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in extras.items():
        try:
            if json.loads(json.dumps(value)) == value:
                continue
        except (TypeError, ValueError):
            pass
        raise ModelError(
            f"{name} is a {type(value).__name__}, which cannot be written with the weights; let get_extra_state return "
            f"a tensor or plain values as JSON has them"
        )
    return {_EXTRA_METADATA: json.dumps(extras, sort_keys=True)} if extras else {}


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a JSON header, then its brace."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size


def _with_extras(state: State, metadata: Mapping[str, str]) -> State:
    extras = json.loads(metadata.get(_EXTRA_METADATA, "{}"))
    return {**state, **{name: value for name, value in extras.items() if name.endswith(EXTRA)}}


def _refuse_other_kinds(path: Path) -> None:
    kind = kind_at(path)
    if kind is None or kind.name in _WEIGHTS:
        if kind is not None and kind.name == "zip":
            _refuse_other_zips(path)
        return
    if kind.name == "torchscript":
        raise ModelError(
            f"{path} is a TorchScript file, a program; save the weights alone, with "
            f"torch.save(torch.jit.load(FILE).state_dict(), OTHER), or use it as module:function"
        )
    if kind.name == "json" and b'"weight_map"' in path.read_bytes()[: 1 << 20]:
        raise ModelError(f"{path} is the index of weights in several files; join these into one file of safetensors")
    raise ModelError(f"{path} is no file of weights but {kind}" + ("" if kind.advice else "; give the weights' file"))


def _refuse_other_zips(path: Path) -> None:
    """Raises ModelError for zip archives that hold no data.pkl."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return
    # The third is what torch before 2.7 writes.
    programs = ("archive_format", "archive_version", "serialized_exported_program.json")
    if any(name.endswith(programs) for name in names):
        what = "a program of torch.export, not weights; use it as module:function"
    elif names and all(name.endswith(".npy") for name in names):
        what = "an archive of NumPy arrays; save them as safetensors"
    else:
        what = "a zip archive without weights of torch; unpack it"
    raise ModelError(f"{path} is {what}")


def _refuse_repetition(path: Path, content: Any) -> None:
    """Raises ModelError for tensors that claim to be larger than their file: views that repeat a few bytes, which would
    take that memory once they are copied."""
    most = path.stat().st_size
    for key, state in _states(content):
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.numel() * tensor.element_size() > most:
                where = f"{key}.{name}" if key else name
                raise ModelError(f"{path} is refused: its {where} is larger than the file, which has {most:,} bytes")


def _states(
    content: Any, key: str = "", depth: int = _DEPTH, seen: set[int] | None = None
) -> Iterator[tuple[str, State]]:
    """Every mapping with tensors in `content`, as a state dict of these, by the path of its key."""
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping) or id(content) in seen or not depth:
        return
    seen.add(id(content))
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    state = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if state:
        yield key, {**state, **{name: value for name, value in named.items() if name.endswith(EXTRA)}}
    for name, value in named.items():
        yield from _states(value, f"{key}.{name}" if key else name, depth - 1, seen)


class _StandIn(list[Any]):
    """Takes the place of an object that is kept beside the weights. It keeps nothing and runs nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return list.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __setstate__(self, state: Any) -> None:
        pass


class _MappingStandIn:
    """As `_StandIn`, of a mapping, which torch's reader fills in if it is one of torch's own kinds."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def _stand_ins(path: Path) -> list[Any]:
    """Stand-ins for the callables of `_BESIDE` that the file names; of old torch files for the commonest."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:
        names = [
            "argparse.Namespace",
            *(f"numpy{core}.multiarray.scalar" for core in (".core", "._core")),
            "numpy.dtype",
        ]
    beside = [name for name in names if name.partition(".")[0] in _BESIDE or name in _PLAIN]
    made = []
    for name in beside:
        kind = _MappingStandIn if re.search(r"[dD]ict$", name) else _StandIn
        made.append((type(name, (kind,), {}), name))
    return made


def _needs_code(path: Path, problem: Exception) -> ModelError:
    text = in_one_line(problem, 10_000)
    if "GLOBAL " not in text:
        return ModelError(f"{path} was refused: it is another program's pickle, or damaged; {_SAVE}")
    culprit = text.partition("GLOBAL ")[2].split(" ")[0]
    what = "to load it, code of its own would have to run"
    if _holds_a_module(path, culprit):
        what = "it is a whole pickled network, and to load it its code would have to run"
    return ModelError(f"{path} was refused: {what} ({culprit}); {_SAVE}")


def _holds_a_module(path: Path, culprit: str) -> bool:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:
        names = [culprit]
    return any(name.startswith(("torch.nn.modules.", "torchvision.models.", "timm.models.")) for name in names)
