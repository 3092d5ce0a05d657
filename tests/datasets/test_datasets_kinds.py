"""The data sets that have a name: digits, CIFAR, ImageNet, and functions."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import write_png

from softlabels.datasets import DATASETS, Images, content_checksums, fingerprint, open_images, subset
from softlabels.errors import ConfigError, DataError, SoftlabelsError


def refusal(value: object, error: type[SoftlabelsError] = DataError, **options: str) -> str:
    with pytest.raises(error) as caught:
        open_images(value, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- digits


def test_digits_are_split_once_and_for_all() -> None:
    train, test = open_images("digits"), open_images("digits", split="test")
    assert (len(train), len(test)) == (1347, 450)
    assert train.keys[:4].to_pylist() == ["train/0001", "train/0002", "train/0003", "train/0005"]
    assert test.keys[:2].to_pylist() == ["test/0000", "test/0004"]
    # Written down once: another value means that stores made of digits no longer fit.
    assert fingerprint(train) == "beb7e8e7cdf8f1d52f309c93df9b3a17c50ff56a87bd2ccc948f4782cd2e7ef6"
    assert fingerprint(open_images("digits", split="val")) == fingerprint(test)
    assert open_images(test.spec).name == "digits (test)"


def test_digits_are_scikit_learns_on_0_to_255() -> None:
    from sklearn.datasets import load_digits

    digits, train = load_digits(), open_images("digits")
    assert train.pixels is not None
    assert train.pixels.shape == (1347, 3, 8, 8)
    assert train.pixels.max() == 255
    held = np.array([int(key[6:]) for key in train.keys.to_pylist()])
    np.testing.assert_array_equal(train.labels, digits.target[held])
    for channel in range(3):
        back = np.rint(train.pixels[:, channel].numpy() / 255 * 16)
        np.testing.assert_array_equal(back, digits.images[held])
    assert train.decoder == "memory"
    assert train.content(5) == train.decode(5).numpy().tobytes()
    assert len(set(content_checksums(train).tolist())) == len(train)


def test_digit_pairs_are_made_of_two_digits_of_their_side() -> None:
    for split, count in (("train", 20_000), ("test", 2_000)):
        digits, pairs = open_images("digits", split=split), open_images("digit-pairs", split=split)
        assert digits.pixels is not None
        assert pairs.pixels is not None
        assert (len(pairs), len(pairs.classes)) == (count, 100)
        assert set(pairs.labels.tolist()) == set(range(100))
        row_of = {int(key.partition("/")[2]): row for row, key in enumerate(digits.keys.to_pylist())}
        for row in range(0, count, 997):
            _, red, green = pairs.keys[row].as_py().split("-")
            first, second = row_of[int(red)], row_of[int(green)]
            assert torch.equal(pairs.pixels[row, 0], digits.pixels[first, 0])
            assert torch.equal(pairs.pixels[row, 1], digits.pixels[second, 0])
            assert pairs.pixels[row, 2].max() == 0
            assert pairs.classes[pairs.labels[row]] == f"{digits.labels[first]}{digits.labels[second]}"
    # Written down once, as for digits.
    assert fingerprint(open_images("digit-pairs")) == "5e9d46b5b283d7c55236449d6669b80aabee8b046076271b37c7fe67e20c2a05"


def test_images_in_memory_survive_subset_and_pickle() -> None:
    digits = open_images("digits")
    some = subset(digits, [7, 3])
    assert some.pixels is not None
    assert torch.equal(some.pixels, torch.stack([digits.decode(7), digits.decode(3)]))
    again = pickle.loads(pickle.dumps(some))
    assert torch.equal(again.decode(1), digits.decode(3))
    assert fingerprint(again) == fingerprint(some) != fingerprint(subset(digits, [3, 7]))


# ---- CIFAR


class Made:
    """A few made-up CIFAR records, written in each of the three layouts."""

    def __init__(self, classes: int) -> None:
        generator = np.random.default_rng(classes)
        self.classes = classes
        self.names = open_names(classes)
        self.pixels = {side: generator.integers(0, 256, (n, 3, 32, 32), np.uint8) for side, n in SIZES.items()}
        self.labels = {side: np.sort(generator.integers(0, classes, n)) for side, n in SIZES.items()}

    def stems(self, side: str) -> list[str]:
        if self.classes == 100:
            return [side]
        return [f"data_batch_{number}" for number in range(1, 6)] if side == "train" else ["test_batch"]

    def batches(self, side: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
        stems = self.stems(side)
        pixels, labels = np.split(self.pixels[side], len(stems)), np.split(self.labels[side], len(stems))
        return list(zip(stems, pixels, labels, strict=True))

    def write_folders(self, top: Path) -> None:
        for side in SIZES:
            for name in self.names:
                (top / side / name).mkdir(parents=True)
            for number, (picture, label) in enumerate(zip(self.pixels[side], self.labels[side], strict=True)):
                write_png(torch.from_numpy(picture), str(top / side / self.names[label] / f"{number:05d}.png"))
            for label in set(range(self.classes)) - set(self.labels[side].tolist()):
                (top / side / self.names[label]).rmdir()

    def write_binary(self, top: Path) -> None:
        for side in SIZES:
            for stem, pixels, labels in self.batches(side):
                heads = [bytes([7] * (self.classes == 100) + [int(label)]) for label in labels]
                records = [head + picture.tobytes() for head, picture in zip(heads, pixels, strict=True)]
                (top / f"{stem}.bin").write_bytes(b"".join(records))

    def write_python(self, top: Path, protocol: int) -> None:
        field = "labels" if self.classes == 10 else "fine_labels"
        for side in SIZES:
            for stem, pixels, labels in self.batches(side):
                names = [f"x_{place}.png" for place in range(len(labels))]
                content = {b"data": pixels.reshape(-1, 3072), field.encode(): labels.tolist(), b"filenames": names}
                (top / stem).write_bytes(pickle.dumps(content, protocol))


SIZES = {"train": 20, "test": 6}


def open_names(classes: int) -> tuple[str, ...]:
    from softlabels.datasets import _cifar

    return (_cifar._TEN if classes == 10 else _cifar._HUNDRED).classes


@pytest.mark.parametrize("classes", [10, 100])
def test_class_names_are_complete_and_sorted(classes: int) -> None:
    names = open_names(classes)
    assert len(set(names)) == classes
    assert list(names) == sorted(names)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("layout", ["folders", "binary", "python-0", "python-2", "python-4", "python-5"])
@pytest.mark.parametrize("below", ["", "usual"])
def test_every_layout_gives_the_same_pixels_and_labels(tmp_path: Path, kind: str, layout: str, below: str) -> None:
    made = Made(int(kind[5:]))
    style = {"folders": kind, "binary": "-bin"}.get(layout, "-py")
    usual = {"cifar10": "cifar-10-batches", "cifar100": "cifar-100"}[kind]
    if kind == "cifar100":
        style = style.replace("-bin", "-binary").replace("-py", "-python")
    top = tmp_path / (style if style == kind else usual + style) if below else tmp_path
    top.mkdir(exist_ok=True)
    if layout == "folders":
        made.write_folders(top)
    elif layout == "binary":
        made.write_binary(top)
    else:
        made.write_python(top, int(layout[-1]))
    for side in SIZES:
        images = open_images(kind, data_dir=str(tmp_path), split=side)
        assert images.pixels is not None
        np.testing.assert_array_equal(images.pixels.numpy(), made.pixels[side])
        assert [images.classes[label] for label in images.labels] == [made.names[label] for label in made.labels[side]]
        assert images.keys.to_pylist() == sorted(images.keys.to_pylist())
        assert images.name == kind + (" (test)" if side == "test" else "")
        if layout != "folders":
            assert images.keys[0].as_py() == f"{side}/00000"
            np.testing.assert_array_equal(images.labels, made.labels[side])
        assert fingerprint(open_images(images.spec)) == fingerprint(images)


def test_cifar_is_found_through_its_variable_and_its_absence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    message = refusal("cifar10")
    assert "`data_dir=DIR`" in message
    assert "$CIFAR10_DIR" in message
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "gone"))
    assert f"no such directory: {tmp_path / 'gone'} (from $CIFAR10_DIR)" in refusal("cifar10")
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path))
    assert f"{tmp_path} holds no train images of cifar10" in refusal("cifar10")
    Made(10).write_binary(tmp_path)
    assert len(open_images("cifar10")) == 20


def test_damaged_batches_are_named(tmp_path: Path) -> None:
    made = Made(10)
    made.write_binary(tmp_path)
    whole = (tmp_path / "data_batch_3.bin").read_bytes()
    (tmp_path / "data_batch_3.bin").write_bytes(whole[:-1])
    assert f"{tmp_path}/data_batch_3.bin has" in refusal("cifar10", data_dir=str(tmp_path))
    (tmp_path / "data_batch_3.bin").write_bytes(bytes([10]) + whole[1:])
    assert "data_batch_3.bin holds the label 10" in refusal("cifar10", data_dir=str(tmp_path))
    (tmp_path / "data_batch_3.bin").unlink()
    assert f"{tmp_path}/data_batch_3.bin is missing" in refusal("cifar10", data_dir=str(tmp_path))


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    Made(10).write_folders(tmp_path)
    odd = sorted((tmp_path / "train").rglob("*.png"))[-1]
    write_png(torch.zeros(3, 30, 40, dtype=torch.uint8), str(odd))
    assert f"{odd} is 40x30" in refusal("cifar10", data_dir=str(tmp_path))


class Touch:
    """Unpickled by the usual way, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_batch_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    Made(10).write_python(tmp_path, 4)
    mark = tmp_path / "executed"
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({b"data": Touch(mark), b"labels": [0]}, protocol))
    message = refusal("cifar10", data_dir=str(tmp_path))
    assert f"{tmp_path}/data_batch_2 is refused" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "evil",
    [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
    ],
)
def test_nothing_but_plain_arrays_can_be_named(tmp_path: Path, evil: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Made(10).write_python(tmp_path, 4)
    (tmp_path / "data_batch_1").write_bytes(evil)
    assert "data_batch_1 is refused: it asks for" in refusal("cifar10", data_dir=str(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_pickles_of_other_things_are_refused(tmp_path: Path) -> None:
    Made(10).write_python(tmp_path, 4)
    good = np.zeros((2, 3072), np.uint8)
    for content, said in [
        ([1, 2], "no batch of cifar10"),
        ({b"data": good}, "no batch of cifar10"),
        ({b"data": good, b"labels": [0]}, "no batch of cifar10"),
        ({b"data": good, b"labels": [0, "1"]}, "no batch of cifar10"),
        ({b"data": good, b"labels": [0, 10]}, "holds the label 10"),
        ({b"data": good.astype(np.float32), b"labels": [0, 1]}, "array of 'f4'"),
        ({b"data": good.astype(object), b"labels": [0, 1]}, "array of 'O8'"),
    ]:
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, 4))
        message = refusal("cifar10", data_dir=str(tmp_path))
        assert said in message
        assert str(tmp_path / "data_batch_1") in message
    for cut in (b"", pickle.dumps({b"data": good, b"labels": [0, 1]}, 4)[:3000]):
        (tmp_path / "data_batch_1").write_bytes(cut)
        assert f"{tmp_path}/data_batch_1 is" in refusal("cifar10", data_dir=str(tmp_path))


# ---- ImageNet


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for place, name in enumerate(
        ["train/n02/n02_1", "train/n01/n01_10", "train/n01/n01_9", "val/n01/v1", "val/n02/v0"]
    ):
        path = tmp_path / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Real ImageNet holds a PNG called .JPEG, so the content decides.
        write_png(torch.full((3, 5, 7), place, dtype=torch.uint8), str(path))
    return tmp_path


def test_imagenet_counts_the_sorted_wnids(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGENET_DIR", str(imagenet))
    train, val = open_images("imagenet"), open_images("imagenet", split="test")
    assert train.classes == val.classes == ("n01", "n02")
    assert train.keys.to_pylist() == ["n01/n01_10.JPEG", "n01/n01_9.JPEG", "n02/n02_1.JPEG"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 0, 1], [0, 1])
    assert train.decode(2).unique().tolist() == [0]
    assert val.name == "imagenet (val)"
    monkeypatch.delenv("IMAGENET_DIR")
    assert fingerprint(open_images(val.spec)) == fingerprint(val)


def test_imagenet_is_found_where_its_archive_puts_it(imagenet: Path) -> None:
    deep = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    deep.mkdir(parents=True)
    (imagenet / "train").rename(deep / "train")
    assert len(open_images("imagenet", data_dir=str(imagenet / "kaggle"))) == 3


def test_what_imagenet_lacks_is_named(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    assert "$IMAGENET_DIR" in refusal("imagenet")
    assert f"no such directory: {imagenet}/gone" in refusal(f"imagenet:{imagenet}/gone")
    (imagenet / "train").rename(imagenet / "elsewhere")
    assert f"no such directory: {imagenet}/train" in refusal(f"imagenet:{imagenet}")


def test_a_flat_val_folder_is_explained(imagenet: Path) -> None:
    for path in list((imagenet / "val").rglob("*.JPEG")):
        path.rename(imagenet / "val" / path.name)
        path.parent.rmdir()
    message = refusal("imagenet", data_dir=str(imagenet), split="val")
    assert f"{imagenet}/val holds images but no wnid folders" in message


# ---- functions


MODULE = """
import numpy as np, pyarrow as pa, torch
from softlabels.datasets import MemoryImages

def tiny(keys=("a", "b"), labels=(0, -1)):
    column = pa.chunked_array([pa.array(keys, pa.string())])
    pixels = torch.zeros(len(keys), 3, 2, 2, dtype=torch.uint8)
    return MemoryImages("mine", {}, column, np.array(labels), ("only",), pixels)

def twice(): return tiny(("a", "a"))
def short(): return tiny(labels=(0,))
def high(): return tiny(labels=(0, 1))
def number(): return 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_pictures_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_pictures_module", raising=False)
    return "my_pictures_module"


def test_a_function_gives_a_data_set_that_its_spec_opens_again(module: str) -> None:
    images = open_images(f"{module}:tiny")
    assert isinstance(images, Images)
    assert images.name == f"{module}:tiny"
    assert images.labels.tolist() == [0, -1]
    assert fingerprint(open_images(images.spec)) == fingerprint(images)
    assert fingerprint(open_images(f"function:{module}:tiny")) == fingerprint(images)


def test_a_function_in_the_current_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures_beside.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    assert open_images("function:pictures_beside:tiny").labels.tolist() == [0, -1]
    assert sys.path == before


def test_what_is_wrong_with_a_function_is_told(module: str) -> None:
    assert "has no attribute 'gone'" in refusal(f"{module}:gone", ConfigError)
    assert "PYTHONPATH" in refusal("function:no_such_module_here:f", ConfigError)
    assert "unknown data set" in refusal("no_such_module_here:f", ConfigError)
    assert "a key twice" in refusal(f"{module}:twice")
    assert "2 images, 2 keys and 1 labels" in refusal(f"{module}:short")
    assert "labels 0 to 1 for 1 classes" in refusal(f"{module}:high")
    assert "gave a int without name, spec" in refusal(f"{module}:number")


# ---- every kind


def test_every_kind_is_a_frozen_mapping_and_back(tmp_path: Path) -> None:
    needed = {"folder": "root", "images": "root", "csv": "file", "function": "target", "pack": "root"}
    assert DATASETS.names == (
        "cifar10",
        "cifar100",
        "csv",
        "digit-pairs",
        "digits",
        "folder",
        "function",
        "imagenet",
        "images",
        "pack",
        "parts",
    )
    for kind in (name for name in DATASETS.names if name != "parts"):  # see test_datasets_parts.py
        mapping = {"kind": kind, **({needed[kind]: str(tmp_path)} if kind in needed else {})}
        part = DATASETS.make(mapping)
        assert DATASETS.make(part.model_dump()) == part
        with pytest.raises(Exception, match="frozen"):
            part.kind = "other"
