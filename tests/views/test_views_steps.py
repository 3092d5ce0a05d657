"""The laws that every step keeps, run over the whole table, and the first views of each step as golden values.

``python tests/views/test_views_steps.py`` writes the golden values of steps that have none; it changes no others.
"""

import hashlib
import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.core.philox import hash_keys, philox
from softlabels.views import RECIPES, STEPS, Crop, ImageSpec, Mix

GOLDEN = Path(__file__).parents[1] / "golden" / "views.json"

EXAMPLES = {
    "resize-centre-crop": {},
    "random-resized-crop": {"scale": [0.2, 1.0]},
    "pad-and-crop": {"padding": 0.25, "fill": [1, 2, 3]},
    "horizontal-flip": {"probability": 0.4},
    "vertical-flip": {"probability": 0.6},
    "colour-jitter": {"hue": 0.1, "probability": 0.9},
    "grayscale": {"probability": 0.5},
    "gaussian-blur": {"reach": 0.3},
    "solarize": {"probability": 0.5},
    "randaugment": {"n": 3, "m": 17, "fill": [10, 20, 30]},
    "trivialaugment": {"side": 32},
    "autoaugment": {"policy": "cifar10", "interpolation": "bilinear"},
    "random-erasing": {"probability": 0.7},
    "random-erasing+noise": {"kind": "random-erasing", "probability": 0.7, "fill": "noise"},
    "timm-randaugment": {"text": "rand-m9-n3-mstd1.5-inc1"},
    "choice": {"steps": ["grayscale:1", "solarize:0.5", "gaussian-blur:1", "timm-randaugment"], "probability": 0.8},
    "mixup": {"alpha": 0.4, "probability": 0.8},
    "cutmix": {"probability": 0.8},
    "mixup-or-cutmix": {"switch": 0.6},
}

KEYS = [f"train/{i:05d}.png" for i in range(40)]
HASHES = hash_keys(KEYS)

every_step = pytest.mark.parametrize("kind", sorted(EXAMPLES))


def recipe_of(kind):
    return RECIPES.make([{"kind": kind, **EXAMPLES[kind]}])


def noise(n, height, width):
    words = philox((np.arange(n)[:, None], 1), (np.arange(3 * height * width), 0, 0, 0))[:, :, 0]
    return torch.from_numpy((words >> np.uint64(56)).astype(np.uint8)).view(n, 3, height, width)


def same(some, others):
    return np.array_equal(some.numbers, others.numbers) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(some.by_step, others.by_step, strict=True)
    )


def test_every_step_of_the_table_has_an_example():
    assert {kind.partition("+")[0] for kind in EXAMPLES} == set(STEPS.names)


@every_step
def test_a_step_comes_back_from_its_mapping(kind):
    step = STEPS.make({"kind": kind, **EXAMPLES[kind]})
    assert STEPS.make(json.loads(json.dumps(step.model_dump(mode="json")))) == step


@every_step
def test_many_views_drawn_at_once_equal_each_drawn_alone(kind):
    recipe = recipe_of(kind)
    together = recipe.make_params(3, HASHES, np.arange(40) % 7)
    for i in range(40):
        assert same(together[[i]], recipe.make_params(3, HASHES[i], i % 7))
        assert same(together[i], together[i : i + 1])


@every_step
@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.integers(0, 39), max_size=20), count=st.integers(1, 5))
def test_a_view_does_not_depend_on_order_subset_or_repetition(kind, rows, count):
    recipe, numbers = recipe_of(kind), np.arange(40) % count
    assert same(recipe.make_params(3, HASHES, numbers)[rows], recipe.make_params(3, HASHES[rows], numbers[rows]))


@every_step
def test_views_beyond_one_chunk_equal_those_drawn_alone(kind):
    recipe, numbers = recipe_of(kind), np.arange(9000)
    assert same(recipe.make_params(0, HASHES[0], numbers)[8990:], recipe.make_params(0, HASHES[0], numbers[8990:]))


@every_step
def test_views_travel_between_processes(kind):
    params = recipe_of(kind).make_params(3, HASHES, 1)
    assert same(pickle.loads(pickle.dumps(params)), params)
    assert same(pickle.loads(pickle.dumps(params[4])), params[4:5])


@every_step
def test_key_seed_and_number_each_change_a_view(kind):
    recipe = recipe_of(kind)
    first = recipe.make_params(3, HASHES, 1)
    if recipe.steps[0].blocks:
        assert not same(first, recipe.make_params(3, HASHES[::-1], 1))
        assert not np.array_equal(first.by_step[0], recipe.make_params(3, HASHES, 2).by_step[0])
        assert not np.array_equal(first.by_step[0], recipe.make_params(4, HASHES, 1).by_step[0])


