"""Labels as a reader asks for them: what is there is given, what is not is refused, and nothing is cast on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from worlds import TINY, write_pictures

import softlabels
from softlabels.core.philox import hash_keys
from softlabels.loading.batches import LabelledViews
from softlabels.loading.labels import blending_words, keys_at
from softlabels.loading.views import ViewDataset
from softlabels.losses import BLENDS, LOSSES
from softlabels.models import teacher_spec
from softlabels.training.targets import LiveTargets
from softlabels.views import RECIPES, ImageSpec

ONE_TEMPERATURE = (
    "sampled:2",
    {"kind": "sampled", "k": 3, "temperature": 4.0},
    {"kind": "probabilities", "k": 3, "temperature": 4.0, "dtype": "fp32"},
    {"kind": "probabilities", "k": 2, "tail": "none"},
)


def dump(out: Path, photos: Path, **settings: Any) -> softlabels.Labels:
    given = {"teacher": ["cnn_tiny"], "weights": ["random"], "views": 2, "device": "cpu", "quiet": True, **settings}
    softlabels.dump(data=str(photos), out=str(out), **given)
    return softlabels.open_labels(out)


@pytest.fixture(scope="module")
def labels(shards: Path) -> softlabels.Labels:
    return softlabels.open_labels(shards)


@pytest.fixture
def skipped(tmp_path: Path) -> tuple[Path, Path]:
    """A store of photos one of which could not be read, which has been relabelled since; and the photos."""
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    content = bad.read_bytes()
    bad.write_bytes(b"broken")
    dump(tmp_path / "shards", root, on_bad_image="skip")
    bad.write_bytes(content)
    return tmp_path / "shards", root


# ---- rows and views


@pytest.mark.parametrize("read", ["logits", "probabilities", "mixtures"])
def test_a_mask_selects_the_rows_where_it_is_true(labels: softlabels.Labels, read: str) -> None:
    ask = getattr(labels, read)
    options = {"teachers": ["cnn_tiny"]} if read == "probabilities" else {"teacher": "cnn_tiny"}
    mask = np.zeros(len(labels), bool)
    mask[[3, 11]] = True
    for given in (mask, mask.tolist(), torch.from_numpy(mask)):
        for one, other in zip(ask(given, 1, **options), ask([3, 11], 1, **options), strict=True):
            assert np.array_equal(np.asarray(one), np.asarray(other))
    with pytest.raises(IndexError, match="mask of rows has one value for each of 18"):
        ask(mask[:5], 0, **options)


@pytest.mark.parametrize(
    ("rows", "view", "error"),
    [
        ([0.5, 1.7], 0, TypeError),
        ([0, float("nan")], 0, TypeError),
        (slice(0, 3), 0, TypeError),
        ("class-0/000.jpg", 0, TypeError),
        (["3"], 0, TypeError),
        (None, 0, TypeError),
        ([[0, 1], [2]], 0, TypeError),
        ([[0, 1], [2, 3]], 0, ValueError),
        ([-1], 0, IndexError),
        ([18], 0, IndexError),
        (np.array([2**63], np.uint64), 0, IndexError),
        ([0, 1, 2], [0, 1], ValueError),
        ([0, 1], 0.5, TypeError),
        ([0, 1], "0", TypeError),
        ([0, 1], True, TypeError),
        ([0, 1], slice(0, 1), TypeError),
    ],
)
def test_rows_and_views_are_checked_and_never_cast(
    labels: softlabels.Labels, rows: Any, view: Any, error: type[Exception]
) -> None:
    for ask in (labels.logits, labels.mixtures):
        with pytest.raises(error):
            ask(rows, view, teacher="cnn_tiny")
    with pytest.raises(error):
        labels.probabilities(rows, view)


def test_whole_numbers_of_any_kind_are_rows(labels: softlabels.Labels) -> None:
    expected = labels.logits([4, 2], [1, 0], teacher="cnn_tiny")
    for kind in (np.int8, np.uint32, np.float64):
        assert torch.equal(labels.logits(np.array([4, 2], kind), np.array([1, 0], kind), teacher="cnn_tiny"), expected)
    assert labels.logits([], 0, teacher="cnn_tiny").shape == (0, 3)
    assert labels.logits(4, 1, teacher="cnn_tiny").shape == (1, 3)


# ---- what is not there


def test_images_without_a_label_are_refused_by_name(skipped: tuple[Path, Path]) -> None:
    labels = softlabels.open_labels(skipped[0])
    row = labels.rows(["class-1/003.jpg"])
    for ask in (labels.logits, labels.probabilities, labels.mixtures):
        if ask != labels.mixtures:
            with pytest.raises(softlabels.StoreError, match=r"have no label by cnn_tiny \('class-1/003\.jpg'"):
                ask([0, int(row[0])], 0)
        assert len(ask([0, 1], 0)[0]) > 0


def test_a_data_set_refuses_images_without_a_label_or_leaves_them_out(skipped: tuple[Path, Path]) -> None:
    labels, images = softlabels.open_labels(skipped[0]), softlabels.open_images(skipped[1])
    with pytest.raises(softlabels.StoreError, match=r"class-1/003\.jpg"):
        softlabels.SoftLabelDataset(labels, images, size=16)
    others = softlabels.SoftLabelDataset(labels, images, size=16, unlabelled="leave-out")
    assert len(others) == 17 * 2
    assert "class-1/003.jpg" not in others.pictures.images.keys.to_pylist()
    assert torch.equal(others[-1][2], labels.probabilities([17], 1)[0])


def test_a_store_of_some_images_serves_a_data_set_of_all(photos: Path, tmp_path: Path) -> None:
    labels = dump(tmp_path / "some", photos, limit=7)
    some = softlabels.SoftLabelDataset(labels, softlabels.open_images(photos), size=16, unlabelled="leave-out")
    assert len(some) == 7 * 2
    with pytest.raises(KeyError, match="no images with the keys"):
        softlabels.SoftLabelDataset(labels, softlabels.open_images(photos), size=16)


@pytest.mark.parametrize("codec", ONE_TEMPERATURE, ids=str)
def test_labels_without_logits_are_refused_where_logits_are_asked_for(photos: Path, tmp_path: Path, codec: Any) -> None:
    labels = dump(tmp_path / "shards", photos, codec=codec)
    temperature = labels.codec().temperatures[0]
    probabilities = labels.probabilities(range(18), 0, temperature=temperature)
    torch.testing.assert_close((labels.logits(range(18), 0) / temperature).softmax(-1), probabilities)
    assert torch.equal(labels.logits(range(18), 0) == -torch.inf, probabilities == 0)
    needing = [name for name in LOSSES.names if LOSSES.make(name).needs_logits]
    assert {"mse", "l1", "jeffreys", "spherical-kd", "standardized-kl", "relational-distance"} <= set(needing)
    for place, loss in enumerate(needing):
        out = tmp_path / f"run-{place}"
        with pytest.raises(softlabels.ConfigError, match=f"loss '{loss}' needs a logit of every class"):
            softlabels.train(labels=str(tmp_path / "shards"), loss=loss, temperature=temperature, out=str(out), **TINY)
        with pytest.raises(softlabels.ConfigError, match=f"loss '{loss}' needs a logit of every class"):
            term = [{"weight": 0.5, "loss": loss}]
            softlabels.train(labels=str(tmp_path / "shards"), term=term, temperature=temperature, out=str(out), **TINY)
        assert not out.exists()


@pytest.mark.parametrize("codec", ONE_TEMPERATURE, ids=str)
def test_a_label_of_one_temperature_is_decoded_at_that_one_unless_told_otherwise(codec: Any) -> None:
    from softlabels.codecs import CODECS

    part = CODECS.make(codec)
    logits, words = 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), np.arange(5, dtype=np.uint64)
    arrays = part.encode(logits, words)
    assert torch.equal(part.decode(arrays, 3), part.decode(arrays, 3, temperature=part.temperatures[0]))


def test_a_mean_of_logits_needs_logits_of_every_teacher(photos: Path, tmp_path: Path) -> None:
    settings = {"teacher": ["cnn_tiny", "cnn_small"], "weights": ["random", "random:1"], "codec": "sampled:2"}
    labels = dump(tmp_path / "shards", photos, **settings)
    for name in BLENDS.names:
        if name in ("weighted", "per-class"):
            continue
        if BLENDS.make(name).needs_logits:
            with pytest.raises(softlabels.ConfigError, match=f"blend '{name}' needs a logit of every class"):
                labels.probabilities([0], 0, blend=name)
            with pytest.raises(softlabels.ConfigError, match=f"blend '{name}' needs a logit of every class"):
                softlabels.train(labels=str(tmp_path / "shards"), blend=name, out=str(tmp_path / "no"), **TINY)
            labels.probabilities([0], 0, blend=name, teachers=["cnn_tiny"])  # one teacher's need no adding up
        else:
            labels.probabilities([0], 0, blend=name)


# ---- views of the chosen teachers


@pytest.fixture(scope="module")
def uneven(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which one teacher has 4 views, another 1, and a third was begun without a shard."""
    out = tmp_path_factory.mktemp("uneven") / "shards"
    dump(out, photos, views=4, recipe="crop-flip")
    dump(out, photos, views=1, teacher=["cnn_small"], weights=["random:1"])
    dump(out, photos, views=1, teacher=["resnet18"], weights=["random:1"], codec="topk:2")
    for shard in (out / "resnet18").glob("*.h5"):
        shard.unlink()
    return out


