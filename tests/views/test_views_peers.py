"""Augmentations that other projects use: timm's RandAugment, a choice among steps, erasing with noise."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment as theirs
from timm.data.random_erasing import RandomErasing
from worlds import picture

from softlabels.core.philox import hash_keys
from softlabels.errors import ConfigError
from softlabels.views import RECIPES, ImageSpec
from softlabels.views._auto_augment import Style
from softlabels.views._erase import noise_levels, normal_cdf
from softlabels.views._timm_augment import TIMM_NAMES, TIMM_OPERATIONS

LEAST = 1e-4
"""The smallest p-value that passes; every draw is fixed, so a test passes always or never."""

HASHES = hash_keys(f"train/{i:05d}.png" for i in range(4000))

THEIR_NAMES = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Rotate": "rotate",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "SolarizeAdd": "solarize-add",
    "Color": "colour",
    "Contrast": "contrast",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "ShearX": "shear-x",
    "ShearY": "shear-y",
    "TranslateXRel": "translate-x",
    "TranslateYRel": "translate-y",
}


# ---- timm's RandAugment


def their_draws(text, views):
    """What timm's RandAugment does to `views` images: operation and argument of each call."""
    transform, drawn = theirs.rand_augment_transform(text), []
    for operation in transform.ops:
        name = THEIR_NAMES[operation.name.removesuffix("Increasing")]

        def note(image, *args, _name=name, **_others):
            drawn.append((_name, float(args[0]) if args else 0.0))
            return image

        operation.aug_fn = note
    theirs.random.seed(0)
    np.random.seed(0)
    for _ in range(views):
        transform(None)
    return drawn


def our_draws(text, views):
    params = RECIPES.make([f"timm-randaugment:{text}"]).make_params(5, HASHES[0], np.arange(views)).by_step[0]
    operations, strengths = params["operation"].reshape(-1), params["strength"].reshape(-1)
    return [(TIMM_NAMES[o], float(s)) for o, s in zip(operations, strengths, strict=True) if o]


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m7-n3-mstd1.5", "rand-m6-p0.9-mstd101-inc1-mmax5"])
def test_operations_and_strengths_are_those_that_timm_draws(text):
    ours, other = our_draws(text, 6000), their_draws(text, 6000)
    counts = [Counter(name for name, _ in each) for each in (ours, other)]
    table = np.array([[each[name] for name in TIMM_NAMES[1:]] for each in counts])
    assert stats.chi2_contingency(table).pvalue > LEAST
    assert abs(len(ours) - len(other)) < 5 * np.sqrt(2 * len(other))
    for name in TIMM_NAMES[1:]:
        mine, their = ([strength for each, strength in draws if each == name] for draws in (ours, other))
        assert stats.ks_2samp(mine, their).pvalue > LEAST, name


def test_timms_text_gives_its_settings():
    step = RECIPES.make(["timm-randaugment:rand-m9-mstd0.5-inc1"]).steps[0]
    assert step == RECIPES.make(["timm-randaugment"]).steps[0]
    assert (step.n, step.m, step.mstd, step.mmax, step.increasing, step.probability) == (2, 9, 0.5, 10, True, 0.5)
    bare = RECIPES.make(["timm-randaugment:rand"]).steps[0]
    assert (bare.m, bare.mstd, bare.increasing) == (10, 0, False)  # as timm takes it
    assert RECIPES.make([{"kind": "timm-randaugment", "text": "rand-m5", "n": 4}]).steps[0].n == 4


@pytest.mark.parametrize("text", ["rand-m9-w0", "augmix-m3", "rand-t3a", "m9", "rand-m9-mstd0.5-inc1-"])
def test_another_text_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="no text of timm's RandAugment; write rand") as caught:
        RECIPES.make([f"timm-randaugment:{text}"])
    assert "\n" not in str(caught.value) and text in str(caught.value)


def pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


