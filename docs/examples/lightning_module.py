"""Soft labels in Lightning: a LightningDataModule whose order survives Lightning's replacement of samplers.

    pip install 'softlabels[lightning]'
    python docs/examples/lightning_module.py shards/ folder:photos

On several devices Lightning wraps the sampler and never tells ours the epoch. So the loader is made anew for each epoch
(`reload_dataloaders_every_n_epochs=1`), with a sampler that knows its epoch from the start.
"""

from __future__ import annotations

import sys

import lightning
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader

import softlabels


class SoftLabelData(lightning.LightningDataModule):
    def __init__(self, shards: str, data: str, size: int, batch_size: int) -> None:
        super().__init__()
        labels = softlabels.open_labels(shards)
        self.classes, self.batch_size = labels.classes, batch_size
        self.pictures = softlabels.SoftLabelDataset(labels, softlabels.open_images(data), size=size)

    def train_dataloader(self) -> DataLoader:
        sampler = softlabels.OneViewEach(self.pictures, epoch=self.trainer.current_epoch, seed=0)
        return DataLoader(self.pictures, batch_size=self.batch_size, sampler=sampler)


class Student(lightning.LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = torchvision.models.mobilenet_v3_small(num_classes=classes)
        self.losses: list[float] = []
        self._epoch: list[Tensor] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        picture, _hard, soft = batch
        loss = torch.nn.functional.cross_entropy(self.network(picture.float() / 255), soft)
        self._epoch.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.losses.append(torch.stack(self._epoch).mean().item())
        self._epoch.clear()
        print(f"epoch {self.current_epoch + 1}: loss {self.losses[-1]:.4f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=1e-3)


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    torch.manual_seed(0)
    module = SoftLabelData(shards, data, size, batch_size)
    student = Student(module.classes)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(student, datamodule=module)
    return student.losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
