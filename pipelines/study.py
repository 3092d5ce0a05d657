"""A study: teachers, stores of their labels, and ways of training students from them, in one `study.yaml`.

    title, out, seeds   what it is, the folder of its results, and the seeds that every arm is trained with
    teachers            NAME: settings of `train`, into $teachers/NAME; made once
    stores              NAME: settings of `dump`, into $stores/NAME; made once, after the teachers and in this order
    common              settings of every `train` of the arms; an arm's own come first, and null takes one away
    arms                NAME: settings of `train`, or a list of steps such as `- train: {...}` and `- dump: {...}`. The
                        last step's run is the arm's, in $arms/NAME/seed-N; earlier ones lie in $steps/NAME/seed-N
    baseline            the arm that the others are compared with, by seed
    published           ARM: a published figure that stands beside ours
    pipeline            the script that runs it; `distill` where it names none

Texts may hold $out, $teachers, $stores, $arms and, in arms, $seed and $step1, $step2, ... (folders of earlier steps).
A store may be made by another command, as `NAME: {select: {...}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Template
from typing import Any

import yaml

import softlabels

Settings = dict[str, Any]
Step = tuple[str, Settings]
"""A command of softlabels, or one that a pipeline adds, and its settings."""

FEW_IMAGES: dict[str, Settings] = {"dump": {"limit": 300}, "convert": {}, "dedup": {}, "select": {}}
"""Commands that train nothing, and what they are given for a quick trial."""


@dataclass(frozen=True)
class Study:
    title: str
    out: str
    seeds: list[int]
    arms: dict[str, Any]
    teachers: dict[str, Settings] = field(default_factory=dict)
    stores: dict[str, Settings] = field(default_factory=dict)
    common: Settings = field(default_factory=dict)
    baseline: str | None = None
    published: dict[str, Any] = field(default_factory=dict)
    pipeline: str = "distill"
    quick: bool = False

    def first_steps(self) -> dict[str, Step]:
        """What is done once, by name."""
        teachers = {f"teachers/{name}": ("train", given) for name, given in self.teachers.items()}
        stores = {f"stores/{name}": named(given, "dump") for name, given in self.stores.items()}
        return {place: self._step(*each, place, {}) for place, each in {**teachers, **stores}.items()}

    def arm_steps(self, arm: str, seed: int) -> list[Step]:
        """What trains the student of an arm and a seed."""
        given = self.arms[arm] if isinstance(self.arms[arm], list) else [{"train": self.arms[arm]}]
        places = [f"steps/{arm}/seed-{seed}/{number}" for number in range(1, len(given))] + [f"arms/{arm}/seed-{seed}"]
        known = {"seed": str(seed), **{f"step{n}": f"{self.out}/{place}" for n, place in enumerate(places[:-1], 1)}}
        steps = []
        for (name, own), place in zip((named(each, "train") for each in given), places, strict=True):
            common = {} if name in FEW_IMAGES else {**self.common, "seed": seed}
            steps.append(self._step(name, {**common, **own}, place, known))
        return steps

    def _step(self, name: str, settings: Settings, place: str, known: Mapping[str, str]) -> Step:
        folders = {each: f"{self.out}/{each}" for each in ("teachers", "stores", "arms", "steps")}
        settings = filled(settings, {"out": self.out, **folders, **known})
        if self.quick:
            settings |= FEW_IMAGES.get(name, {"limit": 200, "epochs": 1, "warmup_epochs": 0})
        return name, {
            **{key: value for key, value in settings.items() if value is not None},
            "out": f"{self.out}/{place}",
        }


def named(given: Settings, default: str) -> Step:
    """The command and settings of `{COMMAND: {...}}`; plain settings are those of the default command."""
    for name, settings in given.items():
        if len(given) == 1 and isinstance(settings, dict):
            return name, settings
    return default, given


def filled(value: Any, known: Mapping[str, str]) -> Any:
    """`value` with the places in its texts filled in."""
    if isinstance(value, str):
        try:
            return Template(value).substitute(known)
        except (KeyError, ValueError) as problem:
            names = ", ".join(f"${name}" for name in known)
            raise softlabels.ConfigError(f"study.yaml: {value!r} names none of the places {names}") from problem
    if isinstance(value, dict):
        return {name: filled(each, known) for name, each in value.items()}
    return [filled(each, known) for each in value] if isinstance(value, list) else value


def read(folder: Path, *, only: Sequence[str] = (), seeds: Sequence[int] = (), quick: bool = False) -> Study:
    """The study in a folder, of which `only` some arms and other `seeds` may be asked for."""
    path = folder / "study.yaml"
    try:
        given = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as problem:
        raise softlabels.ConfigError(f"{path} holds no study: {' '.join(str(problem).split())}") from problem
    known, arms = {each.name for each in fields(Study)} - {"quick"}, given.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise softlabels.ConfigError(f"{path} has no arms; `arms` is a mapping of names to settings of `train`")
    wrong = [f"unknown {name!r}" for name in given if name not in known]
    wrong += [f"no {name!r}" for name in ("title", "out", "seeds") if not given.get(name)]
    wrong += [f"no arm {name!r}" for name in only if name not in arms]
    if wrong:
        raise softlabels.ConfigError(f"{path}: {wrong[0]}; there are {', '.join(arms if only else sorted(known))}")
    given |= {"arms": {name: arms[name] for name in only}} if only else {}
    given |= {"seeds": list(seeds)} if seeds else {}
    given |= {"out": f"{given['out']}-quick", "seeds": given["seeds"][:1]} if quick else {}
    return Study(**given, quick=quick)
