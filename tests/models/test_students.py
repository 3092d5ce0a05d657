"""Students are built from their seed, start from weights where asked, and describe what they become."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from softlabels import models
from softlabels.errors import ConfigError, ModelError
from softlabels.models import STUDENTS, Description, Preprocessing, student_spec


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of cnn_tiny for five classes of 8x8 images."""
    told = Description(architecture="small:cnn_tiny", classes=5, preprocessing=Preprocessing(size=8))
    state = models.build("cnn_tiny", 5, seed=11).state_dict()
    models.write_weights(tmp_path / "best.safetensors", state, told.to_metadata())
    return tmp_path / "best.safetensors"


@pytest.mark.parametrize(
    ("typed", "resolved", "slug"),
    [
        ("mobilenetv3", "torchvision:mobilenet_v3_large", "mobilenetv3"),
        ("cnn_tiny", "small:cnn_tiny", "cnn_tiny"),
        ("timm:resnet18", "timm:resnet18", "resnet18"),
        ("json:loads", "function:json:loads", "json-loads"),
    ],
)
def test_a_name_says_which_student(typed: str, resolved: str, slug: str) -> None:
    part = student_spec(typed, size=48)
    assert (part.resolved, part.short_name) == (resolved, slug)
    assert STUDENTS.make(json.loads(json.dumps(part.model_dump(mode="json")))) == part


def test_an_unknown_student_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match="'mobilenetv3'"):
        student_spec("mobilenetv4")
    with pytest.raises(ConfigError, match="mapping"):
        student_spec({"kind": "small", "architecture": "cnn_tiny"}, size=8)


@pytest.mark.parametrize("name", ["cnn_tiny", "resnet8_cifar", "mobilenet_v3_small", "timm:resnet18"])
def test_a_student_is_its_seed_and_learns(name: str) -> None:
    part = student_spec(name)
    one, same, other = (models.digest(part.build(4, seed=seed).state_dict()) for seed in (1, 1, 2))
    assert one == same != other
    network = part.build(4, seed=1)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def test_the_size_can_be_chosen() -> None:
    assert student_spec("mobilenetv3", size=96).preprocessing.size == 96
    assert student_spec("mobilenetv3").preprocessing == models.preprocessing("mobilenetv3")


def test_weights_of_the_same_class_count_are_kept_whole(weights: Path) -> None:
    part = student_spec("cnn_tiny", str(weights))
    assert models.digest(part.build(5, seed=0).state_dict()) == models.read_weights(weights).sha256
    assert part.preprocessing.size == 8


def test_weights_of_another_class_count_give_all_but_the_head_and_it_is_said(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        state = student_spec("cnn_tiny", str(weights)).build(3, seed=0).state_dict()
    held = models.read_weights(weights).state
    assert all(torch.equal(state[name], held[name]) for name in held if not name.startswith("head."))
    assert state["head.weight"].shape[0] == 3
    assert "has 5 classes, student cnn_tiny 3: its head starts anew" in caplog.text


@pytest.mark.parametrize("name", ["cnn_tiny", "mobilenet_v3_small"])
def test_written_weights_are_a_teacher_by_their_path_alone(tmp_path: Path, name: str) -> None:
    part = student_spec(name, size=40)
    network = part.build(3, seed=2)
    models.write_weights(tmp_path / "best.safetensors", network.state_dict(), part.metadata(3, ("x", "y", "z")))
    loaded = models.load_file(tmp_path)
    assert (loaded.classes, loaded.class_names, loaded.preprocessing) == (3, ("x", "y", "z"), part.preprocessing)
    assert models.digest(loaded.build().state_dict()) == models.digest(network.state_dict())


def test_a_function_gets_the_class_count_and_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "students_a.py").write_text(
        "from torch import nn\n"
        "def make(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes)), {'size': 4}\n"
    )
    part = student_spec("students_a:make")
    assert part.preprocessing.size == 4
    one, same, other = (models.digest(part.build(6, seed=seed).state_dict()) for seed in (1, 1, 2))
    assert one == same != other
    network = part.build(6, seed=1)
    assert network(torch.randn(2, 3, 4, 4)).shape == (2, 6)
    assert part.metadata(6)["architecture"] == "function:students_a:make"
