"""Images that come later are added to a store whose finished shards stay as they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from moving import all_bytes, dump, shard_bytes
from torchvision.io import write_jpeg
from worlds import picture, write_pictures

import softlabels
from softlabels.store import open_store

FORMATS = ("hdf5", "zarr")
DUMP = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", "photos", "--views", 2, "--device", "cpu")
DUMP += ("--rows-per-shard", 5, "--batch-size", 8, "--workers", 0)


def viewed(command: tuple[object, ...], views: int) -> tuple[object, ...]:
    """The command with another number of views."""
    place = command.index("--views") + 1
    return (*command[:place], views, *command[place + 1 :])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 18 images of one's own."""
    return write_pictures(tmp_path / "photos")


def add(photos: Path) -> None:
    """Two more images, which a listing shows between the others."""
    write_jpeg(picture(1), str(photos / "class-0/0005.jpg"))
    write_jpeg(picture(2), str(photos / "class-1/000-more.jpg"))


@pytest.mark.parametrize("format", FORMATS)
def test_more_images_leave_finished_shards_untouched(
    softlabels_command: Callable, photos: Path, tmp_path: Path, format: str
) -> None:
    dump(Path("shards"), photos, format=format)
    before = shard_bytes(Path("shards"))
    add(photos)
    grown = softlabels_command(*DUMP, "--grow", "--format", format)
    assert grown.exit_code == 0, grown.output
    assert "wrote 1 shard, 4 labels" in grown.output
    after = shard_bytes(Path("shards"))
    assert {name: after[name] for name in before} == before
    fresh, labels = softlabels.open_labels(dump(tmp_path / "fresh", photos)), softlabels.open_labels("shards")
    assert (len(labels), labels.views) == (20, 2)
    for view in range(2):
        torch.testing.assert_close(
            labels.logits(labels.rows(fresh.keys), view), fresh.logits(range(20), view), atol=1e-3, rtol=1e-3
        )
    assert softlabels_command("verify", "--device", "cpu").exit_code == 0


