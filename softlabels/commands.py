"""Every command once: its settings, what runs it, and its help. The command line and the Python functions come from it.

Nothing that takes long to import is imported here: settings when a command is asked for, the rest when it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from softlabels.core.config import CommandConfig
    from softlabels.core.progress import Terminal


@dataclass(frozen=True)
class Command:
    """A command of `softlabels`.

    `config` and `run` are written ``module:name``. `run` takes the settings and a terminal, and returns what a Python
    caller gets; `show`, where there is one, makes of this the text that the command line prints. `function` is the
    command's name in Python. What a command that `resumes` has finished is kept when it is run again. `check`, where
    there is one, raises where settings do not go together.
    """

    name: str
    config: str
    run: str
    help: str
    function: str = ""
    show: str = ""
    resumes: bool = False
    check: str = ""

    def settings(self) -> type[CommandConfig]:
        """The class of its settings."""
        module, _, name = self.config.partition(":")
        found: type[CommandConfig] = getattr(import_module(f"softlabels.{module}"), name)
        return found

    def checked(self, given: Mapping[str, Any], file: Path | None, where: str) -> CommandConfig:
        """The settings of a `file` with those `given` over them. Raises ConfigError, which names `where`."""
        from softlabels.core.config import read_yaml, validated

        return validated(self.settings(), {**(read_yaml(file) if file else {}), **given}, where, named=file is not None)

    def __call__(self, settings: CommandConfig, terminal: Terminal) -> Any:
        """Run it, with settings whose parts can be made. A signal that ends it leaves nothing half written."""
        from softlabels.core.signals import raised

        with raised():
            run = _found(self.run)
            settings.check_parts()
            return run(settings, terminal)

    def shown(self, outcome: Any) -> str:
        """What the command line prints of its outcome."""
        return str(_found(self.show)(outcome)) if self.show else ""


COMMANDS: Mapping[str, Command] = {
    each.name: each
    for each in (
        Command(
            "list",
            "reporting.config:ListConfig",
            "reporting.run_list:run_list",
            "Names of teachers, students, losses, recipes, codecs, data sets, ..., each with what it is.\n\n"
            "Networks of timm are listed by `timm:` and a pattern.",
            function="available",
            show="reporting.run_list:list_text",
        ),
        Command(
            "plan",
            "dumping.config:PlanConfig",
            "dumping.run:run_plan",
            "Say what a dump will hold and cost: images, views, shards, bytes, and the time, from a few real "
            "batches.\n\nFor images in files it also says what a pack of them would hold; `softlabels pack` with "
            "`dry_run=True` for other sizes.",
            show="dumping.run:dump_text",
        ),
        Command(
            "pack",
            "dumping.config:PackConfig",
            "dumping.run_pack:run_pack",
            "Prepare images once for fast reading: shrunk, and kept raw or as JPEG in shards, for `data=pack:DIR`.\n\n"
            "The same command goes on where a killed one stopped. Teachers and students both see the packed pixels.",
            show="dumping.run_pack:pack_text",
            resumes=True,
        ),
        Command(
            "dump",
            "dumping.config:DumpConfig",
            "dumping.run:run_dump",
            "Run teachers over numbered views of every image and keep their logits in shards.\n\nThe same command goes "
            "on where a killed one stopped, does nothing when all is there, and adds views or teachers when asked for "
            "more.",
            show="dumping.run:dump_text",
            resumes=True,
        ),
        Command(
            "train",
            "training.config:TrainConfig",
            "training.run:run_train",
            "Train a student from stored labels, on exactly the pixels that the teachers saw.\n\nWithout `labels` it "
            "trains on hard labels: that is the baseline, and how a teacher is made.",
            show="training.run:train_text",
            resumes=True,
            check="training.run:check_settings",
        ),
        Command(
            "sweep",
            "training.config:SweepConfig",
            "reporting.run_sweep:run_sweep",
            "Train a grid of settings, several seeds each, and report mean and standard deviation.\n\nEvery option of "
            "`softlabels train` is one here. The same command goes on where a killed one stopped, and a larger grid "
            "reuses what is done.",
            show="reporting.run_sweep:sweep_text",
            resumes=True,
        ),
        Command(
            "eval",
            "training.config:EvalConfig",
            "training.run_eval:run_eval",
            "Score a network on the clean view of each labelled image.",
            show="training.run_eval:eval_text",
            function="evaluate",
        ),
        Command(
            "dedup",
            "selecting.config:DedupConfig",
            "selecting.run_dedup:run_dedup",
            "List the images of a pool that are no copies of held-out ones, and show the copies.\n\nCandidates have "
            "nearly equal perceptual hashes, mirrored or not; SIFT matches confirm them. `kept.csv` in the report is a "
            "data set: `data=csv:report/kept.csv`.",
            show="selecting.run_dedup:dedup_text",
        ),
        Command(
            "select",
            "selecting.config:SelectConfig",
            "selecting.run_select:run_select",
            "Of each class, pick the images that the stored labels are surest of, and list them in a CSV file.\n\nThe "
            "list is a data set, `data=csv:FILE`, under the keys of the store: train on it with the same labels.",
            show="selecting.run_select:select_text",
        ),
        Command(
            "verify",
            "upkeep.config:VerifyConfig",
            "upkeep.run_verify:run_verify",
            "Check a store: completeness, checksums, the images' fingerprint, digests of rendered views, and the "
            "teachers, run again on random views.",
            show="upkeep.run_verify:verify_text",
        ),
        Command(
            "repair",
            "upkeep.config:RepairConfig",
            "upkeep.run_repair:run_repair",
            "Find damaged shards, by reading every byte, and remove them or dump them again.",
            show="upkeep.run_repair:repair_text",
            resumes=True,
        ),
        Command(
            "convert",
            "upkeep.config:ConvertConfig",
            "upkeep.run_convert:run_convert",
            "Copy a store into another format, bit by bit, or into another codec.\n\nA codec that rounds needs "
            "`lossy=True`. The same command goes on where a killed one stopped.",
            show="upkeep.run_convert:copies_text",
            resumes=True,
        ),
        Command(
            "import",
            "importing.config:ImportConfig",
            "importing.run:run_import",
            "Make a store of label files in SOURCE that FKD, TinyViT, dataset reinforcement (ml-dr), SRe2L, LPLD or "
            "LPQLD published, or another installed package reads.\n\n"
            "Nothing in the files is executed. Crops and changes that they record are replayed; labels whose views "
            "cannot be made here are paired with your own data set (docs/importing.md). The same command goes on where "
            "a killed one stopped.",
            show="importing.run:import_text",
            function="import_labels",
            resumes=True,
        ),
        Command(
            "merge",
            "upkeep.config:MergeConfig",
            "upkeep.run_convert:run_merge",
            "Unite stores of the same images and views: parts from several machines, other teachers, more views.\n\n"
            "Labels that two of them hold must be equal. The same command goes on where a killed one stopped.",
            show="upkeep.run_convert:copies_text",
            resumes=True,
        ),
        Command(
            "demo",
            "reporting.config:DemoConfig",
            "reporting.run_demo:run_demo",
            "Distil a small network in two minutes, without a download, and compare it with hard labels.\n\nEach "
            "command that it runs is printed: all of them can be typed, too.",
            show="reporting.run_demo:demo_text",
            resumes=True,
        ),
        Command(
            "info",
            "reporting.config:InfoConfig",
            "reporting.run:run_info",
            "Say what a label store holds.",
            show="reporting.run:info_text",
        ),
        Command(
            "report",
            "reporting.config:ReportConfig",
            "reporting.run:run_report",
            "Write table and plots of all finished runs under ROOT; runs that differ in their seed alone are averaged.",
            show="reporting.report:markdown",
        ),
        Command(
            "export",
            "training.config:ExportConfig",
            "training.run_export:run_export",
            "Write a student (a run's folder or its weights) for other programs, and check that it answers alike.\n\n"
            "safetensors that torchvision and timm load lie in the run's folder already.",
            show="training.run_export:export_text",
        ),
    )
}
"""The commands, in the order of the help."""


def _found(target: str) -> Any:
    from softlabels.core.installed import loaded

    module, _, name = target.partition(":")
    return loaded(f"softlabels.{module}", name)


def _function(command: Command) -> Callable[..., Any]:
    """The command as a function of its settings; those that the command line takes without an option come first."""
    fields = command.settings().model_fields
    first = [name for name, field in fields.items() if leads(field)]

    def call(*positional: Any, config: str | PathLike[str] | None = None, quiet: bool = False, **settings: Any) -> Any:
        from softlabels.core.progress import Terminal

        if len(positional) > len(first):
            raise TypeError(f"{name}() takes {len(first)} arguments without a name, and got {len(positional)}")
        given = {**dict(zip(first, positional, strict=False)), **settings}
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
        where = f"config {config}" if config is not None else command.function or command.name
        return command(command.checked(given, None if config is None else Path(config), where), Terminal(quiet=quiet))

    name = command.function or command.name
    call.__name__ = call.__qualname__ = name
    lines = [f"    {key}: {field.description}" for key, field in fields.items()]
    call.__doc__ = "\n".join(
        [
            command.help,
            "",
            "Args:",
            "    config: YAML file of settings, over which those given here stand.",
            "    quiet: print nothing but errors.",
            *lines,
            "",
            "Raises:",
            "    SoftlabelsError: what was found, what was wanted and what to do next, in one line.",
        ]
    )
    kinds = inspect.Parameter
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [kinds(each, kinds.POSITIONAL_OR_KEYWORD, default=_default(fields[each])) for each in first]
        + [kinds("config", kinds.KEYWORD_ONLY, default=None), kinds("quiet", kinds.KEYWORD_ONLY, default=False)]
        + [kinds(key, kinds.KEYWORD_ONLY, default=_default(field)) for key, field in fields.items() if key not in first]
    )
    return call


def object_of(field: FieldInfo) -> bool:
    """Whether this setting is what a command works on, which may be given without its name."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("argument"))


