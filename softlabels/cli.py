"""The command line: an option for each setting of each command. No decision is made here."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic_core import PydanticUndefined

from softlabels.commands import COMMANDS, Command
from softlabels.core.processes import prints
from softlabels.core.signals import EXIT_CODE, Terminated
from softlabels.errors import ConfigError, SoftlabelsError, printable

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def with_options(text: str) -> str:
    """`text` with options where it names settings: of `` `out` `` and `` `codec=topk` ``, --out and --codec topk."""
    return re.sub(r"`([a-z_]+)(?:=([^`]*))?`", _option_of, text)


def _option_of(found: re.Match[str]) -> str:
    name, value = found.groups()
    if not _is_option(name):
        return found[0]
    flag = name.strip("_").replace("_", "-")
    return f"--no-{flag}" if value == "False" else f"--{flag}" + ("" if value in (None, "True") else f" {value}")


@functools.cache
def _is_option(name: str) -> bool:
    """Whether some command has an option for a setting of this name; the first that has ends the search."""
    fields = (each.settings().model_fields.get(name) for each in COMMANDS.values())
    own: Iterator[Any] = (field.json_schema_extra or {} for field in fields if field is not None)
    return any(not extra.get("argument") for extra in own)


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
        from softlabels.core.config import is_url

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
            if not problem.repeated:
                click.echo(printable(with_options(f"softlabels: {problem}")), err=True)
            ctx.exit(2 if isinstance(problem, ConfigError) else 1)
        except KeyError as problem:
            if not (problem.args and isinstance(problem.args[0], str) and " " in problem.args[0]):
                raise
            click.echo(with_options(f"softlabels: {problem.args[0]}"), err=True)
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            goes_on = "; the same command goes on where this one stopped" if _resumes(ctx.invoked_subcommand) else ""
            if prints():
                click.echo(with_options(f"softlabels: {_why_ended(stop, goes_on)}"), err=True)
            ctx.exit(EXIT_CODE if isinstance(stop, Terminated) else 1)
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


def _why_ended(stop: KeyboardInterrupt, goes_on: str) -> str:
    """What stopped a command and what the same one does next, as far as it does not say so itself."""
    text = str(stop) or "interrupted"
    return text if ";" in text else f"{text}{goes_on}"


def _resumes(name: str | None) -> bool:
    return name is not None and name in COMMANDS and COMMANDS[name].resumes


class Configured(click.Command):
    """One of `COMMANDS`: its options are ``--config FILE`` and its settings.

    The options are made when the command is asked for, and what runs it is imported when the settings are right.
    """

    def __init__(self, command: Command) -> None:
        super().__init__(command.name, callback=self._call, help=command.help, context_settings=SETTINGS)
        self._command = command

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.help = with_options(self._command.help)  # not before: it needs the settings
        super().format_help_text(ctx, formatter)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = [_parameter(name, field) for name, field in self._command.settings().model_fields.items()]
        more = [
            Once(["--config"], type=LocalPath(), help="YAML file of settings; flags win"),
            click.Option(["--json", "as_json"], is_flag=True, help="print the result as JSON"),
            click.Option(["--quiet"], is_flag=True, help="print nothing but errors and results"),
        ]
        return [*own, *more, *super().get_params(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for param in self.get_params(ctx):
            both = [option for option in (*param.opts, *param.secondary_opts) if option in args]
            if param.secondary_opts and len(both) > 1:
                raise ConfigError(f"{' and '.join(both)} contradict each other; give one of them")
        return super().parse_args(ctx, args)

    def _call(self, config: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
        from softlabels.core.config import plain
        from softlabels.core.progress import Terminal
        from softlabels.next_commands import next_commands

        sys.path.insert(0, os.getcwd())  # noqa: PTH109  (module:function of the folder one stands in)
        given = {name: value for name, value in options.items() if value is not None and value != ()}
        where = f"{self.name} (with {config})" if config else self.name or ""
        settings = self._command.checked(given, config, where)  # before anything that takes long is imported
        outcome = self._command(settings, Terminal(quiet=quiet, spell=with_options))
        if not prints():
            return
        problems = getattr(outcome, "problems", [])
        if as_json:
            click.echo(json.dumps(plain(outcome), indent=2))
        else:
            shown = with_options(self._command.shown(outcome))
            click.echo("".join(f"{printable(line)}\n" for line in shown.splitlines()), nl=False)
            for each in [] if quiet or problems else next_commands(self.name or "", settings, outcome):
                click.echo(printable(f"next: {each}"), err=True)
        for problem in problems:
            click.echo(printable(with_options(f"softlabels: {problem}")), err=True)
        if problems:
            click.get_current_context().exit(1)


def _parameter(name: str, field: Any) -> click.Parameter:
    kind, multiple = _click_type(field.annotation)
    text = with_options(field.description or "")
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


for _command in COMMANDS.values():
    main.add_command(Configured(_command))


if __name__ == "__main__":
    main()
