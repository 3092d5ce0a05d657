"""Files that strangers made: damaged, of another kind than their names say, or of a size that no memory holds."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from softlabels.core.reading import kind_of_file
from softlabels.datasets import _formats, notes, open_images
from softlabels.errors import ConfigError, DataError, ImageError

AVIF = ".avif" in Image.registered_extensions()
"""Pillow before 11.3 has none."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, interlaced: int, rows: bytes, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = [chunk(b"IHDR", header), more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def rows_of(width: int, height: int, bits: int, interlaced: int, rng: np.random.Generator) -> bytes:
    """Random pixels, each row behind a random filter."""
    made = []
    for x, y, across, down in PASSES if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0:
            line = -(-columns * bits // 8)
            made += [bytes([rng.integers(0, 5)]) + rng.integers(0, 256, line, np.uint8).tobytes() for _ in range(rows)]
    return b"".join(made)


def decoded(path: Path, data: bytes) -> torch.Tensor:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return open_images(f"images:{path.parent}").decode(0)


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(path, data)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or noise()).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 31, 3), np.uint8))


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("colour", [0, 2, 3, 4, 6])
def test_png_pixels_are_those_of_libpng_through_torchvision(tmp_path: Path, colour: int, interlaced: int) -> None:
    """The decoder may change, the pixels that stores were made of may not."""
    rng = np.random.default_rng([colour, interlaced])
    for depth in {0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}.get(colour, (8, 16)):
        palette = chunk(b"PLTE", rng.integers(0, 256, 3 << depth, np.uint8).tobytes()) if colour == 3 else b""
        clear = {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: b"\0\x80\xff"[: 1 << depth]}.get(colour)
        for more in (b"", chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"tRNS", clear) if clear else b""):
            width, height = rng.integers(1, 30, 2).tolist()
            rows = rows_of(width, height, depth * CHANNELS[colour], interlaced, rng)
            # A gamma stands before the palette, transparency behind it.
            data = png(
                width,
                height,
                depth,
                colour,
                interlaced,
                rows,
                palette + more if more[4:8] == b"tRNS" else more + palette,
            )
            mode = torchvision.io.ImageReadMode.RGB
            theirs = torchvision.io.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
            if theirs.dtype == torch.uint16:
                theirs = theirs.to(torch.int32) >> 8
            assert torch.equal(decoded(tmp_path / "c" / "x.png", data), theirs.to(torch.uint8)), (depth, more[4:8])


@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_png_with_right_checksums_and_too_few_pixels_is_refused(tmp_path: Path, interlaced: int) -> None:
    rows = rows_of(9, 9, 24, interlaced, np.random.default_rng(0))
    assert "end early" in refusal(tmp_path / "c" / "x.png", png(9, 9, 8, 2, interlaced, rows[:-1]))
    assert "end early" in refusal(tmp_path / "c" / "x.png", png(9, 9, 8, 2, interlaced, rows[:28]))
    assert "data stream" in refusal(tmp_path / "c" / "x.png", png(9, 9, 8, 2, interlaced, b"\x09" + rows[1:]))
    decoded(tmp_path / "c" / "x.png", png(9, 9, 8, 2, interlaced, bytes(len(rows))))


def test_a_flipped_byte_in_a_png_is_told_from_its_checksums(tmp_path: Path) -> None:
    data = bytearray(saved("PNG"))
    data[data.find(b"IDAT") + 30] ^= 0xFF
    assert "'IDAT' does not match its checksum" in refusal(tmp_path / "c" / "x.png", bytes(data))


def test_what_a_png_holds_beside_its_pixels_does_no_harm(tmp_path: Path) -> None:
    good = saved("PNG")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(4_000_000)))
    damaged = bytearray(chunk(b"iCCP", b"broken\0\0" + bytes(50)))
    damaged[-1] ^= 1
    assert torch.equal(
        decoded(tmp_path / "a" / "x.png", good[:33] + text + bytes(damaged) + good[33:]),
        decoded(tmp_path / "b" / "x.png", good),
    )


DAMAGED = """
import io, sys
import numpy as np
from PIL import Image
from softlabels.datasets import _decode
from softlabels.errors import DataError

kinds, tries, seed = sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3])
for kind in kinds:
    rng = np.random.default_rng([seed, len(kind), ord(kind[0])])
    image = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
    name, _, mode = kind.partition("-")
    how = {"progressive": {"progressive": True}, "lossless": {"lossless": True}, "lzw": {"compression": "tiff_lzw"}}
    made = image if mode in how or not mode else image.convert(mode)
    buffer = io.BytesIO()
    made.save(buffer, name, **how.get(mode, {}))
    good = buffer.getvalue()
    print(kind, flush=True)
    for _ in range(tries):
        data = bytearray(good)
        for place in rng.integers(0, len(data), rng.integers(1, 5)):
            data[place] = rng.integers(0, 256)
        cut = len(data) if rng.random() < 0.7 else int(rng.integers(0, len(data)))
        for bytes_ in (data[:cut], (lambda d: (d.insert(int(rng.integers(0, len(d) + 1)), 7), d)[1])(bytearray(good))):
            array = np.frombuffer(bytes_, np.uint8) if bytes_ else np.empty(0, np.uint8)
            try:
                _decode.decode_bytes(array, "x")
            except DataError as problem:
                assert "\\n" not in str(problem), problem
print("done", flush=True)
"""
KINDS = [
    *("PNG", "PNG-P", "PNG-1", "PNG-LA", "PNG-RGBA", "JPEG", "JPEG-progressive", "JPEG-CMYK", "JPEG-L", "GIF", "WEBP"),
    *("WEBP-lossless", "BMP", "TIFF", "TIFF-lzw", "PPM", "JPEG2000"),
    *(["AVIF"] if AVIF else []),
]


