"""Published weights: what is known of them, and their files from the local cache or fetched once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from softlabels.errors import ModelError
from softlabels.models._preprocessing import Preprocessing

PATIENCE = 10.0
"""Seconds without an answer after which a server counts as out of reach."""


@dataclass(frozen=True)
class PublishedWeights:
    """`name` as the library calls them, `file` where they lie once fetched, `preprocessing` that of their evaluation.

    `licence` and `class_names` are None and empty where the library does not state them. `load` gives the state dict
    and raises ModelError when the file is neither here nor to be fetched.
    """

    name: str
    url: str
    file: Path
    classes: int
    class_names: tuple[str, ...]
    licence: str | None
    preprocessing: Preprocessing
    load: Callable[[], dict[str, Tensor]]


def cached_file(url: str) -> Path:
    """Where torch.hub keeps the file of `url` (below ``$TORCH_HOME``)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def download(url: str, what: str) -> Path:
    """The file of `url` in torch.hub's folder, downloaded when it is not there; its name's hash is checked.

    Raises:
        ModelError: it is not there and cannot be downloaded; the message names `what`, the file and `weights`.
    """
    file = cached_file(url)
    if file.exists():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        match = torch.hub.HASH_REGEX.search(file.name)
        with _socket_timeout(), contextlib.redirect_stdout(sys.stderr):
            torch.hub.download_url_to_file(url, str(file), match[1] if match else None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, ValueError) as problem:
        raise out_of_reach(what, url, file, problem) from problem
    return file


def file_sha256(file: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def out_of_reach(what: str, url: str, file: Path | None, problem: Exception) -> ModelError:
    """The error for weights that are neither here nor can be fetched; `file` is where a copy would be found."""
    reason = " ".join(str(getattr(problem, "reason", problem)).split()) or type(problem).__name__
    there = f"put the file from {url} at {file}, or give it as" if file else f"download {url} elsewhere and give it as"
    return ModelError(
        f"pretrained weights {what} are not on this machine and could not be downloaded ({reason}); {there} "
        f"`weights=FILE`"
    )


def check_reachable(url: str) -> None:
    """Raises OSError within PATIENCE seconds when `url` does not answer."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise OSError("HF_HUB_OFFLINE is set")
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
        pass


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """New sockets give up after PATIENCE seconds within the block; torch.hub sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
