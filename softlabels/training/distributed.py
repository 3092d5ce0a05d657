"""Several processes that train one student: which share each takes, and how the shares become one again.

`torchrun` starts them. Every collective is reached by all of them at every step, whatever the size of their share, so
an uneven last batch neither hangs nor counts twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from softlabels.core.progress import waiting
from softlabels.errors import RunError, SoftlabelsError

T = TypeVar("T")

_BUCKET = 8 << 20
"""Numbers that travel in one message: few messages, and no copy of all gradients at once."""

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """The processes of one run, seen from the one numbered `rank`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def share(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's slice of `numbers`; the slices of all are the whole, and some may be empty."""
        return np.array_split(numbers, self.count)[self.rank]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        if self.count > 1:
            with _together(self.count):
                dist.all_reduce(tensor)
        return tensor

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the sum of all processes' gradients in their place; a process without any adds nothing."""
        if self.count == 1:
            return
        tensors = []
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                tensors.append(parameter.grad)
        self._total_each(tensors)

    @torch.no_grad()
    def average_buffers(self, network: nn.Module) -> None:
        """Put the mean over all processes in the place of running statistics, each being of its own share."""
        if self.count == 1:
            return
        tensors = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._total_each(tensors)
        for tensor in tensors:
            tensor.div_(self.count)

    def agreed(self, value: T) -> T:
        """What the first process holds."""
        if self.count == 1:
            return value
        box = [value]
        with _together(self.count):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def led(self, work: Callable[[], T]) -> T:
        """What the first process makes of `work`, in all of them; an error that a user can cause is raised in all."""
        value, problem = None, None
        if self.first:
            try:
                value = work()
            except SoftlabelsError as raised:
                problem = raised
        value, problem = self.agreed((value, problem))
        if problem is not None:
            raise problem
        return cast("T", value)

    def _total_each(self, tensors: list[Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = self.total(torch.cat([tensor.reshape(-1) for tensor in bucket]))
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view(tensor.shape))


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, nccl between GPUs and gloo between CPUs; alone without it.

    Under torchrun "cuda" is then this process's own GPU. A group that somebody has made already is used and left as
    it is.
    """
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if any(name not in os.environ for name in _NEEDED) or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    others = int(os.environ["WORLD_SIZE"]) - 1
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        with waiting(f"the other {others} processes of this run (WORLD_SIZE) at {where}"):
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as problem:
        raise RunError(
            f"the {others} other processes of this run did not come together at {where} ({_first_line(problem)}); "
            f"start all with torchrun, or unset RANK and WORLD_SIZE"
        ) from problem
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _together(count: int) -> Iterator[None]:
    """Within the block all processes of a run work together; one that is gone is told in one line."""
    try:
        with waiting(f"the other {count - 1} processes of this run"):
            yield
    except RuntimeError as problem:
        raise RunError(
            f"another process of this run ended or does not answer ({_first_line(problem)}); what it said tells why, "
            f"and the same command goes on from the last checkpoint"
        ) from problem


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]


class _Sum(torch.autograd.Function):
    """The sum of all processes' tensors; as each of them moves every process's loss, so do their gradients add up."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.total(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.processes.total(gradients[0].clone()), None


class _BatchNorms(TorchFunctionMode):
    def __init__(self, norm: Callable[..., Tensor]) -> None:
        super().__init__()
        self._norm = norm

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.batch_norm:
            return self._norm(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def synced_batch_norm(processes: Processes) -> TorchFunctionMode:
    """Within the block batch norms that train use the mean and variance of the pictures of all processes.

    Every process runs the same network in it equally often, if need be on no picture at all: a share may be empty.
    Any layer made of `torch.nn.functional.batch_norm` is reached, on any device. (torch's own SyncBatchNorm refuses
    CPUs, and would take the place of a layer that does more, as timm's do.)
    """
    return _BatchNorms(partial(_batch_norm, processes))


def lone_batch_norm() -> TorchFunctionMode:
    """Within the block a batch norm that trains on one value per channel takes its running statistics, as they are.

    Those of one value say nothing (torch refuses them): what is left over of an epoch may be one small picture.
    """
    return _BatchNorms(_lone_norm)


def _lone_norm(
    alone: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None and input.numel() == input.shape[1]:
        training = False
    return alone(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _batch_norm(
    processes: Processes,
    alone: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `alone`, torch's batch_norm, with statistics of all processes where it trains."""
    if not training:
        return alone(input, running_mean, running_var, weight, bias, training, momentum, eps)
    values = input.float()
    places = [0, *range(2, input.ndim)]
    shape = [1, -1, *[1] * (input.ndim - 2)]
    # Two messages: the variance as a difference of two large sums would lose its figures.
    own = values.new_full((1,), input.numel() // input.shape[1])
    *sums, count = _Sum.apply(torch.cat([values.sum(places), own]), processes).split([input.shape[1], 1])
    mean = sums[0] / count
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(places), processes) / count
    if running_mean is not None and running_var is not None:
        lone = count == 1  # one value of all processes: as `lone_batch_norm`
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            before = running_mean.float().clone(), running_var.float().clone()
            running_mean.lerp_(torch.where(lone, before[0], mean).to(running_mean.dtype), momentum)
            running_var.lerp_(torch.where(lone, before[1], unbiased).to(running_var.dtype), momentum)
        centred = torch.where(lone, values - before[0].view(shape), centred)
        variance = torch.where(lone, before[1], variance)
    normalised = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        normalised = normalised * weight.view(shape)
    if bias is not None:
        normalised = normalised + bias.view(shape)
    return normalised.to(input.dtype)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one type, of some `_BUCKET` numbers each."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(each.numel() for each in bucket) >= _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
