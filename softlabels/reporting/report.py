"""Tables and curves of finished runs, for people and for pandas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import yaml

from softlabels.core.files import read_json, write_text
from softlabels.core.progress import Terminal, read_metrics, size
from softlabels.errors import ConfigError, RunError, did_you_mean
from softlabels.reporting.plots import check_plots, plot_arms, plot_costs, plot_curves

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A finished run: the arm it belongs to, its folder, its result, its records per epoch, its settings and seed."""

    arm: str
    folder: Path
    result: dict[str, Any]
    records: list[dict[str, Any]]
    settings: dict[str, Any]
    seed: Any
    note: str = ""

    @property
    def home(self) -> Path:
        """The folder of its arm: its own, or the one that holds it beside the runs of other seeds."""
        return self.folder.parent if self.folder.name.startswith("seed-") else self.folder


_COUNTS = ("parameters", "images", "steps", "seconds", "label_bytes")
"""Numbers that a result has at least."""


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Every finished run under `root` that can be read, and a line for each that cannot.

    Runs of one arm differ in their seed alone: in their settings and in what went into them they are equal, whatever
    their folders are called. An arm is called after its folder, the parent of folders ``seed-N``; by its path below
    `root` where another arm has that name.

    Raises:
        RunError: there is none.
    """
    found: list[Run] = []
    problems: list[str] = []
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for path in sorted(root.rglob("result.json")):
        try:
            run, experiment = _read(path)
        except RunError as problem:
            problems.append(f"left out: {problem}")
            continue
        found.append(run)
        groups.setdefault((experiment, run.seed), []).append(run)
    begun = (path.parent for path in sorted(root.rglob("inputs.json")) if not (path.parent / "result.json").exists())
    problems += [f"left out: the run in {folder} is not finished" for folder in begun]
    if not found:
        reason = f"; {problems[0]}" if problems else "; `softlabels train` leaves one, with a result.json"
        raise RunError(f"no finished run under {root}{reason}")
    # What is there twice with one seed was not meant to be averaged: then folders tell the arms.
    twice = {experiment for (experiment, _), runs in groups.items() if len(runs) > 1}
    arms: dict[tuple[Any, ...], list[Run]] = {}
    for (experiment, _), runs in groups.items():
        for run in runs:
            arms.setdefault((experiment, run.home if experiment in twice else None), []).append(run)
    names = [_names(run.home.name for run in runs) for runs in arms.values()]
    for place, runs in enumerate(arms.values()):
        paths = _names(str(run.home.relative_to(root)) for run in runs)
        name = names[place] if names.count(names[place]) == 1 else paths
        for run in runs:
            found[found.index(run)] = replace(run, arm=name + run.note)
    return found, problems


def _names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _read(path: Path) -> tuple[Run, str]:
    """A run, and what it has in common with the other runs of its arm. Raises RunError."""
    folder = path.parent
    result = read_json(path, error=RunError)
    last = result.get("last", 0) if isinstance(result, dict) else 0
    if not (last is None or (isinstance(last, dict) and _is_number(last.get("top1")))) or not all(
        _is_number(result.get(name)) for name in _COUNTS
    ):
        raise RunError(f"{path} holds no result of a run; it is damaged or of another program")
    config = _object(folder / "config.yaml", yaml.safe_load)
    inputs = _object(folder / "inputs.json", json.loads)
    changes = [f"from {each.get('from')} to {each.get('to')} epochs" for each in inputs.get("prolonged", [])]
    note = f" (prolonged {' and '.join(changes)})" if changes else ""
    settings = {name: value for name, value in config.items() if name not in ("seed", "out")}
    records = read_metrics(folder / "metrics.jsonl")
    run = Run(folder.name, folder, result, records, settings, config.get("seed", str(folder)), note)
    # Of a run that does not say what went into it, the settings tell as much as there is to be known.
    experiment = inputs.get("experiment") or json.dumps(settings or str(run.home), sort_keys=True, default=str)
    return run, str(experiment)


def _object(path: Path, read: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping in a file of a run; nothing where there is no file. Raises RunError when it is damaged."""
    if not path.exists():
        return {}
    try:
        value = read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise RunError(f"{path} is damaged ({' '.join(str(problem).split())[:80]})") from problem
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged (it holds no settings)")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def summary(runs: Sequence[Run], baseline: str | None = None) -> pd.DataFrame:
    """One row per arm, in order of appearance, with mean and standard deviation over its runs.

    There are the accuracy of the last epoch (never the best on the test set) in percent, and the last epoch's training
    loss; and what it cost. Arms that were compared with their teacher on every training image also have its accuracy in
    percent, how often both agree, and the mean absolute difference of their logits. With the name of a `baseline` the
    others have the `difference` of their accuracy to that arm's, and its standard error: paired by seed where both have
    the same seeds, and None of single runs.
    """
    import pandas as pd  # takes longer to import than most of what this module does

    rows = pd.DataFrame([_row(run) for run in runs])
    groups = rows.groupby("arm", sort=False)
    table = groups.agg(
        runs=("accuracy", "size"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_std=("accuracy", "std"),
        loss_mean=("loss", "mean"),
        loss_std=("loss", "std"),
        teacher_accuracy_mean=("teacher_accuracy", "mean"),
        teacher_accuracy_std=("teacher_accuracy", "std"),
        agreement_mean=("agreement", "mean"),
        agreement_std=("agreement", "std"),
        logit_difference_mean=("logit_difference", "mean"),
        logit_difference_std=("logit_difference", "std"),
        parameters=("parameters", "first"),
        images=("images", "first"),
        steps=("steps", "first"),
        seconds=("seconds", "mean"),
        label_bytes=("label_bytes", "first"),
    ).reset_index()
    accuracies = {arm: dict(zip(group["seed"], group["accuracy"], strict=True)) for arm, group in groups}
    own = {} if baseline is None else accuracies[baseline]
    compared = [_difference(each, {} if arm == baseline else own) for arm, each in accuracies.items()]
    table["difference"], table["difference_error"] = zip(*compared, strict=True)
    table["baseline"] = baseline or ""
    return table


def _difference(some: dict[Any, float], others: dict[Any, float]) -> tuple[float, float]:
    """Mean difference of two arms' accuracies by seed, and its standard error; NaN for what is not known."""
    if not others:
        return math.nan, math.nan
    ours, theirs = list(some.values()), list(others.values())
    difference = float(np.mean(ours) - np.mean(theirs))
    if min(len(some), len(others)) < 2:
        return difference, math.nan
    samples = [ours, theirs]
    if some.keys() == others.keys():
        samples = [[some[seed] - others[seed] for seed in some]]
    return difference, math.sqrt(sum(np.var(each, ddof=1) / len(each) for each in samples))


def chosen_baseline(runs: Sequence[Run], given: str | None = None) -> str | None:
    """The arm to which the others are compared: the one `given`, else the only one that learns from hard labels alone.

    Only students count, whose network others train with a teacher. None where there are several of them, or none.

    Raises:
        ConfigError: no arm has the name that is given.
    """
    if given is not None:
        names = {run.arm for run in runs}
        if given not in names:
            raise ConfigError(f"no arm of the report is called {given!r}; {did_you_mean(given, names)}")
        return given
    alone = _on_hard_labels(runs)
    return alone[0] if len(alone) == 1 else None


def _on_hard_labels(runs: Sequence[Run]) -> list[str]:
    """Arms on hard labels alone whose network others train with a teacher."""
    taught = {run.result["parameters"] for run in runs if _has_teacher(run)}
    found = (run.arm for run in runs if not _has_teacher(run) and run.result["parameters"] in taught)
    return list(dict.fromkeys(found))


def _has_teacher(run: Run) -> bool:
    """Whether soft labels play a part; `alpha=1` trains on the hard labels of a store alone."""
    given = run.settings
    hard = given.get("alpha") == 1 and given.get("alpha_end") in (None, 1) and not given.get("term")
    return bool(given.get("labels") or given.get("teacher")) and not hard


def _row(run: Run) -> dict[str, Any]:
    result, closeness = run.result, run.result.get("closeness") or {}
    teacher, difference = closeness.get("teacher_top1"), closeness.get("logit_difference")
    return {
        "arm": run.arm,
        "seed": run.seed,
        "accuracy": 100 * result["last"]["top1"] if result["last"] else float("nan"),
        "loss": run.records[-1]["loss"] if run.records else float("nan"),
        "teacher_accuracy": float("nan") if teacher is None else 100 * teacher,
        "agreement": 100 * closeness.get("agreement", float("nan")),
        "logit_difference": float("nan") if difference is None else difference,
        **{name: result[name] for name in _COUNTS},
    }


def markdown(table: pd.DataFrame) -> str:
    """The summary as a Markdown table; what no arm has is left out."""
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("run", lambda row: str(row["arm"])),
        ("accuracy % (last epoch)", lambda row: _spread(row, "accuracy", ".2f")),
    ]
    if table["difference"].notna().any():
        head = f"difference to {table['baseline'].iloc[0]} (± standard error)"
        columns.append((head, lambda row: _signed(row["difference"], row["difference_error"])))
    columns += [
        ("runs", lambda row: str(row["runs"])),
        ("loss", lambda row: _spread(row, "loss", ".4f")),
    ]
    if table["agreement_mean"].notna().any():
        columns += [
            ("teacher %", lambda row: _spread(row, "teacher_accuracy", ".2f")),
            ("agree %", lambda row: _spread(row, "agreement", ".2f")),
        ]
    if table["logit_difference_mean"].notna().any():  # labels by chance and probabilities have no logits to compare
        columns.append(("logit difference", lambda row: _spread(row, "logit_difference", ".3f")))
    columns += [
        ("images", lambda row: f"{row['images']:,}"),
        ("parameters", lambda row: f"{row['parameters']:,}"),
        ("steps", lambda row: f"{row['steps']:,}"),
        ("seconds", lambda row: f"{row['seconds']:.1f}"),
        ("labels", lambda row: size(row["label_bytes"]) if row["label_bytes"] else "-"),
    ]
    lines = [" | ".join(name for name, _ in columns), "|".join("---" for _ in columns)]
    lines += [
        " | ".join(show(row) for _, show in columns) for row in cast(list[dict[str, Any]], table.to_dict("records"))
    ]
    head, rule, *rows = lines
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {row} |" for row in rows)]) + "\n"


