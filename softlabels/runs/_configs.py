"""The settings of each command: what a config file may say, and where its flags come from."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from softlabels import tables
from softlabels.config import Bytes, CommandConfig
from softlabels.errors import ConfigError, did_you_mean
from softlabels.settings import MOST, Settings
from softlabels.store import MOST_VIEWS, Cache, is_url
from softlabels.tracking import TRACKERS

if TYPE_CHECKING:
    import torch

    from softlabels.datasets import Images, Packing
    from softlabels.rendering import Renderer
    from softlabels.samples import Workers

# Names are looked at before anything is imported or opened; what they stand for is made when work begins.
AnyCodec = Annotated[Any, BeforeValidator(tables.CODECS.check)]
AnyLoss = Annotated[Any, BeforeValidator(tables.LOSSES.check)]
AnyBlend = Annotated[Any, BeforeValidator(tables.BLENDS.check)]
AnyRecipe = Annotated[
    Any, BeforeValidator(lambda value: value if value == RECORDED else tables.RECIPE_NAMES.check(value))
]
AnyData = Annotated[Any, BeforeValidator(lambda value: value if value is None else tables.check_data(value))]
AnyTeacher = Annotated[Any, BeforeValidator(lambda value: tables.check_network(value, tables.TEACHERS))]
AnyStudent = Annotated[Any, BeforeValidator(lambda value: tables.check_network(value, tables.STUDENTS))]
AnyTracker = Annotated[Any, BeforeValidator(TRACKERS.check)]

RECORDED = "recorded"
"""The recipe of a dump onto a store whose views came with imported labels."""

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
    amp: Literal["fp16", "bf16"] | None = Field(None, description="mixed precision")
    workers: int | str = Field(
        "auto",
        description="who decodes and renders: N processes, threads:N, or 0 for nobody beside; auto: threads on up to 4 "
        "cores, else processes, one per core; nobody for pictures in memory",
    )

    @field_validator("workers")
    @classmethod
    def _are_known(cls, value: int | str) -> int | str:
        if isinstance(value, str) and re.fullmatch(r"\d{1,4}", value):
            return int(value)
        if value in range(10_000) or (isinstance(value, str) and re.fullmatch(r"auto|threads:[1-9]\d{0,3}", value)):
            return value
        raise ValueError("is auto, a number of processes, or threads:N")

    def torch_device(self) -> torch.device:
        """The device; ConfigError, in one line what is there, when this machine lacks it."""
        from softlabels.devices import find_device

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
        from softlabels.samples import Threads, shared_memory

        cores = os.cpu_count() or 1
        count = self.workers if isinstance(self.workers, int) else int(self.workers.partition(":")[2] or 0)
        if count > max(64, MOST_WORKERS * cores):
            raise ConfigError(
                f"--workers {self.workers} on {cores} cores; give at most {max(64, MOST_WORKERS * cores)}"
            )
        if self.workers != "auto":
            return count if isinstance(self.workers, int) else Threads(count)
        if images.pixels is not None:
            return 0
        # Threads send nothing and were no slower on 2 cores; on many, the interpreter's lock would hold them up.
        room = shared_memory()
        if cores <= FEW_CORES or (room is not None and room < min(cores, 16) * PROCESS_MEMORY):
            return Threads(min(cores, 16))
        return min(cores, 16)


class Caching(CommandConfig):
    """Where shards of stores behind URLs are copied to."""

    cache_dir: str | None = Field(
        None, description="where shards from a URL are copied to  [default: $SOFTLABELS_CACHE, or the user's cache]"
    )
    cache_size: Bytes | None = Field(
        None, description="bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]"
    )

    @field_validator("cache_dir")
    @classmethod
    def _is_a_folder(cls, value: str | None) -> str | None:
        if value is not None and Path(value).is_file():
            raise ValueError("is a file; give a folder")
        return value

    @property
    def cache(self) -> Cache:
        """The cache."""
        return Cache.at(self.cache_dir, self.cache_size)


class Rendering(Machine):
    """Where pictures are made."""

    render: Literal["cpu", "device"] = Field(
        "cpu",
        description="where decoded images are cut, resized and changed: by the workers, or on --device, in batches",
    )
    decoder: Literal["cpu", "nvjpeg"] = Field(
        "cpu", description="what decodes JPEG files with --render device: the workers, or a CUDA --device (nvjpeg)"
    )

    @property
    def renderer(self) -> Renderer | None:
        """What renders on the device; None where workers do.

        Raises:
            ConfigError: the device is not there, or nvJPEG is asked for where it cannot decode.
        """
        from softlabels.rendering import Renderer

        if self.decoder == "nvjpeg":
            if self.render != "device":
                raise ConfigError("--decoder nvjpeg decodes where pictures are rendered; give --render device too")
            if self.torch_device().type != "cuda":
                raise ConfigError(f"--decoder nvjpeg needs a CUDA device, and --device {self.device} is none here")
            if getattr(self, "on_bad_image", "fail") == "skip":
                raise ConfigError("--decoder nvjpeg cannot skip bad images; leave out one of the two")
        return Renderer(self.torch_device(), self.decoder == "nvjpeg") if self.render == "device" else None


class PackConfig(CommandConfig):
    """What `softlabels pack` does."""

    data: AnyData = Field(None, description="data set to pack: all that --data takes elsewhere")
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by seed 0")
    max_side: int = Field(320, ge=0, description="longer sides are shrunk to this, never enlarged; 0 leaves them")
    quality: int | Literal["raw"] = Field(90, description="of JPEG, 1 to 100, or raw: pixels that need no decoder")
    format: Literal["hdf5", "zarr"] = Field("hdf5", description="format of the shards")
    out: str = Field("pack/", description="folder of the pack")
    rows_per_shard: int = Field(512, ge=1, le=MOST, description="images per shard: what a crash can cost")
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
        from softlabels.datasets import Packing

        return Packing(max_side=self.max_side or None, quality=self.quality)

    @property
    def pool(self) -> int:
        """How many threads."""
        return (os.cpu_count() or 1) if self.threads == "auto" else self.threads


class DumpConfig(Rendering, Caching):
    """What `softlabels dump` and `softlabels plan` do."""

    teacher: tuple[AnyTeacher, ...] = Field(
        (), description="teacher: torchvision or small network, timm:NAME, file:PATH, module:function; repeatable"
    )
    weights: tuple[str, ...] = Field(
        (),
        description="weights of the teacher: FILE or FILE:KEY, default, a name of torchvision's such as IMAGENET1K_V1, "
        "or random[:SEED]; one per --teacher",
    )
    class_map: str | None = Field(
        None,
        description="file of lines CLASS,COLUMN (or a JSON object): which column of a teacher of more classes is each "
        "class of the data set, by number or name  [default: found by name]",
    )
    data: AnyData = Field(
        None,
        description="imagenet, cifar10, cifar100, digits, directory, folder:DIR, images:DIR, csv:FILE, pack:DIR, "
        "module:function",
    )
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by the seed")
    views: int = Field(8, ge=1, lt=MOST_VIEWS, description="views per image")
    recipe: AnyRecipe = Field("crop-flip", description="how views are drawn: a short name, or steps in a config file")
    seed: int = Field(0, ge=0, lt=1 << 64, description="seed of the views")
    codec: AnyCodec = Field("dense", description="how logits are stored: dense, dense:fp32, topk:10, ...")
    format: Literal["hdf5", "zarr"] = Field("hdf5", description="format of the shards")
    compression: Literal["none", "zstd"] | None = Field(
        None, description="compression of the shards  [default: what the codec wants, mostly none]"
    )
    out: str = Field("shards/", description="folder of the label store, or a URL such as s3://bucket/shards")
    batch_size: int | Literal["auto"] = Field(
        64,
        description="pictures per forward pass of the teacher; auto: doubled while that is faster and fits into memory",
    )
    compile: bool = Field(False, description="compile the teacher with torch.compile, for passes of one size")
    rows_per_shard: int = Field(4096, ge=1, le=MOST, description="images per shard: what a crash can cost")
    part: str = Field("0/1", description="I/N: write every N-th shard only, from the I-th")
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

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_a_batch(cls, value: Any) -> Any:
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST):
            raise ValueError(f"is auto, or a number of pictures from 1 upward, at most {MOST:,}")
        return value

    @property
    def share(self) -> tuple[int, int]:
        """(I, N) of `part`."""
        return share_of(self.part)


class PlanConfig(DumpConfig):
    """What `softlabels plan` does."""

    codec_report: bool = Field(False, description="compare codecs on a sample of the teacher's own labels")
    codec_samples: int = Field(2000, ge=1, le=MOST, description="labels in that sample")


class TrainConfig(Settings, Rendering, Caching):
    """What `softlabels train` does."""

    LOCAL: ClassVar = CommandConfig.LOCAL | {"out"}

    student: AnyStudent = Field(
        None,
        description="student: torchvision or small network, timm:NAME, module:function  [default: mobilenetv3, or the "
        "one of --init]",
    )
    init: str | None = Field(
        None, description="run or file of softlabels to go on from, to fine-tune: network, size and weights are read"
    )
    weights: str | None = Field(
        None,
        description="weights of the student to start from: FILE or FILE:KEY, default, a name of torchvision's such as "
        "IMAGENET1K_V1, or random  [default: random]",
    )
    size: int | None = Field(None, ge=1, le=8192, description="side of the student's pictures  [default: its own]")
    labels: str | None = Field(None, description="label store, a folder or a URL; without it: hard labels")
    teachers: tuple[str, ...] | None = Field(
        None, description="teachers of the store to learn from; repeatable  [default: all]"
    )
    teacher: tuple[AnyTeacher, ...] = Field(
        (), description="teacher in the loop instead of stored labels (a control); repeatable"
    )
    teacher_weights: tuple[str, ...] = Field((), description="weights of the teachers in the loop, one per --teacher")
    class_map: str | None = Field(
        None,
        description="file of lines CLASS,COLUMN (or a JSON object): which column of a --teacher of more classes is "
        "each class of the data set, by number or name  [default: found by name]",
    )
    data: AnyData = Field(
        None, description="data set  [default: the one the labels were made of; without --labels it must be named]"
    )
    data_dir: str | None = Field(None, description="where the data set lies")
    eval_data: AnyData = Field(None, description="data set to evaluate on  [default: the test split of the data set]")
    eval_size: int | None = Field(
        None, ge=1, le=8192, description="side of the pictures evaluated on  [default: --size]"
    )
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by the seed")
    recipe: AnyRecipe = Field(None, description="views to train on without labels  [default: crop-flip]")
    loss: AnyLoss = Field("kl", description="soft loss: kl, ce, js, jeffreys, mse, l1, ...")
    alpha: float | None = Field(
        None, ge=0, le=1, description="weight of the hard loss  [default: 0 with teachers, else 1]"
    )
    alpha_end: float | None = Field(
        None, ge=0, le=1, description="weight of the hard loss at the last step, reached in a line  [default: alpha]"
    )
    term: tuple[Any, ...] = Field(
        (), description="further term of the loss, WEIGHT*LOSS such as 0.5*relational-distance; repeatable"
    )
    min_confidence: float = Field(
        0.0, ge=0, lt=1, description="leave out soft labels whose highest probability is lower"
    )
    wrong_teacher: Literal["keep", "hard"] = Field(
        "keep", description="where the teacher is wrong: keep its label, or learn from the hard one alone"
    )
    temperature: float = Field(1.0, gt=0, description="softens teachers and student alike")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the hard labels")
    blend: AnyBlend = Field(
        "mean-probabilities", description="how several teachers become one target: mean-probabilities, mean-logits, ..."
    )
    unlabelled: Literal["refuse", "leave-out"] = Field(
        "refuse", description="what to do with images that have no soft labels"
    )
    label_memory: Bytes | None = Field(
        None,
        description="memory for labels of compressed shards, of all processes of a machine together, such as 4GB  "
        "[default: a quarter of the machine's]",
    )
    incomplete: bool = Field(False, description="train on the finished views of a store that is not complete")
    compile: bool = Field(False, description="compile the student with torch.compile")
    channels_last: bool = Field(False, description="lay pictures out as convolutions on GPUs like them")
    compare: bool = Field(False, description="compare student and teacher on every training image after the last step")
    track: tuple[AnyTracker, ...] = Field(
        (), description="where records go besides the run's folder: tensorboard, wandb (offline), mlflow; repeatable"
    )
    out: str | None = Field(
        None, description="folder of the run  [default: runs/STUDENT, with --init runs/STUDENT-tuned]"
    )

    @field_validator("term")
    @classmethod
    def _terms(cls, terms: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_term(each) if isinstance(each, str) else each for each in terms)

    @property
    def settings(self) -> Settings:
        """The part that the training stage knows."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def _term(text: str) -> dict[str, Any]:
    weight, _, loss = text.partition("*")
    try:
        return {"weight": float(weight), "loss": loss.strip()}
    except ValueError:
        raise ValueError("a term is WEIGHT*LOSS such as 0.5*dist") from None


