"""Soft labels in Lightning.

    pip install 'softlabels[lightning]'
    python docs/examples/lightning_module.py shards/ folder:photos

On several devices Lightning gives each its share of the sampler's numbers; a number names an image and its view, so
image and label stay together.
"""

from __future__ import annotations

import sys

import lightning
import torch
import torchvision
from torch import Tensor

from softlabels.integrations.lightning import SoftLabelData


class Student(lightning.LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = torchvision.models.mobilenet_v3_small(num_classes=classes)
        self.losses: list[float] = []
        self._epoch: list[Tensor] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, _hard, soft = batch
        loss = torch.nn.functional.cross_entropy(self.network(images), soft)
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
    module = SoftLabelData(shards, data, size=size, batch_size=batch_size, normalize=True)
    student = Student(module.classes)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(student, datamodule=module)
    return student.losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
