"""Nothing is lost by a killed writer, and no damage goes unseen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store.stores import assert_holds, card, each_kind, files, fill, filled, make

from softlabels.errors import StoreError
from softlabels.store import open_store


def problems(root: Path) -> list[str]:
    """Everything that verifying a store says, an error on opening it included."""
    try:
        store = open_store(root)
        found = store.verify()
        for name in store.teachers:
            found += store.teacher(name).verify()
    except StoreError as problem:
        return [str(problem)]
    return found


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


@each_kind
def test_a_flipped_bit_anywhere_is_found_and_named(tmp_path: Path, form: str, compression: str) -> None:
    filled(tmp_path / "s", form, compression)
    root = tmp_path / "s"
    assert problems(root) == []
    rng = np.random.default_rng(0)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        size = path.stat().st_size
        ends = [0, 1, 8 * size - 1]
        for bit in [*ends, *rng.integers(0, 8 * size, 7).tolist()]:
            flip(path, bit)
            found = problems(root)
            assert found, f"bit {bit} of {path}"
            named = path.relative_to(root).parts
            assert any(named[min(1, len(named) - 1)] in problem for problem in found), f"{found} name not {path}"
            flip(path, bit)
    assert problems(root) == []


@pytest.mark.slow
@each_kind
def test_every_flipped_bit_of_a_shard_is_found(tmp_path: Path, form: str, compression: str) -> None:
    labels = filled(tmp_path / "s", form, compression, rows=3, rows_per_shard=3, views=1)
    shard = labels.shards[0]
    for path in sorted(path for path in (tmp_path / "s" / "cnn").rglob("*") if path.is_file()):
        # At least one bit of each byte, at all eight places in turn; every one would take minutes.
        for bit in range(0, 8 * path.stat().st_size, 7):
            flip(path, bit)
            found = problems(tmp_path / "s")
            flip(path, bit)
            assert found
            assert path.name == "teacher.json" or shard.name in found[0]


@each_kind
def test_a_damaged_payload_is_found_when_it_is_read_and_repaired_by_dumping_again(
    tmp_path: Path, form: str, compression: str
) -> None:
    labels = filled(tmp_path / "s", form, compression)
    before, shard = files(tmp_path / "s"), labels.shards[2]
    place = labels._folder.shard_place(shard).path
    offset = labels._folder.header(shard).arrays["values"].offsets[1]
    flip(place if form == "hdf5" else place / "values/c/0/0/0", 8 * offset + 3)
    with pytest.raises(StoreError, match=rf"{shard.name}.*softlabels verify.*softlabels repair"):
        open_store(tmp_path / "s").teacher("cnn").take([shard.first_row], [1])
    with pytest.raises(StoreError, match=shard.name):
        labels.read_shard(shard)
    assert labels.damaged() == [shard]
    with labels.writing():
        labels.remove(shard)
    fill(labels, 3)
    assert files(tmp_path / "s") == before


def test_a_compressed_chunk_is_checked_when_it_is_unpacked(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", "hdf5", "zstd")
    header = labels._folder.header(labels.shards[0])
    flip(tmp_path / "s/cnn/00000-v0-3.h5", 8 * header.arrays["ids"].offsets[0] + 200)
    with pytest.raises(StoreError, match=r"00000-v0-3\.h5: array 'ids', view 0"):
        open_store(tmp_path / "s").teacher("cnn").take([0], [0])


@each_kind
def test_a_truncated_shard_is_missing_and_dumped_again(tmp_path: Path, form: str, compression: str) -> None:
    labels = filled(tmp_path / "s", form, compression)
    before = files(tmp_path / "s")
    for path in sorted(p for p in (tmp_path / "s/cnn").rglob("*") if "00001" in str(p) and p.is_file()):
        for size in (0, 1, path.stat().st_size // 2, path.stat().st_size - 1):
            os.truncate(path, size)
            fresh = open_store(tmp_path / "s").teacher("cnn")
            assert [shard.name for shard in fresh.missing(3)] == ["00001-v0-3"]
            assert fresh.complete == 0
            with pytest.raises(StoreError, match="00001-v0-3"):
                fresh.views  # noqa: B018
            with pytest.raises(StoreError, match="00001-v0-3"):
                fresh.take([25], [0])
            assert any("00001-v0-3" in problem for problem in fresh.verify())
            fill(labels, 3)
            assert files(tmp_path / "s") == before


@each_kind
def test_a_shard_that_grew_or_holds_strangers_is_found(tmp_path: Path, form: str, compression: str) -> None:
    filled(tmp_path / "s", form, compression)
    path = next(p for p in (tmp_path / "s/cnn").rglob("*") if "00001" in str(p) and p.is_file())
    with path.open("ab") as file:
        file.write(b"x")
    assert any("00001-v0-3" in problem for problem in problems(tmp_path / "s"))


def test_files_that_are_not_of_the_store_are_named(tmp_path: Path) -> None:
    filled(tmp_path / "s", "zarr")
    (tmp_path / "s/cnn/00001-v0-3.zarr/notes.txt").write_text("hello")
    (tmp_path / "s/cnn/00009-v0-3.zarr").mkdir()
    (tmp_path / "s/cnn/0001-v0-3.h5").write_text("")
    (tmp_path / "s/images-1.parquet").write_text("")
    found = problems(tmp_path / "s")
    for name in ("notes.txt", "00009-v0-3.zarr", "0001-v0-3.h5", "images-1.parquet"):
        assert sum(name in problem for problem in found) == 1
    assert len(found) == 4


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_a_store_copied_halfway_is_incomplete(tmp_path: Path, form: str) -> None:
    labels = filled(tmp_path / "s", form, rows=90, rows_per_shard=10)
    for number, shard in enumerate(labels.shards):
        if number % 2:
            path = labels._folder.shard_place(shard).path
            (shutil.rmtree if path.is_dir() else os.unlink)(path)
    half = open_store(tmp_path / "s").teacher("cnn")
    assert half.views == 0
    assert [shard.run for shard in half.missing(3)] == [1, 3, 5, 7]
    with pytest.raises(StoreError, match="incomplete"):
        half.take(np.arange(90), np.zeros(90, int))
    for name, said in (("images.parquet", "images.parquet is missing"), ("manifest.json", "not copied whole")):
        (tmp_path / "s" / name).unlink()
        with pytest.raises(StoreError, match=said):
            open_store(tmp_path / "s")
    with pytest.raises(StoreError, match=r"has labels of cnn but no manifest\.json"):
        make(tmp_path / "s")


def test_a_shard_of_another_store_is_refused_not_overwritten(tmp_path: Path) -> None:
    here, there = filled(tmp_path / "here"), make(tmp_path / "there", seed=8).prepare("cnn", card())
    fill(there, 3)
    shutil.copy(tmp_path / "there/cnn/00001-v0-3.h5", tmp_path / "here/cnn/00001-v0-3.h5")
    for use in (lambda: here.missing(3), lambda: here.take([25], [0]), lambda: here.views):
        with pytest.raises(StoreError, match=r"00001-v0-3\.h5 is of another data set and recipe"):
            use()
    shutil.copy(tmp_path / "here/cnn/00000-v0-3.h5", tmp_path / "here/cnn/00001-v0-3.h5")
    with pytest.raises(StoreError, match="is of another shard"):
        here.missing(3)


def test_what_a_killed_writer_left_is_removed_by_the_next_one_and_what_a_live_one_holds_is_not(tmp_path: Path) -> None:
    labels = make(tmp_path / "s", 90, 10).prepare("cnn", card("zarr"))
    folder = tmp_path / "s" / "cnn"
    for name in (".partial-00000-v0-3.zarr-abc", ".partial-00001-v0-3.zarr-abc", ".partial-teacher.json-x"):
        (folder / name).mkdir()
        (folder / name / "junk").write_text("x")
    live = "import sys; from pathlib import Path; from softlabels.core.files import whole\n"
    live += "with whole(Path(sys.argv[1])) as partial: partial.mkdir(); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", live, str(folder / "00002-v0-3.zarr")]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    with labels.writing((1, 2)):
        (left,) = folder.glob(".partial-*")
        assert left.name.startswith(".partial-00002-v0-3.zarr-")
    writer.kill()
    writer.communicate()
    with labels.writing((1, 2)):
        assert list(folder.glob(".partial-*")) == []


WRITER = """
import sys
from pathlib import Path
from store.stores import card, fill, make
labels = make(Path(sys.argv[1]), 240, 8).prepare("cnn", card(sys.argv[2], sys.argv[3]))
print("ready", flush=True)
fill(labels, 4)
"""


def kill_and_go_on(root: Path, form: str, compression: str, delay: float) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", WRITER, str(root), form, compression]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    labels = open_store(root).teacher("cnn")
    held = labels.shards
    assert labels.verify() == []
    for shard in held:
        labels.read_shard(shard)


def killed(tmp_path: Path, form: str, compression: str, delays: list[float]) -> None:
    filled(tmp_path / "whole", form, compression, rows=240, rows_per_shard=8, views=4)
    for delay in delays:
        kill_and_go_on(tmp_path / "s", form, compression, delay)
    fill(open_store(tmp_path / "s").teacher("cnn"), 4)
    assert_holds(open_store(tmp_path / "s").teacher("cnn"), 4)
    leftover = [name for name in files(tmp_path / "s") if name.startswith("cnn/.partial")]
    assert leftover == []
    assert files(tmp_path / "whole") == files(tmp_path / "s")


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_a_writer_killed_at_any_moment_loses_nothing(tmp_path: Path, form: str) -> None:
    killed(tmp_path, form, "none", np.random.default_rng(0).uniform(0, 0.25, 3).tolist())


@pytest.mark.slow
@each_kind
def test_a_writer_killed_at_many_moments_loses_nothing(tmp_path: Path, form: str, compression: str) -> None:
    killed(tmp_path, form, compression, np.random.default_rng(1).uniform(0, 0.4, 25).tolist())
