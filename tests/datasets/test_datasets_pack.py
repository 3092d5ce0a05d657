"""Packs: images prepared once, found again under the same keys, whole or not there."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from worlds import write_pictures

import softlabels
from softlabels.pictures import Pictures
from softlabels.views import RECIPES, Frame

QUALITIES = ("raw", 90)
SMALL = {"max_side": 30, "rows_per_shard": 5, "quiet": True}


@pytest.fixture(scope="module", params=QUALITIES)
def pack(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos at a longer side of 30; not to be changed."""
    out = tmp_path_factory.mktemp("packed") / "pack"
    softlabels.pack(data=str(photos), out=str(out), quality=request.param, **SMALL)
    return out


def opened(place: Path) -> Any:
    return softlabels.open_images(f"pack:{place}")


def files(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir()) if not path.name.startswith(".")}


def test_keys_labels_and_classes_are_those_of_the_source(pack: Path, photos: Path) -> None:
    source, packed = softlabels.open_images(photos), opened(pack)
    assert packed.keys.to_pylist() == source.keys.to_pylist()
    assert packed.labels.tolist() == source.labels.tolist()
    assert packed.classes == source.classes
    assert len(packed) == 18
    assert softlabels.open_images(dict(packed.spec)).keys.equals(packed.keys)
    assert ("none" in packed.decoder) == (packed.manifest.packing.quality == "raw")


def test_images_are_shrunk_once_with_antialiasing(photos: Path, tmp_path: Path) -> None:
    softlabels.pack(data=str(photos), out=str(tmp_path / "p"), quality="raw", **SMALL)
    source, packed = softlabels.open_images(photos), opened(tmp_path / "p")
    for row in range(18):
        image = source.decode(row)
        height, width = image.shape[1:]
        size = [round(side * 30 / max(height, width)) for side in (height, width)]
        expected = interpolate(image[None].contiguous(), size, mode="bilinear", antialias=True)[0]
        assert torch.equal(packed.decode(row), expected)


@pytest.mark.parametrize("side", [0, 64])
def test_images_are_never_enlarged(photos: Path, tmp_path: Path, side: int) -> None:
    softlabels.pack(data=str(photos), out=str(tmp_path / "p"), quality="raw", max_side=side, quiet=True)
    source, packed = softlabels.open_images(photos), opened(tmp_path / "p")
    assert all(torch.equal(packed.decode(row), source.decode(row)) for row in range(18))


def test_a_jpeg_pack_shows_nearly_what_a_raw_pack_shows(photos: Path, tmp_path: Path) -> None:
    for quality in QUALITIES:
        softlabels.pack(data=str(photos), out=str(tmp_path / str(quality)), quality=quality, **SMALL)
    raw, jpeg = (opened(tmp_path / str(quality)) for quality in QUALITIES)
    for row in range(18):
        assert raw.decode(row).shape == jpeg.decode(row).shape
        assert (raw.decode(row).float() - jpeg.decode(row).float()).abs().mean() < 6


def test_views_of_a_pack_are_the_same_in_any_process_and_thread(pack: Path) -> None:
    pictures = Pictures(opened(pack), RECIPES.make("crop-flip"), 0, 2, Frame(16))
    whole = pictures.render(np.repeat(np.arange(18), 2), np.tile(np.arange(2), 18))
    context = "spawn" if "none" in opened(pack).decoder else "fork"
    loader = DataLoader(pictures, batch_size=7, num_workers=1, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), whole)
    with ThreadPoolExecutor(4) as pool:
        again = pickle.loads(pickle.dumps(opened(pack)))
        decoded = list(pool.map(again.decode, list(range(18)) * 3))
    assert all(torch.equal(image, again.decode(place % 18)) for place, image in enumerate(decoded))


def test_any_hdf5_reader_reads_a_shard(pack: Path) -> None:
    packed = opened(pack)
    with h5py.File(pack / "000001.h5") as file:
        assert set(file) == {"payload", "ends", "sizes", "crc32"}
        ends = file["ends"][:]
        assert file["payload"][: ends[0]].tobytes() == packed.content(5)
        assert tuple(file["sizes"][0]) == tuple(packed.decode(5).shape[1:])


