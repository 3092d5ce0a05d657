"""The guides under docs/: commands and Python blocks run on a few small images, links and names are right.

Other tests run the blocks of python.md (test_readme), importing.md (importing/test_import), and of stores.md,
training.md and format.md.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from torchvision.io import write_jpeg
from worlds import picture, write_pictures

from softlabels.choices import LOSSES, RECIPE_NAMES
from softlabels.codecs import CODECS
from softlabels.commands import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}

RUN_ELSEWHERE = {
    "python",
    "stores",
    "training",
    "tutorial",
    "format",
    "importing",
    "cluster",
    "own-step",
    "own-data",
    "own-teacher",
}
TOGETHER = [
    ["reference/commands"],
    ["data", "concepts"],
    ["models"],
    ["speed"],
    ["codecs", "reference/losses"],
    ["features"],
]
"""Pages whose blocks run here, in a folder for each list."""

SMALLER = [
    (r"--student \w+ --weights default", "--student cnn_tiny --size 16"),
    (r"--epochs \d+", "--epochs 1"),
    (r"--views 8", "--views 2"),
]
"""What is cut: networks whose weights would be downloaded, and the amount of work."""

BANNED = r"said|told|mend(?:ed|ing)?|waist|house|crew|shelf|honest(?:ly)?|pictures?|lesson|learner|hands? out"


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    return re.sub(r"`[^`]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images as the pages name them: photos/ with two splits, crawl/ without labels, list.csv."""
    write_pictures(tmp_path / "photos/train")
    files = sorted((tmp_path / "photos/train").rglob("*.jpg"))
    for number, file in enumerate(files[::3]):
        for place in (tmp_path / "photos/val" / file.parent.name, tmp_path / "crawl"):
            place.mkdir(parents=True, exist_ok=True)
            write_jpeg(picture(1000 + number), str(place / f"{number}.jpg"))
    for number in range(6):  # that no split has
        write_jpeg(picture(2000 + number), str(tmp_path / f"crawl/own-{number}.jpg"))
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    return tmp_path


@pytest.mark.parametrize("pages", TOGETHER, ids=lambda pages: pages[0])
def test_commands_and_blocks_of_a_page_run(
    pages: list[str], folder: Path, softlabels_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, object] = {}
    for language, block in (each for page in pages for each in blocks(PAGES[page])):
        file = re.match(r"# (\w+)\.py\n", block)
        if file:
            (folder / f"{file[1]}.py").write_text(block)
            monkeypatch.delitem(sys.modules, file[1], raising=False)
        elif language == "python":
            exec(compile(block, pages[0], "exec"), names)
        for line in block.splitlines() if language == "sh" else []:
            for pattern, less in SMALLER:
                line = re.sub(pattern, less, line)
            command, settings = shlex.split(line)[1], shlex.split(line)[2:]
            fields = COMMANDS[command].settings().model_fields
            done = softlabels_command(command, *settings, *(("--device", "cpu") if "device" in fields else ()))
            assert done.exit_code == 0, (line, done.output)


def test_every_page_with_commands_is_run() -> None:
    with_commands = {
        page
        for page, text in PAGES.items()
        if any(kind == "python" or (kind == "sh" and "softlabels " in block) for kind, block in blocks(text))
    }
    assert with_commands - {"reference/python"} <= RUN_ELSEWHERE | {page for pages in TOGETHER for page in pages}


def test_yaml_blocks_are_settings_of_a_training() -> None:
    pages = PAGES.keys() - RUN_ELSEWHERE
    found = [block for page in pages for kind, block in blocks(PAGES[page]) if kind == "yaml"]
    assert found
    for block in found:
        COMMANDS["train"].checked(yaml.safe_load(block), None, "docs").check_parts()


def test_the_index_has_every_page_once() -> None:
    trees = "\n".join(re.findall(r"^```\{toctree\}(.*?)```", PAGES["index"], re.DOTALL | re.M))
    assert sorted(re.findall(r"^(?:reference/)?[\w-]+$", trees, re.M)) == sorted(PAGES.keys() - {"index"})


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, "../README"])
def test_links_lead_somewhere(page: str) -> None:
    path = DOCS / f"{page}.md"
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        generated = {"codecs", "steps-of-a-recipe"} if file.name == "config.md" else set()
        assert not anchor or anchor in anchors(file) | generated, link


@pytest.mark.parametrize("page", PAGES)
def test_plain_words(page: str) -> None:
    assert re.findall(rf"\b(?:{BANNED})\b", prose(PAGES[page]), flags=re.I) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_plain_words_in_help(command: str, softlabels_command: Callable) -> None:
    found = softlabels_command(command, "--help").output
    assert re.findall(rf"\b(?:{BANNED})\b", found, flags=re.I) == []


def test_named_recipes_losses_and_codecs_exist() -> None:
    words = re.findall(r"`([a-z]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGES["views"], re.M)))
    assert sorted(words) == sorted(RECIPE_NAMES.words)
    (soft,) = re.findall(
        r"`soft` is `--loss` between student and teacher: (.*?) and more", PAGES["training"], re.DOTALL
    )
    assert {*re.findall(r"`([a-z0-9-]+)`", soft)} < {*LOSSES.names}
    losses = re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"^\| (`[a-z].*?) \|", PAGES["reference/losses"], re.M)))
    assert sorted(losses) == sorted(LOSSES.names)
    rows = re.findall(r"^\| `([a-z_0-9:= ]+)`(?:, `([^`]+)`)? \| ([\d,]+)(?:, ([\d,]+))? \|", PAGES["codecs"], re.M)
    sizes = [pair for one, other, size, more in rows for pair in ((one, size), (other, more)) if pair[0] and pair[1]]
    assert len(sizes) > 10
    for codec, size in sizes:
        assert CODECS.make(codec).bytes_per_label(1000) == pytest.approx(int(size.replace(",", "")), abs=0.5)


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "softlabels").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # long texts stand on several lines
    messages = re.findall(r"^\*\*`(.*?)`", PAGES["troubleshooting"], re.DOTALL | re.M)
    assert len(messages) > 15
    for message in messages:
        fixed = re.split(r"\.\.\.|--[\w-]+(?: [\w/]+)?|'[^']*'|\d[\d,.]*|[;:()]", " ".join(message.split()))
        assert any(part.strip(" ,.") in code for part in fixed if len(part.split()) > 1), message


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    """docs/conf.py, which needs no Sphinx."""
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_setting_and_part(conf: ModuleType) -> None:
    commands, settings = "\n" + conf.commands_text(), "\n" + conf.settings_text()
    for name, command in COMMANDS.items():
        of_command, of_file = (
            each.partition(f"\n## {name}\n")[2].partition("\n## ")[0] for each in (commands, settings)
        )
        assert f"Usage: softlabels {name} " in of_command
        for key, field in command.settings().model_fields.items():
            assert f"`{field.alias or key}`" in of_file
            flag = (field.alias or key).replace("_", "-")
            by_place = (field.json_schema_extra or {}).get("argument")
            assert by_place or re.search(rf"--(no-)?{flag}\b", of_command), (name, key)
    for table in conf.PARTS.values():
        assert all(f"| `{kind}` |" in settings for kind in table.kinds)
