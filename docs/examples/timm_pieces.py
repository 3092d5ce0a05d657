"""Soft labels with timm's training pieces: its models, loss, optimizers, schedule and moving average.

    python docs/examples/timm_pieces.py shards/ folder:photos

Leave timm's Mixup and its random augmentations out: the images come as the teacher saw them.
"""

from __future__ import annotations

import sys

import timm
import torch
from timm.data import resolve_model_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3
from torch.utils.data import DataLoader

import softlabels


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    labels = softlabels.open_labels(shards)
    dataset = softlabels.SoftLabelDataset(labels, data, size=size)
    sampler = softlabels.OneViewEach(dataset, seed=0)
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler)

    torch.manual_seed(0)
    student = timm.create_model("resnet10t", num_classes=labels.classes)
    config = resolve_model_data_config(student)
    mean, std = (255 * torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    optimizer = create_optimizer_v2(student, opt="adamw", lr=1e-3, weight_decay=0.01)
    schedule, _ = create_scheduler_v2(optimizer, num_epochs=epochs, updates_per_epoch=len(loader))
    average = ModelEmaV3(student, decay=0.9)
    criterion = SoftTargetCrossEntropy()
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        schedule.step(epoch)
        meter = AverageMeter()
        for images, _hard, soft in loader:
            loss = criterion(student((images - mean) / std), soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(student)
            meter.update(loss.item(), len(images))
        losses.append(meter.avg)
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
