"""`softlabels export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from softlabels.core.progress import Terminal, percent
from softlabels.errors import ModelError
from softlabels.loading.opening import limited, open_data
from softlabels.models import read_description, weights_file
from softlabels.training import export as exporting
from softlabels.training.config import ExportConfig
from softlabels.training.export import Exported


def run_export(config: ExportConfig, terminal: Terminal) -> Exported:  # noqa: ARG001
    """Write a student for other programs, and compare its answers: on `data`, else on images of noise."""
    student, form, function = Path(config.student), config.format, config.function
    if function is None:
        told = read_description(student)
        if told is not None and told.architecture.startswith("function:"):
            own = told.architecture.removeprefix("function:")
            raise ModelError(
                f"{student} belongs to a network of your own, and a file of weights may not choose code; name the "
                f"function yourself: `function={own}`"
            )
    weights_file(student)
    images = None
    if config.data is not None:
        images = limited(open_data(config.data, config.data_dir, config.split), config.limit, 0)
    written = exporting.export(student, form, None if config.out is None else Path(config.out), function)
    if images is not None or form == "int8":
        written = replace(written, agreement=exporting.compare_file(student, written, form, images, function))
    return written


def export_text(written: Exported) -> str:
    """What `run_export` returns, in lines for a person."""
    lines, agreement = (
        [f"{written.path}: logits differ by {written.difference:.1e} of the largest at most"],
        written.agreement,
    )
    if agreement is not None:
        more = " (name images with `data`)" if agreement.data == "noise" else ""
        line = (
            f"student and file name the same class of {percent(agreement.agreed)} of {agreement.images:,} images of "
            f"{agreement.data}{more}"
        )
        if agreement.student_top1 is not None and agreement.exported_top1 is not None:
            of_student, of_file = percent(agreement.student_top1), percent(agreement.exported_top1)
            line += f"; top-1 of the student {of_student}, of the file {of_file}"
        lines.append(line)
    return "\n".join(lines)