def test_an_unfinished_teacher_takes_no_views_from_the_others(uneven: Path, photos: Path, tmp_path: Path) -> None:
    labels, images = softlabels.open_labels(uneven), softlabels.open_images(photos)
    assert labels.views_of(["cnn_tiny"]) == 4
    assert labels.views_of(["cnn_tiny", "cnn_small"]) == 1
    assert len(softlabels.SoftLabelDataset(labels, images, size=16, teachers=["cnn_tiny"])) == 18 * 4
    softlabels.train(labels=str(uneven), teachers=["cnn_tiny"], out=str(tmp_path / "run"), **TINY)
    assert ": 4 views of 18 images by cnn_tiny" in (tmp_path / "run" / "header.txt").read_text()
    findings = softlabels.verify(labels=str(uneven), quiet=True)
    assert {each.teacher for each in findings.agreements} <= {"cnn_tiny", "cnn_small"}


def test_a_teacher_without_a_complete_view_is_named_with_those_that_have_one(
    uneven: Path, photos: Path, tmp_path: Path
) -> None:
    labels, images = softlabels.open_labels(uneven), softlabels.open_images(photos)
    said = r"no complete view of resnet18 yet .*choose among the teachers that have one: cnn_small, cnn_tiny"
    with pytest.raises(softlabels.StoreError, match=said):
        softlabels.SoftLabelDataset(labels, images, size=16)
    with pytest.raises(softlabels.StoreError, match=said):
        softlabels.train(labels=str(uneven), out=str(tmp_path / "no"), **TINY)
    assert not (tmp_path / "no").exists()


