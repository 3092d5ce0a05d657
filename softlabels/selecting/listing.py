"""How the list that a command wrote is opened as a data set."""

from __future__ import annotations

from softlabels.choices import DATASETS
from softlabels.datasets import Images


def opened_as(file: str, images: Images, *, files: bool) -> str | None:
    """The list in `file`, with settings behind it, of some of `images`, as `data` takes it.

    None where the images are no `files` and a text cannot say what they are of.
    """
    if files:
        return f"csv:{file}"
    kind = str(images.spec.get("kind"))
    part = DATASETS.find(kind)
    if part is None or kind in ("parts", "function", "object", "csv"):
        return None
    value = images.spec.get(part.shorthand or "")
    return f"csv:{file} of={kind}{f':{value}' if value else ''}"
