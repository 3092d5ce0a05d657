"""Several processes that train one student: which share each takes, and how the shares become one again.

`torchrun` starts them. Every collective is reached by all of them at every step, whatever the size of their share, so
an uneven last batch neither hangs nor counts twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

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
        dist.broadcast_object_list(box, src=0)
        return box[0]

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
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


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
