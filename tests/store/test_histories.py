"""No order of commands, kills, damage and repairs loses a label, or serves one that the teacher did not say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from histories import Histories, HistoriesInZarr
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

LONG = int(os.environ.get("SOFTLABELS_HISTORIES", "60"))
"""How many histories the long form tries in each format."""

USUAL = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)

MACHINES = {"hdf5": Histories, "zarr": HistoriesInZarr}

in_each_format = pytest.mark.parametrize("machine", [Histories, HistoriesInZarr], ids=["hdf5", "zarr"])


@pytest.mark.parametrize("form", ["hdf5", pytest.param("zarr", marks=pytest.mark.slow)])
def test_a_store_holds_what_a_plain_model_of_it_holds(form: str) -> None:
    """In a process of its own: where a kill falls depends on what was imported before."""
    path = os.pathsep.join(str(each) for each in Path(__file__).parents[1:3])
    done = subprocess.run(
        [sys.executable, __file__, form],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
@in_each_format
def test_long_histories_of_a_store(machine: type[Histories], capsys: pytest.CaptureFixture[str]) -> None:
    machine.counts.clear()
    try:
        run_state_machine_as_test(machine, settings=settings(USUAL, max_examples=LONG, stateful_step_count=40))
    finally:
        with capsys.disabled():
            told = ", ".join(f"{what} {count:,}" for what, count in sorted(machine.counts.items()))
            print(f"\n{machine.format}: {told}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # what is killed are forks, and torch's threads do not outlive one
    few = settings(USUAL, max_examples=4, stateful_step_count=20, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(MACHINES[sys.argv[1]], settings=few)
