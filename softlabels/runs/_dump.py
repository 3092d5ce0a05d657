"""`softlabels plan` and `softlabels dump`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from softlabels import dumping, planning
from softlabels._philox import permutation
from softlabels.codecs import CODECS, Codec
from softlabels.datasets import Images, content_checksums, open_images
from softlabels.dumping import DumpReport
from softlabels.journal import Journal, duration
from softlabels.planning import Plan
from softlabels.runs._configs import DumpConfig
from softlabels.runs._folder import save_config
from softlabels.runs._parts import alias, limited, open_teacher, teacher_specs
from softlabels.samples import Pictures, frame
from softlabels.store import Store, TeacherCard, TeacherLabels, create, open_store
from softlabels.teachers import Teacher
from softlabels.views import RECIPES, Recipe

CONTENT_CHECKS = 64
"""Images whose content is compared with the store's checksums when a dump goes on."""


def run_plan(config: DumpConfig, journal: Journal) -> list[Plan]:
    """What a dump would hold and cost, per teacher; writes nothing."""
    images = _images(config)
    codec: Codec = CODECS.make(config.codec)
    plans = [_plan(config, teacher, images, codec) for teacher in _teachers(config, images, journal)]
    for line in (line for each in plans for line in each.lines()):
        journal.say(line)
    return plans


def run_dump(config: DumpConfig, journal: Journal) -> list[DumpReport]:
    """Label every picture whose shard is missing, teacher by teacher."""
    if config.dry_run:
        run_plan(config, journal)
        return []
    images = _images(config)
    codec: Codec = CODECS.make(config.codec)
    reports = []
    for teacher in _teachers(config, images, journal):
        store = make_store(
            config.out,
            images,
            RECIPES.make(config.recipe),
            seed=config.seed,
            classes=teacher.classes,
            rows_per_shard=config.rows_per_shard,
            limit=config.limit,
        )
        labels = store.prepare(teacher.name, _card(config, images, teacher, codec))
        report = dumping.dump(
            _pictures(config, images, teacher),
            teacher,
            codec,
            labels,
            batch_size=config.batch_size,
            workers=config.processes(images),
            part=config.share,
            skip_bad_images=config.on_bad_image == "skip",
            journal=journal,
        )
        if report.shards:
            save_config(config, Path(config.out) / f"dump-{teacher.name}.yaml")
        _say(report, labels, config, journal)
        reports.append(report)
    return reports


def make_store(
    root: str | os.PathLike[str],
    images: Images,
    recipe: Recipe,
    *,
    seed: int,
    classes: int,
    rows_per_shard: int,
    limit: int | None = None,
) -> Store:
    """The store of these images at `root`: made, or opened when it is there and of the same data set and views.

    Raises:
        StoreError: another store is there (the difference is shown), or it cannot be written.
    """
    return create(
        root,
        data=dict(images.spec) | ({"limit": limit} if limit is not None else {}),
        images=_table(Path(root), images),
        class_names=images.classes,
        classes=classes,
        recipe=recipe.model_dump(mode="json"),
        seed=seed,
        versions=versions(images),
        rows_per_shard=rows_per_shard,
    )


def _table(root: Path, images: Images) -> pa.Table:
    """Keys, labels and content checksums of the images.

    Where a store of the same keys is there already, its checksums stand for the contents but for a few that are
    compared, since reading every image again would make "nothing to do" take hours; `verify` compares them all.
    """
    columns = {"key": images.keys, "label": images.labels}
    if (root / "manifest.json").exists():
        store = open_store(root)
        if store.keys == images.keys:
            few = permutation(len(images))[:CONTENT_CHECKS]
            checksums = store.checksums.copy()
            checksums[few] = content_checksums(images, few)
            return pa.table({**columns, "checksum": checksums})
    return pa.table({**columns, "checksum": content_checksums(images)})


def card(
    *,
    spec: Mapping[str, object],
    weights_sha256: str,
    licence: str | None,
    preprocessing: Mapping[str, object],
    codec: Codec,
    classes: int,
    format: str,
    images: Images,
) -> TeacherCard:
    """What the store keeps of a teacher and of how its labels are coded."""
    return TeacherCard(
        spec=dict(spec),
        weights_sha256=weights_sha256,
        licence=licence,
        preprocessing=dict(preprocessing),
        classes=classes,
        format=format,
        **dumping.stored_as(codec, classes),
        versions=versions(images),
    )


def versions(images: Images) -> dict[str, str]:
    """What the pixels and logits of these images depend on beside the weights."""
    names = ("softlabels", "torch", "torchvision", "numpy")
    return {"decoder": images.decoder, **{name: version(name) for name in names}}


def _images(config: DumpConfig) -> Images:
    return limited(open_images(config.data, data_dir=config.data_dir, split=config.split), config.limit, config.seed)


def _teachers(config: DumpConfig, images: Images, journal: Journal) -> Iterator[Teacher]:
    """One teacher after the other, so that only one is in memory."""
    for spec in teacher_specs(config.teacher, config.weights):
        if alias(spec):
            journal.say(f"teacher {spec.slug}{alias(spec)}")
        yield open_teacher(spec, config, images)


def _pictures(config: DumpConfig, images: Images, teacher: Teacher) -> Pictures:
    return Pictures(images, RECIPES.make(config.recipe), config.seed, config.views, frame(teacher.preprocessing))


def _card(config: DumpConfig, images: Images, teacher: Teacher, codec: Codec) -> TeacherCard:
    return card(
        spec=teacher.spec,
        weights_sha256=teacher.weights_sha256,
        licence=teacher.licence,
        preprocessing=teacher.preprocessing.model_dump(mode="json"),
        codec=codec,
        classes=teacher.classes,
        format=config.format,
        images=images,
    )


def _plan(config: DumpConfig, teacher: Teacher, images: Images, codec: Codec) -> Plan:
    return planning.plan(
        teacher,
        _pictures(config, images, teacher),
        codec,
        rows_per_shard=config.rows_per_shard,
        missing=_missing(config, teacher),
        batch_size=config.batch_size,
        workers=config.processes(images),
    )


def _missing(config: DumpConfig, teacher: Teacher) -> tuple[int, int] | None:
    """(shards, labels) that the store at `out` lacks; None when there is no store or no such teacher yet."""
    if not (Path(config.out) / "manifest.json").exists():
        return None
    store = open_store(config.out)
    if teacher.name not in store.teachers:
        return None
    shards = store.teacher(teacher.name).missing(config.views, config.share)
    return len(shards), sum(dumping.count(shard) for shard in shards)


def _say(report: DumpReport, labels: TeacherLabels, config: DumpConfig, journal: Journal) -> None:
    for key, reason in list(report.skipped.items())[:10]:
        journal.say(f"skipped {key}: {reason}")
    if len(report.skipped) > 10:
        journal.say(f"and {len(report.skipped) - 10:,} more images skipped")
    if report.shards == 0:
        journal.say(f"{report.teacher}: all shards of {config.views} views are in {config.out} already; nothing to do")
        return
    rate = report.pictures / max(report.seconds, 1e-9)
    journal.say(
        f"{report.teacher}: wrote {report.shards:,} shards, {report.pictures:,} labels in "
        f"{duration(report.seconds)} ({rate:,.0f} pictures/s); {labels.views} views complete in {config.out}"
    )
