"""Everything the README shows is run: its commands in order, its Python as one script, its claims about the disk."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from timm.data import ImageNetInfo
from torchvision.io import write_jpeg
from worlds import picture

import softlabels
from softlabels.cli import main
from softlabels.reporting.run_demo import ARMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


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


SMALL = {"resnet50": "cnn_small", "mobilenetv3": "cnn_tiny", "default": "random"}
"""What stands for the published networks where their commands are run on tiny images."""


def own_images() -> list[list[str]]:
    """The README's commands for a folder of one's own images."""
    (block,) = [block for block in blocks("sh") if "photos/" in block]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which these commands were run, with small networks on tiny images."""
    folder = tmp_path_factory.mktemp("story")
    for part, count in (("train", 6), ("test", 2)):
        for kind in ("bee", "ant"):
            for number in range(count):
                path = folder / "photos" / part / kind / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_jpeg(picture(number, 32, 40), str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in own_images():
            words = [SMALL.get(word, word) for word in command]
            done = CliRunner().invoke(main, [*words, *(["--size", "16"] if words[0] == "train" else [])])
            assert done.exit_code == 0, (words, done.output)
    return folder


def test_the_commands_for_own_images_end_in_a_student(story: Path) -> None:
    labels = softlabels.open_labels(story / "shards")
    assert (labels.views, len(labels), labels.class_names) == (8, 12, ("ant", "bee"))
    assert softlabels.load_student(story / "runs/cnn_tiny").classes == ("ant", "bee")


def test_the_loop_of_the_readme_runs(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(story)
    names: dict[str, object] = {}
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), names)
    images, probabilities = names["images"], names["teacher_probabilities"]
    assert isinstance(images, torch.Tensor)
    assert isinstance(probabilities, torch.Tensor)
    assert images.shape == (12, 3, 224, 224)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(12))


def test_the_disk_looks_as_the_format_says(story: Path) -> None:
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


def test_the_python_page_runs_as_one_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits = {"size": 8, "data": "digits", "recipe": "pad", "quiet": True}
    softlabels.train(student="cnn_tiny", epochs=2, batch_size=64, lr=0.01, out="teacher", **digits)
    del digits["size"]
    softlabels.dump(teacher="file:teacher", views=2, **digits)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    names: dict[str, object] = {"network": network}
    for block in blocks("python", PAGES["python"]):
        exec(compile(block, "python.md", "exec"), names)
    loss = names["loss"]
    assert isinstance(loss, torch.Tensor)
    assert loss.item() < math.log(10)
    assert softlabels.open_labels("my-shards").views == 2


def test_stored_labels_beat_hard_ones_in_the_tutorial(tmp_path: Path, softlabels_command: Callable) -> None:
    """As it is typed; `softlabels demo` does so with several seeds, in the slow tests."""
    for block in blocks("sh", PAGES["tutorial"]):
        for line in block.splitlines():
            if line.startswith("softlabels"):
                done = softlabels_command(*shlex.split(line)[1:])
                assert done.exit_code == 0, done.output
    top1 = {name: json.loads((tmp_path / "runs" / name / "result.json").read_text())["last"]["top1"] for name in ARMS}
    assert top1["stored-labels"] > top1["hard-labels"] + 0.04, top1


def test_the_makefile_has_the_promised_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert targets >= {"help", "setup", "all", "test", "test-all", "lint", "docs", "bench", "clean"}


@pytest.mark.slow
def test_the_missions_two_commands(tmp_path: Path) -> None:
    """As they stand, on an ImageNet of tiny images, with weights from a file in place of a download.

    Only the amount of work is cut: four images, one view, one epoch.
    """
    from softlabels.models import build, published_weights

    for split in ("train", "val"):
        for number, wnid in enumerate(ImageNetInfo().label_names()):
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            write_jpeg(picture(number, 32, 40), str(folder / "a.JPEG"))
    weights = published_weights("resnext101")
    assert weights is not None
    hub = tmp_path / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(build("resnext101", 1000).state_dict(), hub / Path(weights.url).name)
    place = {"IMAGENET_DIR": str(tmp_path / "imagenet"), "TORCH_HOME": str(tmp_path / "hub")}
    (block,) = [block for block in blocks("sh") if "imagenet" in block]
    dump, train = (shlex.split(line, comments=True) for line in block.splitlines())
    assert dump == ["softlabels", "dump", "--teacher", "resnext101", "--data", "imagenet"]
    assert train == ["softlabels", "train", "--student", "mobilenetv3", "--labels", "shards/"]
    said = run([*dump[1:], "--limit", "4", "--views", "1"], tmp_path, **place)
    assert "resnext101 is torchvision:resnext101_32x8d" in said
    said = run([*train[1:], "--epochs", "1", "--batch-size", "2", "--workers", "0"], tmp_path, **place)
    assert "mobilenetv3 is torchvision:mobilenet_v3_large" in said
    assert (tmp_path / "runs" / "mobilenetv3" / "best.safetensors").exists()
