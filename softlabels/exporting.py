"""A student in the forms that other programs load, each compared with the student itself before it has its name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softlabels import networks
from softlabels._files import whole, write_json
from softlabels.errors import ConfigError, ModelError

Form = Literal["torch", "onnx"]
SUFFIX: dict[str, str] = {"torch": ".pt2", "onnx": ".onnx"}

_LARGEST = 1e-3
"""Difference of logits that is still rounding, as a share of the largest logit."""

_TRACED, _TRIED = 2, 3
"""Pictures that the student is traced with, and others that the result is tried with: the batch is free."""


@dataclass(frozen=True)
class Exported:
    """The file, and the largest difference of its logits from the student's."""

    path: Path
    difference: float


def export(source: Path, form: Form, out: Path | None = None) -> Exported:
    """Write a student that describes itself (a run's folder or its weights) as `form`.

    It takes normalised pictures, float32 (batch, 3, size, size), any batch, and gives logits (batch, classes).
    Preprocessing and class names stand in a JSON file beside it.

    Raises:
        ModelError: the student cannot be read or exported, or what was written answers differently.
        ConfigError: the packages for `form` are not installed.
    """
    _check_installed(form)
    weights = networks.trained_file(source)
    network = networks.built(weights, size=weights.preprocessing.size).eval()
    path = out or _folder(source) / f"student{SUFFIX[form]}"
    size = weights.preprocessing.size
    pictures = [torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in (_TRACED, _TRIED)]
    with whole(path) as partial:
        try:
            if form == "torch":
                _write_torch(network, pictures[0], partial)
            else:
                _write_onnx(network, pictures[0], partial)
        except (RuntimeError, TypeError, ValueError) as problem:
            raise ModelError(
                f"{source} cannot be exported as {form}: {' '.join(str(problem).split())[:200]}"
            ) from problem
        difference = _difference(network, pictures[1], partial, form)
        if not difference <= _LARGEST:
            raise ModelError(f"{source} as {form} answers differently, by {difference:.1e} of its largest logit")
    described = {"preprocessing": weights.preprocessing.model_dump(mode="json"), "classes": list(weights.class_names)}
    write_json(path.with_name(f"{path.name}.json"), {"architecture": str(weights.architecture), **described})
    return Exported(path, difference)


def _write_torch(network: nn.Module, pictures: Tensor, path: Path) -> None:
    program = torch.export.export(network, (pictures,), dynamic_shapes=({0: torch.export.Dim("batch")},))
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


def _difference(network: nn.Module, pictures: Tensor, path: Path, form: Form) -> float:
    """Largest difference of the logits, as a share of the largest one."""
    with torch.inference_mode():
        wanted = network(pictures)
        found: Any
        if form == "torch":
            found = torch.export.load(path).module()(pictures)
        else:
            session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])
    return float((found - wanted).abs().max() / wanted.abs().max())


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _check_installed(form: Form) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        try:
            import_module(package)
        except ImportError as problem:
            raise ConfigError(f"--format onnx needs {package}: pip install 'softlabels[onnx]'") from problem