def _spread(row: dict[str, Any], name: str, form: str) -> str:
    """Mean, and standard deviation where there are several runs."""
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    return _number(mean, form) + (f" ± {std:{form}}" if std == std else "")


def _signed(difference: float, error: float) -> str:
    return _number(difference, "+.2f") + (f" ± {error:.2f}" if error == error else "")


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if value == value else "-"


def report(root: Path, out: Path, terminal: Terminal | None = None, baseline: str | None = None) -> pd.DataFrame:
    """Write ``table.md``, ``table.csv`` and three plots of all finished runs under `root` to `out`.

    ``curves.png`` has accuracy, loss and agreement over the optimizer steps, ``arms.png`` those of the last epoch, and
    ``costs.png`` accuracy against size and time. Accuracies are compared with that of the arm `baseline`, see
    `chosen_baseline`. The `terminal` (None: standard error) is told which runs are damaged and left out.

    Raises:
        RunError: there is no run.
        ConfigError: there is no arm of that name.
    """
    runs, problems = find_runs(root)
    for problem in problems:
        (terminal or Terminal()).say(problem)
    several = _on_hard_labels(runs) if baseline is None else []
    if len(several) > 1:
        (terminal or Terminal()).say(
            f"no differences are shown: {', '.join(several)} learn from hard labels alone; choose one with `baseline`"
        )
    check_plots()
    table = summary(runs, chosen_baseline(runs, baseline))
    write_text(out / "table.md", markdown(table))
    write_text(out / "table.csv", table.to_csv(index=False))
    plot_curves(runs, out / "curves.png")
    plot_arms(table, out / "arms.png")
    plot_costs(table, out / "costs.png")
    return table
