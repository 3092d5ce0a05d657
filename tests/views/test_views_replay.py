"""Whole recipes: rendered as torchvision's kernels one after the other, replayed by anybody, and golden.

``python tests/views/test_views_replay.py`` writes the golden values of recipes that have none; it changes no others.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

import softlabels
from softlabels.core.philox import hash_keys
from softlabels.views import RECIPES, ImageSpec
from softlabels.views._auto_augment import NAMES, OPERATIONS, Style

KEYS = [f"train/{i:05d}.png" for i in range(24)]
HASHES = hash_keys(KEYS)
SIZE = 40


def image(seed: int = 3) -> torch.Tensor:
    """Smooth noise from numpy's raw Philox words, uint8 (3, 70, 90)."""
    words = np.random.Philox(key=seed).random_raw(3 * 70 * 90)
    grain = torch.from_numpy((words >> np.uint64(56)).astype(np.uint8)).view(3, 70, 90)
    return functional.gaussian_blur(grain, [5, 5])


def by_torchvision(recipe, view, box) -> torch.Tensor:
    """The view that torchvision's own kernels make of what was drawn, step after step."""
    made = functional.resized_crop(image(), *box, [SIZE, SIZE], antialias=True)
    for step, params in zip(recipe.steps[1:], view.by_step[1:], strict=True):
        drawn = params[0]
        if step.kind == "horizontal-flip":
            made = functional.horizontal_flip(made) if drawn["flip"] else made
        elif step.kind == "vertical-flip":
            made = functional.vertical_flip(made) if drawn["flip"] else made
        elif step.kind == "colour-jitter":
            kernels = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
            for which in drawn["order"] if drawn["chosen"] else ():
                made = kernels[which](made, float(drawn["factors"][which])) if which < 3 else made
        elif step.kind == "grayscale":
            made = functional.rgb_to_grayscale(made, 3) if drawn["chosen"] else made
        elif step.kind == "solarize":
            made = functional.solarize(made, step.threshold) if drawn["chosen"] else made
        elif step.kind in ("randaugment", "trivialaugment", "autoaugment"):
            for operation, strength in zip(drawn["operation"], drawn["strength"], strict=True):
                style = Style(step.interpolation, step.fill)
                made = OPERATIONS[NAMES[operation]](made[None], strength=float(strength), style=style)[0]
        elif step.kind == "random-erasing":
            top, left, height, width = step.rectangles(params, SIZE)[0].tolist()
            colour = torch.tensor(step.fill, dtype=torch.uint8)[:, None, None]
            made = functional.erase(made, top, left, height, width, colour) if height else made
        else:
            raise AssertionError(step.kind)
    return made


@pytest.mark.parametrize(
    "name",
    [
        "crop-flip",
        "crop-flip-vflip",
        "crop-flip-jitter-grayscale-solarize-erase",
        "crop-flip-randaugment-erase",
        "crop-flip-trivialaugment",
        "crop-flip-autoaugment-jitter",
        "crop-cifaraugment-flip",
    ],
)
def test_a_recipe_is_torchvisions_kernels_one_after_the_other(name):
    recipe = RECIPES.make(name)
    params = recipe.make_params(2, HASHES, np.arange(24) % 5)
    boxes = recipe.boxes(params, 70, 90).tolist()
    batch = recipe.render_batch(image().expand(24, 3, 70, 90), params, ImageSpec(SIZE))
    for i, (view, box) in enumerate(zip(params, boxes, strict=True)):
        assert torch.equal(batch[i], by_torchvision(recipe, view, box)), (name, i)


def test_the_second_of_two_equal_steps_draws_what_it_always_drew():
    """A golden value: a step's stream is of its kind and of how often that came before."""
    params = RECIPES.make(["horizontal-flip", "colour-jitter", "horizontal-flip"]).make_params(7, HASHES, 1)
    assert "".join("01"[int(flip)] for flip in params.by_step[0]["flip"]) == GOLDEN_FLIPS[0]
    assert "".join("01"[int(flip)] for flip in params.by_step[2]["flip"]) == GOLDEN_FLIPS[1]


def test_the_draws_of_the_usual_recipes_are_the_golden_ones():
    """Draws are whole numbers and doubles of our own arithmetic, so their bytes are the same on every machine."""
    assert {name: digest_of_draws(name) for name in RECIPES.names} == json.loads(GOLDEN.read_text())


def digest_of_draws(name):
    """SHA-256 of all that is drawn for the first views of some images."""
    params = RECIPES.make(name).make_params(1, HASHES, np.arange(24) % 3)
    fields = [each[field] for each in params.by_step for field in each.dtype.names or ()]
    return hashlib.sha256(b"".join(np.ascontiguousarray(field).tobytes() for field in fields)).hexdigest()[:16]


GOLDEN = Path(__file__).parents[1] / "golden" / "recipes.json"
GOLDEN_FLIPS = ("111110101111001011100110", "110110011010010110000111")


@pytest.mark.parametrize("recipe", ["crop-flip-randaugment", "crop-flip-mix"])
def test_a_store_holds_the_same_pictures_whoever_made_it(
    photos: Path, softlabels_command: Callable, recipe: str
) -> None:
    """Digests are of rendered pictures: of any workers, batch sizes, parts and processes, down to the last bit."""
    ways = {
        "alone": ("--workers", 0, "--batch-size", 64),
        "processes": ("--workers", 2, "--batch-size", 7),
        "threads": ("--workers", "threads:3", "--batch-size", 5),
    }
    command = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--views", 3)
    command += ("--recipe", recipe, "--rows-per-shard", 4, "--codec", "dense:fp32")
    for out, way in ways.items():
        assert softlabels_command(*command, *way, "--out", out).exit_code == 0
    for part in ("1/2", "0/2"):
        assert softlabels_command(*command, "--workers", 0, "--part", part, "--out", "parts").exit_code == 0
    digests = [list(softlabels.open_labels(out).of().digests()) for out in (*ways, "parts")]
    assert len(digests[0]) == 18 * 3
    assert digests[0] == digests[1] == digests[2] == digests[3]


if __name__ == "__main__":
    held = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    held |= {name: digest_of_draws(name) for name in RECIPES.names if name not in held}
    GOLDEN.write_text(json.dumps(held, indent=1) + "\n")
