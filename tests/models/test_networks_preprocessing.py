"""How networks want their images."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import timm.data
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from worlds import picture

from softlabels import models
from softlabels.errors import ConfigError, ModelError
from softlabels.loading.views import image_spec
from softlabels.models import Preprocessing, student_spec
from softlabels.views import RECIPES


@pytest.mark.parametrize("name", ["resnet18", "resnext101", "mobilenetv3", "vit_h_14", "efficientnet_v2_l"])
def test_torchvision_networks_want_what_their_default_weights_transforms_do(name: str) -> None:
    preset = torchvision.models.get_model_weights(models.resolve(name).architecture).DEFAULT.transforms()
    wanted = models.preprocessing(name)
    assert [wanted.size] == preset.crop_size and [wanted.resize] == preset.resize_size
    assert list(wanted.mean) == list(preset.mean) and list(wanted.std) == list(preset.std)
    assert wanted.interpolation == preset.interpolation.value


def test_the_numbers_of_resnext101_are_those_of_its_second_weights() -> None:
    wanted = models.preprocessing("resnext101")
    assert (wanted.size, wanted.resize, wanted.interpolation) == (224, 232, "bilinear")


TIMM = (
    "resnet18.a1_in1k",  # tested at 288, trained at 224
    "resnet50d.ra2_in1k",
    # Another crop in tests, of the same size; timm 1.0.12 has no such network.
    pytest.param(
        "fasternet_t0.in1k",
        marks=pytest.mark.skipif(not timm.is_model("fasternet_t0"), reason="this timm is too old for fasternet"),
    ),
    "vit_base_patch16_clip_224.openai_ft_in1k",
    "eva_large_patch14_196.in22k_ft_in1k",  # squashed
    "volo_d5_512.sail_in1k",  # padded
    "tf_efficientnet_b0.ns_jft_in1k",
)


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize(("height", "width"), [(375, 500), (700, 300)])
def test_clean_views_of_timms_networks_are_those_of_timms_validation(name: str, height: int, width: int) -> None:
    wanted = models.preprocessing(f"timm:{name}")
    configuration = timm.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config(pretrained_cfg=configuration, use_test_size=True)
    theirs = timm.data.create_transform(**config, is_training=False, normalize=False)
    image = picture(3, height, width)
    recipe = RECIPES.make("clean")
    drawn = recipe.make_params(0, np.zeros(1, np.uint64), np.zeros(1, np.int64))
    ours = recipe.render(image, drawn[0], image_spec(wanted))
    expected = theirs(functional.to_pil_image(image))
    assert ours.shape == expected.shape == (3, wanted.size, wanted.size)
    # PIL and torch round resized pixels a level or two apart.
    assert (ours.int() - expected.int()).abs().max() <= 3
    assert wanted.mean == config["mean"] and wanted.std == config["std"]


def test_timms_networks_are_trained_at_the_size_of_their_training() -> None:
    evaluated, trained = (models.preprocessing("timm:resnet18.a1_in1k", training=each) for each in (False, True))
    assert (evaluated.size, evaluated.resize, evaluated.interpolation) == (288, 288, "bicubic")
    assert (trained.size, trained.resize, trained.interpolation) == (224, 235, "bicubic")
    assert student_spec("timm:resnet18.a1_in1k").preprocessing == trained


def test_the_usual_crop_is_left_out_of_what_is_written_so_that_older_cards_stay_equal() -> None:
    assert "crop" not in models.preprocessing("resnet18").model_dump(mode="json")
    squashed = Preprocessing(crop="squash")
    assert squashed.model_dump()["crop"] == "squash" and Preprocessing(**squashed.model_dump()) == squashed


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalise_equals_torchvisions_presets_bit_for_bit(channels_last: bool) -> None:
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    pictures = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    crop = pictures[:, :, 16:240, 16:240]
    memory = torch.channels_last if channels_last else torch.contiguous_format
    own = models.preprocessing("resnet18").normalise(crop.contiguous(memory_format=memory))
    assert own.dtype == torch.float32 and own.is_contiguous(memory_format=memory)
    assert torch.equal(own, preset(pictures))


def test_normalise_equals_torchvisions_second_transforms() -> None:
    pictures = torch.randint(0, 256, (3, 3, 9, 7), dtype=torch.uint8)
    scale = v2.ToDtype(torch.float32, scale=True)
    theirs = v2.Normalize(models.IMAGENET_MEAN, models.IMAGENET_STD)(scale(pictures))
    torch.testing.assert_close(Preprocessing().normalise(pictures), theirs, rtol=0, atol=1e-6)


def test_normalised_pictures_can_take_part_in_a_graph_after_inference_used_the_same_settings() -> None:
    wanted = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    pictures = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with torch.inference_mode():
        wanted.normalise(pictures)
    weight = torch.ones(1, requires_grad=True)
    (wanted.normalise(pictures) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)],
)
def test_only_whole_numbers_in_three_channels_are_normalised(wrong: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"uint8 \(n, 3, H, W\)"):
        Preprocessing().normalise(wrong)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(8, 600))
def test_a_new_size_keeps_the_ratio_of_crop_and_picture(size: int) -> None:
    changed = models.preprocessing("resnet18").changed("student", size=size)
    assert changed.size == size and changed.resize == round(size * 256 / 224)
    assert models.preprocessing("cnn_tiny").changed("student", size=size).resize is None


def test_contradictory_settings_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="teacher: resize 100 is smaller than size 224") as raised:
        Preprocessing().changed("teacher", resize=100)
    assert "\n" not in str(raised.value)
