"""`softlabels train`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softlabels import verifying
from softlabels._files import write_json
from softlabels.config import validated
from softlabels.datasets import Images, open_images, subset
from softlabels.errors import ConfigError, DataError, StoreError
from softlabels.evaluating import Score, classifier, evaluate
from softlabels.journal import Journal, duration
from softlabels.labels import Labels, open_labels
from softlabels.losses import BLENDS, Objective
from softlabels.networks import Preprocessing, parameter_count, write_weights
from softlabels.runs._configs import TrainConfig
from softlabels.runs._folder import begin, finished
from softlabels.runs._parts import alias, label_images, limited, open_teacher, teacher_specs
from softlabels.samples import LabelledPictures, Pictures, frame
from softlabels.students import student_spec
from softlabels.training import Lesson, LiveTargets, NoTargets, StoredTargets, TrainReport, join, train
from softlabels.views import RECIPES

PIXEL_CHECKS = 4
"""Rendered views that are compared with the dump's digests before the first step."""

CHECKED_BYTES = 1 << 30
"""Bytes of labels whose checksums are compared before training; `softlabels verify` compares all."""

DEFAULT_RECIPE = "crop-flip"
"""Views to train on when no store says which."""


def run_train(config: TrainConfig, journal: Journal) -> dict[str, Any]:
    """Train a student; returns the run's result, which is also written to its folder as the last thing."""
    spec = student_spec(config.student, weights=config.weights, size=config.size)
    folder = Path(config.out or f"runs/{spec.slug}")
    done = finished(folder, config)
    if done is not None:
        journal.say(f"{folder} is done already; nothing to do")
        return done
    device, preprocessing = config.torch_device(), spec.preprocessing
    lesson, classes, notes = _lesson(config, preprocessing)
    images = lesson.samples.pictures.images
    network = spec.build(classes, seed=config.seed)
    metadata = spec.metadata(classes, images.classes)
    header = [
        f"student {spec.slug}{alias(spec)}: {parameter_count(network):,} parameters, {classes} classes, pictures "
        f"of {preprocessing.size} px; {len(images):,} images, effective batch {config.batch_size * config.accumulate}",
        *notes,
        *lesson.objective.describe(),
    ]
    score = _scoring(config, preprocessing, images, classes, device, journal)
    begin(folder, config, header)
    for line in header:
        journal.say(line)

    def keep(name: str, kept: nn.Module, reached: Score | None) -> None:
        scores = {"top1": f"{reached.top1:.6f}"} if reached else {}
        write_weights(folder / f"{name}.safetensors", kept.state_dict(), {**metadata, **scores})

    report = train(
        network,
        preprocessing,
        lesson,
        config.settings,
        folder=folder,
        device=device,
        amp=config.dtype,
        workers=config.processes(images),
        score=score,
        keep=keep,
        journal=journal,
    )
    result = _result(report, network, lesson, folder)
    write_json(folder / "result.json", result)
    _say(result, folder, journal)
    return result


def _lesson(config: TrainConfig, preprocessing: Preprocessing) -> tuple[Lesson, int, list[str]]:
    """What is learnt, the number of classes, and lines about it for the header."""
    if config.labels and config.teacher:
        raise ConfigError("--labels and --teacher exclude each other: stored labels need no teacher in the loop")
    if config.labels:
        return _stored_lesson(config, preprocessing)
    images = limited(open_images(config.data or "digits", data_dir=config.data_dir), config.limit, config.seed)
    recipe = RECIPES.make(config.recipe or DEFAULT_RECIPE)
    views = config.epochs * config.views_per_image  # a new view whenever an image comes
    pictures = Pictures(images, recipe, config.seed, views, frame(preprocessing))
    note = f"views of recipe {json.dumps(recipe.model_dump(mode='json')['steps'])}"
    if config.teacher:
        targets = _live_targets(config, pictures)
        classes = targets.teachers[0].classes
        names = ", ".join(teacher.name for teacher in targets.teachers)
        return Lesson(LabelledPictures(pictures), targets, _objective(config, 0.0)), classes, [f"{note}, {names} live"]
    if not (images.labels >= 0).any():
        raise DataError(f"{images.name} has no hard labels to learn from; give --labels STORE")
    return Lesson(LabelledPictures(pictures), NoTargets(), _objective(config, 1.0)), len(images.classes), [note]


def _live_targets(config: TrainConfig, pictures: Pictures) -> LiveTargets:
    specs = teacher_specs(config.teacher, config.teacher_weights)
    teachers = [open_teacher(spec, config, pictures.images) for spec in specs]
    seen = [
        Pictures(pictures.images, pictures.recipe, pictures.seed, pictures.views, frame(teacher.preprocessing))
        for teacher in teachers
    ]
    return LiveTargets(teachers, seen, pictures.frame, BLENDS.make(config.blend), config.temperature)


