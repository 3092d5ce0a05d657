"""The pages as HTML: `make docs`. Pages are plain Markdown; what the code knows is generated from it."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from click.testing import CliRunner  # noqa: E402

import softlabels  # noqa: E402
from softlabels import choices, integrations, losses  # noqa: E402
from softlabels.cli import main  # noqa: E402
from softlabels.commands import COMMANDS  # noqa: E402

project = "softlabels"
version = release = softlabels.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = f"softlabels {version}"
myst_heading_anchors = 3
default_role = "code"
smartquotes = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
maximum_signature_line_length = 80

PARTS = {
    "Data sets": choices.DATASETS,
    "Steps of a recipe": choices.STEPS,
    "Codecs": choices.CODECS,
    "Losses": choices.LOSSES,
    "Losses of features": choices.FEATURE_LOSSES,
    "Blends": choices.BLENDS,
}


def cell(text: str) -> str:
    """`text` in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: str, rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    names = [name.strip() for name in head.split("|")]
    lines = [names, ["---"] * len(names), *([cell(each) for each in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def commands_text() -> str:
    """The help of every command."""
    sections = []
    for name in COMMANDS:
        text = CliRunner().invoke(main, [name, "--help-all"], prog_name="softlabels", terminal_width=100).output
        sections.append(f"## {name}\n\n```text\n{text}```\n")
    return "\n".join(sections)


def default_of(field: Any) -> str:
    """A field's default as a config file has it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, choices.Choice):
        value = value.given
    return "" if value is None or value in ((), {}) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings_text() -> str:
    """All settings of all commands, and all parts with theirs."""
    lines = []
    for name, command in COMMANDS.items():
        fields = command.settings().model_fields
        rows = [
            (f"`{field.alias or key}`", default_of(field), field.description or "") for key, field in fields.items()
        ]
        lines += [f"## {name}", table("setting | default | meaning", rows)]
    for title, parts in PARTS.items():
        rows = []
        for kind, part in parts.kinds.items():
            own = [f"`{key}`: {default_of(field)}" for key, field in part.model_fields.items() if key != "kind"]
            summary = (part.__doc__ or "").strip().partition("\n\n")[0]
            rows.append((f"`{kind}`", ", ".join(own), summary))
        lines += [f"## {title}", table("kind | settings and defaults | meaning", rows)]
    return "\n".join(lines)


def rst(lines: list[str]) -> str:
    """A block that reStructuredText reads."""
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```\n"


def python_text() -> str:
    """The promised names, generated from their docstrings."""
    of_commands = [command.function or name for name, command in COMMANDS.items()]
    others = [name for name in softlabels.__all__ if name not in of_commands]
    errors = [name for name in others if name.endswith("Error")]
    classes = [name for name in others if isinstance(getattr(softlabels, name), type) and name not in errors]
    functions = [name for name in others if name not in errors and name not in classes]
    modules = pkgutil.iter_modules(integrations.__path__)
    return "\n".join(
        [
            "## Read labels and images\n",
            rst([f".. autofunction:: softlabels.{name}" for name in functions]),
            rst([f".. autoclass:: softlabels.{name}\n   :members:" for name in classes]),
            "## Commands\n",
            rst([f".. autofunction:: softlabels.{name}" for name in of_commands]),
            "## Integrations\n",
            rst([f".. automodule:: softlabels.integrations.{each.name}\n   :members:" for each in modules]),
            "## Errors\n",
            rst([f".. autoexception:: softlabels.{name}" for name in errors]),
        ]
    )


def losses_text() -> str:
    """Every loss, from its docstring."""
    functions = [name for name in losses.__all__ if callable(getattr(losses, name)) and name.islower()]
    return rst([".. automodule:: softlabels.losses"]) + rst(
        [f".. autofunction:: softlabels.losses.{name}" for name in functions]
    )


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands_text,
    "config": settings_text,
    "python": python_text,
    "losses": losses_text,
}
COPIED = {"changelog": "CHANGELOG.md", "benchmarks": "benchmarks/RESULTS.md"}
"""Pages that are files of the repository."""


def linked(text: str, page: str) -> str:
    """`text` whose links to files beside `docs` lead to their pages."""
    up = "../" * page.count("/")
    for name, path in COPIED.items():
        text = re.sub(rf"\]\((?:\.\./)+{re.escape(path)}", f"]({up}{name}.md", text)
    text = re.sub(r"\]\(examples[\w/-]*\)", f"]({up}scripts.md)", text)  # folders
    return re.sub(r"\]\(\.\./docs/([\w-]+\.md)", rf"]({up}\1", text)


def scripts() -> Iterator[str]:
    """Every example script in full."""
    for path in sorted((DOCS / "examples").rglob("*.*")):
        if language := {".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml"}.get(path.suffix):
            code = path.read_text(encoding="utf-8")
            yield f"\n## {path.relative_to(DOCS / 'examples')}\n\n```{language}\n{code}```\n"


def read(_app: Any, page: str, source: list[str]) -> None:
    """Complete a page with what is generated."""
    text = source[0]
    if page in COPIED:
        text = (ROOT / COPIED[page]).read_text(encoding="utf-8")
    if page == "scripts":
        text += "".join(scripts())
    found = re.search(r"^In the HTML pages .*\n(?:.+\n)*\n<!-- generated: (\w+) -->$", text, flags=re.MULTILINE)
    if found:
        text = text[: found.start()] + GENERATED[found[1]]()
    source[0] = linked(text, page)


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("source-read", read)
