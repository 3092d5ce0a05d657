"""The linear layer behind a teacher's logits, where there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softlabels.models._columns import ChosenColumns
from softlabels.models._teacher import NetworkTeacher, Teacher


def classifier_weight(teacher: Teacher) -> Tensor | None:
    """The weight, float32 (classes, features) on the CPU, of the one linear layer that gives a teacher's logits.

    That a layer does is tried with an image of noise: its output is the logits, value by value. None where no layer
    does, as in ensembles and behind scripts.
    """
    if isinstance(teacher, ChosenColumns):
        whole = classifier_weight(teacher.teacher)
        return None if whole is None else whole[list(teacher.columns)]
    if not isinstance(teacher, NetworkTeacher) or isinstance(teacher.network, torch.jit.ScriptModule):
        return None
    layers = [each for each in teacher.network.modules() if _is_linear(each, teacher.classes)]
    seen: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _inputs: Any, output: Any) -> None:
        seen[layer] = output

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        side = teacher.preprocessing.size
        noise = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        logits = teacher.logits(noise)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, output in seen.items():
        if output.numel() == logits.numel() and torch.equal(output.reshape_as(logits).float(), logits):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            return weight.detach().reshape(teacher.classes, -1).float().cpu()
    return None


def _is_linear(layer: nn.Module, classes: int) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.out_features == classes
    return (
        isinstance(layer, nn.Conv2d)
        and layer.out_channels == classes
        and layer.groups == 1
        and (layer.kernel_size == (1, 1))
    )
