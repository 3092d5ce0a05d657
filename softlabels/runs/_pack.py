"""`softlabels pack`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from softlabels import packing
from softlabels.datasets import Pack, PackFormat, Packing, create_pack, open_images
from softlabels.errors import DataError
from softlabels.journal import Journal, duration, size
from softlabels.packing import PackReport
from softlabels.provenance import versions
from softlabels.runs._configs import share_of
from softlabels.runs._parts import limited
from softlabels.store import is_url


class PackConfig(BaseModel):
    """What `softlabels pack` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Any = Field("digits", description="data set to pack: all that --data takes elsewhere")
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, description="only so many images, picked by seed 0")
    max_side: int = Field(320, ge=0, description="longer sides are shrunk to this, never enlarged; 0 leaves them")
    quality: int | Literal["raw"] = Field(90, description="of JPEG, 1 to 100, or raw: pixels that need no decoder")
    format: PackFormat = Field("hdf5", description="format of the shards")
    out: str = Field("pack/", description="folder of the pack")
    rows_per_shard: int = Field(512, ge=1, description="images per shard: what a crash can cost")
    part: str = Field("0/1", description="I/N: write every N-th shard only, from the I-th")
    threads: int | Literal["auto"] = Field("auto", description="threads that decode and encode; auto: one per core")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="stop at an image that cannot be read, or pack it as unreadable"
    )
    dry_run: bool = Field(False, description="only say how large the pack will be and how long it will take")
    check: bool = Field(False, description="write nothing; read every byte of the pack at --out and compare checksums")

    @field_validator("part")
    @classmethod
    def _is_a_part(cls, text: str) -> str:
        share_of(text)
        return text

    @field_validator("out")
    @classmethod
    def _is_a_folder(cls, text: str) -> str:
        if is_url(text):
            raise ValueError("packs are mapped into memory, so they lie in a folder of this machine, not behind a URL")
        return text

    @field_validator("quality", mode="before")
    @classmethod
    def _is_a_quality(cls, value: int | str) -> int | str:
        if value != "raw" and not (str(value).isdigit() and 1 <= int(value) <= 100):
            raise ValueError("is 1 to 100, or raw")
        return value

    @field_validator("threads", mode="before")
    @classmethod
    def _are_threads(cls, value: int | str) -> int | str:
        if value != "auto" and not (str(value).isdigit() and 1 <= int(value) <= 1000):
            raise ValueError("is auto, or a number of threads")
        return value

    @property
    def packing(self) -> Packing:
        """What is done to each image."""
        return Packing(max_side=self.max_side or None, quality=self.quality)

    @property
    def pool(self) -> int:
        """How many threads."""
        return (os.cpu_count() or 1) if self.threads == "auto" else self.threads


def run_pack(config: PackConfig, journal: Journal) -> PackReport:
    """Write the shards of a pack that are missing, or say what they will cost, or check those that are there."""
    if config.check:
        return _checked(config, journal)
    images = limited(open_images(config.data, data_dir=config.data_dir, split=config.split), config.limit, 0)
    if config.dry_run:
        for line in packing.plan_pack(images, config.packing, config.rows_per_shard, threads=config.pool).lines():
            journal.say(line)
        return PackReport(0, 0, 0, 0.0)
    out, made = Path(config.out), versions(images)
    target = create_pack(out, images, config.packing, config.rows_per_shard, made, config.format)
    report = packing.pack(
        images,
        target,
        part=share_of(config.part),
        threads=config.pool,
        skip_bad_images=config.on_bad_image == "skip",
        journal=journal,
    )
    for key, reason in list(report.skipped.items())[:10]:
        journal.say(f"packed as unreadable {key}: {reason}")
    _say(report, target.missing(), config, journal)
    return report


def _say(report: PackReport, missing: list[int], config: PackConfig, journal: Journal) -> None:
    if not report.shards:
        journal.say(f"all shards of this part are in {config.out} already; nothing to do")
    else:
        rate = report.images / max(report.seconds, 1e-9)
        journal.say(
            f"wrote {report.shards:,} shards, {report.images:,} images, {size(report.bytes)} in "
            f"{duration(report.seconds)} ({rate:,.0f} images/s)"
        )
    journal.say(
        f"{len(missing):,} shards of other parts are still missing"
        if missing
        else f"use it as --data pack:{config.out}"
    )


def _checked(config: PackConfig, journal: Journal) -> PackReport:
    images = Pack(root=config.out, split=config.split).open()
    problems = images.problems()
    if problems:
        more = f"; and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; remove the damaged files and run the same `softlabels pack` again")
    journal.say(f"{images.name}: {len(images):,} images in {images.manifest.shards:,} shards, all checksums match")
    return PackReport(0, 0, 0, 0.0)
