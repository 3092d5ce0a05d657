"""Stores for tests of what is done with finished labels: made quickly, compared byte by byte, damaged, killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

import softlabels


def dump(out: Path, photos: Path, **settings: Any) -> Path:
    """A store at `out` of what a small teacher says of the photos, five images in a shard."""
    usual: dict[str, Any] = {
        "teacher": ["cnn_tiny"],
        "weights": ["random"],
        "data": str(photos),
        "views": 2,
        "rows_per_shard": 5,
        "batch_size": 8,
        "workers": 0,
        "device": "cpu",
    }
    softlabels.dump(out=str(out), quiet=True, **(usual | settings))
    return out


def shard_bytes(root: Path) -> dict[str, bytes]:
    """Every file of every shard below a store."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.glob("*/**/*"))
        if path.is_file() and path.name != "teacher.json" and not path.name.startswith(".")
    }


def all_bytes(root: Path) -> dict[str, bytes]:
    """Every file below a store."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def flip(shard: Path) -> None:
    """Change one bit of a label in a shard of either format."""
    if shard.is_dir():
        path, place = next(path for path in sorted(shard.rglob("c/**/*")) if path.is_file()), 0
    else:
        with h5py.File(shard) as file:
            path, place = shard, next(iter(file.values())).id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def killed(work: Callable[[], object], until: Callable[[], bool], wait: float = 0.0) -> bool:
    """Do `work` in a child and kill it `wait` seconds after `until` holds; whether it was still at work then."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    while not until() and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(wait)
    try:
        os.kill(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    except (ProcessLookupError, ChildProcessError):
        return False