def test_a_grown_store_goes_on_as_any_other(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    add(photos)
    assert softlabels_command(*DUMP, "--grow").exit_code == 0
    before = all_bytes(Path("shards"))
    for again in (DUMP, (*DUMP, "--grow")):
        assert "nothing to do" in softlabels_command(*again).output
    assert all_bytes(Path("shards")) == before
    assert softlabels_command(*viewed(DUMP, 3)).exit_code == 0
    assert softlabels_command("convert", "--out", "z", "--format", "zarr").exit_code == 0
    for store in ("shards", "z"):
        assert softlabels.open_labels(store).views == 3
        assert softlabels_command("verify", "--labels", store, "--device", "cpu").exit_code == 0
    trained = softlabels_command(
        *("train", "--student", "cnn_tiny", "--size", 16, "--labels", "shards", "--epochs", 1, "--device", "cpu"),
        *("--batch-size", 10, "--workers", 0),
    )
    assert trained.exit_code == 0, trained.output


def test_more_images_are_refused_with_a_hint(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    before = all_bytes(Path("shards"))
    add(photos)
    refused = softlabels_command(*DUMP)
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert (
        "holds 18 of these 20 images  tip: add the 2 new ones (the first is 'class-0/0005.jpg') with --grow"
        in refused.output
    )
    assert all_bytes(Path("shards")) == before


def test_fewer_or_changed_images_do_not_grow_a_store(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    before = all_bytes(Path("shards"))
    add(photos)
    (photos / "class-1/001.jpg").rename(photos / "class-2/001-moved.jpg")
    refused = softlabels_command(*DUMP, "--grow")
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert all_bytes(Path("shards")) == before


def test_a_new_class_does_not_grow_a_store(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    before = all_bytes(Path("shards"))
    write_pictures(photos, classes=4)
    refused = softlabels_command(*DUMP, "--grow")
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "classes" in refused.output
    assert all_bytes(Path("shards")) == before


def test_the_table_of_images_that_a_killed_growth_left_is_removed_by_the_next_dump(
    softlabels_command: Callable, photos: Path
) -> None:
    dump(Path("shards"), photos)
    shutil.copy("shards/images.parquet", "shards/images-1.parquet")
    assert softlabels_command("verify", "--shards-only").exit_code == 1
    assert softlabels_command(*DUMP).exit_code == 0
    assert not Path("shards/images-1.parquet").exists()
    assert softlabels_command("verify", "--shards-only").exit_code == 0


def test_parts_of_a_dump_may_all_be_told_to_grow(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    add(photos)
    for part in ("0/2", "1/2"):
        assert softlabels_command(*DUMP, "--grow", "--part", part).exit_code == 0
    assert softlabels.open_labels("shards").views == 2
    assert [file.rows for file in open_store("shards").manifest.images] == [18, 2]


def test_a_larger_limit_grows_a_store_that_opens_all_its_images(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos, limit=9)
    assert softlabels_command(*DUMP, "--limit", 15, "--grow").exit_code == 0
    assert open_store("shards").manifest.data["limit"] == 15
    assert "fingerprint of 15 images: ok" in softlabels_command("verify", "--device", "cpu").output


def test_a_plan_counts_the_new_images(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    add(photos)
    planned = softlabels_command("plan", *DUMP[1:], "--grow")
    assert "still missing: 1 shard, 4 labels" in planned.output
    assert len(open_store("shards")) == 18


def test_a_loop_of_ones_own_grows_a_store_too(photos: Path, tmp_path: Path) -> None:
    def label(grow: bool) -> int:
        images = softlabels.open_images(photos)
        with softlabels.create_labels(tmp_path / "own", images=images, views=1, classes=3, grow=grow) as store:
            rows = []
            for batch in store.missing("mine", size=16):
                store.put(batch.pictures.float().mean((2, 3)))
                rows += batch.rows.tolist()
        return len(rows)

    assert label(grow=False) == 18
    add(photos)
    with pytest.raises(softlabels.StoreError, match="with `grow=True`"):
        label(grow=False)
    assert label(grow=True) == 2


MIXED = ("--recipe", "crop-flip-mix", "--codec", "dense:fp32")


def mixtures(store: Path) -> dict[tuple[str, int], tuple[str, float]]:
    """With whom each view of each image was mixed, and in which share, by their keys."""
    labels = softlabels.open_labels(store)
    keys = labels.keys.to_pylist()
    return {
        (keys[row], view): (keys[partner], share)
        for view in range(labels.views)
        for row, (partner, share) in enumerate(zip(*labels.mixtures(range(len(labels)), view), strict=True))
    }


@pytest.mark.parametrize("format", FORMATS)
def test_a_store_of_mixed_views_grows_by_images_and_by_views(
    softlabels_command: Callable, photos: Path, format: str
) -> None:
    command = (*DUMP, *MIXED, "--format", format)
    assert softlabels_command(*command).exit_code == 0
    before, mixed, shown = shard_bytes(Path("shards")), mixtures(Path("shards")), pictures(photos)
    add(photos)
    refused = softlabels_command(*command)
    assert refused.exit_code == 1
    assert "with --grow" in refused.output
    grown = softlabels_command(*command, "--grow")
    assert grown.exit_code == 0, grown.output
    assert "wrote 1 shard, 4 labels" in grown.output
    assert softlabels_command(*viewed(command, 4)).exit_code == 0
    assert {name: shard_bytes(Path("shards"))[name] for name in before} == before
    after = mixtures(Path("shards"))
    assert {each: after[each] for each in mixed} == mixed
    old = {key for key, _ in mixed}
    assert all(partner in old for (key, _), (partner, _) in after.items() if key in old)
    assert len(after) == 80
    now = pictures(photos)
    assert all(torch.equal(now[which], then) for which, then in shown.items())
    verified = softlabels_command("verify", "--device", "cpu")
    assert verified.exit_code == 0, verified.output
    assert "digests of 80 rendered views: ok" in verified.output
    trained = softlabels_command(
        *("train", "--student", "cnn_tiny", "--size", 16, "--labels", "shards", "--epochs", 1, "--device", "cpu"),
        *("--batch-size", 10, "--workers", 0, "--alpha", 0.5),
    )
    assert trained.exit_code == 0, trained.output


def test_mixed_views_are_the_same_in_whatever_order_a_store_grew(softlabels_command: Callable, photos: Path) -> None:
    for store in ("images-first", "views-first"):
        assert softlabels_command(*DUMP, *MIXED, "--out", store).exit_code == 0
    assert softlabels_command(*viewed(DUMP, 3), *MIXED, "--out", "views-first").exit_code == 0
    add(photos)
    for store in ("images-first", "views-first"):
        assert softlabels_command(*viewed(DUMP, 3), *MIXED, "--out", store, "--grow").exit_code == 0
    one, other = (softlabels.open_labels(store) for store in ("images-first", "views-first"))
    assert one.keys.equals(other.keys)
    assert mixtures(Path("images-first")) == mixtures(Path("views-first"))
    for view in range(3):
        torch.testing.assert_close(one.logits(range(20), view), other.logits(range(20), view), atol=1e-4, rtol=1e-4)


def test_a_killed_growth_of_mixed_views_is_gone_on_with(softlabels_command: Callable, photos: Path) -> None:
    """The table of images has grown, the shards have not: the same command fills them, and a part of them will do."""
    assert softlabels_command(*DUMP, *MIXED).exit_code == 0
    add(photos)
    assert softlabels_command(*DUMP, *MIXED, "--grow").exit_code == 0
    whole = shard_bytes(Path("shards"))
    last = sorted(Path("shards/cnn_tiny").glob("00004-*"))[0]
    last.unlink()
    assert "wrote 1 shard, 4 labels" in softlabels_command(*DUMP, *MIXED, "--grow").output
    assert shard_bytes(Path("shards")) == whole


def test_a_loop_of_ones_own_grows_a_store_of_mixed_views(photos: Path, tmp_path: Path) -> None:
    def label(grow: bool) -> int:
        rows = 0
        with softlabels.create_labels(
            tmp_path / "own", images=softlabels.open_images(photos), recipe="crop-mixup", views=2, classes=3, grow=grow
        ) as store:
            for batch in store.missing("mine", size=16):
                store.put(batch.pictures.float().mean((2, 3)))
                rows += len(batch.rows)
        return rows

    assert label(grow=False) == 36
    before = mixtures(tmp_path / "own")
    add(photos)
    assert label(grow=True) == 4
    after = mixtures(tmp_path / "own")
    assert {each: after[each] for each in before} == before
    assert softlabels.verify(labels=str(tmp_path / "own"), samples=0, quiet=True).ok


def pictures(photos: Path) -> dict[tuple[str, int], torch.Tensor]:
    """What a student that trains on all the photos sees of the first two views, by key and view."""
    images = softlabels.open_images(photos)
    shown = softlabels.SoftLabelDataset(softlabels.open_labels("shards"), images, size=16)
    keys = images.keys.to_pylist()
    return {(key, view): shown[row * shown.views + view][0] for row, key in enumerate(keys) for view in range(2)}


@pytest.mark.usefixtures("photos")
def test_one_replaced_picture_of_many_is_noticed_where_they_are_quickly_read(
    softlabels_command: Callable, tmp_path: Path
) -> None:
    many = write_pictures(tmp_path / "many", each=60)
    options = ("--teacher", "cnn_tiny", "--weights", "random", "--data", many, "--views", 1, "--device", "cpu")
    assert softlabels_command("dump", *options).exit_code == 0
    for number in (0, 31, 59):
        path = many / f"class-1/{number:03d}.jpg"
        before = path.read_bytes()
        write_jpeg(picture(999), str(path))
        again = softlabels_command("dump", *options)
        assert again.exit_code == 1
        assert f"'class-1/{number:03d}.jpg' has content" in again.output
        path.write_bytes(before)
    assert softlabels_command("dump", *options).exit_code == 0
