"""Copies of held-out images in a pool: which are found, what confirms them, and what stays."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.io import decode_image, write_jpeg
from worlds import picture, write_pictures

import softlabels
from softlabels import ConfigError
from softlabels.selecting.hashes import SIDE, Hashes, near, thumbnails


def scene(seed: int, height: int = 96, width: int = 120) -> torch.Tensor:
    """An image with corners and edges, uint8 (3, H, W): rectangles of random colours on a smooth ground."""
    chance, image = np.random.default_rng(seed), picture(seed, height, width).clone()
    for _ in range(25):
        top, left = chance.integers(0, height - 12), chance.integers(0, width - 12)
        tall, wide = chance.integers(4, 30, 2)
        colour = torch.from_numpy(chance.integers(0, 256, 3).astype(np.uint8))
        image[:, top : top + tall, left : left + wide] = colour[:, None, None]
    return image


def save(image: torch.Tensor, file: Path, quality: int = 95) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jpeg(image.contiguous(), str(file), quality=quality)
    return file


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val/ with 6 scenes; pool/ with changed copies of some and 6 others; not to be changed."""
    root = tmp_path_factory.mktemp("dedup")
    files = [save(scene(seed), root / "val" / f"{seed}.jpg") for seed in range(6)]
    pool = root / "pool"
    pool.mkdir()
    shutil.copy(files[0], pool / "equal.jpg")
    decoded = [decode_image(str(file)) for file in files]
    save(decoded[1], pool / "compressed.jpg", 25)
    save(decoded[2].flip(-1), pool / "mirrored.jpg")
    small = torch.nn.functional.interpolate(decoded[3][None], scale_factor=0.6, mode="bilinear", antialias=True)[0]
    save(small, pool / "smaller.jpg")
    save((decoded[4].float() * 0.8).to(torch.uint8), pool / "darker.jpg")
    for seed in range(100, 106):
        save(scene(seed), pool / f"other-{seed}.jpg")
    save(torch.full((3, 40, 40), 200, dtype=torch.uint8), pool / "plain.jpg")
    return root


COPIES = {
    "compressed.jpg": "1.jpg",
    "darker.jpg": "4.jpg",
    "equal.jpg": "0.jpg",
    "mirrored.jpg": "2.jpg",
    "smaller.jpg": "3.jpg",
}


