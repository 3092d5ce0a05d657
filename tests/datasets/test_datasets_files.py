"""Folders, lists and single files."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.io import write_jpeg, write_png

from softlabels.datasets import FileImages, Folder, Images, content_checksums, fingerprint, open_images, subset
from softlabels.errors import ConfigError, DataError, SoftlabelsError


def picture(seed: int = 0, height: int = 24, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (3, 4, 4), generator=generator, dtype=torch.uint8)
    return torch.nn.functional.interpolate(coarse[None], (height, width), mode="nearest")[0]


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write = write_png if path.suffix == ".png" else write_jpeg
    write(picture(seed), str(path))
    return path


def refusal(value: object, error: type[SoftlabelsError] = DataError, **options: str) -> str:
    with pytest.raises(error) as caught:
        open_images(value, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for seed, name in enumerate(["b/2.jpg", "b/10.JPEG", "b/deep/er/x.png", "a/z.jpg", "a-/q.jpeg"]):
        put(tmp_path / name, seed)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    put(tmp_path / "b" / ".hidden.jpg")
    put(tmp_path / ".cache" / "c.jpg")
    return tmp_path


def test_a_folder_gives_sorted_classes_sorted_keys_and_labels(tree: Path) -> None:
    images = open_images(f"folder:{tree}")
    assert isinstance(images, Images)
    assert images.classes == ("a", "a-", "b")
    assert images.keys.to_pylist() == ["a/z.jpg", "a-/q.jpeg", "b/10.JPEG", "b/2.jpg", "b/deep/er/x.png"]
    assert images.labels.tolist() == [0, 1, 2, 2, 2]
    assert images.labels.dtype == np.int64
    assert images.pixels is None
    assert images.decoder.split(", ")[0] == f"torchvision.io {torchvision.__version__}"


NAMES = st.text(st.sampled_from("ab1_é-Z~ "), min_size=1, max_size=4).filter(lambda text: text.strip())


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(NAMES, st.sets(NAMES, min_size=1, max_size=4), min_size=1, max_size=4), st.randoms())
def test_order_is_that_of_utf8_bytes_whatever_the_file_system_lists_first(
    classes: dict[str, set[str]], chance: object
) -> None:
    files = [(one, name) for one, names in classes.items() for name in names]
    chance.shuffle(files)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as top:
        for one, name in files:
            path = Path(top) / one / f"{name}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"not decoded here")
        images = open_images(top)
    wanted = sorted(files, key=lambda pair: (pair[0].encode(), f"{pair[1]}.jpg".encode()))
    assert images.keys.to_pylist() == [f"{one}/{name}.jpg" for one, name in wanted]
    assert [images.classes[label] for label in images.labels] == [one for one, _ in wanted]


@pytest.mark.parametrize("form", ["{0}", "{0}/", "folder:{0}", "folder:{0}/"])
def test_a_directory_means_a_folder_however_it_is_written(tree: Path, form: str) -> None:
    images = open_images(form.format(tree))
    assert fingerprint(images) == fingerprint(open_images(tree)) == fingerprint(Folder(root=str(tree)).open())
    assert images.name == f"folder:{tree}"


def test_a_spec_opens_the_same_images_from_another_working_directory(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent)
    images = open_images(f"folder:{tree.name}")
    monkeypatch.chdir("/")
    again = open_images(images.spec)
    assert fingerprint(again) == fingerprint(images)
    assert again.spec == images.spec
    assert torch.equal(again.decode(0), images.decode(0))


def test_a_known_kind_comes_before_a_directory_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "digits" / "one" / "x.jpg")
    monkeypatch.chdir(tmp_path)
    assert open_images("digits").name == "digits"
    assert open_images("./digits").keys.to_pylist() == open_images("digits/").keys.to_pylist() == ["one/x.jpg"]


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_split_folders_are_chosen_by_split(tmp_path: Path, held_out: str) -> None:
    put(tmp_path / "train" / "cat" / "1.jpg")
    put(tmp_path / held_out / "cat" / "2.jpg")
    assert open_images(tmp_path).keys.to_pylist() == ["cat/1.jpg"]
    for split in ("val", "test"):
        images = open_images(f"folder:{tmp_path}", split=split)
        assert images.keys.to_pylist() == ["cat/2.jpg"]
        assert images.name == f"folder:{tmp_path}/{held_out}"
    assert open_images(open_images(tmp_path, split="test").spec).keys.to_pylist() == ["cat/2.jpg"]
    assert open_images(tmp_path / "train", split="test").keys.to_pylist() == ["cat/1.jpg"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path / "train" / "1.jpg")
    put(tmp_path / "bus" / "2.jpg")
    assert open_images(tmp_path).classes == ("bus", "train")


def test_a_missing_split_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "1.jpg")
    message = refusal(tmp_path, split="test")
    assert str(tmp_path) in message
    assert "test or val" in message


def test_a_folder_without_classes_is_refused_with_the_way_out(tmp_path: Path) -> None:
    put(tmp_path / "flat" / "1.jpg")
    message = refusal(f"folder:{tmp_path / 'flat'}")
    assert f"{tmp_path / 'flat'} has no class folders" in message
    assert f"images:{tmp_path / 'flat'}" in message
    put(tmp_path / "split" / "train" / "1.jpg")
    assert f"images:{tmp_path / 'split' / 'train'}" in refusal(tmp_path / "split")
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refusal(tmp_path / "empty")


def test_an_empty_class_folder_is_named(tree: Path) -> None:
    (tree / "aa").mkdir()
    assert f"{tree}/aa" in refusal(tree)


def test_missing_directories_and_unknown_kinds_are_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for value in (f"folder:{gone}", f"images:{gone}", str(gone), gone, "./gone"):
        assert "no such directory: " in refusal(value)
        assert "gone" in refusal(value)
    assert "did you mean 'cifar10'" in refusal("cifar", ConfigError)
    assert "did you mean 'folder'" in refusal("foldr:/data", ConfigError)
    assert "csv:" in refusal(str(put(tmp_path / "x.jpg")), ConfigError)
    assert "unknown split 'dev'" in refusal("digits", ConfigError, split="dev")
    assert "splitt" in refusal({"kind": "digits", "splitt": "test"}, ConfigError)


def test_unlabelled_pictures_have_label_minus_one(tree: Path) -> None:
    images = open_images(f"images:{tree}")
    assert images.keys.to_pylist() == ["a-/q.jpeg", "a/z.jpg", "b/10.JPEG", "b/2.jpg", "b/deep/er/x.png"]
    assert images.labels.tolist() == [-1] * 5
    assert images.classes == ()


def test_a_folder_without_any_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    assert f"{tmp_path} holds no images" in refusal(f"images:{tmp_path}")


def test_links_are_followed_and_circles_named(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    linked = tmp_path_factory.mktemp("linked")
    (linked / "c").symlink_to(tree / "b", target_is_directory=True)
    assert open_images(linked).keys.to_pylist() == ["c/10.JPEG", "c/2.jpg", "c/deep/er/x.png"]
    (tree / "b" / "loop").symlink_to(tree / "b", target_is_directory=True)
    assert f"{tree}/b/loop" in refusal(tree)


def test_a_name_that_is_not_unicode_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes no such names")
    assert r"\udcff.jpg" in refusal(tmp_path)


# ---- pixels


def encoded(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(tmp_path: Path, name: str, data: bytes) -> torch.Tensor:
    (tmp_path / "c").mkdir(exist_ok=True)
    (tmp_path / "c" / name).write_bytes(data)
    return open_images(f"images:{tmp_path / 'c'}").decode(0)


def noisy(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(picture(3, 45, 61).permute(1, 2, 0).numpy()).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_pixels_are_pillows(tmp_path: Path, mode: str, progressive: bool) -> None:
    data = encoded("JPEG", noisy(mode), quality=88, progressive=progressive)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    got = decoded(tmp_path, "x.jpg", data)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.numpy(), wanted)


MODES = {
    "PNG": ["RGB", "RGBA", "L", "LA", "P", "1"],
    "TIFF": ["RGB", "RGBA", "L", "P", "1"],
    "BMP": ["RGB", "RGBA", "L", "P", "1"],
    "WEBP": ["RGB", "RGBA", "L", "P"],
    "GIF": ["RGB", "L", "P"],
    "PPM": ["RGB", "L", "1"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_format_and_mode_comes_as_three_channels(tmp_path: Path, kind: str, mode: str) -> None:
    data = encoded(kind, noisy(mode), **({"lossless": True} if kind == "WEBP" else {}))
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(tmp_path, f"x.{kind.lower()}", data).numpy(), wanted)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_cut_to_the_upper_eight(tmp_path: Path, kind: str) -> None:
    deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    got = decoded(tmp_path, f"x.{kind}", encoded(kind.upper(), Image.fromarray(deep)))
    np.testing.assert_array_equal(got.numpy(), np.repeat((deep >> 8).astype(np.uint8)[None], 3, axis=0))


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    other = Image.fromarray(255 - np.asarray(noisy()))
    still = decoded(tmp_path, "x.gif", encoded("GIF", noisy()))
    moving = decoded(tmp_path, "x.gif", encoded("GIF", noisy(), save_all=True, append_images=[other]))
    assert torch.equal(moving, still)


def test_an_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decoded(tmp_path, "x.jpg", encoded("JPEG", noisy(), exif=exif))
    assert torch.equal(turned, decoded(tmp_path, "x.jpg", encoded("JPEG", noisy())))


def test_the_decoder_names_pillow_only_where_it_is_used(tree: Path) -> None:
    (tree / "b" / "deep" / "er" / "x.png").unlink()
    assert "Pillow" not in open_images(tree).decoder
    (tree / "b" / "y.BMP").write_bytes(encoded("BMP", noisy()))
    assert f"Pillow {Image.__version__}" in open_images(tree).decoder


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_a_file_that_was_cut_is_named(tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(kind, noisy())
    with pytest.raises(DataError) as caught:
        decoded(tmp_path, f"x.{kind.lower()}", data[: int(len(data) * share)])
    message = str(caught.value)
    assert str(tmp_path / "c" / f"x.{kind.lower()}") in message
    assert "repair or remove it" in message
    assert "\n" not in message
    assert ".cpp" not in message


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_proper_prefix_of_a_jpeg_is_refused(data: st.DataObject) -> None:
    whole = encoded("JPEG", noisy(), progressive=data.draw(st.booleans()))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with tempfile.TemporaryDirectory() as top, pytest.raises(DataError):
        decoded(Path(top), "x.jpg", whole[:cut])


def test_what_follows_the_end_of_a_jpeg_does_no_harm(tmp_path: Path) -> None:
    data = encoded("JPEG", noisy())
    assert torch.equal(decoded(tmp_path, "x.jpg", data + b"\0junk" * 99), decoded(tmp_path, "x.jpg", data))


def test_what_is_no_picture_or_has_gone_is_named(tree: Path) -> None:
    images = open_images(tree)
    (tree / "a" / "z.jpg").write_text("<html>404</html>")
    (tree / "a-" / "q.jpeg").unlink()
    with pytest.raises(DataError, match=r"a/z\.jpg cannot be decoded"):
        images.decode(0)
    with pytest.raises(DataError, match=r"a-/q\.jpeg cannot be read: No such file"):
        images.decode(1)
    with pytest.raises(DataError, match=r"a-/q\.jpeg cannot be read"):
        content_checksums(images)


# ---- checks, subsets, pickles


def test_checksums_follow_the_content_and_do_not_depend_on_threads(tree: Path) -> None:
    images = open_images(tree)
    before = content_checksums(images, threads=1)
    assert before.dtype == np.uint64
    assert len(set(before.tolist())) == len(images)
    np.testing.assert_array_equal(content_checksums(images, threads=4), before)
    np.testing.assert_array_equal(content_checksums(images, [3, 0]), before[[3, 0]])
    put(tree / "a" / "z.jpg", seed=99)
    assert (content_checksums(images) != before).tolist() == [True, False, False, False, False]


def test_a_fingerprint_sees_keys_labels_and_classes_but_no_pixels(tree: Path) -> None:
    before = fingerprint(open_images(tree))
    put(tree / "a" / "z.jpg", seed=99)
    assert fingerprint(open_images(tree)) == before
    (tree / "b").rename(tree / "c")
    renamed = fingerprint(open_images(tree))
    (tree / "a" / "z.jpg").rename(tree / "c" / "z.jpg")
    (tree / "a").rmdir()
    assert len({before, renamed, fingerprint(open_images(tree)), fingerprint(open_images(f"images:{tree}"))}) == 4


def test_a_subset_shows_the_same_images_under_the_same_keys(tree: Path) -> None:
    images = open_images(tree)
    some = subset(images, [4, 1])
    assert isinstance(some, Images)
    assert some.keys.to_pylist() == ["b/deep/er/x.png", "a-/q.jpeg"]
    assert some.labels.tolist() == [2, 1]
    assert torch.equal(some.decode(0), images.decode(4))
    assert some.content(1) == images.content(1)
    again = subset(some, [1])
    assert again.keys.to_pylist() == ["a-/q.jpeg"]
    assert again.spec == images.spec
    assert len(subset(images, [])) == 0
    with pytest.raises(IndexError):
        subset(images, [5])
    with pytest.raises(IndexError):
        subset(images, [-1])
    with pytest.raises(ValueError, match="once"):
        subset(images, [1, 1])


def test_opened_images_survive_a_pickle(tree: Path) -> None:
    images = open_images(tree)
    for one in (images, subset(images, [2, 0])):
        again = pickle.loads(pickle.dumps(one))
        assert fingerprint(again) == fingerprint(one)
        assert torch.equal(again.decode(1), one.decode(1))


def test_a_pickle_of_many_files_costs_little_more_than_their_keys() -> None:
    from softlabels.datasets._images import key_column

    keys = key_column([[f"n{c:08d}/n{c:08d}_{i}.JPEG" for i in range(100)] for c in range(100)])
    images = FileImages("x", {}, "/x", keys, np.zeros(len(keys), np.int64), ("a",))
    assert len(pickle.dumps(images)) < keys.nbytes + images.labels.nbytes + 4096