def test_the_same_command_again_does_nothing_and_parts_make_the_whole(photos: Path, pack: Path, tmp_path: Path) -> None:
    quality = opened(pack).manifest.packing.quality
    before = files(pack)
    assert softlabels.pack(data=str(photos), out=str(pack), quality=quality, **SMALL).shards == 0
    assert files(pack) == before
    for part in ("1/3", "0/3"):
        softlabels.pack(data=str(photos), out=str(tmp_path / "p"), quality=quality, part=part, **SMALL)
    with pytest.raises(softlabels.DataError, match=r"1 of 4 shards are missing \(first: 000002.h5\)"):
        opened(tmp_path / "p")
    softlabels.pack(data=str(photos), out=str(tmp_path / "p"), quality=quality, part="2/3", **SMALL)
    assert files(tmp_path / "p") == before


def test_another_pack_in_the_same_place_is_refused_with_the_difference(
    photos: Path, pack: Path, tmp_path: Path
) -> None:
    quality = opened(pack).manifest.packing.quality
    with pytest.raises(softlabels.DataError, match=r"'max_side': 30.*'max_side': 20"):
        softlabels.pack(data=str(photos), out=str(pack), quality=quality, **{**SMALL, "max_side": 20})
    other = write_pictures(tmp_path / "other", classes=2)
    with pytest.raises(softlabels.DataError, match="rows is 18 there and 12 here"):
        softlabels.pack(data=str(other), out=str(pack), quality=quality, **SMALL)


@pytest.mark.parametrize("name", ["pack.json", "images.h5", "000002.h5"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "link"])
def test_damage_is_named_and_never_read_through(pack: Path, tmp_path: Path, name: str, damage: str) -> None:
    place = tmp_path / "p"
    shutil.copytree(pack, place)
    content = bytearray((place / name).read_bytes())
    (place / name).unlink()
    if damage == "cut":
        (place / name).write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        known = {"pack.json": b'"classes"', "images.h5": b"class-1/003.jpg", "000002.h5": opened(pack).content(11)[:64]}
        where = content.index(known[name]) + 7
        content[where] ^= 1
        (place / name).write_bytes(content)
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        (place / name).symlink_to(tmp_path / "elsewhere")
    if damage == "link" and name == "pack.json":
        assert len(opened(place)) == 18  # read as text of bounded size, whatever it is
        return
    with pytest.raises(softlabels.DataError, match=rf"{name}"):
        images = opened(place)
        for row in range(18):
            images.decode(row)
    if name == "000002.h5" and damage in ("cut", "flip"):
        with pytest.raises(softlabels.DataError, match="000002"):
            softlabels.pack(out=str(place), check=True, quiet=True)


def test_a_checked_pack_is_sound_and_a_cut_shard_is_packed_again(photos: Path, pack: Path, tmp_path: Path) -> None:
    softlabels.pack(out=str(pack), check=True, quiet=True)
    place, quality = tmp_path / "p", opened(pack).manifest.packing.quality
    shutil.copytree(pack, place)
    (place / "000001.h5").write_bytes((place / "000001.h5").read_bytes()[:700])
    assert softlabels.pack(data=str(photos), out=str(place), quality=quality, **SMALL).shards == 1
    assert files(place) == files(pack)


def test_hostile_headers_are_refused(pack: Path, tmp_path: Path) -> None:
    import hashlib
    import json

    shard = (pack / "000000.h5").read_bytes()
    line, _, rest = shard.partition(b"\n")
    words = line.split()
    text = rest[: int(words[2])]
    for change in (
        {"offset": 1 << 40},
        {"shape": [1 << 50]},
        {"shape": [-1]},
        {"dtype": "object"},
        {"shape": "x"},
        {"offset": True},
    ):
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(pack, place)
        header = json.loads(text)
        header["arrays"]["payload"].update(change)
        new = json.dumps(header).encode()
        head = b"softlabels-arrays 1 %d %d %s\n" % (len(new), int(words[3]), hashlib.sha256(new).hexdigest().encode())
        (place / "000000.h5").write_bytes((head + new).ljust(int(words[3])) + shard[int(words[3]) :])
        with pytest.raises(softlabels.DataError, match="000000"):
            opened(place).decode(0)


