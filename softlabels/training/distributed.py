"""The processes ("ranks") that train one student together: each one's slice, and what they exchange.

`torchrun` starts them. Every collective is reached by all of them at every step, so an uneven last batch neither hangs
nor counts twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.core.progress import waiting
from softlabels.errors import RunError, SoftlabelsError

_T = TypeVar("_T")

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_LOOK_SECONDS = 1.0
"""How often a process looks whether its launcher is there."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one run, seen from the one numbered `rank`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.rank == 0

    def slice(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's slice of `numbers`; the slices of all are the whole, and some may be empty."""
        return np.array_split(numbers, self.count)[self.rank]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        if self.count > 1:
            with self.collective():
                dist.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def average_buffers(self, network: nn.Module) -> None:
        """Set running statistics, which each process has of its own slices, to their mean over all processes."""
        if self.count > 1:
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    self.all_reduce(buffer).div_(self.count)

    def broadcast(self, value: _T) -> _T:
        """The first process's value."""
        if self.count == 1:
            return value
        box = [value]
        with self.collective():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_first(self, work: Callable[[], _T]) -> _T:
        """What `work` returns in the first process, in all of them; an error that a user can cause is raised in all."""
        value, problem = None, None
        if self.first:
            try:
                value = work()
            except SoftlabelsError as raised:
                problem = raised
        value, problem = self.broadcast((value, problem))
        if problem is not None:
            raise problem
        return cast("_T", value)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Within the block processes exchange tensors; that another one is gone is an error of one line.

        Raises:
            RunError: another process ended or does not answer.
        """
        if self.count == 1:
            yield
            return
        try:
            with waiting(f"the other {self.count - 1} processes of this run"):
                yield
        except RuntimeError as problem:
            if not isinstance(problem, dist.DistError) and not any(word in str(problem) for word in _TRANSPORTS):
                raise
            raise RunError(
                f"another process of this run ended or does not answer ({_first_line(problem)}); its own messages tell "
                f"why, and the same command goes on from the last checkpoint"
            ) from problem


SINGLE = Ranks()

_TRANSPORTS = ("gloo", "NCCL", "onnection", "imed out", "Broken pipe")
"""One of these is in every error of an exchange that fails; gloo has no class of its own for them."""


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, nccl between GPUs and gloo between CPUs; `SINGLE` without it.

    Under torchrun "cuda" is then this process's own GPU, and the process ends when torchrun is gone. A group that
    somebody has made already is used and left as it is.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if any(name not in os.environ for name in _NEEDED) or os.environ["WORLD_SIZE"] == "1":
        yield SINGLE
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(
            target=_end_with_launcher, args=(os.getppid(),), name="softlabels-launcher", daemon=True
        ).start()
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
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _end_with_launcher(launcher: int) -> None:
    """End this process when the one that started it is gone: it would hold the run's folder against a restart."""
    while os.getppid() == launcher:
        time.sleep(_LOOK_SECONDS)
    print("error: torchrun is gone, and so this process of its run ends", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)  # a process that waits for the others would not hear anything less


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]
