"""Offline knowledge distillation of image classifiers.

A teacher is run once over numbered views of every image and its logits are kept; then any number of students train from
them, on exactly the pixels that the teacher saw, with no teacher loaded. `__init__.pyi` has all names with their types.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "open_labels": "loading.labels",
    "Labels": "loading.labels",
    "SoftLabelDataset": "loading.batches",
    "OneViewEach": "loading.samplers",
    "ShuffledShards": "loading.samplers",
    "attach": "importing.attach",
    "open_images": "datasets",
    "Images": "datasets",
    "create_labels": "dumping.writer",
    "make_loader": "loading.loader",
    "load_student": "training.student",
    "Student": "training.student",
    "TrainResult": "training.result",
    "check": "commands",
    "available": "commands",
    "pack": "commands",
    "plan": "commands",
    "dump": "commands",
    "train": "commands",
    "sweep": "commands",
    "evaluate": "commands",
    "dedup": "commands",
    "select": "commands",
    "verify": "commands",
    "repair": "commands",
    "convert": "commands",
    "merge": "commands",
    "import_labels": "commands",
    "report": "commands",
    "info": "commands",
    "export": "commands",
    "demo": "commands",
    "SoftlabelsError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "ModelError": "errors",
    "RunError": "errors",
    "StoreError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Loaded at first use, so that `import softlabels` and `softlabels --help` do not wait for torch.
    if name == "losses":
        return import_module("softlabels.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'softlabels' has no attribute {name!r}")
    if _HOMES[name] == "errors":
        return getattr(import_module("softlabels.errors"), name)
    from softlabels.core.installed import loaded

    return loaded(f"softlabels.{_HOMES[name]}", name)


def __dir__() -> list[str]:
    return sorted(["__doc__", "__version__", "losses", *__all__])
