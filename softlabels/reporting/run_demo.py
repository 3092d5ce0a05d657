"""`softlabels demo`: a distillation of two minutes, made by the commands that anybody would type."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.core.config import validated
from softlabels.core.progress import Terminal
from softlabels.dumping.config import DumpConfig
from softlabels.dumping.run import run_dump
from softlabels.reporting.config import DemoConfig
from softlabels.training.config import TrainConfig
from softlabels.training.run import run_train

DATA = "digit-pairs"

TEACHER: Mapping[str, Any] = {
    "student": "cnn_mini",
    "size": 8,
    "data": DATA,
    "recipe": "pad",
    "epochs": 6,
    "batch_size": 128,
    "lr": 0.02,
    "warmup_epochs": 0.5,
}
LABELS: Mapping[str, Any] = {"data": DATA, "recipe": "pad", "limit": 1000, "views": 16}
STUDENT: Mapping[str, Any] = {
    "student": "cnn_tiny",
    "size": 8,
    "epochs": 40,
    "batch_size": 64,
    "lr": 0.02,
    "warmup_epochs": 2,
    "eval_every": 5,
}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "hard-labels": {"alpha": 1},
    "stored-labels": {"temperature": 4},
}
"""What the students learn from: the images, views, order and steps are the same."""


@dataclass(frozen=True)
class DemoResult:
    """Top-1 accuracies on images that nobody has trained on: of the teacher, and of each student by arm and seed."""

    teacher: float
    students: dict[str, list[float]]
    folder: Path

    def lines(self) -> list[str]:
        """The result for a person: mean and standard error over the seeds."""
        width = max(len(arm) for arm in self.students) + 9
        lines = [f"{'teacher':{width}}  {self.teacher:.1%}"]
        for arm, scores in self.students.items():
            error = f" +- {100 * statistics.stdev(scores) / len(scores) ** 0.5:.1f}" if len(scores) > 1 else ""
            lines.append(f"{f'student, {arm}':{width}}  {statistics.mean(scores):.1%}{error}")
        return lines


def run_demo(config: DemoConfig, terminal: Terminal) -> DemoResult:
    """Train a teacher, store its labels of 1,000 images, and train a smaller network with them and without."""
    out = Path(config.out)
    teacher = _train({**TEACHER, "out": str(out / "teacher")}, terminal)
    labels = {"teacher": f"file:{out / 'teacher'}", **LABELS, "out": str(out / "shards")}
    terminal.say(_command("dump", labels))
    run_dump(validated(DumpConfig, labels, "demo"), Terminal(quiet=True))
    students: dict[str, list[float]] = {}
    for seed in range(config.runs):
        for arm, own in ARMS.items():
            learnt = {**STUDENT, "labels": labels["out"], **own, "seed": seed, "out": str(out / arm / f"seed-{seed}")}
            students.setdefault(arm, []).append(_train(learnt, terminal))
    return DemoResult(teacher, students, out)


def demo_text(result: DemoResult) -> str:
    """What `run_demo` found, for a person."""
    return "\n".join(result.lines()) + "\n"


def _train(settings: Mapping[str, Any], terminal: Terminal) -> float:
    terminal.say(_command("train", settings))
    top1 = run_train(validated(TrainConfig, settings, "demo"), Terminal(quiet=True)).top1
    assert top1 is not None  # the data set has a test side
    terminal.say(f"  top-1 {top1:.1%}")
    return top1


def _command(name: str, settings: Mapping[str, Any]) -> str:
    """The command that does the same, with its settings as messages name them."""
    return " ".join([f"softlabels {name}", *(f"`{key}={shlex.quote(str(value))}`" for key, value in settings.items())])
