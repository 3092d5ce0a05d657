"""Soft labels in a plain PyTorch loop: `torch.nn.CrossEntropyLoss` takes probabilities as they are.

softlabels dump --teacher resnext101 --data folder:photos --views 8 --out shards/
python docs/examples/plain_pytorch.py shards/ folder:photos
"""

from __future__ import annotations

import sys

import torch
import torchvision

import softlabels


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    labels = softlabels.open_labels(shards)
    loader = softlabels.make_loader(labels, data, size=size, batch_size=batch_size, normalize=True)

    torch.manual_seed(0)
    student = torchvision.models.mobilenet_v3_small(num_classes=labels.classes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    criterion = torch.nn.CrossEntropyLoss()
    losses = []
    for epoch in range(epochs):
        total, count = 0.0, 0
        for images, _hard, soft in loader:  # each time the next epoch: each image again, in its next view
            loss = criterion(student(images), soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(images), count + len(images)
        losses.append(total / count)
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
