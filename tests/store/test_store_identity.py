"""A store knows what it is of, and says where something else differs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from store.stores import LAYOUT, assert_holds, card, files, fill, filled, make, table

from softlabels.errors import StoreError
from softlabels.store import ArrayLayout, ImageFile, Manifest, TeacherCard, TeacherLabels, create, open_store
from softlabels.store._shard import Header


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 8}, "seed is 7 there and 8 here"),
        ({"classes": 11}, "classes is 10 there and 11 here"),
        (
            {"recipe": {"steps": [{"kind": "crop", "scale": [0.5, 1.0]}]}},
            r"recipe.steps.0.scale.0 is 0.08 there and 0.5",
        ),
        ({"class_names": [f"class {n}" for n in (0, 1, 2, 3, 9, 5, 6, 7, 8, 9)]}, "class_names.4 is 'class 4' there"),
        ({"images": table(49)}, "it holds 50 images, here are 49, of which the first 49 are the same"),
        ({"images": table(60)}, "append_images adds the new ones"),
        ({"images": table(50, first=1)}, "image 0 is 'train/00000.jpg' there and 'train/00001.jpg' here"),
    ],
)
def test_another_data_set_or_recipe_is_refused_with_the_difference(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    make(tmp_path / "s")
    before = files(tmp_path / "s")
    with pytest.raises(StoreError, match=said.replace("[", r"\[")) as refusal:
        make(tmp_path / "s", **changes)
    assert "\n" not in str(refusal.value)
    assert files(tmp_path / "s") == before


def test_changed_labels_and_contents_are_refused_by_key(tmp_path: Path) -> None:
    make(tmp_path / "s")
    for column, said in (
        ("label", "'train/00017.jpg' has hard label 6 there and 99 here"),
        ("checksum", "has content"),
    ):
        images = table(50)
        changed = images[column].to_numpy().copy()
        changed[17] = 99
        images = images.set_column(images.column_names.index(column), column, pa.array(changed))
        with pytest.raises(StoreError, match=said):
            make(tmp_path / "s", images=images)


def test_the_same_again_opens_the_store_and_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "s")
    before = files(tmp_path / "s")
    again = make(tmp_path / "s", rows_per_shard=999, versions={"softlabels": "9.9"})
    assert again.manifest.rows_per_shard == 20
    assert files(tmp_path / "s") == before


def test_images_that_moved_are_the_same_data_set(tmp_path: Path) -> None:
    make(tmp_path / "s")
    before = files(tmp_path / "s")
    make(tmp_path / "s", data={"kind": "folder", "name": "elsewhere"})
    assert files(tmp_path / "s") == before
    with pytest.raises(StoreError, match=r"data\.name is 'birds' there and 'cats' here.*it holds 50 images"):
        make(tmp_path / "s", images=table(49), data={"kind": "folder", "name": "cats"})


def test_checksums_are_asked_for_only_once(tmp_path: Path) -> None:
    images, asked = table(50), []

    def checksums() -> np.ndarray:
        asked.append(1)
        return images["checksum"].to_numpy()

    without = images.drop_columns("checksum")
    store = make(tmp_path / "s", images=without, checksums=checksums)
    make(tmp_path / "s", images=without, checksums=checksums)
    assert len(asked) == 1
    np.testing.assert_array_equal(store.checksums, images["checksum"].to_numpy())
    assert files(tmp_path / "s") == files(make(tmp_path / "t").root)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights_sha256": "cd" * 32}, "weights_sha256 is"),
        ({"codec": {"kind": "topk", "k": 6}}, "codec.k is 5 there and 6 here"),
        (
            {"layout": LAYOUT | {"tail": {"dtype": "float64"}}},
            "layout.tail.dtype is 'float32' there and 'float64' here",
        ),
        ({"form": "zarr"}, "format is 'hdf5' there and 'zarr' here"),
        ({"compression": "zstd"}, "compression is 'none' there"),
    ],
)
def test_another_teacher_or_codec_is_refused_with_the_difference(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    store = filled(tmp_path / "s").root
    with pytest.raises(StoreError, match=said):
        open_store(store).prepare("cnn", card(**changes))


def test_a_teacher_without_a_hash_is_known_by_its_spec(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.prepare("live", card(weights_sha256=""))
    with pytest.raises(StoreError, match=r"spec\.name is 'cnn' there and 'other' here"):
        store.prepare("live", card(weights_sha256="", spec={"kind": "small", "name": "other"}))


def test_weights_that_moved_are_the_same_teacher(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.prepare("cnn", card())
    moved = store.prepare("cnn", card(spec={"kind": "file", "path": "elsewhere.safetensors"}))
    assert moved.card.spec == {"kind": "small", "name": "cnn"}


def test_a_second_teacher_is_a_second_folder(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s")
    before = files(tmp_path / "s")
    store = open_store(tmp_path / "s")
    fill(store.prepare("resnet50.a1_in1k", card("zarr", spec={"kind": "timm"})), 2)
    assert store.teachers == ("cnn", "resnet50.a1_in1k")
    assert {name: files(tmp_path / "s")[name] for name in before} == before
    assert labels.views == 3
    assert store.teacher("resnet50.a1_in1k").views == 2


def test_other_versions_are_the_same_teacher(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.prepare("cnn", card())
    assert store.prepare("cnn", card(versions={"torch": "3.0"})).card.versions == {"torch": "2.15"}


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "../evil", "/etc", "-rf", ".hidden", "a\n", "a b", "x" * 101, "ä"]
)
def test_names_of_teachers_never_become_paths(tmp_path: Path, name: str) -> None:
    store = make(tmp_path / "s")
    with pytest.raises(StoreError, match="name is a folder's"):
        store.prepare(name, card())
    with pytest.raises(StoreError, match="has no teacher"):
        store.teacher(name)


def test_an_unknown_teacher_is_answered_with_the_nearest(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    with pytest.raises(StoreError, match="did you mean 'cnn'"):
        open_store(tmp_path / "s").teacher("cnm")


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="10 classes, teacher cnn gives 12"):
        make(tmp_path / "s").prepare("cnn", card(classes=12))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (pa.table({"key": ["a"], "label": [1]}), "needs the columns"),
        (table(0), "no images"),
        (pa.table({"key": ["a", None], "label": [1, 2], "checksum": [1, 2]}), "nulls"),
        (pa.table({"key": ["a", "b", "a"], "label": [1, 2, 3], "checksum": [1, 2, 3]}), "two images have the key 'a'"),
        (pa.table({"key": ["a"], "label": ["x"], "checksum": [1]}), "does not fit"),
        (pa.table({"key": ["a"], "label": [1], "checksum": [-1]}), "does not fit"),
    ],
)
def test_tables_of_images_that_do_not_fit_are_refused(tmp_path: Path, images: pa.Table, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        make(tmp_path / "s", images=images)
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_keys_that_are_here_already_are_not_added(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with pytest.raises(StoreError, match=r"two images have the key 'train/00049\.jpg'"):
        store.append_images(table(3, first=49))
    assert len(open_store(tmp_path / "s")) == 50


def test_rows_are_found_by_key_in_any_order_and_kind(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    keys = [key.as_py() for key in store.keys]
    for given in (keys, tuple(keys), np.array(keys), pa.array(keys), store.keys, (key for key in keys)):
        assert store.rows(given).tolist() == list(range(50))
    assert store.rows(pa.chunked_array([keys[40:], keys[:3]])).tolist() == [*range(40, 50), 0, 1, 2]
    assert store.rows(keys[::-1] + keys[:5]).tolist() == [*range(49, -1, -1), *range(5)]
    assert store.rows([keys[7]]).tolist() == [7]
    assert store.rows([]).tolist() == []
    assert store.find([*keys[48:], "new", *keys[:20]]).tolist() == [48, 49, -1, *range(20)]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with pytest.raises(KeyError, match="no images with the keys 'x0', 'x1', 'x2', 'x3', 'x4' and 35 more"):
        store.rows([f"x{number}" for number in range(40)])
    with pytest.raises(TypeError, match="not one str"):
        store.rows("train/00001.jpg")


def test_odd_keys_survive(tmp_path: Path) -> None:
    keys = ["", "a/../b", "ä/ö.png", "新/画像.jpg", "new\nline", "nul\0", "x" * 5000]
    images = pa.table({"key": keys, "label": np.full(7, -1), "checksum": np.arange(7, dtype=np.uint64)})
    store = make(tmp_path / "s", images=images)
    assert store.keys.to_pylist() == keys
    assert store.rows(keys[::-1]).tolist() == list(range(6, -1, -1))


def test_there_is_no_store_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a folder"):
        open_store(tmp_path / "nothing")
    with pytest.raises(StoreError, match=r"has no manifest\.json"):
        open_store(tmp_path)


def test_class_names_that_are_no_unicode_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no valid Unicode"):
        make(tmp_path / "s", class_names=["\udcff"])


def test_a_store_is_of_the_same_name_on_every_machine(tmp_path: Path) -> None:
    here = make(tmp_path / "a", versions={"torch": "2.15"}).manifest.id
    there = create(
        tmp_path / "b",
        data={"name": "birds", "kind": "folder"},
        images=pa.concat_tables([table(20), table(30, first=20)]),
        class_names=tuple(f"class {number}" for number in range(10)),
        classes=10,
        recipe={"steps": ({"scale": (0.08, 1.0), "kind": "crop"},)},
        seed=7,
        rows_per_shard=20,
    ).manifest.id
    assert here == there


class LaterLayout(ArrayLayout):
    order: str = "rows"


class LaterCard(TeacherCard):
    layer: str = "head"
    layout: dict[str, LaterLayout]  # type: ignore[assignment]


class LaterFile(ImageFile):
    source: str | None = None


class LaterManifest(Manifest):
    purpose: str = "training"
    images: tuple[LaterFile, ...]


class LaterHeader(Header):
    host: str = ""


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_fields_that_come_later_make_no_store_another_one(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for reading it, nor for checking its bytes, nor for going on with it."""
    digest = filled(tmp_path / "s", form).card.digest
    monkeypatch.setattr("softlabels.store._store.TeacherCard", LaterCard)
    monkeypatch.setattr("softlabels.store._store.Manifest", LaterManifest)
    monkeypatch.setattr("softlabels.store._folder.Header", LaterHeader)
    store = open_store(tmp_path / "s")
    labels = store.teacher("cnn")
    assert isinstance(labels.card, LaterCard)
    assert (labels.card.digest, labels.views) == (digest, 3)
    assert store.verify() == labels.verify() == []
    again = store.prepare("cnn", LaterCard.model_validate(card(form).model_dump()))
    fill(again, 4)
    assert_holds(again, 4)
    assert again.verify() == []
    grown = store.append_images(table(5, first=50))
    assert grown.verify() == []
    with pytest.raises(StoreError, match="layer is absent there and 'feature' here"):
        grown.prepare("cnn", LaterCard.model_validate({**card(form).model_dump(), "layer": "feature"}))