def test_a_dump_and_a_training_read_a_pack(pack: Path, softlabels_command: Callable) -> None:
    data = f"pack:{pack}"
    command = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", data, "--views", 2, "--workers", 0)
    done = softlabels_command(*command)
    assert done.exit_code == 0, done.output
    assert softlabels.open_labels("shards").teachers == ("cnn_tiny",)
    trained = softlabels_command("train", "--student", "cnn_tiny", "--labels", "shards", "--epochs", 1, "--workers", 0)
    assert trained.exit_code == 0, trained.output
    assert softlabels_command("verify", "--labels", "shards").exit_code == 0


def test_train_and_test_packs_lie_side_by_side(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pictures(tmp_path / "photos" / split, classes=2, each=3 if split == "train" else 2)
        softlabels.pack(data=str(tmp_path / "photos"), split=split, out=str(tmp_path / "p" / split), quiet=True)
    assert len(opened(tmp_path / "p")) == 6
    assert len(softlabels.open_images(f"pack:{tmp_path / 'p'}", split="test")) == 4


def test_unreadable_images_are_named_or_packed_as_such(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    settings = {"data": str(root), "out": str(tmp_path / "p"), **SMALL}
    with pytest.raises(softlabels.DataError, match=str(bad)):
        softlabels.pack(**settings)
    report = softlabels.pack(on_bad_image="skip", **settings)
    assert list(report.skipped) == ["class-1/003.jpg"]
    with pytest.raises(softlabels.DataError, match=r"class-1/003.jpg.*could not be read when it was packed"):
        opened(tmp_path / "p").decode(9)
    assert opened(tmp_path / "p").decode(10).shape[0] == 3


def test_an_estimate_writes_nothing(photos: Path, softlabels_command: Callable) -> None:
    said = softlabels_command("pack", "--data", photos, "--dry-run", "--quality", "raw", "--max-side", 30)
    assert said.exit_code == 0, said.output
    assert "18 images" in said.output
    assert "kB per image" in said.output
    assert not Path("pack").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--quality", "101"), "quality"), (("--max-side", "-1"), "max_side"), (("--part", "2/2"), "part")],
)
def test_settings_out_of_range_are_refused(
    photos: Path, softlabels_command: Callable, arguments: tuple[str, ...], named: str
) -> None:
    refused = softlabels_command("pack", "--data", photos, *arguments)
    assert refused.exit_code == 2
    assert named in refused.output


def test_a_full_disk_leaves_whole_shards_only(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = 0, os.fsync

    def fill_up(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    settings = {"data": str(photos), "out": str(tmp_path / "p"), **SMALL}
    with pytest.raises(softlabels.StoreError, match="no space left"):
        softlabels.pack(**settings)
    monkeypatch.setattr(os, "fsync", real)
    assert softlabels.pack(**settings).shards >= 1
    softlabels.pack(out=str(tmp_path / "p"), check=True, quiet=True)


@pytest.mark.slow
def test_killed_packs_lose_nothing_and_end_bit_identical(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", classes=3, each=60)
    command = [sys.executable, "-m", "softlabels.cli", "pack", "--data", "photos", "--max-side", "30", "--quiet"]
    command += ["--rows-per-shard", "3"]
    subprocess.run([*command, "--out", "whole"], cwd=tmp_path, check=True)
    killed = 0
    for wanted in (1, 15, 30, 45):
        process = subprocess.Popen([*command, "--out", "killed"], cwd=tmp_path)
        while process.poll() is None and len(list((tmp_path / "killed").glob("0*.h5"))) < wanted:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run([*command, "--out", "killed"], cwd=tmp_path, check=True)
    assert killed
    assert not list((tmp_path / "killed").glob(".partial-0*"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
