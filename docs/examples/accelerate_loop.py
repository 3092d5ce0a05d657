"""Soft labels under Hugging Face Accelerate, on one device or several.

    pip install 'softlabels[accelerate]'
    accelerate launch docs/examples/accelerate_loop.py shards/ folder:photos

Accelerate cuts the sampler's numbers into one share per process; a number names an image and its view, so image and
label stay together whoever gets it.
"""

from __future__ import annotations

import sys

import torch
import torchvision
from accelerate import Accelerator

import softlabels


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    accelerator = Accelerator()
    labels = softlabels.open_labels(shards)
    loader = softlabels.make_loader(labels, data, size=size, batch_size=batch_size, normalize=True)

    torch.manual_seed(0)
    student = torchvision.models.mobilenet_v3_small(num_classes=labels.classes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
    criterion = torch.nn.CrossEntropyLoss()
    losses = []
    for epoch in range(epochs):
        total, count = 0.0, 0
        for images, _hard, soft in loader:  # each time the next epoch: each image again, in its next view
            loss = criterion(student(images), soft)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total, count = total + loss.item() * len(images), count + len(images)
        losses.append(total / count)
        accelerator.print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
