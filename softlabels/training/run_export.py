"""`softlabels export`."""

from __future__ import annotations

from pathlib import Path

from softlabels.core.progress import Terminal
from softlabels.errors import ModelError
from softlabels.loading.opening import limited, open_data
from softlabels.models import read_description, weights_file
from softlabels.training import export as exporting
from softlabels.training.config import ExportConfig
from softlabels.training.export import Exported


def run_export(config: ExportConfig, terminal: Terminal) -> Exported:
    """Write a student for other programs, and say how its answers differ: on `data`, else on images of noise."""
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
    terminal.say(f"{written.path}: logits differ by {written.difference:.1e} of the largest at most")
    if images is None and form != "int8":
        return written
    agreement = exporting.compare_file(student, written, form, images, function)
    what = "images of noise (name images with `data`)" if images is None else f"images of {images.name}"
    line = f"student and file name the same class of {agreement.agreed:.2%} of {agreement.images:,} {what}"
    if agreement.student_top1 is not None and agreement.exported_top1 is not None:
        line += f"; top-1 of the student {agreement.student_top1:.2%}, of the file {agreement.exported_top1:.2%}"
    terminal.say(line)
    return written
