"""Rendering on a device: the same draws, the CPU's bytes on a CPU, about a level apart elsewhere, and never unsaid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from moving import shard_bytes
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.io import write_png
from worlds import picture, write_pictures

import softlabels
from softlabels.datasets import subset
from softlabels.loading import rendering
from softlabels.loading.batches import LabelledPictures, Threads, Workers, batches
from softlabels.loading.provenance import tagged, untagged
from softlabels.loading.rendering import Renderer, Undone
from softlabels.loading.views import Pictures
from softlabels.views import RECIPES, Frame, _pixels

HERE = Renderer(torch.device("cpu"))
VIEWS = 3
LONG = "crop-flip-vflip-jitter-grayscale-blur-solarize-randaugment-erase-mix"
SOME = ("clean", "crop-flip-autoaugment", "crop-flip-trivialaugment", "crop-flip-mix", "pad-flip-erase")
SOME += ("pad-flip-cifaraugment", "pad-flip-cutmix", LONG)
"""Recipes that have every step between them."""


def samples(n: int = 18) -> tuple[np.ndarray, np.ndarray]:
    """All views of n images in a shuffled order, and some twice."""
    order = np.random.default_rng(0).permutation(n * VIEWS)
    return np.divmod(np.concatenate([order, order[:5]]), VIEWS)


def rendered(renderer: Renderer, pictures: Pictures, rows: np.ndarray, views: np.ndarray) -> Tensor:
    return renderer.render(pictures, renderer.load(pictures, rows, views), rows, views)


@contextmanager
def elsewhere() -> Iterator[None]:
    """The code takes the ways of a device that numpy cannot read, on this machine's memory."""
    with mock.patch.object(_pixels, "_here", lambda _: False):
        yield


class Elsewhere(Renderer):
    """Renders as a GPU would, with the kernels of this machine."""

    @property
    def name(self) -> str:
        return "gpu"

    def render(self, pictures: Pictures, undone: Undone, rows: np.ndarray, views: np.ndarray) -> Tensor:
        with elsewhere():
            return super().render(pictures, undone, rows, views)


@pytest.mark.parametrize("recipe", SOME)
def test_on_the_cpu_the_bytes_are_those_of_the_workers(photos: Path, recipe: str) -> None:
    digits = subset(softlabels.open_images("digits"), range(18))
    for images, size in ((softlabels.open_images(photos), 24), (digits, 8)):
        pictures = Pictures(images, RECIPES.make(recipe), 1, VIEWS, Frame(size))
        rows, views = samples()
        assert torch.equal(rendered(HERE, pictures, rows, views), pictures.render(rows, views))


@pytest.mark.parametrize("workers", [0, 2, Threads(2)])
def test_any_workers_may_decode(photos: Path, workers: Workers) -> None:
    pictures = Pictures(softlabels.open_images(photos), RECIPES.make("crop-flip-mix"), 1, VIEWS, Frame(24))
    order = np.random.default_rng(1).permutation(18 * VIEWS)
    todo = [order[start : start + 7] for start in range(0, len(order), 7)]
    made = list(batches(LabelledPictures(pictures, renderer=HERE), todo, workers=workers))
    for batch, numbers in zip(made, todo, strict=True):
        assert torch.equal(batch.pictures, pictures.render(*np.divmod(numbers, VIEWS)))
        assert batch.undone is None


@pytest.mark.parametrize("recipe", ["crop-flip-solarize", "crop-mixup"])
def test_what_cannot_be_decoded_is_entered_and_black(tmp_path: Path, recipe: str) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    pictures = Pictures(softlabels.open_images(root), RECIPES.make(recipe), 1, VIEWS, Frame(16))
    rows, views = samples()
    by_workers: dict[int, str] = {}
    by_device: dict[int, str] = {}
    expected = pictures.render(rows, views, by_workers)
    made = HERE.render(pictures, HERE.load(pictures, rows, views, by_device), rows, views)
    assert torch.equal(made, expected)
    assert by_device == by_workers
    assert 9 in by_device
    with pytest.raises(softlabels.DataError, match=r"003\.jpg"):
        HERE.load(pictures, rows, views)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(300, 400), (40, 50), (224, 100), (16, 16)])
