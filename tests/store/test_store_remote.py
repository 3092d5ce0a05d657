"""Stores behind a URL, on a real S3 server of this machine that is stopped, restarted and tampered with."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from buckets import Server, serving
from store.stores import KINDS, card, files, filled, make, of_shard, table, values

from softlabels.errors import StoreError
from softlabels.store import Cache, find_store, open_store
from softlabels.store import _remote as remote

QUICK = [
    pytest.param(*kind, marks=() if kind in (("hdf5", "none"), ("zarr", "zstd")) else pytest.mark.slow)
    for kind in KINDS
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture
def bucket(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder in an empty bucket; copies are kept below `tmp_path`."""
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", [0.05])
    return f"s3://{server.bucket()}/some/shards"


@pytest.fixture
def objects(server: Server, bucket: str) -> Callable[[], dict[str, bytes]]:
    return lambda: server.objects(bucket)


@pytest.fixture
def put(server: Server, bucket: str) -> Callable[[str, bytes | None], None]:
    """Change an object of the store, or remove it."""

    def change(key: str, body: bytes | None) -> None:
        name, _, below = bucket.removeprefix("s3://").partition("/")
        if body is None:
            server.client().delete_object(Bucket=name, Key=f"{below}/{key}")
        else:
            server.client().put_object(Bucket=name, Key=f"{below}/{key}", Body=body)

    return change


def sent(put: Callable[..., None], root: Path) -> None:
    """Copy a store in a folder to the bucket, as any tool would."""
    for name, data in files(root).items():
        put(name, data)


def held(cache: Path) -> int:
    """Bytes of the copies in a cache, whatever else lies there."""
    every = [*cache.glob("*/cnn/**/*"), *cache.glob("unpacked/??/*")]
    found = [path for path in every if path.is_file() and path.name != "teacher.json"]
    return sum(path.stat().st_size for path in found)


@pytest.mark.parametrize(("form", "compression"), QUICK)
def test_a_store_in_a_bucket_reads_as_one_in_a_folder(
    tmp_path: Path, bucket: str, put: Callable[..., None], form: str, compression: str
) -> None:
    local = filled(tmp_path / "s", form, compression)
    sent(put, tmp_path / "s")
    there = open_store(bucket).teacher("cnn")
    assert held(tmp_path / "cache") == 0  # nothing is copied before it is read
    assert (there.views, there.nbytes, list(there.digests())) == (local.views, local.nbytes, list(local.digests()))
    assert there.missing(3) == [] and [shard.name for shard in there.missing(4)] == [
        shard.name for shard in local.missing(4)
    ]
    assert held(tmp_path / "cache") == 0
    rows, views = np.arange(50)[::-1], np.arange(50) % 3
    for name, array in there.take(rows, views).items():
        np.testing.assert_array_equal(array, local.take(rows, views)[name])
    copied = list((tmp_path / "cache").glob("*/cnn/0*"))
    assert len(copied) == (3 if compression == "none" else 0)  # of compressed ones the unpacked copies are kept
    assert held(tmp_path / "cache") == local.nbytes or (form, compression) != ("hdf5", "none")
    assert there.verify() == [] == open_store(bucket).verify()


@pytest.mark.parametrize(("form", "compression"), QUICK)
def test_a_dump_to_a_bucket_leaves_the_objects_that_one_to_a_folder_leaves_files(
    tmp_path: Path, bucket: str, objects: Callable[[], dict[str, bytes]], form: str, compression: str
) -> None:
    filled(tmp_path / "s", form, compression)
    labels = make(bucket).prepare("cnn", card(form, compression))
    assert fill_there(labels, 3) == 3
    assert objects() == files(tmp_path / "s")
    again = make(bucket).prepare("cnn", card(form, compression))
    assert again.missing(3) == []
    assert fill_there(again, 4) == 3  # another view
    rows = np.arange(50)
    for name, array in open_store(bucket).teacher("cnn").take(rows, rows % 4).items():
        np.testing.assert_array_equal(array, values(50)[name][rows % 4, rows])


def fill_there(labels: Any, views: int) -> int:
    known = values(50)
    with labels.writing():
        shards = labels.missing(views)
        for shard in shards:
            labels.write(shard, of_shard(known, shard), digests={shard.first_row: ["ab"] * shard.views})
    return len(shards)


