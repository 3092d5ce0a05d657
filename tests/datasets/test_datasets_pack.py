"""Packs: images prepared once, found again under the same keys, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from worlds import write_pictures

import softlabels
from softlabels.core.documents import canonical, json_digest
from softlabels.core.progress import size
from softlabels.loading.views import ViewDataset
from softlabels.views import RECIPES, ImageSpec

QUALITIES = ("raw", 90)
FORMATS = ("hdf5", "zarr")
KINDS = [(quality, format) for quality in QUALITIES for format in FORMATS]
GOLDEN = Path(__file__).parent.parent / "golden"
GOLDEN_PIXELS = ["a87050c9", "bee37a66", "6e6b70f2", "d43a57af"]
SMALL = {"max_side": 30, "rows_per_shard": 5, "quiet": True}


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def pack(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos at a longer side of 30; not to be changed."""
    out = tmp_path_factory.mktemp("packed") / "pack"
    quality, format = request.param
    softlabels.pack(data=str(photos), out=str(out), quality=quality, format=format, **SMALL)
    return out


def kind(pack: Path) -> dict[str, Any]:
    """The settings, beside `SMALL`, that a pack was made with."""
    manifest = opened(pack).manifest
    return {"quality": manifest.packing.quality, "format": manifest.format}


def shard(pack: Path, number: int) -> str:
    """The file of a shard; of a Zarr shard the one that holds the images' bytes."""
    return f"{number:06d}.h5" if kind(pack)["format"] == "hdf5" else f"{number:06d}.zarr/payload/c/0/0"


def opened(place: Path) -> Any:
    return softlabels.open_images(f"pack:{place}")


def files(place: Path) -> dict[str, bytes]:
    inner = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
    return {str(path): (place / path).read_bytes() for path in inner if not path.name.startswith(".")}


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
    pictures = ViewDataset(opened(pack), RECIPES.make("crop-flip"), 0, 2, ImageSpec(16))
    whole = pictures.render(np.repeat(np.arange(18), 2), np.tile(np.arange(2), 18))
    context = "spawn" if kind(pack) == {"quality": "raw", "format": "zarr"} else "fork"  # spawning takes seconds
    loader = DataLoader(pictures, batch_size=7, num_workers=1, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), whole)
    with ThreadPoolExecutor(4) as pool:
        again = pickle.loads(pickle.dumps(opened(pack)))
        decoded = list(pool.map(again.decode, list(range(18)) * 3))
    assert all(torch.equal(image, again.decode(place % 18)) for place, image in enumerate(decoded))


def test_any_hdf5_or_zarr_reader_reads_a_shard(pack: Path) -> None:
    packed = opened(pack)
    if kind(pack)["format"] == "hdf5":
        with h5py.File(pack / "000001.h5") as file:
            arrays = {name: file[name][0] for name in file}
    else:
        group = zarr.open_group(str(pack / "000001.zarr"), mode="r")
        arrays = {name: array[0] for name, array in group.arrays()}
    assert set(arrays) == {"payload", "ends", "sizes", "crc32"}
    ends = arrays["ends"]
    assert arrays["payload"][ends[1] : ends[2]].tobytes() == packed.content(7)
    assert tuple(arrays["sizes"][2]) == tuple(packed.decode(7).shape[1:])
    assert arrays["crc32"][2] == zlib.crc32(packed.content(7))


def test_both_formats_hold_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for format in FORMATS:
        softlabels.pack(data=str(photos), out=str(tmp_path / format), format=format, **SMALL)
    one, other = (opened(tmp_path / format) for format in FORMATS)
    assert [one.content(row) for row in range(18)] == [other.content(row) for row in range(18)]
    assert one.keys.equals(other.keys)
    assert one.manifest.id == other.manifest.id