def test_float_kernels_are_within_a_level_of_those_for_bytes(interpolation: str, height: int, width: int) -> None:
    """Smooth pictures, and noise, which is the worst case."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    for image in (picture(3, height, width)[None], torch.from_numpy(noise)):
        exact = _pixels.resized(image, 64, 64, interpolation)
        floats = _pixels.resized_in_floats(image, 64, 64, interpolation)
        apart = (exact.int() - floats.int()).abs()
        assert apart.max() <= 1
        assert apart.double().mean() < 0.02


@pytest.mark.parametrize("recipe", SOME)
def test_the_ways_of_a_device_show_the_same_pictures(photos: Path, recipe: str) -> None:
    pictures = Pictures(softlabels.open_images(photos), RECIPES.make(recipe), 1, VIEWS, Frame(32))
    rows, views = samples()
    made = rendered(Elsewhere(torch.device("cpu")), pictures, rows, views)
    mean, most = rendering.distance(pictures.render(rows, views), made)
    changes = any(
        word in recipe for word in ("aug", "jitter", "solarize")
    )  # a level can cross a threshold there, or be stretched
    assert mean < (0.5 if changes else 0.1), (mean, most)
    assert most <= 2 or changes


@pytest.mark.parametrize("recipe", SOME)
def test_nothing_is_computed_away_from_the_device(photos: Path, recipe: str) -> None:
    """Tensors without contents that claim to be on a GPU: torch refuses what mixes devices or asks for their bytes."""
    there, kernel = Renderer(torch.device("cuda")), torch.nn.functional.interpolate

    def checked(pictures: Tensor, *args: Any, **settings: Any) -> Tensor:
        # CUDA has no antialiasing kernel for bytes, which tensors without contents do not know.
        assert not (settings.get("antialias") and pictures.dtype == torch.uint8)
        return kernel(pictures, *args, **settings)

    digits = subset(softlabels.open_images("digits"), range(18))
    for images, size in ((softlabels.open_images(photos), 24), (digits, 8)):
        pictures = Pictures(images, RECIPES.make(recipe), 1, VIEWS, Frame(size))
        rows, views = samples(6)
        undone = there.load(pictures, rows, views)
        with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.object(_pixels, "interpolate", checked):
            made = there.render(pictures, undone, rows, views)
        assert made.device.type == "cuda"
        assert made.shape == (len(rows), 3, size, size)
        assert made.dtype == torch.uint8


def dump(out: Path, photos: Path, **settings: Any) -> Path:
    usual = {"teacher": ["cnn_tiny"], "weights": ["random"], "views": 2, "rows_per_shard": 6, "device": "cpu"}
    softlabels.dump(data=str(photos), out=str(out), **(usual | {"workers": 0, "quiet": True} | settings))
    return out


@pytest.mark.parametrize("recipe", ["crop-flip", "crop-flip-mix"])
def test_a_dump_and_a_training_on_a_cpu_device_are_those_of_the_workers(
    photos: Path, tmp_path: Path, recipe: str
) -> None:
    stores = [dump(tmp_path / each, photos, recipe=recipe, render=each) for each in ("cpu", "device")]
    assert shard_bytes(stores[0]) == shard_bytes(stores[1])
    learnt = []
    for render in ("cpu", "device"):
        out = tmp_path / f"run-{render}"
        settings = {"student": "cnn_tiny", "batch_size": 6, "epochs": 1, "device": "cpu", "workers": 0, "quiet": True}
        softlabels.train(labels=str(stores[0]), size=16, render=render, out=str(out), **settings)
        learnt.append(load_file(out / "last.safetensors"))
    assert all(torch.equal(learnt[0][name], learnt[1][name]) for name in learnt[0])


@pytest.fixture
def mixed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> tuple[Path, str]:
    """A store whose first views were labelled by the CPU's pictures and whose later ones by a GPU's, and what was said.

    The GPU is this machine's, by another name and in floats.
    """
    dump(tmp_path / "s", photos)
    with monkeypatch.context() as patch:
        patch.setattr("softlabels.loading.rendering.Renderer", Elsewhere)
        capsys.readouterr()
        dump(tmp_path / "s", photos, views=3, render="device", quiet=False)
    said = capsys.readouterr()
    return tmp_path / "s", said.out + said.err


def test_the_digest_tells_who_rendered_and_stays_comparable(mixed: tuple[Path, str], photos: Path) -> None:
    store, said = mixed
    by_view = {(row, view): untagged(text) for row, view, text in softlabels.open_labels(store).of().digests()}
    images = softlabels.open_images(photos)
    pictures = Pictures(images, RECIPES.make("crop-flip"), 0, 3, Frame(32))
    for (row, view), (digest, renderer) in by_view.items():
        assert renderer == ("gpu" if view == 2 else "cpu")
        assert digest == pictures.digests(np.array([row]), np.array([view]))[0]
    assert "labels of cnn_tiny are of pictures rendered on cpu, those of this run are rendered on gpu" in said
    assert "pictures are rendered on gpu: 0." in said


def test_mixing_renderers_is_said_by_verify_and_training(mixed: tuple[Path, str], tmp_path: Path) -> None:
    store, _ = mixed
    findings = softlabels.verify(labels=str(store), device="cpu", workers=0, quiet=True)
    assert findings.ok
    assert any("cnn_tiny" in note and "rendered on cpu and gpu" in note for note in findings.notes)
    settings = {"student": "cnn_tiny", "batch_size": 6, "epochs": 1, "device": "cpu", "workers": 0, "quiet": True}
    softlabels.train(labels=str(store), size=16, out=str(tmp_path / "run"), **settings)
    assert "rendered on cpu and gpu" in (tmp_path / "run" / "header.txt").read_text()


def test_a_store_of_one_renderer_says_nothing(photos: Path, tmp_path: Path) -> None:
    store = dump(tmp_path / "s", photos)
    assert softlabels.verify(labels=str(store), device="cpu", workers=0, quiet=True).notes == []
    assert all(":" not in text for _, _, text in softlabels.open_labels(store).of().digests())


def test_other_pixels_are_told_apart_from_another_renderer(mixed: tuple[Path, str], photos: Path) -> None:
    """Labels of a GPU's pictures whose image is another one now: the digest differs, whoever rendered."""
    store, _ = mixed
    labels, images = softlabels.open_labels(store), softlabels.open_images(photos)
    order = np.r_[1, 0, 2:18]
    swapped = subset(images, order)
    object.__setattr__(swapped, "keys", images.keys)
    from softlabels.loading.checks import compare_digests

    compared, differing = compare_digests(labels, swapped)
    assert compared == 54
    assert {line.split(",")[0] for line in differing} == {f"image {images.keys[row].as_py()!r}" for row in (0, 1)}
    assert sum("view 2" in line for line in differing) == 2


