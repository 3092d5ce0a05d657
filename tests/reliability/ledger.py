"""What the tests of this folder tried, and what came of it, as the table of docs/reliability.md."""

from __future__ import annotations

from collections import Counter

OUTCOMES = ("tried", "lost", "silent", "crashed", "traceback")
"""Lost: labels, weights or images are missing or others after the same command again. Silent: wrong, exit 0, not a
word. Crashed: ended by a signal, or hung. Traceback: the user saw one."""

LEDGER: dict[str, Counter[str]] = {}
"""By row of the table."""


def note(row: str, *outcomes: str) -> None:
    """Enter one thing that was tried, and what came of it."""
    LEDGER.setdefault(row, Counter()).update(("tried", *outcomes))


def table() -> list[str]:
    """The lines of the table, in Markdown."""
    lines = [f"| what | {' | '.join(OUTCOMES)} |", f"|---|{'---|' * len(OUTCOMES)}"]
    for row, counts in LEDGER.items():
        lines.append(f"| {row} | {' | '.join(str(counts[name]) for name in OUTCOMES)} |")
    return lines
