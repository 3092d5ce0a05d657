"""The command line: an option for each setting of each command. No decision is made here."""

from __future__ import annotations

import difflib
import errno
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic_core import PydanticUndefined

from softlabels.commands import COMMANDS, Command, object_of
from softlabels.core.processes import prints
from softlabels.core.signals import EXIT_CODE, Terminated
from softlabels.errors import ConfigError, SoftlabelsError, did_you_mean, printable, split_advice
from softlabels.options import METAVARS, NEIGHBOURS, PAGES, PRETRAINED, SHORT, SHOWN_ALIASES, spellings

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
BARE = "auto"
"""What ``--amp`` without a value stands for: the half precision that the device is made for."""


def with_options(text: str) -> str:
    """`text` with options where it names settings: of `` `out` `` and `` `codec=topk` ``, --out and --codec topk."""
    return re.sub(r"`([a-z_]+)(?:=([^`]*))?`", _option_of, text)


def _option_of(found: re.Match[str]) -> str:
    name, value = found.groups()
    if not _is_option(name):
        return found[0]
    flag = _flag(name)
    return f"--no-{flag[2:]}" if value == "False" else flag + ("" if value in (None, "True") else f" {value}")


@functools.cache
def _is_option(name: str) -> bool:
    """Whether some command has a setting of this name; the first that has ends the search."""
    return any({name, f"{name}_"} & each.settings().model_fields.keys() for each in COMMANDS.values())


def _flag(setting: str) -> str:
    return f"--{setting.strip('_').replace('_', '-')}"


