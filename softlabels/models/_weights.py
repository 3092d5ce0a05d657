"""Files of weights: described by their own metadata, found in checkpoints by the names they must have, fitted tensor by
tensor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from softlabels.core.config import OBJECT
from softlabels.core.files import whole
from softlabels.errors import ModelError, did_you_mean, in_one_line
from softlabels.models._checkpoints import EXTRA, State, extra_metadata, header, is_safetensors, read_tensors
from softlabels.models._preprocessing import Preprocessing

_log = logging.getLogger(__name__)

BEST = "best.safetensors"
"""The file that stands for a run's folder."""

_VERSION = "1"
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that come from DataParallel, torch.compile and the like, and not from the network."""

_UNCOUNTED = ("num_batches_tracked", "n_averaged", EXTRA)
"""Ends of names that files may lack or have beside a network's own: counters, which play no part in inference."""

_SUM = "softlabels_sha256"
"""Where the header of a file that is written here has its checksum."""


class Candidate(NamedTuple):
    """Weights within a file: the path of their key there ("" for the file itself), and under names without wrappers.

    `beside` are the names of other tensors that lie with them, `missing` counts the wanted ones that do not.
    """

    key: str
    state: State
    beside: tuple[str, ...]
    missing: int = 0


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds: its state dicts by their keys, and the text metadata of a safetensors header.

    `key` is what stands after the colon in ``FILE:KEY``, None where nothing does.
    """

    path: Path
    held: Mapping[str, State] = field(repr=False)
    metadata: dict[str, str]
    key: str | None = None

    @cached_property
    def state(self) -> State:
        """The state dict of a file that holds one alone, under names without wrappers.

        Raises:
            ModelError: there is none, or several.
        """
        # Counters and scales stand in mappings of single numbers.
        states = {key: state for key, state in self.held.items() if any(getattr(t, "ndim", 0) for t in state.values())}
        chosen = self._chosen([Candidate(key, _plain(state), ()) for key, state in states.items()])
        if len(chosen) > 1:
            raise self._ambiguous(chosen)
        if not chosen:
            raise ModelError(f"{self.path} holds no state dict; save one with torch.save(network.state_dict(), FILE)")
        return chosen[0].state

    @cached_property
    def sha256(self) -> str:
        """See `digest`."""
        return digest(self.state)

    def fitting(self, wanted: Iterable[str], what: str, *, heads: Collection[str] = ()) -> Candidate:
        """The weights in the file that have all the `wanted` names, below whatever key or prefix they stand.

        The names of `heads` may stand below another prefix than the rest. Where none have all names, those that have
        the most, which `load_state` then refuses with a reason.

        Raises:
            ModelError: there is no state dict, or there are several with all names; the message says how to choose.
        """
        names = [name for name in unwrapped(wanted) if not name.endswith(_UNCOUNTED)]
        found = [each for key, state in self.held.items() for each in _candidates(key, state, names, heads)]
        if all(each.missing for each in found):  # wrappers around some of the layers alone
            held = {key: _plain(state) for key, state in self.held.items()}
            found += [each for key, state in held.items() for each in _candidates(key, state, names, heads)]
        complete = self._chosen([each for each in found if not each.missing])
        if len(complete) > 1:
            raise self._ambiguous(complete)
        if complete:
            return complete[0]
        near = self._chosen(sorted(found, key=lambda each: each.missing))
        if near:
            return near[0]
        if self.key is not None and found:
            raise ModelError(
                f"{self.path} has no weights of {what} at {self.key!r}; "
                f"{did_you_mean(self.key, [each.key or '.' for each in found if not each.missing] or self.held)}"
            )
        return Candidate("", self.state, ())

    def at(self, candidate: Candidate) -> str:
        """File and key of these weights, as ``FILE:KEY``, which finds them again."""
        return f"{self.path}:{candidate.key}" if candidate.key else str(self.path)

    def log_beside(self, candidate: Candidate) -> None:
        """Warn of tensors that are passed over in a file of which nobody named a part."""
        if candidate.beside and self.key is None:
            count, first = len(candidate.beside), candidate.beside[0]
            where = self.at(candidate)
            _log.warning("%s: taken without %d other tensors of the file, such as %s", where, count, first)

    def _chosen(self, candidates: list[Candidate]) -> list[Candidate]:
        if self.key is None:
            return candidates
        exact = [each for each in candidates if each.key == (self.key if self.key != "." else "")]
        return exact or [each for each in candidates if f"{each.key}.".startswith(f"{self.key}.")]

    def _ambiguous(self, candidates: list[Candidate]) -> ModelError:
        keys = [each.key or "." for each in candidates]
        return ModelError(
            f"{self.path} holds several weights: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}; choose one "
            f"by its key, such as `weights={self.path}:{keys[-1]}`"
        )


class Description(BaseModel):
    """What describes a file of weights, so that it can be loaded by nothing but its path.

    `architecture` is a full name such as ``small:cnn_tiny``; ``function:MODULE:NAME`` is recorded but never called.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    classes: int = Field(ge=1)
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing

    @property
    def own_code(self) -> bool:
        """Whether it is a network of the user's own code, which a file of weights may not choose."""
        return self.architecture.startswith(("function:", f"{OBJECT}:"))

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
            raise ModelError(f"{path} has damaged metadata ({in_one_line(problem, 120)})") from problem


