"""What the pixels behind labels depend on: who decoded and rendered them, with which versions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from softlabels import __version__
from softlabels.datasets import Images
from softlabels.store import TeacherLabels

CPU = "cpu"
"""The renderer of `Pictures` itself: whole numbers, the same bytes on every machine."""


def tagged(digest: str, renderer: str) -> str:
    """A digest as a store keeps it: of the CPU's rendering, whoever rendered what the teacher saw, and who that was.

    So it can be compared on any machine, and what differs is the pixels and not the renderer.
    """
    return digest if renderer == CPU else f"{renderer}:{digest}"


def untagged(text: str) -> tuple[str, str]:
    """The digest and the renderer of what `tagged` made."""
    renderer, colon, digest = text.rpartition(":")
    return digest, renderer if colon else CPU


def renderers(labels: TeacherLabels) -> set[str]:
    """Who rendered what this teacher saw, as far as digests tell."""
    return {untagged(text)[1] for _, _, text in labels.digests()}


def mixture(name: str, there: set[str], here: str) -> list[str]:
    """In one line, that a teacher's labels are not all of pictures of this renderer; nothing where they are."""
    if there <= {here}:
        return []
    return [
        f"labels of {name} are of pictures rendered on {' and '.join(sorted(there))}, those of this run are "
        f"rendered on {here}: the same views, about a level of 255 apart"
    ]


def versions(images: Images) -> dict[str, str]:
    """What the pixels and logits of these images depend on beside the weights."""
    installed = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return {"decoder": images.decoder, "softlabels": __version__, **installed}


def changed_versions(then: Mapping[str, str], images: Images) -> str:
    """What pixels depend on, now and then, in words: the decoder always, versions where they differ."""
    now = versions(images)
    said = [f"decoder now {now['decoder']}, then {then.get('decoder', 'unknown')}"]
    names = [name for name in now if name != "decoder" and then.get(name, now[name]) != now[name]]
    return "; ".join(said + [f"{name} now {now[name]}, then {then[name]}" for name in names])
