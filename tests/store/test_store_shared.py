"""Decoded labels in memory that processes share."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store.stores import card, filled, make, of_shard, values

from softlabels.errors import StoreError
from softlabels.store import TeacherLabels, open_store
from softlabels.store._folder import Folder

ROWS, VIEWS = np.arange(50), np.arange(50) % 3


def check(labels: TeacherLabels) -> None:
    for name, array in labels.take(ROWS, VIEWS).items():
        np.testing.assert_array_equal(array, values(50)[name][VIEWS, ROWS])


def in_a_fork(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise StoreError("decoded again")

    monkeypatch.setattr(Folder, "fill", fill)


def test_what_a_forked_process_decoded_its_parent_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = filled(tmp_path / "s", "hdf5", "zstd")
    labels.share()
    assert in_a_fork(lambda: check(labels)) == 0
    forbid_decoding(monkeypatch)
    check(labels)
    assert in_a_fork(lambda: check(labels)) == 0


def test_what_a_spawned_process_decoded_its_parent_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = filled(tmp_path / "s", "zarr", "zstd")
    labels.share(1 << 20)
    process = multiprocessing.get_context("spawn").Process(target=check, args=(labels,))
    process.start()
    process.join()
    assert process.exitcode == 0
    forbid_decoding(monkeypatch)
    check(labels)
    check(pickle.loads(pickle.dumps(labels)))


def test_labels_that_outlive_their_maker_are_decoded_again(tmp_path: Path) -> None:
    filled(tmp_path / "s", "hdf5", "zstd")
    script = (
        "import pickle, sys; from softlabels.store import open_store; "
        f"labels = open_store({str(tmp_path / 's')!r}).teacher('cnn'); labels.share(1 << 20); "
        "sys.stdout.buffer.write(pickle.dumps(labels))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    check(pickle.loads(done.stdout))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="processes find each other's memory in /proc")
def test_memory_that_was_adopted_outlives_its_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "s", "hdf5", "zstd")
    reading, writing = os.pipe()
    maker = os.fork()
    if maker == 0:
        try:
            labels = open_store(tmp_path / "s").teacher("cnn")
            labels.share(1 << 20)
            check(labels)
            os.write(writing, pickle.dumps(labels.shared))
            time.sleep(30)
        finally:
            os._exit(1)
    shared = pickle.loads(os.read(reading, 1000))
    adopting, stranger = (open_store(tmp_path / "s").teacher("cnn") for _ in range(2))
    adopting.share(1 << 20)
    adopting.adopt(1 << 20, shared)
    stranger.adopt(1000, shared)  # not as many frames: it takes its own
    assert stranger.shared is not None and stranger.shared[1] != shared[1] == adopting.shared[1]
    check(stranger)
    os.kill(maker, signal.SIGKILL)
    os.waitpid(maker, 0)
    forbid_decoding(monkeypatch)
    check(adopting)
    assert in_a_fork(lambda: check(adopting)) == 0


def test_a_killed_process_leaves_neither_locks_nor_memory(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", "hdf5", "zstd", rows=50, rows_per_shard=2)
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()  # noqa: PTH208
    labels.share(200)  # room for very few, so that they are decoded all the time
    for pause in (0.02, 0.05, 0.1):
        child = os.fork()
        if child == 0:
            while True:
                check(labels)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check(labels)
    assert (set(os.listdir("/dev/shm")) if before else set()) <= before  # noqa: PTH208


def test_processes_that_push_each_other_out_read_the_right_labels(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", "zarr", "zstd", rows_per_shard=7)
    labels.share(700)

    def read() -> None:
        rng = np.random.default_rng(os.getpid())
        for _ in range(60):
            rows, views = rng.integers(0, 50, 8), rng.integers(0, 3, 8)
            for name, array in labels.take(rows, views).items():
                np.testing.assert_array_equal(array, values(50)[name][views, rows])

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                read()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    read()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_a_thread_decodes_ahead_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = filled(tmp_path / "s", "hdf5", "zstd", rows=60, rows_per_shard=10)
    labels.share(700)  # two views of a shard
    decoded: list[int] = []
    fill = Folder.fill

    def noted(self: Folder, chunk, shard, out) -> None:  # type: ignore[no-untyped-def]
        if chunk.array == "tail":
            decoded.append(shard.run)
        fill(self, chunk, shard, out)

    monkeypatch.setattr(Folder, "fill", noted)
    rows, views = np.arange(60), np.ones(60, int)
    ahead = labels.ahead(rows, views)
    assert ahead is not None
    _soon(lambda: decoded == [0, 1])
    for place in range(0, 60, 5):
        ahead.reached(place)
        _soon(lambda place=place: len(decoded) >= min(place // 10 + 2, 6))  # type: ignore[misc]
        labels.take(rows[place : place + 5], views[place : place + 5])
    ahead.close()
    assert decoded == [0, 1, 2, 3, 4, 5]  # each once, by the thread
    assert filled(tmp_path / "plain").ahead(rows[:50], views[:50]) is None


def _soon(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to be")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells private memory from shared")
def test_a_worker_adds_no_copy_of_its_own(tmp_path: Path) -> None:
    layout = {"logits": {"dtype": "uint8", "shape": (1000,)}}
    labels = make(tmp_path / "s", rows=40_000, rows_per_shard=4000).prepare("cnn", card("hdf5", "zstd", layout=layout))
    known = {"logits": np.repeat(np.arange(40_000, dtype=np.uint8)[None, :, None], 1000, 2)}
    with labels.writing():
        for shard in labels.missing(1):
            labels.write(shard, of_shard(known, shard))
    labels = open_store(tmp_path / "s").teacher("cnn")
    labels.share(64 << 20)

    def read() -> None:
        before = _private()
        for row in range(0, 40_000, 50):
            labels.take([row], [0])
        assert _private() - before < 16 << 20  # of 40 MB

    assert in_a_fork(read) == 0


def _private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10
