"""Parts of JPEG files: byte for byte what a decode of the whole has there, or the whole.

Tests that need a TurboJPEG library of version 3 are left out where there is none (``pip install softlabels[turbo]``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from worlds import picture, write_pictures

import softlabels
from softlabels.datasets import _decode, _turbo, encoded
from softlabels.loading.views import Pictures
from softlabels.views import RECIPES, Frame


@pytest.fixture
def turbo() -> _turbo.TurboJpeg:
    return _turbo.library() or pytest.skip("no TurboJPEG library of version 3")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For tests that choose a library: what is found is forgotten before and after."""
    _turbo.library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    _turbo.library.cache_clear()


def jpeg(height: int, width: int, mode: str = "RGB", seed: int = 0, **options: object) -> np.ndarray:
    """A photograph-like file with fine grain, so that wrongly upsampled colours show."""
    grain = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    pixels = (picture(seed, height, width).permute(1, 2, 0).numpy() * 0.75 + grain).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "jpeg", **options)
    return np.frombuffer(file.getvalue(), np.uint8).copy()


def random_boxes(height: int, width: int, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    tall, wide = generator.integers(1, height + 1, count), generator.integers(1, width + 1, count)
    return np.stack(
        [generator.integers(0, height - tall + 1), generator.integers(0, width - wide + 1), tall, wide], axis=1
    )


def cut(pixels: torch.Tensor, box: np.ndarray) -> torch.Tensor:
    top, left, height, width = box.tolist()
    return pixels[:, top : top + height, left : left + width]


FILES = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "grey": {"mode": "L"},
    "progressive": {"subsampling": 2, "progressive": True},
    "coarse": {"subsampling": 2, "quality": 20},
    "restarts": {"subsampling": 2, "restart_marker_blocks": 3},
}


@pytest.mark.usefixtures("turbo")
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (37, 61), (64, 48), (130, 97)])
def test_a_part_is_the_slice_of_the_whole(kind: str, height: int, width: int) -> None:
    data = jpeg(height, width, seed=height, **FILES[kind])
    whole, found = _decode.decode_bytes(data, "it"), _decode.encoded_bytes(data, "it")
    assert isinstance(found, _decode.JpegFile)
    assert (found.height, found.width) == (height, width)
    for box in random_boxes(height, width, 60, seed=width):
        pixels, (inside,) = found.decode(box[None])
        assert torch.equal(cut(pixels, inside), cut(whole, box))
        whole_at_once = tuple(pixels.shape) == (3, height, width)
        assert whole_at_once or (pixels.shape[1] <= box[2] + 63 and pixels.shape[2] <= box[3] + 63)
    boxes = random_boxes(height, width, 4, seed=7)
    pixels, inside = found.decode(boxes)
    assert all(torch.equal(cut(pixels, at), cut(whole, box)) for at, box in zip(inside, boxes, strict=True))


@pytest.mark.usefixtures("turbo")
@pytest.mark.parametrize("what", ["cmyk", "png", "cut short", "more behind its end"])
def test_what_cannot_be_decoded_in_parts_is_decoded_whole_or_refused_as_ever(what: str) -> None:
    data = jpeg(40, 48, mode="CMYK" if what == "cmyk" else "RGB", subsampling=2)
    if what == "png":
        file = io.BytesIO()
        Image.fromarray(picture(1).permute(1, 2, 0).numpy()).save(file, "png")
        data = np.frombuffer(file.getvalue(), np.uint8).copy()
    if what == "cut short":
        with pytest.raises(softlabels.DataError, match=r"^it cannot be decoded"):
            _decode.encoded_bytes(data[: len(data) // 2], "it")
        return
    if what == "more behind its end":
        data = np.concatenate([data, np.zeros(9, np.uint8)])
    found = _decode.encoded_bytes(data, "it")
    pixels, boxes = found.decode(np.array([[3, 4, 5, 6]]))
    assert torch.equal(pixels, _decode.decode_bytes(data, "it"))
    assert boxes.tolist() == [[3, 4, 5, 6]]


@pytest.mark.usefixtures("turbo")
def test_a_damaged_file_shows_the_same_or_is_refused() -> None:
    """Damage may lie in what is not decoded; what is shown is never other than the whole shows."""
    data, refused = jpeg(120, 160, subsampling=2), 0
    for place in np.random.default_rng(0).integers(700, len(data) - 2, 60):
        bad = data.copy()
        bad[place] ^= 0x55
        box = np.array([[8, 8, 40, 40]])
        try:
            whole = _decode.decode_bytes(bad, "it")
        except softlabels.DataError:
            refused += 1
            continue
        pixels, (inside,) = _decode.encoded_bytes(bad, "it").decode(box)
        assert torch.equal(cut(pixels, inside), cut(whole, box[0]))
    assert refused < 60


@pytest.mark.usefixtures("turbo")
def test_threads_share_a_library() -> None:
    files = [jpeg(60 + seed, 70, seed=seed, subsampling=2) for seed in range(8)]

    def right(data: np.ndarray) -> bool:
        whole, box = _decode.decode_bytes(data, "it"), np.array([20, 20, 30, 30])
        pixels, (inside,) = _decode.encoded_bytes(data, "it").decode(box[None])
        return torch.equal(cut(pixels, inside), cut(whole, box))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, files * 10))


