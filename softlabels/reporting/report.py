"""Tables and curves of finished runs, and what a store holds, for people and for pandas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import yaml

from softlabels.core.files import read_json, whole, write_text
from softlabels.core.installed import required
from softlabels.core.progress import Terminal, plural, read_metrics, size
from softlabels.errors import RunError
from softlabels.store import open_store, output_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A finished run: the arm it belongs to, its folder, its result and its records per epoch."""

    arm: str
    folder: Path
    result: dict[str, Any]
    records: list[dict[str, Any]]
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
            run, experiment, seed = _read(path)
        except RunError as problem:
            problems.append(f"left out: {problem}")
            continue
        found.append(run)
        groups.setdefault((experiment, seed), []).append(run)
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


def _read(path: Path) -> tuple[Run, str, Any]:
    """A run, what it has in common with the other runs of its arm, and its seed. Raises RunError."""
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
    run = Run(folder.name, folder, result, read_metrics(folder / "metrics.jsonl"), note)
    settings = {name: value for name, value in config.items() if name not in ("seed", "out")}
    # Of a run that does not say what went into it, the settings tell as much as there is to be known.
    experiment = inputs.get("experiment") or json.dumps(settings or str(run.home), sort_keys=True, default=str)
    return run, str(experiment), config.get("seed", str(folder))


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


def summary(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per arm, in order of appearance, with mean and standard deviation over its runs: accuracy of the last
    epoch (never the best on the test set) in percent, and the last epoch's training loss; and what it cost. Arms that
    were compared with their teacher on every training image also have its accuracy in percent, how often both agree,
    and the mean absolute difference of their logits."""
    import pandas as pd  # takes longer to import than most of what `info` does

    groups = pd.DataFrame([_row(run) for run in runs]).groupby("arm", sort=False)
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
    )
    return table.reset_index()


def _row(run: Run) -> dict[str, Any]:
    result, closeness = run.result, run.result.get("closeness") or {}
    teacher, difference = closeness.get("teacher_top1"), closeness.get("logit_difference")
    return {
        "arm": run.arm,
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


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if value == value else "-"


def report(root: Path, out: Path, terminal: Terminal | None = None) -> pd.DataFrame:
    """Write ``table.md``, ``table.csv``, ``curves.png`` and ``arms.png`` of all finished runs under `root` to `out`.

    The `terminal` (None: standard error) is told which runs are damaged and left out.

    Raises:
        RunError: there is no run.
    """
    runs, problems = find_runs(root)
    for problem in problems:
        (terminal or Terminal()).say(problem)
    check_plots()
    table = summary(runs)
    write_text(out / "table.md", markdown(table))
    write_text(out / "table.csv", table.to_csv(index=False))
    plot_curves(runs, out / "curves.png")
    plot_arms(table, out / "arms.png")
    return table


def check_plots() -> None:
    """Raises ConfigError, which names the extra, when plots cannot be drawn here."""
    _figures()


def _figures() -> Any:
    return required("matplotlib.figure", "plots", "a report's plots").Figure


_MEASURES = {
    "accuracy": "top-1 accuracy of the last epoch, %",
    "loss": "training loss of the last epoch",
    "agreement": "same class as the teacher, %",
    "logit_difference": "mean difference of logits from the teacher's",
}


def plot_arms(table: pd.DataFrame, path: Path) -> None:
    """What `summary` measured of each arm: a point at the mean, a line of one standard deviation to both sides."""
    figure_of = _figures()
    shown = [name for name in _MEASURES if table[f"{name}_mean"].notna().any()] or ["accuracy"]
    figure = figure_of(figsize=(3 + 4 * len(shown), 1.5 + 0.35 * len(table)), layout="constrained")
    places = range(len(table))
    for axes, name in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        axes.errorbar(table[f"{name}_mean"], places, xerr=table[f"{name}_std"].fillna(0), fmt="o", capsize=3)
        if name == "accuracy" and table["teacher_accuracy_mean"].notna().any():
            axes.plot(table["teacher_accuracy_mean"], places, "|", color="grey", label="teacher, training images")
            axes.legend(fontsize="small")
        axes.set_xlabel(_MEASURES[name])
        axes.set_yticks(list(places), [str(arm) for arm in table["arm"]])
        axes.grid(alpha=0.3)
    figure.axes[0].invert_yaxis()
    with whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def plot_curves(runs: Iterable[Run], path: Path) -> None:
    """Accuracy and training loss over the epochs, one line per arm: mean of its runs, shaded lowest to highest."""
    import pandas as pd

    figure_of = _figures()
    records = pd.DataFrame(
        {
            "arm": run.arm,
            "epoch": record["epoch"],
            "top1": 100 * record.get("top1", float("nan")),
            "loss": record["loss"],
        }
        for run in runs
        for record in run.records
    )
    figure = figure_of(figsize=(13, 5), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    _curves(accuracy, records, "top1", "top-1 accuracy, %")
    _curves(loss, records, "loss", "training loss")
    if len(records) and records["top1"].notna().any():
        accuracy.set_ylim(bottom=max(0.0, float(records["top1"].quantile(0.1)) - 10), top=100.5)
    if len(records):
        loss.legend(loc="upper right")
    with whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _curves(axes: Any, records: pd.DataFrame, name: str, label: str) -> None:
    for arm, group in records.dropna(subset=[name]).groupby("arm", sort=False) if len(records) else ():
        curve = group.groupby("epoch")[name].agg(["mean", "min", "max"])
        (line,) = axes.plot(curve.index, curve["mean"], label=str(arm))
        axes.fill_between(curve.index, curve["min"], curve["max"], color=line.get_color(), alpha=0.15)
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid(alpha=0.3)


def describe_store(location: str) -> dict[str, Any]:
    """What a store holds, as JSON values."""
    store = open_store(location)
    manifest = store.manifest
    teachers: dict[str, dict[str, Any]] = {}
    for name in store.teachers:
        each = store.teacher(name)
        teachers[name] = {
            "views": each.complete,
            "shards": len(each.shards),
            "damaged": [shard.name for shard in each.broken],
            "unlabelled": len(each.skipped),
            "bytes": each.nbytes,
            "codec": dict(each.card.codec),
            "format": each.card.format,
            "weights_sha256": each.card.weights_sha256,
            "licence": each.card.licence,
            "preprocessing": dict(each.card.preprocessing),
            "outputs": [output_name(folder) for folder in store.folders if folder.startswith(f"{name}@")],
        }
    return {
        "location": store.location,
        "data": dict(manifest.data),
        "images": len(store),
        "without_hard_label": sum(map(_negative, store.images["label"].chunks)),
        "classes": manifest.classes,
        "recipe": dict(manifest.recipe),
        "seed": manifest.seed,
        "views": min((each["views"] for each in teachers.values()), default=0),
        "teachers": teachers,
        "problems": store.orphans,
    }


def _negative(chunk: Any) -> int:
    """How many of these int64 numbers are below 0; from their memory, since pyarrow's other ways import pandas."""
    return int((np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk)] < 0).sum())


