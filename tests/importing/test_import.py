"""Label files of other projects: read without running anything, paired as well as can be, replayed exactly."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rivals
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving import all_bytes, killed, shard_bytes
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as reference
from torchvision.transforms.autoaugment import InterpolationMode, _apply_op

import softlabels
from softlabels import models
from softlabels.codecs import CODECS
from softlabels.core.pickles import read_plain_pickle, read_torch_file
from softlabels.datasets import subset
from softlabels.importing.replayed import RecordedCrop
from softlabels.loading.labels import Labels
from softlabels.views import RECIPES, RECORDED, ImageSpec, Recorded, param_source, record_spec

ROWS, VIEWS = 18, 3
WRITERS: dict[str, Callable[..., Any]] = {
    "fkd": rivals.write_fkd,
    "tinyvit": rivals.write_tinyvit,
    "ml-dr": rivals.write_ml_dr,
}


@pytest.fixture(scope="module")
def images(photos: Path) -> Any:
    return softlabels.open_images(photos)


@pytest.fixture(scope="module")
def sources(images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each project in a folder of its name; not to be changed."""
    root = tmp_path_factory.mktemp("sources")
    for project, write in WRITERS.items():
        write(root / project, images)
    rivals.write_ml_dr(root / "mixed", images, mixing=True)
    return root


def imported(project: str, source: Path, photos: Path, out: Path, **settings: Any) -> Labels:
    usual: dict[str, Any] = {"data": str(photos), "rows_per_shard": 7, "quiet": True}
    if project == "tinyvit":
        usual |= {"mixup": 0, "cutmix": 0}
    softlabels.import_labels(project, source, out=str(out), **(usual | settings))
    return softlabels.open_labels(out)


def expected(shares: np.ndarray, k: int) -> np.ndarray:
    """What the projects make of K probabilities: the others share what is left evenly."""
    ids, values = rivals.highest(shares, k)
    classes = shares.shape[-1]
    others = (1 - values.sum(-1, keepdims=True)) / (classes - k)
    whole = np.broadcast_to(others, shares.shape).copy()
    np.put_along_axis(whole, ids, values, -1)
    return whole


# ---- what is read


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
@pytest.mark.parametrize("project", list(WRITERS))
def test_stored_probabilities_are_those_of_the_files(
    project: str, format: str, images: Any, photos: Path, tmp_path: Path
) -> None:
    written = WRITERS[project](tmp_path / "files", images)
    shares = written[0] if isinstance(written, tuple) else written
    labels = imported(project, tmp_path / "files", photos, tmp_path / "s", format=format)
    assert (labels.views, len(labels)) == (shares.shape[1], ROWS)
    for view in range(labels.views):
        found = labels.probabilities(range(ROWS), view).numpy()
        np.testing.assert_allclose(found, expected(shares, 2)[:, view], atol=6e-4 if project == "tinyvit" else 1e-6)
    assert softlabels.verify(labels=str(tmp_path / "s"), device="cpu", workers=0, quiet=True).ok


@pytest.mark.parametrize(("kind", "half", "tail"), [("hard", False, "none"), ("smoothing", False, "uniform")])
def test_fkds_other_kinds_of_labels(
    kind: str, half: bool, tail: str, images: Any, photos: Path, tmp_path: Path
) -> None:
    shares = rivals.write_fkd(tmp_path / "f", images, kind=kind, half=half)
    labels = imported("fkd", tmp_path / "f", photos, tmp_path / "s")
    assert labels.of().card.codec["tail"] == tail
    wanted = expected(shares, 1) if kind == "smoothing" else np.eye(3)[shares.argmax(-1)]
    np.testing.assert_allclose(labels.probabilities(range(ROWS), 1).numpy(), wanted[:, 1], atol=1e-6)


def test_renormalised_labels_have_no_tail_and_half_floats_stay_half(images: Any, photos: Path, tmp_path: Path) -> None:
    shares = rivals.write_fkd(tmp_path / "f", images, half=True)
    labels = imported("fkd", tmp_path / "f", photos, tmp_path / "s", tail="none", temperature=2.0)
    codec = labels.of().card.codec
    assert (codec["tail"], codec["dtype"], codec["temperature"]) == ("none", "fp16", 2.0)
    ids, values = rivals.highest(shares, 2)
    wanted = np.zeros_like(shares)
    np.put_along_axis(wanted, ids, values / values.sum(-1, keepdims=True), -1)
    np.testing.assert_allclose(labels.probabilities(range(ROWS), 0, temperature=2.0).numpy(), wanted[:, 0], atol=1e-3)


def test_tinyvits_names_are_found_and_seeds_recorded(tmp_path: Path) -> None:
    from torchvision.io import write_jpeg
    from worlds import picture

    for number in range(12):
        folder = tmp_path / "photos" / f"n{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        write_jpeg(picture(number), str(folder / f"n{number % 3}_{number}.JPEG"))
    images = softlabels.open_images(tmp_path / "photos")
    rivals.write_tinyvit(tmp_path / "f", images, names=True, ranks=3)
    labels = imported("tinyvit", tmp_path / "f", tmp_path / "photos", tmp_path / "s")
    for view in range(2):
        assert labels.recorded(range(12), view)["view_seed"].tolist() == [1000 * view + row for row in range(12)]


def test_a_class_beyond_the_teachers_is_refused_with_the_file(sources: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(softlabels.DataError, match=r"\.tar names class 2 of 2; .*`classes`"):
        imported("fkd", sources / "fkd", photos, tmp_path / "s", classes=2)
    assert not (tmp_path / "s").exists()
    assert imported("fkd", sources / "fkd", photos, tmp_path / "s", classes=5).classes == 5


# ---- what is seen


def test_fkds_crops_are_where_pil_cuts_its_shares(images: Any, sources: Path, photos: Path, tmp_path: Path) -> None:
    labels = imported("fkd", sources / "fkd", photos, tmp_path / "s")
    pictures = softlabels.SoftLabelDataset(labels, images, size=24, interpolation="bilinear")
    for row, key in enumerate(images.keys.to_pylist()):
        coords, mirrored, _ = read_torch_file(sources / "fkd" / "train" / (key.rpartition(".")[0] + ".tar"))
        image = images.decode(row)
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        for view in range(VIEWS):
            edges = [float(each) * side for each, side in zip(coords[view], [pil.height, pil.width] * 2, strict=True)]
            cut = torch.from_numpy(np.array(reference.crop(pil, *edges))).permute(2, 0, 1)  # type: ignore[arg-type]
            wanted = interpolate(cut[None], (24, 24), mode="bilinear", antialias=True)[0]
            wanted = wanted.flip(2) if mirrored[view] else wanted
            assert torch.equal(pictures[row * VIEWS + view][0], wanted)


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), half=st.booleans())
def test_any_share_is_cut_where_pil_rounds_it(height: int, width: int, seed: int, half: bool) -> None:
    rng = np.random.default_rng(seed)
    sides = np.array([height, width])
    size = rng.integers(1, sides + 1)
    box = np.concatenate([rng.integers(0, sides - size + 1), size])
    shares = (box / np.tile(sides, 2)).astype(np.float16 if half else np.float32).astype(np.float32)
    step = RecordedCrop(unit="shares")
    ((top, left, tall, wide),) = step.boxes(step.replay({"box": shares[None]}), height, width).tolist()
    i, j, h, w = (float(each) * side for each, side in zip(shares, [height, width] * 2, strict=True))
    told = [round(i), round(j), round(i + h), round(j + w)]
    assert [top, left] == [min(told[0], height - 1), min(told[1], width - 1)]
    assert [top + tall, left + wide] == [max(min(told[2], height), top + 1), max(min(told[3], width), left + 1)]
    if not half:
        assert [top, left, tall, wide] == box.tolist()


