"""Soft labels in the Hugging Face Trainer.

pip install 'softlabels[transformers]'
python docs/examples/huggingface_trainer.py shards/ folder:photos
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, TrainingArguments

import softlabels
from softlabels.integrations.transformers import SoftLabelCollator, SoftLabelTrainer


def main(shards: str, data: str, epochs: int = 10, size: int = 64, batch_size: int = 32) -> list[float]:
    labels = softlabels.open_labels(shards)
    dataset = softlabels.SoftLabelDataset(labels, data, size=size)
    torch.manual_seed(0)
    config = MobileNetV2Config(num_labels=labels.classes, depth_multiplier=0.35, classifier_dropout_prob=0.0)
    student = MobileNetV2ForImageClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=2e-3,
            remove_unused_columns=False,  # the targets would be dropped as unused
            logging_strategy="epoch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SoftLabelTrainer(
            model=student, args=arguments, data_collator=SoftLabelCollator(), train_dataset=dataset
        )
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    for epoch, loss in enumerate(losses):
        print(f"epoch {epoch + 1}: loss {loss:.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
