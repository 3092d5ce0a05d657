"""A run's folder: its config, its inputs, its header, and its result, which is written last.

A run is known by its settings and by what went into it, not by where that lay: labels, teachers, first weights and
images may move. `inputs.json` says what they were.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from softlabels.core.config import config_text, read_yaml
from softlabels.core.files import read_json, remove_leftovers, write_json, write_text
from softlabels.errors import RunError
from softlabels.store import BusyError, exclusive, is_url
from softlabels.training.settings import warmup_of

CONFIG, INPUTS, RESULT = "config.yaml", "inputs.json", "result.json"
RUN_LOCK = ".writer-run"


_IN_RESULT = frozenset({"best", "last", "parameters", "images", "steps", "seconds", "label_bytes"})
"""What the result of every finished run holds."""


_CHANGE = frozenset({"from", "to", "at_step", "lr", "lr_before"})
"""What `inputs.json` holds for each time that a run got more epochs."""


ANYWHERE = frozenset(
    {
        "device",
        "workers",
        "out",
        "data_dir",
        "cache_dir",
        "cache_size",
        "compile",
        "channels_last",
        "track",
    }
)
"""Settings that may change between the parts of one run: they say where it runs, not what it is."""


NAMED = frozenset(
    [
        "student",
        "init",
        "init_from",
        "init_from_weights",
        "weights",
        "labels",
        "teachers",
        "teacher",
        "teacher_weights",
        "data",
        "eval_data",
    ]
)
"""Settings that name what is compared by what it is."""


@dataclass(frozen=True)
class Record:
    """What a run's folder says of the run in it: its config, what went into it (None: not recorded), and its result.

    `prolonged` tells, for each time that it got more epochs, from and to how many, and at which step.
    """

    folder: Path
    config: Mapping[str, Any]
    chosen: Mapping[str, Any] | None
    inputs: Mapping[str, Any] | None
    result: dict[str, Any] | None
    prolonged: Sequence[Mapping[str, Any]] = ()

    def shorter(self, config: BaseModel) -> int | None:
        """How many epochs the run has, where `config` asks for more; None where it does not."""
        default = type(config).model_fields["epochs"].default
        before, now = self.config.get("epochs", default), config.model_dump()["epochs"]
        return before if isinstance(before, int) and before < now else None

    def check_settings(self, config: BaseModel, *, longer: bool = False) -> None:
        """Raise RunError, which shows what differs, when `config` is that of another run; it may be `longer`.

        A setting that came later counts as its default. One that is not known any more counts where it was chosen.
        """
        clauses = self.other_settings(config, longer=longer)
        if clauses:
            raise RunError(
                f"{self.folder} holds another run ({'; '.join(clauses[:5])}); choose another `out` or remove the folder"
            )

    def other_settings(self, config: BaseModel, *, longer: bool = False) -> list[str]:
        """In words, what `check_settings` refuses."""
        now, fields = config.model_dump(mode="json"), type(config).model_fields
        passed = ANYWHERE if self.inputs is None else ANYWHERE | NAMED
        if longer and self.shorter(config) is not None:
            passed |= {"epochs"}
        clauses = []
        for name, value in now.items():
            before = self.config.get(name, fields[name].get_default(call_default_factory=True))
            if name == "warmup_epochs":  # what is left to its default counts as what that comes to
                before, value = (warmup_of(each, now["epochs"]) for each in (before, value))
            if name not in passed and not _same(name, _plain(before), value):
                clauses.append(f"{name}: {_in_words(before)} there, {_in_words(value)} now")
        for name, value in self.config.items():
            chosen = value not in (None, False, [], {}) if self.chosen is None else name in self.chosen
            if name not in fields and chosen:
                clauses.append(f"{name}: {value!r} there, and this version has no such setting")
        return clauses

    def check_inputs(self, now: Mapping[str, Any]) -> None:
        """Raise RunError, which says what differs, when something else went into the run than `now` would.

        What only one of both knows agrees: another version of this package may have recorded more.
        """
        clauses = self.other_inputs(now)
        if clauses:
            raise RunError(
                f"{self.folder} holds a run of something else than there is now: {'; '.join(clauses[:3])}; choose "
                f"another `out`, or remove the folder to train anew"
            )

    def other_inputs(self, now: Mapping[str, Any]) -> list[str]:
        """In words, what `check_inputs` refuses."""
        if self.inputs is None:
            return []
        return [clause for name in now for clause in _changed(name, self.inputs.get(name), now[name])]


def recorded(folder: Path) -> Record | None:
    """What lies in a run's folder; None when no run was begun there.

    Raises:
        RunError: a file of it is damaged; it is named.
    """
    if not (folder / CONFIG).exists():
        return None
    config = read_yaml(folder / CONFIG)
    found = read_object(folder / INPUTS) if (folder / INPUTS).exists() else {}
    result = _result(folder / RESULT) if (folder / RESULT).exists() else None
    if result is not None:
        remove_leftovers(folder)  # of a process that was killed after its last word
    prolonged = found.get("prolonged", [])
    if not isinstance(prolonged, list) or not all(
        isinstance(each, dict) and set(each) >= _CHANGE for each in prolonged
    ):
        raise RunError(f"{folder / INPUTS} is damaged; remove it, and the same command goes on with the run")
    return Record(folder, config, found.get("chosen"), found.get("inputs"), result, prolonged)


def _result(path: Path) -> dict[str, Any]:
    result = read_object(path)
    if not set(result) >= _IN_RESULT:
        raise RunError(f"{path} is no result of a run; remove it, and the same command finishes the run")
    return result


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises RunError, which names it, when it is damaged."""
    try:
        value = read_json(path, error=RunError)
    except RunError as problem:
        raise RunError(f"{problem}; remove it, and the same command goes on with the run") from problem
    if not isinstance(value, dict):
        raise RunError(f"{path} holds no JSON object; remove it, and the same command goes on with the run")
    return value


