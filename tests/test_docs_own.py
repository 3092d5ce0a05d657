"""Every command and block of the pages on data sets, teachers and steps of one's own is run, with smaller networks."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import softlabels

DOCS = Path(__file__).parents[1] / "docs"
SMALLER = {
    "--teacher resnext101": "--teacher cnn_tiny --weights random",
    "--student mobilenetv3": "--student cnn_tiny --size 8 --epochs 1",
    'teacher="resnext101"': 'teacher="cnn_tiny", weights="random", device="cpu"',
    'student="mobilenetv3"': 'student="cnn_tiny", size=8, epochs=1, device="cpu"',
    'student={"module": student, "size": 64}': 'student={"module": student, "size": 64}, epochs=1, device="cpu"',
    "teacher: resnext101": "teacher: cnn_tiny\nweights: random",
}


def smaller(text: str) -> str:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [smaller(each) for each in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)]


@pytest.fixture
def run_page(softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs the commands of a page in a folder that holds the photos and the example files."""
    here = Path.cwd()
    shutil.copytree(photos, here / "photos")
    monkeypatch.syspath_prepend(here)

    def run(page: str) -> None:
        for line in "\n".join(blocks(page, "sh")).splitlines():
            *variables, command = re.split(r"(?<=\S) (?=softlabels|pip)", line)
            for name, _, value in (each.partition("=") for each in variables):
                monkeypatch.setenv(name, value)
            if command.startswith("softlabels"):
                done = softlabels_command(*shlex.split(command)[1:], "--device", "cpu", "--workers", 0)
                assert done.exit_code == 0, (command, done.output)

    return run


def test_a_data_set_of_ones_own(run_page: Callable) -> None:
    shutil.copy(DOCS / "examples/own_data.py", ".")
    with tarfile.open("photos.tar", "w") as tar:
        tar.add("photos", arcname=".")
    run_page("own-data.md")
    labels = softlabels.open_labels("shards")
    assert (len(labels), labels.views, labels.class_names[0]) == (18, 4, "class-0")
    assert labels.keys[0].as_py() == "class-0/000.jpg"


def test_a_data_set_as_an_object(run_page: Callable) -> None:  # noqa: ARG001
    folder = torchvision.datasets.ImageFolder("photos")
    given = {"my_dataset": folder, "my_names": [path for path, _ in folder.samples]}
    for block in blocks("own-data.md", "python"):
        exec(block, given)
    assert softlabels.open_labels("shards").keys[0].as_py() == "photos/class-0/000.jpg"


def test_a_teacher_of_ones_own(run_page: Callable) -> None:
    shutil.copy(DOCS / "examples/own_teacher.py", ".")
    torch.manual_seed(0)
    shown = "networks: list[nn.Module] ="
    text = Path("own_teacher.py").read_text()
    assert shown in text
    # The same weights each time, as if they came from a file.
    Path("own_teacher.py").write_text(
        text.replace(shown, f"torch.manual_seed(0)\n    {shown}").replace("resnet18", "shufflenet_v2_x0_5")
    )
    run_page("own-teacher.md")
    assert softlabels.open_labels("shards").teachers == ("own_teacher-ensemble",)


def test_a_teacher_as_an_object(run_page: Callable) -> None:  # noqa: ARG001
    torch.manual_seed(0)
    network, student = (nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3)) for _ in range(2))
    given = {"network": network, "student": student}
    for block in blocks("own-teacher.md", "python"):
        exec(block, given)
    assert softlabels.open_labels("shards").teachers == ("mine",)
    assert given["trained"].network is not student  # which is left as it is
    assert given["trained"].classes


def test_a_step_of_ones_own(run_page: Callable) -> None:
    place = Path(shutil.copytree(DOCS / "examples/own_step", "own_step"))
    (place / "dump.yaml").write_text(smaller((place / "dump.yaml").read_text()))
    # As pip installs it, in a folder where modules and what they offer are found.
    shutil.copy(place / "own_step.py", "installed_own_step.py")
    entry = re.search(r'"softlabels.views"\]\n(.*)\n', (place / "pyproject.toml").read_text())
    assert entry is not None
    assert entry[0] in blocks("own-step.md", "toml")[0]
    folder = Path("own_step-0.1.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own-step\nVersion: 0.1\n")
    installed = entry[1].replace('"', "").replace("own_step:", "installed_own_step:")
    (folder / "entry_points.txt").write_text(f"[softlabels.views]\n{installed}\n")
    run_page("own-step.md")
    labels = softlabels.open_labels("shards")
    assert [step.kind for step in labels.recipe.steps] == ["random-resized-crop", "quarter-turns"]
    with softlabels.create_labels("turned", images="photos", recipe=["quarter-turns"], views=4, classes=3) as turned:
        for batch in turned.missing("none", size=8):
            turned.put(torch.arange(3.0).expand(len(batch), 3))
    dataset = softlabels.SoftLabelDataset(softlabels.open_labels("turned"), "photos", size=8)
    seen = set()
    for number in range(len(dataset)):
        straight = dataset[number // 4 * 4][0]
        (turn,) = (each for each in range(4) if torch.equal(straight.rot90(each, (1, 2)), dataset[number][0]))
        seen.add(turn)
    assert seen == {0, 1, 2, 3}
    sys.modules.pop("installed_own_step")
