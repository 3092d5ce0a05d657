"""Teachers are frozen wherever they answer: evaluation mode, no gradients, nothing in them moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from worlds import TINY

import softlabels


class Watched(nn.Module):
    """A network with batch norm and dropout that notes how it is asked, whichever copy of it is."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        out = self.head(self.drop(self.norm(self.stem(images)).relu().mean((2, 3))))
        state = {name: value.clone() for name, value in self.state_dict().items()}
        modes = {module.training for module in self.modules()}
        Watched.asked.append({"modes": modes, "gradient": out.requires_grad, "state": state, "network": self})
        return out


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    Watched.asked.clear()
    network = Watched()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2.0)
    return network.train()  # as its owner left it


def check_frozen(teacher: nn.Module) -> None:
    before = teacher.state_dict()
    for each in Watched.asked:
        assert each["modes"] == {False} and not each["gradient"]
        assert set(each["state"]) == set(before)
        for name, value in each["state"].items():
            assert torch.equal(value, before[name]), name
        assert all(parameter.grad is None for parameter in each["network"].parameters())
    assert teacher.training, "the owner's network is another one than the frozen copy"
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("loss", ["kl", "mse", "dkd"])
def test_a_teacher_in_the_loop_is_frozen_though_the_student_trains(
    teacher: nn.Module, photos: Path, tmp_path: Path, loss: str
) -> None:
    softlabels.train(teacher=teacher, data=str(photos), loss=loss, alpha=0.5, out=str(tmp_path / "run"), **TINY)
    assert len(Watched.asked) >= 9  # each step asks it
    check_frozen(teacher)


def test_a_teacher_that_is_dumped_is_frozen_and_answers_the_same_twice(
    teacher: nn.Module, photos: Path, tmp_path: Path
) -> None:
    given = {"teacher": teacher, "data": str(photos), "views": 2, "device": "cpu", "quiet": True, "codec": "dense:fp32"}
    for name in ("one", "two"):
        softlabels.dump(**given, out=str(tmp_path / name))
    assert Watched.asked
    check_frozen(teacher)
    one, two = (softlabels.open_labels(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one.logits(range(18), 1), two.logits(range(18), 1))  # dropout would show


def test_a_student_of_the_same_class_is_not_frozen(teacher: nn.Module, photos: Path, tmp_path: Path) -> None:
    """What the tests above look at does change in a network that learns."""
    softlabels.train(**{**TINY, "student": teacher}, data=str(photos), eval_data="none", out=str(tmp_path / "run"))
    learning = [each for each in Watched.asked if each["modes"] == {True}]
    assert learning and all(each["gradient"] for each in learning)
    first, last = learning[0]["state"], learning[-1]["state"]
    assert not torch.equal(first["norm.running_mean"], last["norm.running_mean"])
    assert not torch.equal(first["head.weight"], last["head.weight"])
