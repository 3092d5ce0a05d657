"""Images, pixel for pixel against torchvision's functional kernels on the same parameters."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from softlabels.core.philox import hash_keys, philox
from softlabels.views import RECIPES, ImageSpec
from softlabels.views._auto_augment import NAMES, OPERATIONS, Style

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

HASHES = hash_keys(map(str, range(30)))
SIZES = [(8, 8), (32, 32), (61, 47), (90, 150)]


def photograph(height, width, seed=0):
    """Blurred noise: smooth as photographs are, with bytes that no library's generator decides."""
    words = philox((seed, 1), (np.arange(3 * height * width), 0, 0, 0))[:, 0]
    grain = torch.from_numpy((words >> np.uint64(56)).astype(np.uint8)).view(3, height, width)
    return functional.gaussian_blur(grain, [5, 5])


def views_of(steps, n=30):
    recipe = RECIPES.make(steps)
    return recipe, recipe.make_params(1, HASHES[:n], np.arange(n))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_crop_and_resize_are_torchvisions(height, width, interpolation):
    recipe, params = views_of("crop-flip")
    image = photograph(height, width)
    for view, box in zip(params, recipe.boxes(params, height, width).tolist(), strict=True):
        mode = v2.InterpolationMode(interpolation)
        expected = functional.resized_crop(image, *box, [24, 24], interpolation=mode, antialias=True)
        if view.by_step[1]["flip"]:
            expected = functional.horizontal_flip(expected)
        assert torch.equal(recipe.render(image, view, ImageSpec(24, interpolation)), expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("fill", [0, 7, (10, 20, 30), "edge", "reflect"])
def test_padded_windows_are_torchvisions(height, width, fill):
    recipe, params = views_of([{"kind": "pad-and-crop", "padding": 0.25, "fill": fill}, "horizontal-flip"])
    image, side = photograph(height, width), min(height, width)
    pad = round(side / 4)
    kind = {"padding_mode": fill} if isinstance(fill, str) else {"fill": fill}
    padded = functional.pad(image, [pad], **kind)
    for view, (top, left, tall, wide) in zip(params, recipe.boxes(params, height, width).tolist(), strict=True):
        expected = functional.resize(functional.crop(padded, top + pad, left + pad, tall, wide), [20, 20])
        if view.by_step[1]["flip"]:
            expected = functional.horizontal_flip(expected)
        assert (tall, wide) == (side, side)
        assert torch.equal(recipe.render(image, view, ImageSpec(20)), expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("size", "resize"), [(16, 20), (17, 22), (24, 24), (48, None)])
def test_the_clean_view_is_torchvisions_resize_and_centre_crop(height, width, size, resize):
    recipe, params = views_of("clean", 1)
    image, spec = photograph(height, width), ImageSpec(size, resize=resize)
    expected = functional.center_crop(functional.resize(image, [spec.shorter_side]), [size, size])
    assert torch.equal(recipe.render(image, params[0], spec), expected)


def test_a_recipe_without_geometry_shows_the_clean_view():
    recipe, params = views_of([{"kind": "horizontal-flip", "probability": 1}], 1)
    clean, clean_views = views_of("clean", 1)
    image, spec = photograph(40, 50), ImageSpec(20, resize=24)
    assert torch.equal(recipe.render(image, params[0], spec), clean.render(image, clean_views[0], spec).flip(2))
    assert recipe.boxes(params, 40, 50).tolist() == [[0, 0, 40, 50]]


@pytest.mark.parametrize("name", ["crop-flip", "pad-flip", "clean"])
def test_a_view_at_two_sizes_shows_the_same_part_of_the_image(name):
    """Each pixel of the image holds its own place; the means over the image tell which part is shown."""
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    recipe, params = views_of(name)
    if name == "pad-flip":
        recipe, params = views_of([{"kind": "pad-and-crop", "fill": "edge"}, "horizontal-flip"])
    for view in params:
        small = recipe.render(image, view, ImageSpec(28, resize=32)).double()
        large = recipe.render(image, view, ImageSpec(98, resize=112)).double()
        assert torch.allclose(small.mean((1, 2)), large.mean((1, 2)), atol=1.5)
        assert (small[1, 0, 0] < small[1, 0, -1]) == (large[1, 0, 0] < large[1, 0, -1])


def test_a_crop_that_has_the_size_already_is_not_resampled():
    recipe, params = views_of([{"kind": "pad-and-crop", "padding": 4}])
    image = photograph(32, 32)
    top, left, *_ = recipe.boxes(params, 32, 32)[0].tolist()
    shown = recipe.render(image, params[0], ImageSpec(32, "bicubic"))
    assert torch.equal(shown, functional.pad(image, [4])[:, top + 4 : top + 36, left + 4 : left + 36])


def test_jitter_is_torchvisions():
    adjust = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    recipe, params = views_of([{"kind": "colour-jitter", "hue": 0.2, "contrast": 0.9}])
    image = photograph(40, 40)
    for view in params:
        expected = image
        (drawn,) = view.by_step[0]
        for which in drawn["order"]:
            expected = adjust[which](expected, drawn["factors"][which])
        assert torch.equal(recipe.render(image, view, ImageSpec(40, resize=40)), expected)


def test_a_jitter_of_zero_leaves_its_adjustment_out():
    recipe, params = views_of([{"kind": "colour-jitter", "brightness": 0, "contrast": 0, "saturation": 0}])
    image = photograph(40, 40)
    assert torch.equal(recipe.render(image, params[0], ImageSpec(40, resize=40)), image)


@pytest.mark.parametrize("size", [224, 300])
def test_contrast_does_not_depend_on_threads(size):
    recipe, params = views_of([{"kind": "colour-jitter", "brightness": 0, "saturation": 0}], 3)
    image, before = photograph(size, size), torch.get_num_threads()
    for view in params:
        try:
            made = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                made.append(recipe.render(image, view, ImageSpec(size, resize=size)))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
        if size <= 256:
            assert torch.equal(made[0], functional.adjust_contrast(image, view.by_step[0]["factors"][0, 1]))


@pytest.mark.parametrize(
    ("steps", "kernel"),
    [
        ([{"kind": "grayscale", "probability": 1}], lambda image: functional.rgb_to_grayscale(image, 3)),
        ([{"kind": "solarize", "probability": 1, "threshold": 99}], lambda image: functional.solarize(image, 99)),
    ],
)
def test_grayscale_and_solarize_are_torchvisions(steps, kernel):
    recipe, params = views_of(steps, 1)
    image = photograph(40, 40)
    assert torch.equal(recipe.render(image, params[0], ImageSpec(40, resize=40)), kernel(image))


@pytest.mark.parametrize("size", [32, 97, 224])
def test_blur_is_torchvisions_but_for_pixels_that_its_float_sum_rounds_otherwise(size):
    recipe, params = views_of([{"kind": "gaussian-blur", "probability": 1}], 4)
    image = photograph(size, size)
    for view in params:
        shown = recipe.render(image, view, ImageSpec(size, resize=size)).int()
        kernel = [2 * int(size * 0.1 / 2) + 1] * 2
        difference = (
            shown - functional.gaussian_blur(image, kernel, [view.by_step[0]["sigma"].item() * size] * 2)
        ).abs()
        assert difference.max() <= 1
        assert (difference > 0).double().mean() < 1e-4


def test_erasing_is_torchvisions():
    recipe, params = views_of([{"kind": "random-erasing", "fill": [1, 2, 3]}])
    image, colour = photograph(40, 40), torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
    erased = 0
    for view in params:
        box = recipe.steps[0].rectangles(view.by_step[0], 40)[0].tolist()
        expected = functional.erase(image, *box, colour) if box[2] else image
        assert torch.equal(recipe.render(image, view, ImageSpec(40, resize=40)), expected)
        erased += box[2] > 0
    assert 5 < erased < 25


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("fill", [0, 128, (10, 20, 30)])
@pytest.mark.parametrize("strength", [0.29, -0.83])
@pytest.mark.parametrize("name", [name for name in THEIR_NAMES if name != "identity"])
def test_operations_are_torchvisions(name, strength, interpolation, fill):
    image, style = photograph(56, 56), Style(interpolation, fill)
    if name in ("posterize", "solarize"):
        strength = {0.29: 3.0, -0.83: 6.0}[strength] if name == "posterize" else abs(strength)
    if name == "rotate":
        strength *= 100
    theirs = v2.RandAugment(interpolation=v2.InterpolationMode(interpolation))._apply_image_or_video_transform(
        image,
        THEIR_NAMES[name],
        strength * 56 if "translate" in name else strength,
        interpolation=v2.InterpolationMode(interpolation),
        fill={torch.Tensor: None if fill == 0 else fill if isinstance(fill, tuple) else [fill] * 3},
    )
    assert torch.equal(OPERATIONS[name](image[None], strength=strength, style=style)[0], theirs)


def test_operations_follow_one_another():
    recipe, params = views_of([{"kind": "randaugment", "n": 3, "m": 20}])
    image = photograph(32, 32)
    for view in params:
        expected = image[None]
        (drawn,) = view.by_step[0]
        for operation, strength in zip(drawn["operation"], drawn["strength"], strict=True):
            expected = OPERATIONS[NAMES[operation]](expected, strength=float(strength), style=Style("nearest", 0))
        assert torch.equal(recipe.render(image, view, ImageSpec(32)), expected[0])


@pytest.mark.parametrize("kind", ["mixup", "mixup-or-cutmix"])
def test_a_blend_is_the_weighted_mean_to_the_nearest_level(kind):
    recipe, params = views_of([{"kind": kind, **({"switch": 0} if kind != "mixup" else {"alpha": 1})}])
    some, others = (torch.stack([photograph(16, 16, seed + i) for i in range(30)]) for seed in (0, 100))
    share = torch.from_numpy(recipe.shares(params, 16))[:, None, None, None]
    exact = share * some + (1 - share) * others
    assert (recipe.mix(some, others, params) - exact).abs().max() <= 0.5


def test_a_cut_is_the_partners_inside_the_box_and_the_images_outside():
    recipe, params = views_of(["cutmix"])
    some, others = (torch.full((30, 3, 16, 16), level, dtype=torch.uint8) for level in (10, 200))
    mixed = recipe.mix(some, others, params)
    assert set(mixed.unique().tolist()) == {10, 200}
    assert np.allclose((mixed == 10).double().mean((1, 2, 3)).numpy(), recipe.shares(params, 16))
    assert (some == 10).all()


def test_a_mixed_view_at_two_sizes_has_the_same_box():
    recipe, params = views_of(["cutmix"])
    small, large = recipe.shares(params, 32), recipe.shares(params, 224)
    assert np.abs(small - large).max() < 0.08
    blend, blend_views = views_of(["mixup"])
    assert np.array_equal(blend.shares(blend_views, 32), blend.shares(blend_views, 224))


def test_views_that_are_not_mixed_stay_as_they_are():
    for kind in ("mixup", "cutmix", "mixup-or-cutmix"):
        recipe, params = views_of([{"kind": kind, "probability": 0.5}])
        some, others = (torch.full((30, 3, 8, 8), level, dtype=torch.uint8) for level in (10, 200))
        alone = torch.from_numpy(recipe.partners(params, 5) < 0)
        assert 5 < alone.sum() < 25
        assert (recipe.mix(some, others, params)[alone] == 10).all()
        assert (recipe.shares(params, 8)[alone.numpy()] == 1).all()
