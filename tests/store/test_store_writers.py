"""One writer for each part of a teacher, and clear words when writing is impossible."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store.stores import assert_holds, card, files, fill, filled, make, of_shard, values

from softlabels.errors import StoreError
from softlabels.store import open_store

HOLDER = """
import sys, time
from softlabels.store import open_store
labels = open_store(sys.argv[1]).teacher("cnn")
with labels.writing((int(sys.argv[2]), int(sys.argv[3]))):
    print("holding", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that writes one part."""

    def __init__(self, root: Path, index: int, count: int) -> None:
        command = [sys.executable, "-c", HOLDER, str(root), str(index), str(count)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"holding\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=30)


def in_child(work: Callable[[], None], user: int | None = None) -> str:
    """What a forked process ends with: "" or its StoreError."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "no end"
        try:
            if user is not None:
                os.setuid(user)
            work()
            said = ""
        except StoreError as problem:
            said = str(problem)
        except BaseException as problem:
            said = f"{type(problem).__name__}: {problem}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_second_writer_says_so_in_one_line(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", views=1)
    with Holder(tmp_path / "s", 0, 1) as other:
        for part in ((0, 1), (2, 3)):
            with pytest.raises(StoreError, match=rf"another process \({other.process.pid}\)") as refusal:
                fill(labels, 2, part=part)
            assert "\n" not in str(refusal.value)
        assert labels.missing(1) == []  # reading goes on
        assert_holds(labels, 1)
    assert fill(labels, 2) == 3


def test_parts_that_share_no_run_are_written_together(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", rows=90, rows_per_shard=10, views=1)
    with Holder(tmp_path / "s", 0, 2):
        fill(labels, 2, part=(1, 2))
        fill(labels, 2, part=(3, 4))
        for part in ((0, 2), (2, 4), (1, 3)):
            with pytest.raises(StoreError, match="part 0/2 of"):
                fill(labels, 2, part=part)


def test_a_writer_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", views=1)
    other = Holder(tmp_path / "s", 0, 1)
    other.process.kill()
    other.process.communicate()
    assert fill(labels, 2) == 3
    assert not [name for name in files(tmp_path / "s") if "writer" in name]


def test_children_of_a_killed_writer_hold_nothing(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", views=1)
    script = HOLDER.replace(
        "sys.stdin.read()", "import os\n    if os.fork(): os.kill(os.getpid(), 9)\n    time.sleep(20)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "s"), "0", "1"], stdout=subprocess.DEVNULL)
    process.wait()
    time.sleep(0.2)
    assert fill(labels, 2) == 3


def test_writing_needs_the_lock(tmp_path: Path) -> None:
    labels = make(tmp_path / "s").prepare("cnn", card())
    shard = labels.missing(2)[1]
    with pytest.raises(StoreError, match=r"within `with labels\.writing"):
        labels.write(shard, of_shard(values(50), shard))
    with labels.writing((0, 2)), pytest.raises(StoreError, match="the part that holds run 1"):
        labels.write(shard, of_shard(values(50), shard))


def test_labels_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", views=3)
    shard = labels.shards[0]
    other = labels._folder.runs.shard(0, 2, 5)
    before = files(tmp_path / "s")
    with labels.writing():
        for each in (shard, other):
            with pytest.raises(StoreError, match=r"00000-v0-3\.h5 holds labels of shard .* already"):
                labels.write(each, of_shard(values(50), each))
    assert files(tmp_path / "s") == before


def test_a_shard_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    labels = make(tmp_path / "s").prepare("cnn", card())
    shard = replace(labels.missing(2)[0], stop_row=10)
    with labels.writing(), pytest.raises(StoreError, match="ask `missing`"):
        labels.write(shard, of_shard(values(50), shard))


@pytest.mark.parametrize("part", [(1, 1), (-1, 2), (0, 0), (5, 3)])
def test_parts_that_do_not_exist_are_refused(tmp_path: Path, part: tuple[int, int]) -> None:
    labels = make(tmp_path / "s").prepare("cnn", card())
    with pytest.raises(StoreError, match="does not exist"):
        labels.missing(2, part)


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_all_of_a_shard_is_synced_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    labels = make(tmp_path / "s").prepare("cnn", card(form))
    synced: set[int] = set()
    named: list[Path] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(handle: int) -> None:
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def noted_rename(self: Path, target: Path) -> Path:
        assert {each.stat().st_ino for each in (self, *self.rglob("*"))} <= synced
        named.append(Path(target))
        synced.clear()
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    fill(labels, 2)
    assert [path.name.split(".")[0] for path in named] == ["00000-v0-2", "00001-v0-2", "00002-v0-2"]
    assert (tmp_path / "s/cnn").stat().st_ino in synced
    assert not list((tmp_path / "s").glob("**/.*"))


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_a_full_disk_is_one_line_and_going_on_later_works(tmp_path: Path, form: str) -> None:
    labels = make(tmp_path / "s", 2000, 1000).prepare("cnn", card(form))

    def write_with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
        fill(labels, 2)

    said = in_child(write_with_little_room)
    assert said.startswith("cannot write ")
    assert "00000-v0-2" in said
    assert "\n" not in said
    assert list(files(tmp_path / "s/cnn")) == ["teacher.json"]
    fill(labels, 2)
    assert_holds(labels, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_no_space_left_is_said_as_such(tmp_path: Path, form: str) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        labels = make(place / "s", 4000, 2000).prepare("cnn", card(form))
        with pytest.raises(StoreError, match="no space left while writing"):
            fill(labels, 3)
        assert labels.verify() == []
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        fill(labels, 3)
        assert_holds(labels, 3)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_read_only_store_is_readable_and_says_that_it_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        labels = filled(Path(folder) / "s")
        for path in [*Path(folder).rglob("*"), Path(folder)]:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        nobody = 65534 if os.geteuid() == 0 else None

        def dump_again() -> None:
            again = make(Path(folder) / "s").prepare("cnn", card())
            assert again.missing(3) == []
            assert_holds(again, 3)

        assert in_child(dump_again, nobody) == ""
        for work in (
            lambda: fill(labels, 4),
            lambda: make(Path(folder) / "other"),
            lambda: open_store(Path(folder) / "s").prepare("second", card()),
        ):
            said = in_child(work, nobody)
            assert said.startswith("cannot write "), said
            assert "choose another `out` or change its permissions" in said
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_two_processes_that_make_one_store_make_one_store(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    script = "import sys; from pathlib import Path; from store.stores import make, card\n"
    script += "print(make(Path(sys.argv[1]), 5000, 100).prepare('cnn', card()).missing(1)[-1].name)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", script, str(tmp_path / "s")]

    def run(_: int) -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(run, range(3))) == {"00049-v0-1"}
    assert sorted(files(tmp_path / "s")) == ["cnn/teacher.json", "images.parquet", "manifest.json"]
