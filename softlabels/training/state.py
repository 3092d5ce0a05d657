"""A student in training: the network with all that a step changes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from softlabels.core.philox import philox
from softlabels.errors import ConfigError
from softlabels.loading.batches import Batch, Workers
from softlabels.models import Preprocessing, logits_of
from softlabels.training.checkpoints import after_checkpoint
from softlabels.training.distributed import ALONE, Processes, lone_batch_norm, synced_batch_norm
from softlabels.training.settings import Settings

_DROPOUT = 6
"""Stream of chance for what a network draws itself."""


@dataclass(frozen=True)
class Place:
    """Where a student is trained: on what, in which type, with how many loading processes, and beside whom."""

    device: torch.device
    amp: torch.dtype | None = None
    workers: Workers = 0
    compile: bool = False
    channels_last: bool = False
    processes: Processes = ALONE


def parameter_groups(
    network: nn.Module, weight_decay: float, lr_scale: Mapping[str, float], train_only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Parameters by decay (norms and biases have none) and by the multiplier of the longest layer name that fits.

    What is held still, by a multiplier of 0 or by not being among `train_only`, is in no group and takes no gradient.

    Raises:
        ConfigError: a name fits no parameter (the network's own layers are shown), or nothing is left to train.
    """
    named = dict(network.named_parameters())
    for option, layers in (("`lr_scale`", lr_scale), ("`train_only`", train_only)):
        for layer in layers:
            if layer != NORMS and not any(_is_in(name, layer) for name in named):
                held = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
                raise ConfigError(f"{option} {layer}: the student has no such layer; it has {held}")
    told: Any = getattr(network, "no_weight_decay", tuple)  # timm's transformers name their embeddings
    undecayed = set(told())
    learning = _learning_parts(network, lr_scale, train_only)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if name not in learning:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            flat = parameter.ndim <= 1 or name.endswith(".bias") or name in undecayed
            groups.setdefault((_scale(name, lr_scale), 0.0 if flat else weight_decay), []).append(parameter)
    if not groups:
        raise ConfigError("`lr_scale` and `train_only` hold every layer still; leave one to train")
    return [{"params": each, "lr_scale": scale, "weight_decay": decay} for (scale, decay), each in groups.items()]


NORMS = "norms"
"""In `train_only`: every normalisation layer, with its statistics (what FixRes trains beside the classifier)."""


def _learning_parts(network: nn.Module, lr_scale: Mapping[str, float], train_only: Sequence[str]) -> set[str]:
    """Names of the modules and parameters that are trained."""
    norms = [name for name, module in network.named_modules() if _is_norm(module)]
    layers = [each for word in train_only for each in (norms if word == NORMS else [word])]
    names = [name for name, _ in (*network.named_modules(), *network.named_parameters())]
    chosen = {name for name in names if not train_only or any(_is_in(name, layer) for layer in layers)}
    # A parameter may be named itself (head.weight): its module then learns as well.
    chosen |= {layer.rpartition(".")[0] for layer in layers if layer not in dict(network.named_modules())}
    return {name for name in chosen if _scale(name, lr_scale) > 0}


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


def _scale(name: str, lr_scale: Mapping[str, float]) -> float:
    fitting = [layer for layer in lr_scale if _is_in(name, layer)]
    return lr_scale[max(fitting, key=len)] if fitting else 1.0


