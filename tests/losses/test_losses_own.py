"""Losses that extend those of the package."""

from __future__ import annotations

import pytest
import torch

from softlabels.losses import LOSSES


@pytest.mark.parametrize("name", LOSSES.names)
def test_a_loss_can_be_extended_in_another_module(name: str) -> None:
    class Own(type(LOSSES.make(name))):  # type: ignore[misc]
        mine: int = 3

    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 5
    own, plain = Own(mine=4), LOSSES.make(name)
    assert own.mine == 4
    assert torch.equal(own(student, teacher, labels=labels), plain(student, teacher, labels=labels))
