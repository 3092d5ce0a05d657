"""A disk that fails at any call costs one clear line, and the same command finishes afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reliability.faults import CHANGING, FAULTS, KILL, READ, SYNC, Commands, Fault, spread
from reliability.ledger import note
from reliability.operations import OPERATIONS, Operation

LONG = 6
"""Positions of each fault that are tried."""

each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=[each.name for each in OPERATIONS])


def begin(operation: Operation, made: Path, root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    operation.prepare(made, root)
    return root


def tried(server: Commands, operation: Operation, made: Path, root: Path, fault: Fault, nth: int) -> str | None:
    """Run the operation with a fault and then without; what was wrong with that, if anything."""
    words = operation.words(begin(operation, made, root))
    ended = server.run(*words, below=root / "out", fault=fault, nth=nth)
    wrong: dict[str, str] = {}
    if ended.code is None or (ended.code < 0 and fault.action != KILL):
        wrong["crashed"] = f"ended with {ended.code}"
    if "Traceback" in ended.output:
        wrong["traceback"] = ended.output
    first = None
    if ended.code == 0:
        first = operation.result(root)
    elif fault.action != KILL and not wrong and (len(ended.lines) != 1 or str(root) not in ended.lines[0]):
        wrong["unclear"] = ended.output
    again = server.run(*words)
    wanted = REFERENCE[operation.name]
    if first is not None and first != wanted:
        wrong["silent"] = "exit 0, and the result is another"
    if again.code != 0 or operation.result(root) != wanted:
        wrong["lost"] = f"the same command again: {again.code}, {again.output[-300:]}"
    left = [str(path) for path in root.rglob(".partial-*")]
    if left:
        wrong["left over"] = left[0]
    kind = "SIGKILL" if fault.action == KILL else "failing calls" if fault.kinds != READ else "short reads"
    note(f"{kind}: {operation.name}", *(name for name in wrong if name in ("lost", "silent", "crashed", "traceback")))
    return f"{fault.name} at call {nth}: {wrong}" if wrong else None


REFERENCE: dict[str, dict[str, bytes]] = {}


def counted(server: Commands, operation: Operation, made: Path, root: Path, fault: Fault) -> int:
    """How many calls the fault could meet; the result is kept as the right one."""
    words = operation.words(begin(operation, made, root))
    ended = server.run(*words, below=root / "out", fault=fault)
    assert ended.code == 0, ended.output
    REFERENCE.setdefault(operation.name, operation.result(root))
    assert REFERENCE[operation.name]
    return ended.seen


@pytest.mark.parametrize("operation", OPERATIONS[::2] + OPERATIONS[-1:], ids=lambda each: each.name)
def test_a_failing_disk_is_one_line_and_the_same_command_finishes(
    server: Commands, made: Path, tmp_path: Path, operation: Operation
) -> None:
    count = counted(server, operation, made, tmp_path / "w", Fault("", CHANGING, 0))
    problems = []
    first = OPERATIONS.index(operation)
    for place, fault in list(enumerate(FAULTS))[first // 2 % 2 :: 2]:
        # Each fault at another place of the run, from its first tenth to its last.
        nth = max(1, round(count * (0.1 + 0.8 * place / (len(FAULTS) - 1)) * share(fault)))
        problems.append(tried(server, operation, made, tmp_path / "w", fault, nth))
    assert not any(problems), "\n".join(each for each in problems if each)


def share(fault: Fault) -> float:
    """About how many of the calls that change something the fault's are."""
    return 0.5 if fault.kinds not in (CHANGING, CHANGING | SYNC) else 1.0


@pytest.mark.slow
@each_operation
@pytest.mark.parametrize("fault", FAULTS, ids=[each.name for each in FAULTS])
def test_a_disk_that_fails_at_any_call_costs_nothing(
    server: Commands, made: Path, tmp_path: Path, operation: Operation, fault: Fault
) -> None:
    count = counted(server, operation, made, tmp_path / "w", fault)
    problems = [tried(server, operation, made, tmp_path / "w", fault, nth) for nth in spread(count, LONG)]
    assert not any(problems), "\n".join(each for each in problems if each)
