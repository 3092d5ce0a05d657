"""Labels of the clean view beside a data set that makes its own pictures.

softlabels dump --teacher resnext101 --data folder:photos --recipe clean --views 1 --out clean/
python docs/examples/own_pictures.py clean/ photos
"""

from __future__ import annotations

import sys

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import softlabels


def main(shards: str, folder: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    torch.manual_seed(0)
    transform = v2.Compose(
        [v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    )
    own = torchvision.datasets.ImageFolder(folder, transform)
    labels = softlabels.open_labels(shards)
    loader = DataLoader(softlabels.attach(own, labels, temperature=2.0), batch_size=batch_size, shuffle=True)

    student = torchvision.models.mobilenet_v3_small(num_classes=labels.classes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for picture, hard, soft in loader:
            logits = student(picture)
            loss = 0.5 * torch.nn.functional.cross_entropy(logits, hard)
            loss = loss + 0.5 * 4 * torch.nn.functional.cross_entropy(logits / 2, soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(picture)
        losses.append(total / len(own))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
