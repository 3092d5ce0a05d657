"""`softlabels verify`."""

from __future__ import annotations

import numpy as np

from softlabels.core.progress import Terminal, plural
from softlabels.datasets import Images
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.opening import label_images, named_teachers, reopening
from softlabels.loading.records import IMPORTED
from softlabels.loading.samplers import spread
from softlabels.upkeep import verify as verifying
from softlabels.upkeep.config import VerifyConfig
from softlabels.upkeep.verify import Findings


def run_verify(config: VerifyConfig, terminal: Terminal) -> Findings:
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
    for line in findings.checks + findings.notes:
        terminal.say(line)
    for each in findings.agreements:
        terminal.say(
            f"{each.teacher}: mean KL {each.mean_kl:.2e}, largest {each.largest_kl:.2e}, top-1 agree {each.top1:.1%} "
            f"on {plural(each.labels, 'view')} at temperature {each.temperature:.3g}; rounding explains a mean KL up "
            f"to {each.explained.kl:.1e}"
        )
    return findings


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
        rows, teacher = known[picks], reopen(name)
        other = verifying.check_teacher(labels, teacher, name)
        findings.check(f"{name}: the teacher is as its card says", other)
        if not other:
            precision = config.amp or "fp32"
            agreement = verifying.compare_teacher(labels, images, teacher, rows, views, name, precision)
            findings.enter(agreement, config.largest_kl)
