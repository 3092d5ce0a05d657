"""A student in training: the network with all that a step changes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from softlabels.core.philox import philox
from softlabels.core.types import LOGITS, Outputs
from softlabels.errors import ConfigError
from softlabels.loading.batches import Batch, Workers
from softlabels.loading.distributed import SINGLE, Ranks
from softlabels.models import OutputReader, Preprocessing
from softlabels.training.checkpoints import after_checkpoint
from softlabels.training.heads import Heads, WithHeads
from softlabels.training.settings import TrainSettings

_DROPOUT = 6
"""Random stream of what a network draws itself."""


@dataclass(frozen=True)
class Runtime:
    """Where a student is trained: on which device, in which type, with which loading workers and other processes.

    `all_parameters_used`: whether each pass computes with every parameter; DistributedDataParallel looks otherwise.
    """

    device: torch.device
    amp: torch.dtype | None = None
    workers: Workers = 0
    compile: bool = False
    channels_last: bool = False
    ranks: Ranks = SINGLE
    all_parameters_used: bool = True


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
    named_by_timm: Any = getattr(network, "no_weight_decay", tuple)  # its transformers name their embeddings
    undecayed = set(named_by_timm())
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


def _optimizer(network: nn.Module, settings: TrainSettings, heads: nn.Module | None = None) -> torch.optim.Optimizer:
    # timm's "sgd" is Nesterov's, which there is not without momentum; its "momentum" is plain.
    plain = settings.optimizer in ("sgd", "nesterov") and settings.momentum == 0
    groups = parameter_groups(network, settings.weight_decay, settings.lr_scale, settings.train_only)
    if heads is not None:  # whatever layers of the student are held still
        groups += parameter_groups(heads, settings.weight_decay, {})
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups,
            opt="momentum" if plain else settings.optimizer,
            lr=settings.peak_lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
        return optimizer
    except Exception as problem:  # optimizers check their packages, devices and numbers in any way
        reason = " ".join(str(problem).split())[:160] or f"{type(problem).__name__}; it may need CUDA or a package"
        raise ConfigError(f"`optimizer={settings.optimizer}` cannot be made: {reason}; choose another") from problem


def _schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int, warmup: int) -> CosineLRScheduler:
    # Step i of the warmup has rate (i + 1) / warmup of the peak: the first moves, and the last is at the peak, from
    # which the cosine begins.
    rising = max(warmup - 1, 0)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(steps - rising, 2),
        lr_min=settings.min_lr,
        warmup_t=rising,
        warmup_lr_init=settings.peak_lr / max(warmup, 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def learning_rate(settings: TrainSettings, steps: int, warmup: int, step: int) -> float:
    """The rate of optimizer step number `step` (from 0) of so many, where no multiplier changes it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.peak_lr)
    _schedule(optimizer, settings, steps, warmup).step_update(step)
    return float(optimizer.param_groups[0]["lr"])


def check_ranks(settings: TrainSettings, runtime: Runtime) -> None:
    """Raise ConfigError when these processes cannot train together as the settings ask."""
    count, device = runtime.ranks.count, runtime.device.type
    if settings.batch_size < count:
        raise ConfigError(
            f"`batch_size={settings.batch_size}` has no image for some of the {count} processes of this run; choose "
            f"{count} or more, or start fewer processes"
        )
    if settings.sync_bn and count > 1 and device != "cuda":
        raise ConfigError(
            f"`sync_bn` needs CUDA (torch.nn.SyncBatchNorm), and the {count} processes of this run train on {device}; "
            f"leave it out, or train in one process"
        )
    if settings.sync_bn and count > 1 and runtime.compile:
        raise ConfigError("`sync_bn=True` and `compile=True` exclude each other; leave one of them out")


def check_optimizer(settings: TrainSettings) -> None:
    """Let the optimizer step, be saved, loaded and step again, on a network of a few numbers.

    Raises:
        ConfigError: it cannot be made or does not step here, or a resumed run would differ from a whole one.
    """
    _check_optimizer(settings.optimizer, settings.weight_decay, settings.momentum)


@functools.cache
def _check_optimizer(name: str, weight_decay: float, momentum: float) -> None:
    settings = TrainSettings(optimizer=name, weight_decay=weight_decay, momentum=momentum)
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


