"""The settings of each command: what a config file may say, and where its flags come from."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from softlabels.datasets import Images
from softlabels.errors import ConfigError
from softlabels.training import Settings

Workers = int | Literal["auto"]
AMP_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Machine(BaseModel):
    """Where a command runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU when there is one")
    amp: Literal["fp16", "bf16"] | None = Field(None, description="mixed precision")
    workers: Workers = Field("auto", description="processes that decode and render; auto: none for pictures in memory")

    def torch_device(self) -> torch.device:
        """The device; ConfigError when this machine lacks it."""
        try:
            device = torch.device(
                ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
            )
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as problem:
            raise ConfigError(
                f"--device {self.device} cannot be used here ({str(problem).splitlines()[0]})"
            ) from problem
        return device

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast computes in; None for float32 throughout."""
        return AMP_TYPES[self.amp] if self.amp else None

    def processes(self, images: Images) -> int:
        """Worker processes for this data set."""
        if self.workers != "auto":
            return self.workers
        return 0 if images.pixels is not None else min(os.cpu_count() or 1, 16)


class DumpConfig(Machine):
    """What `softlabels dump` and `softlabels plan` do."""

    teacher: tuple[Any, ...] = Field(
        (), description="teacher: torchvision or small network, timm:NAME, file:PATH, module:function; repeatable"
    )
    weights: tuple[str, ...] = Field(
        (), description="file of the teacher's weights, default, or random[:SEED]; one per --teacher"
    )
    data: Any = Field(
        "digits",
        description="imagenet, cifar10, cifar100, digits, directory, folder:DIR, images:DIR, csv:FILE, module:function",
    )
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, description="only so many images, picked by the seed")
    views: int = Field(8, ge=1, description="views per image")
    recipe: Any = Field("crop-flip", description="how views are drawn: a short name, or steps in a config file")
    seed: int = Field(0, ge=0, description="seed of the views")
    codec: Any = Field("dense", description="how logits are stored: dense, dense:fp32, topk:10, ...")
    format: Literal["hdf5", "zarr"] = Field("hdf5", description="format of the shards")
    out: str = Field("shards/", description="folder of the label store")
    batch_size: int = Field(64, ge=1, description="pictures per forward pass of the teacher")
    rows_per_shard: int = Field(4096, ge=1, description="images per shard: what a crash can cost")
    part: str = Field("0/1", description="I/N: write every N-th shard only, from the I-th")
    dry_run: bool = Field(False, description="only say what would be done, as `softlabels plan` does")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="stop at an image that cannot be read, or record it as unlabelled"
    )

    @field_validator("part")
    @classmethod
    def _is_a_part(cls, text: str) -> str:
        index, _, count = text.partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise ValueError("a part is I/N with I from 0 to N-1, such as 0/4")
        return text

    @property
    def share(self) -> tuple[int, int]:
        """(I, N) of `part`."""
        index, _, count = self.part.partition("/")
        return int(index), int(count)


class TrainConfig(Settings, Machine):
    """What `softlabels train` does."""

    student: Any = Field("mobilenetv3", description="student: torchvision or small network, timm:NAME, module:function")
    weights: str | None = Field(None, description="weights to start from: a file, default, or none for random")
    size: int | None = Field(None, ge=1, description="side of the student's pictures  [default: its own]")
    labels: str | None = Field(None, description="label store; without it the student learns from hard labels")
    teachers: tuple[str, ...] | None = Field(
        None, description="teachers of the store to learn from; repeatable  [default: all]"
    )
    teacher: tuple[Any, ...] = Field(
        (), description="teacher in the loop instead of stored labels (a control); repeatable"
    )
    teacher_weights: tuple[str, ...] = Field((), description="weights of the teachers in the loop, one per --teacher")
    data: Any = Field(None, description="data set  [default: the one the labels were made of]")
    data_dir: str | None = Field(None, description="where the data set lies")
    eval_data: Any = Field(None, description="data set to evaluate on  [default: the test split of the data set]")
    limit: int | None = Field(None, ge=1, description="only so many images, picked by the seed")
    recipe: Any = Field(None, description="views to train on without labels  [default: crop-flip]")
    loss: Any = Field("kl", description="soft loss: kl, ce, js, jeffreys, mse, l1, ...")
    alpha: float | None = Field(
        None, ge=0, le=1, description="weight of the hard loss  [default: 0 with teachers, else 1]"
    )
    temperature: float = Field(1.0, gt=0, description="softens teachers and student alike")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the hard labels")
    blend: Any = Field(
        "mean-probabilities", description="how several teachers become one target: mean-probabilities, mean-logits, ..."
    )
    unlabelled: Literal["refuse", "leave-out"] = Field(
        "refuse", description="what to do with images that have no soft labels"
    )
    incomplete: bool = Field(False, description="train on the finished views of a store that is not complete")
    out: str | None = Field(None, description="folder of the run  [default: runs/STUDENT]")

    @property
    def settings(self) -> Settings:
        """The part that the training stage knows."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


class EvalConfig(Machine):
    """What `softlabels eval` does."""

    student: Any = Field(..., description="a run's folder, file:PATH, or a network's name with --weights")
    weights: str | None = Field(None, description="file of weights, default, or random[:SEED]")
    size: int | None = Field(None, ge=1, description="side of the pictures  [default: the network's own]")
    data: Any = Field("digits", description="data set to evaluate on")
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("test", description="which part of the data set")
    limit: int | None = Field(None, ge=1, description="only so many images")
    batch_size: int = Field(256, ge=1, description="pictures per forward pass")


class VerifyConfig(Machine):
    """What `softlabels verify` does."""

    labels: str = Field("shards/", description="label store")
    data: Any = Field(None, description="data set  [default: the one the labels were made of]")
    data_dir: str | None = Field(None, description="where the data set lies")
    teacher: tuple[Any, ...] = Field(
        (), description="teacher to run again  [default: as the store describes it]; repeatable"
    )
    weights: tuple[str, ...] = Field((), description="weights of the teachers, one per teacher")
    samples: int = Field(64, ge=0, description="random views on which each teacher is run again; 0 for none")
    largest_kl: float = Field(
        1e-2, gt=0, description="mean KL in nats between teacher and stored labels that is still accepted"
    )
    shards_only: bool = Field(False, description="check the store's files alone, without images and teachers")
