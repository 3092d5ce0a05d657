"""Soft labels under Hugging Face Accelerate, on one device or several.

    pip install 'softlabels[accelerate]'
    accelerate launch docs/examples/accelerate_loop.py shards/ folder:photos

Accelerate cuts the sampler's numbers into one share per process; a number names an image and its view, so picture and
label stay together whoever gets it.
"""

from __future__ import annotations

import sys

import torch
import torchvision
from accelerate import Accelerator
from torch.utils.data import DataLoader

import softlabels


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    accelerator = Accelerator()
    labels = softlabels.open_labels(shards)
    pictures = softlabels.SoftLabelDataset(labels, softlabels.open_images(data), size=size)
    sampler = softlabels.OneViewEach(pictures, seed=0)

    torch.manual_seed(0)
    student = torchvision.models.mobilenet_v3_small(num_classes=labels.classes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    loader = DataLoader(pictures, batch_size=batch_size, sampler=sampler)
    student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
    criterion = torch.nn.CrossEntropyLoss()
    losses = []
    for epoch in range(epochs):
        # Ours is called, not the prepared loader's set_epoch, which reaches only samplers that Accelerate made.
        sampler.set_epoch(epoch)
        total, count = 0.0, 0
        for picture, _hard, soft in loader:
            loss = criterion(student(picture.float() / 255), soft)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total, count = total + loss.item() * len(picture), count + len(picture)
        losses.append(total / count)
        accelerator.print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