def made_by_ml_dr(image: torch.Tensor, params: dict[str, Any], side: int, size: int) -> torch.Tensor:
    """What its generator makes of image or partner before they are mixed, but for the kernel of the resize."""
    top, left, height, width = params["random_resized_crop"][side]
    cut = image[:, top : top + height, left : left + width]
    picture = interpolate(cut[None].contiguous(), (size, size), mode="bilinear", antialias=True)[0]
    if params["random_horizontal_flip"][side]:
        picture = reference.hflip(picture)
    for name, strength in params["rand_augment"][side] or ():
        picture = _apply_op(picture, name, strength, interpolation=InterpolationMode.NEAREST, fill=None)
    if params["random_erase"][side] is not None:
        top, left, height, width = params["random_erase"][side]
        picture = picture.clone()
        picture[:, top : top + height, left : left + width] = 0
    return picture


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_ml_drs_pictures_are_those_of_its_generator(
    images: Any, photos: Path, tmp_path: Path, mixing: bool, compress: bool
) -> None:
    _, every = rivals.write_ml_dr(tmp_path / "f", images, mixing=mixing, compress=compress)
    labels = imported("ml-dr", tmp_path / "f", photos, tmp_path / "s")
    pictures = softlabels.SoftLabelDataset(labels, images, size=24)
    cut = 0
    for row in range(ROWS):
        for view in range(VIEWS):
            params = every[row][view]
            wanted = made_by_ml_dr(images.decode(row), params, 0, 24).float()
            blend, box = params.get("mixup"), params.get("cutmix")
            if blend is not None or box is not None:
                other = made_by_ml_dr(images.decode(params["id2"]), params, 1, 24).float()
                wanted = wanted if blend is None else blend * wanted + (1 - blend) * other
                if box is not None:
                    top, left, bottom, right = box[1]
                    wanted[:, top:bottom, left:right] = other[:, top:bottom, left:right]
                    cut += 1
            found, hard, _ = pictures[row * VIEWS + view]
            # The mean grey of contrast is summed in whole numbers here, and a blend is rounded to bytes.
            difference = (found.float() - wanted).abs()
            assert difference.max() <= 1.01
            assert (difference > 0.51).float().mean() < 0.02
            assert hard == (-1 if blend is not None or box is not None else row // 6)
    assert bool(cut) == mixing


def test_what_a_view_was_mixed_with_is_known(images: Any, sources: Path, photos: Path, tmp_path: Path) -> None:
    labels = imported("ml-dr", sources / "mixed", photos, tmp_path / "s")
    every = rivals.drawn_params(images, VIEWS, 24, True)
    partners, shares = labels.mixtures(range(ROWS), 1)
    for row, params in enumerate(each[1] for each in every):
        mixed = params["mixup"] is not None or params["cutmix"] is not None
        assert partners[row] == (params["id2"] if mixed else row)
        top, left, bottom, right = params["cutmix"][1] if params["cutmix"] else (0, 0, 0, 0)
        own = (1.0 if params["mixup"] is None else params["mixup"]) * (1 - (bottom - top) * (right - left) / 24**2)
        assert shares[row] == pytest.approx(own, abs=1e-6)


def test_a_student_of_another_size_or_of_some_images_sees_the_same_views(
    images: Any, sources: Path, photos: Path, tmp_path: Path
) -> None:
    labels = imported("ml-dr", sources / "mixed", photos, tmp_path / "s")
    whole = softlabels.SoftLabelDataset(labels, images, size=48)
    some = softlabels.SoftLabelDataset(labels, subset(images, [11, 3, 17]), size=48)
    for place, row in enumerate((11, 3, 17)):
        for view in range(VIEWS):
            assert torch.equal(some[place * VIEWS + view][0], whole[row * VIEWS + view][0])
    small = softlabels.SoftLabelDataset(labels, images, size=24)
    shrunk = torch.stack([whole[n][0] for n in range(54)]).float()
    shrunk = interpolate(shrunk, (24, 24), mode="area")
    assert (shrunk - torch.stack([small[n][0] for n in range(54)]).float()).abs().mean() < 12


def test_labels_of_other_images_than_their_crops_fit_are_refused(images: Any, photos: Path, tmp_path: Path) -> None:
    rivals.write_ml_dr(tmp_path / "f", images)
    (tmp_path / "other").mkdir()
    for path in sorted(photos.rglob("*.jpg")):
        place = tmp_path / "other" / path.relative_to(photos)
        place.parent.mkdir(exist_ok=True)
        Image.open(path).resize((30, 30)).save(place)
    with pytest.raises(softlabels.DataError, match="images are too small for their recorded crops"):
        imported("ml-dr", tmp_path / "f", tmp_path / "other", tmp_path / "s")


def test_views_that_are_recorded_cannot_be_drawn_and_words_do_not_make_them() -> None:
    recipe = RECIPES.make([{"kind": "recorded-crop"}, {"kind": "recorded-flip"}])
    with pytest.raises(softlabels.ConfigError, match="recorded with the labels"):
        recipe.make_params(0, [1], 0)
    examples = {"recorded-erasing": 8, "recorded-mix": 8, "foreign-view": "TinyViT"}
    needed = {"seeded-mix": {"kind": "seeded-mix", "mixup": 0.8, "cutmix": 1.0}}
    for kind in RECORDED.names:
        step = RECORDED.make(needed.get(kind) or (f"{kind}:{examples[kind]}" if kind in examples else kind))
        assert isinstance(step, Recorded)
        assert RECIPES.make([step.model_dump(mode="json")]).steps == (step,)


def test_steps_that_are_not_recorded_are_drawn_as_ever_and_the_others_replayed() -> None:
    mixed = RECIPES.make(["recorded-crop", "horizontal-flip", "recorded-flip", "recorded-mix:8"])
    hashes, rows, views = np.arange(20, dtype=np.uint64), np.arange(20) % 7, np.arange(20) % 3
    held = {
        name: np.arange(21).reshape(7, 3, *(1 for _ in shape)) * np.ones(shape) + len(name)
        for name, (_, shape) in record_spec(mixed).items()
    }

    class Held:
        def take(self, rows: np.ndarray, views: np.ndarray) -> dict[str, np.ndarray]:
            return {name: each[rows, views].astype(record_spec(mixed)[name][0]) for name, each in held.items()}

    source = param_source(mixed, 3, hashes, Held())
    drawn = RECIPES.make(["horizontal-flip"])
    for side, params, keys in (
        ("view", source.params(rows, views), hashes[rows]),
        ("other", source.partner_params(rows, views, hashes), hashes),
    ):
        assert params.numbers.tolist() == views.tolist()
        assert (params.by_step[0]["box"] == held[f"{side}_box"][rows, views]).all()
        assert (params.by_step[1] == drawn.make_params(3, keys, views).by_step[0]).all()
        assert (params.by_step[3]["partner"] == held["mix_partner"][rows, views]).all()
    assert set(source.records(rows, views)) == set(record_spec(mixed))
    assert param_source(drawn, 3, hashes).records(rows, views) == {}


# ---- pairing


def test_the_pairing_is_said_aloud_and_refused_when_labels_are_of_other_images(
    sources: Path, photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    command = ("import", sources / "fkd", "--from", "fkd", "--data", photos, "--rows-per-shard", 7)
    done = softlabels_command(*command, "--out", "s")
    assert done.exit_code == 0, done.output
    assert (
        "the class named first is the image's own for 100.0% of 54 labels of 18 images (chance: 33.3%)" in done.output
    )
    assert "nothing in the files ties a label to its image" in done.output
    files = sorted((sources / "fkd").rglob("*.tar"))
    for place, file in enumerate(files):
        turned = tmp_path / "turned" / files[(place + 6) % 18].relative_to(sources / "fkd")
        turned.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, turned)
    wrong = ("import", tmp_path / "turned", "--from", "fkd", "--data", photos, "--out", "w")
    refused = softlabels_command(*wrong)
    assert refused.exit_code == 1
    assert "does not seem to be of these images" in refused.output
    assert "--allow-mismatch" in refused.output
    assert not Path("w").exists()
    assert softlabels_command(*wrong, "--allow-mismatch").exit_code == 0


@pytest.mark.parametrize("project", ["fkd", "ml-dr"])
def test_images_without_labels_are_refused_or_left_unlabelled(
    project: str, sources: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(sources / project, tmp_path / "f")
    gone = "train/class-1/003.tar" if project == "fkd" else "9.pth.tar"
    (tmp_path / "f" / gone).unlink()
    with pytest.raises(
        softlabels.DataError, match=r"1 of 18 images have no label .*class-1/003.jpg.*`on_missing=skip`"
    ):
        imported(project, tmp_path / "f", photos, tmp_path / "s")
    labels = imported(project, tmp_path / "f", photos, tmp_path / "s", on_missing="skip")
    assert np.flatnonzero(~labels.labelled(np.arange(ROWS))).tolist() == [9]


def test_labels_of_a_larger_data_set_are_refused_or_said(
    sources: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    (fewer / "class-2" / "005.jpg").unlink()
    with pytest.raises(softlabels.DataError, match=r"up to 17, but .* has 17 images; it is another data set"):
        imported("tinyvit", sources / "tinyvit", fewer, tmp_path / "t")
    for project in ("fkd", "ml-dr"):
        imported(project, sources / project, fewer, tmp_path / project, quiet=False)
        assert "1 labels in" in capsys.readouterr().err


def test_images_without_hard_labels_are_imported_and_it_is_said_that_nothing_was_compared(
    sources: Path, photos: Path, softlabels_command: Callable
) -> None:
    command = ("import", sources / "fkd", "--from", "fkd", "--data", f"images:{photos}", "--out", "s")
    refused = softlabels_command(*command)
    assert refused.exit_code == 2
    assert "--classes" in refused.output
    done = softlabels_command(*command, "--classes", 3)
    assert done.exit_code == 0, done.output
    assert "the pairing is unchecked" in done.output


def test_two_images_that_fkd_gives_one_label_are_refused(sources: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "p")
    shutil.copy(photos / "class-1" / "003.jpg", tmp_path / "p" / "class-1" / "003.v2.jpg")
    with pytest.raises(softlabels.DataError, match=r"003.*and .*003.* would have one label, class-1/003.tar"):
        imported("fkd", sources / "fkd", tmp_path / "p", tmp_path / "s")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("project", ["tinyvit", "ml-dr"])
def test_labels_that_are_found_by_place_are_counted_as_image_folder_lists_them(
    project: str, packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of a folder come before those of its subfolders, and some kinds are not counted."""
    from worlds import picture

    names = ["b.jpg", "a/z.jpg", "a/y.JPG", "a-b/x.png", "a/c/w.jpg", "A.jpg", "a.jpg", "v.webp", "b/0.bmp"]
    uncounted = ["0.gif", "a/1.gif", "u.pbm"]
    root = tmp_path / "p"
    for label, folder in enumerate(("n1", "n1-x", "n2")):
        for number, name in enumerate([*names, *uncounted]):
            file = root / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(20 * label + number).permute(1, 2, 0).numpy()).save(file)
    images = softlabels.open_images(root)
    theirs = [Path(path).relative_to(root).as_posix() for path, _ in ImageFolder(str(root)).samples]
    ours = images.keys.to_pylist()
    assert [key for key in ours if key in theirs] != theirs
    counted = subset(images, [ours.index(key) for key in theirs])
    written = WRITERS[project](tmp_path / "f", counted)
    shares = written[0] if isinstance(written, tuple) else written
    if packed:
        softlabels.pack(data=str(root), out=str(tmp_path / "pack"), quiet=True)
    data = Path(f"pack:{tmp_path}/pack") if packed else root
    labels = imported(project, tmp_path / "f", data, tmp_path / "s", quiet=False)
    said = capsys.readouterr().err
    assert "counted as torchvision's ImageFolder lists them" in said
    assert "9 of 36 images are of kinds that torchvision's ImageFolder does not count (first: 'n1/0.gif')" in said
    rows = labels.rows(theirs)
    for view in range(2):
        found = labels.probabilities(rows, view).numpy()
        np.testing.assert_allclose(found, expected(shares, 2)[:, view], atol=6e-4)
    left = np.setdiff1d(np.arange(len(labels)), rows)
    assert sorted(labels.keys.take(left).to_pylist()) == sorted(set(ours) - set(theirs))
    assert not labels.labelled(left).any()
    assert labels.labelled(rows).all()


# ---- hostile and damaged files


class Evil:
    """Unpickled by the usual way, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("project", ["fkd", "ml-dr"])
def test_a_file_that_would_run_something_is_refused_by_name(
    project: str, sources: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(sources / project, tmp_path / "f")
    file = tmp_path / "f" / ("train/class-1/003.tar" if project == "fkd" else "9.pth.tar")
    torch.save([Evil(tmp_path / "ran"), 1, 2], file)
    with pytest.raises(softlabels.DataError, match=f"{file} is refused: it asks for posix.system"):
        imported(project, tmp_path / "f", photos, tmp_path / "s")
    assert not (tmp_path / "ran").exists()


HOSTILE = {
    "a note far beyond the file": (b"\x80\x04]r\xff\xff\xff\xff.", "refused: it notes more values"),
    "a note far beyond the file, in text": (b"(lp99999999999\n.", "refused: it notes more values"),
    "a system call": (b"cos\nsystem\n(S'true'\ntR.", "refused: it asks for os.system"),
    "getattr": (b"c__builtin__\ngetattr\n.", "refused: it asks for __builtin__.getattr"),
    "an instance": (b"(S'a'\ni__builtin__\nint\n.", "refused: it uses the instruction b'i'"),
    "an extension": (b"\x80\x02\x82\x01.", "refused: it uses the instruction"),
    "something outside": (b"\x80\x02K\x01Q.", "refused: it refers to something outside"),
    "more bytes than there are": (b"\x80\x04B\xff\xff\xff\xffab.", "damaged: EOFError"),
    "nothing": (b"", "damaged: EOFError"),
    "no end": (b"\x80\x04]]]", "damaged: EOFError"),
    "a shape of two milliards": (
        pickle.dumps(np.zeros(4, np.uint8)).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
        "refused: it holds an array whose shape",
    ),
}


@pytest.mark.parametrize(("evil", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles_are_refused(evil: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "evil").write_bytes(evil)
    with pytest.raises(softlabels.DataError, match=f"{tmp_path}/evil is {said}"):
        read_plain_pickle(tmp_path / "evil")


def test_lists_in_lists_without_end_do_not_exhaust_the_reader(tmp_path: Path) -> None:
    depth = 50_000
    (tmp_path / "deep").write_bytes(b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b".")
    assert isinstance(read_plain_pickle(tmp_path / "deep"), list)
    with_array = pickle.dumps(np.zeros(1, np.uint8), 4)[2:-1]
    (tmp_path / "deep").write_bytes(b"\x80\x04" + b"]" * depth + with_array + b"a" * depth + b".")
    with pytest.raises(softlabels.DataError, match="deep is damaged: RecursionError"):
        read_plain_pickle(tmp_path / "deep")
    shared: list[Any] = [np.zeros(1, np.uint8)]
    for _ in range(60):
        shared = [shared, shared]  # 2**60 arrays, for whoever looks into each
    (tmp_path / "wide").write_bytes(pickle.dumps(shared, 4))
    assert len(read_plain_pickle(tmp_path / "wide")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[: len(data) // 2], "refused"),
        (lambda data: b"PK" + data[2:200], "refused"),
        (lambda data: data.replace(b"data.pkl", b"atad.pkl"), "holds no data.pkl"),
    ],
)
def test_a_cut_off_archive_is_refused_by_name(change: Callable, said: str, tmp_path: Path) -> None:
    torch.save([np.zeros(3), torch.ones(2)], tmp_path / "f")
    (tmp_path / "f").write_bytes(change((tmp_path / "f").read_bytes()))
    with pytest.raises(softlabels.DataError, match=f"{tmp_path}/f is .*{said}"):
        read_torch_file(tmp_path / "f")


def test_arrays_tensors_and_numbers_come_back(tmp_path: Path) -> None:
    value = {
        "a": [np.arange(6).reshape(2, 3).astype(dtype) for dtype in ("f2", "f4", "f8", "i2", "i8", "?", ">i4")],
        "t": (torch.arange(6).reshape(2, 3).t(), torch.ones(0), torch.tensor(2.5, dtype=torch.float16)),
        "n": [np.float32(1.5), np.int64(7), None, True, "text", b"bytes", 2**80],
    }
    for protocol in (2, 4):
        torch.save(value, tmp_path / "f", pickle_protocol=protocol)
        found = read_torch_file(tmp_path / "f")
        for one, other in zip(found["a"], value["a"], strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(found["t"], value["t"], strict=True):
            np.testing.assert_array_equal(one, other.numpy())
        assert found["n"] == [1.5, 7, None, True, "text", b"bytes", 2**80]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mutated_file_is_read_or_refused(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("m") / "f"
    torch.save([np.zeros((2, 4), np.float32), np.ones(2, bool), np.ones((2, 2, 3), np.float16)], file)
    data, rng = bytearray(file.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, len(data), 4):
        data[place] = rng.integers(256)
    file.write_bytes(bytes(data))
    with contextlib.suppress(softlabels.DataError):
        read_torch_file(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([np.zeros((3, 4)), np.zeros(3, bool)], "should hold crops, flips and labels"),
        ([np.full((3, 4), 0.5), np.zeros(2, bool), np.zeros((3, 2, 2))], "is no label of FKD"),
        ([np.full((3, 4), 7.0), np.zeros(3, bool), np.zeros((3, 2, 2))], "crops that do not lie in an image"),
        ([np.full((3, 4), 0.5), np.zeros(3, bool), np.zeros((3, 2, 2))], "names a class twice"),
        ([np.full((3, 4), 0.5), np.zeros(3, bool), np.full((3, 2, 1), 0.5)], "not whole"),
        ([np.full((3, 4), 0.5), np.zeros(3, bool), np.full((3, 2, 1), 2.0)], "no probabilities"),
        ([np.full((3, 4), 0.5), np.zeros(3, bool), np.zeros((3, 3))], "whole rows"),
    ],
)
def test_files_of_another_layout_are_refused_by_name(
    content: list[Any], said: str, sources: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(sources / "fkd", tmp_path / "f")
    file = tmp_path / "f" / "train/class-1/003.tar"
    torch.save(content, file)
    with pytest.raises(softlabels.DataError, match=f"{file} .*{said}"):
        imported("fkd", tmp_path / "f", photos, tmp_path / "s")


def test_damaged_records_of_tinyvit_and_ml_dr_are_refused_by_name(sources: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(sources / "tinyvit", tmp_path / "t")
    values = tmp_path / "t" / "logits_top2_epoch1" / "rank1-values.bin"
    values.write_bytes(values.read_bytes()[:-3])
    with pytest.raises(softlabels.DataError, match=f"{values} has .* bytes, not 12 for each of the 10 keys"):
        imported("tinyvit", tmp_path / "t", photos, tmp_path / "s")
    shutil.copytree(sources / "ml-dr", tmp_path / "d")
    shutil.copy(tmp_path / "d" / "3.pth.tar", tmp_path / "d" / "4.pth.tar")
    with pytest.raises(softlabels.DataError, match=r"4.pth.tar says it is of image 3"):
        imported("ml-dr", tmp_path / "d", photos, tmp_path / "s")
    torch.save((4, [{"params": [1, 2], "prob": ([0.5, 0.4], [0, 1])}] * 3), tmp_path / "d" / "4.pth.tar")
    with pytest.raises(
        softlabels.DataError, match=r"4.pth.tar: the parameters of view 0 are not as config.pth.tar says"
    ):
        imported("ml-dr", tmp_path / "d", photos, tmp_path / "s")


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)])
def test_labels_that_joblib_wrote_are_refused_for_that_reason(
    compress: Any, sources: Path, photos: Path, tmp_path: Path
) -> None:
    joblib = pytest.importorskip("joblib")
    shutil.copytree(sources / "ml-dr", tmp_path / "d")
    file = tmp_path / "d" / "4.pth.tar"
    joblib.dump((4, [{"params": [None, 1], "prob": ([0.5], [1])}]), file, compress=compress)
    with pytest.raises(softlabels.DataError, match=rf"{file} is refused: .*joblib.*; write the labels with `joblib: f"):
        imported("ml-dr", tmp_path / "d", photos, tmp_path / "s")
    torch.save((4, []), file, _use_new_zipfile_serialization=False)
    with pytest.raises(softlabels.DataError, match=r"4.pth.tar is refused: torch.save wrote it before version 1.6"):
        imported("ml-dr", tmp_path / "d", photos, tmp_path / "s")
    file.write_bytes(b"<!doctype html><html>")
    with pytest.raises(softlabels.DataError, match=r"4.pth.tar is refused: it is no zip file.* of another program"):
        imported("ml-dr", tmp_path / "d", photos, tmp_path / "s")


@pytest.mark.parametrize("project", list(WRITERS))
def test_files_of_another_project_are_recognised(project: str, sources: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "sre2l" / "epoch_0").mkdir(parents=True)
    batch = [torch.zeros(5, 4), torch.zeros(5), torch.arange(5), 0.5, [0, 0, 9, 9], torch.zeros(5, 3).half()]
    torch.save(batch, tmp_path / "sre2l" / "epoch_0" / "batch_0.tar")
    for folder in (tmp_path / "sre2l", tmp_path / "sre2l" / "epoch_0"):
        with pytest.raises(softlabels.DataError, match=r"holds labels of sre2l; import them with `from_=sre2l`"):
            imported(project, folder, photos, tmp_path / "s")
    other = "tinyvit" if project != "tinyvit" else "ml-dr"
    with pytest.raises(softlabels.DataError, match=rf"holds labels of {other}; import them with `from_={other}`"):
        imported(project, sources / other, photos, tmp_path / "s")


# ---- what cannot be replayed


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ({"random_crop": {"size": 24, "padding": 4}, "resize": {"size": 24}}, "random_crop and resize"),
        ({"random_resized_crop": {"enable": False}}, "without random_resized_crop"),
        ({"random_resized_crop": {"size": [24, 32]}}, "no squares"),
        ({"rand_augment": {"fill": [1, 2, 3]}}, "rand_augment with fill"),
    ],
)
def test_what_is_not_replayed_is_named_and_its_labels_can_be_had_alone(
    augment: dict[str, Any], said: str, images: Any, photos: Path, tmp_path: Path
) -> None:
    shares, _ = rivals.write_ml_dr(tmp_path / "f", images, augment=augment)
    with pytest.raises(softlabels.ConfigError, match=f"config.pth.tar tells of .*{said}.*`labels_only=True`"):
        imported("ml-dr", tmp_path / "f", photos, tmp_path / "s")
    labels = imported("ml-dr", tmp_path / "f", photos, tmp_path / "s", labels_only=True)
    np.testing.assert_allclose(labels.probabilities(range(ROWS), 2).numpy(), expected(shares, 2)[:, 2], atol=1e-6)
    with pytest.raises(softlabels.ConfigError, match="only ml-dr's own code makes the views"):
        softlabels.SoftLabelDataset(labels, images)


class Seeded(torch.utils.data.Dataset[Any]):
    """Somebody's data set that draws from a seed, as TinyViT's transforms do."""

    now: int | None = None

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([number, -1 if self.now is None else self.now]), number // 6

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        self.now = seed
        yield
        self.now = None


class Floats(torch.utils.data.Dataset[Any]):
    """Somebody's data set of normalised float images that are drawn from a seed."""

    now: int | None = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    @staticmethod
    def picture(number: int, seed: int) -> torch.Tensor:
        return torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(1000 * number + seed))

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        assert self.now is not None
        return self.picture(number, self.now), number

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        assert self.now is None
        self.now = seed
        yield
        self.now = None


def many(tmp_path: Path, count: int) -> tuple[Path, Any]:
    """Small photos of 5 classes, a file each: few labels would not tell how they were mixed."""
    from torchvision.io import write_jpeg
    from worlds import picture

    root = tmp_path / "photos"
    for number in range(count):
        folder = root / f"class-{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        write_jpeg(picture(number, 8, 8), str(folder / f"{number:04d}.jpg"))
    return root, softlabels.open_images(root)


@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize(("count", "ranks"), [(18, 1), (18, 2), (23, 4), (22, 4)])
def test_tinyvits_mixtures_are_the_pictures_that_its_teacher_saw(
    count: int, ranks: int, alphas: tuple[float, float], tmp_path: Path
) -> None:
    root, images = many(tmp_path, count)
    said = rivals.write_mixed_tinyvit(tmp_path / "f", images, ranks=ranks, mixup=alphas[0], cutmix=alphas[1])
    labels = imported("tinyvit", tmp_path / "f", root, tmp_path / "s", mixup=alphas[0], cutmix=alphas[1])
    own, keys = Floats(count), images.keys.to_pylist()
    for view in range(2):
        wanted: dict[int, torch.Tensor] = {}
        for shown in said[view]:  # the first rank that has an image counts
            for first, second in zip(shown[::2], shown[1::2], strict=True):
                made = rivals.mixed_pair(own.picture(*first), own.picture(*second), first[1] ^ second[1], *alphas)
                for (row, _), picture in zip((first, second), made, strict=True):
                    wanted.setdefault(row, picture)
        pairs = softlabels.attach(own, labels, keys=keys, view=view, seeded=own.seeded)
        loader = torch.utils.data.DataLoader(pairs, batch_size=7, num_workers=2)
        pictures, numbers, soft = (torch.cat(each) for each in zip(*loader, strict=True))
        assert numbers.tolist() == list(range(count))
        assert torch.equal(pictures, torch.stack([wanted[row] for row in range(count)]))
        torch.testing.assert_close(soft, labels.probabilities(range(count), view))
        partners, shares = labels.mixtures(range(count), view)
        pair = {a: b for shown in said[view] for a, b in zip(shown[::2], shown[1::2], strict=True)}
        pair |= {b: a for a, b in pair.items()}
        for row in range(count):
            seed, other = (int(labels.recorded([row], view)[name][0]) for name in ("view_seed", "other_seed"))
            assert pair[row, seed] == (partners[row], other)
            assert shares[row] == pytest.approx(rivals.mixed_share(seed ^ other, *alphas), abs=1e-6)
    assert softlabels.verify(labels=str(tmp_path / "s"), data=str(root), device="cpu", workers=0, quiet=True).ok


def test_a_mixture_whose_partner_is_not_in_the_files_is_named_and_no_other_picture_stands_in(tmp_path: Path) -> None:
    """A rank does not write again what it has written: of an odd number of images the last has no partner."""
    root, images = many(tmp_path, 15)
    said = rivals.write_mixed_tinyvit(tmp_path / "f", images, epochs=1)
    last = said[0][0][-2][0]
    settings = {"data": str(root), "out": str(tmp_path / "s"), "mixup": 0.8, "cutmix": 1.0, "quiet": True}
    report = softlabels.import_labels("tinyvit", tmp_path / "f", **settings)
    assert "1 labels are of mixtures with an image that is not in the files" in report.notes[-1]
    labels = softlabels.open_labels(tmp_path / "s")
    own, keys = Floats(15), images.keys.to_pylist()
    with pytest.raises(softlabels.StoreError, match=rf"1 images were mixed in view 0 .*{keys[last]}.*Subset"):
        softlabels.attach(own, labels, keys=keys, view=0, seeded=own.seeded)
    some = [row for row in range(15) if row != last]
    pairs = softlabels.attach(
        torch.utils.data.Subset(own, some), labels, keys=[keys[row] for row in some], view=0, seeded=own.seeded
    )
    assert len({tuple(pairs[n][0].flatten().tolist()) for n in range(14)}) == 14


def test_whether_tinyvits_labels_are_mixed_is_asked_and_the_labels_can_contradict(
    tmp_path: Path, softlabels_command: Callable
) -> None:
    root, images = many(tmp_path, 150)
    rivals.write_mixed_tinyvit(tmp_path / "mixed", images)
    rivals.write_tinyvit(tmp_path / "plain", images, ranks=1)
    usual, none = ("--mixup", 0.8, "--cutmix", 1), ("--mixup", 0, "--cutmix", 0)
    for folder, right, wrong in (("mixed", usual, none), ("plain", none, usual)):
        command = ("import", tmp_path / folder, "--from", "tinyvit", "--data", root, "--out", f"s-{folder}")
        for incomplete in ((), ("--mixup", 0.8), ("--cutmix", 0)):
            asked = softlabels_command(*command, *incomplete)
            assert asked.exit_code == 2
            assert asked.output.count("\n") == 1
            assert "--mixup 0.8 --cutmix 1 as in TinyViT's default config" in asked.output
            assert "or --mixup 0 --cutmix 0" in asked.output
            seen = [int(each) for each in re.findall(r"(\d+)%", asked.output)]
            assert (seen[0] > seen[1] + 10) == (folder == "mixed")
        refused = softlabels_command(*command, *wrong)
        assert refused.exit_code == 1
        assert "but the class named first fits images that are" in refused.output
        assert not Path(f"s-{folder}").exists()
        done = softlabels_command(*command, *right)
        assert done.exit_code == 0, done.output
        assert (
            softlabels_command(*command, *wrong, "--allow-mismatch").exit_code == 1
        )  # labels of other views are there
    other = softlabels_command("import", tmp_path / "plain", "--from", "fkd", "--data", root, "--mixup", 0.8)
    assert other.exit_code == 2
    assert "--mixup is for --from tinyvit, not fkd" in other.output
    alone = softlabels_command(
        "import", tmp_path / "mixed", "--from", "tinyvit", "--data", root, "--labels-only", "--out", "alone"
    )
    assert alone.exit_code == 0, alone.output
    assert "whether mixup or cutmix was on; where it was, your data set has to mix, too" in alone.output


def test_mixed_labels_are_attached_to_float_pictures_of_the_whole_data_set_alone(tmp_path: Path) -> None:
    root, images = many(tmp_path, 20)
    rivals.write_mixed_tinyvit(tmp_path / "f", images)
    labels = imported("tinyvit", tmp_path / "f", root, tmp_path / "s", mixup=0.8, cutmix=1.0)
    own, keys = Floats(20), images.keys.to_pylist()
    with pytest.raises(softlabels.ConfigError, match=r"mixed with images that are none of them .*whole data set"):
        softlabels.attach(torch.utils.data.Subset(own, [0, 1]), labels, keys=keys[:2], view=0, seeded=own.seeded)

    class Other(Floats):
        def __getitem__(self, number: int) -> Any:
            return self.made(*super().__getitem__(number))

    for made, said in [
        (lambda picture, label: ((255 * picture).byte(), label), "torch.uint8"),
        (lambda picture, label: (picture[:, : 5 + label], label), "of one size"),
        (lambda picture, label: {"pixels": picture, "label": label}, "a tuple that begins with it, not dict"),
    ]:
        Other.made = staticmethod(made)  # type: ignore[attr-defined]
        other = Other(20)
        with pytest.raises(softlabels.ConfigError, match=f"attach: the views of these labels are mixed.*{said}"):
            for item in softlabels.attach(other, labels, keys=keys, view=1, seeded=other.seeded):
                assert item
    Other.made = staticmethod(lambda picture, _: picture)  # type: ignore[attr-defined]
    bare = Other(20)
    pairs = softlabels.attach(bare, labels, keys=keys, view=1, seeded=bare.seeded)
    whole = softlabels.attach(own, labels, keys=keys, view=1, seeded=own.seeded)
    assert all(torch.equal(pairs[n][0], whole[n][0]) for n in range(20))


def test_a_store_that_does_not_say_whether_views_were_mixed_is_not_attached(
    images: Any, sources: Path, photos: Path, tmp_path: Path
) -> None:
    """Stores that were imported before it was asked."""
    labels = imported("tinyvit", sources / "tinyvit", photos, tmp_path / "s")
    assert labels.recipe.model_dump(mode="json")["steps"][0]["mixed"] is False
    silent = [{"kind": "foreign-view", "of": "TinyViT", "seeded": True}]
    labels.__dict__["recipe"] = RECIPES.make(silent)
    assert labels.recipe.model_dump(mode="json")["steps"] == silent
    own = Seeded()
    with pytest.raises(softlabels.ConfigError, match=r"does not say whether its views were mixed .*import .* again"):
        softlabels.attach(own, labels, keys=images.keys.to_pylist(), seeded=own.seeded)


def test_tinyvits_labels_are_paired_with_what_makes_its_views(
    images: Any, sources: Path, photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    labels = imported("tinyvit", sources / "tinyvit", photos, tmp_path / "s")
    own, keys = Seeded(), images.keys.to_pylist()
    for view in range(2):
        pairs = softlabels.attach(own, labels, keys=keys, view=view, seeded=own.seeded)
        loader = torch.utils.data.DataLoader(pairs, batch_size=5)
        pictures, hard, soft = (torch.cat(each) for each in zip(*loader, strict=True))
        assert pictures.tolist() == [[row, 1000 * view + row] for row in range(ROWS)]
        torch.testing.assert_close(soft, labels.probabilities(range(ROWS), view))
        assert hard.tolist() == [row // 6 for row in range(ROWS)]
    for wrong in ({}, {"view": 2, "seeded": own.seeded}):
        with pytest.raises(softlabels.ConfigError, match="attach"):
            softlabels.attach(own, labels, keys=keys, **wrong)
    for command in (("train", "--student", "cnn_tiny"), ("dump", "--teacher", "cnn_tiny", "--weights", "random")):
        place = ("--labels", tmp_path / "s") if command[0] == "train" else ("--data", photos, "--out", tmp_path / "s")
        refused = softlabels_command(*command, *place, "--device", "cpu")
        assert refused.exit_code == 2, refused.output
        assert "only TinyViT's own code makes the views" in refused.output
        assert "softlabels.attach" in refused.output


# ---- what is done with such a store


def test_a_student_trains_from_imported_labels(sources: Path, photos: Path, softlabels_command: Callable) -> None:
    made = softlabels_command("import", sources / "fkd", "--from", "fkd", "--data", photos, "--out", "s")
    assert made.exit_code == 0, made.output
    small = ("--student", "cnn_tiny", "--size", 16, "--batch-size", 8, "--device", "cpu")
    done = softlabels_command("train", "--labels", "s", *small, "--epochs", 1, "--workers", "threads:2", "--out", "run")
    assert done.exit_code == 0, done.output
    assert Path("run/result.json").exists()
    hot = softlabels_command("train", "--labels", "s", *small, "--temperature", 4)
    assert hot.exit_code == 2
    assert "valid at temperature 1 alone" in hot.output
    assert "--temperature 1" in hot.output
    told = softlabels_command("info", "s")
    assert "recorded-crop" in told.output
    assert "probabilities" in told.output
    assert softlabels_command("verify", "--labels", "s").exit_code == 0
    alone = ("--student", "cnn_tiny", "--data", photos, "--recipe", "recorded-crop")
    assert softlabels_command("train", *alone, "--device", "cpu", "--epochs", 1, "--out", "no").exit_code == 2


def test_batches_do_not_depend_on_who_makes_them(images: Any, sources: Path, photos: Path, tmp_path: Path) -> None:
    from softlabels.loading.batches import LabelledViews, Threads, batches
    from softlabels.loading.views import ViewDataset

    labels = imported("ml-dr", sources / "mixed", photos, tmp_path / "s", compression="zstd")
    pictures = ViewDataset.of_store(labels.store, images, VIEWS, ImageSpec(16))
    todo = np.split(np.random.default_rng(0).permutation(ROWS * VIEWS), 6)
    made = [
        torch.cat([each.pictures for each in batches(LabelledViews(pictures), todo, workers=workers)])
        for workers in (0, 2, Threads(2))
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@pytest.mark.parametrize("source", ["fkd", "mixed"])
def test_another_teacher_labels_the_recorded_views(
    source: str, images: Any, sources: Path, photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    project = "fkd" if source == "fkd" else "ml-dr"
    imported(project, sources / source, photos, tmp_path / "s")
    command = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--out", tmp_path / "s")
    small = ("--device", "cpu", "--workers", 0, "--codec", "dense:fp32")
    for wrong, said in [
        ((), "--recipe recorded"),
        (("--recipe", "recorded", "--views", 4), "records 3 views .* choose --views 3"),
        (("--recipe", "recorded", "--views", 3, "--grow"), "--grow"),
    ]:
        refused = softlabels_command(*command, *small, *wrong)
        assert refused.exit_code in (1, 2)
        assert refused.output.count("\n") <= 2
        assert re.search(said, refused.output), refused.output
    done = softlabels_command(*command, *small, "--recipe", "recorded", "--views", VIEWS)
    assert done.exit_code == 0, done.output
    labels = softlabels.open_labels(tmp_path / "s")
    assert labels.teachers == tuple(sorted(["cnn_tiny", project]))
    assert softlabels.verify(labels=str(tmp_path / "s"), device="cpu", workers=0, quiet=True).ok
    for view in range(VIEWS):
        one, other = (labels.recorded(range(ROWS), view, name) for name in labels.teachers)
        assert all((one[name] == other[name]).all() for name in record_spec(labels.recipe))
    shutil.rmtree(tmp_path / "s" / project)
    stores = (softlabels.open_labels(tmp_path / "s"), imported(project, sources / source, photos, tmp_path / "b"))
    without, with_both = (
        softlabels.SoftLabelDataset(each, images, size=16, interpolation="bilinear") for each in stores
    )
    assert all(torch.equal(without[n][0], with_both[n][0]) for n in range(ROWS * VIEWS))


@pytest.mark.parametrize(("project", "theirs"), [("fkd", "bicubic"), ("ml-dr", "bilinear")])
def test_another_teacher_says_where_it_sees_recorded_views_resized_otherwise(
    project: str, theirs: str, sources: Path, photos: Path, softlabels_command: Callable
) -> None:
    made = softlabels_command("import", sources / project, "--from", project, "--data", photos, "--out", "s")
    assert f"the images that they are of were resized {theirs}" in made.output
    card = json.loads(softlabels_command("info", "s", "--json").output)["teachers"][project]
    assert card["preprocessing"]["interpolation"] == theirs
    command = ("dump", "--recipe", "recorded", "--views", 1, "--data", photos, "--out", "s", "--device", "cpu")
    for ours in ("bilinear", "bicubic"):
        teacher = {
            "kind": "small",
            "architecture": "cnn_tiny",
            "name": ours,
            "weights": "random",
            "interpolation": ours,
        }
        Path("dump.yaml").write_text(json.dumps({"teacher": [teacher]}))
        done = softlabels_command(*command, "--workers", 0, "--config", "dump.yaml")
        assert done.exit_code == 0, done.output
        warned = f"{ours} sees these views resized {ours}, but the labels of {project} are of {theirs} ones"
        assert (warned in done.output) == (ours != theirs)
        assert (f"interpolation: {theirs}" in done.output) == (ours != theirs)


def test_a_teacher_is_compared_with_the_classes_of_the_store_and_not_of_the_folder(
    sources: Path, photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    """Labels of 1,000 classes are often of images of a few."""
    imported("fkd", sources / "fkd", photos, tmp_path / "s", classes=7)
    for classes in (7, 3):
        network = models.build("cnn_tiny", classes, seed=0)
        safetensors.torch.save_file(network.state_dict(), tmp_path / f"{classes}.safetensors")
    command = ("dump", "--recipe", "recorded", "--views", VIEWS, "--data", photos, "--out", tmp_path / "s")
    command = (*command, "--teacher", "cnn_tiny", "--device", "cpu", "--workers", 0, "--weights")
    refused = softlabels_command(*command, tmp_path / "3.safetensors")
    assert refused.exit_code == 1
    assert "has 3 classes" in refused.output
    assert "the store's labels are of 7 classes" in refused.output
    done = softlabels_command(*command, tmp_path / "7.safetensors")
    assert done.exit_code == 0, done.output
    assert softlabels.open_labels(tmp_path / "s").logits([4], 1, "cnn_tiny").shape == (1, 7)
    checked = softlabels_command("verify", "--labels", tmp_path / "s", "--device", "cpu", "--workers", 0)
    assert checked.exit_code == 0, checked.output


def test_an_unreadable_image_is_named_or_left_out_for_another_teacher(
    sources: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "p")
    bad = tmp_path / "p" / "class-1" / "004.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(softlabels.DataError, match=str(bad)):
        imported("ml-dr", sources / "ml-dr", tmp_path / "p", tmp_path / "no")
    imported("fkd", sources / "fkd", tmp_path / "p", tmp_path / "s", rows_per_shard=18)
    own: dict[str, Any] = {"teacher": ["cnn_tiny"], "weights": ["random"], "device": "cpu", "workers": 0, "quiet": True}
    own |= {"data": str(tmp_path / "p"), "recipe": "recorded", "views": VIEWS, "out": str(tmp_path / "s")}
    softlabels.dump(on_bad_image="skip", **own)
    labels = softlabels.open_labels(tmp_path / "s")
    assert np.flatnonzero(~labels.labelled(np.arange(ROWS), ["cnn_tiny"])).tolist() == [10]
    step = RecordedCrop()
    for_unread = step.boxes(step.replay({"box": np.array([[5, 6, 30, 20]], np.int32)}), np.array([1]), np.array([1]))
    assert for_unread.tolist() == [[0, 0, 1, 1]]


def test_imported_stores_are_converted_and_merged(images: Any, sources: Path, photos: Path, tmp_path: Path) -> None:
    whole = imported("ml-dr", sources / "mixed", photos, tmp_path / "s")
    for part in ("0/2", "1/2"):
        imported("ml-dr", sources / "mixed", photos, tmp_path / part[0], part=part)
    parts = [str(tmp_path / each) for each in "01"]
    softlabels.merge(labels=parts, out=str(tmp_path / "m"), quiet=True)
    assert shard_bytes(tmp_path / "m") == shard_bytes(tmp_path / "s")
    softlabels.convert(labels=str(tmp_path / "m"), out=str(tmp_path / "z"), format="zarr", quiet=True)
    moved = softlabels.open_labels(tmp_path / "z")
    pictures = [softlabels.SoftLabelDataset(each, images, size=16) for each in (whole, moved)]
    for number in range(0, ROWS * VIEWS, 5):
        one, other = (each[number] for each in pictures)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[2], other[2])
    with pytest.raises(softlabels.ConfigError, match="probabilities:2"):
        softlabels.convert(labels=str(tmp_path / "m"), out=str(tmp_path / "d"), codec="dense", lossy=True)


def test_the_same_command_goes_on_and_other_files_are_refused(
    images: Any, sources: Path, photos: Path, tmp_path: Path
) -> None:
    imported("fkd", sources / "fkd", photos, tmp_path / "s", views=2)
    imported("fkd", sources / "fkd", photos, tmp_path / "s")
    assert softlabels.open_labels(tmp_path / "s").views == 3
    before = all_bytes(tmp_path / "s")
    again = {"data": str(photos), "out": str(tmp_path / "s"), "quiet": True}
    assert softlabels.import_labels("fkd", sources / "fkd", **again).shards == 0
    assert all_bytes(tmp_path / "s") == before
    rivals.write_fkd(tmp_path / "f", images, kind="smoothing")
    with pytest.raises(softlabels.StoreError, match="holds other labels under the name fkd"):
        imported("fkd", tmp_path / "f", photos, tmp_path / "s")
    with pytest.raises(softlabels.ConfigError, match="holds 3 views of each image, asked for were 9"):
        imported("fkd", sources / "fkd", photos, tmp_path / "t", views=9)
    with pytest.raises(softlabels.ConfigError, match="`limit` leaves out images with which views"):
        imported("ml-dr", sources / "mixed", photos, tmp_path / "t", limit=5)
    part = imported("ml-dr", sources / "ml-dr", photos, tmp_path / "t", limit=5)
    assert len(part) == 5
    whole = softlabels.SoftLabelDataset(imported("ml-dr", sources / "ml-dr", photos, tmp_path / "w"), images, size=24)
    rows = np.flatnonzero(part.store.find(images.keys) >= 0)
    some = softlabels.SoftLabelDataset(part, subset(images, rows), size=24)
    for place, row in enumerate(rows.tolist()):
        assert torch.equal(some[place * VIEWS][0], whole[row * VIEWS][0])
        assert torch.equal(some[place * VIEWS][2], whole[row * VIEWS][2])


def test_an_import_killed_at_any_moment_goes_on(sources: Path, photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": str(photos), "rows_per_shard": 2, "quiet": True}
    softlabels.import_labels("fkd", sources / "fkd", out=str(tmp_path / "whole"), **settings)
    out, kills = tmp_path / "s", 0
    for moment in range(8):
        kills += killed(
            lambda: softlabels.import_labels("fkd", sources / "fkd", out=str(out), **settings),
            lambda wanted=moment: sum(1 for _ in out.glob("fkd/0*")) >= wanted,  # type: ignore[misc]
            wait=0.0005 * moment,
        )
    softlabels.import_labels("fkd", sources / "fkd", out=str(out), **settings)
    assert kills >= 4
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_the_page_does_what_it_says(images: Any, photos: Path, softlabels_command: Callable) -> None:
    shutil.copytree(photos, "photos")
    rivals.write_fkd(Path("soft_label_500_crops") / "imagenet", images)
    rivals.write_ml_dr(Path("reinforced_data"), images)
    rivals.write_mixed_tinyvit(Path("saved_logits"), images)
    rivals.write_coloured(Path("distilled"))
    rivals.write_batches(Path("FKD_cutmix_fp16"), Path("distilled"), size=224)
    page = (Path(__file__).parents[2] / "docs/importing.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        device = ("--device", "cpu") if " dump " in line or " train " in line else ()
        done = softlabels_command(*shlex.split(line)[1:], *device)
        assert done.exit_code == 0, (line, done.output)
    again = softlabels_command("import", "--config", "from-fkd/import-fkd.yaml")
    assert again.exit_code == 0
    assert "nothing to do" in again.output
    shard = next(Path("from-fkd/fkd").glob("0*.h5"))
    shard.write_bytes(shard.read_bytes()[:-9])
    assert "softlabels import" in softlabels_command("repair", "--labels", "from-fkd").output


# ---- the codec


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 12),
    classes=st.sampled_from([12, 40, 1000]),
    spread=st.sampled_from([0.1, 3.0, 20.0]),
    dtype=st.sampled_from(["fp16", "fp32"]),
)
def test_probabilities_come_back_with_an_even_tail_and_no_negative_mass(
    seed: int, k: int, classes: int, spread: float, dtype: str
) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).standard_normal((5, classes)) * spread).float()
    codec = CODECS.make({"kind": "probabilities", "k": k, "dtype": dtype})
    shares = logits.double().softmax(-1).numpy()
    found = codec.decode(codec.encode(logits), classes).double().softmax(-1).numpy()
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    ids, values = rivals.highest(shares, k)
    step = 2.0**-10 if dtype == "fp16" else 1e-6
    np.testing.assert_allclose(np.take_along_axis(found, ids, -1), values, rtol=2 * step, atol=2 * step)
    others = np.delete(found[0], ids[0])
    assert np.ptp(others) <= 1e-7 if len(others) else True


def test_rounded_values_above_one_leave_nothing_for_the_others() -> None:
    codec = CODECS.make({"kind": "probabilities", "k": 3})
    arrays = codec.encode_probabilities(np.array([[4, 0, 2]]), np.array([[0.7, 0.25, 0.0505]]), 6)  # type: ignore[attr-defined]
    found = codec.decode(arrays, 6).softmax(-1)[0]
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    assert found[[1, 3, 5]].tolist() == [0, 0, 0]
    assert found[4] == pytest.approx(0.7 / 1.0005, abs=1e-3)
