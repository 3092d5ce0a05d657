"""`softlabels pack`."""

from __future__ import annotations

from pathlib import Path

from softlabels.core.progress import Terminal, duration, plural, rate, size
from softlabels.datasets import Pack, create_pack
from softlabels.dumping import pack as packing
from softlabels.dumping.config import PackConfig
from softlabels.dumping.pack import PackReport
from softlabels.errors import DataError
from softlabels.loading.opening import check_place, describe, limited, offering_to_skip, open_data
from softlabels.loading.provenance import versions
from softlabels.loading.settings import share_of


def run_pack(config: PackConfig, terminal: Terminal) -> PackReport:
    """Write the shards of a pack that are missing, or say what they will cost, or check those that are there."""
    if config.check:
        return _checked(config, terminal)
    images = describe(open_data(config.data, config.data_dir, config.split), terminal)
    images = limited(images, config.limit, 0)
    if config.dry_run:
        for line in packing.plan_pack(images, config.packing, config.rows_per_shard, threads=config.pool).lines():
            terminal.say(line)
        return PackReport(0, 0, 0, 0.0)
    out, made = Path(config.out), versions(images)
    check_place(out, "pack", images)
    target = create_pack(out, images, config.packing, config.rows_per_shard, made, config.format)
    with offering_to_skip(config.on_bad_image):
        report = packing.pack(
            images,
            target,
            part=share_of(config.part),
            threads=config.pool,
            skip_bad_images=config.on_bad_image == "skip",
            terminal=terminal,
        )
    for key, reason in list(report.skipped.items())[:10]:
        terminal.say(f"packed as unreadable {key}: {reason}")
    _say(report, target.missing(), config, terminal)
    return report


def _say(report: PackReport, missing: list[int], config: PackConfig, terminal: Terminal) -> None:
    if not report.shards:
        terminal.say(f"all shards of this part are in {config.out} already; nothing to do")
    else:
        terminal.say(
            f"wrote {plural(report.shards, 'shard')}, {plural(report.images, 'image')}, {size(report.bytes)} in "
            f"{duration(report.seconds)} ({rate(report.images / max(report.seconds, 1e-9))} images/s)"
        )
    terminal.say(
        f"{plural(len(missing), 'shard')} of other parts still missing"
        if missing
        else f"use it as `data=pack:{config.out}`"
    )


def _checked(config: PackConfig, terminal: Terminal) -> PackReport:
    images = Pack(root=config.out, split=config.split).open()
    problems = images.problems()
    if problems:
        more = f"; and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; remove the damaged files and run the same `softlabels pack` again")
    terminal.say(
        f"{images.name}: {plural(len(images), 'image')} in {plural(images.manifest.shards, 'shard')}, all checksums "
        f"match"
    )
    return PackReport(0, 0, 0, 0.0)