def test_a_later_version_writes_the_same_shards_where_it_uses_nothing_new(tmp_path: Path) -> None:
    """And an earlier one takes them for its own."""
    old, new = card(), LaterCard.model_validate(card().model_dump())
    assert old.digest == new.digest
    assert new.model_copy(update={"layer": "feature"}).digest != old.digest
    assert make(tmp_path / "s").prepare("cnn", new).card.digest == old.digest


def test_what_a_teacher_computed_in_is_part_of_who_it_is(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.prepare("cnn", card(precision="fp32"))
    with pytest.raises(StoreError, match="precision is 'fp32' there and 'bf16' here"):
        store.prepare("cnn", card(precision="bf16"))
    assert card(precision="fp32").digest != card(precision="bf16").digest
    store.prepare("cnn", card())  # not known here
    store.prepare("earlier", card())
    store.prepare("earlier", card(precision="bf16"))  # not recorded there


def grown(root: Path, first: int) -> TeacherLabels:
    """A store of 50 images that got 10 others, from `first` on, and labels of all of them."""
    filled(root)
    store = open_store(root).append_images(table(10, first=first))
    labels = store.teacher("cnn")
    fill(labels, 3)
    return labels


def test_shards_of_a_store_that_grew_fit_no_store_that_grew_otherwise(tmp_path: Path) -> None:
    one, other = grown(tmp_path / "a", 50), grown(tmp_path / "b", 60)
    assert [shard.name for shard in one.shards] == [shard.name for shard in other.shards]
    place = "cnn/00000-v0-3.h5"
    shutil.copy(tmp_path / "a" / place, tmp_path / "b" / place)
    assert open_store(tmp_path / "b").teacher("cnn").verify() == []  # of images that both have
    place = "cnn/00003-v0-3.h5"
    shutil.copy(tmp_path / "a" / place, tmp_path / "b" / place)
    with pytest.raises(StoreError, match=r"00003-v0-3\.h5 is of another data set and recipe than this store"):
        open_store(tmp_path / "b").teacher("cnn").missing(3)
    assert grown(tmp_path / "c", 50).verify() == []
    shutil.copy(tmp_path / "a" / place, tmp_path / "c" / place)
    assert open_store(tmp_path / "c").teacher("cnn").verify() == []


def test_stores_that_an_earlier_version_grew_stay_readable_and_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr("softlabels.store._store.grown_id", lambda *_: None)
        labels = grown(tmp_path / "s", 50)
        rows, views = np.tile(np.arange(60), 3), np.repeat(np.arange(3), 60)
        told = labels.take(rows, views)
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    del manifest["images"][1]["id"], manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "s/manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    store = open_store(tmp_path / "s")
    assert store.verify() == store.teacher("cnn").verify() == []
    labels = store.append_images(table(5, first=60)).teacher("cnn")
    fill(labels, 3)
    assert open_store(tmp_path / "s").verify() == open_store(tmp_path / "s").teacher("cnn").verify() == []
    assert labels.views == 3
    for name, array in labels.take(rows, views).items():
        np.testing.assert_array_equal(array, told[name])


def test_an_id_that_does_not_follow_from_the_images_is_refused(tmp_path: Path) -> None:
    grown(tmp_path / "s", 50)
    path = tmp_path / "s/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["images"][1]["id"] = "ab" * 32
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    with pytest.raises(StoreError, match="has an id that its other values do not give"):
        open_store(tmp_path / "s")


def test_shards_too_large_to_be_read_are_refused_before_there_are_any(tmp_path: Path) -> None:
    store = make(tmp_path / "s", rows=50, rows_per_shard=40)
    wide = {"values": {"dtype": "float64", "shape": ((1 << 25) - 1,)}}
    with pytest.raises(StoreError, match=r"one view of 40 rows of array 'values' .* with 4 rows per shard or fewer"):
        store.prepare("wide", card(layout=wide))
    assert store.teachers == ()
