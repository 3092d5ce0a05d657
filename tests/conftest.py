"""Small worlds that tests share: images on disk, a data set in memory, commands as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from worlds import write_pictures

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: several threads wait for each other


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where shards are copied to and unpacked by what several tests share."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTLABELS_CACHE", str(folder / "shared"))
        yield folder


@pytest.fixture(autouse=True)
def cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards are copied to and unpacked by one test: nothing is there yet."""
    folder = caches / uuid.uuid4().hex
    monkeypatch.setenv("SOFTLABELS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 JPEG files in 3 classes; not to be changed."""
    return write_pictures(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 4 views of the photos by two small random teachers; not to be changed."""
    import softlabels

    out = tmp_path_factory.mktemp("labels") / "shards"
    softlabels.dump(
        teacher=["cnn_tiny", "cnn_small"],
        weights=["random", "random:1"],
        data=str(photos),
        views=4,
        rows_per_shard=5,
        out=str(out),
        device="cpu",
        quiet=True,
    )
    return out


@dataclass
class Outcome:
    """What a command printed and how it ended."""

    exit_code: int
    output: str


@pytest.fixture
def softlabels_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """The command line in this process, run in a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Outcome:
        from softlabels.cli import main

        result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="softlabels")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.output)

    return run


@pytest.fixture
def softlabels_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own."""

    def run(*args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "softlabels.cli", *(str(arg) for arg in args)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False)

    return run
