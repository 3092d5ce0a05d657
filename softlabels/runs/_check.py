"""`softlabels eval` and `softlabels verify`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from softlabels import verifying
from softlabels.config import read_yaml, without_settings
from softlabels.datasets import DATASETS, Images
from softlabels.errors import DataError, ModelError, StoreError
from softlabels.evaluating import Score, evaluate
from softlabels.journal import Journal, plural
from softlabels.labels import Labels, open_labels
from softlabels.networks import weights_file
from softlabels.orders import spread
from softlabels.pictures import Pictures, frame
from softlabels.records import IMPORTED
from softlabels.runs._configs import EvalConfig, VerifyConfig
from softlabels.runs._parts import describe, label_images, limited, open_data, open_teacher, reopening
from softlabels.teachers import teacher_spec
from softlabels.verifying import Findings
from softlabels.views import RECIPES


def run_eval(config: EvalConfig, journal: Journal) -> Score:
    """Score any network on the clean view of each labelled image."""
    named, data, data_dir = config.student, config.data, config.data_dir
    if data is None:
        data, data_dir = _data_of_run(named, data_dir)
    if isinstance(named, str) and "/" in named and ":" not in named and not Path(named).exists():
        raise ModelError(
            f"no such file or folder: {named}; give a run's folder, a file of weights, or a network's name"
        )
    if isinstance(named, str) and Path(named).exists():
        named = f"file:{named}"
    spec = teacher_spec(named, config.weights, size=config.size)
    images = describe(open_data(data, data_dir, config.split), journal)
    images = limited(images, config.limit, 0)
    if not (images.labels >= 0).any():
        raise DataError(f"{images.name} has no hard labels to score against; give --data with labels")
    network = open_teacher(
        spec, config, images, clean=True, class_map=config.class_map, role="student", say=journal.say
    )
    pictures = Pictures(images, RECIPES.make("clean"), 0, 1, frame(network.preprocessing))
    score = evaluate(network.logits, pictures, batch_size=config.batch_size, workers=config.helpers(images))
    journal.say(
        f"{network.name}, {_scored_weights(spec)}, on {plural(score.images, 'image')}: top-1 {score.top1:.2%}, top-5 "
        f"{score.top5:.2%}, cross-entropy {score.cross_entropy:.4f}"
    )
    return score


def _scored_weights(spec: Any) -> str:
    """Which weights of a network are scored; a run's folder means those of its best epoch."""
    if spec.kind == "file":
        file = weights_file(spec.path)
        last = file.with_name("last.safetensors")
        return f"weights {file}" + (f" (a report has {last.name})" if file != last and last.exists() else "")
    return f"weights {spec.weights or ('its own' if spec.kind == 'function' else 'default')}"


def _data_of_run(student: Any, data_dir: str | None) -> tuple[Any, str | None]:
    """The data set that a run was trained on, as its config says, and where it lies; (None, ...) where it is no run."""
    folder = Path(student).expanduser() if isinstance(student, str) else None
    if folder is not None and folder.is_file():
        folder = folder.parent
    if folder is None or not (folder / "config.yaml").is_file():
        return None, data_dir
    told = read_yaml(folder / "config.yaml")
    data, labels = told.get("eval_data") or told.get("data"), told.get("labels")
    if data is None and isinstance(labels, str):
        with contextlib.suppress(StoreError):
            data = {name: value for name, value in open_labels(labels).store.manifest.data.items() if name != "limit"}
    kind = data.get("kind") if isinstance(data, dict) else str(data).partition(":")[0]
    if kind == "function" or not (kind in DATASETS.names or Path(without_settings(str(data))).is_dir()):
        return None, data_dir  # files never choose code that is then run
    return data, data_dir or told.get("data_dir")


def run_verify(config: VerifyConfig, journal: Journal) -> Findings:
    """Check a store's files, then its images, then its teachers; each stage needs the one before to be sound."""
    labels = open_labels(config.labels, cache_dir=config.cache_dir, cache_size=config.cache_size)
    findings = verifying.check_store(labels)
    if findings.ok and not config.shards_only:
        images = label_images(labels, config.data, config.data_dir)
        verifying.check_images(findings, labels, images, part=config.data is not None)
        if findings.ok and config.samples:
            _rerun(findings, config, labels, images)
    for line in findings.checks + findings.notes:
        journal.say(line)
    for each in findings.agreements:
        journal.say(
            f"{each.teacher}: mean KL {each.mean_kl:.2e}, largest {each.largest_kl:.2e}, top-1 agree {each.top1:.1%} "
            f"on {plural(each.labels, 'view')} at temperature {each.temperature:.3g}; rounding explains a mean KL up "
            f"to {each.explained.kl:.1e}"
        )
    return findings


def _rerun(findings: Findings, config: VerifyConfig, labels: Labels, images: Images) -> None:
    addresses = labels.rows(images.keys)
    reopen = reopening(config, labels, images, "--samples 0 to leave this check out")
    for name in labels.teachers:
        if labels.of(name).card.spec.get("kind") == IMPORTED:
            findings.checks.append(f"{name}: imported, so its teacher is not run again")
            continue
        # Images that could not be read have no label, and most likely cannot be shown to the teacher now either.
        known = np.flatnonzero(labels.of(name).labelled(addresses))
        picks, views = spread(len(known), labels.of(name).views, config.samples)
        if not len(picks):
            findings.checks.append(f"{name}: labels none of these images, so it is not run again")
            continue
        rows, teacher = known[picks], reopen(name)
        other = verifying.check_teacher(labels, teacher, name)
        findings.check(f"{name}: the teacher is as its card says", other)
        if not other:
            precision = config.amp or "fp32"
            agreement = verifying.compare_teacher(labels, images, teacher, rows, views, name, precision)
            findings.enter(agreement, config.largest_kl)
