"""Stores of the same images and views become one; whatever does not fit is refused before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving import all_bytes, dump, flip, killed, shard_bytes
from worlds import write_pictures

import softlabels
from softlabels.store import open_store

FORMATS = ("hdf5", "zarr")
PARTS = ("--labels", "a", "--labels", "b", "--out", "whole")


def change_a_label(root: Path) -> None:
    """Give one shard, the second, other labels: whole, and not those that were dumped."""
    labels = open_store(root).teacher("cnn_tiny")
    shard = labels.shards[1]
    content = labels.read_shard(shard)
    arrays = {name: array.copy() for name, array in content.arrays.items()}
    arrays["logits"][1, 2] -= 1
    with labels.writing():
        labels.remove(shard)
        labels.write(shard, arrays, digests=content.digests)


@pytest.mark.parametrize("format", FORMATS)
def test_parts_of_two_machines_make_the_whole(softlabels_command: Callable, photos: Path, format: str) -> None:
    dump(Path("direct"), photos, format=format)
    for part, out in (("0/2", "a"), ("1/2", "b")):
        dump(Path(out), photos, format=format, part=part)
    done = softlabels_command("merge", *PARTS)
    assert done.exit_code == 0, done.output
    assert shard_bytes(Path("whole")) == shard_bytes(Path("direct"))
    before = all_bytes(Path("whole"))
    again = softlabels_command("merge", *PARTS)
    assert again.output.count("nothing to do") == 2
    assert all_bytes(Path("whole")) == before
    assert softlabels_command("verify", "--labels", "whole", "--device", "cpu").exit_code == 0


def test_one_of_the_parts_may_become_the_whole(photos: Path, tmp_path: Path) -> None:
    whole = dump(tmp_path / "direct", photos)
    parts = [str(dump(tmp_path / f"part-{i}", photos, part=f"{i}/3")) for i in range(3)]
    softlabels.merge(labels=parts, out=parts[1], quiet=True)
    assert shard_bytes(tmp_path / "part-1") == shard_bytes(whole)


def test_other_teachers_and_other_views_are_united(photos: Path, tmp_path: Path) -> None:
    a = dump(tmp_path / "a", photos)
    shutil.copytree(a, tmp_path / "b")
    b = dump(tmp_path / "b", photos, views=4)
    dump(b, photos, teacher=["cnn_small"], weights=["random:1"])
    for shard in open_store(b).teacher("cnn_tiny").shards:
        if shard.first_view == 0 and shard.run:
            (b / f"cnn_tiny/{shard.name}.h5").unlink()
    softlabels.merge(labels=[str(a), str(b)], out=str(tmp_path / "whole"), quiet=True)
    whole = open_store(tmp_path / "whole")
    assert whole.teachers == ("cnn_small", "cnn_tiny")
    assert (whole.teacher("cnn_tiny").views, whole.teacher("cnn_small").views) == (4, 2)
    assert shard_bytes(tmp_path / "whole") == shard_bytes(b) | shard_bytes(a)


def test_images_weights_and_formats_may_have_lain_elsewhere(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from softlabels.models import build

    parts: list[str] = []
    for number, format in enumerate(FORMATS):
        place = tmp_path / f"machine-{number}"
        photos = write_pictures(place / "photos", each=3)
        save_file(build("cnn_tiny", 3, seed=1).state_dict(), place / "w.safetensors")
        weights = [str(place / "w.safetensors")]
        parts += [str(dump(place / "s", photos, weights=weights, part=f"{number}/2", format=format))]
    softlabels.merge(labels=parts, out=str(tmp_path / "whole"), quiet=True)
    labels = softlabels.open_labels(tmp_path / "whole")
    assert labels.views == 2
    assert labels.of().card.format == "hdf5"
    for number, part in enumerate(parts):
        rows = np.arange(9)[number * 5 : 5 + number * 4]
        assert labels.logits(rows, 1).equal(softlabels.open_labels(part).logits(rows, 1))


@pytest.mark.parametrize("format", FORMATS)
def test_other_labels_in_the_same_shard_are_an_error_that_names_it(
    softlabels_command: Callable, photos: Path, format: str
) -> None:
    dump(Path("a"), photos, format=format)
    shutil.copytree("a", "b")
    change_a_label(Path("b"))
    refused = softlabels_command("merge", *PARTS)
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "shard 00001-v0-2: 1 of 5 rows of view 1 differ, the first is row 7" in refused.output
    assert not Path("whole").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_damage_in_a_part_is_named_as_damage(softlabels_command: Callable, photos: Path, format: str) -> None:
    dump(Path("a"), photos, format=format)
    shutil.copytree("a", "b")
    flip(next(Path("b/cnn_tiny").glob("00001*")))
    refused = softlabels_command("merge", *PARTS)
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "does not match its checksum" in refused.output
    assert not Path("whole").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"recipe": "crop"}, "recipe.steps is"),
        ({"limit": 12}, "there are 18 images there and 12 here"),
        ({"rows_per_shard": 4}, "rows_per_shard is 5 there and 4 here"),
        ({"weights": ["random:1"]}, "weights_sha256 is"),
        ({"codec": "topk:2"}, "codec.kind is 'dense' there and 'topk' here"),
    ],
)
def test_stores_of_something_else_are_refused_with_the_difference(
    softlabels_command: Callable, photos: Path, changes: dict[str, Any], said: str
) -> None:
    dump(Path("a"), photos)
    dump(Path("b"), photos, **changes)
    before = all_bytes(Path())
    refused = softlabels_command("merge", *PARTS)
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert said in refused.output
    assert all_bytes(Path()) == before


def test_changed_images_are_named(softlabels_command: Callable, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", each=3)
    dump(Path("a"), photos)
    (photos / "class-1/001.jpg").write_bytes((photos / "class-1/000.jpg").read_bytes())
    dump(Path("b"), photos)
    refused = softlabels_command("merge", *PARTS)
    assert refused.exit_code == 1
    assert "image 4 ('class-1/001.jpg') is content" in refused.output


def test_a_merge_into_another_store_is_refused(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("a"), photos)
    dump(Path("whole"), photos, seed=3)
    refused = softlabels_command("merge", "--labels", "a", "--out", "whole")
    assert refused.exit_code == 1
    assert "seed is 3 there and 0 here" in refused.output


def test_nothing_to_merge_is_a_usage_error(softlabels_command: Callable, photos: Path) -> None:
    assert softlabels_command("merge", "--out", "whole").exit_code == 2
    dump(Path("a"), photos, limit=3)
    alone = softlabels_command("merge", "--labels", "a/", "--out", "a")
    assert alone.exit_code == 2 and "is the only store to merge" in alone.output
    missing = softlabels_command("merge", "--labels", "nowhere", "--out", "whole")
    assert missing.exit_code == 1
    assert "nowhere is not a folder" in missing.output


def test_a_killed_merge_loses_nothing_and_ends_bit_identical(photos: Path, tmp_path: Path) -> None:
    whole = dump(tmp_path / "whole", photos, rows_per_shard=1)
    parts = [str(dump(tmp_path / f"part-{i}", photos, rows_per_shard=1, part=f"{i}/2")) for i in range(2)]
    out, kills = tmp_path / "killed", 0
    for moment in range(10):
        kills += killed(
            lambda: softlabels.merge(labels=parts, out=str(out), quiet=True),
            lambda wanted=2 * moment: sum(1 for _ in out.glob("cnn_tiny/0*")) >= wanted,
            wait=0.0007 * moment,
        )
    softlabels.merge(labels=parts, out=str(out), quiet=True)
    assert kills >= 5
    assert shard_bytes(out) == shard_bytes(whole)
