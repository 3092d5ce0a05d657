"""Recipes that crop: their images are made of boxes alone, wherever the rest of the image is."""

import numpy as np
import pytest
import torch

from softlabels.core.philox import hash_keys
from softlabels.errors import DataError
from softlabels.views import RECIPES, ImageSpec, blank

HASHES = hash_keys(map(str, range(40)))
SIZES = np.array([(8, 8), (375, 500), (1, 300), (300, 1), (97, 31), (2, 2), (40, 41), (64, 20)])


def image(height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8))


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_boxes_of_many_images_are_those_of_each_alone(scale):
    recipe = RECIPES.make([{"kind": "random-resized-crop", "scale": scale}, "horizontal-flip"])
    views, sizes = recipe.make_params(3, HASHES, np.arange(40)), np.tile(SIZES, (5, 1))
    together = recipe.boxes(views, sizes[:, 0], sizes[:, 1])
    alone = [recipe.boxes(views[[i]], *sizes[i].tolist())[0] for i in range(40)]
    assert np.array_equal(together, alone)
    assert (together[:, :2] >= 0).all()
    assert (together[:, 2:] >= 1).all()
    assert (together[:, :2] + together[:, 2:] <= sizes).all()


@pytest.mark.parametrize("name", ["crop", "crop-flip", "crop-flip-randaugment-erase", "crop-flip-jitter-blur"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("views_each", [1, 3, 7])
def test_a_part_that_holds_the_boxes_shows_what_the_whole_shows(name, together, views_each):
    recipe, whole, spec = RECIPES.make(name), image(61, 83), ImageSpec(24)
    if together:
        whole = whole[None].contiguous(memory_format=torch.channels_last)[0]
    for key in HASHES[:12]:
        params = recipe.make_params(0, np.repeat(key, views_each), np.arange(views_each))
        expected = recipe.render_batch(whole.expand(views_each, *whole.shape), params, spec)
        boxes = recipe.boxes(params, 61, 83)
        top, left = boxes[:, :2].min(axis=0)
        bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
        part, inside = whole[:, top:bottom, left:right], boxes - [top, left, 0, 0]
        out = blank(views_each, 24).fill_(77)
        assert recipe.render_boxes(part, inside, params, spec, out) is out
        assert torch.equal(out, expected)
        assert torch.equal(recipe.render_boxes(part, inside, params, spec), expected)


@pytest.mark.parametrize("name", ["pad-flip", "clean", "flip"])
def test_recipes_that_read_more_than_boxes_say_so(name):
    recipe = RECIPES.make(name)
    assert not recipe.crops
    params = recipe.make_params(0, HASHES[:1], 0)
    with pytest.raises(DataError, match="render_batch"):
        recipe.render_boxes(image(9, 9), np.array([[0, 0, 9, 9]]), params, ImageSpec(8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (8, 8, 12), (9, 21, 16), (1, 5, 4)])
def test_many_small_images_at_once_show_what_each_shows_alone(interpolation, height, width, size):
    recipe, n = RECIPES.make("crop-flip"), 80
    some = torch.stack([image(height, width, seed) for seed in range(n)])
    params = recipe.make_params(1, np.repeat(HASHES[:20], 4), np.arange(n))
    spec = ImageSpec(size, interpolation)
    expected = torch.stack([recipe.render(one, view, spec) for one, view in zip(some, params, strict=True)])
    for given in (some, some.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(recipe.render_batch(given, params, spec), expected)