def _is_in(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    # timm's "sgd" is Nesterov's, which there is not without momentum; its "momentum" is plain.
    plain = settings.optimizer in ("sgd", "nesterov") and settings.momentum == 0
    groups = parameter_groups(network, settings.weight_decay, settings.lr_scale, settings.train_only)
    try:
        return create_optimizer_v2(
            groups,
            opt="momentum" if plain else settings.optimizer,
            lr=settings.peak_lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
    except Exception as problem:  # optimizers check their packages, devices and numbers in any way
        reason = " ".join(str(problem).split())[:160] or f"{type(problem).__name__}; it may need CUDA or a package"
        raise ConfigError(f"`optimizer={settings.optimizer}` cannot be made: {reason}; choose another") from problem


def check_optimizer(settings: Settings) -> None:
    """Let the optimizer step, be saved, loaded and step again, on a network of a few numbers.

    Raises:
        ConfigError: it cannot be made or does not step here, or a resumed run would differ from a whole one.
    """
    _check_optimizer(settings.optimizer, settings.weight_decay, settings.momentum)


@functools.cache
def _check_optimizer(name: str, weight_decay: float, momentum: float) -> None:
    settings = Settings(optimizer=name, weight_decay=weight_decay, momentum=momentum)
    try:
        # Some compile their steps, which may take minutes.
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            at_once = _stepped(settings, 0, 4)
            resumed = _stepped(settings, 2, 4, after_checkpoint(_stepped(settings, 0, 2)))
    except ConfigError:
        raise
    except Exception as problem:  # of the optimizer's own code
        reason = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise ConfigError(
            f"`optimizer={name}` cannot be used here: it fails to step, or to go on from a checkpoint ({reason}); "
            f"choose another"
        ) from problem
    pairs = ((tensor, resumed["network"][key]) for key, tensor in at_once["network"].items())
    if not all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in pairs):
        raise ConfigError(
            f"`optimizer={name}` cannot be used: from a checkpoint it does not go on as an uninterrupted run would; "
            f"choose another"
        )


def _stepped(settings: Settings, start: int, stop: int, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """State dicts of a small network and its optimizer after the steps from `start`, where `state` was, to `stop`."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        # The kinds of layers that networks have: of four, two and one dimensions.
        layers = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
        network = nn.Sequential(*layers)
        optimizer = _optimizer(network, settings)
        if state is not None:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
        pictures = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)
        for step in range(start, stop):
            _seed(optimizer, step, step)
            loss = nn.functional.cross_entropy(network(pictures), torch.tensor([0, 1]))
            loss.backward(create_graph=_is_second_order(optimizer))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict()}


def _seed(optimizer: torch.optim.Optimizer, seed: int, own_seed: int) -> None:
    """Seed torch's generator, and that of an optimizer that has one."""
    torch.manual_seed(seed)
    generator = getattr(optimizer, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(own_seed)


def _is_second_order(optimizer: torch.optim.Optimizer) -> bool:
    return bool(getattr(optimizer, "is_second_order", False))


class _Average(ModelEmaV3):
    """timm's average, of networks with extra states too, which are taken over as they are."""

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """One step of the average: a * decay + b * (1 - decay) of each floating tensor, the newest of all others."""
        theirs = model.state_dict()
        extras = {name: value for name, value in theirs.items() if not isinstance(value, Tensor)}
        if not extras:
            super().apply_update_(model, decay)
            return
        for name, mine in self.module.state_dict().items():
            if isinstance(mine, Tensor) and mine.is_floating_point():
                mine.lerp_(theirs[name].to(mine.device), 1 - decay)
            elif isinstance(mine, Tensor):
                mine.copy_(theirs[name])
        self.module.load_state_dict(extras, strict=False)


class Learner:
    """A network with its optimizer, schedule, average and loss scale: all that a step changes."""

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, settings: Settings, steps: int, warmup: int, at: Place
    ) -> None:
        if settings.sync_bn and at.compile and at.processes.count > 1:
            raise ConfigError(
                "`sync_bn=True` and `compile=True` exclude each other: compiled batch norms cannot be joined"
            )
        # Not preserve_format: a batch that was made channels_last would not be taken.
        layout = torch.channels_last if at.channels_last else torch.contiguous_format
        self.network = network.to(at.device)
        if at.channels_last:
            self.network.to(memory_format=layout)
        self._forward = torch.compile(network) if at.compile else network
        self._preprocessing, self._settings, self._place, self._layout = preprocessing, settings, at, layout
        learning = _learning_parts(network, settings.lr_scale, settings.train_only)
        self._still = [module for name, module in network.named_modules() if name not in learning]
        self._optimizer = _optimizer(network, settings)
        # Step i of the warmup has rate (i + 1) / warmup of the peak: the first moves, and the last is at the peak, from
        # which the cosine begins.
        rising = max(warmup - 1, 0)
        self._schedule = CosineLRScheduler(
            self._optimizer,
            t_initial=max(steps - rising, 2),
            lr_min=settings.min_lr,
            warmup_t=rising,
            warmup_lr_init=settings.peak_lr / max(warmup, 1),
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self._average = _Average(network, decay=settings.ema) if settings.ema else None
        self._scaler = torch.amp.GradScaler(at.device.type, enabled=at.amp is torch.float16)
        self._second_order = _is_second_order(self._optimizer)
        if self._second_order and (at.processes.count > 1 or self._scaler.is_enabled()):
            raise ConfigError(
                f"`optimizer={settings.optimizer}` takes second derivatives, in one process and without `amp=fp16`; "
                f"choose another"
            )

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
        # Laid out as the network wants them while they are bytes, of which there are a quarter as many.
        pictures = batch.pictures.to(device, non_blocking=True).contiguous(memory_format=self._layout)
        pictures = self._preprocessing.normalise(pictures)
        norms: AbstractContextManager[Any] = nullcontext()
        forward = self._forward
        if self._settings.sync_bn and self._place.processes.count > 1:
            norms = synced_batch_norm(self._place.processes)
        elif len(batch) == 1 and self._settings.batch_size // self._place.processes.count > 1:
            # What is left over of an epoch. Not compiled, which it would be for this one pass.
            norms, forward = lone_batch_norm(), self.network
        with norms, torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            try:
                return logits_of(forward(pictures), "the student")
            except ValueError as problem:
                if len(batch) != 1 or "Expected more than 1 value per channel" not in str(problem):
                    raise
                raise ConfigError(
                    f"the student's batch norms need 2 pictures or more, and a pass of "
                    f"`batch_size={self._settings.batch_size}` in {self._place.processes.count} process(es) has 1; "
                    f"raise `batch_size`, or choose a larger `size` or a student without batch norms"
                ) from problem

    def learn(
        self, passes: Sequence[Batch], step: int, loss: Callable[[Batch], tuple[Tensor, Tensor]]
    ) -> Tensor | None:
        """Make optimizer step number `step` (from 0).

        `passes` are this process's share. `loss` gives what a batch adds to the loss of the whole step, and sums to be
        reported; returns these summed over the share, None when it is empty.
        """
        processes = self._place.processes
        # Reseeded at each step, so that dropout too is a function of (seed, step) and a resumed run equals a whole one.
        words = philox((self._settings.seed, _DROPOUT), (step, processes.rank, 0, 0))
        _seed(self._optimizer, *(int(word >> np.uint64(1)) for word in words[:2]))
        self.network.train()
        for module in self._still:
            module.training = False
        sums: list[Tensor] = []
        for batch in passes:
            value, terms = loss(batch)
            self._scaler.scale(value).backward(create_graph=self._second_order)
            if len(batch):
                sums.append(terms.detach())
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
        # Not a set: its order differs between processes, which would mix the network's statistics with its average's.
        for network in dict.fromkeys((self.network, self.best_network)):
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