@pytest.mark.parametrize("name", ["pack-3-hdf5", "pack-3-zarr"])
def test_packs_of_every_version_stay_readable(name: str) -> None:
    packed = opened(GOLDEN / name)
    assert packed.keys.to_pylist() == ["class-0/000.jpg", "class-0/001.jpg", "class-1/000.jpg", "class-1/001.jpg"]
    assert packed.labels.tolist() == [0, 0, 1, 1]
    pixels = [hashlib.sha256(packed.decode(row).contiguous().numpy().tobytes()).hexdigest()[:8] for row in range(4)]
    assert pixels == GOLDEN_PIXELS
    assert not packed.problems()


@pytest.mark.parametrize(
    ("version", "said"),
    [(4, "version 4, newer than version 3"), (2, "version 2, made by a development .* pack` again")],
)
def test_packs_of_other_versions_are_refused(pack: Path, tmp_path: Path, version: int, said: str) -> None:
    shutil.copytree(pack, tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "pack.json").read_text())
    (tmp_path / "p" / "pack.json").write_text(json.dumps({**manifest, "format_version": version}))
    with pytest.raises(softlabels.DataError, match=said):
        opened(tmp_path / "p")


def test_a_manifest_states_what_was_left_at_its_default(photos: Path, tmp_path: Path) -> None:
    """So that a default that changes later changes no pack."""
    softlabels.pack(data=str(photos), out=str(tmp_path / "p"), quiet=True)
    manifest = json.loads((tmp_path / "p" / "pack.json").read_text())
    assert (manifest["format"], manifest["packing"]) == ("hdf5", {"max_side": 320, "quality": 90})


def test_an_opened_pack_holds_no_descriptors(pack: Path) -> None:
    """A million images in 512s are more shards than a process may have files open."""
    packed = opened(pack)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for row in range(18):
        packed.decode(row)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_same_command_again_does_nothing_and_parts_make_the_whole(photos: Path, pack: Path, tmp_path: Path) -> None:
    before, made = files(pack), kind(pack)
    assert softlabels.pack(data=str(photos), out=str(pack), **made, **SMALL).shards == 0
    assert files(pack) == before
    for part in ("1/3", "0/3"):
        softlabels.pack(data=str(photos), out=str(tmp_path / "p"), part=part, **made, **SMALL)
    with pytest.raises(softlabels.DataError, match=r"1 of 4 shards are missing \(first: 000002\.(h5|zarr)\)"):
        opened(tmp_path / "p")
    softlabels.pack(data=str(photos), out=str(tmp_path / "p"), part="2/3", **made, **SMALL)
    assert files(tmp_path / "p") == before


def test_another_pack_in_the_same_place_is_refused_with_the_difference(
    photos: Path, pack: Path, tmp_path: Path
) -> None:
    made = kind(pack)
    with pytest.raises(softlabels.DataError, match=r"'max_side': 30.*'max_side': 20"):
        softlabels.pack(data=str(photos), out=str(pack), **made, **{**SMALL, "max_side": 20})
    other = write_pictures(tmp_path / "other", classes=2)
    with pytest.raises(softlabels.DataError, match="rows is 18 there and 12 here"):
        softlabels.pack(data=str(other), out=str(pack), **made, **SMALL)
    format = "zarr" if made["format"] == "hdf5" else "hdf5"
    with pytest.raises(softlabels.DataError, match=f"format is '{made['format']}' there and '{format}' here"):
        softlabels.pack(data=str(photos), out=str(pack), **{**made, "format": format}, **SMALL)