def test_more_views_in_a_row_than_there_are_is_refused(shards: Path, photos: Path, tmp_path: Path) -> None:
    labels, images = softlabels.open_labels(shards), softlabels.open_images(photos)
    pictures = softlabels.SoftLabelDataset(labels, images, size=16)
    softlabels.OneViewEach(pictures, views_per_image=4)
    for count in (0, 5):
        with pytest.raises(softlabels.ConfigError, match="from 1 to the 4 views"):
            softlabels.OneViewEach(pictures, views_per_image=count)
        with pytest.raises(softlabels.ConfigError, match="from 1 to the 4 views"):
            softlabels.ShuffledShards(pictures, 1, views_per_image=count)
    with pytest.raises(softlabels.ConfigError, match="more than the 4 views"):
        softlabels.train(labels=str(shards), views_per_image=5, out=str(tmp_path / "no"), **TINY)


# ---- pixels as the teachers saw them


def test_a_data_set_renders_as_the_teacher_saw_it(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    bicubic = {"kind": "small", "architecture": "cnn_tiny", "weights": "random", "interpolation": "bicubic"}
    dump(out, photos, teacher=[bicubic], weights=[])
    labels, images = softlabels.open_labels(out), softlabels.open_images(photos)
    as_seen = softlabels.SoftLabelDataset(labels, images, size=20)
    chosen = {
        how: softlabels.SoftLabelDataset(labels, images, size=20, interpolation=how) for how in ("bicubic", "bilinear")
    }
    assert torch.equal(as_seen[3][0], chosen["bicubic"][3][0])
    assert not torch.equal(as_seen[3][0], chosen["bilinear"][3][0])
    dump(out, photos, teacher=["cnn_small"])
    labels = softlabels.open_labels(out)
    with pytest.raises(softlabels.ConfigError, match=r"cnn_small bilinear, cnn_tiny bicubic.*choose interpolation="):
        softlabels.SoftLabelDataset(labels, images, size=20)
    softlabels.SoftLabelDataset(labels, images, size=20, interpolation="bicubic")


# ---- chance


def test_a_blend_that_draws_picks_the_same_teacher_stored_and_live(shards: Path, photos: Path) -> None:
    labels, images = softlabels.open_labels(shards), softlabels.open_images(photos)
    teachers = [
        teacher_spec(name, weights).open(classes=3)
        for name, weights in (("cnn_small", "random:1"), ("cnn_tiny", "random"))
    ]
    assert labels.teachers == tuple(teacher.name for teacher in teachers)
    pictures = ViewDataset(images, RECIPES.make("crop-flip"), 0, 4, ImageSpec(32))
    blend, samples = BLENDS.make("random-teacher"), LabelledViews(pictures)
    live = LiveTargets(teachers, [pictures, pictures], pictures.image_spec, blend, 1.0)
    rows, views = np.divmod(np.arange(18 * 4), 4)
    said = live(samples.__getitems__(np.arange(18 * 4)), torch.device("cpu"))["logits"].softmax(-1)
    stored = labels.probabilities(rows, views, blend="random-teacher")
    torch.testing.assert_close(said, stored, atol=2e-3, rtol=0)
    each = [labels.probabilities(rows, views, teachers=[name]) for name in labels.teachers]
    assert (each[0] - each[1]).abs().max() > 0.02  # so that another teacher's would have been noticed


def test_keys_are_looked_up_only_for_blends_that_draw(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = softlabels.open_labels(shards)
    words = labels.blend_words(np.array([2, 17, 2]), np.array([0, 3, 0]))
    hashes = hash_keys(labels.keys.to_pylist())
    assert (words == blending_words(hashes[[2, 17, 2]], labels.seed, np.array([0, 3, 0]))).all()

    def fail(*_: object) -> None:
        raise AssertionError("keys were looked up")

    monkeypatch.setattr("softlabels.loading.labels.keys_at", fail)
    labels.probabilities(range(18), 0)
    with pytest.raises(AssertionError, match="looked up"):
        labels.probabilities(range(18), 0, blend="random-teacher")


def test_keys_of_rows_are_found_in_any_chunks() -> None:

    whole = [f"k{number}" for number in range(11)]
    keys = pa.chunked_array([whole[:4], [], whole[4:5], whole[5:]], pa.string())
    rows = np.array([10, 0, 4, 3, 5, 0])
    assert keys_at(keys, rows) == [whole[row] for row in rows]
    assert keys_at(keys, rows[:0]) == []
