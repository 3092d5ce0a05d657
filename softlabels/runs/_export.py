"""`softlabels export`."""

from __future__ import annotations

from pathlib import Path

from softlabels import exporting
from softlabels.datasets import open_images
from softlabels.errors import ModelError
from softlabels.exporting import Exported, Form
from softlabels.journal import Journal
from softlabels.networks import read_description
from softlabels.runs._parts import limited


def run_export(
    student: Path,
    form: Form,
    journal: Journal,
    *,
    out: Path | None = None,
    function: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    limit: int | None = None,
) -> Exported:
    """Write a student for other programs, and say how its answers differ: on `data`, else on pictures of noise."""
    images = None if data is None else limited(open_images(data, data_dir=data_dir, split=split), limit, 0)
    if function is None:
        told = read_description(student)
        if told is not None and told.architecture.startswith("function:"):
            own = told.architecture.removeprefix("function:")
            raise ModelError(
                f"{student} belongs to a network of your own, and a file of weights may not choose code; name the "
                f"function yourself: --function {own}"
            )
    written = exporting.export(student, form, out, function)
    journal.say(f"{written.path}: logits differ by {written.difference:.1e} of the largest at most")
    if images is None and form != "int8":
        return written
    agreement = exporting.compare(student, written, form, images, function)
    what = "pictures of noise (name images with --data)" if images is None else f"images of {images.name}"
    line = f"student and file name the same class of {agreement.agreed:.2%} of {agreement.images:,} {what}"
    if agreement.student_top1 is not None and agreement.exported_top1 is not None:
        line += f"; top-1 of the student {agreement.student_top1:.2%}, of the file {agreement.exported_top1:.2%}"
    journal.say(line)
    return written
