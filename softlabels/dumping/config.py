"""Settings of `softlabels plan`, `pack` and `dump`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from softlabels.choices import CodecChoice, DataChoice, OutputChoice, RecipeChoice, TeacherChoice
from softlabels.core.config import MOST, CommandConfig, Side
from softlabels.errors import ConfigError
from softlabels.loading.settings import Caching, Machine, share_of
from softlabels.store import MOST_VIEWS, is_url

if TYPE_CHECKING:
    from softlabels.datasets import Packing


class PackConfig(CommandConfig):
    """What `softlabels pack` does."""

    data: DataChoice | None = Field(None, description="data set to pack: all that `data` takes elsewhere")
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by seed 0")
    max_side: int = Field(320, ge=0, description="longer sides are shrunk to this, never enlarged; 0 leaves them")
    quality: int | Literal["raw"] = Field(90, description="of JPEG, 1 to 100, or raw: pixels that need no decoder")
    format: Literal["hdf5", "zarr"] = Field("hdf5", description="format of the shards")
    out: str = Field("pack/", description="folder of the pack")
    rows_per_shard: int = Field(
        512, ge=1, le=MOST, description="images per shard; one that is cut off is written again"
    )
    part: str = Field("0/1", description="I/N: write every N-th shard only, from the I-th")
    threads: int | Literal["auto"] = Field("auto", description="threads that decode and encode; auto: one per core")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="stop at an image that cannot be read, or pack it as unreadable"
    )
    dry_run: bool = Field(False, description="only say how large the pack will be and how long it will take")
    check: bool = Field(False, description="write nothing; read every byte of the pack at `out` and compare checksums")

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
            raise ValueError("must be 1 to 100, or raw")
        return value

    @field_validator("threads", mode="before")
    @classmethod
    def _are_threads(cls, value: int | str) -> int | str:
        if value != "auto" and not (str(value).isdigit() and 1 <= int(value) <= 1000):
            raise ValueError("must be auto, or a number of threads")
        return value

    @property
    def packing(self) -> Packing:
        """What is done to each image."""
        from softlabels.datasets import Packing

        return Packing(max_side=self.max_side or None, quality=self.quality)

    @property
    def pool(self) -> int:
        """How many threads."""
        return (os.cpu_count() or 1) if self.threads == "auto" else self.threads


class DumpConfig(Machine, Caching):
    """What `softlabels dump` and `softlabels plan` do."""

    teacher: tuple[TeacherChoice, ...] = Field(
        (), description="teacher: torchvision or small network, timm:NAME, file:PATH, module:function; repeatable"
    )
    weights: tuple[str, ...] = Field(
        (),
        description="weights of the teacher: FILE or FILE:KEY, default, a name of torchvision's such as IMAGENET1K_V1, "
        "or random[:SEED]; one per `teacher`",
    )
    name: tuple[str, ...] = Field(
        (), description="name of the teacher in the store, one per `teacher`  [default: of where it comes from]"
    )
    size: tuple[Side, ...] = Field(
        (), description="side of the images that the teacher sees, one per `teacher`  [default: its own]"
    )
    class_map: str | None = Field(
        None,
        description="file of lines CLASS,COLUMN (or a JSON object): which column of a teacher of more classes is each "
        "class of the data set, by number or name  [default: found by name]",
    )
    data: DataChoice | None = Field(
        None,
        description="imagenet, cifar10, cifar100, digits, digit-pairs, directory, folder:DIR, images:DIR, csv:FILE, "
        "pack:DIR, module:function; repeatable: several are one data set",
    )
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by the seed")
    views: int = Field(8, ge=1, lt=MOST_VIEWS, description="augmented views per image; 4 to 50 are usual")
    recipe: RecipeChoice = Field(
        "crop-flip",
        validate_default=True,
        description="augmentation recipe: words such as pad-flip-randaugment, or steps in a config file",
    )
    seed: int = Field(0, ge=0, lt=1 << 64, description="seed of the views")
    codec: CodecChoice = Field(
        "dense",
        validate_default=True,
        description="how logits are stored: dense (2 bytes a class), topk:10, head_tail:10, quantized, ...",
    )
    output: tuple[OutputChoice, ...] = Field(
        (),
        description="what to store beside the logits: an entry of the mapping that the teacher returns or the path of "
        "a module, as avgpool, avgpool=int8 with a codec, or under a name of your own and pooled (mean, token, "
        "attention, gridN) as map=layer3:grid4=pca:64  [codec by default: dense:fp16-raw]; repeatable",
    )
    format: Literal["hdf5", "zarr"] = Field("hdf5", description="format of the shards")
    compression: Literal["none", "zstd"] | None = Field(
        None, description="compression of the shards  [default: what the codec wants, mostly none]"
    )
    out: str = Field("shards/", description="folder of the label store, or a URL such as s3://bucket/shards")
    batch_size: int | Literal["auto"] = Field(
        64,
        description="images per forward pass of the teacher; auto: doubled while that is faster and fits into memory",
    )
    compile: bool = Field(False, description="compile the teacher with torch.compile, for passes of one size")
    rows_per_shard: int = Field(
        4096, ge=1, le=MOST, description="images per shard; one that is cut off is written again"
    )
    part: str = Field("0/1", description="I/N: write every N-th shard only, from the I-th")
    devices: str | None = Field(
        None,
        description="devices of this machine that label together, a process each: all (every GPU), 0,1 (these GPUs) or "
        "cpu:2 (two processes on the CPU)  [default: the one of `device`]",
    )
    grow: bool = Field(False, description="add images that the store does not have yet; its shards stay as they are")
    dry_run: bool = Field(False, description="only say what would be done, as `softlabels plan` does")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="stop at an image that cannot be read, or record it as unlabelled"
    )
    on_odd_logits: Literal["fail", "warn"] = Field(
        "fail",
        description="refuse a teacher that gives probabilities instead of logits, or whose logits depend on the rest "
        "of the batch, or only say so",
    )

    @field_validator("part")
    @classmethod
    def _is_a_part(cls, text: str) -> str:
        share_of(text)
        return text

    @field_validator("devices", mode="before")
    @classmethod
    def _are_devices(cls, value: Any) -> Any:
        text = value if value is None else str(value)
        numbers = (text or "").split(",")
        if text is not None and (
            not re.fullmatch(r"all|cpu:[1-9]\d{0,2}|\d{1,3}(,\d{1,3})*", text) or len(set(numbers)) < len(numbers)
        ):
            raise ValueError("are all, numbers of GPUs such as 0,1 (each once), or cpu:2")
        return text

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_a_batch(cls, value: Any) -> Any:
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST):
            raise ValueError(f"must be from 1 to {MOST:,}, or auto")
        return value

    @field_validator("output")
    @classmethod
    def _are_distinct(cls, outputs: tuple[OutputChoice, ...]) -> tuple[OutputChoice, ...]:
        names = [each.name for each in outputs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"output {twice!r} is named twice; give each a name of its own")
        return outputs

    @property
    def share(self) -> tuple[int, int]:
        """(I, N) of `part`."""
        return share_of(self.part)


class PlanConfig(DumpConfig):
    """What `softlabels plan` does."""

    codec_report: bool = Field(False, description="compare codecs on a sample of the teacher's own labels")
    codec_samples: int = Field(2000, ge=1, le=MOST, description="labels in that sample, some views of each image")
    for_temperature: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="of these codecs, recommend one for students that train at this temperature",
    )

    @model_validator(mode="after")
    def _has_a_report(self) -> PlanConfig:
        if self.for_temperature is not None and not self.codec_report:
            raise ConfigError("`for_temperature` chooses among the codecs of a report; add `codec_report=True`")
        return self
