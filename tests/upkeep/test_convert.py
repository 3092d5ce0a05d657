"""Stores in other formats and codecs: the same labels, the same images, the same teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from moving import all_bytes, dump, flip, killed, shard_bytes
from worlds import write_pictures

import softlabels
from softlabels.codecs import CODECS
from softlabels.store import open_store

FORMATS = ("hdf5", "zarr")
OTHER = {"hdf5": "zarr", "zarr": "hdf5"}


@pytest.fixture(scope="module")
def dumped(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of dense:fp32 labels of two teachers; not to be changed."""
    out = tmp_path_factory.mktemp("dumped") / "shards"
    return dump(out, photos, teacher=["cnn_tiny", "cnn_small"], weights=["random", "random:1"], codec="dense:fp32")


@pytest.mark.parametrize("format", FORMATS)
def test_another_format_holds_the_same_arrays_and_there_and_back_are_the_same_bytes(
    photos: Path, tmp_path: Path, format: str
) -> None:
    there = dump(tmp_path / "there", photos, format=format, codec="topk:2")
    softlabels.convert(labels=str(there), out=str(tmp_path / "other"), format=OTHER[format], quiet=True)
    softlabels.convert(labels=str(tmp_path / "other"), out=str(tmp_path / "back"), format=format, quiet=True)
    source, other = (open_store(tmp_path / name).teacher("cnn_tiny") for name in ("there", "other"))
    assert other.card.format == OTHER[format]
    assert [shard.name for shard in other.shards] == [shard.name for shard in source.shards]
    for shard in source.shards:
        here, there_too = source.read_shard(shard), other.read_shard(shard)
        assert here.digests == there_too.digests != {}
        for name, array in here.arrays.items():
            np.testing.assert_array_equal(array, there_too.arrays[name])
    assert shard_bytes(tmp_path / "back") == shard_bytes(there)


def test_images_manifest_and_teacher_are_carried_over(dumped: Path, tmp_path: Path) -> None:
    softlabels.convert(labels=str(dumped), out=str(tmp_path / "z"), format="zarr", codec="topk:2", lossy=True)
    before, after = open_store(dumped), open_store(tmp_path / "z")
    assert after.manifest == before.manifest
    assert after.images.equals(before.images)
    for name in ("cnn_tiny", "cnn_small"):
        old, new = before.teacher(name).card, after.teacher(name).card
        for what in ("spec", "weights_sha256", "licence", "preprocessing", "classes"):
            assert getattr(new, what) == getattr(old, what)
        assert new.versions == old.versions | {"recoded_from": "dense:fp32"}
        assert new.codec["k"] == 2


@pytest.mark.parametrize("recipe", ["crop-flip", "crop-flip-mixup"])
@pytest.mark.parametrize("codec", ["dense", "quantized", "quantized:4", "head_tail:1", "topk:2", "sampled:2"])
def test_recoded_labels_are_those_of_a_dump_with_that_codec(
    photos: Path, tmp_path: Path, codec: str, recipe: str
) -> None:
    exact = dump(tmp_path / "exact", photos, codec="dense:fp32", recipe=recipe, limit=7)
    dump(tmp_path / "direct", photos, codec=codec, recipe=recipe, limit=7)
    softlabels.convert(labels=str(exact), out=str(tmp_path / "recoded"), codec=codec, lossy=True, quiet=True)
    assert shard_bytes(tmp_path / "recoded") == shard_bytes(tmp_path / "direct")


@pytest.mark.parametrize("codec", ["dense", "quantized:4"])
def test_every_bit_fits_into_fp32(photos: Path, tmp_path: Path, codec: str) -> None:
    store = dump(tmp_path / "s", photos, codec=codec)
    softlabels.convert(labels=str(store), out=str(tmp_path / "wide"), codec="dense:fp32", quiet=True)
    old, new = softlabels.open_labels(store), softlabels.open_labels(tmp_path / "wide")
    for view in range(2):
        assert torch.equal(old.logits(range(18), view), new.logits(range(18), view))


@pytest.mark.parametrize(
    ("codec", "wanted", "said"),
    [
        ("dense:fp32", "dense:fp16", "allow it with --lossy"),
        ("dense", "topk:2", "topk:2 would round labels that are dense:fp16 now"),
        ("quantized", "quantized:4", "quantized:4 would round labels that are quantized:8 now"),
        ("topk:2", "dense:fp32", "stand for other logits at each temperature"),
        ("sampled:2", "topk:2", "dump with --codec topk:2 instead"),
    ],
)
def test_labels_that_would_be_less_than_they_seem_are_refused(
    softlabels_command: Callable, photos: Path, codec: str, wanted: str, said: str
) -> None:
    dump(Path("shards"), photos, codec=codec, limit=3)
    refused = softlabels_command("convert", "--out", "other", "--codec", wanted)
    assert refused.exit_code == 2
    assert said in refused.output
    assert refused.output.count("\n") == 1
    assert not Path("other").exists()


