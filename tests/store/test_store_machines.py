"""Machines that write to one URL at the same time: each is a process, or a thread, with a cache of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from buckets import Server, serving
from store.stores import card, files, fill, filled, make, of_shard, table, values

from softlabels.errors import StoreError
from softlabels.store import Cache, open_store
from softlabels.store import _claims as claims
from softlabels.store import _remote as remote
from softlabels.store._mirror import RemoteStore

MACHINE = """
import sys
from store.stores import card, fill, make
from softlabels.errors import StoreError
from softlabels.store import open_store
url, what, index, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
try:
    if what == "hold":
        with open_store(url).teacher("cnn").writing((index, count)):
            print("holding", flush=True)
            sys.stdin.read()
    else:
        labels = make(url, versions={"softlabels": what}).prepare("cnn", card(versions={"torch": what}))
        fill(labels, 3, part=(index, count))
except StoreError as problem:
    print(problem)
"""


class Machine:
    """A process with a cache of its own that writes one part of a store when it is told to `go`."""

    def __init__(self, url: str, cache: Path, what: str, index: int = 0, count: int = 1) -> None:
        command = [sys.executable, "-c", MACHINE, url, what, str(index), str(count)]
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "SOFTLABELS_CACHE": str(cache), "PYTHONPATH": path},
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Let it finish; what it printed."""
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return said.strip()

    def __enter__(self) -> Machine:
        self.go()
        assert self.line() == "holding"
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture(params=["s3", pytest.param("file", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where no store is yet, of each kind that two processes reach."""
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", [0.05])
    return f"s3://{server.bucket()}/shards" if request.param == "s3" else f"file://{tmp_path}/far/shards"


def names(url: str) -> set[str]:
    return set(remote.Remote(url).listing())


def assert_whole(url: str, cache: Path) -> None:
    """Every label is there and right, and nothing else."""
    store = open_store(url, Cache.at(cache))
    labels = store.teacher("cnn")
    assert store.verify() == labels.verify() == []
    assert labels.complete == 3
    rows, known = np.arange(50), values(50)
    for view in range(3):
        np.testing.assert_array_equal(labels.take(rows, np.full(50, view))["ids"], known["ids"][view])
    assert not [name for name in names(url) if ".writer" in name or ".partial" in name]


def test_a_second_machine_says_so_in_one_line_and_changes_nothing(url: str, tmp_path: Path) -> None:
    fill(make(url).prepare("cnn", card()), 1)
    labels = open_store(url).teacher("cnn")
    with Machine(url, tmp_path / "other", "hold") as other:
        before = names(url)
        for part in ((0, 1), (2, 3)):
            with pytest.raises(StoreError) as refusal:
                fill(labels, 3, part=part)
            said = str(refusal.value)
            claim = next(name for name in before if ".writer" in name)
            assert said.startswith(f"{url}/{claim} says that another process (")
            assert f"process {other.process.pid}) writes part 0/1 of {url}/cnn" in said
            assert "wait for it, stop it, or give each process a `part` of its own" in said
            assert "\n" not in said
        assert names(url) == before
    assert fill(labels, 3) == 3
    assert_whole(url, tmp_path / "cache")


def test_machines_with_parts_of_their_own_make_one_store_at_the_same_time(url: str, tmp_path: Path) -> None:
    """Though their documents would differ, in the versions of libraries: one makes them, the others take them."""
    machines = [Machine(url, tmp_path / f"cache-{index}", f"1.{index}", index, 2) for index in range(2)]
    for each in machines:
        each.go()
    assert [each.end() for each in machines] == ["", ""]
    assert_whole(url, tmp_path / "cache")


def test_of_machines_that_begin_one_part_at_the_same_moment_one_writes_it(url: str, tmp_path: Path) -> None:
    filled(tmp_path / "s")
    machines = [Machine(url, tmp_path / f"cache-{index}", "0.1.0") for index in range(2)]
    for each in machines:
        each.go()
    said = [each.end() for each in machines]
    assert said.count("") >= 1
    assert all(not each or " says that another process (" in each for each in said)
    assert_whole(url, tmp_path / "cache")
    kept = set(files(tmp_path / "s"))
    assert names(url) == kept


def test_what_a_killed_machine_left_is_taken_over_when_it_is_stale(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = make(url).prepare("cnn", card())
    other = Machine(url, tmp_path / "other", "hold")
    other.go()
    assert other.line() == "holding"
    other.process.kill()
    other.process.communicate()
    with pytest.raises(StoreError, match="what a killed one left counts for 10 minutes"):
        fill(labels, 3)
    monkeypatch.setattr(claims, "STALE", 2.0)
    time.sleep(3.5)  # servers count whole seconds
    assert fill(labels, 3) == 3
    assert_whole(url, tmp_path / "cache")


def test_what_a_killed_process_of_this_machine_left_is_taken_over_at_once(url: str, tmp_path: Path) -> None:
    labels = make(url).prepare("cnn", card())
    other = Machine(url, tmp_path / "cache", "hold")
    other.go()
    assert other.line() == "holding"
    other.process.kill()
    other.process.communicate()
    assert fill(labels, 3) == 3
    assert_whole(url, tmp_path / "cache")


# ---- threads with caches of their own, where no server is needed


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    return f"memory://{uuid.uuid4().hex}/shards"


def machine(url: str, tmp_path: Path, number: int) -> Any:
    """The labels as one more machine opens them."""
    return open_store(url, Cache.at(tmp_path / f"cache-{number}")).teacher("cnn")


def test_who_makes_a_store_that_another_machine_is_making_waits_and_takes_that_one(memory: str, tmp_path: Path) -> None:
    made: list[Any] = []

    def of(number: int, checksums: Callable[[], Any]) -> None:
        images, cache = table(50).drop_columns(["checksum"]), Cache.at(tmp_path / f"cache-{number}")
        versions = {"softlabels": f"1.{number}"}
        made.append(make(memory, images=images, checksums=checksums, versions=versions, cache=cache))

    known = table(50)["checksum"].to_numpy()
    second = threading.Thread(target=of, args=(2, lambda: known))

    def slowly() -> Any:
        second.start()
        second.join(timeout=1.0)
        assert second.is_alive()  # it waits
        return known

    of(1, slowly)
    second.join(timeout=30)
    assert [store.manifest.versions for store in made] == [{"softlabels": "1.1"}] * 2
    assert open_store(memory).manifest == made[0].manifest == made[1].manifest


def test_a_card_that_another_machine_put_since_the_store_was_opened_stays(memory: str, tmp_path: Path) -> None:
    make(memory)
    first, second, third = (open_store(memory, Cache.at(tmp_path / f"cache-{number}")) for number in range(3))
    put = first.prepare("cnn", card(versions={"torch": "1"})).card
    assert second.prepare("cnn", card(versions={"torch": "2"})).card == put
    with pytest.raises(StoreError, match="holds other labels under the name cnn: format is 'hdf5' there"):
        third.prepare("cnn", card("zarr"))
    assert open_store(memory).teacher("cnn").card == put


def test_what_another_machine_wrote_since_the_store_was_opened_is_not_written_again(
    memory: str, tmp_path: Path
) -> None:
    make(memory).prepare("cnn", card())
    first, second = (machine(memory, tmp_path, number) for number in range(2))
    assert len(first.missing(3)) == len(second.missing(3)) == 3
    assert fill(second, 3) == 3
    assert len(first.missing(3)) == 3  # listed once
    assert fill(first, 3) == 0
    assert first.complete == 3


def test_other_machines_parts_are_seen_after_a_refresh(memory: str, tmp_path: Path) -> None:
    make(memory).prepare("cnn", card())
    first, second = (machine(memory, tmp_path, number) for number in range(2))
    fill(first, 3, part=(0, 2))
    fill(second, 3, part=(1, 2))
    assert first.complete == 0
    first.refresh()
    assert first.complete == 3


def test_a_claim_lives_as_long_as_its_process(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "REFRESH", 0.1)
    monkeypatch.setattr(claims, "STALE", 1.0)
    make(memory).prepare("cnn", card())
    first, second = (machine(memory, tmp_path, number) for number in range(2))
    with first.writing():
        time.sleep(1.5)
        with pytest.raises(StoreError, match="says that another process"):
            fill(second, 3)
        for shard in first.missing(1):
            first.write(shard, of_shard(values(50), shard), digests={shard.first_row: ["ab"] * shard.views})
    assert fill(second, 3) == 3


@pytest.mark.parametrize("how", ["taken over", "slept"])
def test_a_writer_without_its_claim_writes_nothing(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    make(memory).prepare("cnn", card())
    labels, there = machine(memory, tmp_path, 0), remote.Remote(memory)
    with labels.writing():
        shard = labels.missing(3)[0]
        if how == "taken over":
            there.remove([name for name in there.listing() if ".writer" in name])
        else:
            clock = time.time
            monkeypatch.setattr(claims.time, "time", lambda: clock() + claims.STALE)
        before = names(memory)
        with pytest.raises(
            StoreError, match=r"\.writer-0-of-1-.* does not hold any more: .* run the same command again"
        ):
            labels.write(shard, of_shard(values(50), shard))
        with pytest.raises(StoreError, match="does not hold any more"):
            labels.remove(shard)
        assert names(memory) == before


def at_once(count: int, work: Callable[[int], None]) -> None:
    """Do `work` in so many threads that begin together; the first error is raised."""
    start, problems = threading.Barrier(count), []

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def test_claims_let_in_one_at_a_time_and_all_in_the_end(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_POLL", 0.01)
    inside, most, done = 0, 0, 0

    def work(number: int) -> None:
        nonlocal inside, most, done
        mirror = RemoteStore(memory, Cache.at(tmp_path / f"cache-{number}"))
        for _ in range(4):
            with mirror.alone("cnn"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.005)
                inside -= 1
                done += 1

    at_once(4, work)
    assert (most, done) == (1, 16)
