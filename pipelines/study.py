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

A seed stands in `seeds`, and settings of stores and of what an arm dumps; `out` is the study's alone.
Texts may hold $out, $teachers, $stores, $arms and, in arms, $seed and $step1, $step2, ... (folders of earlier steps).
A store may be made by another command, as `NAME: {select: {...}}`. `read` checks what is known of
the file alone, and `check` the rest, before anything is made.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Template
from typing import Any

import yaml

import softlabels

Settings = dict[str, Any]
Step = tuple[str, Settings]
"""A command of softlabels, or one that a pipeline adds, and its settings."""

FEW_IMAGES: dict[str, Settings] = {"dump": {"limit": 300}, "convert": {}, "dedup": {}, "merge": {}, "select": {}}
"""Commands that train nothing, and what they are given for a quick trial."""


@dataclass(frozen=True)
class Study:
    title: str
    out: str
    seeds: list[int]
    arms: dict[str, list[Step]]
    teachers: dict[str, Settings] = field(default_factory=dict)
    stores: dict[str, Step] = field(default_factory=dict)
    common: Settings = field(default_factory=dict)
    baseline: str | None = None
    published: dict[str, Any] = field(default_factory=dict)
    pipeline: str = "distill"
    quick: bool = False
    file: str = "study.yaml"
    left_out: Sequence[str] = ()
    """Arms of the file that were not asked for."""

    def first_steps(self) -> dict[str, Step]:
        """What is done once, by name."""
        teachers = {f"teachers/{name}": ("train", given) for name, given in self.teachers.items()}
        stores = {f"stores/{name}": step for name, step in self.stores.items()}
        return {place: self.first_step(place, *each) for place, each in {**teachers, **stores}.items()}

    def first_step(self, place: str, command: str, settings: Settings) -> Step:
        """One of `first_steps`."""
        return self._step(command, settings, place, {})

    def arm_steps(self, arm: str, seed: int) -> list[Step]:
        """What trains the student of an arm and a seed."""
        given = self.arms[arm]
        places = [f"steps/{arm}/seed-{seed}/{number}" for number in range(1, len(given))] + [f"arms/{arm}/seed-{seed}"]
        known = {"seed": str(seed), **{f"step{n}": f"{self.out}/{place}" for n, place in enumerate(places[:-1], 1)}}
        steps = []
        for (name, own), place in zip(given, places, strict=True):
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
            return name, mapping(settings, name)
        if len(given) == 1 and settings is None and name in (*FEW_IMAGES, "train"):
            return name, {}
    return default, given


def filled(value: Any, known: Mapping[str, str]) -> Any:
    """`value` with the places in its texts filled in."""
    if isinstance(value, str):
        try:
            return Template(value).substitute(known)
        except (KeyError, ValueError) as problem:
            names = ", ".join(f"${name}" for name in known)
            raise softlabels.ConfigError(f"{value!r} names none of the places {names}") from problem
    if isinstance(value, dict):
        return {name: filled(each, known) for name, each in value.items()}
    return [filled(each, known) for each in value] if isinstance(value, list) else value


def near(name: str, known: Iterable[str]) -> str:
    """The names that are nearest to one that is not there, or all of them."""
    found = difflib.get_close_matches(name, list(known))
    return f"did you mean {' or '.join(map(repr, found))}?" if found else f"there are {', '.join(known) or 'none'}"


class UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice, of which YAML readers take the last in silence."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise ValueError(f"{key.value!r} stands in line {lines[key.value]} and again in line {line}")
                lines[key.value] = line
        return node


PIPELINES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")  # a script, not a module
)


