"""What to run after a command: the very command lines, from its settings and its outcome."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from softlabels.choices import DATASETS, DataChoice
from softlabels.core.config import Choice, CommandConfig

_OTHER = frozenset({"codec_report", "codec_samples", "for_temperature", "dry_run"})
"""Settings of a plan that a dump has not, or has otherwise."""


_SMALL = 96
"""Images of a smaller side are for networks that are made for them."""


def next_commands(name: str, settings: Any, outcome: Any) -> list[str]:
    """What a person will most likely run after the command `name`, most likely first; none where that is not known."""
    following = _FOLLOWING.get("plan" if name == "dump" and settings.dry_run else name)
    return [shlex.join(map(str, words)) for words in following(settings, outcome)] if following is not None else []


def _after_plan(settings: Any, outcome: Any) -> Iterator[list[Any]]:
    # What was recommended is what comes next; where teachers differ in that, the choice is left to a person.
    recommended = {each.recommended.codec for each in outcome if each.recommended is not None}
    codec = recommended.pop() if len(recommended) == 1 else None
    words = _options(settings, _OTHER if codec is None else _OTHER | {"codec"})
    if words is not None and codec is not None:
        words += ["--codec", codec]
    if words is not None and any(each.missing_shards for each in outcome):
        yield ["softlabels", "dump", *words]


def _after_pack(settings: Any, outcome: Any) -> Iterator[list[Any]]:
    if getattr(outcome, "missing", 1) == 0:
        yield ["softlabels", "dump", "--teacher", "TEACHER", "--data", f"pack:{settings.out}"]


def _after_dump(settings: Any, outcome: Any) -> Iterator[list[Any]]:
    if any(each.views < settings.views for each in outcome):
        return  # other parts are to be dumped first
    parts = settings.data.parts if settings.data is not None else []
    # Code is never chosen by a file: a data set that a function makes is named again.
    own = any(
        isinstance(data, str) and not Path(data).exists() and data.partition(":")[0] not in DATASETS.names
        for data in parts
    )
    words = [word for data in parts for word in ("--data", data)] if own else []
    words += ["--data-dir", settings.data_dir] if settings.data_dir is not None else []
    words += ["--unlabelled", "leave-out"] if any(each.skipped for each in outcome) else []
    side = min((each.size for each in outcome), default=_SMALL)
    student = ["mobilenetv3"] if side >= _SMALL else ["cnn_tiny", "--size", side]
    yield ["softlabels", "train", "--student", *student, "--labels", settings.out, *words]


def _after_train(settings: Any, outcome: Mapping[str, Any]) -> Iterator[list[Any]]:
    run = outcome["folder"]
    if outcome["last"] is not None:
        yield ["softlabels", "eval", run]
    if settings.labels or settings.teacher:
        yield ["softlabels", "report", Path(run).parent]
        yield ["softlabels", "export", run]
        return
    words = _options(settings, frozenset(type(settings).model_fields) - {"data", "data_dir", "recipe"})
    if words is not None:  # as the teacher of students
        yield ["softlabels", "dump", "--teacher", f"file:{run}", *words]


def _after_dedup(settings: Any, outcome: Any) -> Iterator[list[Any]]:  # noqa: ARG001
    if outcome.data is not None:
        yield ["softlabels", "dump", "--teacher", "TEACHER", "--data", outcome.data]


def _after_select(settings: Any, outcome: Any) -> Iterator[list[Any]]:
    if outcome.data is not None:
        side = ["mobilenetv3"] if outcome.files else ["cnn_tiny"]
        yield ["softlabels", "train", "--student", *side, "--labels", settings.labels, "--data", outcome.data]


_FOLLOWING: Mapping[str, Callable[[Any, Any], Iterator[list[Any]]]] = {
    "plan": _after_plan,
    "pack": _after_pack,
    "dump": _after_dump,
    "dedup": _after_dedup,
    "select": _after_select,
    "train": _after_train,
}


def _options(settings: CommandConfig, left_out: frozenset[str]) -> list[str] | None:
    """The settings that are not at their defaults, as options; None where one cannot be written so."""
    words: list[str] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name in left_out or value == field.get_default(call_default_factory=True):
            continue
        flag = f"--{name.replace('_', '-')}"
        several = map(DataChoice, value.parts) if isinstance(value, DataChoice) else [value]
        for each in value if isinstance(value, tuple) else several:
            given = each.given if isinstance(each, Choice) else each
            if isinstance(given, bool):
                words.append(flag if given else flag.replace("--", "--no-", 1))
            elif isinstance(given, str | int | float | Path):
                words += [flag, str(given)]
            else:
                return None
    return words
