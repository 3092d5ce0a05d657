"""The commands. Every option is a field of a config in `runs`; no decision is made here."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic_core import PydanticUndefined

from softlabels.errors import ConfigError, SoftlabelsError, printable

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


RESUMED = frozenset({"pack", "dump", "train", "sweep", "convert", "import", "merge", "repair"})
"""Commands that leave what they did for the same command to go on with."""


class Once(click.Option):
    """An option that may be given once: the last of several values would win without a word."""

    def __init__(self, *args: Any, default: Any = None, **settings: Any) -> None:
        settings |= {"multiple": True, "default": None if default is None else (default,)}
        super().__init__(*args, **settings)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        values = super().process_value(ctx, value)
        if values and len(values) > 1:
            given = ", ".join(map(str, values))
            raise ConfigError(f"{self.opts[0]} is given {len(values)} times ({given}); give it once")
        return values[0] if values else None


class LocalPath(click.Path):
    """A path of this machine: ``~`` is spelled out, and neither a URL nor an empty text will do."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from softlabels.config import is_url

        name = param.opts[0] if param is not None else "path"
        if not str(value).strip():
            raise ConfigError(f"{name} is empty; give a value, or leave it out")
        if is_url(str(value)):
            raise ConfigError(f"{name}: {value} is a URL; give a file or folder of this machine")
        return super().convert(Path(value).expanduser(), param, ctx)


class Commands(click.Group):
    """Turns a user's error into one line and an exit code: 1 for failures, 2 for usage."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SoftlabelsError as problem:
            click.echo(printable(f"softlabels: {problem}"), err=True)
            ctx.exit(2 if isinstance(problem, ConfigError) else 1)
        except KeyError as problem:
            if not (problem.args and isinstance(problem.args[0], str) and " " in problem.args[0]):
                raise
            click.echo(f"softlabels: {problem.args[0]}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            goes_on = "; the same command goes on where this one stopped" if ctx.invoked_subcommand in RESUMED else ""
            click.echo(f"softlabels: {str(stop) or f'interrupted{goes_on}'}", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`); silence the interpreter's own complaint at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as problem:
            if problem.filename is not None:
                said = f"cannot use {problem.filename}: {problem.strerror}"
            elif problem.errno in (errno.ENOSPC, errno.EIO):
                # Of the output itself: a file that a writer cannot write is named in an error of its own.
                said = f"the output cannot be written: {problem.strerror}"
            else:
                raise
            click.echo(printable(f"softlabels: {said}"), err=True)
            if problem.filename is None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


class Configured(click.Command):
    """A command whose options are `--config FILE` and the fields of a config; `run` receives config and journal.

    The options are made when the command is asked for, and what `run` needs is imported when the settings are right.
    """

    def __init__(self, name: str, config: str, run: str, help: str, hidden: frozenset[str] = frozenset()) -> None:
        super().__init__(name, callback=self._call, help=help, context_settings=SETTINGS)
        self._config, self._run, self._hidden = config, run, hidden

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from softlabels import runs

        fields = getattr(runs, self._config).model_fields
        file = Once(["--config"], type=LocalPath(), help="YAML file of settings; flags win")
        quiet = click.Option(["--quiet"], is_flag=True, help="say nothing but errors")
        own = [_option(name, field) for name, field in fields.items() if name not in self._hidden]
        return [*own, file, quiet, *super().get_params(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for param in self.get_params(ctx):
            both = [option for option in (*param.opts, *param.secondary_opts) if option in args]
            if param.secondary_opts and len(both) > 1:
                raise ConfigError(f"{' and '.join(both)} contradict each other; give one of them")
        return super().parse_args(ctx, args)

    def _call(self, config: Path | None, quiet: bool, **options: Any) -> None:
        from softlabels import runs
        from softlabels.config import read_yaml, validated
        from softlabels.journal import Journal

        sys.path.insert(0, os.getcwd())  # noqa: PTH109  (module:function of the folder one stands in)
        given = {name: value for name, value in options.items() if value is not None and value != ()}
        merged = {**(read_yaml(config) if config else {}), **given}
        where = f"{self.name} (with {config})" if config else self.name or ""
        settings = validated(getattr(runs, self._config), merged, where)  # before anything that takes long is imported
        outcome = getattr(runs, self._run)(settings, Journal(quiet=quiet))
        problems = getattr(outcome, "problems", [])
        for problem in problems:
            click.echo(printable(f"softlabels: {problem}"), err=True)
        if problems:
            click.get_current_context().exit(1)


def _option(name: str, field: Any) -> click.Parameter:
    kind, multiple = _click_type(field.annotation)
    text = field.description or ""
    default = field.get_default(call_default_factory=True)
    if default is not PydanticUndefined and default is not None and default not in ((), {}, False):
        text += f"  [default: {default}]"
    own = field.json_schema_extra or {}
    if own.get("argument"):
        return click.Argument([name], required=False)
    flag = f"--{own.get('flag', name).replace('_', '-')}"
    if kind is bool:
        return click.Option([f"{flag}/--no-{name.replace('_', '-')}"], default=None, help=text)
    required = field.is_required() and not own.get("in_file")
    if multiple:
        return click.Option([flag, name], type=kind, multiple=True, default=None, help=text, required=required)
    return Once([flag, name], type=kind, help=text, required=required)


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """What click parses for a field's type, and whether the option may be repeated."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        return _click_type(inner[0]) if len(inner) == 1 else (str, False)
    if origin is Literal:
        return click.Choice(args), False
    if origin is tuple:
        return _click_type(args[0])[0], True
    return (annotation if annotation in (int, float, bool, str) else str), False


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(package_name="softlabels")
def main() -> None:
    """Offline knowledge distillation of image classifiers.

    \b
    Run a teacher once and keep what it says of every augmented view:
        softlabels dump --teacher resnext101 --data imagenet --data-dir /data/imagenet
    Then train any number of students from the stored labels, with no teacher loaded:
        softlabels train --student mobilenetv3 --labels shards/
    """