def _stored_lesson(config: TrainConfig, preprocessing: Preprocessing) -> tuple[Lesson, int, list[str]]:
    if config.recipe is not None:
        raise ConfigError("--recipe cannot be chosen with --labels: the views are the ones that the teacher saw")
    labels = open_labels(config.labels or "")
    teachers = labels.select(config.teachers)
    for name in teachers:
        _check_complete(labels, name, config.incomplete)
        labels.codec(name).check_temperature(config.temperature)
        labels.of(name).check(budget_bytes=CHECKED_BYTES)
    images = limited(label_images(labels, config.data, config.data_dir), config.limit, config.seed)
    joined = join(images.keys, labels, teachers, leave_out=config.unlabelled == "leave-out")
    notes = [
        f"labels {labels.store.root}: {labels.views} views of {len(labels):,} images by {', '.join(teachers)}, recipe "
        f"{json.dumps(labels.recipe.model_dump(mode='json')['steps'])}, seed {labels.seed}"
    ]
    if joined.without:
        notes.append(f"{joined.without:,} images have no labels and are left out")
        images = subset(images, joined.rows)
    _check_pixels(labels, images)
    pictures = Pictures(images, labels.recipe, labels.seed, labels.views, frame(preprocessing))
    samples = LabelledPictures(pictures, labels, joined.label_rows, teachers)
    targets = StoredTargets(labels, joined.label_rows, BLENDS.make(config.blend), config.temperature)
    return Lesson(samples, targets, _objective(config, 0.0)), labels.classes, notes


def _check_complete(labels: Labels, teacher: str, incomplete: bool) -> None:
    each = labels.of(teacher)
    begun = max((shard.stop_view for shard in each.shards), default=0)
    if each.views == 0:
        raise StoreError(
            f"{labels.store.root} has no complete view of {teacher} yet ({len(each.shards)} shards are there); run the "
            f"dump again to go on"
        )
    if each.views < begun and not incomplete:
        raise StoreError(
            f"{labels.store.root} is incomplete: {teacher} has {each.views} of {begun} views for all images; run the "
            f"dump again to go on, or train on the finished ones: --incomplete"
        )


def _check_pixels(labels: Labels, images: Images) -> None:
    _, problems = verifying.compare_digests(labels, images, most=PIXEL_CHECKS)
    if problems:
        raise StoreError(f"{problems[0]}; `softlabels verify` lists every difference")


def _objective(config: TrainConfig, alpha: float) -> Objective:
    given = {
        "alpha": alpha if config.alpha is None else config.alpha,
        "loss": config.loss,
        "temperature": config.temperature,
        "label_smoothing": config.label_smoothing,
    }
    return validated(Objective, given, "training objective")


def _scoring(
    config: TrainConfig,
    preprocessing: Preprocessing,
    images: Images,
    classes: int,
    device: torch.device,
    journal: Journal,
) -> Callable[[nn.Module], Score] | None:
    """What evaluates the student: on the held-out side of the data set, or what the user names; None without either."""
    tested = _held_out(config, images, journal)
    if tested is None:
        return None
    if len(tested.classes) != classes:
        raise ConfigError(f"{tested.name} has {len(tested.classes)} classes, the student {classes}; choose --eval-data")
    pictures = Pictures(tested, RECIPES.make("clean"), 0, 1, frame(preprocessing))
    batch_size, workers = max(config.batch_size, 256), config.processes(tested)

    def score(network: nn.Module) -> Score:
        classify = classifier(network, preprocessing, device, config.dtype)
        return evaluate(classify, pictures, batch_size=batch_size, workers=workers)

    return score


def _held_out(config: TrainConfig, images: Images, journal: Journal) -> Images | None:
    if config.eval_data is not None:
        return open_images(config.eval_data, data_dir=config.data_dir, split="test")
    try:
        tested = open_images(dict(images.spec), data_dir=config.data_dir, split="test")
    except DataError as problem:
        journal.say(f"no evaluation: {problem}; name images with --eval-data")
        return None
    if _same_images(tested, images):
        journal.say(f"no evaluation: {images.name} has no held-out side; name images with --eval-data")
        return None
    return tested


def _same_images(some: Images, others: Images) -> bool:
    """Whether the first images of both are the same: one folder opened twice."""
    few = range(min(4, len(some), len(others)))
    return all(some.keys[row] == others.keys[row] and some.content(row) == others.content(row) for row in few)


def _result(report: TrainReport, network: nn.Module, lesson: Lesson, folder: Path) -> dict[str, Any]:
    labels = lesson.samples.labels
    return {
        "best": asdict(report.best) if report.best else None,
        "last": asdict(report.last) if report.last else None,
        "parameters": parameter_count(network),
        "images": len(lesson.samples.pictures.images),
        "steps": report.steps,
        "seconds": report.seconds,
        "pictures_per_second": report.pictures_per_second,
        "label_bytes": sum(labels.of(name).nbytes for name in lesson.samples.teachers) if labels is not None else 0,
        "folder": str(folder),
    }


def _say(result: Mapping[str, Any], folder: Path, journal: Journal) -> None:
    best, last = result["best"], result["last"]
    scores = f"top-1 {last['top1']:.2%} at the end, {best['top1']:.2%} at best; " if best and last else ""
    journal.say(
        f"{scores}{result['pictures_per_second']:,.0f} pictures/s, {duration(result['seconds'])}; student in "
        f"{folder / 'best.safetensors'}"
    )
