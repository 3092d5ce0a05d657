"""Views that are mixed of two images: who the partner is, what is recorded, and what a student learns from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from worlds import write_pictures

import softlabels
from softlabels.datasets import content_checksums, subset
from softlabels.loading.batches import LabelledViews, Threads, batches
from softlabels.loading.views import ViewDataset
from softlabels.losses import Objective, hard_cross_entropy
from softlabels.store import open_store
from softlabels.views import RECIPES, ImageSpec

MIXES = ("crop-flip-mixup", "crop-flip-cutmix", "crop-flip-mix")
SMALL: dict[str, Any] = {
    "teacher": ["cnn_tiny"],
    "weights": ["random"],
    "views": 3,
    "device": "cpu",
    "rows_per_shard": 5,
    "codec": "dense:fp32",
    "workers": 0,
    "quiet": True,
}
TINY: dict[str, Any] = {
    "student": "cnn_tiny",
    "batch_size": 8,
    "epochs": 2,
    "device": "cpu",
    "workers": 0,
    "quiet": True,
}
VIEWS = 3


@pytest.fixture(scope="module", params=MIXES)
def shards(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed") / "shards"
    softlabels.dump(data=str(photos), recipe=request.param, out=str(out), **SMALL)
    return out


def every() -> tuple[np.ndarray, np.ndarray]:
    """Rows and views of all samples of the photos."""
    return np.repeat(np.arange(18), VIEWS), np.tile(np.arange(VIEWS), 18)


def test_a_mixed_picture_is_the_recipes_mixture_of_two_unmixed_ones(photos: Path) -> None:
    images, mixup = softlabels.open_images(photos), RECIPES.make("crop-flip-mixup")
    plain = ViewDataset(images, RECIPES.make("crop-flip"), 4, VIEWS, ImageSpec(24))
    pictures = ViewDataset(images, mixup, 4, VIEWS, ImageSpec(24))
    rows, views = every()
    partners, shares = pictures.mixtures(rows, views)
    own, theirs = plain.render(rows, views).float(), plain.render(partners, views).float()
    weights = torch.from_numpy(shares).float()[:, None, None, None]
    expected = weights * own + (1 - weights) * theirs
    assert (pictures.render(rows, views).float() - expected).abs().max() <= 0.51
    assert len(np.unique(partners)) > 9


@pytest.mark.parametrize("recipe", MIXES)
def test_mixtures_do_not_depend_on_batch_order_or_workers(photos: Path, recipe: str) -> None:
    pictures = ViewDataset(softlabels.open_images(photos), RECIPES.make(recipe), 0, VIEWS, ImageSpec(16))
    whole = pictures.render(*every())
    order = np.random.default_rng(0).permutation(18 * VIEWS)
    for workers in (0, 2, Threads(2)):
        todo = [order[start : start + 7] for start in range(0, len(order), 7)]
        made = torch.cat([each.pictures for each in batches(LabelledViews(pictures), todo, workers=workers)])
        assert torch.equal(made, whole[order])
    for number in (0, 20, 53):
        assert torch.equal(pictures[number], whole[number])


def test_pictures_in_memory_and_on_disk_are_mixed_alike() -> None:
    digits = subset(softlabels.open_images("digits"), range(40))
    pictures = ViewDataset(digits, RECIPES.make("pad-cutmix"), 2, 2, ImageSpec(8))
    batched = pictures.render(np.arange(40), np.ones(40, np.int64))
    for row in range(0, 40, 7):
        assert torch.equal(pictures[row * 2 + 1], batched[row])


def test_a_student_on_a_part_in_another_order_sees_the_same_mixtures(shards: Path, photos: Path) -> None:
    labels, images = softlabels.open_labels(shards), softlabels.open_images(photos)
    whole = softlabels.SoftLabelDataset(labels, images, size=24)
    chosen = [11, 3, 17, 0]
    part = softlabels.SoftLabelDataset(labels, subset(images, chosen), size=24)
    for place, row in enumerate(chosen):
        for view in range(VIEWS):
            one, other = part[place * VIEWS + view], whole[row * VIEWS + view]
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))


def test_what_was_mixed_is_recorded_with_each_label(shards: Path, photos: Path) -> None:
    labels, images = softlabels.open_labels(shards), softlabels.open_images(photos)
    rows, views = every()
    size = labels.of().card.preprocessing["size"]
    members, shares = ViewDataset.of_store(labels.store, images, VIEWS, ImageSpec(size)).mixtures(rows, views)
    partners, recorded = labels.mixtures(rows, views)
    assert (partners == np.where(members >= 0, members, rows)).all()
    np.testing.assert_allclose(recorded, shares, atol=1e-7)
    keys = images.keys.to_pylist()
    assert labels.partners(range(18), 1) == [keys[partner] for partner in partners[views == 1]]
    assert set(labels.of().take(rows, views)) == {"logits", "mix_partner", "mix_share"}


def test_labels_of_plain_views_have_no_partners(photos: Path, tmp_path: Path) -> None:
    softlabels.dump(data=str(photos), recipe="crop-flip", out=str(tmp_path / "s"), **SMALL)
    labels = softlabels.open_labels(tmp_path / "s")
    assert labels.partners([3, 5], 0) == labels.keys.take([3, 5]).to_pylist()
    assert labels.mixtures([3, 5], 0)[1].tolist() == [1, 1]


def test_mixed_labels_are_verified_learnt_from_and_converted(
    shards: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    assert softlabels.verify(labels=str(shards), device="cpu", workers=0, quiet=True).ok
    softlabels.train(labels=str(shards), out=str(tmp_path / "soft"), **TINY)
    assert "weighted by their shares" not in (tmp_path / "soft" / "header.txt").read_text()
    result = softlabels.train(labels=str(shards), alpha=0.5, out=str(tmp_path / "both"), **TINY)
    assert result["steps"] == 6
    assert "weighted by their shares" in (tmp_path / "both" / "header.txt").read_text()
    softlabels.train(labels=str(shards), limit=7, out=str(tmp_path / "part"), **TINY)
    converted = softlabels_command("convert", "--labels", shards, "--out", tmp_path / "zarr", "--format", "zarr")
    assert converted.exit_code == 0, converted.output
    rows, views = every()
    recoded = ("--out", tmp_path / "topk", "--codec", "topk:2", "--lossy")
    assert softlabels_command("convert", "--labels", shards, *recoded).exit_code == 0
    both = [softlabels.open_labels(place).mixtures(rows, views) for place in (shards, tmp_path / "zarr")]
    assert all((one == other).all() for one, other in zip(*both, strict=True))
    assert (softlabels.open_labels(tmp_path / "topk").mixtures(rows, views)[0] == both[0][0]).all()


def test_live_and_hard_training_mix(photos: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data": str(photos), "recipe": "crop-flip-mix"}
    softlabels.train(out=str(tmp_path / "hard"), **settings)
    softlabels.train(out=str(tmp_path / "live"), teacher=["cnn_small"], teacher_weights=["random"], **settings)


def test_a_data_set_without_a_partner_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    labels = softlabels.open_labels(shards)
    fewer = write_pictures(tmp_path / "fewer")
    gone = labels.partners([0], 0)[0] if labels.partners([0], 0)[0] != labels.keys[0].as_py() else None
    key = gone or next(each for each in labels.partners(range(1, 18), 0) if each != labels.keys[0].as_py())
    (fewer / key).unlink()
    with pytest.raises(softlabels.DataError, match="has no image"):
        softlabels.SoftLabelDataset(labels, softlabels.open_images(fewer))
    with pytest.raises(softlabels.DataError, match=key):
        softlabels.train(labels=str(shards), data=str(fewer), out=str(tmp_path / "run"), **TINY)


def test_images_that_come_later_leave_finished_labels_true(photos: Path, tmp_path: Path) -> None:
    images = softlabels.open_images(photos)
    few = subset(images, range(12))
    with softlabels.create_labels(
        tmp_path / "s", images=few, recipe="crop-flip-mixup", views=2, classes=3, rows_per_shard=5
    ) as writer:
        for batch in writer.missing("mine", size=16):
            writer.put(batch.pictures.float().mean((2, 3)))
    before = ViewDataset.of_store(writer.store, few, 2, ImageSpec(16)).render(np.arange(12), np.ones(12, np.int64))
    later = subset(images, range(12, 18))
    table = pa.table({"key": later.keys, "label": later.labels, "checksum": content_checksums(later)})
    open_store(tmp_path / "s").append_images(table)
    store = open_store(tmp_path / "s")
    grown = ViewDataset.of_store(store, images, 2, ImageSpec(16))
    assert torch.equal(grown.render(np.arange(12), np.ones(12, np.int64)), before)
    assert grown.mixtures(np.arange(12), np.zeros(12, np.int64))[0].max() < 12
    later_partners = [grown.mixtures(np.arange(12, 18), np.full(6, view))[0] for view in range(2)]
    assert np.max(later_partners) < 18
    assert store.population([0, 11, 12, 17]).tolist() == [12, 12, 18, 18]


def test_an_unreadable_partner_makes_its_mixtures_unlabelled(tmp_path: Path, softlabels_command: Callable) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    good = bad.read_bytes()
    bad.write_bytes(good[:300])
    command = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", root, "--views", 2, "--workers", 0)
    refused = softlabels_command(*command, "--recipe", "crop-flip-mixup", "--out", "a")
    assert refused.exit_code == 1
    assert str(bad) in refused.output
    skipped = softlabels_command(*command, "--recipe", "crop-flip-mixup", "--out", "b", "--on-bad-image", "skip")
    assert skipped.exit_code == 0, skipped.output
    held = softlabels.open_labels("b").labelled(np.arange(18))
    bad.write_bytes(good)
    assert softlabels_command(*command, "--recipe", "crop-flip-mixup", "--out", "c").exit_code == 0
    labels = softlabels.open_labels("c")
    members = [labels.store.find(labels.partners(range(18), view)) for view in range(2)]
    assert not held[9]
    assert (held == ~((np.arange(18) == 9) | (members[0] == 9) | (members[1] == 9))).all()


def test_a_mixed_pictures_hard_loss_is_that_of_both_labels_by_share() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    own, other = torch.tensor([0, 1, 2, 3, -1, 1]), torch.tensor([3, 1, 0, 0, 2, -1])
    shares = torch.tensor([0.25, 0.5, 1.0, 0.0, 0.5, 0.5])
    target = shares[:, None] * torch.eye(4)[own] + (1 - shares[:, None]) * torch.eye(4)[other]
    counted = slice(0, 4)
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(logits[counted], target[counted], label_smoothing=smoothing)
        given = {"partners": other, "shares": shares, "label_smoothing": smoothing}
        torch.testing.assert_close(hard_cross_entropy(logits, own, **given), expected)
        total, parts = Objective(alpha=1.0, label_smoothing=smoothing)(logits, own, partners=other, shares=shares)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(parts["hard"], expected)


def test_losses_that_need_one_true_class_refuse_mixed_pictures() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(softlabels.ConfigError, match="dkd"):
        Objective(loss="dkd")(logits, labels, logits, partners=labels, shares=torch.ones(3))
