"""`softlabels sweep`."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import Field, field_validator

from softlabels.config import validated
from softlabels.errors import ConfigError, RunError, did_you_mean
from softlabels.journal import Journal
from softlabels.processes import Processes, joined
from softlabels.reporting import markdown, report
from softlabels.runs._configs import TrainConfig
from softlabels.runs._train import run_train

_OWN = frozenset({"grid", "runs"})
_NOT_SWEPT = frozenset({"out", "seed", "device", "workers"})


class SweepConfig(TrainConfig):
    """What `softlabels sweep` does: the settings of a run, and which of them vary."""

    grid: tuple[str, ...] = Field((), description="SETTING=VALUE,VALUE,... of `softlabels train`; repeatable")
    runs: int = Field(1, ge=1, description="runs of each combination, with seeds from --seed upward")
    compare: bool = Field(True, description="compare each student with its teacher on every training image")
    out: str | None = Field(None, description="folder of the sweep  [default: runs/sweep]")

    @field_validator("grid")
    @classmethod
    def _are_settings(cls, grid: tuple[str, ...]) -> tuple[str, ...]:
        names = [each.partition("=")[0].strip().replace("-", "_") for each in grid]
        for name, each in zip(names, grid, strict=True):
            if name not in TrainConfig.model_fields or name in _NOT_SWEPT:
                known = sorted(TrainConfig.model_fields.keys() - _NOT_SWEPT)
                raise ValueError(f"{name!r} is no setting to sweep; {did_you_mean(name, known)}")
            if not each.partition("=")[2].strip():
                raise ValueError(f"{each!r} has no values; write SETTING=VALUE,VALUE")
        if len(set(names)) < len(names):
            raise ValueError("a setting stands in the grid twice; give all its values at once")
        return grid

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values, the last setting varying fastest."""
        axes = []
        for each in self.grid:
            name, _, values = each.partition("=")
            axes.append([(name.strip().replace("-", "_"), yaml.safe_load(value)) for value in values.split(",")])
        return [dict(cell) for cell in itertools.product(*axes)]


@dataclass(frozen=True)
class SweepReport:
    """The table of all finished runs, a row per combination, and the runs that failed, a line each."""

    table: pd.DataFrame
    folder: Path
    problems: list[str] = field(default_factory=list)


def run_sweep(config: SweepConfig, journal: Journal) -> SweepReport:
    """Train every combination with several seeds; the same call goes on where a killed one stopped.

    Each run is a folder ``out/SETTING=VALUE,.../seed-N``, and one that is done is passed over, so a grid may grow.
    A run whose loss diverges is one of the `problems`, and the others go on.

    Raises:
        ConfigError: a combination is no valid run; all are looked at before the first begins.
    """
    with joined() as processes:
        return _sweep(config, journal if processes.first else Journal(quiet=True), processes)


def _sweep(config: SweepConfig, journal: Journal, processes: Processes) -> SweepReport:
    root = Path(config.out or "runs/sweep")
    runs = _runs(config, root)
    problems = []
    for done, (name, run) in enumerate(runs):
        journal.say(f"{done + 1}/{len(runs)}: {name}")
        try:
            result = run_train(run, Journal(quiet=True))
        except RunError as problem:
            problems.append(f"{name}: {problem}")
            continue
        if result["last"]:
            journal.say(f"  top-1 {result['last']['top1']:.2%} at the end")
    if len(problems) == len(runs):
        raise RunError(f"no run of the sweep came to its end; the first: {problems[0]}")
    table = processes.agreed(report(root, root / "report") if processes.first else pd.DataFrame())
    for line in markdown(table).splitlines():
        journal.say(line)
    journal.say(f"table and plots in {root / 'report'}")
    return SweepReport(table, root, problems)


def _runs(config: SweepConfig, root: Path) -> list[tuple[str, TrainConfig]]:
    """Every run by its place under the root."""
    given = {name: getattr(config, name) for name in config.model_fields_set | {"compare"} if name not in _OWN}
    runs = []
    for cell in config.cells:
        arm = re.sub(r"[^A-Za-z0-9._=,-]+", "-", ",".join(f"{name}={value}" for name, value in cell.items())) or "runs"
        for seed in range(config.seed, config.seed + config.runs):
            name = f"{arm}/seed-{seed}"
            settings = {**given, **cell, "seed": seed, "out": str(root / name)}
            runs.append((name, validated(TrainConfig, settings, f"sweep {arm}")))
    if len({name for name, _ in runs}) < len(runs):
        raise ConfigError("two combinations of the grid have one name; write their values differently")
    return runs
