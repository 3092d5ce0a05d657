"""A student that begins with layers of another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from worlds import TINY

import softlabels
import softlabels.models
from softlabels.errors import ConfigError, ModelError, RunError
from softlabels.training.first_layers import copy_layers

STILL: dict[str, Any] = {**TINY, "epochs": 1, "lr": 1e-12, "optimizer": "sgd", "weight_decay": 0.0}


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network with the layers stem, layers and head."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    softlabels.train(**{**TINY, "student": "resnet20_cifar", "epochs": 1}, data=str(photos), out=str(out))
    return out


def block(width: int, depth: int = 1) -> nn.Module:
    net = nn.Module()
    net.stem = nn.Conv2d(3, width, 3)
    net.body = nn.Sequential(*[nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)) for _ in range(depth)])
    net.head = nn.Linear(width, 5)
    return net


def test_what_matches_in_name_and_shape_is_copied_unless_it_is_left() -> None:
    student, source = block(4, 1), block(4, 3)
    source.head = nn.Linear(4, 7)
    before = student.head.weight.clone()
    copied = copy_layers(student, source, (), called="x")
    assert torch.equal(student.stem.weight, source.stem.weight)
    assert torch.equal(student.body[0][1].running_var, source.body[0][1].running_var)
    assert torch.equal(student.head.weight, before)
    assert copied.describe("x") == "9 of the student's 11 tensors are copied from x: stem, body"
    student = block(4)
    assert copy_layers(student, block(4), (), called="x", leave=("head.weight", "head.bias")).names[-1] != "head.bias"


def test_named_layers_are_copied_under_either_name() -> None:
    student, source = block(4, 2), block(4, 3)
    copied = copy_layers(student, source, ("stem", "body.1=body.2"), called="x")
    assert torch.equal(student.body[1][0].weight, source.body[2][0].weight)
    assert not torch.equal(student.body[0][0].weight, source.body[0][0].weight)
    assert copied.describe("x").endswith(": stem, body.1")
    copied = copy_layers(student, source, ("body.0.0.weight",), called="x")
    assert copied.names == ("body.0.0.weight",)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("stm",), r"`layers`: the student has no layer 'stm'; did you mean 'stem'"),
        (("stem=stme",), r"`layers`: x has no layer 'stme'; did you mean 'stem'"),
        (
            ("body.0.0",),
            r"body.0.0.weight is \(4, 4, 3, 3\) in the student, and .* is \(6, 6, 3, 3\) in x",
        ),
        (("body.1",), r"x has no layer 'body.1'; did you mean .*'body.0'"),
        (("body",), r"body.1.0.weight of the student has no counterpart body.1.0.weight in x; name the layers within"),
    ],
)
def test_layers_that_do_not_match_are_refused_in_a_line(layers: tuple[str, ...], message: str) -> None:
    student, source = block(4, 2), block(4 if layers == ("body",) else 6, 1)
    with pytest.raises(ModelError, match=message) as refused:
        copy_layers(student, source, layers, called="x")
    assert "\n" not in str(refused.value)


def test_a_layer_without_tensors_is_named() -> None:
    student = block(4)
    student.act = nn.ReLU()
    with pytest.raises(ModelError, match="layer 'act' of the student has no tensors to copy; name one that has"):
        copy_layers(student, block(4), ("act",), called="x")


def test_weights_of_a_run_to_copy_from_are_its_own(photos: Path, teacher: Path, tmp_path: Path) -> None:
    given = {**TINY, "init_from": str(teacher), "init_from_weights": "default", "data": str(photos)}
    with pytest.raises(ConfigError, match="leave `init_from_weights` out"):
        softlabels.train(**given, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_two_networks_without_a_common_tensor_are_refused() -> None:
    with pytest.raises(ModelError, match=r"no layer of the student has names and shapes .*pair them with `layers"):
        copy_layers(block(4), nn.Linear(2, 2), (), called="x")


def test_a_smaller_student_begins_with_its_teachers_layers(
    photos: Path, teacher: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    before = load_file(teacher / "best.safetensors")
    out = tmp_path / "run"
    options = ["--data", photos, "--epochs", 1, "--batch-size", 8, "--device", "cpu", "--workers", 0, "--lr", 1e-12]
    command = ["train", "--student", "resnet8_cifar", "--init-from", teacher, *options, "--out", out]
    printed = softlabels_command(*command)
    assert printed.exit_code == 0, printed.output
    after = load_file(out / "last.safetensors")
    copied = [name for name in after if name.startswith(("features.0.", "features.1.", "features.3.", "head."))]
    for name in copied:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    line = next(each for each in (out / "header.txt").read_text().splitlines() if "tensors are copied" in each)
    assert line.startswith(f"{len(copied)} of the student's {len(after)} tensors are copied from {teacher}")
    assert line.endswith(
        ": features.0, features.1, features.3, head"
    )  # the blocks of 16 channels, and all others differ
    assert "nothing to do" in softlabels_command(*command).output
    named = [*command[:-1], tmp_path / "named", "--layers", "haed"]
    assert "has no layer 'haed'  tip: did you mean 'head'" in softlabels_command(*named).output
    assert not (tmp_path / "named").exists()


def test_another_network_to_copy_from_is_another_run(photos: Path, teacher: Path, tmp_path: Path) -> None:
    given = {**STILL, "student": "resnet8_cifar", "data": str(photos), "out": str(tmp_path / "run")}
    softlabels.train(**given, init_from="resnet20_cifar", init_from_weights="random", layers="features.0,features.1")
    with pytest.raises(RunError, match=r"layers from|another run"):
        softlabels.train(**given, init_from=str(teacher), layers="features.0,features.1")


def test_an_object_gives_its_layers_to_a_named_student(photos: Path, tmp_path: Path) -> None:
    source = softlabels.models.build("small:resnet20_cifar", 3, seed=5)
    given = {**STILL, "student": "resnet8_cifar", "data": str(photos), "out": str(tmp_path / "run")}
    softlabels.train(**given, init_from=source, layers=["features.0", "features.1"])
    after = load_file(tmp_path / "run" / "last.safetensors")
    torch.testing.assert_close(after["features.0.weight"], source.state_dict()["features.0.weight"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": "features.0"}, "`layers` says what is copied from another network; name that with `init_from`"),
        ({"init_from_weights": "random"}, "`init_from_weights` says what is copied"),
        ({"init_from": "resnet18", "init": "runs/x"}, "`init` and `init_from` exclude each other"),
        ({"init_from": "resnet20_cifar"}, "no published weights; give `init_from_weights=FILE`"),
        ({"init_from": "resnte20_cifar"}, "did you mean 'resnet20_cifar'"),
        ({"init_from": "runs/none"}, "no such file or folder: runs/none"),
    ],
)
def test_what_gives_no_layers_is_refused(photos: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        softlabels.train(**{**TINY, **given}, data=str(photos), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
