"""`softlabels repair`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from softlabels.core.progress import Terminal, plural
from softlabels.datasets import Images, subset
from softlabels.dumping.dump import StoredOutput, dump_shards
from softlabels.dumping.run import saved_config, saved_import
from softlabels.errors import DataError
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.opening import label_images, matched, named_teachers, offering_to_skip, reopening
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.store import Shard
from softlabels.upkeep import repair as repairing
from softlabels.upkeep.config import RepairConfig
from softlabels.upkeep.repair import RepairReport, Repairs


def run_repair(config: RepairConfig, terminal: Terminal) -> Repairs:
    """Find the damaged shards of every teacher; dump them again, or remove them and say what does.

    What an earlier repair removed is dumped again as well; so the same call finishes what a killed one began.
    """
    labels = open_labels(config.labels, cache_dir=config.cache_dir, cache_size=config.cache_size)
    named_teachers(config, labels)
    redumper = _Redumper(config, labels)
    reports = Repairs()
    for name in labels.store.folders:
        each = labels.of(name)
        with each.writing():
            damaged = repairing.find_damage(each)
            removed = repairing.find_removed(each, damaged)
            todo = [*damaged, *removed]
            if todo and config.redump:
                redumper.redump(name, todo, terminal)
            else:
                repairing.remove(each, damaged)
            missing = [shard for shard in repairing.find_removed(each, ()) if config.redump or shard not in damaged]
        names = (tuple(shard.name for shard in shards) for shards in (damaged, removed, missing))
        reports.append(RepairReport(name, next(names), bool(todo) and config.redump, *names))
        reports.lines += _lines(reports[-1], damaged, labels)
        if missing:
            reports.problems.append(_missing(reports[-1], missing, labels))
    reports.problems += labels.store.orphans
    return reports


def repair_text(reports: Repairs) -> str:
    """What `run_repair` returns, in lines for a person; problems that are left are printed as errors."""
    return "\n".join(reports.lines)


class _Redumper:
    """What dumping again needs, opened when the first damage is found."""

    def __init__(self, config: RepairConfig, labels: Labels) -> None:
        self._config, self._labels = config, labels

    @cached_property
    def images(self) -> Images:
        """The data set in the order of the store's rows."""
        config, store = self._config, self._labels.store
        images = label_images(self._labels, config.data, config.data_dir)
        rows, _ = matched(store, images)
        if (rows < 0).any():
            absent = store.keys[int((rows < 0).argmax())].as_py()
            raise DataError(f"{images.name} lacks {(rows < 0).sum():,} labelled images, the first is {absent!r}")
        return subset(images, rows)

    def redump(self, name: str, shards: list[Shard], terminal: Terminal) -> None:
        """Dump these shards of a teacher again, or of another output of it."""
        config, labels = self._config, self._labels
        repairing.check_contents(labels.store, self.images, shards)
        reopen = reopening(config, labels, self.images, "leave `redump=True` out to only remove the damage")
        teacher, output = reopen(name.partition("@")[0]), StoredOutput(labels.codec(name), labels.of(name))
        views = max(shard.stop_view for shard in shards)
        # A shard goes when its successor is complete; a kill between the two leaves a note for the next repair.
        with offering_to_skip(config.on_bad_image):
            dump_shards(
                ViewDataset.of_store(labels.store, self.images, views, image_spec(teacher.preprocessing)),
                teacher,
                {shard: [output] for shard in shards},
                batch_size=config.batch_size,
                workers=config.helpers(self.images),
                skip_bad_images=config.on_bad_image == "skip",
                terminal=terminal,
            )


def _lines(report: RepairReport, damaged: list[Shard], labels: Labels) -> list[str]:
    lines = []
    if report.redumped and report.removed:
        lines.append(f"{report.teacher}: dumped {len(report.removed):,} removed shards again: {_named(report.removed)}")
    if not damaged:
        return lines or [f"{report.teacher}: {plural(len(labels.of(report.teacher).shards), 'shard')}, no damage"]
    named = _named(report.damaged)
    if report.redumped:
        return [*lines, f"{report.teacher}: dumped {plural(len(damaged), 'damaged shard')} again: {named}"]
    return [
        f"{report.teacher}: removed {plural(len(damaged), 'damaged shard')}: {named}",
        f"  {_dump_command(report.teacher, damaged, labels)}",
    ]


def _missing(report: RepairReport, missing: list[Shard], labels: Labels) -> str:
    return (
        f"{report.teacher}: {len(missing):,} shards that a repair removed are still missing: {_named(report.missing)}; "
        f"`softlabels repair` with `redump=True` makes them again, or {_dump_command(report.teacher, missing, labels)}"
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def _dump_command(teacher: str, damaged: list[Shard], labels: Labels) -> str:
    root, each = labels.store.root, labels.of(teacher)
    views = max(shard.stop_view for shard in (*each.shards, *damaged))
    others = len(each.missing(views)) - len(damaged)
    besides = f" (and {others:,} others that were missing before)" if others > 0 else ""
    saved = Path(root) / saved_config(teacher.partition("@")[0])
    if saved.exists() and root == Path(labels.store.location):
        command = ["softlabels", "dump", "--config", saved, "--out", root, "--views", views, "--part", "0/1"]
        return f"this dumps them again{besides}: {shlex.join(str(word) for word in command)}"
    where = labels.store.location
    if (Path(root) / saved_import(teacher)).exists():
        return f"`softlabels import` with the settings in {root / saved_import(teacher)} makes them again{besides}"
    return f"the command that made {where} makes them again{besides}: dump (with `views={views}`), convert or merge"
