"""What goes into a training, opened once, and known by what it is, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from softlabels.datasets import Images, known_by
from softlabels.errors import ConfigError, ModelError
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.opening import label_images, limited, open_data, open_teacher, teacher_specs
from softlabels.models import (
    LoadedNetwork,
    NetworkSpec,
    StudentSpec,
    Teacher,
    digest,
    random_seed,
    read_weights,
)
from softlabels.store import TeacherCard
from softlabels.training.config import TrainConfig
from softlabels.views import RECIPES, Recipe

DEFAULT_RECIPE = "crop-flip"
"""Views to train on when no store says which."""


class Inputs:
    """Labels, images, live teachers and first weights of a training. Each is opened when it is first asked for."""

    def __init__(self, config: TrainConfig, student: StudentSpec) -> None:
        self._config, self._student = config, student
        self.notes: list[str] = []
        """Lines about the teachers for the run's header."""
        self.views: int | None = None
        """How many views of the labels are learnt from, where the run was begun with fewer than there are now."""

    @cached_property
    def labels(self) -> Labels | None:
        """The stored labels."""
        config = self._config
        if not config.labels:
            return None
        return open_labels(config.labels, cache_dir=config.cache_dir, cache_size=config.cache_size)

    @cached_property
    def images(self) -> Images:
        """The images that are trained on; some of them may have no label."""
        config = self._config
        if self.labels is None:
            opened = open_data(config.data, config.data_dir)
        else:
            opened = label_images(self.labels, config.data, config.data_dir)
        return limited(opened, config.limit, config.seed if config.limit_seed is None else config.limit_seed)

    @cached_property
    def teachers(self) -> list[Teacher]:
        """The teachers in the loop."""
        if not self._config.teacher:
            return []
        specs = teacher_specs(self._config.teacher, self._config.teacher_weights)
        config, clean = self._config, self.recipe.clean
        return [
            open_teacher(spec, config, self.images, clean=clean, class_map=config.class_map, say=self.notes.append)
            for spec in specs
        ]

    @cached_property
    def layers_from(self) -> LoadedNetwork | None:
        """The network of which the student begins with some layers."""
        if self._config.init_from is None:
            return None
        with _of_first_layers():
            spec = self._config.init_from.make(self._config.init_from_weights)
            if not isinstance(spec, NetworkSpec):
                raise ConfigError(
                    f"`init_from`: {spec.resolved} is no network with layers of its own; name the network"
                )
            return spec.load(len(self.images.classes) or None, True, None)

    @cached_property
    def recipe(self) -> Recipe:
        """The views that are trained on without stored labels."""
        return self._config.recipe.make() if self._config.recipe else RECIPES.make(DEFAULT_RECIPE)

    def known(self, held_out: Images | None) -> dict[str, Any]:
        """What they are, as JSON values; `held_out` are the images that the student is scored on.

        Raises:
            SoftlabelsError: one of them is not there.
        """
        return {
            "student": self._known_student(),
            "labels": self._known_labels(),
            "teachers": [_known_teacher(each) for each in self.teachers] or None,
            "images": known_by(self.images),
            "held-out images": None if held_out is None else known_by(held_out),
        }

    def _known_student(self) -> dict[str, Any]:
        weights = self._config.init or getattr(self._student, "weights", None)
        own = getattr(self._student, "weights_sha256", None)  # of an object
        drawn = weights is None or weights == "default" or random_seed(weights) is not None
        return {
            "network": self._student.resolved,
            "preprocessing": self._student.preprocessing.model_dump(mode="json"),
            "first weights": own or (weights if drawn else read_weights(weights or "").sha256),
            **self._known_layers(),
        }

    def _known_layers(self) -> dict[str, str]:
        found = self.layers_from
        return {} if found is None else {"layers from": digest(found.network.state_dict())}

    def _known_labels(self) -> dict[str, Any] | None:
        labels = self.labels
        if labels is None:
            return None
        names = labels.select(self._config.teachers)
        # Rows of one shard come together where a window says so.
        shards = {"rows per shard": labels.store.manifest.rows_per_shard} if self._config.shuffle_window else {}
        return {
            "store": labels.store.manifest.id,
            "teachers": list(names),
            **{name: _known_card(labels.of(name).card, len(labels.of(name).skipped)) for name in names},
            **shards,
        }


def check_first_layers(config: TrainConfig) -> None:
    """Raises SoftlabelsError where the network of `init_from` or its weights are not there."""
    if config.init_from is not None:
        with _of_first_layers():
            config.init_from.make(config.init_from_weights).check_weights()


@contextmanager
def _of_first_layers() -> Iterator[None]:
    """Let messages about `weights` name the setting that they are given by here."""
    try:
        yield
    except (ConfigError, ModelError) as problem:
        raise type(problem)(str(problem).replace("`weights", "`init_from_weights")) from problem


def _known_card(card: TeacherCard, skipped: int) -> dict[str, Any]:
    """What a teacher's labels are, however they lie on disk."""
    identity = {name: value for name, value in card.identity.items() if name not in ("format", "compression")}
    return {**identity, "images without labels": skipped}


def _known_teacher(teacher: Teacher) -> dict[str, Any]:
    preprocessing = teacher.preprocessing.model_dump(mode="json")
    return {"name": teacher.name, "weights": teacher.weights_sha256, "preprocessing": preprocessing}
