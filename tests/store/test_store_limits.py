"""What costs too much or cannot be read is refused before it is made; what is made is read, at any size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store.stores import assert_holds, card, each_kind, fill, filled, make, of_shard, table, values

from softlabels.core.paths import SafePath
from softlabels.errors import StoreError
from softlabels.store import _gather, open_store
from softlabels.store._folder import ShardFolder
from softlabels.store._shard import Header, Shard

WIDE = {"logits": {"dtype": "float16", "shape": (140_000,)}}


def test_a_view_of_a_shard_that_no_reader_takes_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    store = make(tmp_path / "s", rows=5000, rows_per_shard=4096)
    with pytest.raises(StoreError, match=r"4,096 rows .* 1,146,880,000 bytes.* 3,834 rows per shard or fewer"):
        store.prepare("wide", card(layout=WIDE))
    assert store.teachers == ()
    make(tmp_path / "t", rows=5000, rows_per_shard=3834).prepare("wide", card(layout=WIDE))


def test_more_runs_and_views_than_are_read_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gather, "MOST_SLOTS", 64)
    labels = filled(tmp_path / "s", rows=50, rows_per_shard=10, views=12)  # 60 slots of 64
    assert_holds(open_store(tmp_path / "s").teacher("cnn"), 12)
    with pytest.raises(StoreError, match=r"13 views of 5 runs .* more `rows_per_shard`"):
        labels.missing(13)
    assert labels.missing(12) == []


def test_a_stranger_must_have_the_files_of_what_is_claimed(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s", rows=40_000, rows_per_shard=1, views=0)
    (tmp_path / "s/cnn").joinpath("00000-v0-60000.h5").write_bytes(b"")
    with pytest.raises(StoreError, match="more than is read"):
        labels.take([0], [0])


@each_kind
def test_a_header_is_read_once_and_again_when_its_file_changes(
    tmp_path: Path, form: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "s", form, compression)
    read: list[str] = []
    once = ShardFolder._header

    def noted(self: ShardFolder, shard: Shard, place: SafePath) -> Header:
        read.append(shard.name)
        return once(self, shard, place)

    monkeypatch.setattr(ShardFolder, "_header", noted)
    labels = open_store(tmp_path / "s").teacher("cnn")
    for _ in range(3):
        _ = labels.shards, labels.views, labels.nbytes, labels.skipped, list(labels.digests()), labels.missing(3)
    assert read == [shard.name for shard in labels.shards]
    path = next(path for path in sorted((tmp_path / "s/cnn").rglob("*")) if "00001" in str(path) and path.is_file())
    os.truncate(path, path.stat().st_size - 1)
    assert [shard.name for shard in labels.missing(3)] == ["00001-v0-3"]
    assert read[3:] == ["00001-v0-3"]


def test_a_folder_is_listed_as_often_whether_few_shards_are_written_or_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = 0
    entries = SafePath.entries

    def counted(self: SafePath) -> list[str]:
        nonlocal listed
        listed += self.names == ("cnn",)
        return entries(self)

    monkeypatch.setattr(SafePath, "entries", counted)
    counts = []
    for rows in (20, 200):
        labels, listed = make(tmp_path / str(rows), rows, 10).prepare("cnn", card()), 0
        fill(labels, 2)
        counts.append(listed)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_more_shards_than_may_be_mapped_are_read(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gather, "_MOST_MAPS", 12)
    labels = filled(tmp_path / "s", form, rows=100, rows_per_shard=5)
    labels = open_store(tmp_path / "s").teacher("cnn")
    known, random = values(100), np.random.default_rng(0)
    for _ in range(30):
        rows, views = random.integers(0, 100, 3), random.integers(0, 3, 3)
        for name, array in labels.take(rows, views).items():
            np.testing.assert_array_equal(array, known[name][views, rows])
        assert len(labels._reader.open) <= 4 + 3


def test_a_shard_is_never_absent_while_it_is_written_again(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s")
    shard = labels.shards[1]
    path = tmp_path / "s/cnn/00001-v0-3.h5"
    os.truncate(path, 900)
    seen: list[bool] = []
    rename = Path.rename

    def watched(self: Path, target: Any) -> Path:
        seen.append(path.exists())
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch, labels.writing():
        patch.setattr(Path, "rename", watched)
        labels.write(shard, of_shard(values(50), shard))
    assert seen == [True]


def test_of_two_that_add_images_at_once_the_second_is_told(tmp_path: Path) -> None:
    first, second = make(tmp_path / "s"), open_store(tmp_path / "s")
    first.append_images(table(7, first=50))
    with pytest.raises(StoreError, match=r"another process added images .* run the same command again"):
        second.append_images(table(7, first=50))
    assert len(open_store(tmp_path / "s")) == 57
