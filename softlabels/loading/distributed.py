"""The processes ("ranks") that do one job together: each one's slice, and what they exchange.

`torchrun` starts them, or `run_on` one for each device of this machine. Every collective is reached by all of them at
every step, so an uneven last batch neither hangs nor counts twice.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.core import signals
from softlabels.core.processes import started_with_others
from softlabels.core.progress import waiting
from softlabels.errors import RunError, SoftlabelsError

_T = TypeVar("_T")

_LOOK_SECONDS = 1.0
"""How often a process looks whether its launcher is there."""

_GRACE_SECONDS = 30.0
"""How long processes that are ended may take to put things in order."""


class PeerError(RunError):
    """Another process of the run is gone; its own error says why."""


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
            problem.repeated = not self.first
            raise problem
        return cast("_T", value)

    def first_then_others(self, work: Callable[[], _T]) -> _T:
        """What `work` returns in each process; the others begin when the first has done it, and not if it failed."""
        done: list[_T] = []
        self.on_first(lambda: done.append(work()))
        return done[0] if self.first else work()

    def gather(self, value: _T) -> list[_T]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values: list[_T | None] = [None] * self.count
        with self.collective():
            dist.all_gather_object(values, value)
        return cast("list[_T]", values)

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
            raise PeerError(
                f"another process of this run ended or does not answer ({_first_line(problem)}); its own messages tell "
                f"why, and the same command goes on where this one stopped"
            ) from problem


SINGLE = Ranks()

_TRANSPORTS = ("gloo", "NCCL", "onnection", "imed out", "Broken pipe")
"""One of these is in every error of an exchange that fails; gloo has no class of its own for them."""


class StopVote:
    """Lets all processes stop at one step when some of them are asked to end."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._asked = ranks, torch.zeros(1)
        self._sum: dist.Work | None = None

    def stop(self, asked: bool) -> bool:
        """Whether to stop, the same in all processes, which call this once a step.

        With several it is what they were asked at the step before: so no step waits for the slowest process.
        """
        if self._ranks.count == 1:
            return asked
        stop = False
        with self._ranks.collective():
            if self._sum is not None:
                self._sum.wait()
                stop = bool(self._asked.item())
            self._asked = torch.tensor([float(asked)])
            self._sum = dist.all_reduce(self._asked, async_op=True)
        return stop


@contextmanager
def process_group(*, gpus: bool = True, timeout: timedelta | None = None) -> Iterator[Ranks]:
    """Join the processes that `torchrun` or `run_on` started; `SINGLE` without them.

    They exchange tensors over gloo, and those on GPUs over nccl unless `gpus` is False; "cuda" is otherwise this
    process's own GPU from now on. Under torchrun the process ends when torchrun is gone. A group that somebody has made
    already is used and left as it is.

    Args:
        timeout: how long processes may wait for each other [default: as torch has it, half an hour].

    Raises:
        RunError: they do not come together.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if not started_with_others():
        yield SINGLE
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with(os.getppid(), "torchrun")
    found = torch.cuda.device_count() if gpus else 0
    if found:
        torch.cuda.set_device(local_rank() % found)
    others = int(os.environ["WORLD_SIZE"]) - 1
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        with waiting(f"the other {others} processes of this run (WORLD_SIZE) at {where}"):
            dist.init_process_group("cpu:gloo,cuda:nccl" if found else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as problem:
        raise RunError(
            f"the {others} other processes of this run did not come together at {where} ({_first_line(problem)}); "
            f"start all with torchrun, or unset RANK and WORLD_SIZE"
        ) from problem
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """This process's number among those of its job on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def run_on(devices: Sequence[str], work: Callable[..., _T], *given: object) -> _T:
    """Call `work(device, *given)` in a process of its own for each device, all in one group; what the first returns.

    When one fails, or this process is interrupted, all of them are ended. What is given must be picklable, and a script
    that calls this needs ``if __name__ == "__main__":``, as always where Python starts processes anew.

    Raises:
        SoftlabelsError: what one of them raised.
        RunError: one was killed.
    """
    context = multiprocessing.get_context("spawn")
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="softlabels-") as answers:
        processes = [
            context.Process(
                target=_work_on, args=(rank, devices, meeting.port, os.getpid(), answers, work, given), daemon=False
            )
            for rank in range(len(devices))
        ]
        try:
            with _interrupts_ignored():  # which they inherit: at Ctrl-C this process ends them
                for each in processes:
                    each.start()
            while (alive := [each for each in processes if each.exitcode is None]) and not any(
                each.exitcode for each in processes
            ):
                connection.wait([each.sentinel for each in alive])
        finally:
            _end(processes)
        outcomes = [_outcome(Path(answers, str(rank))) for rank in range(len(devices))]
    problems = sorted((each for each in outcomes if isinstance(each, SoftlabelsError)), key=_is_of_peer)
    if problems:
        raise problems[0]
    for rank, each in enumerate(processes):
        if each.exitcode:
            how = f"exit code {each.exitcode}" if each.exitcode > 0 else signal.Signals(-each.exitcode).name
            raise RunError(
                f"process {rank} of {len(devices)} ({devices[rank]}) ended with {how}; the same command goes on where "
                f"this one stopped"
            )
    return cast("_T", outcomes[0])


def _is_of_peer(problem: SoftlabelsError) -> bool:
    return isinstance(problem, PeerError)


def _outcome(path: Path) -> object:
    """What a process left: what its work returned, or the error that it raised; None where it left nothing."""
    return pickle.loads(path.read_bytes()) if path.exists() else None


def _work_on(
    rank: int,
    devices: Sequence[str],
    port: int,
    launcher: int,
    answers: str,
    work: Callable[..., object],
    given: Sequence[object],
) -> None:
    """One of the processes of `run_on`."""
    count = str(len(devices))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    _end_with(launcher, "the process that started it")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(devices)))
    try:
        with signals.raised():
            outcome: object = work(devices[rank], *given)
    except signals.Terminated:
        sys.exit(signals.EXIT_CODE)
    except SoftlabelsError as problem:
        outcome = problem
    Path(answers, str(rank)).write_bytes(pickle.dumps(outcome))
    sys.exit(isinstance(outcome, SoftlabelsError))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """End those that still run: they may put things in order for a while, and are killed then."""
    started = [each for each in processes if each.pid is not None]
    for each in started:
        if each.exitcode is None:
            each.terminate()
    until = time.monotonic() + _GRACE_SECONDS
    for each in started:
        each.join(max(0.0, until - time.monotonic()))
        if each.exitcode is None:
            each.kill()
            each.join()


def _end_with(launcher: int, name: str) -> None:
    """End this process when the one that started it is gone: it would hold its files' locks against a restart."""

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOK_SECONDS)
        print(f"error: {name} is gone, and so this process of its run ends", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)  # a process that waits for the others would not hear anything less

    threading.Thread(target=look, name="softlabels-launcher", daemon=True).start()


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]
