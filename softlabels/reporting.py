"""Tables and curves of finished runs, and what a store holds, for people and for pandas."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from softlabels._files import whole, write_text
from softlabels.errors import RunError
from softlabels.journal import read_metrics, size
from softlabels.labels import open_labels


@dataclass(frozen=True)
class Run:
    """A finished run: the arm it belongs to, its folder, its result and its records per epoch."""

    arm: str
    folder: Path
    result: dict[str, Any]
    records: list[dict[str, Any]]


def find_runs(root: Path) -> list[Run]:
    """Every finished run under `root`; a folder named ``seed-N`` is one run of the arm that its parent names.

    Raises:
        RunError: there is none.
    """
    runs = []
    for path in sorted(root.rglob("result.json")):
        folder = path.parent
        arm = folder.parent.name if folder.name.startswith("seed-") else folder.name
        result = json.loads(path.read_text(encoding="utf-8"))
        runs.append(Run(arm, folder, result, read_metrics(folder / "metrics.jsonl")))
    if not runs:
        raise RunError(f"no finished run under {root}; `softlabels train` leaves one, with a result.json")
    return runs


def summary(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per arm, in order of appearance: accuracy of the last epoch (never the best on the test set), mean and
    standard deviation over its runs in percent, and what it cost."""
    rows = [
        {
            "arm": run.arm,
            "accuracy": 100 * run.result["last"]["top1"] if run.result["last"] else float("nan"),
            "parameters": run.result["parameters"],
            "images": run.result["images"],
            "steps": run.result["steps"],
            "seconds": run.result["seconds"],
            "label_bytes": run.result["label_bytes"],
        }
        for run in runs
    ]
    groups = pd.DataFrame(rows).groupby("arm", sort=False)
    table = groups.agg(
        runs=("accuracy", "size"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_std=("accuracy", "std"),
        parameters=("parameters", "first"),
        images=("images", "first"),
        steps=("steps", "first"),
        seconds=("seconds", "mean"),
        label_bytes=("label_bytes", "first"),
    )
    return table.reset_index()


def markdown(table: pd.DataFrame) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| student learns from | accuracy % (last epoch) | runs | images | parameters | steps | seconds | labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        spread = f" ± {row['accuracy_std']:.2f}" if row["runs"] > 1 else ""
        labels = size(row["label_bytes"]) if row["label_bytes"] else "-"
        lines.append(
            f"| {row['arm']} | {row['accuracy_mean']:.2f}{spread} | {row['runs']} | {row['images']:,} | "
            f"{row['parameters']:,} | {row['steps']:,} | {row['seconds']:.1f} | {labels} |"
        )
    return "\n".join(lines) + "\n"


def report(root: Path, out: Path) -> pd.DataFrame:
    """Write ``table.md``, ``table.csv`` and ``curves.png`` of all finished runs under `root` to `out`."""
    runs = find_runs(root)
    table = summary(runs)
    write_text(out / "table.md", markdown(table))
    write_text(out / "table.csv", table.to_csv(index=False))
    plot_curves(runs, out / "curves.png")
    return table


def plot_curves(runs: Iterable[Run], path: Path) -> None:
    """Accuracy over the epochs, one line per arm: mean over its runs, shaded from the lowest to the highest."""
    from matplotlib.figure import Figure

    records = pd.DataFrame(
        {"arm": run.arm, "epoch": record["epoch"], "top1": 100 * record["top1"]}
        for run in runs
        for record in run.records
        if "top1" in record
    )
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="top-1 accuracy, %")
    for arm, group in records.groupby("arm", sort=False) if len(records) else ():
        curve = group.groupby("epoch")["top1"].agg(["mean", "min", "max"])
        (line,) = axes.plot(curve.index, curve["mean"], label=str(arm))
        axes.fill_between(curve.index, curve["min"], curve["max"], color=line.get_color(), alpha=0.15)
    if len(records):
        axes.set_ylim(bottom=max(0.0, float(records["top1"].quantile(0.1)) - 10), top=100.5)
        axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    with whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def describe_store(location: str) -> dict[str, Any]:
    """What a store holds, as a mapping; its ``lines`` say it to a person."""
    labels = open_labels(location)
    manifest = labels.store.manifest
    teachers = {}
    for name in labels.teachers:
        each = labels.of(name)
        teachers[name] = {
            "views": each.views,
            "shards": len(each.shards),
            "bytes": each.nbytes,
            "codec": dict(each.card.codec),
            "format": each.card.format,
            "weights_sha256": each.card.weights_sha256,
            "licence": each.card.licence,
            "preprocessing": dict(each.card.preprocessing),
        }
    described = {
        "location": str(labels.store.root),
        "data": dict(manifest.data),
        "images": len(labels),
        "classes": labels.classes,
        "recipe": labels.recipe.model_dump(mode="json"),
        "seed": labels.seed,
        "views": labels.views,
        "teachers": teachers,
    }
    return described | {"lines": _lines(described)}


def _lines(store: dict[str, Any]) -> list[str]:
    lines = [
        f"{store['location']}: {store['images']:,} images of {json.dumps(store['data'])}, {store['classes']} classes",
        f"recipe {json.dumps(store['recipe'])}, seed {store['seed']}",
    ]
    for name, each in store["teachers"].items():
        lines.append(
            f"{name}: {each['views']} views complete in {each['shards']} {each['format']} shards, "
            f"{size(each['bytes'])}, codec {json.dumps(each['codec'])}"
        )
        lines.append(f"  weights {each['weights_sha256'][:16]}, licence {each['licence'] or 'not stated'}")
    return lines
