"""Students as other programs load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import softlabels
from softlabels import exporting, networks


@pytest.fixture(scope="module")
def student(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "run"
    softlabels.train(student="cnn_tiny", data=str(photos), epochs=1, device="cpu", out=str(out), quiet=True)
    return out


def answers(run: Path, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return networks.built(networks.trained_file(run)).eval()(pictures)


def test_a_torch_program_answers_as_the_student_at_any_batch(student: Path, softlabels_command: Callable) -> None:
    done = softlabels_command("export", student)
    assert done.exit_code == 0, done.output
    size = networks.trained_file(student).preprocessing.size
    for batch in (2, 5):
        pictures = torch.randn(batch, 3, size, size)
        program = torch.export.load(student / "student.pt2").module()
        torch.testing.assert_close(program(pictures), answers(student, pictures))
    told = json.loads((student / "student.pt2.json").read_text())
    assert told["preprocessing"]["size"] == size
    assert told["classes"] == ["class-0", "class-1", "class-2"]


def test_an_onnx_file_answers_as_the_student_at_any_batch(student: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    written = exporting.export(student, "onnx", tmp_path / "s.onnx")
    assert written.difference < 1e-4
    session = runtime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    size = networks.trained_file(student).preprocessing.size
    pictures = torch.randn(5, 3, size, size)
    (found,) = session.run(None, {"pictures": pictures.numpy()})
    np.testing.assert_allclose(found, answers(student, pictures).numpy(), atol=1e-4)


def test_a_file_that_answers_differently_is_not_left(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_difference", lambda *_: float("nan"))
    with pytest.raises(softlabels.ModelError, match="answers differently"):
        exporting.export(student, "torch", tmp_path / "s.pt2")
    assert not list(tmp_path.iterdir())


def test_what_is_no_student_and_what_is_not_installed_is_said(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(softlabels.SoftlabelsError):
        exporting.export(tmp_path / "nothing", "torch")

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(exporting, "import_module", absent)
    with pytest.raises(softlabels.ConfigError, match=r"softlabels\[onnx\]"):
        exporting.export(student, "onnx")