class Refusal(click.ClickException):
    """A user's error as it is printed: one line, with advice after ``tip:``, and below it examples if there are any."""

    def __init__(self, message: str, examples: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self._examples = examples

    def show(self, file: Any = None) -> None:
        """Print it on stderr."""
        found, tip = split_advice(self.message)
        line = f"{click.style('error:', fg='red', bold=True)} {printable(with_options(found))}"
        if tip:
            line += f"  {click.style('tip:', fg='cyan', bold=True)} {printable(with_options(tip))}"
        click.echo("\n  ".join([line, *self._examples]), file=file, err=True)


class Misuse(Refusal):
    """A `Refusal` of an option or setting."""

    exit_code = 2


class Interrupted(Refusal):
    """Ctrl-C, with the exit code that shells give it."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        """Print it on stderr, below what the terminal shows of the keys; one process of several does."""
        if prints():
            click.echo(with_options(self.message), file=file, err=True)


class Ended(Interrupted):
    """A signal that asks a job to end."""

    exit_code = EXIT_CODE


class Text(click.ParamType):  # type: ignore[type-arg]  # which late versions of click alone have
    """A value whose type the settings check, so that flags, files and Python are refused in the same words."""

    def __init__(self, kind: Any) -> None:
        self.name = "text"
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        try:
            return self._kind(value) if self._kind in (int, float) else value
        except ValueError:
            return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(each) for each in _words(self._kind) if each.startswith(incomplete)]
        return found or super().shell_complete(ctx, param, incomplete)


def _words(kind: Any) -> tuple[str, ...]:
    """All that can be written for a value of this type, where it is a few words."""
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    named: Callable[[], tuple[str, ...]] | None = getattr(kind, "named", None)
    return () if named is None else named()


class Once(click.Option):
    """An option that may be given once: the last of several values would win without a word."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "multiple": True, "default": None})

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        values = super().process_value(ctx, value)
        if values and len(values) > 1:
            given = ", ".join(map(str, values))
            raise ConfigError(f"{_long(self)} is given {len(values)} times ({given}); give it once")
        return values[0] if values else None


def _long(option: click.Parameter) -> str:
    return next(name for name in option.opts if name.startswith("--"))


class LocalPath(click.Path):
    """A path of this machine: ``~`` is spelled out, and neither a URL nor an empty text will do."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from softlabels.core.config import is_url

        name = "path" if param is None else _long(param)
        if not str(value).strip():
            raise ConfigError(f"{name} is empty; give a value, or leave it out")
        if is_url(str(value)):
            raise ConfigError(f"{name}: {value} is a URL; give a file or folder of this machine")
        return super().convert(Path(value).expanduser(), param, ctx)


class Commands(click.Group):
    """Turns a user's error into one line and an exit code: 1 for failures, 2 for usage, 130 for Ctrl-C."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _refused():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if not args[0].startswith("-") and args[0] not in self.commands:
            raise ConfigError(f"there is no command {args[0]!r}; {did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _refused():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as stop:
                name = ctx.invoked_subcommand
                goes_on = "; the same command goes on where this one stopped" if _resumes(name) else ""
                kind = Ended if isinstance(stop, Terminated) else Interrupted
                raise kind(_why_ended(stop, goes_on)) from stop
            except BrokenPipeError:
                # The reader of our output has gone (`| head`); silence the interpreter's own complaint at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(1)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for group in dict.fromkeys(page.group for page in PAGES.values()):
            with formatter.section(group):
                formatter.write_dl([(name, page.summary) for name, page in PAGES.items() if page.group == group])


@contextmanager
def _refused() -> Iterator[None]:
    """Within the block what a user can cause is raised as a `Refusal`."""
    try:
        yield
    except SoftlabelsError as problem:
        refusal = (Misuse if isinstance(problem, ConfigError) else Refusal)(str(problem))
        if problem.repeated:  # another process prints it
            raise click.exceptions.Exit(refusal.exit_code) from problem
        raise refusal from problem
    except click.NoSuchOption as problem:
        name = problem.ctx.info_name if problem.ctx is not None else None
        raise Misuse(_no_such_option(problem.option_name, name or "")) from problem
    except click.BadOptionUsage as problem:
        raise Misuse(f"{problem.option_name} needs a value") from problem
    except click.UsageError as problem:
        raise Misuse(problem.format_message().rstrip(".")) from problem
    except KeyError as problem:
        if not (problem.args and isinstance(problem.args[0], str) and " " in problem.args[0]):
            raise
        raise Refusal(problem.args[0]) from problem
    except OSError as problem:
        if problem.filename is not None:
            raise Refusal(f"cannot use {problem.filename}: {problem.strerror}") from problem
        if problem.errno not in (errno.ENOSPC, errno.EIO):
            raise
        # Of the output itself: a file that a writer cannot write is named in an error of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Refusal(f"the output cannot be written: {problem.strerror}") from problem


def _why_ended(stop: KeyboardInterrupt, goes_on: str) -> str:
    """What stopped a command and what the same one does next, as far as it does not say so itself."""
    text = str(stop) or "interrupted"
    return text if ";" in text else f"{text}{goes_on}"


def _resumes(name: str | None) -> bool:
    return name is not None and name in COMMANDS and COMMANDS[name].resumes


def _no_such_option(option: str, command: str) -> str:
    """What to write in the place of an option that a command does not have."""
    word, who = option.lstrip("-"), f"softlabels {command}" if command in COMMANDS else "softlabels"
    for near in difflib.get_close_matches(word, NEIGHBOURS, n=1, cutoff=0.8):
        answer = NEIGHBOURS[near].get(command) or NEIGHBOURS[near].get("")
        if answer is not None:
            return f"{who} has no {option}: {answer}"
    setting = word.replace("-", "_")
    own = COMMANDS[command].settings().model_fields if command in COMMANDS else {}
    known = [word for name in own for word in (_flag(name)[2:], *spellings(command, name))]
    near = did_you_mean(word, known)
    if near.startswith("did you mean"):
        return f"{who} has no {option}; " + re.sub(r"'([a-z-]+)'", r"--\1", near)
    others = [name for name, each in COMMANDS.items() if setting in each.settings().model_fields]
    if others:
        return f"{who} has no {option}, only {', '.join(others)} {'has' if len(others) == 1 else 'have'}"
    return f"{who} has no {option}; see {who} --help"


class Configured(click.Command):
    """One of `COMMANDS`: its options are ``--config FILE`` and its settings.

    The options are made when the command is asked for, and what runs it is imported when the settings are right.
    """

    def __init__(self, command: Command) -> None:
        settings = {**SETTINGS, "allow_extra_args": True}  # which are refused here, in other words than click's
        super().__init__(command.name, callback=self._call, help=command.help, context_settings=settings)
        self._command = command
        self._page = PAGES[command.name]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*self._settings, *super().get_params(ctx)]

    @functools.cached_property
    def _settings(self) -> list[click.Parameter]:
        fields = self._command.settings().model_fields
        own = [_option(self._command.name, name, field) for name, field in fields.items()]
        placed = [_argument(name, field) for name, field in fields.items() if object_of(field)]
        pretrained = [click.Option([f"--{PRETRAINED}"], is_flag=True)] if "weights" in fields else []
        return [
            *own,
            *placed,
            *pretrained,
            Once(["-c", "--config"], type=LocalPath()),
            click.Option(["--json", "as_json"], is_flag=True),
            click.Option(["-q", "--quiet"], is_flag=True),
            click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for param in self._settings:
            both = [option for option in (*param.opts, *param.secondary_opts) if option in args]
            if param.secondary_opts and {*both} & {*param.opts} and {*both} & {*param.secondary_opts}:
                raise ConfigError(f"{' and '.join(both)} contradict each other; give one of them")
        left = super().parse_args(ctx, args)
        if left:
            most = sum(isinstance(each, click.Argument) for each in self._settings)
            taken = f"takes {most or 'no'} value{'' if most == 1 else 's'} without an option"
            who = f"softlabels {self.name}"
            raise ConfigError(f"{who} {taken}, and got {left[0]!r} besides; see {who} --help")
        return left

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        every = bool(ctx.meta.get("every"))
        self.format_usage(ctx, formatter)
        self.help = with_options(self._command.help)  # not before: it needs the settings
        self.format_help_text(ctx, formatter)
        formatter.write("\n" + "".join(f"  {line}\n" for line in self._page.examples))
        name, fields = self._command.name, self._command.settings().model_fields
        groups = dict(self._page.groups(every=every))
        groups.setdefault("Run", [])
        shown = [each for names in groups.values() for each in names]
        if every:
            groups["Run"] += [each for each in fields if each not in shown]
        for group, names in groups.items():
            rows = [_row(name, each, fields[each], every=every) for each in names]
            with formatter.section(group):
                formatter.write_dl([*rows, *(_COMMON if group == "Run" else [])])
        if every:
            formatter.write("\nConfig files and Python take the first long name of each, with underscores.\n")
        elif len(shown) < len(fields):
            formatter.write(f"\n{len(fields) - len(shown)} more: softlabels {name} --help-all\n")

    def _call(self, config: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
        from softlabels.core.config import plain
        from softlabels.core.progress import Terminal
        from softlabels.next_commands import next_commands

        sys.path.insert(0, os.getcwd())  # noqa: PTH109  (module:function of the folder one stands in)
        given = _given(options)
        if not given and config is None and self._page.needs:
            raise Misuse(f"{self.name} needs {self._page.needs}", self._page.examples)
        bare = given.get("amp") == BARE
        if bare:
            given["amp"] = "bf16"
        where = f"{self.name} (with {config})" if config else self.name or ""
        try:
            settings = self._command.checked(given, config, where)  # before anything that takes long is imported
        except SoftlabelsError as problem:
            raise Misuse(str(problem)) from problem
        if bare:
            settings = settings.model_copy(update={"amp": _half(settings)})
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
        for each in problems:
            Refusal(each).show()
        if problems:
            click.get_current_context().exit(1)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, each once: what is given by place and what stands for others in their own place.

    Raises:
        ConfigError: one is given in two ways.
    """
    pretrained = options.pop(PRETRAINED, False)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    for placed in [name for name in given if name.endswith(_PLACED)]:
        name, value = placed.removesuffix(_PLACED), given.pop(placed)
        if given.get(name, value) != value:
            raise ConfigError(f"`{name}` is given twice, as {_shown(value)} and as {_shown(given[name])}; give it once")
        given[name] = value
    if pretrained:
        if "weights" in given:
            raise ConfigError(f"--{PRETRAINED} stands for `weights=default`, and `weights` is given; give one of them")
        each_teacher = options["weights"] == ()
        given["weights"] = ("default",) * len(given.get("teacher", ())) if each_teacher else "default"
    return given


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _half(settings: Any) -> str:
    from softlabels.core.installed import loaded

    half: str = loaded("softlabels.models.devices", "half_precision")(settings.torch_device())
    return half


_PLACED = "__placed"
"""Ends the names of what is given without an option."""


def _argument(name: str, field: Any) -> click.Argument:
    _, multiple = _click_type(field.annotation)
    shown = f"[{_metavar(name, str)}]{'...' if multiple else ''}"
    return click.Argument([f"{name}{_PLACED}"], nargs=-1 if multiple else 1, required=False, metavar=shown)


def _option(command: str, name: str, field: Any) -> click.Parameter:
    kind, multiple = _click_type(field.annotation)
    flags = [_flag(name), *(f"--{each}" for each in spellings(command, name))]
    if kind is bool:
        return click.Option([name, *(f"{each}/--no-{each[2:]}" for each in flags)], default=None)
    flags += [SHORT[name]] if name in SHORT else []
    if multiple:
        return click.Option([*flags, name], type=Text(kind), multiple=True, default=None)
    bare = {"is_flag": False, "flag_value": BARE} if name == "amp" else {}
    return Once([*flags, name], type=Text(kind), **bare)


def _row(command: str, name: str, field: Any, *, every: bool) -> tuple[str, str]:
    """A line of the help: the option with its short flag and value, and what it does."""
    kind, multiple = _click_type(field.annotation)
    default = field.get_default(call_default_factory=True)
    words = [each for each in spellings(command, name) if every or each in SHOWN_ALIASES]
    first = f"--no-{_flag(name)[2:]}" if default is True and kind is bool else _flag(name)
    flags = ", ".join([*([SHORT[name]] if name in SHORT else []), first, *(f"--{each}" for each in words)])
    text = with_options(field.description or "")
    if field.is_required():
        text += "  [required]"
    elif default is not PydanticUndefined and default is not None and default not in ((), {}) and kind is not bool:
        text += f"  [default: {default}]"
    if name == "weights" and every:
        text += f"  [--{PRETRAINED} for default]"
    if multiple and "repeatable" not in text:
        text += "  [repeatable]"
    return (flags if kind is bool else f"{flags} {_metavar(name, kind)}"), text


def _metavar(name: str, kind: Any) -> str:
    if words := _words(kind):
        return "|".join(words)
    return METAVARS.get(name) or {int: "N", float: "X"}.get(kind) or "VALUE"


_COMMON = [
    ("-c, --config FILE", "YAML file of settings; options win"),
    ("--json", "print the result as JSON"),
    ("-q, --quiet", "print nothing but errors and results"),
    ("-h, --help", "the options that people use; --help-all: all of them"),
]


def _show_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value and not ctx.resilient_parsing:
        ctx.meta["every"] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """What a text is to become for a field's type, and whether the option may be repeated."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        return _click_type(inner[0]) if len(inner) == 1 else (str, False)
    if origin is Literal:
        return annotation, False
    if origin is tuple:
        return _click_type(args[0])[0], True
    plain = annotation in (int, float, bool, str) or hasattr(annotation, "named")
    return (annotation if plain else str), bool(getattr(annotation, "many", False))


@click.group(
    cls=Commands, context_settings=SETTINGS, invoke_without_command=True, subcommand_metavar="COMMAND [OPTIONS]"
)
@click.version_option(package_name="softlabels")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Offline knowledge distillation of image classifiers.

    \b
    Run a teacher once and keep what it says of every augmented view:
        softlabels dump --teacher resnext101 --data imagenet --data-dir /data/imagenet
    Then train any number of students from the stored labels, with no teacher loaded:
        softlabels train --student mobilenetv3 --labels shards/
    softlabels COMMAND --help shows examples and options; each reads them from a YAML file, too: --config FILE.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in COMMANDS.values():
    main.add_command(Configured(_command))


if __name__ == "__main__":
    main()