STRENGTHS = {
    "rotate": (-27.0, 13.5),
    "posterize": (1, 3),
    "solarize": (0, 25, 256),
    "solarize-add": (0, 99),
    **dict.fromkeys(("colour", "contrast", "brightness", "sharpness"), (0.1, 0.55, 1.9)),
    **dict.fromkeys(("shear-x", "shear-y"), (-0.27, 0.3)),
    **dict.fromkeys(("translate-x", "translate-y"), (-0.31, 0.405)),
}
MOVES = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")


@pytest.mark.parametrize("name", TIMM_NAMES[1:])
def test_an_operation_makes_what_timms_makes_with_pillow(name):
    image = picture(3, 64, 64)
    call = theirs.NAME_TO_OP[next(key for key, value in THEIR_NAMES.items() if value == name)]
    for strength in STRENGTHS.get(name, (0.0,)):
        made = TIMM_OPERATIONS[name](image[None], strength, Style("bilinear", (124, 116, 104)))[0]
        args = [] if name not in STRENGTHS else [strength if name in MOVES or strength % 1 else int(strength)]
        other = call(pil(image), *args, fillcolor=(124, 116, 104), resample=Image.Resampling.BILINEAR)
        wanted = torch.from_numpy(np.array(other)).permute(2, 0, 1)
        off = (made.int() - wanted.int()).abs().amax(0)
        if name in MOVES:
            # At the edge of what was moved in, torchvision blends with the fill where Pillow takes one or the other.
            assert (off > 2).float().mean() < 0.05, (name, strength)
            inner = call(pil(torch.full_like(image, 255)), *args, fillcolor=0, resample=Image.Resampling.BILINEAR)
            seen = torch.from_numpy(np.array(inner)[..., 0] == 255).float()
            off = off[torch.nn.functional.avg_pool2d(seen[None], 5, 1, 2, count_include_pad=False)[0] == 1]
            assert len(off) > 500
        assert off.max() <= 2, (name, strength)


# ---- a choice among steps


CHOICE = {"kind": "choice", "steps": ["grayscale:1", "solarize:1", "gaussian-blur:1"]}


def test_each_step_is_equally_likely_or_as_its_weight():
    drawn = RECIPES.make([CHOICE]).make_params(0, HASHES, 0).by_step[0]["chosen"]
    assert stats.chisquare(np.bincount(drawn)).pvalue > LEAST and len(np.bincount(drawn)) == 3
    weighted = RECIPES.make([{**CHOICE, "weights": [6, 3, 0], "probability": 0.6}])
    drawn = weighted.make_params(0, HASHES, 0).by_step[0]["chosen"]
    counts = np.bincount(drawn + 1, minlength=4)
    assert counts[3] == 0 and stats.chisquare(counts[:3], 4000 * np.array([0.4, 0.4, 0.2])).pvalue > LEAST


def test_a_view_is_changed_by_the_step_that_was_drawn_for_it_alone():
    recipe, images = RECIPES.make([CHOICE]), torch.stack([picture(seed, 32, 32) for seed in range(24)])
    params, spec = recipe.make_params(1, HASHES[:24], 0), ImageSpec(32)
    made, drawn = recipe.render_batch(images, params, spec), params.by_step[0]
    assert set(drawn["chosen"].tolist()) == {0, 1, 2}
    for row, which in enumerate(drawn["chosen"].tolist()):
        step = recipe.steps[0].steps[which]
        alone = step.apply(images[row : row + 1].clone(), drawn[f"step_{which}"][row : row + 1])
        assert torch.equal(made[row], alone[0])


def test_a_choice_of_one_step_with_a_probability_is_made_as_often():
    recipe = RECIPES.make([{"kind": "choice", "steps": [{"kind": "colour-jitter"}], "probability": 0.3}])
    drawn = recipe.make_params(0, HASHES, 0).by_step[0]["chosen"]
    assert stats.binomtest(int((drawn == 0).sum()), 4000, 0.3).pvalue > LEAST


