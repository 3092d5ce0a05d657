"""A student in the forms that other programs load, each compared with the student itself before it has its name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from softlabels import models
from softlabels.core.files import whole, write_json
from softlabels.core.installed import required
from softlabels.datasets import Images
from softlabels.errors import ModelError
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.training.student import load_student
from softlabels.views import RECIPES

Form = Literal["torch", "onnx", "int8"]
SUFFIX: dict[str, str] = {"torch": ".pt2", "onnx": ".onnx", "int8": ".int8.onnx"}

_LARGEST = {"torch": 1e-3, "onnx": 1e-3, "int8": float("inf")}
"""Difference of logits that is still rounding, as a share of the largest logit; what int8 loses is to be measured."""

_NOISE = 256
"""Images of noise on which answers are compared where there are no images."""

_TRACED, _TRIED = 2, 3
"""Images that the student is traced with, and others that the result is tried with: the batch is free."""


@dataclass(frozen=True)
class FileAgreement:
    """How often the file and its student name the same class on images of `data`, and the accuracy of both where labels
    are known."""

    data: str
    images: int
    agreed: float
    student_top1: float | None
    exported_top1: float | None


@dataclass(frozen=True)
class Exported:
    """The file, and the largest difference of its logits from the student's as a share of the largest one.

    `agreement` is that on images, where they were compared.
    """

    path: Path
    difference: float
    agreement: FileAgreement | None = None


def export(source: Path, form: Form, out: Path | None = None, function: str | None = None) -> Exported:
    """Write a student that describes itself (a run's folder or its weights) as `form`.

    A student that a function made needs that `function`, ``module:function``, beside its weights.

    It takes normalised images, float32 (batch, 3, size, size), any batch, and gives logits (batch, classes).
    Preprocessing and class names stand in a JSON file beside it. `int8` is an ONNX file whose convolutions and linear
    layers hold 8-bit weights and round their inputs to 8 bits, by the range of each batch (dynamic quantisation).

    Raises:
        ModelError: the student cannot be read or exported, or what was written answers differently.
        ConfigError: the packages for `form` are not installed.
    """
    _check_installed(form)
    student = load_student(source, student=function)
    network, wanted = models.Logits(student.network).eval(), student.preprocessing
    path = out or _folder(source) / f"student{SUFFIX[form]}"
    size = wanted.size
    pictures = [torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in (_TRACED, _TRIED)]
    with whole(path) as partial:
        try:
            if form == "torch":
                _write_torch(network, pictures[0], partial)
            else:
                _write_onnx(network, pictures[0], partial)
            if form == "int8":
                _quantise(partial)
        except Exception as problem:  # tracing runs the network's own code
            raise ModelError(
                f"{source} cannot be exported as {form}: {' '.join(str(problem).split())[:200]}"
            ) from problem
        difference = _difference(network, pictures[1], partial, form)
        if not difference <= _LARGEST[form]:
            raise ModelError(f"{source} as {form} answers differently, by {difference:.1e} of its largest logit")
    described = {"preprocessing": wanted.model_dump(mode="json"), "classes": list(student.classes)}
    write_json(path.with_name(f"{path.name}.json"), {"architecture": student.architecture, **described})
    return Exported(path, difference)


def _write_torch(network: nn.Module, pictures: Tensor, path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.export.export(network, (pictures,), dynamic_shapes=shapes, strict=False)
    except RuntimeError:  # torch 2.6 takes compiled networks in strict mode alone, and objects in the other alone
        program = torch.export.export(network, (pictures,), dynamic_shapes=shapes, strict=True)
    torch.export.save(program, path)


def _write_onnx(network: nn.Module, pictures: Tensor, path: Path) -> None:
    torch.onnx.export(
        network,
        (pictures,),
        path,
        input_names=["pictures"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _quantise(path: Path) -> None:
    """Put the dynamically quantised form of an ONNX file in its place."""
    model = import_module("onnx").load(str(path))
    # What the exporter noted of inner shapes is wrong once the quantiser has turned weights around.
    del model.graph.value_info[:]
    quantization = import_module("onnxruntime.quantization")
    # Quiet: the quantiser advises a preprocessing that would undo the free batch.
    with _silenced():
        quantization.quantize_dynamic(model, str(path), weight_type=quantization.QuantType.QUInt8, per_channel=True)


@contextmanager
def _silenced() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def answers(path: Path, form: Form) -> Callable[[Tensor], Tensor]:
    """What an exported file says of normalised images, on the CPU: logits (batch, classes)."""
    if form == "torch":
        program: Callable[[Tensor], Tensor] = torch.export.load(path).module()
        return program
    session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])


def compare_file(
    source: Path, exported: Exported, form: Form, images: Images | None = None, function: str | None = None
) -> FileAgreement:
    """Let student and file name the class of each image's clean view; without images, of noise."""
    student = load_student(source, student=function)
    network, wanted = models.Logits(student.network).eval(), student.preprocessing
    other = answers(exported.path, form)
    sums = torch.zeros(4, dtype=torch.int64)
    for pictures, labels in _shown(wanted, images):
        with torch.inference_mode():
            named, found = (say(wanted.normalise(pictures)).argmax(1) for say in (network, other))
        counts = (named == found, named == labels, found == labels, labels >= 0)
        sums += torch.stack([each.sum() for each in counts])
    agreed, right, also_right, labelled = sums.tolist()
    count, data = (_NOISE, "noise") if images is None else (len(images), images.name)
    share = [n / labelled if labelled else None for n in (right, also_right)]
    return FileAgreement(data, count, agreed / max(count, 1), *share)


def _shown(wanted: models.Preprocessing, images: Images | None, batch: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 images (n, 3, size, size) and their labels (n,), -1 where there is none."""
    count = _NOISE if images is None else len(images)
    dice = torch.Generator().manual_seed(0)
    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        if images is None:
            shape = (len(rows), 3, wanted.size, wanted.size)
            yield torch.randint(0, 256, shape, dtype=torch.uint8, generator=dice), torch.full((len(rows),), -1)
        else:
            clean = ViewDataset(images, RECIPES.make("clean"), 0, 1, image_spec(wanted))
            yield clean.render(rows, np.zeros_like(rows)), torch.from_numpy(images.labels[rows].astype(np.int64))


def _difference(network: nn.Module, pictures: Tensor, path: Path, form: Form) -> float:
    """Largest difference of the logits, as a share of the largest one."""
    with torch.inference_mode():
        wanted, found = network(pictures), answers(path, form)(pictures)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny))


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _check_installed(form: Form) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if form != "torch" else ():
        required(package, "onnx", f"`format={form}`")