@every_step
def test_other_steps_do_not_change_what_a_step_draws(kind):
    recipe = recipe_of(kind)
    alone = recipe.make_params(3, HASHES, 1).by_step[0]
    before = [] if isinstance(recipe.steps[0], Crop) else ["random-resized-crop"]
    after = [] if isinstance(recipe.steps[0], Mix) else ["grayscale", "solarize"]
    among = (*before, *recipe.steps, *after)
    assert np.array_equal(RECIPES.make(among).make_params(3, HASHES, 1).by_step[len(before)], alone)


def test_the_same_step_twice_draws_twice():
    params = RECIPES.make(["horizontal-flip", "horizontal-flip"]).make_params(0, HASHES, 0)
    assert not np.array_equal(params.by_step[0], params.by_step[1])


def test_no_views_are_a_batch_too():
    recipe = RECIPES.make("crop-flip")
    params = recipe.make_params(0, HASHES[:0], 0)
    assert len(params) == 0
    assert recipe.render_batch(noise(0, 9, 9), params, ImageSpec(4)).shape == (0, 3, 4, 4)


@every_step
@pytest.mark.parametrize("height, width", [(8, 8), (32, 32), (19, 33)])
def test_a_batch_renders_the_same_bytes_as_each_image_alone(kind, height, width):
    recipe, images = recipe_of(kind), noise(24, height, width)
    params = recipe.make_params(5, HASHES[:24], np.arange(24))
    for spec in (ImageSpec(8), ImageSpec(32, "bicubic"), ImageSpec(20, "nearest", 40), ImageSpec(19, resize=19)):
        batch = recipe.render_batch(images.clone(), params, spec)
        assert batch.shape == (24, 3, spec.size, spec.size)
        assert batch.dtype == torch.uint8 and batch.is_contiguous()
        mixed = recipe.mix(batch, batch.flip(0), params)
        for i in range(24):
            alone = recipe.render(images[i], params[i], spec)
            assert torch.equal(batch[i], alone)
            assert torch.equal(mixed[i], recipe.mix(alone[None], batch.flip(0)[i : i + 1], params[i : i + 1])[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("height, width, size", [(8, 8, 8), (16, 11, 12), (32, 32, 32)])
def test_a_large_batch_of_crops_renders_the_same_bytes_as_each_image_alone(height, width, size, interpolation):
    recipe, images, spec = RECIPES.make("crop-flip"), noise(100, height, width), ImageSpec(size, interpolation)
    params = recipe.make_params(5, HASHES[0], np.arange(100))
    batch = recipe.render_batch(images, params, spec)
    for i in range(100):
        assert torch.equal(batch[i], recipe.render(images[i], params[i], spec))


@every_step
def test_rendering_leaves_the_images_as_they_were(kind):
    recipe, images = recipe_of(kind), noise(8, 16, 16)
    before = images.clone()
    pictures = recipe.render_batch(images, recipe.make_params(5, HASHES[:8], 0), ImageSpec(16))
    pictures.zero_()
    assert torch.equal(images, before)


@every_step
def test_memory_layout_and_threads_do_not_change_a_picture(kind):
    recipe, images = recipe_of(kind), noise(6, 70, 90)
    views, spec = recipe.make_params(5, HASHES[:6], 0), ImageSpec(48)
    expected = recipe.render_batch(images, views, spec)
    layouts = [
        images.contiguous(memory_format=torch.channels_last),
        torch.nn.functional.pad(images, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
    ]
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for layout in layouts:
                assert torch.equal(recipe.render_batch(layout, views, spec), expected)
    finally:
        torch.set_num_threads(before)


@every_step
def test_the_first_views_are_the_golden_ones(kind):
    assert first_views(kind) == json.loads(GOLDEN.read_text())[kind]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_draw_and_render_the_same(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(first_views, sorted(EXAMPLES)) == [first_views(kind) for kind in sorted(EXAMPLES)]


def plain(params):
    """The parameters of a step as JSON values; those of a step within a step by name, too."""
    if params.dtype.names is None:
        return params.tolist() if params.dtype.itemsize else {}
    return {name: plain(params[name]) for name in params.dtype.names}


def first_views(kind):
    """The draws, source boxes and image digests of the first two views of two images, as JSON holds them."""
    recipe = recipe_of(kind)
    params = recipe.make_params(7, HASHES[[0, 0, 1, 1]], [0, 1, 0, 1])
    images = noise(1, 30, 40).expand(4, 3, 30, 40)
    pictures = recipe.render_batch(images, params, ImageSpec(24))
    mixed = recipe.mix(pictures, noise(4, 24, 24), params)
    return {
        "step": recipe.steps[0].model_dump(mode="json"),
        "draws": plain(params.by_step[0]),
        "boxes": recipe.boxes(params, 375, 500).tolist(),
        "partners": recipe.partners(params, 1000).tolist(),
        "pictures": [hashlib.sha256(picture.numpy().tobytes()).hexdigest()[:16] for picture in mixed],
    }


if __name__ == "__main__":
    held = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    held |= {kind: first_views(kind) for kind in sorted(EXAMPLES) if kind not in held}
    lines = (f"{json.dumps(kind)}: {json.dumps(held[kind])}" for kind in sorted(held))
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