def info_lines(store: dict[str, Any]) -> list[str]:
    """What `describe_store` found, in lines for a person."""
    lines = [
        f"{store['location']}: {plural(store['images'], 'image')} of {json.dumps(store['data'])}, "
        f"{store['classes']} classes",
        f"recipe {json.dumps(store['recipe'])}, seed {store['seed']}",
    ]
    if store["without_hard_label"]:
        lines.append(f"{store['without_hard_label']:,} of the images have no hard label")
    for name, each in store["teachers"].items():
        lines.append(
            f"{name}: {plural(each['views'], 'view')} complete in {plural(each['shards'], each['format'] + ' shard')}, "
            f"{size(each['bytes'])}, codec {json.dumps(each['codec'])}"
        )
        if each["damaged"]:
            more = f" and {len(each['damaged']) - 5:,} more" if len(each["damaged"]) > 5 else ""
            lines.append(f"  damaged: {', '.join(each['damaged'][:5])}{more}; see `softlabels repair`")
        if each["unlabelled"]:
            lines.append(f"  {plural(each['unlabelled'], 'image')} without labels: not readable, or no label was there")
        if each["outputs"]:
            lines.append(f"  stored beside its logits: {', '.join(each['outputs'])}")
        weights = each["weights_sha256"][:16] or "unknown"
        lines.append(f"  weights {weights}, licence {each['licence'] or 'not stated'}")
    return [*lines, *store["problems"]]
