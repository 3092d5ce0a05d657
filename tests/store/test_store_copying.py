"""Labels move between stores and formats without a change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store.stores import KINDS, assert_holds, card, each_kind, files, fill, filled, make, of_shard, table, values

from softlabels.errors import StoreError
from softlabels.store import copy_images, copy_labels, merge, open_store


@each_kind
def test_labels_copied_to_another_format_and_back_are_the_same_files(
    tmp_path: Path, form: str, compression: str
) -> None:
    source = filled(tmp_path / "a", form, compression)
    for number, kind in enumerate(KINDS):
        there = copy_images(open_store(tmp_path / "a"), tmp_path / f"b{number}").prepare("cnn", card(*kind))
        assert copy_labels(source, there) == 3
        assert_holds(there, 3)
        assert list(there.digests()) == list(source.digests())
        assert there.skipped == source.skipped
        back = copy_images(open_store(tmp_path / "a"), tmp_path / f"c{number}").prepare("cnn", source.card)
        copy_labels(there, back)
        assert files(tmp_path / "a") == files(tmp_path / f"c{number}")
        assert copy_labels(there, back) == 0


def test_parts_dumped_on_two_machines_merge_into_one_store(tmp_path: Path) -> None:
    filled(tmp_path / "whole", rows=90, rows_per_shard=10, views=3)
    for index in range(2):
        fill(make(tmp_path / f"{index}", 90, 10).prepare("cnn", card()), 3, part=(index, 2))
    target = copy_images(open_store(tmp_path / "0"), tmp_path / "merged")
    assert [merge(open_store(tmp_path / f"{index}"), target) for index in range(2)] == [5, 4]
    assert files(tmp_path / "merged") == files(tmp_path / "whole")
    assert [merge(open_store(tmp_path / f"{index}"), target) for index in range(2)] == [0, 0]


def test_only_what_is_missing_is_copied(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "a", views=6), make(tmp_path / "b").prepare("cnn", card("zarr"))
    with target.writing():
        shard = target._folder.runs.shard(1, 2, 4)
        target.write(shard, of_shard(values(50), shard), digests={20: ["cd", "cd"]})
    copy_labels(source, target)
    names = {shard.name for shard in target.shards}
    assert names == {"00000-v0-6", "00001-v0-2", "00001-v2-4", "00001-v4-6", "00002-v0-6"}
    assert_holds(target, 6)
    assert [text for row, view, text in target.digests() if row == 20] == ["ab", "ab", "cd", "cd", "ab", "ab"]


def test_added_images_are_copied_with_their_runs(tmp_path: Path) -> None:
    filled(tmp_path / "a", rows=30)
    store = open_store(tmp_path / "a").append_images(table(20, first=30))
    fill(store.teacher("cnn"), 3)
    target = copy_images(store, tmp_path / "b")
    merge(store, target)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_stores_of_other_images_or_recipes_do_not_mix(tmp_path: Path) -> None:
    source = open_store(filled(tmp_path / "a").root)
    for name, changes, said in (
        ("seed", {"seed": 8}, "seed is 8 there and 7 here"),
        ("rows", {"rows": 40}, "images.0.rows is 40 there and 50 here"),
        ("runs", {"rows_per_shard": 25}, "rows_per_shard is 25 there and 20 here"),
    ):
        target = make(tmp_path / name, **changes)
        with pytest.raises(StoreError, match=said):
            merge(source, target)
        with pytest.raises(StoreError, match=said):
            copy_images(source, target.root)
    other = make(tmp_path / "teacher").prepare("cnn", card(weights_sha256="cd" * 32))
    with pytest.raises(StoreError, match="weights_sha256 is"):
        merge(source, open_store(other.root))


def test_labels_of_another_layout_or_other_runs_are_not_copied(tmp_path: Path) -> None:
    source = filled(tmp_path / "a")
    layout = {"ids": {"dtype": "uint16", "shape": (5,)}}
    for number, target in enumerate(
        (make(tmp_path / "b").prepare("cnn", card(layout=layout)), make(tmp_path / "c", 50, 25).prepare("cnn", card()))
    ):
        with pytest.raises(StoreError, match="other arrays or other runs"):
            copy_labels(source, target)
        assert target.shards == (), number


def test_a_damaged_shard_is_not_copied(tmp_path: Path) -> None:
    source = filled(tmp_path / "a")
    offset = source._folder.header(source.shards[1]).arrays["tail"].offsets[0]
    path = tmp_path / "a/cnn/00001-v0-3.h5"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    target = copy_images(open_store(tmp_path / "a"), tmp_path / "b").prepare("cnn", card())
    with pytest.raises(StoreError, match=r"00001-v0-3\.h5"):
        copy_labels(source, target)
    assert [shard.name for shard in target.shards] == ["00000-v0-3"]
    np.testing.assert_array_equal(target.take([0], [0])["tail"], values(50)["tail"][0, :1])