def test_pictures_that_are_no_rounding_apart_are_refused(photos: Path, tmp_path: Path) -> None:
    class Broken(Elsewhere):
        def render(self, pictures: Pictures, undone: Undone, rows: np.ndarray, views: np.ndarray) -> Tensor:
            return super().render(pictures, undone, rows, views).flip(3)

    with (
        mock.patch("softlabels.loading.rendering.Renderer", Broken),
        pytest.raises(softlabels.SoftlabelsError, match="which is no rounding"),
    ):
        dump(tmp_path / "s", photos, render="device")
    assert not list((tmp_path / "s" / "cnn_tiny").glob("0*"))


def test_tags_come_back() -> None:
    assert tagged("00ff", "cpu") == "00ff"
    for renderer in ("cpu", "cuda"):
        assert untagged(tagged("00ff", renderer)) == ("00ff", renderer)


def test_a_device_that_is_not_there_is_refused(softlabels_command: Callable, photos: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos)
    refused = softlabels_command(*command, "--render", "device", "--device", "cuda")
    assert refused.exit_code == 2
    assert "device 'cuda' cannot be used" in refused.output


def by_the_cpu(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """What nvJPEG does, by the CPU's decoder: whole JPEG files, all or a RuntimeError."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return [decode_jpeg(each, mode=ImageReadMode.RGB).to(device) for each in files]


@pytest.mark.parametrize("recipe", ["crop-flip", "crop-flip-mix"])
@pytest.mark.parametrize("kind", ["files", "pack", "raw pack", "memory"])
def test_files_that_a_device_decodes_show_the_same_pictures(tmp_path: Path, kind: str, recipe: str) -> None:
    """With the CPU's decoder in the place of nvJPEG the bytes are equal: the files come to it whole, PNG files not."""
    root = write_pictures(tmp_path / "photos")
    write_png(picture(5), str(root / "class-0" / "z.png"))
    if "pack" in kind:
        quality = "raw" if kind == "raw pack" else 90
        softlabels.pack(data=str(root), out=str(tmp_path / "p"), quality=quality, max_side=40, quiet=True)
    named = {"files": root, "memory": "digits"}.get(kind, f"pack:{tmp_path / 'p'}")
    images = subset(softlabels.open_images(named), range(19))
    pictures = Pictures(images, RECIPES.make(recipe), 1, VIEWS, Frame(24))
    rows, views = samples(19)
    with mock.patch.object(rendering, "decode_there", side_effect=by_the_cpu) as decoded:
        made = rendered(Renderer(torch.device("cpu"), nvjpeg=True), pictures, rows, views)
    assert torch.equal(made, pictures.render(rows, views))
    files = sum(len(call.args[0]) for call in decoded.call_args_list)
    whole = {"files": 18, "pack": 19}.get(kind, 0)
    assert files == whole if recipe == "crop-flip" else whole <= files <= 2 * whole


def test_a_file_that_a_device_cannot_decode_is_named(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    pictures = Pictures(softlabels.open_images(root), RECIPES.make("crop"), 1, VIEWS, Frame(16))
    with (
        mock.patch.object(rendering, "decode_there", side_effect=by_the_cpu),
        pytest.raises(softlabels.DataError, match=r"003\.jpg"),
    ):
        rendered(Renderer(torch.device("cpu"), nvjpeg=True), pictures, *samples())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--device", "cpu"), "--render device"),
        (("--device", "cpu", "--render", "device"), "needs a CUDA device"),
    ],
)
def test_nvjpeg_is_refused_where_it_cannot_decode(
    softlabels_command: Callable, photos: Path, flags: tuple[str, ...], says: str
) -> None:
    command = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--decoder", "nvjpeg")
    refused = softlabels_command(*command, *flags)
    assert refused.exit_code == 2
    assert refused.output.count("\n") == 1
    assert says in refused.output
