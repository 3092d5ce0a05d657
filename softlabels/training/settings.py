"""How a student is trained, whatever it learns from. Importing this does not import torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator

from softlabels.core.config import MOST, CommandConfig, byte_count
from softlabels.core.installed import timm_optimizers
from softlabels.errors import did_you_mean

_SGD = frozenset({"sgd", "nesterov", "momentum", "sgdp"})
_LOW_FOR_SGD = 1e-3
"""The default rate, which is meant for AdamW."""


def warmup_of(warmup_epochs: float | None, epochs: int) -> float:
    """Epochs of warmup: those that are given, or else a tenth of the run, 5 at most."""
    return min(5.0, epochs / 10) if warmup_epochs is None else warmup_epochs


class TrainSettings(CommandConfig):
    """How a student is trained, whatever it learns from."""

    epochs: int = Field(100, ge=1, le=MOST, description="times each image is seen (in another view each time)")
    batch_size: int = Field(256, ge=1, le=MOST, description="total over all processes: images per forward pass")
    accumulate: int = Field(1, ge=1, le=MOST, description="forward passes per optimizer step")
    views_per_image: int = Field(
        1, ge=1, le=MOST, description="repeated augmentation: views of an image that come together, sharing one decode"
    )
    shuffle_window: int | str | None = Field(
        None,
        description="shards shuffled together, or the memory their labels may take, such as 512MB; for stores beyond "
        "memory  [default: all]",
    )
    optimizer: str = Field("adamw", description="any optimizer of timm's factory: sgd, adamw, lamb, ...")
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False, description="peak learning rate, before `lr_scaling`")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="scale the rate with the effective batch, of all passes and processes, over `lr_base_batch`"
    )
    lr_base_batch: int = Field(256, ge=1, le=MOST, description="effective batch that `lr` is meant for")
    min_lr: float = Field(0.0, ge=0, allow_inf_nan=False, description="learning rate at the end of the cosine")
    lr_scale: dict[str, float] = Field(
        {}, description="multiplier of the rate by layer, as features=0.1,classifier=10; 0 holds a layer still"
    )
    train_only: tuple[str, ...] = Field(
        (),
        description="layers to train while all others stay as they are, batch statistics too: classifier, norms, or "
        "names; repeatable",
    )
    warmup_epochs: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="epochs of linear warmup  [default: a tenth of the epochs, 5 at most]",
    )
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False, description="weight decay; norms and biases have none")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    clip_grad: float | None = Field(None, gt=0, allow_inf_nan=False, description="largest norm of the gradient")
    sync_bn: bool = Field(
        False, description="batch statistics of all processes together, not of each one's slice; on CUDA"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an exponential moving average that is evaluated")
    seed: int = Field(0, ge=0, lt=1 << 64, description="seed of the student's initialisation and of the order")
    eval_every: int = Field(1, ge=1, le=MOST, description="epochs between evaluations; the last is always evaluated")
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="early stopping: after so many evaluations without a better top-1  [default: never]",
    )
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="optimizer steps between checkpoints  [default: ends of epochs, some seconds apart]",
    )

    @property
    def effective_batch(self) -> int:
        """Images of an optimizer step: of all its forward passes, in all processes."""
        return self.batch_size * self.accumulate

    @property
    def warmup(self) -> float:
        """Epochs of linear warmup."""
        return warmup_of(self.warmup_epochs, self.epochs)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warmup.

        `linear`: lr * effective batch / base (Goyal et al. 2017, arXiv:1706.02677); `sqrt`: lr times the square root of
        that ratio (Krizhevsky 2014, arXiv:1404.5997, and with LAMB You et al. 2019, arXiv:1904.00962).
        """
        ratio = self.effective_batch / self.lr_base_batch
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    def describe(self) -> list[str]:
        """How the steps are made, in lines for a run's header."""
        rate = f"{self.peak_lr:.6g}"
        if self.lr_scaling != "none":
            root = "sqrt" if self.lr_scaling == "sqrt" else ""
            ratio = f"{root}({self.effective_batch} / {self.lr_base_batch})"
            rate += f" = {self.lr:g} * {ratio} ({self.lr_scaling} scaling)"
        decay = f", weight decay {self.weight_decay:g} (none for norms and biases)" if self.weight_decay else ""
        lines = [f"optimizer {self.optimizer}, learning rate {rate}{decay}"]
        if self.optimizer in _SGD and self.peak_lr <= _LOW_FOR_SGD:
            lines.append(f"{self.peak_lr:.6g} is a low rate for {self.optimizer}; 0.1 for 256 images is usual (`lr`)")
        if self.lr_scale:
            lines.append("rates of layers: " + ", ".join(f"{name} x {by:g}" for name, by in self.lr_scale.items()))
        if self.train_only:
            lines.append(f"trained are {', '.join(self.train_only)} alone; all else stays as it is")
        return lines

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is asked for after so many steps."""
        return self.checkpoint_every is not None and step % self.checkpoint_every == 0

    @field_validator("shuffle_window")
    @classmethod
    def _is_a_window(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if value is not None and (byte_count(value) if isinstance(value, str) else value) < 1:
            raise ValueError("a window is of 1 shard or more, or of bytes such as 512MB")
        return value

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = timm_optimizers()
        if name not in known:
            raise ValueError(f"unknown optimizer {name!r}; {did_you_mean(name, known)}")
        return name

    @field_validator("train_only", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        words = (value,) if isinstance(value, str) else value
        return tuple(each.strip() for word in words for each in word.split(",")) if words else ()

    @field_validator("lr_scale", mode="before")
    @classmethod
    def _scales(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [each.partition("=") for each in value.split(",")]
        if any(not equals for _, equals, _ in pairs):
            raise ValueError("write it as LAYER=NUMBER,LAYER=NUMBER")
        return {name.strip(): number for name, _, number in pairs}

    @field_validator("lr_scale")
    @classmethod
    def _none_is_negative(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= scale < float("inf") for scale in value.values()):
            raise ValueError("a multiplier is a number from 0 upward")
        return value
