"""`softlabels pack`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from softlabels.core.progress import Terminal
from softlabels.datasets import Pack, create_pack
from softlabels.dumping import pack as packing
from softlabels.dumping.config import PackConfig
from softlabels.dumping.pack import PackCheck, PackPlan, PackReport
from softlabels.errors import DataError
from softlabels.loading.opening import check_place, describe, limited, offering_to_skip, open_data
from softlabels.loading.provenance import versions
from softlabels.loading.settings import share_of


def run_pack(config: PackConfig, terminal: Terminal) -> PackReport | PackPlan | PackCheck:
    """Write the shards of a pack that are missing, or say what they will cost, or check those that are there."""
    if config.check:
        return _checked(config)
    images = describe(open_data(config.data, config.data_dir, config.split), terminal)
    images = limited(images, config.limit, 0)
    if config.dry_run:
        return packing.plan_pack(images, config.packing, config.rows_per_shard, threads=config.pool)
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
    return replace(report, missing=len(target.missing()), out=config.out)


def pack_text(done: PackReport | PackPlan | PackCheck) -> str:
    """What `run_pack` returns, in lines for a person."""
    return "\n".join(done.lines())


def _checked(config: PackConfig) -> PackCheck:
    images = Pack(root=config.out, split=config.split).open()
    problems = images.problems()
    if problems:
        more = f"; and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; remove the damaged files and run the same `softlabels pack` again")
    return PackCheck(images.name, len(images), images.manifest.shards)