def test_a_choice_can_be_written_as_text_and_within_a_choice():
    assert RECIPES.make(["choice:grayscale:1|solarize:1|gaussian-blur:1"]) == RECIPES.make([CHOICE])
    inner = RECIPES.make([{"kind": "choice", "steps": [CHOICE, "random-erasing"]}])
    assert RECIPES.make(inner.model_dump(mode="json")) == inner
    assert "grayscale (probability 1)" in RECIPES.spelled(inner)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": ["random-resized-crop"]}, "'random-resized-crop' cannot be chosen"),
        ({"steps": ["mixup"]}, "'mixup' cannot be chosen"),
        ({"steps": ["grayscael"]}, "grayscale"),
        ({"steps": []}, "steps"),
        ({"steps": ["grayscale"], "weights": [1, 2]}, "1 numbers, one for each step"),
        ({"steps": ["grayscale"], "weights": [0]}, "not all 0"),
        ({}, "needs steps"),
    ],
)
def test_a_wrong_choice_is_one_line(settings, says):
    with pytest.raises(ConfigError, match=says) as caught:
        RECIPES.make([{"kind": "choice", **settings}])
    assert "\n" not in str(caught.value)


# ---- erasing with noise


def test_noise_is_normal_once_it_is_normalised_as_timms_is():
    ours = noise_levels(np.uint64(12345), 96, 96).astype(np.float64) / 255
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    torch.manual_seed(0)
    image = torch.full((3, 96, 96), 9.0)
    RandomErasing(1.0, 0.5, 0.6, 0.9, mode="pixel", device="cpu")(image)
    for channel in range(3):
        drawn = image[channel][image[channel] != 9].double().numpy()
        level = np.clip(np.rint(255 * (mean[channel] + deviation[channel] * drawn)), 0, 255) / 255
        assert stats.ks_2samp(ours[..., channel].reshape(-1), level).pvalue > LEAST
    neighbours = np.corrcoef(ours[:, :-1, 0].reshape(-1), ours[:, 1:, 0].reshape(-1))[0, 1]
    assert abs(neighbours) < 5 / 96


def test_the_normal_distribution_is_scipys():
    x = np.linspace(-3, 3, 1001)
    assert np.abs(normal_cdf(x) - stats.norm.cdf(x)).max() < 1e-12


def test_noise_fills_the_rectangle_and_nothing_else():
    recipe = RECIPES.make([{"kind": "random-erasing", "probability": 1, "fill": "noise"}])
    plain = RECIPES.make([{"kind": "random-erasing", "probability": 1, "fill": 0}])
    images, spec = torch.full((8, 3, 48, 48), 255, dtype=torch.uint8), ImageSpec(48)
    params = recipe.make_params(2, HASHES[:8], 0)
    noisy = recipe.render_batch(images, params, spec)
    black = plain.render_batch(images, plain.make_params(2, HASHES[:8], 0), spec)  # the rectangles are the same
    for row in range(8):
        outside = (black[row] == 255).all(0)
        assert (noisy[row][:, outside] == 255).all() and 0 < outside.float().mean() < 1
        assert noisy[row][:, ~outside].float().std() > 30
        assert torch.equal(noisy[row], recipe.render(images[row], params[row], spec))
    others = recipe.render_batch(images, recipe.make_params(2, HASHES[:8], 1), spec)
    assert not torch.equal(noisy, others)


# ---- recipes of these projects


@pytest.mark.parametrize("name", ["fkd", "tinyvit", "dataset-reinforcement", "dataset-reinforcement-mix", "deit3"])
def test_a_recipe_of_a_project_draws_and_renders(name):
    image = picture(5, 70, 60)
    for each, size in ((name, 56), (f"{name}-32", 32)):
        recipe = RECIPES.make(each)
        assert each in RECIPES.names and RECIPES.spelled(recipe) in (each, "crop-flip", "pad-flip")
        params = recipe.make_params(0, HASHES[:6], np.arange(6))
        batch = recipe.render_batch(image.expand(6, *image.shape), params, ImageSpec(size))
        for row in range(6):
            assert torch.equal(batch[row], recipe.render(image, params[row], ImageSpec(size)))
        assert RECIPES.make(recipe.model_dump(mode="json")) == recipe