def read_weights(path: str | Path) -> Weights:
    """The tensors of a safetensors or torch file (by content, not by suffix); a run's folder means its best weights.

    A torch file is read with ``weights_only=True``. ``FILE:KEY`` means the state dict that lies at KEY in a checkpoint,
    such as ``state_dict_ema`` or ``model.state_dict``.

    A file that softlabels wrote carries a checksum of its tensors and metadata, which is compared.

    Raises:
        ModelError: the file is missing, damaged, holds no tensors, or would need code to be run.
    """
    file, key = _file_and_key(path)
    held, metadata = read_tensors(file)
    if not held:
        raise ModelError(f"{file} holds no state dict; save one with torch.save(network.state_dict(), FILE)")
    if _SUM in metadata and metadata[_SUM] != _checksum(held[""], metadata):
        raise ModelError(f"{file} is damaged: it does not match its checksum; copy it again or train it anew")
    return Weights(file, held, metadata, key)


def read_description(path: str | Path) -> Description | None:
    """The description in the header of the file at `path`; None when it has none.

    Raises:
        ModelError: the file is missing or its metadata is damaged.
    """
    path = weights_file(path)
    if not is_safetensors(path):
        return None
    try:
        metadata = header(path)
    except Exception as problem:
        raise ModelError(f"{path} is not a whole safetensors file ({in_one_line(problem)})") from problem
    return Description.from_metadata(metadata, path)


