"""Plots of a report: how runs went, where they ended, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.core.files import whole
from softlabels.core.installed import required
from softlabels.training.folder import ANYWHERE

if TYPE_CHECKING:
    import pandas as pd

    from softlabels.reporting.report import Run

_CURVES = {
    "top1": "top-1 accuracy, evaluation images, %",
    "loss": "training loss",
    "agreement": "same class as the teacher, training images, %",
    "train_top1": "top-1 accuracy, training views, %",
    "teacher_top1": "teacher's top-1 accuracy, training views, %",
    "logit_difference": "mean difference of logits from the teacher's",
}
"""What is drawn over the steps, by its name in a record."""

_NOT_SHARES = frozenset(["loss", "logit_difference"])

_MOST_COLUMNS = 3
"""Panels beside each other."""

_ENDS = {
    "accuracy": "top-1 accuracy of the last epoch, %",
    "loss": "training loss of the last epoch",
    "agreement": "same class as the teacher, training images, %",
    "logit_difference": "mean difference of logits from the teacher's",
}
"""What is drawn of each arm, by its column in the table."""

_COSTS = {"parameters": "parameters of the student", "seconds": "seconds of training"}

_TOLD_FIRST = ("student", "labels", "teacher", "alpha", "temperature", "loss")
"""Settings that say most about an arm; the others follow in the order of the config."""

_WITH_TEACHERS = frozenset(["loss", "temperature", "blend"])
"""Settings that say nothing about an arm without a teacher."""

_MOST_TOLD = 4
"""Settings in the legend for one arm."""

_WIDE_RANGE = 20.0
"""Values that differ by more than this factor are drawn on a logarithmic axis."""


def check_plots() -> None:
    """Raises ConfigError, which names the extra, when plots cannot be drawn here."""
    _new_figure(1, 1)


def _new_figure(width: float, height: float) -> Any:
    figure = required("matplotlib.figure", "plots", "a report's plots").Figure
    return figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def plot_curves(runs: Sequence[Run], path: Path) -> None:
    """A panel for each metric over the optimizer steps, a line per arm: mean of its runs, shaded lowest to highest."""
    import pandas as pd

    records = pd.DataFrame(
        {"arm": run.arm, **{name: record.get(name) for name in ("step", *_CURVES)}}
        for run in runs
        for record in run.records
    )
    shown = [name for name in _CURVES if len(records) and records[name].notna().any()] or ["loss"]
    arms = legend(runs)
    colours = {arm: f"C{number % 10}" for number, arm in enumerate(arms)}
    columns = min(len(shown), _MOST_COLUMNS)
    rows = -(-len(shown) // columns)
    figure = _new_figure(1 + 5 * columns, 4 * rows + 0.25 * len(arms))
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[len(shown) :]:
        axes.remove()
    for axes, name in zip(places, shown, strict=False):
        if len(records):
            _draw_curves(axes, records.dropna(subset=[name]), name, colours)
        axes.set(title=_CURVES[name], xlabel="optimizer steps")
        axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    if lines:
        named = [arm for arm in arms if arm in lines]
        handles = [lines[arm] for arm in named]
        figure.legend(handles, [arms[arm] for arm in named], loc="outside lower left", fontsize="small")
    _save(figure, path)


def _draw_curves(axes: Any, records: pd.DataFrame, name: str, colours: Mapping[str, str]) -> None:
    percent = 1.0 if name in _NOT_SHARES else 100.0
    for arm, group in records.groupby("arm", sort=False):
        curve = percent * group.groupby("step")[name].agg(["mean", "min", "max"])
        axes.plot(curve.index, curve["mean"], label=str(arm), color=colours[str(arm)])
        axes.fill_between(curve.index, curve["min"], curve["max"], color=colours[str(arm)], alpha=0.15)
    values = percent * records[name]
    if name in _NOT_SHARES and values.min() > 0 and values.max() / values.min() > _WIDE_RANGE:
        axes.set_yscale("log")
    if name not in _NOT_SHARES:  # the first epochs would squeeze what differs into the top
        lowest, highest = float(values.quantile(0.1)), float(values.max())
        margin = 0.05 * max(highest - lowest, 1.0)
        axes.set_ylim(lowest - margin, highest + margin)


def plot_arms(table: pd.DataFrame, path: Path) -> None:
    """What a summary measured of each arm: a point at the mean, a line of one standard deviation to both sides."""
    shown = [name for name in _ENDS if table[f"{name}_mean"].notna().any()] or ["accuracy"]
    figure, places = _new_figure(3 + 4 * len(shown), 1.5 + 0.45 * len(table)), range(len(table))
    for axes, name in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        means = table[f"{name}_mean"]
        axes.errorbar(means, places, xerr=table[f"{name}_std"].fillna(0), fmt="o", capsize=3)
        for place, value in zip(places, means, strict=True):
            if value == value:
                axes.annotate(f"{value:.4g}", (value, place), (0, 6), textcoords="offset points", ha="center", size=8)
        axes.set_title(_ENDS[name], fontsize="medium")
        axes.set_yticks(list(places), [str(arm) for arm in table["arm"]])
        axes.margins(x=0.15)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.grid(alpha=0.3)
    _save(figure, path)


def plot_costs(table: pd.DataFrame, path: Path) -> None:
    """The accuracy of each arm against the size of its student, and against the time of its training."""
    figure = _new_figure(11, 4.5)
    for axes, (name, label) in zip(figure.subplots(1, 2, sharey=True), _COSTS.items(), strict=True):
        for row in table.to_dict("records"):
            error = row["accuracy_std"] if row["accuracy_std"] == row["accuracy_std"] else 0
            axes.errorbar(row[name], row["accuracy_mean"], yerr=error, fmt="o", capsize=3, label=str(row["arm"]))
        if table[name].min() > 0 and table[name].max() / table[name].min() > _WIDE_RANGE:
            axes.set_xscale("log")
        axes.set(title=f"accuracy against {name}", xlabel=label)
        axes.margins(0.15)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(_ENDS["accuracy"])
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize="small")
    _save(figure, path)


def legend(runs: Sequence[Run]) -> dict[str, str]:
    """What each arm is called in a legend: its name, and the settings in which it differs from other arms."""
    arms = {run.arm: run.settings for run in reversed(runs)}  # the first run of each
    names = [*_TOLD_FIRST, *dict.fromkeys(name for settings in arms.values() for name in settings)]
    differing = [
        name
        for name in dict.fromkeys(names)
        if name not in ANYWHERE and len({str(settings.get(name)) for settings in arms.values()}) > 1
    ]
    return {run.arm: _called(run.arm, run.settings, differing) for run in runs}


def _called(arm: str, settings: Mapping[str, Any], differing: Sequence[str]) -> str:
    taught = (settings.get("labels") or settings.get("teacher")) and settings.get("alpha") != 1
    idle = frozenset() if taught else _WITH_TEACHERS
    names = [name for name in differing if name not in idle and settings.get(name) not in (None, [], {})]
    told = [f"{name}={_short(settings[name])}" for name in names]
    told = [each for each in told if each not in arm]
    more = ", ..." if len(told) > _MOST_TOLD else ""
    return f"{arm}  ({', '.join(told[:_MOST_TOLD])}{more})" if told else arm


def _short(value: Any) -> str:
    text = ", ".join(map(_short, value)) if isinstance(value, list) else str(value).rstrip("/").rpartition("/")[2]
    return text if len(text) <= 24 else f"{text[:21]}..."
