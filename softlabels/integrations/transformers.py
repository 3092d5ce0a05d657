"""Soft labels in the Trainer of Hugging Face's transformers.

    pip install 'softlabels[transformers]'

The Trainer drops what a model's `forward` does not name, and would then train on something else without a word; hence
its argument ``remove_unused_columns=False``, and a loss that asks for its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Sampler

from softlabels.core.installed import required
from softlabels.errors import ConfigError
from softlabels.loading.batches import Sample, SoftLabelDataset
from softlabels.loading.samplers import OneViewEach
from softlabels.models import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocessing_of

_transformers: Any = required("transformers", "transformers", "softlabels.integrations.transformers")
_Trainer: Any = _transformers.Trainer
_Callback: Any = _transformers.TrainerCallback


class SoftLabelCollator:
    """Make of a `SoftLabelDataset`'s items what a model and `SoftLabelTrainer` take, for ``data_collator``.

    Args:
        mean: per channel, of pixels in [0, 1], as the model's image processor has it; that of ImageNet by default.
        std: as `mean`.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        self._preprocessing: Preprocessing = preprocessing_of({"mean": mean, "std": std}, "SoftLabelCollator")

    def __call__(self, items: list[Sample]) -> dict[str, Tensor]:
        """``pixel_values`` float32 (n, 3, size, size), and ``soft_labels`` float32 (n, classes)."""
        if any(not isinstance(item, tuple) or len(item) < 3 for item in items):
            raise ConfigError("an item is (image, hard label, target); give the trainer a SoftLabelDataset to train on")
        images, _, targets, *_ = SoftLabelDataset.collate(items)
        return {"pixel_values": self._preprocessing.normalise(images), "soft_labels": targets}


class SoftLabelTrainer(_Trainer):  # type: ignore[misc]
    """Train on the cross-entropy to the stored probabilities, each image once per epoch in its next view.

    A `transformers.Trainer` whose ``train_dataset`` is a `SoftLabelDataset`. Set ``remove_unused_columns=False`` in its
    arguments. Override `soft_loss` for another loss.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.add_callback(_NextViews(self))

    def soft_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar of logits and targets, (n, classes) each."""
        return nn.functional.cross_entropy(logits, targets)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """As the Trainer asks for it.

        Raises:
            ConfigError: the batch has no soft labels.
        """
        if "soft_labels" not in inputs:
            raise ConfigError(
                "the batch has no soft_labels; set remove_unused_columns=False, and data_collator=SoftLabelCollator()"
            )
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = self.soft_loss(outputs.logits, inputs["soft_labels"])
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        self._views = OneViewEach(self.train_dataset, seed=0)
        return self._views


class _NextViews(_Callback):  # type: ignore[misc]
    """Tells the sampler the epoch, whatever wraps the loader."""

    def __init__(self, trainer: SoftLabelTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, _: Any, state: Any, *others: Any, **more: Any) -> None:  # noqa: ARG002
        self._trainer._views.set_epoch(round(state.epoch or 0))
