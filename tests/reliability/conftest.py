"""Prints the table of what was tried when the tests of this folder have run, and makes the process for commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reliability import faults
from reliability.ledger import LEDGER, table


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faults.Commands]:
    """The process in whose forks commands run."""
    reason = faults.available()
    if reason is not None:
        pytest.skip(reason)
    with faults.commands(tmp_path_factory.mktemp("commands")) as made:
        yield made


@pytest.fixture(scope="session")
def made(server: faults.Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what commands work on: a store in both formats, a pack; not to be changed."""
    from reliability.operations import DUMP, PACK

    root = tmp_path_factory.mktemp("made")
    for form in ("hdf5", "zarr"):
        assert server.run(*DUMP, "--format", form, "--out", root / form).code == 0
        assert server.run(*PACK, "--format", form, "--out", root / f"pack-{form}").code == 0
    return root


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    if LEDGER:
        terminalreporter.section("reliability")
        for line in table():
            terminalreporter.write_line(line)
