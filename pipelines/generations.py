"""Run a study some arms of which are loops: students label images for their successors, or for each other.

    python pipelines/generations.py configs/digits-generations

As `distill.py`, with two more steps for arms, which keep their rounds in the folder `rounds_in`:

    refine    Label refinery (Bagherinezhad et al. 2018, arXiv:1805.02641): a student labels all views for the next one,
              as long as the accuracy on what `judge` names (settings of `evaluate`) rises
    codistil  Mutual learning (Zhang et al. 2018, arXiv:1706.00384) made offline: in every round both networks go on
              from their last weights, each on the labels that the other one gave at the end of the round before
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill import Commands, Loop, main
from study import Step

import softlabels

Settings = dict[str, Any]


def refine(
    *, out: str, rounds_in: str, judge: Settings, dump: Settings, rounds: int = 5, quiet: bool = True, **train: Any
) -> softlabels.TrainResult:
    """The student of the best round; `train` are settings of every round but the first, which learns hard labels."""
    place = Path(rounds_in)

    def accuracy(settings: Settings, number: int) -> float:
        softlabels.train(**settings, out=place / f"{number}", quiet=quiet)
        student = place / f"{number}" / "last.safetensors"
        softlabels.dump(teacher=f"file:{student}", name="student", **dump, out=place / f"labels-{number}", quiet=quiet)
        return softlabels.evaluate(student, **judge, quiet=quiet).top1

    accuracies = [accuracy({**train, "alpha": 1.0}, 0)]
    for number in range(1, rounds + 1):
        accuracies.append(accuracy({**train, "labels": place / f"labels-{number - 1}"}, number))
        if accuracies[-1] <= accuracies[-2]:
            break
    best = max(range(1, len(accuracies)), key=accuracies.__getitem__)
    rounds_in_words = ", ".join(f"{100 * each:.1f}" for each in accuracies)
    print(f"  {out}: {rounds_in_words} % in rounds from 0; the best that refines is {best}")
    # The same training as round `best`, from labels of one name for all seeds, by which a report groups them.
    chosen = place / "labels"
    chosen.unlink(missing_ok=True)
    chosen.symlink_to(f"labels-{best - 1}")
    return softlabels.train(**{**train, "labels": chosen}, out=out, quiet=quiet)


def refine_steps(
    *, out: str, rounds_in: str, judge: Settings, dump: Settings, rounds: int = 5, **train: Any
) -> list[Step]:
    """Steps that stand for those of `refine`."""
    check_rounds(rounds)
    label = ("dump", {"teacher": f"file:{rounds_in}/0/last.safetensors", "name": "student", **dump, "out": rounds_in})
    return [("train", {**train, "out": out}), label, ("evaluate", {"student": f"file:{out}", **judge})]


def check_rounds(rounds: Any) -> None:
    if type(rounds) is not int or rounds < 1:
        raise softlabels.ConfigError(f"`rounds` must be a whole number of 1 or more, not {rounds!r}")


def codistil(
    *, out: str, rounds_in: str, rounds: int, other: Settings, dump: Settings, quiet: bool = True, **train: Any
) -> softlabels.TrainResult:
    """The first of two networks after its last round; `other` are settings in which the second differs.

    In round 0 both learn hard labels.
    """
    place = Path(rounds_in)
    both: dict[str, Settings] = {"one": train, "other": {**train, **other}}
    for number in range(rounds + 1):
        for name, settings in both.items():
            peer = "other" if name == "one" else "one"
            if number == 0:
                given = {**settings, "alpha": 1.0}
            else:
                last = {"init": place / f"{name}-{number - 1}", "labels": place / f"labels-of-{peer}-{number - 1}"}
                given = {key: value for key, value in settings.items() if key not in ("student", "size")} | last
            if number == rounds and name == "one":
                return softlabels.train(**given, out=out, quiet=quiet)
            softlabels.train(**given, out=place / f"{name}-{number}", quiet=quiet)
        for name in both:
            teacher = f"file:{place / f'{name}-{number}' / 'last.safetensors'}"
            where = place / f"labels-of-{name}-{number}"
            softlabels.dump(teacher=teacher, name=name, **dump, out=where, quiet=quiet)
    raise softlabels.ConfigError("codistil: `rounds` must be 1 or more")


def codistil_steps(
    *, out: str, rounds_in: str, rounds: int, other: Settings, dump: Settings, **train: Any
) -> list[Step]:
    """Steps that stand for those of `codistil`."""
    check_rounds(rounds)
    label = ("dump", {"teacher": f"file:{rounds_in}/one-0/last.safetensors", "name": "one", **dump, "out": rounds_in})
    return [("train", {**train, "out": out}), ("train", {**train, **other, "out": out}), label]


LOOPS: Commands = {"refine": Loop(refine, refine_steps), "codistil": Loop(codistil, codistil_steps)}

if __name__ == "__main__":
    main("generations", LOOPS)
