"""Parts that several commands make from their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from softlabels._philox import permutation
from softlabels.datasets import Images, open_images, subset
from softlabels.errors import ConfigError, DataError
from softlabels.labels import Labels
from softlabels.runs._configs import Machine
from softlabels.teachers import Teacher, teacher_spec

_LIMIT = 7
"""Stream of chance for which images a limit keeps."""


def limited(images: Images, limit: int | None, seed: int) -> Images:
    """At most `limit` of the images, picked by `seed`, in their old order."""
    if limit is None or limit >= len(images):
        return images
    return subset(images, np.sort(permutation(len(images), seed, _LIMIT)[:limit]))


def label_images(labels: Labels, data: Any, data_dir: str | None) -> Images:
    """The data set of a store: where its manifest says it lies, or where the user says.

    Raises:
        ConfigError: the manifest names code; a store may come from a stranger, so only a user may have it imported.
        DataError: the images are not there (any more).
    """
    if data is not None:
        return open_images(data, data_dir=data_dir)
    spec = dict(labels.store.manifest.data)
    limit = spec.pop("limit", None)
    if spec.get("kind") == "function":
        raise ConfigError(f"{labels.store.root} was made of {spec.get('function')!r}; name it yourself with --data")
    try:
        return limited(open_images(spec, data_dir=data_dir), limit, labels.seed)
    except DataError as problem:
        raise DataError(f"{problem}; say with --data or --data-dir where the images lie now") from problem


def teacher_specs(names: Sequence[Any], weights: Sequence[str]) -> list[Any]:
    """What `--teacher` and `--weights` mean, pair by pair.

    Raises:
        ConfigError: no teacher, or not as many weights as teachers.
    """
    if not names:
        raise ConfigError("no teacher is named; give --teacher NAME")
    if len(weights) not in (0, len(names)):
        raise ConfigError(f"{len(names)} --teacher but {len(weights)} --weights; give one for each teacher, or none")
    return [teacher_spec(name, file) for name, file in zip(names, weights or [None] * len(names), strict=True)]


def open_teacher(spec: Any, machine: Machine, images: Images) -> Teacher:
    """The teacher on this machine's device; ModelError when its classes and the data set's differ in number."""
    return spec.open(device=machine.torch_device(), amp=machine.amp, classes=len(images.classes) or None)


def alias(spec: Any) -> str:
    """What a network's name resolves to, as a clause; nothing where the name says it already."""
    return f" is {spec.resolved}" if spec.resolved.rpartition(":")[2] != spec.slug else ""
