"""What is drawn, against torchvision's own samplers. Seeds are fixed, so each p-value is always the same."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from softlabels.core.philox import hash_keys
from softlabels.views import RECIPES
from softlabels.views._auto_augment import NAMES

HASHES = hash_keys(map(str, range(4000)))
LEAST = 1e-3


def alike(ours, theirs):
    return stats.ks_2samp(ours, theirs).pvalue > LEAST


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (224, 224, (0.9, 1.0), (0.5, 2.0)),
        (100, 400, (0.6, 1.0), (3 / 4, 4 / 3)),  # nearly always the fallback
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (8, 8, (0.3, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_random_resized_crop_draws_boxes_as_torchvision_does(height, width, scale, ratio):
    recipe = RECIPES.make([{"kind": "random-resized-crop", "scale": scale, "ratio": ratio}])
    ours = recipe.boxes(recipe.make_params(11, HASHES, 0), height, width)
    torch.manual_seed(0)
    like, sampler = torch.empty(3, height, width), v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    sampled = [sampler.make_params([like]) for _ in range(len(HASHES))]
    theirs = np.array([[box["top"], box["left"], box["height"], box["width"]] for box in sampled])
    for box in (ours, theirs):
        assert (box[:, :2] >= 0).all() and (box[:, 2:] > 0).all() and (box[:, :2] + box[:, 2:] <= [height, width]).all()
    for measure in (
        lambda box: box[:, 2] * box[:, 3] / (height * width),
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert alike(measure(ours), measure(theirs))


def test_area_is_even_and_ratio_log_even_where_no_attempt_fails():
    recipe = RECIPES.make([{"kind": "random-resized-crop", "scale": (0.1, 0.5)}])
    drawn = recipe.make_params(0, HASHES, 0).by_step[0]
    area, ratio = drawn["tall"] * drawn["wide"], drawn["wide"] / drawn["tall"]
    assert stats.kstest(area.ravel(), stats.uniform(0.1, 0.4).cdf).pvalue > LEAST
    logs = stats.uniform(math.log(3 / 4), math.log(16 / 9))
    assert stats.kstest(np.log(ratio).ravel(), logs.cdf).pvalue > LEAST


def test_a_box_too_wide_for_every_ratio_is_the_centred_fallback():
    recipe = RECIPES.make([{"kind": "random-resized-crop", "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}])
    params = recipe.make_params(0, HASHES[:5], 0)
    assert recipe.boxes(params, 100, 301).tolist() == [[0, 100, 100, 100]] * 5
    assert recipe.boxes(params, 301, 100).tolist() == [[100, 0, 100, 100]] * 5


@pytest.mark.parametrize("kind", ["horizontal-flip", "vertical-flip"])
@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flips_come_at_their_rate(kind, probability):
    flip = RECIPES.make([{"kind": kind, "probability": probability}]).make_params(0, HASHES, 0).by_step[0]["flip"]
    assert stats.binomtest(int(flip.sum()), len(flip), probability).pvalue > LEAST


@pytest.mark.parametrize(("side", "padding", "pixels"), [(32, 0.125, 4), (8, 0.125, 1), (32, 4, 4), (8, 0.3, 2)])
def test_every_offset_of_a_padded_window_is_equally_likely(side, padding, pixels):
    recipe = RECIPES.make([{"kind": "pad-and-crop", "padding": padding}])
    box = recipe.boxes(recipe.make_params(2, HASHES, 0), side, side)
    assert (box[:, 2:] == side).all()
    for axis in (0, 1):
        counts = np.bincount(box[:, axis] + pixels, minlength=2 * pixels + 1)
        assert len(counts) == 2 * pixels + 1
        assert stats.chisquare(counts).pvalue > LEAST


def test_views_of_one_image_and_images_of_one_view_are_independent():
    flip = RECIPES.make("crop-flip")
    by_view = flip.make_params(0, HASHES[0], np.arange(4000)).by_step[1]["flip"]
    assert stats.binomtest(int((by_view[1:] ^ by_view[:-1]).sum()), 3999, 0.5).pvalue > LEAST
    place = flip.make_params(0, HASHES, 0).by_step[0]["place"]
    assert abs(np.corrcoef(place[:, 0], place[:, 1])[0, 1]) < 0.05


@pytest.mark.parametrize("setting", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_factors_are_torchvisions(setting):
    bounds = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.2, "hue": 0.3}
    which = list(bounds).index(setting)
    ours = RECIPES.make([{"kind": "colour-jitter", **bounds}]).make_params(0, HASHES, 0).by_step[0]
    torch.manual_seed(0)
    sampler = v2.ColorJitter(**bounds)
    theirs = [sampler.make_params([])[f"{setting}_factor"] for _ in range(2000)]
    assert alike(ours["factors"][:, which], theirs)


def test_jitter_takes_every_order_equally_often():
    order = RECIPES.make(["colour-jitter"]).make_params(0, HASHES, 0).by_step[0]["order"]
    counts = np.unique(order, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LEAST


@pytest.mark.parametrize("kind", ["grayscale", "solarize", "gaussian-blur", "colour-jitter", "random-erasing"])
def test_steps_come_at_their_probability(kind):
    chosen = RECIPES.make([{"kind": kind, "probability": 0.3}]).make_params(0, HASHES, 0).by_step[0]["chosen"]
    assert stats.binomtest(int(chosen.sum()), len(chosen), 0.3).pvalue > LEAST


def test_blur_is_evenly_strong():
    sigma = (
        RECIPES.make([{"kind": "gaussian-blur", "sigma": (0.5, 3)}]).make_params(0, HASHES, 0).by_step[0]["sigma"] * 224
    )
    assert stats.kstest(sigma, stats.uniform(0.5, 2.5).cdf).pvalue > LEAST


@pytest.mark.parametrize(("size", "scale"), [(224, (0.02, 0.33)), (32, (0.02, 0.33)), (32, (0.5, 0.9))])
def test_erased_rectangles_are_torchvisions(size, scale):
    recipe = RECIPES.make([{"kind": "random-erasing", "probability": 1, "scale": scale}])
    ours = recipe.steps[0].rectangles(recipe.make_params(0, HASHES, 0).by_step[0], size)
    torch.manual_seed(0)
    like, sampler = torch.empty(3, size, size), v2.RandomErasing(1, scale=scale)
    sampled = [sampler.make_params([like]) for _ in range(len(HASHES))]
    theirs = np.array(
        [[box["i"], box["j"], box["h"], box["w"]] if box["v"] is not None else [0] * 4 for box in sampled]
    )
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    for side in range(4):
        assert alike(ours[:, side], theirs[:, side])


def recorded(transform, monkeypatch, repeats, height=224, width=224):
    """What a torchvision augmentation does, as (operation, magnitude) for every call, by its own sampler."""
    calls = []

    def record(_self, image, name, magnitude, **_others):
        calls.append((name, magnitude))
        return image

    monkeypatch.setattr(type(transform), "_apply_image_or_video_transform", record)
    torch.manual_seed(1)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    per_view = []
    for _ in range(repeats):
        calls.clear()
        transform(image)
        per_view.append(tuple(calls))
    return per_view


THEIR_NAMES = dict(
    zip(
        NAMES,
        [
            *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
            *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
        ],
        strict=True,
    )
)


def ours_in_their_words(recipe, size, views):
    drawn = recipe.make_params(5, HASHES[0], np.arange(views)).by_step[0]
    made = []
    for operations, strengths in zip(drawn["operation"], drawn["strength"], strict=True):
        named = [
            (NAMES[o], s * size if "translate" in NAMES[o] else s) for o, s in zip(operations, strengths, strict=True)
        ]
        made.append(tuple((THEIR_NAMES[name], strength) for name, strength in named))
    return made


def counted(per_view):
    return Counter((name, round(float(magnitude), 3)) for pairs in per_view for name, magnitude in pairs)


def same_frequencies(ours, theirs):
    """A chi-squared test of two counts over the same outcomes."""
    assert set(ours) == set(theirs)
    table = np.array([[ours[key] for key in sorted(ours)], [theirs[key] for key in sorted(ours)]])
    return stats.chi2_contingency(table).pvalue > LEAST


@pytest.mark.parametrize("side", [32, 224])
def test_trivialaugment_draws_torchvisions_operations_and_magnitudes(monkeypatch, side):
    recipe = RECIPES.make([{"kind": "trivialaugment", "bins": 7, "side": side}])
    theirs = recorded(v2.TrivialAugmentWide(num_magnitude_bins=7), monkeypatch, 8000, side, side)
    assert same_frequencies(counted(ours_in_their_words(recipe, side, 8000)), counted(theirs))


@pytest.mark.parametrize(("n", "m", "size"), [(2, 9, 224), (3, 25, 331)])
def test_randaugment_draws_torchvisions_operations_and_magnitudes(monkeypatch, n, m, size):
    recipe = RECIPES.make([{"kind": "randaugment", "n": n, "m": m}])
    theirs = recorded(v2.RandAugment(n, m), monkeypatch, 3000, size, size)
    assert same_frequencies(counted(ours_in_their_words(recipe, size, 3000)), counted(theirs))


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_autoaugment_draws_torchvisions_pairs(monkeypatch, policy):
    recipe = RECIPES.make([f"autoaugment:{policy}"])
    theirs = recorded(v2.AutoAugment(v2.AutoAugmentPolicy(policy)), monkeypatch, 20000)
    ours = [tuple(pair for pair in pairs if pair[0] != "Identity") for pairs in ours_in_their_words(recipe, 224, 20000)]
    as_lines = [
        Counter(str([(name, round(float(magnitude), 3)) for name, magnitude in pairs]) for pairs in per_view)
        for per_view in (ours, theirs)
    ]
    often = {line for counts in as_lines for line, count in counts.items() if count > 25}
    ours, theirs = ({line: counts[line] for line in often} for counts in as_lines)
    assert sum(ours.values()) > 18000
    assert same_frequencies(ours, theirs)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_beta_distributed(kind, alpha):
    share = RECIPES.make([{"kind": kind, "alpha": alpha}]).make_params(0, HASHES, 0).by_step[0]["share"]
    torch.manual_seed(0)
    theirs = torch.distributions.Beta(torch.tensor(alpha).double(), torch.tensor(alpha).double()).sample((4000,))
    assert alike(share, np.rint(theirs.numpy() * 65536) / 65536)


def test_cutmix_boxes_and_shares_are_torchvisions():
    size, recipe = 32, RECIPES.make(["cutmix"])
    params = recipe.make_params(0, HASHES, 0)
    like, sampler = torch.empty(1, 3, size, size), v2.CutMix(num_classes=2)
    torch.manual_seed(0)
    sampled = [sampler.make_params([like]) for _ in range(len(HASHES))]
    assert alike(recipe.shares(params, size), [each["lam_adjusted"] for each in sampled])
    blank, full = (
        torch.zeros(4000, 3, size, size, dtype=torch.uint8),
        torch.ones(4000, 3, size, size, dtype=torch.uint8),
    )
    mixed = recipe.mix(blank, full, params).double()
    assert np.allclose(mixed.mean((1, 2, 3)).numpy(), 1 - recipe.shares(params, size))
    centre = [(mixed[:, 0].amax(axis) * torch.arange(size)).sum(1) / mixed[:, 0].amax(axis).sum(1) for axis in (1, 2)]
    theirs = np.array([params["box"] for params in sampled])
    for axis, low, high in ((0, 0, 2), (1, 1, 3)):
        some = theirs[theirs[:, high] > theirs[:, low]]
        assert alike(centre[axis][~centre[axis].isnan()].numpy(), (some[:, low] + some[:, high] - 1) / 2)


def test_partners_are_evenly_drawn_and_do_not_depend_on_the_share():
    recipe = RECIPES.make([{"kind": "mixup", "alpha": 4, "probability": 0.75}])
    params = recipe.make_params(0, HASHES, 0)
    partners = recipe.partners(params, 10)
    assert stats.binomtest(int((partners == -1).sum()), 4000, 0.25).pvalue > LEAST
    assert ((partners == -1) == (recipe.shares(params, 8) == 1)).all()
    assert stats.chisquare(np.bincount(partners[partners >= 0], minlength=10)).pvalue > LEAST
    assert (RECIPES.make("crop-flip").partners(RECIPES.make("crop-flip").make_params(0, HASHES, 0), 10) == -1).all()


def test_mixup_or_cutmix_switches_at_its_rate_with_each_ones_own_alpha():
    recipe = RECIPES.make([{"kind": "mixup-or-cutmix", "mixup": 0.2, "cutmix": 2.0, "switch": 0.3}])
    drawn = recipe.make_params(0, HASHES, 0).by_step[0]
    assert stats.binomtest(int(drawn["cut"].sum()), 4000, 0.3).pvalue > LEAST
    assert stats.kstest(drawn["share"][drawn["cut"]], stats.beta(2, 2).cdf).pvalue > LEAST
    blend = drawn["share"][~drawn["cut"]]
    assert stats.kstest(blend[(blend > 0.01) & (blend < 0.99)], within(stats.beta(0.2, 0.2), 0.01, 0.99)).pvalue > LEAST


def within(distribution, low, high):
    """The distribution function between two points."""
    below, inside = distribution.cdf(low), distribution.cdf(high) - distribution.cdf(low)
    return lambda x: (distribution.cdf(x) - below) / inside
