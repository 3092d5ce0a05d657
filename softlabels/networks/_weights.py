"""Files of weights: read without running any code, described by their own metadata, fitted tensor by tensor."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import struct
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from softlabels._files import whole
from softlabels.errors import ModelError
from softlabels.networks._preprocessing import Preprocessing

State = dict[str, Tensor]

BEST = "best.safetensors"
"""The file that stands for a run's folder."""

_VERSION = "1"
_SUM = "softlabels_sha256"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module", "params", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Weights:
    """A state dict read from a file, and the text metadata that a safetensors header may hold."""

    path: Path
    state: State = field(repr=False)
    metadata: dict[str, str]

    @cached_property
    def sha256(self) -> str:
        """See `digest`."""
        return digest(self.state)


class Description(BaseModel):
    """What a file of weights says of itself, so that it can be loaded by nothing but its path.

    `architecture` is a full name such as ``small:cnn_tiny``; ``function:MODULE:NAME`` is recorded but never called.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    classes: int = Field(ge=1)
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing

    def to_metadata(self) -> dict[str, str]:
        """Text for the header of a safetensors file."""
        return {
            "softlabels": _VERSION,
            "architecture": self.architecture,
            "classes": str(self.classes),
            "class_names": json.dumps(self.class_names, ensure_ascii=False),
            "preprocessing": self.preprocessing.model_dump_json(),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> Description | None:
        """What `to_metadata` wrote; None when the file has no such metadata.

        Raises:
            ModelError: the metadata is of a later version or damaged; the message names `path`.
        """
        version = metadata.get("softlabels")
        if version is None:
            return None
        if version != _VERSION:
            raise ModelError(
                f"{path} was written by a later softlabels (metadata version {version}); update softlabels"
            )
        try:
            return cls(
                architecture=metadata["architecture"],
                classes=int(metadata["classes"]),
                class_names=json.loads(metadata["class_names"]),
                preprocessing=json.loads(metadata["preprocessing"]),
            )
        except (KeyError, ValueError, TypeError, RecursionError, ValidationError) as problem:
            raise ModelError(f"{path} has damaged metadata ({' '.join(str(problem).split())[:120]})") from problem


def read_weights(path: str | Path) -> Weights:
    """The tensors of a safetensors or torch file (by content, not by suffix); a run's folder means its best weights.

    A torch file is read with ``weights_only=True``. A state dict nested under a usual key is found, and the prefixes
    that DataParallel and torch.compile put before every name are taken off.

    A file that softlabels wrote carries a checksum of its tensors and metadata, which is compared.

    Raises:
        ModelError: the file is missing, damaged, holds no tensors, or would need code to be run.
    """
    path = weights_file(path)
    try:
        if _is_safetensors(path):
            state, metadata = safetensors.torch.load_file(path), _header(path)
            if _SUM in metadata and metadata[_SUM] != _checksum(state, metadata):
                raise ValueError("it does not match its checksum")
            return Weights(path, _stripped(state), metadata)
        # Checkpoints of torchvision's own training scripts carry their arguments in such a namespace.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise _needs_code(path, problem) from problem
    except Exception as problem:
        # Readers of damaged files raise nearly anything: EOFError, RuntimeError, KeyError, UnicodeDecodeError, ...
        reason = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise ModelError(f"{path} is not a whole safetensors or torch file of weights ({reason})") from problem
    return Weights(path, _stripped(_state_within(content, path)), {})


def read_description(path: str | Path) -> Description | None:
    """What the file at `path` says of itself, from its header alone; None when it says nothing.

    Raises:
        ModelError: the file is missing or its metadata is damaged.
    """
    path = weights_file(path)
    if not _is_safetensors(path):
        return None
    try:
        metadata = _header(path)
    except Exception as problem:
        raise ModelError(
            f"{path} is not a whole safetensors file ({' '.join(str(problem).split())[:160]})"
        ) from problem
    return Description.from_metadata(metadata, path)


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `state` as safetensors with `metadata` and a checksum of both in its header, whole or not at all.

    The same state and metadata make the same bytes.

    Raises:
        StoreError: the place cannot be written.
    """
    # safetensors refuses tensors that share memory, which tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    with whole(path) as partial:
        safetensors.torch.save_file(tensors, partial, metadata={**metadata, _SUM: _checksum(tensors, metadata)})
        _sort_metadata(partial)


def _checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the tensors' digest and of the metadata, without the checksum itself."""
    text = json.dumps([digest(state), sorted((name, value) for name, value in metadata.items() if name != _SUM)])
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _sort_metadata(path: Path) -> None:
    """Write the metadata in the header of a safetensors file in the order of its names; the library's is by chance."""
    with path.open("r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # it is the same text, in another order
            file.seek(8)
            file.write(text.ljust(size))


def weights_file(path: str | Path) -> Path:
    """The file that `path` means: itself, or `best.safetensors` in it when it is a folder.

    Raises:
        ModelError: there is no such file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if not (path / BEST).is_file():
            raise ModelError(f"the folder {path} holds no {BEST}; give the file of weights itself")
        return path / BEST
    if not path.is_file():
        raise ModelError(f"no file of weights at {path}; check the path, or train one with `softlabels train`")
    return path


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of names: the same weights, the same digest."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def fit(
    network: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    what: str,
    *,
    leave: Collection[str] = (),
    ignore: tuple[str, ...] = (),
) -> None:
    """Copy `state` into `network`, all but the names in `leave`; names that begin with `ignore` may be there as well.

    Raises:
        ModelError: a tensor is missing, too much, or of another shape; the first one is named.
    """
    wanted = {name: tensor for name, tensor in network.state_dict().items() if name not in leave}
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} in the file and {tuple(tensor.shape)} in the network"
            raise ModelError(f"{where} does not fit {what}: {name} is {shapes}")
        # Files from before torch 0.4.1 lack this counter, which plays no part in inference.
        if name not in state and not name.endswith("num_batches_tracked"):
            held = next(iter(state), "nothing")
            raise ModelError(f"{where} does not fit {what}: it has no {name} (its first tensor is {held})")
    extra = [
        name for name in state if name not in wanted and name not in leave and not name.startswith(ignore or ("\0",))
    ]
    if extra:
        raise ModelError(f"{where} does not fit {what}: its {extra[0]} has no place there ({len(extra)} such in all)")
    network.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)


def _state_within(content: Any, path: Path) -> State:
    """The state dict that `content` is or holds."""
    for _ in range(3):
        if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(name): tensor for name, tensor in content.items()}
        inner = [
            content[key] for key in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
        ]
        if not inner:
            break
        content = inner[0]
    raise ModelError(f"{path} holds no state dict; save one with torch.save(network.state_dict(), FILE)")


def _stripped(state: State) -> State:
    # torch's averaged models count their updates beside the wrapped network.
    state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    while state:
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a JSON header, then its brace."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size


def _header(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _needs_code(path: Path, problem: Exception) -> ModelError:
    text = " ".join(str(problem).split())
    advice = "save the weights alone, with torch.save(network.state_dict(), FILE) or as safetensors"
    if "GLOBAL " not in text:
        return ModelError(f"{path} was refused: it is another program's pickle, or damaged; {advice}")
    culprit = text.partition("GLOBAL ")[2].split(" ")[0]
    return ModelError(f"{path} was refused: to load it, code of its own would have to run ({culprit}); {advice}")
