"""`softlabels sweep`."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from softlabels.core.config import validated
from softlabels.core.progress import Terminal, duration, percent
from softlabels.errors import ConfigError, RunError
from softlabels.loading.distributed import Ranks, process_group
from softlabels.loading.opening import check_place
from softlabels.reporting.plots import check_plots
from softlabels.reporting.report import markdown, report
from softlabels.training.config import SWEEP_OWN, SweepConfig, TrainConfig
from softlabels.training.folder import RESULT, held
from softlabels.training.run import check_settings, check_train_files, run_train


@dataclass(frozen=True)
class SweepReport:
    """The table of all finished runs, a row per combination, and the runs that failed, a line each."""

    table: pd.DataFrame
    folder: Path
    problems: list[str] = field(default_factory=list)


def run_sweep(config: SweepConfig, terminal: Terminal) -> SweepReport:
    """Train every combination with several seeds; the same call goes on where a killed one stopped.

    Each run is a folder ``out/SETTING=VALUE,.../seed-N``, and one that is done is passed over, so a grid may grow.
    A run whose loss diverges is one of the `problems`, and the others go on.

    Raises:
        ConfigError: a combination is no valid run; all are looked at before the first begins.
    """
    with process_group() as ranks:
        return _sweep(config, terminal if ranks.first else Terminal(quiet=True), ranks)


def _sweep(config: SweepConfig, terminal: Terminal, ranks: Ranks) -> SweepReport:
    root = Path(config.out or "runs/sweep")
    runs = _runs(config, root)
    check_place(root, "run")
    for name, run in runs:
        check_settings(run)
        if not (root / name / RESULT).exists():
            check_train_files(run)
    check_plots()  # hours before they are drawn
    with ExitStack() as stack:
        ranks.on_first(lambda: stack.enter_context(held(root)))
        return _trained(runs, root, terminal, ranks)


def _trained(runs: list[tuple[str, TrainConfig]], root: Path, terminal: Terminal, ranks: Ranks) -> SweepReport:
    problems = []
    for done, (name, run) in enumerate(runs):
        terminal.say(f"{done + 1}/{len(runs)}: {name}")
        try:
            result = run_train(run, Terminal(quiet=True))
        except RunError as problem:
            problems.append(f"{name}: {problem}")
            continue
        if result["last"]:
            terminal.say(f"  top-1 {percent(result['last']['top1'])}, {duration(result['seconds'])}")
        elif not done and run.eval_data is None:
            terminal.say("  not evaluated, since the data set has no held-out side; name images with `eval_data`")
    if len(problems) == len(runs):
        raise RunError(f"no run of the sweep came to its end; the first: {problems[0]}")
    table = ranks.broadcast(report(root, root / "report", terminal) if ranks.first else pd.DataFrame())
    terminal.say(f"table and plots in {root / 'report'}")
    return SweepReport(table, root, problems)


def sweep_text(done: SweepReport) -> str:
    """What `run_sweep` returns, as a table for a person."""
    return markdown(done.table)


def _runs(config: SweepConfig, root: Path) -> list[tuple[str, TrainConfig]]:
    """Every run by its place under the root."""
    given = {name: getattr(config, name) for name in config.model_fields_set | {"compare"} if name not in SWEEP_OWN}
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