main.add_command(
    Configured(
        "plan",
        "PlanConfig",
        "run_plan",
        "Say what a dump will hold and cost: images, views, shards, bytes, and the time, from a few real batches.\n\n"
        "For images in files it also says what a pack of them would hold; `softlabels pack --dry-run` for other sizes.",
    )
)
main.add_command(
    Configured(
        "pack",
        "PackConfig",
        "run_pack",
        "Prepare images once for fast reading: shrunk, and kept raw or as JPEG in shards, for --data pack:DIR.\n\n"
        "The same command goes on where a killed one stopped. Teachers and students both see the packed pixels.",
    )
)
main.add_command(
    Configured(
        "dump",
        "DumpConfig",
        "run_dump",
        "Run teachers over numbered views of every image and keep their logits in shards.\n\nThe same command goes on "
        "where a killed one stopped, does nothing when all is there, and adds views or teachers when asked for more.",
    )
)
main.add_command(
    Configured(
        "train",
        "TrainConfig",
        "run_train",
        "Train a student from stored labels, on exactly the pictures that the teachers saw.\n\nWithout --labels it "
        "trains on hard labels: that is the baseline, and how a teacher is made.",
    )
)
main.add_command(
    Configured(
        "sweep",
        "SweepConfig",
        "run_sweep",
        "Train a grid of settings, several seeds each, and report mean and standard deviation.\n\nEvery option of "
        "`softlabels train` is one here. The same command goes on where a killed one stopped, and a larger grid reuses "
        "what is done.",
    )
)
main.add_command(
    Configured("eval", "EvalConfig", "run_eval", "Score a network on the clean view of each labelled image.")
)
main.add_command(
    Configured(
        "verify",
        "VerifyConfig",
        "run_verify",
        "Check a store: completeness, checksums, the images' fingerprint, digests of rendered pictures, and the "
        "teachers, run again on random views.",
    )
)
main.add_command(
    Configured(
        "repair",
        "RepairConfig",
        "run_repair",
        "Find damaged shards, by reading every byte, and remove them or dump them again.",
    )
)
main.add_command(
    Configured(
        "convert",
        "ConvertConfig",
        "run_convert",
        "Copy a store into another format, bit by bit, or into another codec.\n\nA codec that rounds needs --lossy. "
        "The same command goes on where a killed one stopped.",
    )
)
main.add_command(
    Configured(
        "import",
        "ImportConfig",
        "run_import",
        "Make a store of label files in SOURCE that FKD, TinyViT or dataset reinforcement (ml-dr) published.\n\n"
        "Nothing in the files is executed. Crops and changes that they record are replayed; labels whose views cannot "
        "be made here are paired with your own data set (docs/importing.md). The same command goes on where a killed "
        "one stopped.",
    )
)
main.add_command(
    Configured(
        "merge",
        "MergeConfig",
        "run_merge",
        "Unite stores of the same images and views: parts from several machines, other teachers, more views.\n\nLabels "
        "that two of them hold must be equal. The same command goes on where a killed one stopped.",
    )
)


@main.command()
@click.argument("labels", default="shards/")
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def info(labels: str, as_json: bool) -> None:
    """Say what a label store holds."""
    from softlabels.reporting import describe_store

    described = describe_store(os.path.expanduser(labels))  # noqa: PTH111  (a Path would spoil a URL)
    if as_json:
        click.echo(json.dumps(described, indent=2))
    else:
        for line in described["lines"]:
            click.echo(printable(line))


@main.command()
@click.argument("root", type=LocalPath())
@click.option("--out", cls=Once, type=LocalPath(), help="folder of the report  [default: ROOT/report]")
def report(root: Path, out: Path | None) -> None:
    """Write table and plots of all finished runs under ROOT; runs that differ in their seed alone are averaged."""
    from softlabels.reporting import markdown
    from softlabels.reporting import report as write_report

    folder = out or root / "report"
    click.echo(markdown(write_report(root, folder)), nl=False)
    click.echo(f"table and plots in {folder}", err=True)


@main.command()
@click.argument("student", type=LocalPath())
@click.option(
    "--format",
    "form",
    cls=Once,
    type=click.Choice(["torch", "onnx", "int8"]),
    default="torch",
    show_default=True,
    help="torch.export, ONNX, or ONNX with dynamic 8-bit quantisation",
)
@click.option(
    "--out", cls=Once, type=LocalPath(), help="file to write  [default: student.pt2, .onnx, .int8.onnx in the run]"
)
@click.option("--function", cls=Once, help="module:function that makes the student's network, where it is your own")
@click.option("--data", cls=Once, help="data set on which student and file are compared")
@click.option("--data-dir", cls=Once, help="where the data set lies")
@click.option(
    "--split", cls=Once, type=click.Choice(["train", "test", "val"]), default="test", show_default=True, help="its part"
)
@click.option("--limit", cls=Once, type=click.IntRange(min=1), help="only so many images")
def export(student: Path, form: Any, **options: Any) -> None:
    """Write a student (a run's folder or its weights) for other programs, and check that it answers alike.

    safetensors that torchvision and timm load lie in the run's folder already.
    """
    from softlabels.journal import Journal
    from softlabels.runs import run_export

    run_export(student, form, Journal(sys.stdout), **options)


if __name__ == "__main__":
    main()
