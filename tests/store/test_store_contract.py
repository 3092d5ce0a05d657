"""What every format promises, with and without compression."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from store.stores import assert_holds, card, each_kind, files, fill, filled, make, of_shard, values

from softlabels.errors import StoreError
from softlabels.store import open_store


@each_kind
class TestContract:
    def test_any_rows_and_views_come_back_as_written(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression, views=3)
        rng = np.random.default_rng(1)
        rows, views = rng.integers(0, 50, 300), rng.integers(0, 3, 300)
        for name, array in labels.take(rows, views).items():
            known = values(50)[name]
            np.testing.assert_array_equal(array, known[views, rows])
            assert array.dtype == known.dtype
            array[...] = 0  # a copy: nobody else sees this
        assert_holds(labels, 3)

    def test_no_rows_are_no_labels(self, tmp_path: Path, form: str, compression: str) -> None:
        taken = filled(tmp_path / "s", form, compression).take([], [])
        assert {name: array.shape for name, array in taken.items()} == {"ids": (0, 5), "values": (0, 5), "tail": (0,)}

    def test_a_second_dump_finds_nothing_missing(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression, views=3)
        assert labels.missing(3) == []
        assert labels.views == 3
        assert fill(open_store(tmp_path / "s").teacher("cnn"), 3) == 0

    def test_views_grow_without_touching_what_is_there(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression, views=3)
        before = files(tmp_path / "s")
        assert [shard.name for shard in labels.missing(5)] == ["00000-v3-5", "00001-v3-5", "00002-v3-5"]
        assert fill(labels, 5) == 3
        after = files(tmp_path / "s")
        assert {name: after[name] for name in before} == before
        assert_holds(labels, 5)

    def test_any_finished_prefix_of_views_is_readable(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression, views=2)
        fill(labels, 4, part=(0, 2))
        assert labels.views == 2
        assert_holds(labels, 2)
        assert labels.held([0, 25, 0, 49, 50, -1], [3, 3, 1, 3, 0, 0]).tolist() == [
            True,
            False,
            True,
            True,
            False,
            False,
        ]
        with pytest.raises(StoreError, match=r"no labels of view 3 for rows 20\.\.39"):
            labels.take([25], [3])

    def test_parts_share_the_work_without_overlap(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = make(tmp_path / "s", 90, 10).prepare("cnn", card(form, compression))
        everything = labels.missing(3)
        parts = [labels.missing(3, (index, 4)) for index in range(4)]
        assert sorted(shard for part in parts for shard in part) == everything
        fill(labels, 3, part=(1, 4))
        assert [labels.missing(3, (index, 4)) for index in (0, 2, 3)] == [parts[0], parts[2], parts[3]]
        for index in (3, 0, 2):
            fill(labels, 3, part=(index, 4))
        assert_holds(labels, 3)

    def test_an_interrupted_store_ends_as_an_uninterrupted_one(
        self, tmp_path: Path, form: str, compression: str
    ) -> None:
        filled(tmp_path / "once", form, compression, views=3)
        labels = make(tmp_path / "twice").prepare("cnn", card(form, compression))
        with pytest.raises(KeyboardInterrupt), labels.writing():
            first = labels.missing(3)[0]
            labels.write(first, of_shard(values(50), first), digests={first.first_row: ["ab"] * 3})
            raise KeyboardInterrupt
        fill(labels, 3)
        assert files(tmp_path / "once") == files(tmp_path / "twice")

    def test_skipped_rows_and_digests_are_kept(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = make(tmp_path / "s").prepare("cnn", card(form, compression))
        with labels.writing():
            for shard in labels.missing(2):
                skipped = {21: "truncated"} if shard.run == 1 else {}
                digests = {shard.first_row + 3: ["aa", "bb"]}
                labels.write(shard, of_shard(values(50), shard), skipped=skipped, digests=digests)
        labels = open_store(tmp_path / "s").teacher("cnn")
        assert labels.skipped == {21: "truncated"}
        assert labels.labelled([20, 21, 22]).tolist() == [True, False, True]
        assert list(labels.digests())[:3] == [(3, 0, "aa"), (3, 1, "bb"), (23, 0, "aa")]

    def test_a_shard_is_read_whole(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression, views=3)
        shard = labels.shards[1]
        content = labels.read_shard(shard)
        for name, array in of_shard(values(50), shard).items():
            np.testing.assert_array_equal(content.arrays[name], array)
        assert content.digests == {20: ("ab",) * 3}

    def test_it_verifies(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression)
        assert labels.verify() == [] == open_store(tmp_path / "s").verify()
        assert labels.nbytes <= sum(map(len, files(tmp_path / "s").values()))

    def test_a_removed_shard_is_missing_and_comes_back(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression)
        before, shard = files(tmp_path / "s"), labels.shards[1]
        labels.take([21], [0])
        with labels.writing():
            labels.remove(shard)
        assert labels.missing(3) == [shard]
        with pytest.raises(StoreError, match="incomplete"):
            labels.take([21], [0])
        fill(labels, 3)
        assert files(tmp_path / "s") == before
        assert_holds(labels, 3)

    def test_it_pickles_as_its_path(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression)
        labels.take([1], [1])
        assert len(pickle.dumps(labels)) < 300
        assert_holds(pickle.loads(pickle.dumps(labels)), 3)

    def test_a_forked_process_reads_what_its_parent_opened(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression)
        labels.take([1], [1])
        rows, views = np.arange(50), np.arange(50) % 3
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(pickle.dumps({name: array.tobytes() for name, array in labels.take(rows, views).items()}))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            found = pickle.loads(pipe.read())
        os.waitpid(child, 0)
        assert found == {name: array.tobytes() for name, array in labels.take(rows, views).items()}

    def test_wide_records_are_read_too(self, tmp_path: Path, form: str, compression: str) -> None:
        layout = {"logits": {"dtype": "float16", "shape": (21841,)}}
        labels = make(tmp_path / "s", rows=5, rows_per_shard=3).prepare("cnn", card(form, compression, layout=layout))
        known = np.random.default_rng(0).standard_normal((2, 5, 21841)).astype(np.float16)
        with labels.writing():
            for shard in labels.missing(2):
                labels.write(shard, of_shard({"logits": known}, shard))
        rows, views = np.array([4, 0, 4, 2]), np.array([1, 1, 0, 0])
        np.testing.assert_array_equal(labels.take(rows, views)["logits"], known[views, rows])

    def test_labels_that_do_not_compress_are_kept_too(self, tmp_path: Path, form: str, compression: str) -> None:
        layout = {"noise": {"dtype": "uint8", "shape": (64,)}, "zero": {"dtype": "bool", "shape": (2, 3)}}
        labels = make(tmp_path / "s").prepare("cnn", card(form, compression, layout=layout))
        noise = np.random.default_rng(0).integers(0, 256, (2, 50, 64)).astype(np.uint8)
        known = {"noise": noise, "zero": np.zeros((2, 50, 2, 3), bool)}
        with labels.writing():
            for shard in labels.missing(2):
                labels.write(shard, of_shard(known, shard))
        taken = labels.take(np.arange(50), np.arange(50) % 2)
        np.testing.assert_array_equal(taken["noise"], noise[np.arange(50) % 2, np.arange(50)])
        assert not taken["zero"].any()
        assert labels.verify() == []

    def test_rows_that_are_not_there_are_refused(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = filled(tmp_path / "s", form, compression)
        for rows in ([50], [-1], [3, 1 << 62]):
            with pytest.raises(IndexError, match=r"0\.\.49"):
                labels.take(rows, [0] * len(rows))
        for view in (3, -1, 1 << 60):
            with pytest.raises(StoreError, match=r"views 0\.\.2"):
                labels.take([0], [view])
        with pytest.raises(ValueError, match="one equal length"):
            labels.take([0, 1], [0])

    def test_arrays_that_do_not_fit_are_refused(self, tmp_path: Path, form: str, compression: str) -> None:
        labels = make(tmp_path / "s").prepare("cnn", card(form, compression))
        shard = labels.missing(2)[0]
        good = of_shard(values(50), shard)
        with labels.writing():
            with pytest.raises(StoreError, match="needs the arrays"):
                labels.write(shard, {"ids": good["ids"]})
            with pytest.raises(StoreError, match=r"must be float16 \(2, 20, 5\)"):
                labels.write(shard, good | {"values": good["values"].astype(np.float32)})
            with pytest.raises(StoreError, match=r"must be uint16 \(2, 20, 5\)"):
                labels.write(shard, good | {"ids": good["ids"][:, :19]})
        assert labels.shards == ()


def test_hdf5_shards_open_with_plain_h5py(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    for compression in ("none", "zstd"):
        filled(tmp_path / compression, "hdf5", compression)
        with h5py.File(tmp_path / compression / "cnn" / "00001-v0-3.h5") as file:
            assert set(file) == {"ids", "values", "tail"}
            for name, known in values(50).items():
                np.testing.assert_array_equal(file[name][...], known[:3, 20:40])


def test_zarr_shards_open_with_plain_zarr_python(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    for compression in ("none", "zstd"):
        filled(tmp_path / compression, "zarr", compression)
        group = zarr.open_group(str(tmp_path / compression / "cnn" / "00001-v0-3.zarr"), mode="r")
        assert set(group.array_keys()) == {"ids", "values", "tail"}
        for name, known in values(50).items():
            np.testing.assert_array_equal(group[name][...], known[:3, 20:40])


def test_a_spawned_process_reads_the_same(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s")
    rows, views = np.arange(50), np.arange(50) % 3
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(labels.take, (rows, views))
    for name, array in labels.take(rows, views).items():
        np.testing.assert_array_equal(found[name], array)


def test_both_formats_of_one_store_hold_the_same(tmp_path: Path) -> None:
    taken = [filled(tmp_path / form, form).take(np.arange(50), np.full(50, 2)) for form in ("hdf5", "zarr")]
    for name in taken[0]:
        np.testing.assert_array_equal(taken[0][name], taken[1][name])


def test_reading_imports_neither_hdf5_nor_zarr(tmp_path: Path) -> None:
    for form in ("hdf5", "zarr"):
        filled(tmp_path / form, form)
        script = (
            "import sys; from softlabels.store import open_store; "
            f"open_store({str(tmp_path / form)!r}).teacher('cnn').take([1], [1]); "
            "print(sorted({'h5py', 'zarr', 'torch', 'numcodecs'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
