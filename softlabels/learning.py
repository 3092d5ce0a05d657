"""How a student is trained, whatever it learns from: settings, and the network with all that a step changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from softlabels._philox import philox
from softlabels.errors import ConfigError, did_you_mean
from softlabels.networks import Preprocessing
from softlabels.processes import ALONE, Processes
from softlabels.samples import Batch, Workers

_DROPOUT = 6
"""Stream of chance for what a network draws itself."""


class Settings(BaseModel):
    """How a student is trained, whatever it learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(100, ge=1, description="times each image is seen (in another view each time)")
    batch_size: int = Field(256, ge=1, description="pictures per forward pass, all processes together")
    accumulate: int = Field(1, ge=1, description="forward passes per optimizer step")
    views_per_image: int = Field(1, ge=1, description="views of an image that come together, sharing one decode")
    shuffle_window: int | None = Field(
        None, ge=1, description="shards shuffled together, for stores beyond memory  [default: all]"
    )
    optimizer: str = Field("adamw", description="any optimizer of timm's factory: sgd, adamw, lamb, ...")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    lr_scale: dict[str, float] = Field(
        {}, description="multiplier of the rate by layer, as features=0.1,classifier=10; 0 holds a layer still"
    )
    warmup_epochs: float = Field(5.0, ge=0, description="epochs of linear warmup")
    weight_decay: float = Field(0.05, ge=0, description="weight decay; norms and biases have none")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an exponential moving average that is evaluated")
    seed: int = Field(0, ge=0, description="seed of the student's initialisation and of the order")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations; the last is always evaluated")
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better top-1  [default: never]"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="optimizer steps between checkpoints  [default: ends of epochs, some seconds apart]"
    )

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is asked for after so many steps."""
        return self.checkpoint_every is not None and step % self.checkpoint_every == 0

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = list_optimizers()
        if name not in known:
            raise ValueError(f"unknown optimizer {name!r}; {did_you_mean(name, known)}")
        return name

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


@dataclass(frozen=True)
class Place:
    """Where a student is trained: on what, in which type, with how many loading processes, and beside whom."""

    device: torch.device
    amp: torch.dtype | None = None
    workers: Workers = 0
    compile: bool = False
    channels_last: bool = False
    processes: Processes = ALONE


def parameter_groups(network: nn.Module, weight_decay: float, lr_scale: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters by decay (norms and biases have none) and by the multiplier of the longest layer name that fits.

    Raises:
        ConfigError: a name of `lr_scale` fits no parameter; the network's own layers are shown.
    """
    names = [name for name, _ in network.named_parameters()]
    for layer in lr_scale:
        if not any(_is_in(name, layer) for name in names):
            layers = list(dict.fromkeys(name.split(".")[0] for name in names))
            raise ConfigError(f"--lr-scale {layer}: the student has no such layer; it has {', '.join(layers)}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        fitting = [layer for layer in lr_scale if _is_in(name, layer)]
        scale = lr_scale[max(fitting, key=len)] if fitting else 1.0
        if scale == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name.endswith(".bias") else weight_decay
            groups.setdefault((scale, decay), []).append(parameter)
    if not groups:
        raise ConfigError("--lr-scale holds every layer still; leave one to train")
    return [{"params": each, "lr_scale": scale, "weight_decay": decay} for (scale, decay), each in groups.items()]


def _is_in(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


class Learner:
    """A network with its optimizer, schedule, average and loss scale: all that a step changes."""

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, settings: Settings, steps: int, warmup: int, at: Place
    ) -> None:
        layout = torch.channels_last if at.channels_last else torch.preserve_format
        self.network = network.to(at.device).to(memory_format=layout)
        self._forward = torch.compile(network) if at.compile else network
        self._preprocessing, self._settings, self._place, self._layout = preprocessing, settings, at, layout
        self._optimizer = create_optimizer_v2(
            parameter_groups(network, settings.weight_decay, settings.lr_scale) if settings.lr_scale else network,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
        self._schedule = CosineLRScheduler(
            self._optimizer,
            t_initial=max(steps - warmup, 2),
            lr_min=settings.min_lr,
            warmup_t=warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self._average = ModelEmaV3(network, decay=settings.ema) if settings.ema else None
        self._scaler = torch.amp.GradScaler(at.device.type, enabled=at.amp is torch.float16)

    @property
    def lr(self) -> float:
        """Learning rate of the last step, where no multiplier changes it."""
        group = self._optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1.0)

    @property
    def best_network(self) -> nn.Module:
        """What is evaluated and kept: the moving average where there is one."""
        return self._average.module if self._average is not None else self.network

    def logits(self, batch: Batch) -> Tensor:
        """What the student says of a batch, (n, classes), in training mode and with its graph."""
        device, amp = self._place.device, self._place.amp
        pictures = self._preprocessing.normalise(batch.pictures.to(device, non_blocking=True))
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            return self._forward(pictures.contiguous(memory_format=self._layout))

    def learn(
        self, passes: Sequence[Batch], pictures: int, step: int, loss: Callable[[Batch], tuple[Tensor, Tensor]]
    ) -> Tensor | None:
        """Make optimizer step number `step` (from 0) of so many `pictures` in all processes, each weighing the same.

        `passes` are this process's share. `loss` gives a batch's mean loss and the terms to be reported; returns the
        terms summed over the share, None when it is empty.
        """
        processes = self._place.processes
        # Reseeded at each step, so that dropout too is a function of (seed, step) and a resumed run equals a whole one.
        words = philox((self._settings.seed, _DROPOUT), (step, processes.rank, 0, 0))
        torch.manual_seed(int(words[0] >> np.uint64(1)))
        self.network.train()
        sums: list[Tensor] = []
        for batch in passes:
            value, terms = loss(batch)
            self._scaler.scale(value * (len(batch) / pictures)).backward()
            sums.append(terms.detach() * len(batch))
        processes.add_gradients(self.network.parameters())
        self._step(step)
        return torch.stack(sums).sum(0) if sums else None

    def _step(self, step: int) -> None:
        if self._settings.clip_grad:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip_grad)
        self._schedule.step_update(step)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.network)

    def settle(self) -> None:
        """Make the network one in all processes, before it is evaluated or kept."""
        for network in {self.network, self.best_network}:
            self._place.processes.average_buffers(network)

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.module.state_dict() if self._average is not None else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
