"""Soft labels in a plain PyTorch loop: `torch.nn.CrossEntropyLoss` takes probabilities as they are.

softlabels dump --teacher resnext101 --data folder:photos --views 8 --out shards/
python docs/examples/plain_pytorch.py shards/ folder:photos
"""

from __future__ import annotations

import sys

import torch
import torchvision
from torch.utils.data import DataLoader

import softlabels


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    labels = softlabels.open_labels(shards)
    pictures = softlabels.SoftLabelDataset(labels, softlabels.open_images(data), size=size)
    # A sample's number says which image and which view it is, so a shuffling sampler keeps picture and label together.
    sampler = softlabels.OneViewEach(pictures, seed=0)
    loader = DataLoader(pictures, batch_size=batch_size, sampler=sampler)

    torch.manual_seed(0)
    student = torchvision.models.mobilenet_v3_small(num_classes=labels.classes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    criterion = torch.nn.CrossEntropyLoss()
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)  # each image again, in its next view
        total = 0.0
        for picture, _hard, soft in loader:
            loss = criterion(student(picture.float() / 255), soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(picture)
        losses.append(total / len(sampler))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