def listed(file: Path) -> dict[str, dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return {row["softlabels_key"]: row for row in csv.DictReader(opened)}


@pytest.mark.parametrize("confirm", ["hash", "sift"])
def test_copies_are_found_and_the_others_stay(world: Path, confirm: Any, tmp_path: Path) -> None:
    if confirm == "sift":
        pytest.importorskip("cv2")
    done = softlabels.dedup(
        data=f"images:{world}/pool", against=f"images:{world}/val", confirm=confirm, out=tmp_path / "r", quiet=True
    )
    removed = listed(tmp_path / "r" / "removed.csv")
    assert {key: row["match"] for key, row in removed.items()} == COPIES
    assert [removed[key]["by"] for key in sorted(COPIES)] == [confirm, confirm, "content", confirm, confirm]
    assert {key for key, row in removed.items() if row["mirrored"] == "1"} == {"mirrored.jpg"}
    assert (done.equal, done.near, done.mirrored, done.kept, done.plain) == (1, 4, 1, 7, 1)
    stays = softlabels.open_images(done.data)
    whole = softlabels.open_images(f"images:{world}/pool")
    assert set(stays.keys.to_pylist()) == set(whole.keys.to_pylist()) - COPIES.keys()
    page = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 * (len(COPIES) + len(done.others)) and "mirrored" in page
    assert "http" not in page


def test_labels_and_keys_of_what_stays_are_those_of_the_pool(tmp_path: Path) -> None:
    pool = write_pictures(tmp_path / "photos")
    (tmp_path / "val").mkdir()
    shutil.copy(pool / "class-1" / "002.jpg", tmp_path / "val" / "x.jpg")
    done = softlabels.dedup(
        data=pool, against=f"images:{tmp_path}/val", confirm="hash", max_distance=0, out=tmp_path / "r", quiet=True
    )
    stays, whole = softlabels.open_images(done.data), softlabels.open_images(pool)
    assert stays.classes == whole.classes and len(stays) == 17 == done.kept
    known = dict(zip(whole.keys.to_pylist(), whole.labels.tolist(), strict=True))
    assert [known[key] for key in stays.keys.to_pylist()] == stays.labels.tolist()


def test_without_opencv_the_command_says_what_to_install_and_what_works_without(
    world: Path, monkeypatch: pytest.MonkeyPatch, softlabels_command: Callable[..., Any], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    command = ["dedup", "--data", f"images:{world}/pool", "--against", f"images:{world}/val"]
    done = softlabels_command(*command)
    assert done.exit_code == 2 and len(done.output.splitlines()) == 1
    assert "pip install 'softlabels[opencv]'" in done.output and "--confirm hash" in done.output
    assert not (tmp_path / "report").exists()
    alone = softlabels_command(*command, "--confirm", "hash")
    assert alone.exit_code == 0 and "by their hashes alone, which nothing else confirms" in alone.output
    assert "--data csv:report/kept.csv" in alone.output


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--data", "images:pool"], "are to be named  tip: give --data and --against"),
        (["--data", "images:val", "--against", "images:val"], "every image of"),
        (["--data", "images:pool", "--against", "images:nowhere"], "no such directory"),
        (["--data", "images:pool", "--against", "images:val", "--max-distance", "99"], "24 or less"),
        (["--data", "images:pool", "--against", "images:val", "--out", "pool/report"], "folder of the images"),
        (["--data", "images:broken", "--against", "images:val"], "--on-bad-image skip"),
        (["--data", "images:pool", "--against", "images:val", "--out", "mine.csv"], "--out is a folder"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], found: str, world: Path, softlabels_command: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("pool", "val"):
        shutil.copytree(world / name, tmp_path / name)
    shutil.copytree(world / "val", tmp_path / "broken")
    (tmp_path / "mine.csv").write_text("path\n", encoding="utf-8")
    (tmp_path / "broken" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    done = softlabels_command("dedup", *options, "--confirm", "hash")
    assert done.exit_code in (1, 2) and found in done.output
    assert sum(line.startswith("error: ") for line in done.output.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_an_image_that_cannot_be_read_is_left_out_if_asked(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "pool", tmp_path / "pool")
    (tmp_path / "pool" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    done = softlabels.dedup(
        data=f"images:{tmp_path}/pool",
        against=f"images:{world}/val",
        confirm="hash",
        on_bad_image="skip",
        out=tmp_path / "r",
        quiet=True,
    )
    assert (done.unreadable, done.kept) == (1, 7)
    assert listed(tmp_path / "r" / "removed.csv")["bad.jpg"]["by"] == "unreadable"


# ---- hashes


def test_a_hash_does_not_change_with_size_brightness_or_batch() -> None:
    images = torch.stack([scene(seed) for seed in range(8)])
    hashes = Hashes.of(thumbnails(images))
    for row in range(8):
        assert Hashes.of(thumbnails(images[row][None])).dct[0] == hashes.dct[row]
    half = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    darker = (images.float() * 0.7 + 20).to(torch.uint8)
    for changed in (half, darker):
        other = Hashes.of(thumbnails(changed))
        assert np.bitwise_count(other.dct ^ hashes.dct).max() <= 4
        assert np.bitwise_count(other.differences ^ hashes.differences).max() <= 4


def test_the_dct_hash_is_of_the_signs_of_low_frequencies_against_their_median() -> None:
    grey = thumbnails(scene(3)[None])
    places, waves = np.arange(SIDE), np.arange(8)
    basis = np.cos(np.pi * waves[:, None] * (2 * places[None] + 1) / (2 * SIDE))
    low = (basis @ grey[0].double().numpy() @ basis.T).reshape(-1)
    bits = low > np.median(low[1:])
    bits[0] = False
    middle = np.sort(low[1:])[31]
    wanted = int(np.packbits(np.where(np.arange(64) == 0, False, low > middle)).view("<u8")[0])
    assert int(Hashes.of(grey).dct[0]) == wanted
    assert bits.sum() == 31


def test_near_finds_exactly_the_pairs_within_the_distance() -> None:
    chance = np.random.default_rng(0)
    words = chance.integers(0, 1 << 63, (2, 40), dtype=np.uint64)
    flips = np.uint64(1) << chance.integers(0, 64, (2, 40, 3)).astype(np.uint64)
    others = words ^ np.bitwise_xor.reduce(flips, axis=2)
    plain = np.arange(40) == 7
    some, other = Hashes(words[0], words[1], plain), Hashes(others[0], others[1], np.zeros(40, bool))
    found = {(int(i), int(j)) for here, there, _ in near(some, other, 3) for i, j in zip(here, there, strict=True)}
    assert found == {(row, row) for row in range(40) if row != 7}


def test_settings_in_python_are_checked(world: Path) -> None:
    with pytest.raises(ConfigError, match="confirm"):
        softlabels.dedup(data=f"images:{world}/pool", against=f"images:{world}/val", confirm="eyes")  # type: ignore[arg-type]
