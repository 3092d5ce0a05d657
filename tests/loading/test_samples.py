"""The waist: what a sample shows and what label it carries depends on its number alone."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from worlds import write_pictures

import softlabels
from softlabels.loading.batches import LabelledViews, Threads, Workers, batches
from softlabels.loading.samplers import OneViewEach
from softlabels.loading.views import ThreadPool, ViewDataset, image_spec
from softlabels.models import Preprocessing
from softlabels.views import RECIPES, ImageSpec

VIEWS = 4


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "shards"
    softlabels.dump(
        teacher=["cnn_tiny"], weights=["random"], data=str(photos), views=VIEWS, out=str(out), device="cpu", quiet=True
    )
    return out


@pytest.fixture(scope="module")
def pictures(photos: Path, shards: Path) -> softlabels.SoftLabelDataset:
    return softlabels.SoftLabelDataset(softlabels.open_labels(shards), softlabels.open_images(photos), size=24)


def test_teacher_and_student_see_the_same_pixels_at_equal_size(photos: Path, shards: Path) -> None:
    """What the dump rendered for the teacher is what the training renders for a student of that size."""
    images = softlabels.open_images(photos)
    seen = ViewDataset(images, RECIPES.make("crop-flip"), 0, VIEWS, image_spec(Preprocessing(size=24)))
    learnt = softlabels.SoftLabelDataset(softlabels.open_labels(shards), images, size=24)
    for number in range(0, len(learnt), 5):
        assert torch.equal(seen[number], learnt[number][0])


def test_an_item_is_picture_hard_label_and_probabilities(pictures: softlabels.SoftLabelDataset) -> None:
    assert len(pictures) == 18 * VIEWS
    picture, hard, probabilities = pictures[7 * VIEWS + 2]
    assert picture.shape == (3, 24, 24)
    assert picture.dtype == torch.uint8
    assert hard == 1
    assert probabilities.dtype == torch.float32
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    expected = pictures.labels.probabilities([7], 2)[0]
    assert torch.equal(probabilities, expected)


@pytest.mark.parametrize("number", [18 * VIEWS, -18 * VIEWS - 1])
def test_numbers_beyond_the_last_sample_are_refused(pictures: softlabels.SoftLabelDataset, number: int) -> None:
    with pytest.raises(IndexError):
        pictures[number]


@pytest.mark.parametrize(
    ("workers", "start"), [(1, "fork"), (2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)]
)
def test_samples_are_the_same_in_any_worker(pictures: softlabels.SoftLabelDataset, workers: int, start: str) -> None:
    sampler = OneViewEach(pictures, epoch=1, seed=3)
    alone = list(DataLoader(pictures, batch_size=5, sampler=sampler))
    context = multiprocessing.get_context(start)
    helped = list(
        DataLoader(pictures, batch_size=5, sampler=sampler, num_workers=workers, multiprocessing_context=context)
    )
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2, Threads(1), Threads(3)])
def test_batches_are_the_same_whoever_makes_them(photos: Path, shards: Path, workers: Workers) -> None:
    labels, images = softlabels.open_labels(shards), softlabels.open_images(photos)
    pictures = ViewDataset.of_store(labels.store, images, VIEWS, ImageSpec(24))
    samples = LabelledViews(pictures, labels, labels.rows(images.keys), labels.teachers)
    order = np.random.default_rng(1).permutation(18 * VIEWS)
    todo = [order[start : start + 5] for start in range(0, len(order), 5)]
    made = list(batches(samples, todo, workers=workers))
    assert np.concatenate([(each.rows * VIEWS + each.views).numpy() for each in made]).tolist() == order.tolist()
    for batch, numbers in zip(made, todo, strict=True):
        expected = samples.__getitems__(numbers)
        assert torch.equal(batch.pictures, expected.pictures)
        for name, array in expected.arrays["cnn_tiny"].items():
            assert torch.equal(batch.arrays["cnn_tiny"][name], array)


def test_a_picture_that_threads_cannot_decode_is_named(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    samples = LabelledViews(ViewDataset(softlabels.open_images(root), RECIPES.make("crop"), 0, 1, ImageSpec(8)))
    with pytest.raises(softlabels.DataError, match=r"003\.jpg"):
        list(batches(samples, [np.arange(3 * n, 3 * n + 3) for n in range(6)], workers=Threads(2)))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(list(range(18 * VIEWS))), size=st.integers(1, 30))
def test_samples_are_the_same_in_any_batch_and_order(order: list[int], size: int) -> None:
    samples = LabelledViews(_memory_pictures())
    whole = samples.__getitems__(list(range(18 * VIEWS)))
    numbers = np.array(order[:40])
    for batch in batches(samples, [numbers[start : start + size] for start in range(0, len(numbers), size)]):
        places = (batch.rows * VIEWS + batch.views).numpy()
        assert torch.equal(batch.pictures, whole.pictures[places])
        assert torch.equal(batch.targets, whole.targets[places])


def _memory_pictures() -> ViewDataset:
    images = softlabels.datasets.subset(softlabels.open_images("digits"), range(18))  # type: ignore[attr-defined]
    return ViewDataset(images, RECIPES.make("pad"), 5, VIEWS, ImageSpec(8))


def test_pictures_in_memory_equal_pictures_decoded_one_by_one() -> None:
    """The batched path for small data sets and the path for files draw and render alike."""
    digits = softlabels.open_images("digits")
    rows, views = np.arange(12), np.arange(12) % VIEWS
    recipe = RECIPES.make("crop")
    batched = ViewDataset(digits, recipe, 0, VIEWS, ImageSpec(8)).render(rows, views)
    single = ViewDataset(digits, recipe, 0, VIEWS, ImageSpec(8))
    for row in rows.tolist():
        assert torch.equal(single[row * VIEWS + row % VIEWS], batched[row])


def test_an_epoch_shows_each_image_once_and_all_epochs_show_all_views() -> None:
    pictures = _memory_pictures()
    seen = np.zeros((18, VIEWS), int)
    for epoch in range(VIEWS):
        rows, views = np.divmod(OneViewEach(pictures, epoch, seed=1).numbers(), VIEWS)
        assert sorted(rows.tolist()) == list(range(18))
        np.add.at(seen, (rows, views), 1)
    assert (seen == 1).all()


def test_several_views_of_an_image_come_together() -> None:
    pictures = _memory_pictures()
    sampler = OneViewEach(pictures, epoch=3, seed=1, views_per_image=2)
    rows, views = np.divmod(sampler.numbers().reshape(-1, 2), VIEWS)
    assert len(sampler) == 36
    assert (rows[:, 0] == rows[:, 1]).all()
    assert (views[:, 0] != views[:, 1]).all()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    pictures = _memory_pictures()
    orders = {(seed, epoch): tuple(OneViewEach(pictures, epoch, seed)) for seed in range(2) for epoch in range(2)}
    assert len(set(orders.values())) == 4
    sampler = OneViewEach(pictures, 0, 1)
    sampler.set_epoch(1)
    assert tuple(sampler) == orders[1, 1]


def test_the_order_of_an_epoch_stays_what_it_was() -> None:
    """A golden value: a change here would break the resuming of runs that were begun before it."""
    numbers = OneViewEach(_memory_pictures(), epoch=2, seed=7).numbers()
    assert numbers.tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [23, 30, 69, 10, 45, 37, 48, 33, 61, 1, 15, 59, 52, 7, 17, 24, 43, 64]


def test_labels_read_by_row_view_teacher_and_temperature(shards: Path) -> None:
    labels = softlabels.open_labels(shards)
    rows = labels.rows(["class-1/002.jpg", "class-0/000.jpg"])
    logits = labels.logits(rows, 3, teacher="cnn_tiny")
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32
    for temperature in (1.0, 4.0):
        probabilities = labels.probabilities(rows, 3, temperature=temperature)
        torch.testing.assert_close(probabilities, (logits / temperature).softmax(-1))
    with pytest.raises(KeyError, match=r"class-9/000\.jpg"):
        labels.rows(["class-9/000.jpg"])
    with pytest.raises(softlabels.StoreError, match="cnn_tiny"):
        labels.logits(rows, 0, teacher="cnn_tinny")
    with pytest.raises(softlabels.StoreError):
        labels.logits(rows, VIEWS)
    with pytest.raises(IndexError, match="18"):
        labels.logits([18], 0)


def test_ten_lines_of_somebodys_own_loop(pictures: softlabels.SoftLabelDataset) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for epoch in range(8):
        for picture, _, target in DataLoader(pictures, batch_size=6, sampler=OneViewEach(pictures, epoch)):
            loss = torch.nn.functional.cross_entropy(network(picture / 255), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_threads_inside_a_data_set_make_the_same_samples(
    pictures: softlabels.SoftLabelDataset, threads: int, workers: int
) -> None:
    shared = softlabels.SoftLabelDataset(pictures.labels, pictures.pictures.images, size=24, threads=threads)
    assert torch.equal(shared[5][0], pictures[5][0])  # a fork after this must start threads of its own
    options: dict[str, Any] = {"batch_size": 20, "num_workers": workers, "multiprocessing_context": "fork"}
    sampler = OneViewEach(pictures, epoch=0, seed=3, views_per_image=4)
    made = DataLoader(shared, sampler=sampler, **(options if workers else {"batch_size": 20}))
    for one, other in zip(made, DataLoader(pictures, batch_size=20, sampler=sampler), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("recipe", ["crop-flip-erase", "crop-flip-mix", "pad-flip"])
def test_a_crew_makes_the_same_pictures_and_names_the_same_failures(tmp_path: Path, recipe: str) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    made = ViewDataset(softlabels.open_images(root), RECIPES.make(recipe), 0, VIEWS, ImageSpec(24))
    rows, views = np.divmod(np.random.default_rng(0).permutation(18 * VIEWS), VIEWS)
    alone: dict[int, str] = {}
    shared: dict[int, str] = {}
    expected = made.render(rows, views, alone)
    assert torch.equal(made.render(rows, views, shared, thread_pool=ThreadPool(3)), expected)
    assert alone == shared
    assert 9 in alone
    assert not expected[torch.from_numpy(rows == 9)].any()
    with pytest.raises(softlabels.DataError, match=r"003\.jpg"):
        made.render(rows, views, thread_pool=ThreadPool(2))


def test_collating_hands_out_the_batch_that_was_made(pictures: softlabels.SoftLabelDataset) -> None:
    usual = next(iter(DataLoader(pictures, batch_size=7)))
    samples = pictures.__getitems__(range(7))
    made = pictures.collate(samples)
    assert made[0].data_ptr() == samples[0][0].data_ptr()
    assert made[0].is_contiguous(memory_format=torch.channels_last)
    in_a_loader = next(iter(DataLoader(pictures, batch_size=7, collate_fn=pictures.collate, num_workers=1)))
    one_by_one = pictures.collate([pictures[number] for number in range(7)])
    for batch in (made, in_a_loader, one_by_one):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(batch, usual, strict=True))


def test_fewer_than_one_thread_is_refused(pictures: softlabels.SoftLabelDataset) -> None:
    with pytest.raises(softlabels.ConfigError, match="threads"):
        softlabels.SoftLabelDataset(pictures.labels, pictures.pictures.images, threads=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"temperature": 0}, "temperature"), ({"teachers": ["nobody"]}, "nobody"), ({"blend": "nope"}, "nope")],
)
def test_what_no_item_could_be_made_with_is_refused_at_once(
    pictures: softlabels.SoftLabelDataset, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(softlabels.SoftlabelsError, match=says):
        softlabels.SoftLabelDataset(pictures.labels, pictures.pictures.images, **settings)
