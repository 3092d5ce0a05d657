"""What a recipe can be made of, and what is refused with a helping line."""

import json
import pickle

import numpy as np
import pytest
import torch
import yaml

from softlabels.errors import ConfigError, DataError, SoftlabelsError
from softlabels.views import RECIPES, STEPS, ImageSpec, Recipe
from softlabels.views._flips import HorizontalFlip

KEYS = np.arange(6, dtype=np.uint64)


@pytest.mark.parametrize("name", RECIPES.names)
def test_a_recipe_comes_back_from_its_mapping_from_json_and_from_yaml(name):
    recipe = RECIPES.make(name)
    for mapping in (recipe.model_dump(), recipe.model_dump(mode="json")):
        assert RECIPES.make(mapping) == recipe
        assert RECIPES.make(json.loads(json.dumps(mapping))) == recipe
        assert RECIPES.make(yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(mapping))))) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert RECIPES.make(recipe) is recipe


def test_steps_compose_from_a_list():
    recipe = RECIPES.make(["pad-and-crop:2", {"kind": "horizontal-flip", "probability": 0.25}])
    assert recipe == RECIPES.make({"steps": [STEPS.make("pad-and-crop:2"), HorizontalFlip(probability=0.25)]})
    assert recipe != RECIPES.make("pad-flip")


def test_short_names_are_words_in_any_sensible_order():
    recipe = RECIPES.make("pad-flip-grayscale-blur-solarize-randaugment-erase-mix")
    assert recipe == RECIPES.make(
        [
            "pad-and-crop",
            "horizontal-flip",
            "grayscale",
            "gaussian-blur",
            "solarize",
            {"kind": "randaugment", "n": 2, "m": 9},
            "random-erasing",
            "mixup-or-cutmix",
        ]
    )
    assert RECIPES.make("crop-cifaraugment").steps[1] == STEPS.make({"kind": "autoaugment", "policy": "cifar10"})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("crop-flpi", "crop-flip"),
        (["horizontal-flop"], "horizontal-flip"),
        ([{"kind": "random-resized-crop", "scal": [0.5, 1]}], "scale"),
        ([{"kind": "random-resized-crop", "scale": [0.5, 2]}], "scale"),
        ([{"kind": "random-resized-crop", "ratio": [2, 1]}], "ratio"),
        (["horizontal-flip:2"], "probability"),
        (["pad-and-crop:1.5"], "padding"),
        ([{"kind": "pad-and-crop", "fill": 256}], "fill"),
        ("crop-flip-randaugmet", "crop-flip-randaugment"),
        ("horizontal-flip", "give 'flip', or a list of steps"),
        ("timm-randaugment:rand-m9-mstd0.5-inc1", r"recipe: \[timm-randaugment:rand-m9-mstd0.5-inc1\]"),
        (["horizontal-flip", "random-resized-crop"], "only the first step"),
        (["random-resized-crop", "pad-and-crop"], "only the first step"),
        (["mixup", "horizontal-flip"], "only the last step"),
        (["mixup", "cutmix"], "only the last step"),
        (["randaugment:31"], "0 to 30"),
        (["autoaugment:svhn"], "policy"),
        ([{"kind": "gaussian-blur", "sigma": [2, 1]}], "sigma"),
        (["mixup:0"], "alpha"),
        ({"steps": [], "verion": 1}, "version"),
        ({"steps": [], "version": 9}, "version"),
        ({"kind": "crop-flip"}, "list of steps"),
        (None, "list of steps"),
        ([3], "step"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_what_is_wrong(value, says):
    with pytest.raises(ConfigError, match=says) as caught:
        RECIPES.make(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 224, "resize": 200}, {"size": 32, "interpolation": "lanczos"}])
def test_a_frame_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        ImageSpec(**wrong)


def test_a_frame_without_resize_follows_the_usual_rule():
    assert [ImageSpec(size).shorter_side for size in (8, 32, 224, 384)] == [8, 32, 256, 439]
    assert ImageSpec(224, resize=232).shorter_side == 232


@pytest.mark.parametrize(("seed", "numbers"), [(-1, [0]), (1 << 64, [0]), (0, [-1])])
def test_a_seed_or_number_out_of_range_is_refused(seed, numbers):
    with pytest.raises(ConfigError):
        RECIPES.make("crop").make_params(seed, [1], numbers)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(6, 3, 8, 8), torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, 3, 8, 8, dtype=torch.uint8)],
)
def test_images_that_are_not_uint8_pictures_one_for_each_view_are_refused(images):
    recipe = RECIPES.make("pad-flip")
    with pytest.raises(DataError):
        recipe.render_batch(images, recipe.make_params(0, KEYS, 0), ImageSpec(8))


def test_something_that_is_no_step_is_refused():
    with pytest.raises(SoftlabelsError, match="is no step"):
        Recipe(steps=("horizontal-flip",))


def test_an_image_too_small_to_be_reflected_is_refused():
    recipe = RECIPES.make([{"kind": "pad-and-crop", "padding": 8, "fill": "reflect"}])
    with pytest.raises(DataError, match="less padding"):
        recipe.render_batch(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), recipe.make_params(0, KEYS, 0), ImageSpec(8))
