"""Run a study: make teachers, store their labels, train students in several ways and seeds each, and compare them.

    python pipelines/distill.py configs/digits [--jobs 2] [--only ARM,ARM] [--seeds 0,1] [--quick]

The folder holds a `study.yaml`; `study.py` says what is in it. All settings are checked before anything is made. What
is done is passed over, and what was cut off goes on. With `--jobs` several students train side by side; `--quick` only
tries everything, on a few images.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from study import Step, Study, check, read

import softlabels


@dataclass(frozen=True)
class Loop:
    """A command that a pipeline adds, which runs commands of softlabels in rounds.

    `steps` takes the same settings, and gives steps that stand for all: what is done differs from them in places alone.
    """

    run: Callable[..., Any]
    steps: Callable[..., list[Step]]


Commands = Mapping[str, Loop]
"""What a pipeline adds to the commands of softlabels, by name."""


def check_step(step: Step, more: Commands, out: str) -> None:
    """Raises SoftlabelsError where the settings of a step are wrong; nothing is run."""
    name, settings = step
    if name in more:
        try:
            inspect.signature(more[name].run).bind(**settings)
            inner = more[name].steps(**settings)
        except (TypeError, ValueError) as problem:
            raise softlabels.ConfigError(f"{name}: {problem}") from problem
        for each in inner:
            check_step(each, more, out)
        return
    # A path alone must be there, which a folder of the study is later.
    begun = settings.get("init_from")
    if isinstance(begun, str) and begun.startswith(f"{out}/"):
        settings = {**settings, "init_from": f"file:{begun}"}
    softlabels.check(name, **settings)


def done(step: Step, more: Commands) -> Any:
    """What a step came to; it is done now unless it was before."""
    name, settings = step
    return (more[name].run if name in more else getattr(softlabels, name))(**settings, quiet=True)


def student(study: Study, arm: str, seed: int, more: Commands) -> str:
    """Train a student, unless it was trained before; a line about it."""
    result = [done(step, more) for step in study.arm_steps(arm, seed)][-1]
    top1 = "" if result.top1 is None else f"top-1 {100 * result.top1:.1f} %, "
    return f"{arm}, seed {seed}: {top1}{result.seconds:.0f} s"


def students(study: Study, jobs: int, more: Commands) -> Iterator[str]:
    """Train every student, `jobs` side by side; a line about each."""
    spawn, threads = multiprocessing.get_context("spawn"), max(1, (os.cpu_count() or 1) // jobs)
    waiting: list[Future[str]] = []
    with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            for arm in study.arms:
                if "$arms" in str([study.common, study.arms[arm]]):  # it goes on from students of arms before it
                    yield from (each.result() for each in waiting)
                    waiting = []
                waiting += [pool.submit(student, study, arm, seed, more) for seed in study.seeds]
            yield from (each.result() for each in waiting)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run(study: Study, jobs: int = 1, more: Commands | None = None) -> list[dict[str, str]]:
    """Do what is not done yet, and print the table; its rows. `more` has commands that a pipeline adds."""
    began, more, out = time.monotonic(), more or {}, Path(study.out)
    check(study, lambda step: check_step(step, more, study.out))
    print(study.title, flush=True)
    for place, step in study.first_steps().items():
        score = getattr(done(step, more), "top1", None)
        print(f"  {place}" + ("" if score is None else f": top-1 {100 * score:.1f} %"), flush=True)
    alone = (student(study, arm, seed, more) for arm in study.arms for seed in study.seeds)
    for line in alone if jobs == 1 else students(study, jobs, more):
        print(f"  {line}", flush=True)
    baseline = study.baseline if study.baseline in study.arms else None
    softlabels.report(out / "arms", out / "report", baseline=baseline, quiet=True)
    rows = table(study, (out / "report" / "table.md").read_text(encoding="utf-8"))
    for cells in [list(rows[0]), ["---"] * len(rows[0]), *map(dict.values, rows)]:
        print("| " + " | ".join(cells) + " |")
    print(f"\ntable and plots in {out / 'report'}; {time.monotonic() - began:.0f} s")
    return rows


def table(study: Study, markdown: str) -> list[dict[str, str]]:
    """The rows of a report in the order of the study, with what was published beside them."""
    names, _, *lines = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in markdown.splitlines())
    rows = [dict(zip(names, cells, strict=True)) for cells in lines]
    rows.sort(key=lambda row: list(study.arms).index(row["run"]) if row["run"] in study.arms else len(study.arms))
    return [{**row, "published": str(study.published.get(row["run"], "-"))} if study.published else row for row in rows]


def parts(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    found = [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
    if min(found) < 0 or len({*found}) < len(found):
        raise argparse.ArgumentTypeError(f"different whole numbers are wanted, as 0,1, not {text!r}")
    return found


def count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more is wanted, not {text!r}")
    return int(text)


def main(pipeline: str = "distill", more: Commands | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with a study.yaml")
    parser.add_argument("--jobs", type=count, default=1, help="students trained side by side")
    parser.add_argument("--only", type=parts, default=(), help="these arms alone, as ARM,ARM")
    parser.add_argument("--seeds", type=numbers, default=(), help="these seeds instead of the study's, as 0,1")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch and few images, into OUT-quick")
    options = parser.parse_args()
    try:
        study = read(options.folder, only=options.only, seeds=options.seeds, quick=options.quick)
        if study.pipeline != pipeline:
            sys.exit(f"error: {options.folder} is run by pipelines/{study.pipeline}.py")
        run(study, options.jobs, more)
    except softlabels.SoftlabelsError as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt as stop:
        print(f"{str(stop) or 'interrupted'}; what is done is passed over when this runs again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
