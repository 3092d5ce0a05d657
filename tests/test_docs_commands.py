"""The page of commands: they run, its table of spellings is that of the code, its errors are printed so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from softlabels.options import ALIASES, ALIASES_IN, PRETRAINED

PAGE = (Path(__file__).parents[1] / "docs/reference/commands.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_run(softlabels_command: Callable) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines():
        assert softlabels_command(*shlex.split(line)[1:]).exit_code == 0, line


def test_the_table_has_every_other_spelling() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)(?: default)?`(?: of `train`)? \| `--([a-z-]+)` \|$", PAGE, re.M)
    words = [(name, word) for known in (ALIASES, ALIASES_IN["train"]) for name, each in known.items() for word in each]
    expected = [(name.replace("_", "-"), word) for name, word in words]
    assert sorted(rows) == sorted([*expected, ("weights", PRETRAINED)])


def test_the_errors_of_the_page_are_printed_so(softlabels_command: Callable) -> None:
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    student = ("train", "--student", "cnn_tiny", "--data", "digits")
    commands = ((*student, "-b", 0), ("dump", "--codec", "tpok"), ("dump", "--model", "resnet18"))
    assert [softlabels_command(*each).output.rstrip() for each in commands] == block.splitlines()
