"""Parts that several commands make from their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels._philox import permutation
from softlabels.datasets import Images, open_images, subset
from softlabels.errors import ConfigError, DataError, ModelError, StoreError, did_you_mean
from softlabels.labels import Labels
from softlabels.networks import preprocessing_of
from softlabels.records import IMPORTED
from softlabels.runs._configs import Machine, Reopening
from softlabels.store import Store
from softlabels.teachers import Teacher, teacher_spec
from softlabels.views import RECIPES

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
        options = "--data or --data-dir" if "data_dir" in spec else "--data"
        raise DataError(f"{problem}; say with {options} where the images lie now") from problem


def teacher_specs(names: Sequence[Any], weights: Sequence[str]) -> list[Any]:
    """What `--teacher` and `--weights` mean, pair by pair.

    Raises:
        ConfigError: no teacher, or not as many weights as teachers.
    """
    if not names:
        raise ConfigError("no teacher is named; give --teacher NAME")
    if len(weights) not in (0, len(names)):
        raise ConfigError(f"{len(names)} --teacher but {len(weights)} --weights; give one for each teacher, or none")
    files: list[str | None] = [*weights] or [None] * len(names)
    return [teacher_spec(name, file) for name, file in zip(names, files, strict=True)]


def open_teacher(
    spec: Any,
    machine: Machine,
    images: Images,
    classes: int | None = None,
    *,
    clean: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
    role: str = "teacher",
) -> Teacher:
    """The teacher on this machine's device.

    Args:
        classes: of the store whose labels are the teacher's; a store may have more than the data set (a teacher of
            1,000 classes on images of 12). Without it those of the data set count.
        clean: whether its views are clean ones, on which a network may want pictures of another size.
        preprocessing: that of a store, which stands over the network's own.
        role: what messages call it.

    Raises:
        ModelError: its classes and the store's, or the data set's, differ in number.
        ConfigError: both know the same class by another number.
    """
    wanted = classes or len(images.classes) or None
    stored = preprocessing_of(preprocessing, "the store's preprocessing") if preprocessing else None
    try:
        teacher: Teacher = spec.open(
            device=machine.torch_device(),
            amp=machine.amp,
            classes=wanted,
            clean=clean,
            preprocessing=stored,
            role=role,
        )
    except ModelError as problem:
        if classes in (None, len(images.classes)):
            raise
        raise ModelError(f"{problem} (the store's labels are of {classes:,} classes)") from problem
    check_classes(images, teacher.class_names, teacher.name)
    return teacher


def check_classes(images: Images, names: Sequence[str], whose: str) -> None:
    """Raises ConfigError when a class of a data set has another number among these names, where it is one of them."""
    number = {name: place for place, name in enumerate(names)}
    for place, name in enumerate(images.classes):
        if number.get(name, place) != place and (place >= len(names) or names[place] != name):
            raise ConfigError(
                f"class {name!r} is number {place} of {images.name} and number {number[name]} of {whose}; give data "
                f"with the same classes in the same order"
            )


def matched(store: Store, images: Images) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row of the store its row in `images` (-1: not there), and the rows of `images` that are not stored."""
    found = store.find(images.keys)
    places = np.full(len(store), -1, np.int64)
    places[found[found >= 0]] = np.flatnonzero(found >= 0)
    return places, np.flatnonzero(found < 0)


def reopening(config: Reopening, labels: Labels, images: Images, instead: str) -> Callable[[str], Teacher]:
    """How to come by a teacher of a store again: as the user names it, else as the store describes it.

    `instead` says in messages what works without the teacher.
    """
    specs = teacher_specs(config.teacher, config.weights) if config.teacher else []
    named = {spec.slug: spec for spec in specs}
    for slug in named:
        if slug not in labels.teachers:
            raise ConfigError(
                f"{labels.store.location} has no labels of {slug!r}; {did_you_mean(slug, labels.teachers)}"
            )

    def reopen(name: str) -> Teacher:
        card = labels.of(name).card
        kind = card.spec.get("kind")
        if name not in named and kind == "own":
            raise ConfigError(f"{name} answered in its maker's own inference loop; run that again, or {instead}")
        if name not in named and kind == IMPORTED:
            raise ConfigError(
                f"{name} came from files of {card.spec.get('project')}: run `softlabels import` again to get shards "
                f"back, or {instead}"
            )
        if name not in named and kind == "function":
            # A store may come from a stranger, so only a user may have code imported.
            raise ConfigError(f"{name} was made by {card.spec.get('function')!r}; name it yourself with --teacher")
        # In what the labels were made in, so that what is compared, or made again, is of one kind.
        amp = None if card.precision in (None, "fp32") else card.precision
        if card.precision is not None and config.amp not in (None, amp):
            raise ConfigError(f"labels of {name} were made in {card.precision}; leave --amp {config.amp} out")
        machine = config if card.precision is None else config.model_copy(update={"amp": amp})
        if name in named:
            clean = RECIPES.make(labels.store.manifest.recipe).clean
            opened = open_teacher(named[name], machine, images, labels.classes, clean=clean)
        else:
            # As it was: what a network wants by default may have changed since.
            spec = teacher_spec(dict(card.spec))
            opened = open_teacher(spec, machine, images, labels.classes, preprocessing=card.preprocessing)
        if opened.weights_sha256 != card.weights_sha256:
            raise StoreError(
                f"{name} has other weights ({opened.weights_sha256[:12]}) than those that made the labels "
                f"({card.weights_sha256[:12]}); give --teacher and --weights, or {instead}"
            )
        return opened

    return reopen


def alias(spec: Any) -> str:
    """What a network's name resolves to, as a clause; nothing where the name says it already."""
    return f" is {spec.resolved}" if spec.resolved.rpartition(":")[2] != spec.slug else ""
