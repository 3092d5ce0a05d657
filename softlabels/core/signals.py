"""What a cluster sends before it ends a process: SIGTERM, or SIGUSR1 where SLURM is asked to (``--signal=USR1@60``)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 143
"""How a command ends that was asked to end: as the shell tells of SIGTERM."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal. Not an `Exception`, as little as Ctrl-C is one."""


class _Handler:
    """Does something at the first signal; later ones must not break off what is put in order then."""

    def __init__(self, act: Callable[[str], None]) -> None:
        self._act, self._owner, self._done = act, os.getpid(), False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if os.getpid() != self._owner:  # a forked process without a handler of its own
            if number == signal.SIGTERM:
                os._exit(EXIT_CODE)
        elif not self._done:
            self._done = True
            self._act(signal.Signals(number).name)


_WORKER_SECONDS = 20
"""How long a worker process lives on after SIGTERM."""


def put_off() -> None:
    """Let this worker process live on for some seconds after SIGTERM; a second one ends it at once.

    A cluster sends it to all processes of a job, and the parent may still need a batch to finish its step.
    """

    def later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _WORKER_SECONDS)

    signal.signal(signal.SIGTERM, later)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def raised() -> Iterator[None]:
    """Within the block such a signal raises `Terminated` in the main thread, so that nothing half written is left."""

    def end(name: str) -> None:
        raise Terminated(f"asked to end ({name})")

    with _handled(end):
        yield


@contextmanager
def noted() -> Iterator[Callable[[], str]]:
    """Within the block such a signal is noted: the function that is given returns its name, "" before one came.

    So is the first Ctrl-C; a second one raises KeyboardInterrupt at once, as it does everywhere else.
    """
    names: list[str] = []

    def interrupted(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if names:
            raise KeyboardInterrupt
        names.append(signal.Signals(number).name)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, interrupted)
    try:
        with _handled(names.append):
            yield lambda: names[0] if names else ""
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _handled(act: Callable[[str], None]) -> Iterator[None]:
    """Have signals handled, where the caller's program has no handler of its own; only the main thread can say so."""
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    ours = [each for each, held in before.items() if held is signal.SIG_DFL or isinstance(held, _Handler)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    handler = _Handler(act)
    for each in ours:
        signal.signal(each, handler)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, before[each])
