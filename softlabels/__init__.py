"""Offline knowledge distillation of image classifiers.

A teacher is run once over numbered views of every image and its logits are kept; then any number of students train from
them, on exactly the pixels that the teacher saw, with no teacher loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softlabels.api import (
        convert,
        create_labels,
        dump,
        evaluate,
        import_labels,
        merge,
        pack,
        plan,
        repair,
        sweep,
        train,
        verify,
    )
    from softlabels.attaching import attach
    from softlabels.datasets import open_images
    from softlabels.errors import ConfigError, DataError, ModelError, RunError, SoftlabelsError, StoreError
    from softlabels.labels import Labels, open_labels
    from softlabels.orders import OneViewEach, ShuffledShards
    from softlabels.reporting import report
    from softlabels.samples import SoftLabelDataset

__version__ = "0.1.0"

_HOMES = {
    "open_labels": "labels",
    "Labels": "labels",
    "SoftLabelDataset": "samples",
    "OneViewEach": "orders",
    "ShuffledShards": "orders",
    "attach": "attaching",
    "open_images": "datasets",
    "create_labels": "api",
    "pack": "api",
    "plan": "api",
    "dump": "api",
    "train": "api",
    "sweep": "api",
    "evaluate": "api",
    "verify": "api",
    "repair": "api",
    "convert": "api",
    "merge": "api",
    "import_labels": "api",
    "report": "reporting",
    "SoftlabelsError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "ModelError": "errors",
    "RunError": "errors",
    "StoreError": "errors",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Labels",
    "ModelError",
    "OneViewEach",
    "RunError",
    "ShuffledShards",
    "SoftLabelDataset",
    "SoftlabelsError",
    "StoreError",
    "attach",
    "convert",
    "create_labels",
    "dump",
    "evaluate",
    "import_labels",
    "merge",
    "open_images",
    "open_labels",
    "pack",
    "plan",
    "repair",
    "report",
    "sweep",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Loaded at first use, so that `import softlabels` and `softlabels --help` do not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'softlabels' has no attribute {name!r}")
    if _HOMES[name] == "errors":
        return getattr(import_module("softlabels.errors"), name)
    from softlabels._installed import loaded

    return loaded(f"softlabels.{_HOMES[name]}", name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