def test_a_codec_that_they_have_already_only_copies(photos: Path, tmp_path: Path) -> None:
    store = dump(tmp_path / "s", photos, codec="sampled:2")
    softlabels.convert(labels=str(store), out=str(tmp_path / "copy"), codec="sampled:2", quiet=True)
    assert shard_bytes(tmp_path / "copy") == shard_bytes(store)


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_converts_goes_on_and_then_does_nothing(
    softlabels_command: Callable, dumped: Path, format: str
) -> None:
    command = ("convert", "--labels", dumped, "--out", "c", "--format", format, "--codec", "quantized", "--lossy")
    assert softlabels_command(*command, "--teachers", "cnn_small").exit_code == 0
    assert open_store("c").teachers == ("cnn_small",)
    done = softlabels_command(*command)
    assert "cnn_small: all labels of" in done.output
    assert "cnn_tiny: copied 4 shards, 36 labels" in done.output
    before = all_bytes(Path("c"))
    again = softlabels_command(*command)
    assert again.output.count("nothing to do") == 2
    assert all_bytes(Path("c")) == before
    verified = softlabels_command("verify", "--labels", "c", "--device", "cpu")
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_conversion_loses_nothing_and_ends_bit_identical(photos: Path, tmp_path: Path, format: str) -> None:
    store = dump(tmp_path / "s", photos, format=format, rows_per_shard=1, views=1)
    settings = {"labels": str(store), "format": OTHER[format], "codec": "dense:fp32", "quiet": True}
    softlabels.convert(out=str(tmp_path / "whole"), **settings)
    out, kills = tmp_path / "killed", 0
    for moment in range(10):
        wanted = 2 * moment
        kills += killed(
            lambda: softlabels.convert(out=str(out), **settings),
            lambda wanted=wanted: sum(1 for _ in out.glob("cnn_tiny/0*")) >= wanted,
            wait=0.0007 * moment,
        )
    softlabels.convert(out=str(out), **settings)
    assert kills >= 5
    assert all_bytes(out) == all_bytes(tmp_path / "whole")


