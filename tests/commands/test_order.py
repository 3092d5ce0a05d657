"""What is mistyped, also within a part or in a path, is refused before a data set is opened: that may take long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

from softlabels.datasets import Folder

Command = Callable[..., Outcome]

FILES = {
    "codec.yaml": "codec: {kind: topk, kk: 3}",
    "recipe.yaml": "recipe: [random-resized-crop, {kind: horizontal-flip, probabilty: 0.5}]",
    "teacher.yaml": "teacher: [{kind: small, architecture: cnn_tiny, siez: 8}]",
    "student.yaml": "student: {kind: small, architecture: cnn_tiny, siez: 8}",
    "blend.yaml": "blend: {kind: weighted, weigths: [1, 2]}",
    "term.yaml": "term: [{weight: 1, loss: js, temperatur: 2}]",
    "data.yaml": "data: {kind: folder, root: photos, class_ordr: text}",
    "eval.yaml": "eval_data: {kind: folder, root: photos, class_ordr: text}",
    "networks.py": "def teacher(classes): ...",
}
"""Files in the folder that commands run in."""

BASES = {
    "dump": ("dump", "--data", "photos"),
    "plan": ("plan", "--data", "photos"),
    "pack": ("pack",),
    "train": ("train", "--data", "photos"),
    "sweep": ("sweep", "--data", "photos", "--grid", "epochs=1"),
    "eval": ("eval", "--data", "photos"),
    "verify": ("verify", "--labels", "shards"),
    "repair": ("repair", "--labels", "shards", "--redump"),
    "convert": ("convert", "--labels", "shards", "--out", "converted"),
    "import": ("import", "--from", "fkd", "--data", "photos"),
    "export": ("export",),
}

TEACHER = ("--teacher", "cnn_tiny", "--weights", "random")
STUDENT = ("--student", "cnn_tiny")
LIVE = (*STUDENT, "--teacher", "cnn_small")

DUMPING = [
    ((*TEACHER, "--codec", "topk:ten"), "codec 'topk'"),
    ((*TEACHER, "--codec", "topk:3 levls=8"), "did you mean 'levels'"),
    ((*TEACHER, "--config", "codec.yaml"), "has no setting 'kk'"),
    ((*TEACHER, "--config", "recipe.yaml"), "did you mean 'probability'"),
    (("--config", "teacher.yaml"), "did you mean 'size'"),
    (("--teacher", "file:absent.safetensors"), "absent.safetensors"),
    (("--teacher", "cnn_tiny"), "no published weights"),
    (("--teacher", "cnn_tiny", "--weights", "absent.pt"), "absent.pt"),
    (("--teacher", "resnet18", "--weights", "IMAGENET1K_V9"), "published ones are"),
    (("--teacher", "networks:teachr"), "did you mean 'teacher'"),
    ((*TEACHER, "--class-map", "absent.csv"), "absent.csv"),
    ((*TEACHER, "--device", "cuda:99"), "cuda:99"),
]

TRAINING = [
    ((*STUDENT, "--teacher", "cnn_small", "--loss", "kl temperatur=3"), "has no setting 'temperatur'"),
    ((*STUDENT, "--config", "blend.yaml"), "did you mean 'weights'"),
    ((*STUDENT, "--config", "term.yaml"), "did you mean 'temperature'"),
    ((*STUDENT, "--term", "0.5*distt"), "did you mean 'dist'"),
    ((*STUDENT, "--term", "0.5*js", "--term", "2*js"), "distinct kinds"),
    ((*STUDENT, "--config", "recipe.yaml"), "did you mean 'probability'"),
    (("--config", "student.yaml"), "did you mean 'size'"),
    ((*STUDENT, "--config", "teacher.yaml"), "did you mean 'size'"),
    ((*STUDENT, "--weights", "absent.pt"), "absent.pt"),
    ((*STUDENT, "--init", "absent"), "absent"),
    ((*STUDENT, "--teacher", "file:absent.safetensors"), "absent.safetensors"),
    ((*LIVE, "--teacher-weights", "absent.pt"), "absent.pt"),
    ((*LIVE, "--teacher-weights", "random", "--class-map", "absent.csv"), "absent.csv"),
    ((*STUDENT, "--eval-data", "./absent"), "absent"),
    ((*STUDENT, "--eval-data", "folder:absent"), "absent"),
    ((*STUDENT, "--eval-data", "csv:absent.csv"), "absent.csv"),
    ((*STUDENT, "--eval-data", "cifar10:absent"), "absent"),
    ((*STUDENT, "--config", "eval.yaml"), "did you mean 'class_order'"),
    ((*STUDENT, "--device", "cuda:99"), "cuda:99"),
]

REOPENING = [
    (("--config", "teacher.yaml"), "did you mean 'size'"),
    (("--teacher", "file:absent.safetensors"), "absent"),
    (("--teacher", "cnn_small", "--weights", "absent.pt"), "absent.pt"),
    (("--teacher", "resnet18"), "has no labels of 'resnet18'"),
    (("--config", "data.yaml"), "did you mean 'class_order'"),
]

MISTYPED: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "dump": DUMPING,
    "plan": DUMPING,
    "pack": [(("--config", "data.yaml"), "did you mean 'class_order'")],
    "train": [*TRAINING, ((*STUDENT, "--labels", "nowhere"), "nowhere")],
    "sweep": [*TRAINING, ((*STUDENT, "--grid", "weights=random,absent.pt"), "absent.pt")],
    "eval": [
        (("--student", "runs/absent"), "runs/absent"),
        (("--student", "file:absent.safetensors"), "absent.safetensors"),
        (("--student", "cnn_tiny", "--weights", "absent.pt"), "absent.pt"),
        (("--student", "cnn_tiny"), "no published weights"),
        (("--student", "cnn_tiny", "--weights", "random", "--class-map", "absent.csv"), "absent.csv"),
        (("--student", "cnn_tiny", "--weights", "random", "--device", "cuda:99"), "cuda:99"),
    ],
    "verify": REOPENING,
    "repair": REOPENING,
    "convert": [(("--codec", "topk:ten"), "codec 'topk'"), (("--config", "codec.yaml"), "has no setting 'kk'")],
    "import": [
        (("absent",), "absent"),
        ((".", "--mixup", "0.8"), "--mixup"),
        ((".", "--temperature", "-1"), "temperature"),
    ],
    "export": [
        (("absent", "--data", "photos"), "absent"),
        ((".", "--config", "data.yaml"), "did you mean 'class_order'"),
    ],
}

RIGHT = {
    "dump": TEACHER,
    "plan": TEACHER,
    "pack": ("--data", "photos"),
    "train": STUDENT,
    "sweep": STUDENT,
    "eval": ("--student", "cnn_tiny", "--weights", "random"),
    "verify": (),
    "import": (".",),
}
"""What makes of a base a command that opens its data set."""


class OpenedError(Exception):
    """A data set was opened."""


@pytest.fixture
def command(
    softlabels_command: Command, photos: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command line beside photos and a store, where to open a folder of images is an error of its own."""

    def opened(_: Folder) -> None:
        raise OpenedError

    monkeypatch.setattr(Folder, "open", opened)
    for name, there in (("photos", photos), ("shards", shards)):
        (tmp_path / name).symlink_to(there)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return softlabels_command


@pytest.mark.parametrize("name", RIGHT)
def test_a_command_without_a_mistake_opens_its_data_set(command: Command, name: str) -> None:
    with pytest.raises(OpenedError):
        command(*BASES[name], *RIGHT[name])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [(name, options, said) for name, cases in MISTYPED.items() for options, said in cases],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_is_mistyped_is_refused_before_a_data_set_is_opened(
    command: Command, name: str, options: tuple[str, ...], said: str
) -> None:
    outcome = command(*BASES[name], *options)
    (line,) = (line for line in outcome.output.splitlines() if line.startswith("error: "))
    assert outcome.exit_code in (1, 2)
    assert said in line