def test_a_bucket_that_holds_another_store_refuses(bucket: str) -> None:
    assert find_store(bucket) is None
    make(bucket)
    assert find_store(bucket) is not None
    with pytest.raises(StoreError, match="seed is 7 there and 8 here"):
        make(bucket, seed=8)
    make(bucket).prepare("cnn", card())
    with pytest.raises(StoreError, match="other labels under the name cnn"):
        open_store(bucket).prepare("cnn", card("zarr"))


def test_a_store_that_was_taken_away_is_made_anew(bucket: str, put: Callable[..., None], objects: Any) -> None:
    make(bucket).prepare("cnn", card())
    for name in objects():
        put(name, None)
    store = make(bucket, seed=8)
    assert store.teachers == ()
    store.prepare("cnn", card("zarr"))
    assert open_store(bucket).manifest.seed == 8


def test_images_are_added_to_a_store_in_a_bucket(bucket: str) -> None:
    labels = make(bucket, rows=20, rows_per_shard=20).prepare("cnn", card())
    fill_there(labels, 1)
    grown = open_store(bucket).append_images(table(30, first=20))
    assert len(grown) == len(open_store(bucket)) == 50
    fill_there(grown.teacher("cnn"), 1)
    taken = open_store(bucket).teacher("cnn").take(np.arange(50), np.zeros(50))
    np.testing.assert_array_equal(taken["ids"], values(50)["ids"][0])


