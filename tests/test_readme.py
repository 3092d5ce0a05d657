"""Everything the README shows is run: its commands in order, its Python as one script, its claims about the disk."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from worlds import picture

import softlabels

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every `softlabels` command of the README, without comments."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("softlabels ")]
    return [shlex.split(line, comments=True) for line in lines]


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "softlabels.cli", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's small story has been told."""
    folder = tmp_path_factory.mktemp("story")
    told = [command for command in commands() if "imagenet" not in command and "mobilenetv3" not in command]
    assert len(told) == 7
    for command in told:
        run(command[1:], folder)
    return folder


def test_the_small_story_distils(story: Path) -> None:
    labels = softlabels.open_labels(story / "shards")
    assert labels.views == 8
    assert len(labels) == 1347


def test_the_python_runs_as_one_script(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(story)
    names: dict[str, object] = {}
    for block in [*blocks("python"), *blocks("python", PAGES["python"])]:
        exec(compile(block, "README.md", "exec"), names)
    loss = names["loss"]
    assert isinstance(loss, torch.Tensor)
    assert loss.item() < math.log(10)
    assert softlabels.open_labels(story / "my-shards").views == 2


def test_the_disk_looks_as_the_readme_says(story: Path) -> None:
    assert {path.name for path in (story / "shards").iterdir() if not path.name.startswith(".")} == {
        "manifest.json",
        "images.parquet",
        "dump-teacher.yaml",
        "teacher",
    }
    assert {path.name for path in (story / "shards" / "teacher").iterdir() if not path.name.startswith(".")} == {
        "teacher.json",
        "00000-v0-8.h5",
    }


def test_every_command_of_the_table_exists(story: Path) -> None:
    listed = re.findall(r"^\| `softlabels (\w+)` \|", README, flags=re.MULTILINE)
    help_text = run(["--help"], story)
    offered = re.findall(r"^  (\w+)  ", help_text.partition("Start here:")[2], flags=re.MULTILINE)
    assert sorted(listed) == sorted(offered)


def test_the_makefile_has_the_promised_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert targets >= {"help", "setup", "all", "test", "test-all", "lint", "docs", "bench", "clean"}


@pytest.mark.slow
def test_the_missions_two_commands(tmp_path: Path) -> None:
    """As they stand, on an ImageNet of tiny images, with weights from a file in place of a download.

    Only the amount of work is cut: four images, one view, one epoch.
    """
    from torchvision.io import write_jpeg

    from softlabels.models import build, published_weights

    for split in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / "imagenet" / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            write_jpeg(picture(number, 32, 40), str(folder / "a.JPEG"))
    weights = published_weights("resnext101")
    assert weights is not None
    hub = tmp_path / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(build("resnext101", 1000).state_dict(), hub / Path(weights.url).name)
    place = {"IMAGENET_DIR": str(tmp_path / "imagenet"), "TORCH_HOME": str(tmp_path / "hub")}
    dump, train = commands()[:2]
    assert dump == ["softlabels", "dump", "--teacher", "resnext101", "--data", "imagenet"]
    assert train == ["softlabels", "train", "--student", "mobilenetv3", "--labels", "shards/"]
    said = run([*dump[1:], "--limit", "4", "--views", "1"], tmp_path, **place)
    assert "resnext101 is torchvision:resnext101_32x8d" in said
    said = run([*train[1:], "--epochs", "1", "--batch-size", "2", "--workers", "0"], tmp_path, **place)
    assert "mobilenetv3 is torchvision:mobilenet_v3_large" in said
    assert (tmp_path / "runs" / "mobilenetv3" / "best.safetensors").exists()
