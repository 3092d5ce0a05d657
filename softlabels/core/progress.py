"""What a command prints while it works, in the words of people, and the records that a training leaves."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from softlabels.core.files import write_text
from softlabels.errors import RunError, printable

PLAIN_SECONDS = 10.0
"""How often a run without a terminal tells how far it is."""


class Advance(Protocol):
    """Report that `count` more units are done; `note` says what a person may want to know right now."""

    def __call__(self, count: int, note: str = "") -> None: ...


class Terminal:
    """Lines and progress for a person: bars on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, spell: Callable[[str], str] = str) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._quiet, self._spell = quiet, spell
        self._console: Console | None = None
        self._printed = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_stream"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _stream=sys.stderr)  # of the process that it came to

    def say(self, line: str) -> None:
        """Print one line; above the bar, while there is one."""
        if self._quiet:
            return
        self._printed = time.monotonic()
        text = printable(self._spell(line))
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    @contextmanager
    def progress(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Count from `done` up to `total` units, telling the rate and the time left.

        Both are of what is done now: neither what an earlier call did counts, nor the first report, which holds what
        is slow only once. Without a terminal a line is printed where none was for `PLAIN_SECONDS`.
        """
        if self._quiet:
            yield _silence
        elif self._stream.isatty():
            yield from self._bar(what, unit, _Pace(total, done))
        else:
            yield from self._lines(what, unit, _Pace(total, done))

    def _bar(self, what: str, unit: str, pace: _Pace) -> Iterator[Advance]:
        columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
        console = Console(file=self._stream)
        with Progress(*columns, console=console, transient=True) as bar, self._lines_above(console):
            task = bar.add_task(what, total=pace.total, completed=pace.done, note="")

            def advance(count: int, note: str = "") -> None:
                pace.advance(count)
                more = f", {note}" if note else ""
                note = f"{rate(pace.rate)} {unit}/s, {duration(pace.left)} left{more}"
                bar.update(task, completed=pace.done, note=note)

            yield advance

    @contextmanager
    def _lines_above(self, console: Console) -> Iterator[None]:
        self._console = console
        try:
            yield
        finally:
            self._console = None

    def _lines(self, what: str, unit: str, pace: _Pace) -> Iterator[Advance]:
        began = time.monotonic()

        def advance(count: int, note: str = "") -> None:
            pace.advance(count)
            if time.monotonic() - max(began, self._printed) >= PLAIN_SECONDS:
                counted = f"{pace.done:,}/{pace.total:,} {unit}"
                more = f", {note}" if note else ""
                self.say(f"{what}: {counted}, {rate(pace.rate)}/s, {duration(pace.left)} left{more}")

        yield advance


class _Pace:
    """How far something is, and how fast it goes."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self._from, self._since = done, time.monotonic()
        self._noted, self._reports = self._since, 0

    def advance(self, count: int) -> None:
        """Note that `count` more are done."""
        if self._reports == 1:
            self._from, self._since = self.done, self._noted
        self.done, self._noted = self.done + count, time.monotonic()
        self._reports += 1

    @property
    def rate(self) -> float:
        """Done per second, from the first report on."""
        return (self.done - self._from) / max(self._noted - self._since, 1e-9)

    @property
    def left(self) -> float:
        """Seconds until all is done."""
        return (self.total - self.done) / self.rate if self.rate else float("inf")


def _silence(count: int, note: str = "") -> None:
    """Advance without a word."""


class Metrics:
    """One record per epoch as JSON lines and as a CSV that pandas reads, both whole at every moment once written.

    `keep_until` drops the records of later steps, so that a resumed run's file equals an uninterrupted one's. `records`
    are those that a checkpoint holds; without them they are read from the file.
    """

    def __init__(self, folder: Path, *, keep_until: int = 0, records: list[dict[str, Any]] | None = None) -> None:
        self._jsonl, self._csv = folder / "metrics.jsonl", folder / "metrics.csv"
        known = read_metrics(self._jsonl) if records is None and keep_until else records or []
        self.records = [record for record in known if record["step"] <= keep_until]

    def add(self, record: Mapping[str, Any]) -> None:
        """Append `record`; `write` puts it on disk."""
        self.records.append(dict(record))

    def write(self) -> None:
        """Write both files."""
        write_text(self._jsonl, "".join(json.dumps(each) + "\n" for each in self.records))
        columns = list(dict.fromkeys(name for each in self.records for name in each))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        write_text(self._csv, text.getvalue())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; none when there is no such file.

    Raises:
        RunError: a line is no record; the file and the line are named.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise RunError(f"{path} cannot be read: {problem.strerror or problem}") from problem
    return [_record(line, f"{path}, line {number},") for number, line in enumerate(lines, 1) if line]


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    numbers = [record.get(name) for name in ("epoch", "step", "loss")] if isinstance(record, dict) else [None]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise RunError(f"{where} is damaged; remove that line, or the file, to go on without its records")
    return cast("dict[str, Any]", record)


def rate(per_second: float) -> str:
    """`per_second` as a person says it, without the unit: ``1,200``, ``8.4``, ``0.3``, ``0.04``."""
    if per_second < 0.95:
        return f"{per_second:.1g}"
    return f"{per_second:,.1f}" if per_second < 9.95 else f"{per_second:,.0f}"


def percent(share: float, digits: int = 2) -> str:
    """A share of 1 as a person says it: ``98.96 %``."""
    return f"{100 * share:.{digits}f} %"


def plural(count: int, noun: str) -> str:
    """``1 shard``, ``1,024 shards``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """`seconds` as a person says it: ``42 s``, ``3 min 20 s``, ``5 h 10 min``, ``2 d 3 h``."""
    if seconds != seconds or seconds == float("inf"):
        return "an unknown time"
    for size, unit, small, lesser in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // small)} {lesser}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """`seconds` as a clock shows them: ``0:09``, ``12:30``, ``1:02:03``."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def size(count: float) -> str:
    """`count` bytes as a person says it, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


WAIT_SECONDS = 15.0
"""After so long a wait for another process is told, and again whenever it has become twice as long."""


@dataclass(eq=False)
class _Wait:
    what: str
    since: float
    told: float
    process: int


_waits: list[_Wait] = []
_teller: tuple[int, threading.Thread] | None = None


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Within the block this process waits for another one: `what` for is told on stderr when it takes long."""
    global _teller
    wait = _Wait(what, time.monotonic(), WAIT_SECONDS, os.getpid())
    _waits.append(wait)
    if _teller is None or _teller[0] != os.getpid():  # a forked process has none of its parent's threads
        _teller = os.getpid(), threading.Thread(target=_tell_of_waits, name="softlabels-waits", daemon=True)
        _teller[1].start()
    try:
        yield
    finally:
        _waits.remove(wait)


def _tell_of_waits() -> None:
    while True:
        time.sleep(min(1.0, WAIT_SECONDS / 4))
        for wait in list(_waits):
            waited = time.monotonic() - wait.since
            if waited >= wait.told and wait.process == os.getpid():
                wait.told = 2 * waited
                print(f"waiting for {wait.what}, {duration(waited)} so far", file=sys.stderr, flush=True)
