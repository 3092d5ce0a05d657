"""The Python functions of the commands: typed, documented, and one with the command line."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_stub import PATH, stub

import softlabels
from softlabels.commands import COMMANDS

EXAMPLE = """
import softlabels

softlabels.dump(teacher="resnet18", data="digits", views=4, codec="topk:10")
softlabels.dump(teacher="resnet18", data="digits", codek="topk:10")
softlabels.dump(teacher="resnet18", data="digits", seed="0")
softlabels.dump(teacher="resnet18", data="digits", format="parquet")
softlabels.make_loader("shards/", "digits", batch_sise=64)
softlabels.load_student("runs/x", "bets")
softlabels.train(student="cnn_tiny", labels="shards/").top_1
"""

READ = ("loading/loader.py", "training/result.py", "training/student.py")
"""Modules of promised names that are read beside the stub."""


def test_the_stub_is_that_of_the_present_settings() -> None:
    assert PATH.read_text(encoding="utf-8") == stub(), "run python tests/make_stub.py"


def test_a_type_checker_sees_wrong_settings(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "example.py").write_text(EXAMPLE)
    # Of the stub and a few modules: what they import is of no matter here, and takes long.
    configured = "[mypy]\nfollow_imports = skip\n"
    for name in ("__init__.pyi", *READ):
        place = tmp_path / "softlabels" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text((PATH.parent / name).read_text(encoding="utf-8"))
        (place.parent / "__init__.py").touch()
        configured += f"[mypy-softlabels.{name.partition('.')[0].replace('/', '.')}]\nfollow_imports = silent\n"
    (tmp_path / "mypy.ini").write_text(configured)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    first, second, third, *others = (
        line for line in done.stdout.splitlines() if line.startswith("example.py") and "error" in line
    )
    assert first.startswith(
        'example.py:5: error: Unexpected keyword argument "codek" for "dump"; did you mean "codec"?'
    )
    assert second.startswith('example.py:6: error: Argument "seed" to "dump" has incompatible type "str"')
    assert third.startswith('example.py:7: error: Argument "format" to "dump" has incompatible type')
    assert [re.sub(r"example.py:(\d+): error: ", r"\1 ", line)[:50] for line in others] == [
        '8 Unexpected keyword argument "batch_sise" for "ma',
        '9 Argument 2 to "load_student" has incompatible ty',
        '10 "TrainResult" has no attribute "top_1"; maybe "',
    ]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_setting_of_a_command_is_described_and_in_its_signature(name: str) -> None:
    command = COMMANDS[name]
    function = getattr(softlabels, command.function or name)
    for setting, field in command.settings().model_fields.items():
        assert setting in inspect.signature(function).parameters
        assert field.description, setting


def test_results_are_printed_as_json(shards: Path, softlabels_command: Any) -> None:
    told = json.loads(softlabels_command("info", shards, "--json").output)
    assert told == softlabels.info(str(shards))
    assert told["images"] == 18
    found = softlabels_command("verify", "--labels", shards, "--shards-only", "--json", "--quiet")
    assert json.loads(found.output)["problems"] == []


def test_info_and_report_read_a_config(shards: Path, tmp_path: Path, softlabels_command: Any) -> None:
    (tmp_path / "info.yaml").write_text(f"labels: {shards}\n")
    assert "18 images" in softlabels_command("info", "--config", tmp_path / "info.yaml").output
    (tmp_path / "report.yaml").write_text("rot: runs\n")
    refused = softlabels_command("report", "--config", tmp_path / "report.yaml")
    assert refused.exit_code == 2
    assert "has no setting 'rot'  tip: did you mean 'root'" in refused.output


def test_arguments_without_a_name_are_those_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes 2 arguments without a name"):
        softlabels.report("runs", "report", "more")  # type: ignore[call-arg]
    with pytest.raises(softlabels.RunError, match="no finished run"):
        softlabels.report(tmp_path, tmp_path / "report")