@pytest.mark.usefixtures("turbo")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["crop-flip", "crop-flip-randaugment-erase", "crop-flip-mix", "pad-flip", "clean"])
def test_pictures_are_the_same_bytes_with_and_without_a_library(
    chosen: pytest.MonkeyPatch, tmp_path: Path, name: str, packed: bool
) -> None:
    data = write_pictures(tmp_path / "photos", classes=2)
    if packed:
        softlabels.pack(data=str(data), out=str(tmp_path / "pack"), quality=90, quiet=True)
    images = softlabels.open_images(f"pack:{tmp_path / 'pack'}" if packed else data)
    rows, views = np.tile(np.arange(12), 4), np.repeat(np.arange(4), 12)
    made = []
    for setting in ("", "off"):
        if setting:
            chosen.setenv(_turbo.VARIABLE, setting)
        _turbo.library.cache_clear()
        made.append(Pictures(images, RECIPES.make(name), 0, 4, Frame(24)).render(rows, views))
    assert torch.equal(made[0], made[1])


def test_without_a_library_the_whole_is_decoded_and_no_decoder_of_parts_is_named(
    chosen: pytest.MonkeyPatch, photos: Path
) -> None:
    chosen.setenv(_turbo.VARIABLE, "off")
    images = softlabels.open_images(photos)
    found = encoded(images, 3)
    assert isinstance(found, _decode.Whole)
    assert torch.equal(found.decode(np.array([[0, 0, 5, 5]]))[0], images.decode(3))
    assert "parts" not in images.decoder


def test_a_library_is_named_as_a_decoder(turbo: _turbo.TurboJpeg, photos: Path) -> None:
    assert f"parts of JPEG by {turbo.name}" in softlabels.open_images(photos).decoder


def test_a_library_that_is_none_is_refused(chosen: pytest.MonkeyPatch, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "libturbojpeg.so").write_text("no library")
    chosen.setenv(_turbo.VARIABLE, str(tmp_path / "libturbojpeg.so"))
    with pytest.raises(softlabels.DataError, match=rf"{_turbo.VARIABLE} names .*libturbojpeg\.so.*`off`"):
        encoded(softlabels.open_images(photos), 0)


class Slicing(_turbo.TurboJpeg):
    """Stands for a library: cuts parts out of the whole, or refuses to."""

    def __init__(self, whole: torch.Tensor, refuses: bool) -> None:
        self.whole, self.refuses, self.name = whole, refuses, "slicing"

    def part(self, _data: np.ndarray, _shape: _turbo.Shape, box: tuple[int, int, int, int]) -> object:
        top, left, bottom, right = box
        pixels = self.whole.permute(1, 2, 0).numpy()[top:bottom, left:right]
        return None if self.refuses else (np.ascontiguousarray(pixels), (top, left))


def test_a_part_that_is_nearly_all_is_decoded_with_the_rest() -> None:
    data = jpeg(50, 60)
    whole = _decode.decode_bytes(data, "it")
    file = _decode.JpegFile(data, "it", _turbo.Shape(50, 60, (8, 8)), Slicing(whole, refuses=False))
    for box, shape in (([2, 2, 46, 57], (50, 60)), ([2, 2, 20, 57], (20, 57))):
        pixels, (inside,) = file.decode(np.array([box]))
        assert pixels.shape[1:] == shape
        assert torch.equal(cut(pixels, inside), cut(whole, np.array(box)))


@pytest.mark.parametrize("refuses", [False, True])
def test_boxes_are_found_in_the_part_that_holds_them_all(refuses: bool) -> None:
    data = jpeg(50, 60)
    whole = _decode.decode_bytes(data, "it")
    file = _decode.JpegFile(data, "it", _turbo.Shape(50, 60, (8, 8)), Slicing(whole, refuses))
    boxes = np.array([[10, 30, 5, 6], [20, 12, 9, 40], [11, 31, 1, 1]])
    pixels, inside = file.decode(boxes)
    assert pixels.shape == ((3, 50, 60) if refuses else (3, 19, 40))
    assert all(torch.equal(cut(pixels, at), cut(whole, box)) for at, box in zip(inside, boxes, strict=True))
