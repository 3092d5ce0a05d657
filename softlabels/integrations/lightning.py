"""Soft labels in Lightning.

    pip install 'softlabels[lightning]'

On several devices Lightning gives each its share of our sampler's numbers; a number says which view of which image it
is, so that images and labels stay together.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch.utils.data import DataLoader

from softlabels.core.installed import required
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.loader import make_loader

_DataModule: Any = required("lightning", "lightning", "softlabels.integrations.lightning").LightningDataModule


class SoftLabelData(_DataModule):  # type: ignore[misc]
    """Give Lightning the batches of `make_loader` to train on: (images, hard labels, targets).

    Args:
        labels: what `open_labels` gives or takes.
        images: what `open_images` gives or takes.
        settings: of `make_loader`: ``size``, ``batch_size``, ``normalize``, ``temperature``, ...

    Raises:
        ConfigError, StoreError, KeyError: as `make_loader`.
    """

    def __init__(self, labels: Labels | str | PathLike[str], images: Any, **settings: Any) -> None:
        super().__init__()
        self.labels = labels if isinstance(labels, Labels) else open_labels(labels)
        self.loader = make_loader(self.labels, images, **settings)

    @property
    def classes(self) -> int:
        """How many classes the labels are of."""
        return self.labels.classes

    def train_dataloader(self) -> DataLoader[Any]:
        """The batches of the epoch that the trainer is in, then of the next ones."""
        self.loader.sampler.set_epoch(self.trainer.current_epoch)  # type: ignore[attr-defined]
        return self.loader
