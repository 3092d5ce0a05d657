"""Compressed shards are unpacked whole into the cache, once for all processes, and mapped from there."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store.stores import card, fill, filled, make, of_shard, values

from softlabels.errors import StoreError
from softlabels.store import Cache, TeacherLabels, open_store
from softlabels.store._folder import ShardFolder

ROWS, VIEWS = np.arange(50), np.arange(50) % 3
each_form = pytest.mark.parametrize("form", ["hdf5", "zarr"])


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was decompressed so far, by whichever process: run, view, array."""
    notes, fill = tmp_path / "notes.txt", ShardFolder.fill
    notes.touch()

    def noting(self: ShardFolder, chunk, shard, out) -> None:  # type: ignore[no-untyped-def]
        with notes.open("a") as file:
            file.write(f"{shard.run} {chunk.view} {chunk.array}\n")
        fill(self, chunk, shard, out)

    def read() -> list[str]:
        return notes.read_text().splitlines()

    labels = filled(tmp_path / "s", "hdf5", "zstd")
    assert labels.card.compression == "zstd"
    monkeypatch.setattr(ShardFolder, "fill", noting)
    return read


def check(labels: TeacherLabels) -> None:
    for name, array in labels.take(ROWS, VIEWS).items():
        np.testing.assert_array_equal(array, values(50)[name][VIEWS, ROWS])


def opened(tmp_path: Path, limit: int | None = None) -> TeacherLabels:
    return open_store(tmp_path / "s", Cache.at(limit=limit)).teacher("cnn")


def several(labels: TeacherLabels) -> None:
    for _ in range(3):
        check(labels)


def in_forks(count: int, action: Callable[[], object]) -> list[int]:
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                action()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def copies(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("unpacked/??/*") if path.is_file())


def held(cache: Path) -> int:
    return sum(path.stat().st_size for path in copies(cache))


def test_of_several_processes_one_unpacks_a_shard_and_the_others_read_it(
    tmp_path: Path, noted: Callable[[], list[str]]
) -> None:
    labels = opened(tmp_path)
    labels.before_fork()
    assert in_forks(4, lambda: check(labels)) == [0] * 4
    process = multiprocessing.get_context("spawn").Process(target=check, args=(labels,))
    process.start()
    process.join()
    assert process.exitcode == 0
    check(labels)
    check(pickle.loads(pickle.dumps(labels)))
    check(opened(tmp_path))
    assert len(noted()) == len(set(noted())) == 3 * 3 * 3  # shards, views, arrays


@each_form
def test_a_store_that_was_moved_is_not_unpacked_again(tmp_path: Path, form: str, cache: Path) -> None:
    check(filled(tmp_path / "s", form, "zstd"))
    before = {path: path.stat().st_ino for path in copies(cache)}
    assert len(before) == 3
    (tmp_path / "s").rename(tmp_path / "t")
    check(open_store(tmp_path / "t").teacher("cnn"))
    assert {path: path.stat().st_ino for path in copies(cache)} == before


@pytest.mark.usefixtures("noted")
def test_the_cache_never_holds_more_than_its_limit(tmp_path: Path, cache: Path) -> None:
    labels = opened(tmp_path)
    check(labels)
    whole, largest = held(cache), max(path.stat().st_size for path in copies(cache))
    shutil.rmtree(cache)
    limit = 2 * largest
    assert limit < whole
    labels = opened(tmp_path, limit)
    for _ in range(3):
        check(labels)
        assert 0 < held(cache) <= limit
    for row in range(50):
        labels.take([row], [0])
    assert in_forks(2, lambda: several(labels)) == [0, 0]
    assert held(cache) <= limit
    with pytest.raises(StoreError, match="give it more with `cache_size`"):
        check(opened(tmp_path, largest // 2))


def test_a_killed_process_leaves_nothing_that_is_read(tmp_path: Path, cache: Path) -> None:
    labels = filled(tmp_path / "s", "zarr", "zstd", rows_per_shard=2)
    for pause in (0.005, 0.02, 0.05, 0.1):
        child = os.fork()
        if child == 0:
            while True:
                check(labels)
                shutil.rmtree(cache / "unpacked", ignore_errors=True)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check(labels)
    check(open_store(tmp_path / "s").teacher("cnn"))


@each_form
def test_a_shard_that_is_cut_off_or_replaced_under_a_reader_is_an_error(tmp_path: Path, form: str) -> None:
    labels = filled(tmp_path / "s", form, "zstd")
    check(labels)
    fill(make(tmp_path / "t").prepare("cnn", card(form, "zstd")), 3, seed=1)
    ours, theirs = (next((tmp_path / name / "cnn").glob("00001-*")) for name in ("s", "t"))
    aside = tmp_path / "aside"
    ours.rename(aside)
    with pytest.raises(StoreError, match="00001-v0-3"):
        labels.take([25], [0])
    shutil.copytree(theirs, ours) if theirs.is_dir() else shutil.copy(theirs, ours)
    with pytest.raises(StoreError, match=r"00001-v0-3.* was replaced by other labels while it was read"):
        labels.take([25], [0])
    shutil.rmtree(ours) if ours.is_dir() else ours.unlink()
    aside.rename(ours)
    check(labels)
    for path in [ours] if ours.is_file() else sorted(each for each in ours.rglob("c/**/*") if each.is_file()):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StoreError, match="00001-v0-3"):
        labels.take([25], [0])
    labels.take([1, 45], [0, 0])


@pytest.mark.usefixtures("noted")
def test_a_copy_that_was_cut_off_is_made_again_and_one_that_was_changed_is_refused_once(
    tmp_path: Path, cache: Path
) -> None:
    labels = opened(tmp_path)
    check(labels)
    for path in copies(cache):
        os.truncate(path, 100)
    check(labels)
    check(opened(tmp_path))
    path = copies(cache)[0]
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    labels = opened(tmp_path)
    with pytest.raises(StoreError, match=f"{path} was damaged and is removed; read again"):
        check(labels)
    check(labels)
    check(opened(tmp_path))


@each_form
def test_a_byte_that_no_chunk_holds_is_compared_too(tmp_path: Path, form: str, cache: Path) -> None:
    filled(tmp_path / "s", form, "zstd")
    found = next((tmp_path / "s/cnn").glob("00000-*"))
    path = found if found.is_file() else found / "ids/zarr.json"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"does not match its checksum.*softlabels repair"):
        check(opened(tmp_path))
    assert not copies(cache)


def test_a_thread_unpacks_ahead_as_far_as_there_is_room(tmp_path: Path, cache: Path) -> None:
    filled(tmp_path / "s", "hdf5", "zstd", rows=60, rows_per_shard=10)
    assert filled(tmp_path / "plain").ahead(ROWS, VIEWS) is None
    labels = opened(tmp_path)
    labels.take([0], [0])
    (one,) = copies(cache)
    labels = opened(tmp_path, 2 * one.stat().st_size)
    rows, views = np.arange(60), np.ones(60, int)
    ahead = labels.ahead(rows, views)
    assert ahead is not None
    _soon(lambda: len(copies(cache)) == 2)
    for place in range(0, 60, 5):
        ahead.reached(place)
        for name, array in labels.take(rows[place : place + 5], views[place : place + 5]).items():
            np.testing.assert_array_equal(array, values(60)[name][1, place : place + 5])
        assert len(copies(cache)) <= 2
    ahead.close()


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

    def read() -> None:
        before = _private()
        for row in range(0, 40_000, 50):
            labels.take([row], [0])
        assert _private() - before < 16 << 20  # of 40 MB

    assert in_forks(1, read) == [0]


def _private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10