SWEEP_OWN = frozenset({"grid", "runs"})
"""Settings of a sweep that are none of its runs."""

_NOT_SWEPT = frozenset({"out", "seed", "device", "workers"})


class SweepConfig(TrainConfig):
    """What `softlabels sweep` does: the settings of a run, and which of them vary."""

    grid: tuple[str, ...] = Field((), description="SETTING=VALUE,VALUE,... of `softlabels train`; repeatable")
    runs: int = Field(1, ge=1, le=MOST, description="runs of each combination, with seeds from --seed upward")
    compare: bool = Field(True, description="compare each student with its teacher on every training image")
    out: str | None = Field(None, description="folder of the sweep  [default: runs/sweep]")

    @field_validator("grid")
    @classmethod
    def _are_settings(cls, grid: tuple[str, ...]) -> tuple[str, ...]:
        names = [each.partition("=")[0].strip().replace("-", "_") for each in grid]
        for name, each in zip(names, grid, strict=True):
            if name not in TrainConfig.model_fields or name in _NOT_SWEPT:
                known = sorted(TrainConfig.model_fields.keys() - _NOT_SWEPT)
                raise ValueError(f"{name!r} is no setting to sweep; {did_you_mean(name, known)}")
            if not each.partition("=")[2].strip():
                raise ValueError(f"{each!r} has no values; write SETTING=VALUE,VALUE")
        if len(set(names)) < len(names):
            raise ValueError("a setting stands in the grid twice; give all its values at once")
        return grid

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values, the last setting varying fastest."""
        axes = []
        for each in self.grid:
            name, _, values = each.partition("=")
            axes.append([(name.strip().replace("-", "_"), yaml.safe_load(value)) for value in values.split(",")])
        return [dict(cell) for cell in itertools.product(*axes)]


class EvalConfig(Machine):
    """What `softlabels eval` does."""

    student: Any = Field(..., description="a run's folder, file:PATH, or a network's name with --weights")
    weights: str | None = Field(
        None, description="FILE or FILE:KEY of weights, default, a name of torchvision's, or random[:SEED]"
    )
    size: int | None = Field(None, ge=1, le=8192, description="side of the pictures  [default: the network's own]")
    data: AnyData = Field(None, description="data set to evaluate on  [default: that of the run]")
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("test", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images")
    class_map: str | None = Field(
        None,
        description="file of lines CLASS,COLUMN (or a JSON object): which column of a network of more classes is each "
        "class of the data set, by number or name  [default: found by name]",
    )
    batch_size: int = Field(256, ge=1, le=MOST, description="pictures per forward pass")


class Reopening(Machine, Caching):
    """A store whose images and teachers are opened again."""

    labels: str = Field("shards/", description="label store, a folder or a URL such as s3://bucket/shards")
    data: AnyData = Field(None, description="data set  [default: the one the labels were made of]")
    data_dir: str | None = Field(None, description="where the data set lies")
    teacher: tuple[AnyTeacher, ...] = Field(
        (), description="teacher to run again  [default: as the store describes it]; repeatable"
    )
    weights: tuple[str, ...] = Field((), description="weights of the teachers, one per teacher")


class VerifyConfig(Reopening):
    """What `softlabels verify` does."""

    samples: int = Field(64, ge=0, le=MOST, description="random views on which each teacher is run again; 0 for none")
    largest_kl: float | None = Field(
        None,
        gt=0,
        description="mean KL in nats between the teacher's labels, encoded as the stored ones are, and these that is "
        "still accepted  [default: what rounding explains]",
    )
    shards_only: bool = Field(False, description="check the store's files alone, without images and teachers")


class RepairConfig(Reopening):
    """What `softlabels repair` does."""

    redump: bool = Field(False, description="dump the damaged shards again, instead of only removing them")
    batch_size: int = Field(64, ge=1, le=MOST, description="pictures per forward pass of the teacher")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="stop at an image that cannot be read, or record it as unlabelled"
    )


class ConvertConfig(Caching):
    """What `softlabels convert` does."""

    labels: str = Field("shards/", description="label store to convert, a folder or a URL; it stays as it is")
    out: str = Field(..., description="folder of the converted store, or a URL such as s3://bucket/shards")
    format: Literal["hdf5", "zarr"] | None = Field(None, description="format of the shards  [default: as they are]")
    compression: Literal["none", "zstd"] | None = Field(
        None, description="compression of the shards  [default: as they are]"
    )
    codec: AnyCodec = Field(None, description="how logits are stored: dense:fp32, topk:10, ...  [default: as they are]")
    lossy: bool = Field(False, description="allow a codec that rounds the stored labels once more")
    teachers: tuple[str, ...] | None = Field(None, description="teachers to convert; repeatable  [default: all]")


class ImportConfig(Caching):
    """What `softlabels import` does."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Literal["fkd", "tinyvit", "ml-dr"] = Field(
        ..., alias="from", description="whose label files they are", json_schema_extra={"flag": "from", "in_file": True}
    )
    source: str = Field(
        ..., description="folder of the label files; it stays as it is", json_schema_extra={"argument": True}
    )
    data: AnyData = Field(
        ...,
        description="data set that was labelled: imagenet, directory, csv:FILE, ..., as `softlabels dump` takes it",
        json_schema_extra={"in_file": True},
    )
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by the seed")
    seed: int = Field(0, ge=0, lt=1 << 64, description="seed of --limit")
    views: int | None = Field(None, ge=1, le=MOST, description="only the first so many views  [default: all]")
    name: str | None = Field(None, description="the teacher's name in the store  [default: the project's]")
    classes: int | None = Field(
        None, ge=1, le=MOST, description="classes of the teacher  [default: those of the data set]"
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the softmax that the files hold")
    tail: Literal["uniform", "none"] = Field(
        "uniform", description="classes that a label does not name share the rest of 1, or have nothing"
    )
    values: Literal["fp16", "fp32"] | None = Field(
        None, description="how probabilities are stored  [default: as in the files]"
    )
    mixup: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="of tinyvit: alpha of the mixup that was labelled, 0 for none"
    )
    cutmix: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="of tinyvit: alpha of the cutmix that was labelled, 0 for none"
    )
    mixup_prob: float = Field(1.0, ge=0, le=1, description="of tinyvit: how likely a pair was mixed")
    mixup_switch_prob: float = Field(
        0.5, ge=0, le=1, description="of tinyvit: how likely by cutmix, where both alphas are above 0"
    )
    labels_only: bool = Field(False, description="import labels whose views cannot be made here, without pictures")
    allow_mismatch: bool = Field(False, description="import labels that name other classes than the images have")
    on_missing: Literal["fail", "skip"] = Field(
        "fail", description="refuse when images have no label, or record them as unlabelled"
    )
    format: Literal["hdf5", "zarr"] = Field("hdf5", description="format of the shards")
    compression: Literal["none", "zstd"] | None = Field(None, description="compression of the shards  [default: none]")
    out: str = Field("shards/", description="folder of the label store, or a URL such as s3://bucket/shards")
    rows_per_shard: int = Field(4096, ge=1, le=MOST, description="images per shard: what a crash can cost")
    part: str = Field("0/1", description="I/N: write every N-th shard only, from the I-th")

    @field_validator("part")
    @classmethod
    def _is_a_part(cls, text: str) -> str:
        share_of(text)
        return text


class MergeConfig(Caching):
    """What `softlabels merge` does."""

    labels: tuple[str, ...] = Field(
        ..., min_length=1, description="label store to merge, a folder or a URL; repeatable"
    )
    out: str = Field(
        ..., description="folder or URL of the merged store; it may be there already, or be one of the merged"
    )