def test_skipped_rows_stay_skipped_in_any_codec(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", each=3)
    (photos / "class-1/001.jpg").write_bytes(b"no image")
    store = dump(tmp_path / "s", photos, on_bad_image="skip", codec="dense:fp32")
    dump(tmp_path / "direct", photos, on_bad_image="skip", codec="topk:2")
    softlabels.convert(labels=str(store), out=str(tmp_path / "k"), codec="topk:2", lossy=True, quiet=True)
    labels = softlabels.open_labels(tmp_path / "k")
    assert np.flatnonzero(~labels.labelled(np.arange(9))).tolist() == [4]
    assert shard_bytes(tmp_path / "k") == shard_bytes(tmp_path / "direct")


def test_what_an_incomplete_store_holds_is_converted_and_the_rest_later(
    softlabels_command: Callable, photos: Path
) -> None:
    dump(Path("shards"), photos, part="0/2")
    first = softlabels_command("convert", "--out", "z", "--format", "zarr")
    assert first.exit_code == 0
    assert "shards lacks 2 shards of its views itself" in first.output
    dump(Path("shards"), photos)
    assert "copied 2 shards" in softlabels_command("convert", "--out", "z", "--format", "zarr").output
    assert softlabels.open_labels("z").views == 2


def test_damage_in_the_source_is_one_line_and_going_on_later_works(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    shutil.copytree("shards", "backup")
    flip(Path("shards/cnn_tiny/00002-v0-2.h5"))
    refused = softlabels_command("convert", "--out", "z", "--format", "zarr")
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "00002-v0-2.h5" in refused.output
    assert "softlabels repair" in refused.output
    shutil.copy("backup/cnn_tiny/00002-v0-2.h5", "shards/cnn_tiny")
    assert softlabels_command("convert", "--out", "z", "--format", "zarr").exit_code == 0
    assert softlabels.open_labels("z").views == 2


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--out", "shards"), 2, "is the store to convert  tip: choose another folder"),
        (("--out", "shards/zarr"), 1, "zarr lies within the label store"),
        (("--out", "shards/cnn_tiny", "--format", "zarr"), 1, "choose a folder beside it"),
        (("--out", "other", "--format", "zarr"), 1, "seed is 1 there and 0 here"),
        (("--out", "z", "--teachers", "cnn_tine"), 1, "did you mean 'cnn_tiny'?"),
        (("--out", "z", "--codec", "topk:0"), 2, "codec 'topk'"),
        (("--out", "z", "--labels", "nothing"), 1, "is not a folder"),
        (("--out", "nowhere://bucket/z"), 1, "nowhere://bucket/z is no location that can be opened"),
        (("--out", "same", "--format", "zarr"), 1, "format is 'hdf5' there and 'zarr' here"),
    ],
)
def test_bad_input_is_one_line(
    softlabels_command: Callable, photos: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    dump(Path("shards"), photos, limit=3)
    dump(Path("other"), photos, limit=3, seed=1)
    softlabels.convert(out="same", quiet=True)
    before = all_bytes(Path())
    refused = softlabels_command("convert", *options)
    assert refused.exit_code == code
    assert said in refused.output
    assert refused.output.count("\n") == 1
    assert all_bytes(Path()) == before


def test_every_codec_of_the_table_is_recoded_or_refused(dumped: Path, tmp_path: Path) -> None:
    for name in CODECS.names:
        out = tmp_path / name
        given = {"labels": str(dumped), "codec": name, "lossy": True, "teachers": ["cnn_tiny"], "quiet": True}
        if name in ("int8", "pca"):
            with pytest.raises(softlabels.ConfigError, match="for other outputs than the logits"):
                softlabels.convert(out=str(out), **given)
            continue
        softlabels.convert(out=str(out), **given)
        assert softlabels.open_labels(out).logits(range(18), 1).shape == (18, 3)


def test_a_dump_into_a_store_of_something_else_is_refused_before_it_makes_a_folder(
    photos: Path, tmp_path: Path
) -> None:
    shards = dump(tmp_path / "shards", photos, limit=3)
    before = sorted(shards.rglob("*"))
    with pytest.raises(softlabels.StoreError, match="lies within the label store"):
        dump(shards / "cnn_tiny/more", photos, limit=3)
    assert sorted(shards.rglob("*")) == before


def test_what_a_conversion_left_that_was_killed_at_its_very_beginning_goes(photos: Path, tmp_path: Path) -> None:
    source = dump(tmp_path / "s", photos, limit=3)
    (tmp_path / "out/.partial-images.parquet-abc").mkdir(parents=True)
    (tmp_path / "out/.partial-images.parquet-abc/images.parquet").write_bytes(b"half")
    softlabels.convert(labels=str(source), out=str(tmp_path / "out"), teachers=["cnn_tiny"] * 2, quiet=True)
    assert shard_bytes(tmp_path / "out") == shard_bytes(source)
    assert not list(tmp_path.glob("out/.*"))


def test_labels_of_no_teacher_are_never_called_sound_or_used(softlabels_command: Callable, photos: Path) -> None:
    shutil.rmtree(dump(Path("shards"), photos, limit=3) / "cnn_tiny")
    for command in (
        ("verify", "--shards-only"),
        ("train", "--student", "cnn_tiny", "--labels", "shards"),
        ("convert", "--out", "z"),
        ("merge", "--labels", "shards", "--out", "whole"),
    ):
        refused = softlabels_command(*command)
        assert refused.exit_code == 1, command
        assert "dump some first, or copy the store whole" in refused.output.splitlines()[-1]
    assert not Path("z").exists() and not Path("whole").exists()


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
@pytest.mark.parametrize("command", [("convert", "--labels", "a"), ("merge", "--labels", "b", "--labels", "a")])
@pytest.mark.parametrize("damage", ["header", "cut off"])
def test_a_store_with_a_damaged_header_is_refused_and_nothing_is_written(
    softlabels_command: Callable, photos: Path, format: str, command: tuple[str, ...], damage: str
) -> None:
    for name in ("a", "b"):
        dump(Path(name), photos, format=format)
    (place,) = Path("a/cnn_tiny").glob("00001-*")
    path = place if place.is_file() else place / "zarr.json"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content if damage == "header" else content[:-20])
    refused = softlabels_command(*command, "--out", "out")
    assert refused.exit_code == 1
    assert "00001-v0-2" in refused.output
    assert "softlabels repair" in refused.output
    assert refused.output.count("\n") == 1
    assert not Path("out").exists()