def leads(field: FieldInfo) -> bool:
    """Whether Python takes this setting without its name, too."""
    extra = field.json_schema_extra
    return object_of(field) or (isinstance(extra, dict) and bool(extra.get("leading")))


def _default(field: FieldInfo) -> Any:
    return inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)


_FUNCTIONS = {each.function or each.name: each for each in COMMANDS.values()}


def check(command: str, /, **settings: Any) -> None:
    """Check settings of a command and run nothing: no data set, store or weights are opened.

    A script of many hours can check all its steps first, as in ``softlabels.check("train", student="resnet18", ...)``.

    Args:
        command: name of its function, such as ``"train"`` or ``"evaluate"``.
        **settings: what the function would be given.

    Raises:
        ConfigError: there is no such command or setting, a value is wrong, or settings do not go together.
        ModelError: there is no such network.
    """
    if command not in _FUNCTIONS:
        raise ConfigError(f"{command!r} is no command; {did_you_mean(command, _FUNCTIONS)}")
    found = _FUNCTIONS[command]
    config = found.checked(settings, None, command)
    config.check_parts()
    if found.check:
        _found(found.check)(config)


def __getattr__(name: str) -> Any:
    # `commands.dump` and so on; made when it is asked for, since its signature needs its settings.
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = _function(_FUNCTIONS[name])
    return made
