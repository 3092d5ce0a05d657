"""No order of commands, kills, damage and repairs loses a label, or serves one that the teacher did not say."""

from __future__ import annotations

import os

import pytest
from histories import Histories, HistoriesInZarr
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

LONG = int(os.environ.get("SOFTLABELS_HISTORIES", "60"))
"""How many histories the long form tries in each format."""

USUAL = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)

in_each_format = pytest.mark.parametrize("machine", [Histories, HistoriesInZarr], ids=["hdf5", "zarr"])


@in_each_format
def test_a_store_holds_what_a_plain_model_of_it_holds(machine: type[Histories]) -> None:
    few = settings(USUAL, max_examples=8, stateful_step_count=20, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=few)


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