def mapping(value: Any, what: str) -> dict[str, Any]:
    """`value`, a mapping of texts; nothing is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise softlabels.ConfigError(f"{what} must be a mapping of names to settings, not {value!r}")
    odd = [name for name in value if not isinstance(name, str)]
    if odd:
        raise softlabels.ConfigError(f"{what}: the name {odd[0]!r} is no text; write it in quotes")
    return value


def named_folders(value: Any, what: str) -> dict[str, Any]:
    """A mapping of `value` each name of which can be that of a folder."""
    for name in mapping(value, f"`{what}s`"):
        if not name or re.search(r"^\.|[/\\|$\x00-\x1f]", name):
            raise softlabels.ConfigError(
                f"{what} {name!r}: a name is a folder's, which has no /, \\, | or $ and begins with no dot"
            )
    return mapping(value, what)


def free_of(names: Sequence[str], settings: Settings, what: str) -> Settings:
    """`settings`, of which the study itself gives `names`."""
    for name in names:
        if name in settings:
            whose = (
                "`seeds` of the study gives every arm its seeds" if name == "seed" else "the study's `out` says where"
            )
            raise softlabels.ConfigError(f"{what} sets `{name}`; leave it out: {whose}")
    return settings


def arm_of(given: Any, what: str) -> list[Step]:
    """The steps of an arm."""
    listed = isinstance(given, list)
    if listed and not given:
        raise softlabels.ConfigError(f"{what} has no steps; list some, such as `- train: {{...}}`")
    steps = [named(mapping(each, what), "train") for each in given] if listed else [("train", mapping(given, what))]
    for command, settings in steps:
        free_of(["out"] if command in FEW_IMAGES else ["out", "seed"], settings, what)
    last = steps[-1][0]
    if last in FEW_IMAGES or (last != "train" and hasattr(softlabels, last)):
        raise softlabels.ConfigError(
            f"{what}: its last step is `{last}`; the last one trains the student: `- train: {{}}`"
        )
    return steps


def seeds_of(given: Any) -> list[int]:
    """A list of different whole numbers."""
    if not isinstance(given, list) or not all(type(each) is int and each >= 0 for each in given):
        raise softlabels.ConfigError(f"`seeds` must be a list of whole numbers, such as [0, 1, 2], not {given!r}")
    if len({*given}) < len(given):
        raise softlabels.ConfigError(f"`seeds` has one twice: {given!r}")
    return given


def text(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise softlabels.ConfigError(f"`{what}` must be a text, not {given!r}")
    return given


def read(folder: Path, *, only: Sequence[str] = (), seeds: Sequence[int] = (), quick: bool = False) -> Study:
    """The study in a folder, of which `only` some arms and other `seeds` may be asked for.

    Raises:
        ConfigError: what is wrong in the file, in one line that begins with its name.
    """
    path = folder / "study.yaml"
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except OSError as problem:
        raise softlabels.ConfigError(f"{path} holds no study: {problem.strerror}") from problem
    except (ValueError, RecursionError, yaml.YAMLError) as problem:
        raise softlabels.ConfigError(f"{path} holds no study: {' '.join(str(problem).split())}") from problem
    if not isinstance(given, dict):
        found = "is empty" if given is None else f"is a {type(given).__name__}"
        raise softlabels.ConfigError(
            f"{path} holds no study: it {found}, not a mapping with title, out, seeds and arms"
        )
    try:
        return _checked(given, str(path), only, seeds, quick)
    except softlabels.ConfigError as problem:
        raise softlabels.ConfigError(f"{path}: {problem}") from problem


def _checked(given: dict[str, Any], file: str, only: Sequence[str], seeds: Sequence[int], quick: bool) -> Study:
    known = {each.name for each in fields(Study)} - {"quick", "file", "left_out"}
    for name in given:
        if name not in known:
            raise softlabels.ConfigError(f"unknown {name!r}; {near(str(name), sorted(known))}")
    for name in ("title", "out", "seeds", "arms"):
        if not given.get(name):
            raise softlabels.ConfigError(f"no {name!r}; a study has title, out, seeds and arms")
    arms = {name: arm_of(each, f"arm {name!r}") for name, each in named_folders(given["arms"], "arm").items()}
    teachers = {
        name: free_of(["out"], mapping(each, f"teacher {name!r}"), f"teacher {name!r}")
        for name, each in named_folders(given.get("teachers"), "teacher").items()
    }
    stores = {
        name: named(mapping(each, f"store {name!r}"), "dump")
        for name, each in named_folders(given.get("stores"), "store").items()
    }
    for name, (_, settings) in stores.items():
        free_of(["out"], settings, f"store {name!r}")
    published, baseline = mapping(given.get("published"), "`published`"), given.get("baseline")
    asked = {
        "`baseline` names": [] if baseline is None else [baseline],
        "`published` names": published,
        "`--only` names": only,
    }
    for who, names in asked.items():
        for name in names:
            if name not in arms:
                raise softlabels.ConfigError(f"no arm {name!r}, which {who}; {near(str(name), arms)}")
    pipeline = given.get("pipeline") or "distill"
    if pipeline not in PIPELINES:
        raise softlabels.ConfigError(f"no pipeline {pipeline!r}; there are {', '.join(PIPELINES)}")
    out, every = str(Path(text(given["out"], "out")).expanduser()), seeds_of(given["seeds"])
    every = seeds_of(list(seeds)) if seeds else every
    return Study(
        title=text(given["title"], "title"),
        out=f"{out}-quick" if quick else out,
        seeds=every[:1] if quick else every,
        arms={name: arms[name] for name in only} if only else arms,
        teachers=teachers,
        stores=stores,
        common=free_of(["out", "seed"], mapping(given.get("common"), "`common`"), "`common`"),
        baseline=baseline,
        published=published,
        pipeline=pipeline,
        quick=quick,
        file=file,
        left_out=[name for name in arms if only and name not in only],
    )


PLACE = re.compile(r"\$\{?(teachers|stores|arms)\}?/([^$]*)")


def check(study: Study, check_step: Callable[[Step], None]) -> None:
    """Check all steps of a study before any is done: the places that they name, and their settings by `check_step`.

    Raises:
        SoftlabelsError: it begins with the file and what is wrong in it, such as an arm.
    """
    there: dict[str, list[str]] = {"teachers": [], "stores": [], "arms": []}
    given = [("teachers", name, [("train", settings)]) for name, settings in study.teachers.items()]
    given += [("stores", name, [step]) for name, step in study.stores.items()]
    given += [("arms", name, steps) for name, steps in study.arms.items()]
    for kind, name, steps in given:
        arm = kind == "arms"
        try:
            for command, own in steps:
                settings = {**study.common, **own} if arm and command not in FEW_IMAGES else own
                for seed in study.seeds if arm else [0]:
                    for found in places(seeded(settings, seed) if arm else settings):
                        check_place(study, *found, there)
            first = study.seeds[0]
            for step in study.arm_steps(name, first) if arm else [study.first_step(f"{kind}/{name}", *steps[0])]:
                check_step(step)
        except softlabels.SoftlabelsError as problem:
            raise type(problem)(f"{study.file}: {kind[:-1]} {name!r}: {problem}") from problem
        there[kind].append(name)


def seeded(value: Any, seed: int) -> Any:
    """`value` with the seed in its texts filled in, which may be a part of a name."""
    if isinstance(value, str):
        return Template(value).safe_substitute(seed=seed)
    if isinstance(value, dict):
        return {name: seeded(each, seed) for name, each in value.items()}
    return [seeded(each, seed) for each in value] if isinstance(value, list) else value


def places(value: Any) -> list[tuple[str, str]]:
    """What the texts in `value` name of the study's folders: of which kind, and what follows."""
    if isinstance(value, str):
        return [(found[1], found[2]) for found in PLACE.finditer(value)]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [found for each in inner for found in places(each)]


def check_place(study: Study, kind: str, rest: str, there: Mapping[str, Sequence[str]]) -> None:
    """Raises ConfigError where `rest` begins with no name that is `there`, nor with one that was made before."""
    if any(rest == name or (rest.startswith(name) and rest[len(name)] in "/:,= \t") for name in there[kind]):
        return
    name = re.split(r"[/:,=\s]", rest, maxsplit=1)[0]
    if name and not (Path(study.out) / kind / name).exists():
        if kind == "arms" and name in study.left_out:
            raise softlabels.ConfigError(f"arm {name!r}, which it goes on from, was not trained yet; ask for it, too")
        order = "they are made in the order of the file: move it up"
        why = order if name in getattr(study, kind) else near(name, there[kind])
        raise softlabels.ConfigError(f"${kind}/{name} is no {kind[:-1]} before this one; {why}")