def write_weights(path: Path, state: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write `state` as safetensors with `metadata` and a checksum of both in its header, whole or not at all.

    The same state and metadata make the same bytes.

    Names are written without the wrappers of DataParallel and the like; plain extra states go into the header.

    Raises:
        StoreError: the place cannot be written.
        ModelError: an extra state cannot be written.
    """
    plain = _plain(state)
    # safetensors refuses tensors that share memory, which tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in plain.items()
        if isinstance(tensor, Tensor)
    }
    text = {**metadata, **extra_metadata(plain)}
    with whole(path) as partial:
        safetensors.torch.save_file(tensors, partial, metadata={**text, _SUM: _checksum(tensors, text)})
        _sort_metadata(partial)


def _checksum(state: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the tensors' digest and of the metadata, without the checksum itself."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    text = json.dumps([digest(tensors), sorted((name, value) for name, value in metadata.items() if name != _SUM)])
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
    """The file that `path` means, without its KEY: itself, or `best.safetensors` in it when it is a folder.

    Raises:
        ModelError: there is no such file.
    """
    return _file_and_key(path)[0]


def weights_exist(path: str | Path) -> bool:
    """Whether there is a file or folder at ``FILE`` or ``FILE:KEY``."""
    return any(Path(each).expanduser().exists() for each in (path, str(path).rpartition(":")[0]) if each)


def with_key(weights: str, key: str) -> str:
    """``FILE:KEY`` of what a user wrote as ``FILE``; what names a key already stays."""
    return f"{weights}:{key}" if key and Path(weights).expanduser().exists() else weights


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of names: the same weights, the same digest.

    Extra states that are no tensors count where they are plain values, by their JSON.
    """
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if not isinstance(tensor, Tensor):
            with contextlib.suppress(TypeError, ValueError):
                total.update(f"{name}\0{json.dumps(tensor, sort_keys=True)}\0".encode())
            continue
        tensor = tensor.detach().cpu().contiguous()
        total.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_state(
    network: nn.Module,
    state: Mapping[str, Any],
    where: str,
    what: str,
    *,
    leave: Collection[str] = (),
    ignore: tuple[str, ...] = (),
) -> None:
    """Copy `state` into `network`, all but the names in `leave`; names that begin with `ignore` may be there as well.

    Names are compared without the wrappers of DataParallel and the like, on both sides.

    Raises:
        ModelError: a tensor is missing, too much, or of another shape; the first one is named.
    """
    wanted = network.state_dict()
    compare_tensors(wanted, state, where, what, leave=leave, ignore=ignore)
    held = _plain(state)
    loaded = {raw: held[name] for name, raw in unwrapped(wanted).items() if name in held and name not in leave}
    try:
        network.load_state_dict(loaded, strict=False)
    except Exception as problem:  # load hooks and set_extra_state are the network's own
        reason = f"{type(problem).__name__}: {in_one_line(problem)}"
        raise ModelError(f"{where} cannot be loaded into {what} ({reason})") from problem


def load_weights(network: nn.Module, weights: str, what: str) -> tuple[str, Description | None]:
    """Copy the weights at ``FILE`` or ``FILE:KEY`` into a network of any make.

    Returns ``FILE:KEY`` under which they were found, and the description in the file.

    Raises:
        ModelError: they cannot be read or do not fit; the first tensor that differs is named.
    """
    file = read_weights(weights)
    found = file.fitting(network.state_dict(), what)
    file.log_beside(found)
    load_state(network, found.state, file.at(found), what)
    return with_key(weights, found.key), Description.from_metadata(file.metadata, file.path)


def compare_tensors(
    network: Mapping[str, Any],
    state: Mapping[str, Any],
    where: str,
    what: str,
    *,
    leave: Collection[str] = (),
    ignore: tuple[str, ...] = (),
) -> None:
    """Compare names and shapes of `state` with a `network`'s own state dict, whose tensors may be without memory.

    Raises:
        ModelError: as for `load_state`.
    """
    wanted = {name: network[raw] for name, raw in unwrapped(network).items() if name not in leave}
    state = _plain(state)
    for name, tensor in wanted.items():
        held = state.get(name)
        if isinstance(held, Tensor) and isinstance(tensor, Tensor) and held.shape != tensor.shape:
            shapes = f"{tuple(held.shape)} in the file and {tuple(tensor.shape)} in the network"
            raise ModelError(f"{where} does not fit {what}: {name} is {shapes}")
        # Files from before torch 0.4.1 lack the counter of batches.
        if name not in state and not name.endswith(_UNCOUNTED):
            first = next(iter(state), "nothing")
            raise ModelError(f"{where} does not fit {what}: it has no {name} (its first tensor is {first})")
    extra = [
        name
        for name in state
        if name not in wanted
        and name not in leave
        and not name.startswith(ignore or ("\0",))
        and not name.endswith(("n_averaged", EXTRA))
    ]
    if extra:
        raise ModelError(f"{where} does not fit {what}: its {extra[0]} has no place there ({len(extra)} such in all)")


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """The names without the parts that wrappers put into them, each with the name it comes from.

    Names stay as they are where two would become one.
    """
    raw = list(names)
    plain = {_without(_WRAPPERS, name.split(".")): name for name in raw}
    return plain if len(plain) == len(raw) and "" not in plain else {name: name for name in raw}


def _plain(state: Mapping[str, Any]) -> State:
    return {name: state[raw] for name, raw in unwrapped(state).items() if not name.endswith("n_averaged")}


def _candidates(key: str, state: State, names: list[str], heads: Collection[str]) -> Iterable[Candidate]:
    """What stands in `state` below each prefix under which any of the wanted `names` do.

    Wrappers at the beginning of a name are part of the prefix, so that what lies beside the wrapped network is beside.
    """
    wanted, places = set(names), Counter[str]()
    # A network may have a part of such a name itself.
    wrappers = frozenset[str]() if any(part in _WRAPPERS for name in names for part in name.split(".")) else _WRAPPERS
    for name in state:
        parts = name.split(".")
        for cut in range(len(parts)):
            if parts[cut] not in wrappers and _without(wrappers, parts[cut:]) in wanted:
                places[".".join((*parts[:cut], ""))] += 1
    for prefix in places or {"": 0}:
        # Another whole network below this one, such as a teacher beside its student, is a candidate of its own.
        others = tuple(
            each for each, count in places.items() if count == len(names) and each != prefix and each.startswith(prefix)
        )
        below = [name for name in state if name.startswith(prefix) and not name.startswith(others)]
        raw = {_without(wrappers, name.removeprefix(prefix).split(".")): name for name in below}
        raw |= _head_elsewhere(state, raw, heads)
        taken = set(raw.values())
        yield Candidate(
            key=_label(key, prefix),
            state={name: state[other] for name, other in raw.items() if not name.endswith("n_averaged")},
            beside=tuple(name for name in state if name not in taken and not name.endswith("n_averaged")),
            missing=sum(name not in raw for name in names),
        )


def _without(wrappers: frozenset[str], parts: Iterable[str]) -> str:
    return ".".join(part for part in parts if part not in wrappers)


def _label(key: str, prefix: str) -> str:
    """The path of a candidate's key and prefix; of wrappers alone nothing is left."""
    path = ".".join(part for part in (key, prefix.rstrip(".")) if part)
    return path if _without(_WRAPPERS, path.split(".")) else ""


def _head_elsewhere(state: State, raw: Mapping[str, str], heads: Collection[str]) -> dict[str, str]:
    """Where the head's tensors stand when they are not beside the others, as when one module holds each."""
    lost = [name for name in heads if name not in raw]
    if not lost or not raw:
        return {}
    prefixes = [name.removesuffix(lost[0]) for name in state if name.endswith(f".{lost[0]}")]
    places = [{name: f"{prefix}{name}" for name in lost} for prefix in prefixes]
    complete = [place for place in places if all(other in state for other in place.values())]
    return complete[0] if len(complete) == 1 else {}


def _file_and_key(path: str | Path) -> tuple[Path, str | None]:
    """The file that ``FILE`` or ``FILE:KEY`` means, and the key.

    Raises:
        ModelError: there is no such file.
    """
    file, key = Path(path).expanduser(), None
    text, colon, after = str(path).rpartition(":")
    if not file.exists() and colon and Path(text).expanduser().exists():
        file, key = Path(text).expanduser(), after or "."
    if file.is_dir():
        if not (file / BEST).is_file():
            raise ModelError(f"the folder {file} holds no {BEST}; {_instead(file)}")
        return file / BEST, key
    if not file.is_file():
        raise ModelError(f"no file of weights at {file}; check the path, or train one with `softlabels train`")
    return file, key


def _instead(folder: Path) -> str:
    """What to do about a folder without weights."""
    if (folder / "config.yaml").is_file():
        return "its run has not come to a first evaluation; finish it with the command that began it"
    runs = sorted(path.parent for path in folder.glob(f"*/{BEST}"))
    return f"give one of the runs in it, such as {runs[0]}" if runs else "give a run's folder, or a file of weights"