def _stepped(settings: TrainSettings, start: int, stop: int, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """State dicts of a small network and its optimizer after the steps from `start`, where `state` was, to `stop`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
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


class _Average(ModelEmaV3):  # type: ignore[misc]  # timm's types are not read, see pyproject.toml
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


@contextmanager
def lone_batch_norm(network: nn.Module) -> Iterator[None]:
    """Within the block a batch norm that trains on one value per channel uses its running statistics and keeps them.

    torch refuses to take statistics of one value; what is left over of an epoch may be one small image.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    training = [module.training for module in norms]
    hooks = [module.register_forward_pre_hook(_use_running_statistics) for module in norms]
    try:
        yield
    finally:
        for module, mode, hook in zip(norms, training, hooks, strict=True):
            module.training = mode
            hook.remove()


def _use_running_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if norm.running_mean is not None and inputs[0].numel() == inputs[0].shape[1]:
        norm.training = False


class TrainState:
    """A network with its optimizer, schedule, average and loss scale: all that a step changes.

    A step is `begin`, then `forward` and `backward` for each of its passes, then `step`.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        settings: TrainSettings,
        steps: int,
        warmup: int,
        runtime: Runtime,
        outputs: Sequence[str] = (LOGITS,),
        heads: Heads | None = None,
    ) -> None:
        check_ranks(settings, runtime)
        ranks = runtime.ranks
        self._synced = settings.sync_bn and ranks.count > 1
        # timm's, since torch's own would replace a layer that does more than normalise, as timm's do.
        self.network = (convert_sync_batchnorm(network) if self._synced else network).to(runtime.device)
        # Not preserve_format: a batch that was made channels_last would not be taken.
        self._layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
        if runtime.channels_last:
            self.network.to(memory_format=self._layout)
        self._preprocessing, self._settings, self._runtime = preprocessing, settings, runtime
        learning = _learning_parts(self.network, settings.lr_scale, settings.train_only)
        self._frozen = [module for name, module in self.network.named_modules() if name not in learning]
        self._heads = None if heads is None else heads.to(runtime.device)
        self._optimizer = _optimizer(self.network, settings, self._heads)
        self._scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.amp is torch.float16)
        self._second_order = _is_second_order(self._optimizer)
        if self._second_order and (ranks.count > 1 or self._scaler.is_enabled()):
            raise ConfigError(
                f"`optimizer={settings.optimizer}` takes second derivatives, in one process and without `amp=fp16`; "
                f"choose another"
            )
        self._reader = OutputReader(self.network, outputs)  # before it is compiled, with the layers that it watches
        self._forward: nn.Module = torch.compile(self.network) if runtime.compile else self.network  # type: ignore[assignment]
        if self._heads is not None:
            self._forward = WithHeads(self._forward, self._reader, self._heads)
        if ranks.count > 1:  # after the optimizer, which marks the parameters that are not trained
            self._forward = _data_parallel(self._forward, runtime)
        self._schedule = _schedule(self._optimizer, settings, steps, warmup)
        self._average = _Average(self.network, decay=settings.ema) if settings.ema else None
        self._step = self._passes_left = 0

    @property
    def lr(self) -> float:
        """Learning rate of the last step, where no multiplier changes it."""
        group = self._optimizer.param_groups[0]
        return float(group["lr"] / group.get("lr_scale", 1.0))

    @property
    def best_network(self) -> nn.Module:
        """What is evaluated and kept: the moving average where there is one."""
        return self._average.module if self._average is not None else self.network

    def begin(self, step: int, passes: int = 1) -> None:
        """Begin optimizer step number `step` (from 0), of so many passes in each process."""
        # Reseeded at each step, so that dropout too is a function of (seed, step) and a resumed run equals a whole one.
        words = philox((self._settings.seed, _DROPOUT), (step, self._runtime.ranks.rank, 0, 0))
        _seed(self._optimizer, *(int(word >> np.uint64(1)) for word in words[:2]))
        self.network.train()
        for module in self._frozen:
            module.training = False
        self._step, self._passes_left = step, passes

    def forward(self, batch: Batch) -> Outputs:
        """The student's outputs of a batch, such as logits (n, classes), in training mode and with their graph."""
        device, amp, ranks = self._runtime.device, self._runtime.amp, self._runtime.ranks
        # Laid out as the network wants them while they are bytes, of which there are a quarter as many.
        images = batch.pictures.to(device, non_blocking=True).contiguous(memory_format=self._layout)
        images = self._preprocessing.normalise(images)
        if isinstance(self._forward, DistributedDataParallel):  # as `no_sync` does for all passes but the last
            self._forward.require_backward_grad_sync = self._passes_left == 1
        with ExitStack() as stack:
            if len(batch) == 1 and not self._synced and self._settings.batch_size // ranks.count > 1:
                stack.enter_context(lone_batch_norm(self.network))
                if self._runtime.compile:  # it would be compiled anew for this one pass
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch.autocast(device.type, dtype=amp, enabled=amp is not None))
            try:
                answer = self._forward(images)
                if self._heads is not None:
                    outputs: Outputs = answer
                    return outputs
                return self._reader.read(answer, "the student")
            except ValueError as problem:
                if len(batch) != 1 or "Expected more than 1 value per channel" not in str(problem):
                    raise
                raise ConfigError(
                    f"the student's batch norms need 2 images or more, and a pass of "
                    f"`batch_size={self._settings.batch_size}` in {ranks.count} process(es) has 1; "
                    f"raise `batch_size`, or choose a larger `size` or a student without batch norms"
                ) from problem

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a pass: of what it adds, in this process, to the loss of the whole step."""
        ranks = self._runtime.ranks
        if ranks.count > 1:
            loss = loss * ranks.count  # DDP takes the mean over processes, and the step's loss is their sum
        with ranks.collective():
            self._scaler.scale(loss).backward(create_graph=self._second_order)
        self._passes_left -= 1

    def step(self) -> None:
        """Move the weights along the gradients of all passes, and their average."""
        if self._settings.clip_grad:
            self._scaler.unscale_(self._optimizer)
            beside = () if self._heads is None else self._heads.parameters()
            nn.utils.clip_grad_norm_([*self.network.parameters(), *beside], self._settings.clip_grad)
        self._schedule.step_update(self._step)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.network)

    def average_statistics(self) -> None:
        """Make the network the same in all processes, before it is evaluated or kept."""
        # Not a set: its order differs between processes, which would mix the network's statistics with its average's.
        for network in dict.fromkeys((self.network, self.best_network)):
            self._runtime.ranks.average_buffers(network)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        heads = {} if self._heads is None else {"heads": self._heads.state_dict()}
        return {
            "network": self.network.state_dict(),
            **heads,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.module.state_dict() if self._average is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.network.load_state_dict(state["network"])
        if self._heads is not None:
            self._heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])


def _data_parallel(network: nn.Module, runtime: Runtime) -> nn.Module:
    """The network whose gradients are averaged over processes; its weights are the first process's from now on."""
    with runtime.ranks.collective(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the name of `broadcast_buffers`, which older versions need
        return DistributedDataParallel(
            network,
            broadcast_buffers=False,  # each process has statistics of its own slices until `average_statistics`
            find_unused_parameters=not runtime.all_parameters_used,
        )
