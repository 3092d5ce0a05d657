"""What a run says while it works, and what it leaves to be read afterwards."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from softlabels._files import read_json, read_text, write_text
from softlabels.errors import RunError, printable

PLAIN_SECONDS = 10.0
"""How often a run without a terminal tells how far it is."""


class Advance(Protocol):
    """Report that `count` more units are done; `note` says what a person may want to know right now."""

    def __call__(self, count: int, note: str = "") -> None: ...


class Journal:
    """Lines and progress for a person: bars on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet

    def say(self, line: str) -> None:
        """Print one line."""
        if not self._quiet:
            print(printable(line), file=self._stream, flush=True)

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Advance]:
        """Count up to `total` units, telling the rate and the time left."""
        if self._quiet:
            yield _silence
        elif self._stream.isatty():
            yield from self._bar(what, total, unit)
        else:
            yield from self._lines(what, total, unit)

    def _bar(self, what: str, total: int, unit: str) -> Iterator[Advance]:
        columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, TimeRemainingColumn(), console=Console(file=self._stream), transient=True) as bar:
            task = bar.add_task(what, total=total, note="")
            began, done = time.monotonic(), 0

            def advance(count: int, note: str = "") -> None:
                nonlocal done
                done += count
                rate = done / max(time.monotonic() - began, 1e-9)
                bar.update(task, advance=count, note=f"{rate:,.0f} {unit}/s {note}".rstrip())

            yield advance

    def _lines(self, what: str, total: int, unit: str) -> Iterator[Advance]:
        began = said = time.monotonic()
        done = 0

        def advance(count: int, note: str = "") -> None:
            nonlocal said, done
            done += count
            now = time.monotonic()
            if now - said >= PLAIN_SECONDS:
                rate = done / (now - began)
                left = (total - done) / rate if rate else float("inf")
                self.say(f"{what}: {done:,}/{total:,} {unit}, {rate:,.0f}/s, {duration(left)} left {note}".rstrip())
                said = now

        yield advance


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
        RunError: a line is damaged; file and line are named.
    """
    if not path.exists():
        return []
    records = []
    try:
        for line in read_text(path, error=RunError).splitlines():
            record = json.loads(line) if line else None
            if record is not None:
                numbers = [record[name] for name in ("epoch", "step", "loss")]
                if not all(isinstance(each, int | float) for each in numbers):
                    raise ValueError("no epoch, step or loss")
                records.append(record)
    except OSError as problem:
        raise RunError(f"{path} cannot be read: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise RunError(
            f"{path} is damaged after {len(records)} records; restore it, or remove the run's folder and train again"
        ) from problem
    return records


RESULT = frozenset({"best", "last", "parameters", "images", "steps", "seconds", "label_bytes"})
"""What the result of every finished run holds."""


def read_result(path: Path) -> dict[str, Any]:
    """What a run's ``result.json`` holds.

    Raises:
        RunError: it is damaged, or no result of a run; it is named.
    """
    result = read_json(path, error=RunError)
    if not isinstance(result, dict) or not set(result) >= RESULT:
        raise RunError(f"{path} is no result of a run; remove it, and the same `softlabels train` finishes the run")
    return result


def duration(seconds: float) -> str:
    """`seconds` as a person says it: ``42 s``, ``3 min 20 s``, ``5 h 10 min``, ``2 d 3 h``."""
    if seconds != seconds or seconds == float("inf"):
        return "an unknown time"
    for size, unit, small, lesser in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // small)} {lesser}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def size(count: float) -> str:
    """`count` bytes as a person says it, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
