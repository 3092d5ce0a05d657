"""Damage is found, taken away or dumped again, and nothing else is touched."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from moving import all_bytes, dump, flip, killed, shard_bytes
from worlds import write_pictures

import softlabels
from softlabels.core import files
from softlabels.models import build

FORMATS = ("hdf5", "zarr")
REDUMP = ("repair", "--redump", "--device", "cpu", "--workers", 0, "--batch-size", 8)


def own_network(classes: int) -> torch.nn.Module:
    return build("cnn_tiny", classes, seed=4)


def truncate(shard: Path) -> None:
    path = shard if shard.is_file() else next(path for path in sorted(shard.rglob("c/**/*")) if path.is_file())
    path.write_bytes(path.read_bytes()[:-5])


def break_header(shard: Path) -> None:
    path = shard if shard.is_file() else shard / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"first_row', b'"first_rox', 1))


def shard(root: str, number: int) -> Path:
    return sorted(Path(root, "cnn_tiny").glob("0*"))[number]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", [flip, truncate, break_header])
def test_damaged_shards_are_dumped_again_and_only_they(
    softlabels_command: Callable, photos: Path, format: str, damage: Callable[[Path], None]
) -> None:
    dump(Path("shards"), photos, format=format)
    before = all_bytes(Path("shards"))
    damage(shard("shards", 1))
    damage(shard("shards", 3))
    untouched = {path: path.stat().st_mtime_ns for path in (shard("shards", 0), shard("shards", 2))}
    done = softlabels_command(*REDUMP)
    assert done.exit_code == 0, done.output
    assert "cnn_tiny: dumped 2 damaged shards again: 00001-v0-2, 00003-v0-2" in done.output
    assert all_bytes(Path("shards")) == before
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert "4 shards, no damage" in softlabels_command(*REDUMP).output


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_that_is_told_dumps_what_was_removed(
    softlabels_command: Callable, photos: Path, format: str
) -> None:
    dump(Path("shards"), photos, format=format)
    before = shard_bytes(Path("shards"))
    flip(shard("shards", 2))
    done = softlabels_command("repair")
    assert done.exit_code == 0
    assert "removed 1 damaged shard: 00002-v0-2" in done.output
    assert len(list(Path("shards/cnn_tiny").glob("0*"))) == 3
    told = re.search(r"softlabels (dump .*)", done.output)
    assert told is not None
    assert softlabels_command(*shlex.split(told[1])).exit_code == 0
    assert shard_bytes(Path("shards")) == before


def test_shards_that_were_never_dumped_are_not_dumped_by_a_repair(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos, part="1/2")
    before = shard_bytes(Path("shards"))
    flip(shard("shards", 0))
    assert softlabels_command(*REDUMP).exit_code == 0
    assert shard_bytes(Path("shards")) == before
    flip(shard("shards", 0))
    assert "(and 2 others that were missing before)" in softlabels_command("repair").output


def test_one_redump_brings_back_the_views_beside_a_damaged_shard_too(
    softlabels_command: Callable, photos: Path
) -> None:
    dump(Path("shards"), photos, views=3)
    flip(shard("shards", 1))
    assert softlabels_command("repair").exit_code == 0
    dump(Path("shards"), photos, views=1)
    truncate(shard("shards", 1))
    assert softlabels_command(*REDUMP).exit_code == 0
    assert softlabels.open_labels("shards").views == 3
    before = all_bytes(Path("shards"))
    assert softlabels_command(*REDUMP).exit_code == 0
    assert all_bytes(Path("shards")) == before


def test_every_teacher_is_repaired(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos, teacher=["cnn_tiny", "cnn_small"], weights=["random", "random:1"])
    before = shard_bytes(Path("shards"))
    for name in ("cnn_tiny/00000-v0-2.h5", "cnn_small/00003-v0-2.h5"):
        flip(Path("shards", name))
    assert softlabels_command(*REDUMP).exit_code == 0
    assert shard_bytes(Path("shards")) == before


def test_images_that_are_elsewhere_and_in_another_order_are_found_by_key(
    softlabels_command: Callable, tmp_path: Path
) -> None:
    photos = write_pictures(tmp_path / "photos", each=3)
    dump(Path("shards"), photos)
    before = shard_bytes(Path("shards"))
    flip(shard("shards", 1))
    photos.rename(tmp_path / "moved")
    write_pictures(tmp_path / "moved", classes=1, each=5)
    lost = softlabels_command(*REDUMP)
    assert lost.exit_code == 1
    assert "--data" in lost.output
    assert softlabels_command(*REDUMP, "--data", tmp_path / "moved").exit_code == 0
    assert shard_bytes(Path("shards")) == before


def test_changed_images_are_refused_and_nothing_is_removed(softlabels_command: Callable, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", each=3)
    dump(Path("shards"), photos)
    flip(shard("shards", 1))
    shutil.copy(photos / "class-0/000.jpg", photos / "class-2/000.jpg")
    before = all_bytes(Path("shards"))
    refused = softlabels_command(*REDUMP)
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "'class-2/000.jpg' has other content than when it was labelled" in refused.output
    (photos / "class-2/002.jpg").unlink()
    assert "lacks 1 labelled images, the first is 'class-2/002.jpg'" in softlabels_command(*REDUMP).output
    assert all_bytes(Path("shards")) == before


def test_a_teacher_that_is_code_is_only_opened_when_the_user_names_it(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    named = f"{Path(__file__).stem}:own_network"
    spec = {"kind": "function", "function": named, "size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "name": "mine"}
    dump(Path("shards"), photos, teacher=[spec], weights=[])
    before = shard_bytes(Path("shards"))
    flip(next(Path("shards/mine").glob("00001*")))
    damaged = all_bytes(Path("shards"))
    refused = softlabels_command(*REDUMP)
    assert refused.exit_code == 2
    assert f"mine was made by '{named}'  tip: name it yourself with --teacher" in refused.output
    assert all_bytes(Path("shards")) == damaged
    softlabels.repair(redump=True, teacher=[spec], device="cpu", workers=0, batch_size=8, quiet=True)
    assert shard_bytes(Path("shards")) == before


def test_other_weights_are_refused(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    flip(shard("shards", 1))
    refused = softlabels_command(*REDUMP, "--teacher", "cnn_tiny", "--weights", "random:9")
    assert refused.exit_code == 1
    assert "cnn_tiny has other weights" in refused.output
    assert refused.output.count("\n") == 1


def test_a_loop_of_ones_own_cannot_be_run_again_by_us(softlabels_command: Callable, photos: Path) -> None:
    images = softlabels.open_images(photos)
    with softlabels.create_labels("shards", images=images, views=1, classes=3, rows_per_shard=5) as store:
        for batch in store.missing("mine", size=16):
            store.put(batch.pictures.float().mean((2, 3)))
    flip(Path("shards/mine/00001-v0-1.h5"))
    refused = softlabels_command(*REDUMP)
    assert refused.exit_code == 2
    assert "mine answered in its maker's own inference loop  tip: run that again" in refused.output
    removed = softlabels_command("repair")
    assert "shards makes them again: dump (with --views 1), convert or merge" in removed.output


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_repair_is_finished_by_the_same_command(photos: Path, tmp_path: Path, format: str) -> None:
    store = dump(tmp_path / "s", photos, rows_per_shard=2, format=format)
    before, kills = shard_bytes(store), 0
    settings = {"labels": str(store), "redump": True, "device": "cpu", "workers": 0, "batch_size": 8, "quiet": True}
    for moment in range(8):
        for path in sorted((store / "cnn_tiny").glob("0*")):
            flip(path)
        kills += killed(lambda: softlabels.repair(**settings), lambda: True, 0.01 * moment)
        softlabels.repair(**settings)
        assert shard_bytes(store) == before
    assert kills >= 4


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_repair_killed_around_the_moment_a_shard_is_replaced_loses_nothing(
    softlabels_command: Callable, photos: Path, format: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump(Path("shards"), photos, format=format)
    before = shard_bytes(Path("shards"))
    flip(shard("shards", 1))
    flip(shard("shards", 3))
    rename, exchange = Path.rename, files._exchange

    def die(replace: Callable[[Path, Path], Any]) -> Callable[[Path, Path], Any]:
        def dying(source: Path, target: Path) -> Any:
            done = replace(source, target) if where == "after" else None
            if Path(target).name.startswith("00001"):
                os._exit(9)
            return done if where == "after" else replace(source, target)

        return dying

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "rename", die(rename))
        monkeypatch.setattr(files, "_exchange", die(exchange))
        softlabels_command(*REDUMP)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    again = softlabels_command(*REDUMP)
    assert again.exit_code == 0, again.output
    assert "00003-v0-2" in again.output
    assert shard_bytes(Path("shards")) == before
    assert softlabels_command("verify", "--labels", "shards", "--shards-only").exit_code == 0


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_repair_removed_is_told_until_it_is_there_again_and_dumped_by_redump(
    softlabels_command: Callable, photos: Path, format: str
) -> None:
    dump(Path("shards"), photos, format=format, part="1/2")  # the other part was never dumped
    before = shard_bytes(Path("shards"))
    flip(shard("shards", 0))
    assert softlabels_command("repair").exit_code == 0
    again = softlabels_command("repair")
    assert again.exit_code == 1
    assert "cnn_tiny: 1 shards that a repair removed are still missing: 00001-v0-2" in again.output
    assert "`softlabels repair` with --redump makes them again" in again.output
    filled = softlabels_command(*REDUMP)
    assert filled.exit_code == 0, filled.output
    assert "dumped 1 removed shards again: 00001-v0-2" in filled.output
    assert shard_bytes(Path("shards")) == before
    assert softlabels_command("repair").exit_code == 0


def test_a_dump_that_fills_what_a_repair_removed_ends_its_notes(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    flip(shard("shards", 2))
    assert softlabels_command("repair").exit_code == 0
    dump(Path("shards"), photos)
    assert softlabels_command("repair").exit_code == 0
    assert not list(Path("shards/cnn_tiny").glob(".*"))


def test_a_folder_of_shards_without_a_card_is_told_by_every_look(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    Path("shards/cnn_tiny/teacher.json").unlink()
    said = "shards/cnn_tiny holds 4 shards but no teacher.json"
    for command, code in ((("info", "shards"), 0), (("repair",), 1), (("verify",), 1)):
        done = softlabels_command(*command)
        assert done.exit_code == code
        assert said in done.output, done.output


def test_info_names_damaged_shards(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    break_header(shard("shards", 1))
    done = softlabels_command("info", "shards")
    assert done.exit_code == 0
    assert "shards: incomplete, " in done.output
    assert " 3 / 4 " in done.output
    assert "damaged: 00001-v0-2" in done.output


def test_shards_of_another_store_are_no_damage(softlabels_command: Callable, photos: Path) -> None:
    dump(Path("shards"), photos)
    dump(Path("other"), photos, seed=1)
    shutil.copy("other/cnn_tiny/00001-v0-2.h5", "shards/cnn_tiny")
    refused = softlabels_command("repair")
    assert refused.exit_code == 1
    assert "is of another data set and recipe than this store" in refused.output
    assert len(list(Path("shards/cnn_tiny").glob("0*"))) == 4


def test_damage_met_while_reading_names_the_repair(photos: Path, tmp_path: Path) -> None:
    store = dump(tmp_path / "s", photos)
    truncate(store / "cnn_tiny/00001-v0-2.h5")
    with pytest.raises(softlabels.StoreError, match="`softlabels repair` to repair it"):
        softlabels.open_labels(store).logits([6], 0)
