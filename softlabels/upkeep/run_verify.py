"""`softlabels verify`."""

from __future__ import annotations

import numpy as np

from softlabels.core.progress import Terminal, percent, plural
from softlabels.datasets import Images
from softlabels.errors import ModelError
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.opening import label_images, named_teachers, reopening
from softlabels.loading.records import IMPORTED
from softlabels.loading.samplers import spread
from softlabels.upkeep import verify as verifying
from softlabels.upkeep.config import VerifyConfig
from softlabels.upkeep.verify import Findings, RerunAgreement


def run_verify(config: VerifyConfig, terminal: Terminal) -> Findings:  # noqa: ARG001
    """Check a store's files, then its images, then its teachers; each stage needs the one before to be sound."""
    labels = open_labels(config.labels, cache_dir=config.cache_dir, cache_size=config.cache_size)
    if not config.shards_only:
        named_teachers(config, labels)
    findings = verifying.check_store(labels)
    if findings.ok and not config.shards_only:
        images = label_images(labels, config.data, config.data_dir)
        verifying.check_images(findings, labels, images, part=config.data is not None)
        if findings.ok and config.samples:
            _rerun(findings, config, labels, images)
    return findings


def verify_text(findings: Findings) -> str:
    """What was checked and what came of it, in lines for a person; problems are printed as errors."""
    lines = [*findings.checks, *findings.notes, *(_agreement(each) for each in findings.agreements)]
    return "\n".join([*lines, *(["no problem was found"] if findings.ok else [])])


def _agreement(each: RerunAgreement) -> str:
    # A mean of float64 terms may lie below 0 by rounding, which no divergence can.
    mean, largest, explained = (max(kl, 0.0) for kl in (each.mean_kl, each.largest_kl, each.explained.kl))
    named = each.stored_top1
    right = "" if named is None else f"; the stored labels name the hard label of {percent(named, 1)} of these"
    return (
        f"{each.teacher}: mean KL {mean:.2e}, largest {largest:.2e}, top-1 agree {percent(each.top1, 1)} on "
        f"{plural(each.labels, 'view')} at temperature {each.temperature:.3g}; rounding explains a mean KL up to "
        f"{explained:.1e}{right}"
    )


def _rerun(findings: Findings, config: VerifyConfig, labels: Labels, images: Images) -> None:
    addresses = labels.rows(images.keys)
    reopen = reopening(config, labels, images, "`samples=0` to leave this check out")
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
        try:
            rows, teacher = known[picks], reopen(name)
        except ModelError as problem:
            findings.problems.append(f"{name} is not run again: {problem}, or leave this check out with `samples=0`")
            continue
        other = verifying.check_teacher(labels, teacher, name)
        findings.check(f"{name}: the teacher is as its card says", other)
        if not other:
            precision = config.amp or "fp32"
            agreement = verifying.compare_teacher(labels, images, teacher, rows, views, name, precision)
            findings.enter(agreement, config.largest_kl)