def begin(
    folder: Path,
    config: BaseModel,
    inputs: Mapping[str, Any],
    header: Sequence[str],
    prolonged: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Leave the inputs, the header and the config in a run's folder; with the last it is begun.

    The result of a run that is prolonged is kept as ``result-EPOCHS.json``.
    """
    if (folder / RESULT).exists() and prolonged:
        (folder / RESULT).rename(folder / f"result-{prolonged[-1]['from']}.json")
    defaults = {name: field.get_default(call_default_factory=True) for name, field in type(config).model_fields.items()}
    chosen = {name: value for name, value in config.model_dump(mode="json").items() if value != _plain(defaults[name])}
    lengths = [[each["from"], each["to"]] for each in prolonged]
    experiment = _experiment({**chosen, **({"prolonged": lengths} if lengths else {})}, inputs)
    record: dict[str, Any] = {"inputs": inputs, "chosen": chosen, "experiment": experiment}
    if prolonged:
        record["prolonged"] = list(prolonged)
    write_json(folder / INPUTS, record)
    write_text(folder / "header.txt", "\n".join(header) + "\n")
    write_text(folder / CONFIG, config_text(config))


def _experiment(chosen: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """What runs that differ in nothing but their seed have in common, by which a report groups them: SHA-256.

    What lies in a folder ``seed-N`` and the images that a limit picked differ with the seed; the names of what they are
    from stand for them.
    """
    settings = {name: value for name, value in chosen.items() if name not in ANYWHERE | NAMED | {"seed"}}
    known = {name: dict(value) if isinstance(value, Mapping) else value for name, value in inputs.items()}
    named = {name: re.sub(r"seed-\d+", "seed-*", str(chosen.get(name))) for name in NAMED}
    if "seed-*" in named["init"] + named["weights"]:
        known["student"]["first weights"] = [named["init"], named["weights"]]
    if "seed-*" in named["teacher"] + named["teacher_weights"]:
        known["teachers"] = [named["teacher"], named["teacher_weights"]]
    if "seed-*" in named["labels"]:
        known["labels"] = [named["labels"], known["labels"]["teachers"]]
    if "limit" in chosen:
        known["images"] = {"count": known["images"]["count"], "of": named["data"]}
    return hashlib.sha256(json.dumps([settings, known], sort_keys=True).encode()).hexdigest()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the one process that trains in `folder`; the lock goes with the process.

    Raises:
        RunError: another one does.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / RUN_LOCK))
        except BusyError as problem:
            who = f" ({problem.holder})" if problem.holder else ""
            raise RunError(
                f"another process{who} trains in {folder}; wait for it, stop it, or choose another `out`"
            ) from problem
        yield


def _changed(name: str, before: Any, now: Any) -> list[str]:
    """In words, what differs between two values, where both know it."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if "by" in before and before.get("by") == now.get("by") and _pictures_only(before, now):
            return [f"{name}: other images under the same names (told apart by their {now['by']})"]
        return [clause for key in now if key in before for clause in _changed(f"{name}.{key}", before[key], now[key])]
    if before == now:
        return []
    advice = " (`teachers` chooses)" if name == "labels.teachers" else ""
    return [f"{name} {_short(before)} then, {_short(now)} now{advice}"]


def _pictures_only(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.get("table") == now.get("table") and before.get("contents") != now.get("contents")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "something"
    if value is None:
        return "nothing"
    text = ", ".join(str(each) for each in value) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _same(name: str, before: Any, now: Any) -> bool:
    if name in NAMED and isinstance(before, str) and isinstance(now, str):
        return before == now or _place(before) == _place(now)
    return bool(before == now)


def _place(text: str) -> str:
    return text.rstrip("/") if is_url(text) else str(Path(text).expanduser().resolve())


def _in_words(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _plain(value: Any) -> Any:
    """A setting as it is read from a file."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