def test_a_cache_smaller_than_the_store_is_never_exceeded(tmp_path: Path, bucket: str, put: Any) -> None:
    for form, compression in (("hdf5", "none"), ("hdf5", "zstd")):
        local = filled(tmp_path / f"{form}-{compression}", form, compression, rows=100, rows_per_shard=10)
        sent(put, tmp_path / f"{form}-{compression}")
        sizes = [local.nbytes // len(local.shards) * 5 // 2]  # two shards, not three
        cache = Cache.at(tmp_path / f"cache-{form}-{compression}", *sizes)
        labels, most = open_store(bucket, cache).teacher("cnn"), 0
        for start in (*range(0, 100, 5), 0, 50):
            rows = np.arange(start, start + 5)
            taken = labels.take(rows, rows % 3)
            np.testing.assert_array_equal(taken["ids"], values(100)["ids"][rows % 3, rows])
            most = max(most, held(cache.folder))
        assert 0 < most <= sizes[0]
        everywhere = np.arange(100)  # at once, more than there is room for
        np.testing.assert_array_equal(
            labels.take(everywhere, everywhere % 3)["ids"], values(100)["ids"][everywhere % 3, everywhere]
        )
        assert held(cache.folder) <= sizes[0]


def test_a_cache_without_room_for_one_shard_says_so(tmp_path: Path, bucket: str, put: Any) -> None:
    filled(tmp_path / "s")
    sent(put, tmp_path / "s")
    with pytest.raises(StoreError, match=r"may hold 100; give it more with `cache_size`"):
        open_store(bucket, Cache.at(None, 100)).teacher("cnn").take([0], [0])


def test_what_was_copied_is_not_copied_again_until_it_changes(
    tmp_path: Path, bucket: str, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "s")
    sent(put, tmp_path / "s")
    assert_all(bucket)
    copied: list[str] = []
    download = remote.Remote.download
    monkeypatch.setattr(
        remote.Remote, "download", lambda self, name, *a: (copied.append(name), download(self, name, *a))
    )
    assert_all(bucket)
    assert copied == []
    labels = open_store(bucket).teacher("cnn")
    with labels.writing():
        labels.remove(labels.shards[1])
    fill_there(labels, 3)
    assert_all(bucket)
    assert copied == ["cnn/00001-v0-3.h5"]


def assert_all(bucket: str) -> None:
    rows = np.arange(50)
    for name, array in open_store(bucket).teacher("cnn").take(rows, rows % 3).items():
        np.testing.assert_array_equal(array, values(50)[name][rows % 3, rows])


@pytest.mark.parametrize("form", ["hdf5", pytest.param("zarr", marks=pytest.mark.slow)])
def test_a_corrupted_object_is_never_read(tmp_path: Path, bucket: str, put: Any, objects: Any, form: str) -> None:
    filled(tmp_path / "s", form)
    sent(put, tmp_path / "s")
    name = next(name for name in objects() if "00001-v0-3" in name and not name.endswith("zarr.json"))
    data = bytearray(objects()[name])
    data[-40] ^= 1
    put(name, bytes(data))
    labels = open_store(bucket).teacher("cnn")
    labels.take([0], [0])
    with pytest.raises(StoreError, match=rf"{bucket}/cnn/00001-v0-3.* does not match its checksum.*repair"):
        labels.take([25], [0])
    (problem,) = [each for each in labels.verify() if "does not match" in each][:1]
    assert problem.startswith(f"{bucket}/cnn/00001-v0-3")
    assert not [path for path in (tmp_path / "cache").rglob("*00001-v0-3*") if path.parent.name == "cnn"]
    with labels.writing():
        for shard in labels.damaged():
            labels.remove(shard)
    assert fill_there(labels, 3) == 1
    assert objects() == files(tmp_path / "s")


def test_an_object_that_is_cut_off_is_missing(tmp_path: Path, bucket: str, put: Any, objects: Any) -> None:
    filled(tmp_path / "s")
    sent(put, tmp_path / "s")
    put("cnn/00001-v0-3.h5", objects()["cnn/00001-v0-3.h5"][:-100])
    labels = open_store(bucket).teacher("cnn")
    assert [shard.name for shard in labels.missing(3)] == ["00001-v0-3"]
    assert fill_there(labels, 3) == 1
    assert objects() == files(tmp_path / "s")


def test_names_in_a_bucket_are_never_paths(tmp_path: Path, bucket: str, put: Any) -> None:
    filled(tmp_path / "s")
    sent(put, tmp_path / "s")
    for name in (
        "../../escaped",
        "cnn/../../escaped",
        "..x/teacher.json",
        ".hidden/teacher.json",
        "cnn/00001-v0-3.h5/x",
    ):
        put(name, b"{}")
    put("a//teacher.json", b"{}")
    assert_all(bucket)
    labels = open_store(bucket)
    assert labels.teachers == ("cnn",)
    assert any("escaped" in each or ".." in each for each in labels.teacher("cnn").verify())
    assert not list(tmp_path.rglob("escaped"))


def test_a_server_that_comes_back_is_waited_for(
    tmp_path: Path, bucket: str, put: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "s")
    sent(put, tmp_path / "s")
    labels = open_store(bucket).teacher("cnn")
    labels.take([0], [0])
    monkeypatch.setattr(remote, "WAITS", [0.2] * 40)
    server.stop()
    back = threading.Timer(0.7, server.start)
    back.start()
    taken = labels.take(np.arange(50), np.zeros(50))
    back.join()
    np.testing.assert_array_equal(taken["ids"], values(50)["ids"][0])


def test_a_dump_goes_on_after_the_server_was_away(tmp_path: Path, bucket: str, server: Server, objects: Any) -> None:
    filled(tmp_path / "s")
    labels = make(bucket).prepare("cnn", card())
    server.stop()
    try:
        with pytest.raises(StoreError, match=r"cannot be reached.*gave up after 2 attempts.*goes on when"):
            fill_there(labels, 3)
        with pytest.raises(StoreError, match="cannot be reached"):
            open_store(bucket)
    finally:
        server.start()
    assert fill_there(open_store(bucket).teacher("cnn"), 3) == 3
    assert objects() == files(tmp_path / "s")


def test_what_a_killed_writer_left_is_removed(bucket: str, put: Any, objects: Any) -> None:
    labels = make(bucket).prepare("cnn", card())
    put("cnn/.partial-00001-v0-3.h5-0123", b"half")
    put("cnn/00002-v0-3.zarr/tail/c/0/0", b"not ours")
    fill_there(open_store(bucket).teacher("cnn"), 3)
    assert not [name for name in objects() if "partial" in name]
    assert labels.name == "cnn"


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_a_shard_that_was_written_but_not_sent_is_written_again(
    tmp_path: Path, bucket: str, objects: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    filled(tmp_path / "s", form)
    make(bucket).prepare("cnn", card(form))
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(remote.Remote, "upload", lambda *_: os._exit(9))
        fill_there(open_store(bucket).teacher("cnn"), 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert fill_there(open_store(bucket).teacher("cnn"), 3) == 3
    assert objects() == files(tmp_path / "s")
    assert held(tmp_path / "cache") == 0  # what was sent takes no room


def test_forked_and_pickled_readers_read_the_same(tmp_path: Path, bucket: str, put: Any) -> None:
    filled(tmp_path / "s")
    sent(put, tmp_path / "s")
    labels = open_store(bucket, Cache.at(tmp_path / "other", 1 << 20)).teacher("cnn")
    labels.take([0], [0])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(labels.take(np.arange(50), np.zeros(50))["ids"].tobytes())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == values(50)["ids"][0].tobytes()
    os.waitpid(child, 0)
    again = pickle.loads(pickle.dumps(labels))
    np.testing.assert_array_equal(again.take([30], [2])["ids"], values(50)["ids"][2, [30]])


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(StoreError, match=r"s3://b/x needs .*pip install 'softlabels\[remote\]'"):
        open_store("s3://b/x")
    with pytest.raises(StoreError, match="nowhere://x is no location"):
        open_store("nowhere://x")


def test_a_bucket_without_a_store_says_so(bucket: str) -> None:
    with pytest.raises(StoreError, match=r"has no manifest\.json"):
        open_store(bucket)
    with pytest.raises(StoreError, match=r"has no manifest\.json"):
        open_store("s3://there-is-no-such-bucket/x")


def test_shards_are_copied_ahead_of_their_use_as_far_as_there_is_room(
    tmp_path: Path, bucket: str, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = filled(tmp_path / "s", rows=60, rows_per_shard=10)
    sent(put, tmp_path / "s")
    copied: list[tuple[str, str]] = []
    download = remote.Remote.download

    def noted(self: Any, name: str, *rest: Any) -> None:
        if name.endswith(".h5"):
            copied.append((name[4:9], threading.current_thread().name))
        download(self, name, *rest)

    monkeypatch.setattr(remote.Remote, "download", noted)
    labels = open_store(bucket, Cache.at(tmp_path / "small", local.nbytes * 5 // 12)).teacher(
        "cnn"
    )  # two shards of six
    rows, views = np.arange(60), np.arange(60) % 3
    ahead = labels.ahead(rows, views)
    assert ahead is not None
    for place in range(0, 60, 5):
        ahead.reached(place)
        wanted = min(place // 10 + 2, 6)
        for _ in range(500):
            if len(copied) >= wanted:
                break
            time.sleep(0.01)
        assert len(copied) == wanted
        taken = labels.take(rows[place : place + 5], views[place : place + 5])
        np.testing.assert_array_equal(taken["tail"], values(60)["tail"][views, rows][place : place + 5])
    ahead.close()
    assert copied == [(f"{run:05d}", "softlabels-ahead") for run in range(6)]


def test_copies_made_at_the_same_time_keep_to_the_size_of_their_cache(
    tmp_path: Path, bucket: str, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = filled(tmp_path / "s", rows=60, rows_per_shard=10)
    sent(put, tmp_path / "s")
    cache = Cache.at(tmp_path / "small", local.nbytes * 5 // 12)  # two shards of six
    first, other = (open_store(bucket, cache).teacher("cnn") for _ in range(2))
    download = remote.Remote.download

    def meanwhile(self: Any, name: str, *rest: Any) -> None:
        download(self, name, *rest)
        if name.endswith("00000-v0-3.h5"):  # others come while it does: as many as there is room for
            for rows in ([10], [20]):
                other.take(rows, [0])

    monkeypatch.setattr(remote.Remote, "download", meanwhile)
    assert (first.take([0], [0])["ids"] == values(60)["ids"][0, :1]).all()
    assert cache.limit is not None
    assert 0 < held(cache.folder) <= cache.limit


@pytest.mark.parametrize("told", ["argument", "environment"])
def test_a_file_in_the_place_of_the_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    if told == "environment":
        monkeypatch.setenv("SOFTLABELS_CACHE", str(file))
    with pytest.raises(StoreError, match="is no folder"):
        Cache.at(file if told == "argument" else None)