@pytest.mark.parametrize("what", ["manifest", "images", "shard"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "link"])
def test_damage_is_named_and_never_read_through(pack: Path, tmp_path: Path, what: str, damage: str) -> None:
    place, hdf5 = tmp_path / "p", kind(pack)["format"] == "hdf5"
    shutil.copytree(pack, place)
    table = "images.h5" if hdf5 else "images.zarr/keys/c/0/0"
    name = {"manifest": "pack.json", "images": table, "shard": shard(pack, 2)}[what]
    content = bytearray((place / name).read_bytes())
    (place / name).unlink()
    if damage == "cut":
        (place / name).write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        known = {"manifest": b'"classes"', "images": b"class-1/003.jpg", "shard": opened(pack).content(11)[:64]}
        where = content.index(known[what]) + 7
        content[where] ^= 1
        (place / name).write_bytes(content)
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        (place / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(softlabels.DataError, match=re.escape(name.split("/")[0])):
        images = opened(place)
        for row in range(18):
            images.decode(row)
    if what == "shard" and damage in ("cut", "flip"):
        with pytest.raises(softlabels.DataError, match="000002"):
            softlabels.pack(out=str(place), check=True, quiet=True)


def test_a_link_to_a_folder_is_not_followed(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "p"
    softlabels.pack(data=str(photos), out=str(place), format="zarr", **SMALL)
    for name in ("000001.zarr", "000001.zarr/payload"):
        (place / name).rename(tmp_path / "elsewhere")
        (place / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(softlabels.DataError, match=r"000001\.zarr.*a link"):
            opened(place).decode(5)
        (place / name).unlink()
        (tmp_path / "elsewhere").rename(place / name)
    (tmp_path / "elsewhere").symlink_to(place)
    assert opened(tmp_path / "elsewhere").decode(5).shape[0] == 3  # the pack's own place may be a link


def test_every_byte_of_a_shard_is_checked(pack: Path, tmp_path: Path) -> None:
    """A byte changed anywhere, in the arrays, in a header or in what the library keeps, is found by --check."""
    random = np.random.default_rng(0)
    inner = [name for name in files(pack) if name.startswith("000001")]
    for name in inner:
        content = (pack / name).read_bytes()
        for _ in range(max(1, 16 // len(inner))):
            place = tmp_path / "p"
            shutil.copytree(pack, place)
            where, changed = int(random.integers(len(content))), bytearray(content)
            changed[where] ^= 1 << int(random.integers(8))
            (place / name).write_bytes(changed)
            assert any("000001" in problem for problem in opened(place).problems()), (name, where)
            shutil.rmtree(place)


def test_a_checked_pack_is_sound_and_a_cut_shard_is_packed_again(photos: Path, pack: Path, tmp_path: Path) -> None:
    softlabels.pack(out=str(pack), check=True, quiet=True)
    place, made, cut = tmp_path / "p", kind(pack), shard(pack, 1)
    shutil.copytree(pack, place)
    (place / cut).write_bytes((place / cut).read_bytes()[:700])
    assert softlabels.pack(data=str(photos), out=str(place), **made, **SMALL).shards == 1
    assert files(place) == files(pack)


HOSTILE = (
    {"offsets": [1 << 40]},
    {"offsets": []},
    {"sizes": [1 << 40]},
    {"plain": [False]},
    {"shape": [1, 1 << 50]},
    {"shape": [1 << 61, 1 << 61, 1 << 61]},
    {"shape": [1, -1]},
    {"shape": [1] * 40},
    {"shape": []},
    {"dtype": "object"},
    {"dtype": "|S1000000"},
    {"shape": "x"},
    {"shape": None},
)


def test_hostile_headers_are_refused(pack: Path, tmp_path: Path) -> None:
    stored = {"dtype": "uint8", "shape": [1, 1], "offsets": [0], "sizes": [1], "crc32": [0], "plain": [True]}
    file = {"size": 1, "start": 0, "sha256": "0" * 64}
    changes: list[dict[str, Any]] = [{"arrays": {"payload": change}} for change in HOSTILE]
    changes += [{"arrays": {"../../payload": stored}}, {"arrays": {"more": stored}}, {"arrays": []}]
    changes += [{"files": {"../../payload": file}}, {"files": None}, {"skipped": 7}, {"compression": "zstd"}]
    for change in changes:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(pack, place)
        _restate(place, kind(pack)["format"], change)
        with pytest.raises(softlabels.DataError, match="000000"):
            opened(place).decode(0)


def _restate(pack: Path, format: str, change: dict[str, Any]) -> None:
    """Give the first shard a changed header with a checksum that fits."""
    if format == "zarr":
        group = json.loads((pack / "000000.zarr" / "zarr.json").read_text())
        said = group["attributes"]["softlabels"]
        _change(said["header"], change)
        said["sha256"] = json_digest(said["header"])
        (pack / "000000.zarr" / "zarr.json").write_text(json.dumps(group))
        return
    line, _, rest = (pack / "000000.h5").read_bytes().partition(b"\n")
    length, block = (int(word) for word in line.split()[2:4])
    header = json.loads(rest[:length])
    _change(header, change)
    new = canonical(header)
    head = b"softlabels-shard 1 %d %d %s\n" % (len(new), block, hashlib.sha256(new).hexdigest().encode())
    assert len(head + new) <= block
    (pack / "000000.h5").write_bytes((head + new).ljust(block) + rest[block - len(line) - 1 :])


def test_a_restated_header_without_a_change_is_accepted(pack: Path, tmp_path: Path) -> None:
    shutil.copytree(pack, tmp_path / "p")
    _restate(tmp_path / "p", kind(pack)["format"], {})
    assert torch.equal(opened(tmp_path / "p").decode(0), opened(pack).decode(0))


def _change(there: dict[str, Any], change: dict[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(there.get(name), dict):
            _change(there[name], value)
        else:
            there[name] = value


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


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_of_unreadable_images_alone_is_whole(tmp_path: Path, format: str) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    settings = {"data": str(root), "out": str(tmp_path / "p"), **SMALL, "rows_per_shard": 1, "format": format}
    softlabels.pack(on_bad_image="skip", **settings)
    softlabels.pack(out=str(tmp_path / "p"), check=True, quiet=True)
    assert softlabels.pack(on_bad_image="skip", **settings).shards == 0
    with pytest.raises(softlabels.DataError, match=r"class-1/003.jpg.*could not be read when it was packed"):
        opened(tmp_path / "p").decode(9)


def test_a_shard_that_hdf5_could_not_hold_is_refused_with_the_setting(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softlabels.datasets.packs._writing._LARGEST", 4000)
    with pytest.raises(softlabels.StoreError, match=r"000000.h5 .* more than the 4,000 .* smaller `rows_per_shard`"):
        softlabels.pack(data=str(photos), out=str(tmp_path / "p"), quality="raw", **SMALL)


@pytest.mark.parametrize("out", ["taken", "s3://bucket/pack"])
def test_a_place_where_no_pack_can_lie_is_named(photos: Path, softlabels_command: Callable, out: str) -> None:
    Path("taken").write_text("a file, no folder")
    made = softlabels_command("pack", "--data", photos, "--out", out)
    assert made.exit_code in (1, 2)
    assert out in made.output
    assert Path("taken").read_text() == "a file, no folder"
    assert not Path("s3:").exists()


def test_a_damaged_manifest_says_how_to_keep_the_shards(photos: Path, softlabels_command: Callable) -> None:
    command = ("pack", "--data", photos, "--out", "mine")
    assert softlabels_command(*command).exit_code == 0
    Path("mine/pack.json").write_text("{")
    assert "remove it and run the same" in softlabels_command(*command).output
    Path("mine/pack.json").unlink()
    assert "nothing to do" in softlabels_command(*command).output


def test_an_estimate_writes_nothing(photos: Path, softlabels_command: Callable) -> None:
    said = softlabels_command("pack", "--data", photos, "--dry-run", "--quality", "raw", "--max-side", 30)
    assert said.exit_code == 0, said.output
    assert "18 images" in said.output
    assert "kB per image" in said.output
    assert not Path("pack").exists()


def test_a_plan_of_files_says_what_packs_would_hold(
    photos: Path, pack: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    command = ("plan", "--teacher", "cnn_tiny", "--weights", "random", "--views", 1, "--workers", 0)
    said = softlabels_command(*command, "--data", photos)
    assert said.exit_code == 0, said.output
    line = next(line for line in said.output.splitlines() if "softlabels pack" in line)
    sizes = {}
    for quality in QUALITIES:
        softlabels.pack(data=str(photos), out=str(tmp_path / str(quality)), quality=quality, quiet=True)
        made = opened(tmp_path / str(quality))
        sizes[quality] = sum(len(made.content(row)) for row in range(18))
    assert f"JPEG of quality 90 {size(sizes[90])}" in line
    assert f"raw {size(sizes['raw'])}" in line
    for data in (f"pack:{pack}", "digits"):
        assert "softlabels pack" not in softlabels_command(*command, "--data", data).output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--quality", "101"), "quality"), (("--max-side", "-1"), "max-side"), (("--part", "2/2"), "part")],
)
def test_settings_out_of_range_are_refused(
    photos: Path, softlabels_command: Callable, arguments: tuple[str, ...], named: str
) -> None:
    refused = softlabels_command("pack", "--data", photos, *arguments)
    assert refused.exit_code == 2
    assert named in refused.output


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_whole_shards_only(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    synced, real, most = 0, os.fsync, 9 if format == "hdf5" else 60

    def fill_up(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced > most:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    settings = {"data": str(photos), "out": str(tmp_path / "p"), "format": format, **SMALL}
    with pytest.raises(softlabels.StoreError, match="no space left"):
        softlabels.pack(**settings)
    monkeypatch.setattr(os, "fsync", real)
    assert 1 <= softlabels.pack(**settings).shards < 4
    softlabels.pack(out=str(tmp_path / "p"), check=True, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_killed_packs_lose_nothing_and_end_bit_identical(tmp_path: Path, format: str) -> None:
    write_pictures(tmp_path / "photos", classes=3, each=60)
    command = [sys.executable, "-m", "softlabels.cli", "pack", "--data", "photos", "--max-side", "30", "--quiet"]
    command += ["--rows-per-shard", "3", "--format", format]
    subprocess.run([*command, "--out", "whole"], cwd=tmp_path, check=True)
    killed = 0
    for wanted in (1, 15, 30, 45):
        process = subprocess.Popen([*command, "--out", "killed"], cwd=tmp_path)
        while process.poll() is None and len(list((tmp_path / "killed").glob("0*"))) < wanted:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run([*command, "--out", "killed"], cwd=tmp_path, check=True)
    assert killed
    assert not list((tmp_path / "killed").glob(".partial-0*"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_replaced_picture_is_noticed_by_the_same_command(tmp_path: Path) -> None:
    """Also when the manifest was removed so that the shards are kept, and in a half that is packed later."""
    photos = write_pictures(tmp_path / "photos")
    settings = {"data": str(photos), "out": str(tmp_path / "p"), **SMALL}
    softlabels.pack(part="0/2", **settings)
    shutil.copy(photos / "class-0/003.jpg", tmp_path / "kept.jpg")
    shutil.copy(photos / "class-2/005.jpg", photos / "class-0/003.jpg")
    for part in ("0/2", "1/2"):
        with pytest.raises(softlabels.DataError, match="packed from other images under the same names"):
            softlabels.pack(part=part, **settings)
    shutil.copy(tmp_path / "kept.jpg", photos / "class-0/003.jpg")
    softlabels.pack(**settings)
    before = opened(tmp_path / "p").content(3)
    shutil.copy(photos / "class-2/005.jpg", photos / "class-0/003.jpg")
    (tmp_path / "p" / "pack.json").unlink()
    softlabels.pack(**settings)
    assert opened(tmp_path / "p").content(3) != before
    shutil.copytree(photos, tmp_path / "elsewhere")
    assert softlabels.pack(**{**settings, "data": str(tmp_path / "elsewhere")}).shards == 0


def test_a_setting_of_packing_that_comes_later_makes_no_pack_another_one(
    pack: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softlabels.datasets.packs import _format as _pack_format

    made = kind(pack)

    class Later(_pack_format.Packing):
        sharpen: bool = False

    class LaterManifest(_pack_format.PackManifest):
        packing: Later

    monkeypatch.setattr(_pack_format, "PackManifest", LaterManifest)
    assert isinstance(opened(pack).manifest, LaterManifest)
    assert not opened(pack).problems()
    assert softlabels.pack(data=str(photos), out=str(pack), **made, **SMALL).shards == 0
