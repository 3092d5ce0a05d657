"""Soft labels in the Hugging Face Trainer: a collator and a loss that fail loudly when targets get lost.

    pip install 'softlabels[transformers]'
    python docs/examples/huggingface_trainer.py shards/ folder:photos

The Trainer drops what a model's `forward` does not name, and would then train on something else without a word; hence
`remove_unused_columns=False`, and a loss that asks for its target.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import softlabels


def collate(items: Sequence[tuple[Tensor, int, Tensor]]) -> dict[str, Tensor]:
    """What the model takes, and the target beside it."""
    if any(len(item) != 3 for item in items):
        raise ValueError("an item is (picture, hard label, probabilities); is the data set a SoftLabelDataset?")
    return {
        "pixel_values": torch.stack([picture for picture, _, _ in items]).float() / 255,
        "soft_labels": torch.stack([soft for _, _, soft in items]),
    }


class SoftLabelTrainer(Trainer):
    """Minimises the cross-entropy to the stored probabilities, over samples in our order."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        if "soft_labels" not in inputs:
            raise ValueError("the batch has no soft_labels; set remove_unused_columns=False and use `collate`")
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = nn.functional.cross_entropy(outputs.logits, inputs["soft_labels"])
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        self.sampler = softlabels.OneViewEach(self.train_dataset, seed=0)
        return self.sampler


class NextViews(TrainerCallback):
    """Tells the sampler the epoch, whatever wraps the loader."""

    def __init__(self, trainer: SoftLabelTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, _: TrainingArguments, state: Any, *others: Any, **more: Any) -> None:  # noqa: ARG002
        self._trainer.sampler.set_epoch(round(state.epoch or 0))


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    labels = softlabels.open_labels(shards)
    pictures = softlabels.SoftLabelDataset(labels, softlabels.open_images(data), size=size)
    torch.manual_seed(0)
    config = MobileNetV2Config(num_labels=labels.classes, depth_multiplier=0.35, classifier_dropout_prob=0.0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=2e-3,
            remove_unused_columns=False,
            logging_strategy="epoch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        student = MobileNetV2ForImageClassification(config)
        trainer = SoftLabelTrainer(model=student, args=arguments, data_collator=collate, train_dataset=pictures)
        trainer.add_callback(NextViews(trainer))
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    for epoch, loss in enumerate(losses):
        print(f"epoch {epoch + 1}: loss {loss:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
