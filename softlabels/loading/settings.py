"""The settings of each command: what a config file may say, and where its flags come from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from softlabels.choices import DataChoice, TeacherChoice
from softlabels.core.config import Bytes, CommandConfig, Side
from softlabels.errors import ConfigError
from softlabels.store import Cache

if TYPE_CHECKING:
    import torch

    from softlabels.datasets import Images
    from softlabels.loading.batches import Workers


FEW_CORES = 4
"""Up to so many cores, decoding threads are preferred to processes."""


MOST_WORKERS = 16
"""Processes or threads for each core, at most."""


PROCESS_MEMORY = 64 << 20
"""Bytes of /dev/shm for each process, without which threads are preferred: containers often have 64 MB in all."""


def share_of(part: str) -> tuple[int, int]:
    """(I, N) of a part that is written I/N. Raises ValueError for anything else."""
    index, _, count = part.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError("a part is I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(count)


class Machine(CommandConfig):
    """Where a command runs."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU when there is one")
    amp: Literal["fp16", "bf16"] | None = Field(
        None, description="mixed precision; on the command line, without a value, the one that the device is made for"
    )
    workers: int | str = Field(
        "auto",
        description="what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to "
        "4 cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory",
    )

    @field_validator("workers")
    @classmethod
    def _are_known(cls, value: int | str) -> int | str:
        if isinstance(value, str) and re.fullmatch(r"\d{1,4}", value):
            return int(value)
        if value in range(10_000) or (isinstance(value, str) and re.fullmatch(r"auto|threads:[1-9]\d{0,3}", value)):
            return value
        raise ValueError("must be auto, a number of processes, or threads:N")

    def torch_device(self) -> torch.device:
        """The device; ConfigError, in one line what is there, when this machine lacks it."""
        from softlabels.models.devices import find_device

        return find_device(self.device)

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast computes in; None for float32 throughout."""
        import torch

        return {"fp16": torch.float16, "bf16": torch.bfloat16, None: None}[self.amp]

    @property
    def precision(self) -> Literal["fp32", "fp16", "bf16"]:
        """What a network computes in."""
        return self.amp or "fp32"

    def helpers(self, images: Images) -> Workers:
        """Who makes the batches of this data set."""
        from softlabels.loading.batches import Threads, shared_memory

        cores = os.cpu_count() or 1
        own = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))  # torchrun's other processes have theirs
        count = self.workers if isinstance(self.workers, int) else int(self.workers.partition(":")[2] or 0)
        if count > max(64, MOST_WORKERS * cores):
            raise ConfigError(
                f"`workers={self.workers}` on {cores} cores; give at most {max(64, MOST_WORKERS * cores)}"
            )
        if self.workers != "auto":
            return count if isinstance(self.workers, int) else Threads(count)
        if images.pixels is not None:
            return 0
        # Threads send nothing and were no slower on 2 cores; on many, the interpreter's lock would hold them up.
        room = shared_memory()
        if own <= FEW_CORES or (room is not None and room < min(own, 16) * PROCESS_MEMORY):
            return Threads(min(own, 16))
        return min(own, 16)


class Caching(CommandConfig):
    """Where shards of stores behind URLs are copied to."""

    cache_dir: str | None = Field(
        None,
        description="where shards from a URL are copied to and compressed ones are unpacked  "
        "[default: $SOFTLABELS_CACHE, or the user's cache]",
    )
    cache_size: Bytes | None = Field(
        None, description="bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]"
    )

    @field_validator("cache_dir")
    @classmethod
    def _is_a_folder(cls, value: str | None) -> str | None:
        if value is not None and Path(value).is_file():
            raise ValueError(f"{value} is a file; give a folder")
        return value

    @property
    def cache(self) -> Cache:
        """The cache."""
        return Cache.at(self.cache_dir, self.cache_size)


class Reopening(Machine, Caching):
    """A store whose images and teachers are opened again."""

    labels: str = Field(
        "shards/",
        description="label store, a folder or a URL such as s3://bucket/shards",
        json_schema_extra={"argument": True},
    )
    data: DataChoice | None = Field(None, description="data set  [default: the one the labels were made of]")
    data_dir: str | None = Field(None, description="where the data set lies")
    teacher: tuple[TeacherChoice, ...] = Field(
        (), description="teacher to run again  [default: as the store describes it]; repeatable"
    )
    weights: tuple[str, ...] = Field((), description="weights of the teachers, one per `teacher`")
    name: tuple[str, ...] = Field(
        (), description="name of the teacher in the store, one per `teacher`  [default: of where it comes from]"
    )
    size: tuple[Side, ...] = Field(
        (), description="side of the images that the teacher sees, one per `teacher`  [default: its own]"
    )
