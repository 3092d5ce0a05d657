"""What the pixels behind labels depend on: what decoded them, and which versions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from softlabels import __version__
from softlabels.datasets import Images
from softlabels.store import TeacherLabels


def digest_in(text: str) -> str:
    """The digest of a view in what a shard holds.

    Earlier versions could render on a GPU what the teacher saw, and wrote its name and a colon before the digest of
    what the CPU makes of the view.
    """
    return text.rpartition(":")[2]


def seen_from_a_device(labels: TeacherLabels) -> bool:
    """Whether an earlier version rendered some of what this teacher saw on a GPU, in floats."""
    return any(":" in text for _, _, text in labels.digests())


def versions(images: Images) -> dict[str, str]:
    """What the pixels and logits of these images depend on beside the weights."""
    installed = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return {"decoder": images.decoder, "softlabels": __version__, **installed}


def changed_versions(then: Mapping[str, str], images: Images) -> str:
    """What pixels depend on, now and then, in words: the decoder always, versions where they differ."""
    now = versions(images)
    said = [f"decoder now {now['decoder']}, then {then.get('decoder', 'unknown')}"]
    names = [name for name in now if name != "decoder" and then.get(name, now[name]) != now[name]]
    if then.get("decoder") == now["decoder"] and not names:
        return "same decoder and versions: another image under its key, or an augmentation that is not repeatable"
    return "; ".join(said + [f"{name} now {now[name]}, then {then[name]}" for name in names])
