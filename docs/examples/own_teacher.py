"""A teacher of your own: `own_teacher:ensemble` wherever a teacher is asked for.

    softlabels dump --teacher own_teacher:ensemble --data photos/ --out shards/

in the folder where this file lies. Here it is the mean of two networks; any torch.nn.Module will do, whatever it does
inside.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn


class Mean(nn.Module):
    """The mean of the logits of several networks."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (n, 3, size, size) to logits (n, classes)."""
        return torch.stack([network(images) for network in self.networks]).mean(0)


def ensemble(classes: int) -> tuple[nn.Module, dict[str, object]]:
    """What softlabels calls: the network, and how it wants its images."""
    networks: list[nn.Module] = [torchvision.models.resnet18(num_classes=classes) for _ in range(2)]
    # Load your weights here: networks[0].load_state_dict(torch.load("first.pt", weights_only=True)), ...
    return Mean(networks), {"size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