def survives(kinds: list[str], tries: int, seed: int) -> None:
    command = [sys.executable, "-c", DAMAGED, ",".join(kinds), str(tries), str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    said = ended.stdout.split()
    assert ended.returncode == 0, f"{ended.returncode} at {said[-1:]}: {ended.stderr[-1500:]}"
    assert said[-1] == "done"


def test_no_damaged_file_of_any_format_ends_the_process() -> None:
    survives(KINDS, tries=15, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_damaged_file_of_any_format_ends_the_process_long(kind: str) -> None:
    survives([kind], tries=400, seed=1)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer: run `git lfs pull`"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf \n<html>", "an HTML page"),
        (bytes(600), "nothing but zero bytes"),
        (b"", "empty (0 bytes)"),
        (b"\x80\x02}q\x00X\x05", "a Python pickle"),
        (b"PK\x03\x04\x14\0\0\0", "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "a HEIC image"),
        (b"hello, this is a text", "a text"),
    ],
)
def test_what_stands_in_the_place_of_an_image_is_named(tmp_path: Path, first: bytes, said: str) -> None:
    assert said in str(kind_of_file(first))
    assert said in refusal(tmp_path / "c" / "x.jpg", first)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PNG", "GIF", "WEBP", "JPEG2000", "PPM", "JPEG"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_files_are_decoded_by_what_they_are_whatever_their_names_say(tmp_path: Path, kind: str, suffix: str) -> None:
    data = saved(kind, **({"lossless": True} if kind == "WEBP" else {}))
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(tmp_path / "c" / f"x{suffix}", data).numpy(), wanted)
    assert "cannot be decoded" in refusal(tmp_path / "d" / f"x{suffix}", data[: len(data) // 2])


def test_an_avif_image_is_decoded_or_the_pillow_that_it_needs_is_named(tmp_path: Path) -> None:
    if AVIF:
        assert decoded(tmp_path / "c" / "x.png", saved("AVIF")).shape == (3, 20, 31)
    else:
        said = refusal(tmp_path / "c" / "x.png", b"\0\0\0 ftypavif" + bytes(100))
        assert "Pillow 11.3" in said and "repair" not in said


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".mpo", ".JPEG"])
def test_every_usual_name_of_a_jpeg_file_counts(tmp_path: Path, suffix: str) -> None:
    assert decoded(tmp_path / "c" / f"x{suffix}", saved("JPEG")).shape == (3, 20, 31)


