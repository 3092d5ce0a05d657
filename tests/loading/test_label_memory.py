"""Decoded labels of compressed stores: one memory for all processes of a machine, as large as it may be."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from moving import dump
from safetensors.torch import load_file

import softlabels
from softlabels.store._folder import Folder
from softlabels.training.distributed import SINGLE, Ranks

VIEWS = 2
SHARDS = 6


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("memory") / "shards"
    return dump(out, photos, views=VIEWS, rows_per_shard=3, compression="zstd")


def settings(shards: Path, photos: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "student": "process_worker:student",
        "size": 16,
        "labels": str(shards),
        "eval_data": str(photos),
        "batch_size": 4,
        "epochs": VIEWS,
        "device": "cpu",
        "workers": 0,
        "out": str(out),
        **more,
    }


def start(given: dict[str, Any], notes: Path, processes: int = 2) -> list[int]:
    """The processes of a run; in the files of `notes` they say what they decode."""
    notes.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(processes):
        child = os.fork()  # with all modules there already
        if child == 0:
            status = 1
            try:
                names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ.update({**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
                take_part(given, notes / f"{rank}.txt", notes / "slow")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return children


def take_part(given: dict[str, Any], notes: Path, slow: Path) -> None:
    fill = Folder.fill

    def noted(self: Folder, chunk: Any, shard: Any, out: Any) -> None:
        with notes.open("a") as file:
            file.write(f"{shard.run} {chunk.view} {chunk.array}\n")
        if slow.exists():
            time.sleep(0.1)
        fill(self, chunk, shard, out)

    Folder.fill = noted  # type: ignore[method-assign]
    softlabels.train(quiet=True, **given)


def end(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def decoded(notes: Path) -> Counter[str]:
    return Counter(line for path in notes.glob("*.txt") for line in path.read_text().splitlines())


def left_behind() -> set[str]:
    places = [Path("/dev/shm"), Path("/tmp")]
    return {str(path) for place in places if place.is_dir() for path in place.glob("*softlabels*")}


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="processes find each other's memory in /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_one_process_of_a_machine_decoded_the_others_use(
    shards: Path, photos: Path, tmp_path: Path, workers: int
) -> None:
    """Two runs at a time on one store; one is killed in the middle, the other decodes each view of a shard once."""
    before = left_behind()
    whole, broken = (settings(shards, photos, tmp_path / name, workers=workers) for name in ("whole", "broken"))
    (tmp_path / "broken-notes").mkdir()
    (tmp_path / "broken-notes/slow").touch()
    killed = start(broken, tmp_path / "broken-notes")
    started = start(whole, tmp_path / "notes")
    for _ in range(1200):
        if decoded(tmp_path / "broken-notes").total() > 2:
            break
        time.sleep(0.02)
    for child in killed:
        os.kill(child, signal.SIGKILL)
    assert end(killed) == [-signal.SIGKILL] * 2
    assert end(started) == [0, 0]
    counts = decoded(tmp_path / "notes")
    arrays = len(softlabels.open_labels(shards).of().card.layout)
    assert set(counts.values()) == {1}
    assert len(counts) == SHARDS * VIEWS * arrays
    assert left_behind() <= before
    assert not (tmp_path / "broken/result.json").exists()
    assert end(start(broken, tmp_path / "again")) == [0, 0]
    some, others = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(some[name], others[name]) for name in some)


def test_one_process_alone_is_the_first_of_its_machine() -> None:
    assert SINGLE.machine_broadcast("mine") == "mine"
    assert Ranks().machine_broadcast({"a": 1}) == {"a": 1}
