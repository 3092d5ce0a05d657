"""Shards move between stores and formats without a change."""

from __future__ import annotations

from pathlib import Path

import pytest
from store.stores import KINDS, assert_holds, card, each_kind, files, fill, filled, make, table

from softlabels.errors import StoreError
from softlabels.store import TeacherLabels, copy_images, open_store


def copy(source: TeacherLabels, target: TeacherLabels) -> None:
    with target.writing():
        for shard in source.shards:
            content = source.read_shard(shard)
            target.write(shard, content.arrays, skipped=content.skipped, digests=content.digests)


@each_kind
def test_shards_copied_to_another_format_and_back_are_the_same_files(
    tmp_path: Path, form: str, compression: str
) -> None:
    source = filled(tmp_path / "a", form, compression)
    for number, kind in enumerate(KINDS):
        there = copy_images(open_store(tmp_path / "a"), tmp_path / f"b{number}").prepare("cnn", card(*kind))
        copy(source, there)
        assert_holds(there, 3)
        assert list(there.digests()) == list(source.digests())
        back = copy_images(open_store(tmp_path / "a"), tmp_path / f"c{number}").prepare("cnn", source.card)
        copy(there, back)
        assert files(tmp_path / "a") == files(tmp_path / f"c{number}")


def test_added_images_are_copied_with_their_runs(tmp_path: Path) -> None:
    filled(tmp_path / "a", rows=30)
    store = open_store(tmp_path / "a").append_images(table(20, first=30))
    fill(store.teacher("cnn"), 3)
    copy(store.teacher("cnn"), copy_images(store, tmp_path / "b").prepare("cnn", card()))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_copying_again_opens_what_is_there(tmp_path: Path) -> None:
    labels = filled(tmp_path / "a")
    store = copy_images(open_store(tmp_path / "a"), tmp_path / "b")
    before = files(tmp_path / "b")
    assert copy_images(open_store(labels.root), tmp_path / "b").manifest == store.manifest
    assert files(tmp_path / "b") == before


def test_a_copy_never_lands_in_a_store_of_other_images_or_recipes(tmp_path: Path) -> None:
    source = open_store(filled(tmp_path / "a").root)
    for name, changes, said in (
        ("seed", {"seed": 8}, "seed is 8 there and 7 here"),
        ("rows", {"rows": 40}, r"images\.0\.rows is 40 there and 50 here"),
        ("runs", {"rows_per_shard": 25}, "rows_per_shard is 25 there and 20 here"),
    ):
        target = make(tmp_path / name, **changes)
        with pytest.raises(StoreError, match=said):
            copy_images(source, target.root)


def test_images_that_were_damaged_are_not_copied(tmp_path: Path) -> None:
    source = make(tmp_path / "a")
    content = bytearray((tmp_path / "a/images.parquet").read_bytes())
    content[100] ^= 1
    (tmp_path / "a/images.parquet").write_bytes(content)
    with pytest.raises(StoreError, match=r"images\.parquet does not match"):
        copy_images(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()
