"""Names resolve, and networks are what their names promise."""

from __future__ import annotations

import pytest
import torch

from softlabels import models
from softlabels.choices import network_names
from softlabels.errors import ModelError


@pytest.mark.parametrize(
    ("typed", "full"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("timm:resnet18", "timm:resnet18"),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("cnn_tiny", "small:cnn_tiny"),
        ("resnext101", "torchvision:resnext101_32x8d"),
        ("mobilenetv3", "torchvision:mobilenet_v3_large"),
        ("torchvision:mobilenetv3", "torchvision:mobilenet_v3_large"),
    ],
)
def test_a_name_resolves_to_its_full_name(typed: str, full: str) -> None:
    assert str(models.resolve(typed)) == full
    assert models.resolve(full) == models.resolve(typed)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("resnet81", "'resnet18'"),
        ("torchvision:resnet81", "'resnet18'"),
        ("timm:resnet1888", "'resnet18'"),
        ("mobilenetv33", "'mobilenetv3'"),
        ("cnn_tinny", "'cnn_tiny'"),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("torchvison:resnet18", "'torchvision'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(typed: str, hint: str) -> None:
    with pytest.raises(ModelError) as raised:
        models.resolve(typed)
    assert hint in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("former", "current"),
    [
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("vit_tiny_patch16_224_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("hf-hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf_hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
    ],
)
def test_former_names_and_names_of_the_hub_mean_the_network_of_today(former: str, current: str) -> None:
    assert str(models.resolve(f"timm:{former}")) == f"timm:{current}"


def test_a_former_name_is_taken_with_a_line(softlabels_command, caplog: pytest.LogCaptureFixture) -> None:
    models._timm._log_renamed.cache_clear()
    done = softlabels_command(
        "plan", "--teacher", "timm:tf_mobilenetv3_small_075", "--weights", "random", "--data", "digits", "--limit", 2
    )
    assert done.exit_code == 0, done.output
    assert "timm:tf_mobilenetv3_small_075 is called" not in caplog.text  # this one is no former name
    models.resolve("timm:tf_efficientnet_b0_ns")
    assert "is called timm:tf_efficientnet_b0.ns_jft_in1k now" in caplog.text


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("timm:resnet18.a1_in1", "resnet18.a1_in1k"),
        ("timm:hf-hub:someone/net", "timm:NAME `weights=FILE`"),
        ("runs/nowhere", "no file or folder at runs/nowhere"),
        ("weights.safetensors", "no file or folder at weights.safetensors"),
    ],
)
def test_what_is_mistyped_is_answered_from_the_right_list(typed: str, hint: str) -> None:
    with pytest.raises(ModelError) as raised:
        models.resolve(typed)
    assert hint in str(raised.value) and "\n" not in str(raised.value)


def test_a_path_given_as_a_name_is_told_how_to_write_it(tmp_path) -> None:
    with pytest.raises(ModelError, match=f"file:{tmp_path}"):
        models.resolve(str(tmp_path))


def test_every_listed_name_resolves() -> None:
    listed = network_names()
    assert {"resnet18", "cnn_tiny", "resnext101"} <= set(listed)
    assert all(models.resolve(name) for name in listed)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("cnn_tiny", 5_000, 10_000),
        ("cnn_small", 60_000, 150_000),
        # He et al. 2016, table 6: 0.27 M and 0.85 M.
        ("resnet20_cifar", 265_000, 275_000),
        ("resnet56_cifar", 845_000, 855_000),
        ("resnet8_cifar", 70_000, 80_000),
    ],
)
def test_small_networks_have_their_promised_size(name: str, least: int, most: int) -> None:
    assert least <= models.parameter_count(models.build(name, 10)) <= most


@pytest.mark.parametrize("name", network_names("small"))
@pytest.mark.parametrize("side", [8, 20, 32])
def test_small_networks_run_at_any_size_and_learn(name: str, side: int) -> None:
    network = models.build(name, 7)
    answer = network(torch.randn(2, 3, side, side))
    assert answer.shape == (2, 7)
    answer.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["cnn_small", "resnet18", "timm:resnet18", "regnet_y_400mf"])
def test_equal_seeds_give_equal_networks_and_leave_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (models.digest(models.build(name, 5, seed=seed).state_dict()) for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(123)
    assert models.digest(models.build(name, 5, seed=1).state_dict()) == one


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "vit_b_32", "regnet_y_400mf", "googlenet", "timm:levit_128"],
)
def test_the_class_count_is_read_from_the_head(name: str) -> None:
    heads = models.head_tensors(name)
    assert heads
    state = {head: torch.zeros(37, 4) for head in heads}
    assert models.head_classes(name, state, "w.pt") == 37


def test_a_state_without_the_head_is_refused_by_name() -> None:
    with pytest.raises(
        ModelError, match=r"w\.pt does not fit torchvision:resnet18: it has no fc\.weight.*first.*stem\.1"
    ):
        models.head_classes("resnet18", {"stem.1": torch.zeros(3)}, "w.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", network_names("torchvision"))
def test_every_torchvision_network_has_a_head_and_preprocessing(name: str) -> None:
    assert set(models.head_tensors(name).values()) == {0}
    default = models.published_weights(name)
    assert default is not None and default.classes == len(default.class_names) == 1000
    assert models.preprocessing(name).size >= 224


def test_networks_tied_to_a_size_are_made_for_the_size_asked_for() -> None:
    network = models.build("vit_b_32", 3, size=64).eval()
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ModelError, match="vit_b_32 cannot be built for 65x65"):
        models.build("vit_b_32", 3, size=65)


def test_inceptions_answer_with_a_tensor_in_training_too() -> None:
    assert models.build("googlenet", 3).train()(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_licences_are_told_where_known() -> None:
    assert "SWAG" in str(models.published_weights("vit_h_14").licence)
    assert models.published_weights("timm:convnextv2_atto.fcmae_ft_in1k").licence == "cc-by-nc-4.0"
    assert models.published_weights("cnn_tiny") is None


@pytest.mark.parametrize(
    ("text", "seed"), [(None, None), ("default", None), ("w.pt", None), ("random", 0), ("random:7", 7)]
)
def test_random_weights_name_their_seed(text: str | None, seed: int | None) -> None:
    assert models.random_seed(text) == seed


def test_a_seed_that_is_no_number_is_refused() -> None:
    with pytest.raises(ModelError, match="random:x"):
        models.random_seed("random:x")