@pytest.mark.parametrize(("most", "bits"), [(65_535, 8), (1023, 6)])
def test_a_sixteen_bit_pgm_is_cut_to_the_upper_eight(tmp_path: Path, most: int, bits: int) -> None:
    deep = np.arange(64, dtype=">u2") << bits & most
    got = decoded(tmp_path / "c" / "g.pgm", f"P5\n8 8\n{most}\n".encode() + deep.astype(">u2").tobytes())
    wanted = (deep.reshape(8, 8).astype(np.int64) * 65_535 // most) >> 8
    assert np.abs(got[0].numpy().astype(int) - wanted).max() <= (0 if most == 65_535 else 1)


def bombs() -> dict[str, bytes]:
    """Small files that state 30,000 x 30,000 pixels."""
    side, jpeg, gif, bmp = 30_000, bytearray(saved("JPEG")), bytearray(saved("GIF")), bytearray(saved("BMP"))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    gif[6:10] = struct.pack("<HH", side, side)
    bmp[18:26] = struct.pack("<ii", side, side)
    lossless = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0/" + struct.pack("<I", (16_000 - 1) | (16_000 - 1) << 14) + bytes(20)
    return {
        "x.png": png(side, side, 1, 0, 0, bytes((side // 8 + 1) * side)),
        "x.jpg": bytes(jpeg),
        "x.gif": bytes(gif),
        "x.bmp": bytes(bmp),
        "x.webp": lossless,
        "x.pgm": f"P5\n{side} {side}\n255\n".encode() + bytes(100),
    }


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.bmp", "x.webp", "x.pgm"])
def test_no_memory_is_asked_for_more_pixels_than_may_be(tmp_path: Path, name: str) -> None:
    said = refusal(tmp_path / "c" / name, bombs()[name])
    assert "pixels" in said
    assert "SOFTLABELS_MAX_PIXELS" in said or "bomb" in said


def test_the_most_pixels_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, error, said in (("600", ImageError, "31 x 20 pixels, more than the 600"), ("many", ConfigError, "many")):
        monkeypatch.setenv(_formats.VARIABLE, value)
        _formats.most_pixels.cache_clear()
        for name, data in (("x.png", saved("PNG")), ("x.jpg", saved("JPEG"))):
            (tmp_path / name).write_bytes(data)
        for row in (0, 1):
            with pytest.raises(error, match=said):
                open_images(f"images:{tmp_path}").decode(row)
    monkeypatch.undo()
    _formats.most_pixels.cache_clear()
    assert open_images(f"images:{tmp_path}").decode(0).shape == (3, 20, 31)


# ---- what is passed over, left out or unclear


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(saved("JPEG"))
    return root


def test_files_that_are_passed_over_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/2.jpg", "b/3.heic", "b/4.avif", "a/noname", ".hidden/x.txt", "a/.DS_Store", "top.txt")
    for value in (tmp_path, f"images:{tmp_path}"):
        said = " ".join(notes(open_images(value)))
        assert "1 .heic" in said
        assert "1 .avif" in said
        assert "1 without suffix" in said
        assert "(first: a/noname)" in said
        assert "hidden" not in said
    assert not notes(open_images(tree(tmp_path / "clean", "a/1.jpg", "b/2.jpg")))


def test_class_folders_that_are_numbers_need_an_order_to_be_chosen(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{number}/x.jpg" for number in range(12)))
    with pytest.raises(DataError, match=r"class 2 is folder '10', in the order of numbers it is '2'") as caught:
        open_images(tmp_path)
    assert "class_order=number" in str(caught.value)
    by_number = open_images(f"{tmp_path} class_order=number")
    assert by_number.classes == tuple(map(str, range(12)))
    assert by_number.keys[2].as_py() == "2/x.jpg"
    assert open_images(f"folder:{tmp_path} class_order=text").classes == tuple(sorted(map(str, range(12))))
    assert open_images(by_number.spec, split="test").classes == by_number.classes


def test_numbers_of_which_one_order_is_possible_are_taken_as_they_are(tmp_path: Path) -> None:
    assert open_images(tree(tmp_path / "a", "0/x.jpg", "1/x.jpg", "9/x.jpg")).classes == ("0", "1", "9")
    assert open_images(tree(tmp_path / "b", "001/x.jpg", "010/x.jpg", "100/x.jpg")).classes == ("001", "010", "100")
    with pytest.raises(DataError, match="are no numbers: cat"):
        open_images(f"folder:{tree(tmp_path / 'c', '1/x.jpg', 'cat/x.jpg')} class_order=number")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("Train", "Test"), ("training", "validation"), ("train", "valid"), ("TRAIN", "dev"), ("train", "Testing")],
)
def test_the_usual_names_of_splits_are_understood(tmp_path: Path, train: str, held_out: str) -> None:
    tree(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/1.jpg", f"{held_out}/cat/2.jpg", f"{held_out}/dog/2.jpg")
    assert open_images(tmp_path).keys.to_pylist() == ["cat/1.jpg", "dog/1.jpg"]
    for split in ("val", "test"):
        assert open_images(tmp_path, split=split).keys.to_pylist() == ["cat/2.jpg", "dog/2.jpg"]


def test_two_folders_of_one_split_are_asked_about(tmp_path: Path) -> None:
    tree(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "valid/cat/3.jpg")
    with pytest.raises(DataError, match="val and valid; say which"):
        open_images(tmp_path, split="val")


@pytest.mark.parametrize(
    "names",
    [
        ("spring/cat/1.jpg", "spring/dog/1.jpg", "autumn/cat/2.jpg", "autumn/dog/2.jpg"),
        ("cat/train/1.jpg", "cat/test/1.jpg", "dog/train/2.jpg", "dog/test/2.jpg"),
        ("images/train/cat/1.jpg", "images/val/cat/1.jpg"),
        ("archive/cat/1.jpg", "archive/dog/1.jpg"),
    ],
)
def test_folders_that_look_like_parts_and_not_like_classes_are_asked_about(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    tree(tmp_path, *names)
    with pytest.raises(DataError, match="layout=classes"):
        open_images(tmp_path)
    assert open_images(f"{tmp_path} layout=classes").classes == tuple(
        sorted({name.partition("/")[0] for name in names})
    )


def test_a_class_may_be_called_valid(tmp_path: Path) -> None:
    tree(tmp_path, "valid/a/1.jpg", "invalid/b/2.jpg")
    assert open_images(tmp_path).classes == ("invalid", "valid")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tree(tmp_path, "a/1.jpg", "b/1.jpg") / "a" / "2.jpg")
    assert len(open_images(tmp_path)) == 2
