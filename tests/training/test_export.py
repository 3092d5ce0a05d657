"""Students as other programs load them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import softlabels
from softlabels import models
from softlabels.training import export as exporting


@pytest.fixture(scope="module")
def student(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "run"
    softlabels.train(student="cnn_tiny", data=str(photos), epochs=1, device="cpu", out=str(out), quiet=True)
    return out


def answers(run: Path, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return models.load_file(run).build().eval()(pictures)


def test_a_torch_program_answers_as_the_student_at_any_batch(student: Path, softlabels_command: Callable) -> None:
    done = softlabels_command("export", student)
    assert done.exit_code == 0, done.output
    size = models.load_file(student).preprocessing.size
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
    size = models.load_file(student).preprocessing.size
    pictures = torch.randn(5, 3, size, size)
    (found,) = session.run(None, {"pictures": pictures.numpy()})
    np.testing.assert_allclose(found, answers(student, pictures).numpy(), atol=1e-4)


@pytest.mark.slow
def test_an_int8_file_is_smaller_and_says_how_often_it_agrees(student: Path, softlabels_command: Callable) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    assert softlabels_command("export", student, "--format", "onnx").exit_code == 0
    done = softlabels_command("export", student, "--format", "int8")
    assert done.exit_code == 0, done.output
    assert "of 256 images of noise" in done.output
    small, full = (student / f"student{suffix}" for suffix in (".int8.onnx", ".onnx"))
    assert small.stat().st_size < 0.6 * full.stat().st_size
    session = runtime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
    size = models.load_file(student).preprocessing.size
    pictures = torch.randn(5, 3, size, size)
    (found,) = session.run(None, {"pictures": pictures.numpy()})
    wanted = answers(student, pictures).numpy()
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("form", ["torch", "int8"])
def test_student_and_file_are_compared_on_images(
    student: Path, photos: Path, form: str, softlabels_command: Callable
) -> None:
    if form == "int8":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    done = softlabels_command("export", student, "--format", form, "--data", photos)
    assert done.exit_code == 0, done.output
    found = re.search(
        r"same class of ([\d.]+) % of 18 images of .*; top-1 of the student ([\d.]+) %, of the file ([\d.]+) %",
        done.output,
    )
    assert found
    agreed, top1, exported_top1 = map(float, found.groups())
    score = softlabels.evaluate(student=str(student), data=str(photos), device="cpu", quiet=True)
    assert top1 == pytest.approx(100 * score.top1, abs=0.01)
    assert agreed >= (100 if form == "torch" else 75)
    assert abs(exported_top1 - top1) <= 100 - agreed


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

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(softlabels.ConfigError, match=r"softlabels\[onnx\]"):
        exporting.export(student, "onnx")
