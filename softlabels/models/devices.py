"""Devices: which one is meant, how tensors get there, and how many images fit into its memory."""

from __future__ import annotations

import gc
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from softlabels.core.progress import rate
from softlabels.errors import ConfigError, ModelError

CPU = torch.device("cpu")

_NAME = re.compile(r"([a-z]+)(?::(\d{1,3}))?")
_FULL = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch and its libraries write when memory is full and they raise no `OutOfMemoryError`."""


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name that computes on this machine; "auto" is the GPU where there is one.

    Raises:
        ConfigError: it cannot be used; in one line why, and what is there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is missing or too old is named below
        if str(name) == "auto":
            return find_device("cuda") if torch.cuda.is_available() else CPU
        try:
            why = _lacking(str(name))
            if not why:
                device = torch.device(name)
                torch.ones(1, device=device).add(1).item()
                return device
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as problem:
            why = first_line(problem)
        raise ConfigError(f"device {str(name)!r} cannot be used: {why}; there is {', '.join(_present())}")


def half_precision(device: torch.device) -> str:
    """The 16-bit type that `device` computes in at full speed: "bf16" where it has it, else "fp16"."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" else "fp16"


def _lacking(name: str) -> str:
    """Why there is no such device, as far as that is known without trying."""
    parts = _NAME.fullmatch(name)
    if not parts:
        return "a device is cpu, cuda, cuda:1, ..."
    kind, index = parts[1], int(parts[2] or 0)
    if kind == "cpu":
        return "the CPU has no number" if index else ""
    if kind == "cuda":
        if not torch.backends.cuda.is_built():
            return "this torch is built without CUDA"
        if not torch.cuda.is_available():
            return f"this torch is built for CUDA {torch.version.cuda} and finds no GPU, or no driver for it"
        count = torch.cuda.device_count()
        return "" if index < count else f"there {'is 1 GPU' if count == 1 else f'are {count} GPUs'}"
    if kind == "mps" and not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        return "this machine has no GPU for it" if built else "this torch is built without it"
    return ""


def _present() -> list[str]:
    """The devices of this machine that we know of, with the names of GPUs."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in gpus), *mps]


def first_line(problem: BaseException, most: int = 160) -> str:
    """The first line of an error, at most `most` characters."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return " ".join(lines[0].split())[:most]


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether this error means that memory, a device's or the machine's, is full."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem) for text in _FULL)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory() -> None:
    """Give back memory of GPUs that nobody holds any more, so that it can be used in other sizes."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on its way to the device, without waiting; from page-locked memory where the device reads that."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class SideStream:
    """A queue of work on a device that runs beside the usual one; on a device without such queues, no queue at all."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> torch.cuda.Event | None:
        """What this thread has asked the device for so far, to be waited for in another queue."""
        return torch.cuda.current_stream(self._stream.device).record_event() if self._stream is not None else None

    @contextmanager
    def after(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """What is asked for within is done in this queue, after what is marked."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if mark is not None:
                self._stream.wait_event(mark)
            yield

    def send(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A CPU tensor on the device, copied in this queue; to be used after `join`."""
        if self._stream is None or tensor.device.type != "cpu":
            return tensor
        with torch.cuda.stream(self._stream):
            return tensor.to(device, non_blocking=True)

    def join(self, tensor: Tensor) -> Tensor:
        """`tensor`, which this queue makes: whatever is asked for in the usual queue from now on finds it made."""
        if self._stream is not None:
            usual = torch.cuda.current_stream(self._stream.device)
            usual.wait_stream(self._stream)
            tensor.record_stream(usual)
        return tensor


Answers = TypeVar("Answers", Tensor, dict[str, Tensor])
"""A tensor (n, ...), or some by name."""


@dataclass
class Passes(Generic[Answers]):
    """Calls `function`, rows to rows, on at most `size` rows at a time; on fewer from when memory is full.

    Attributes:
        padded: each call is of exactly `size` rows, since another number would be compiled anew: the last row fills
            what is left, and what `function` makes of the filling is cut off.
        reduced: is called with the new size, and in a line what was full.
    """

    function: Callable[[Tensor], Answers]
    size: int
    padded: bool = False
    reduced: Callable[[int, str], None] | None = None

    def __call__(self, rows: Tensor) -> Answers:
        """What `function` makes of all rows.

        Raises:
            ModelError: not even one row fits into memory.
        """
        while True:
            try:
                made = [self._call(part) for part in rows.split(self.size)] if len(rows) else [self.function(rows)]
                return made[0] if len(made) == 1 else _joined(made)
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
                why = first_line(problem)
            # Only now, since the error held what the failed call had made.
            release_memory()
            size = min(self.size, max(len(rows), 1))
            if size == 1:
                raise ModelError(f"not even one image fits into memory ({why}); take a smaller network or size")
            self.size = size // 2
            if self.reduced is not None:
                self.reduced(self.size, why)

    def _call(self, part: Tensor) -> Answers:
        lacking = self.size - len(part)
        if not self.padded or not lacking:
            return self.function(part)
        layout = torch.channels_last if part.ndim == 4 and part.stride(1) == 1 else torch.contiguous_format
        filled = torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]).contiguous(memory_format=layout)
        made = self.function(filled)
        if isinstance(made, Tensor):
            return made[: len(part)]
        return {name: each[: len(part)] for name, each in made.items()}


def _joined(made: list[Answers]) -> Answers:
    if isinstance(made[0], Tensor):
        return torch.cat(made)
    return {name: torch.cat([each[name] for each in made]) for name in made[0]}


def best_batch(
    run: Callable[[int], object], device: torch.device, *, first: int = 16, most: int, gain: float = 1.05
) -> tuple[int, list[str]]:
    """The batch beyond which a larger one is not `gain` times as fast, or does not fit; and in words what was tried.

    `run` makes one pass over so many rows. Batches are doubled from `first` to at most `most`.

    Raises:
        ModelError: not even one row fits into memory.
    """
    size, best, tried, found = max(1, min(first, most)), 0.0, [], 0
    while True:
        speed = _rate(run, size, device)
        if speed is None:
            tried.append(f"{size}: out of memory")
            if found or size == 1:
                break
            size //= 2
            continue
        tried.append(f"{size}: {rate(speed)}/s")
        if speed < gain * best:
            break
        found, best = size, speed
        if size == most:
            break
        size = min(2 * size, most)
    if not found:
        raise ModelError("not even one image fits into memory; take a smaller network or size")
    return found, tried


_TRIALS, _TRIAL_SECONDS = 3, 0.5


def _rate(run: Callable[[int], object], size: int, device: torch.device) -> float | None:
    """Rows per second in the fastest of a few passes after one that warms up; None when memory is full."""
    seconds: list[float] = []
    try:
        while len(seconds) < 2 or (len(seconds) <= _TRIALS and sum(seconds[1:]) < _TRIAL_SECONDS):
            began = time.perf_counter()
            run(size)
            synchronize(device)
            seconds.append(time.perf_counter() - began)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        seconds.clear()
    if not seconds:
        release_memory()
        return None
    return size / max(min(seconds[1:]), 1e-9)
