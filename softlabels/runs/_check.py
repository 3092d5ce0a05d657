"""`softlabels eval` and `softlabels verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from softlabels import verifying
from softlabels.datasets import Images, open_images
from softlabels.errors import DataError
from softlabels.evaluating import Score, evaluate
from softlabels.journal import Journal, plural
from softlabels.labels import Labels, open_labels
from softlabels.networks import weights_file
from softlabels.orders import spread
from softlabels.pictures import Pictures, frame
from softlabels.records import IMPORTED
from softlabels.runs._configs import EvalConfig, VerifyConfig
from softlabels.runs._parts import label_images, limited, open_teacher, reopening
from softlabels.teachers import teacher_spec
from softlabels.verifying import Findings
from softlabels.views import RECIPES


def run_eval(config: EvalConfig, journal: Journal) -> Score:
    """Score any network on the clean view of each labelled image."""
    named = config.student
    if isinstance(named, str) and Path(named).exists():
        named = f"file:{named}"
    spec = teacher_spec(named, config.weights, size=config.size)
    images = open_images(config.data, data_dir=config.data_dir, split=config.split)
    images = limited(images, config.limit, 0)
    if not (images.labels >= 0).any():
        raise DataError(f"{images.name} has no hard labels to score against; give --data with labels")
    network = open_teacher(spec, config, images, clean=True, role="student")
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
