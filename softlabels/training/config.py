"""Settings of `softlabels train`, `sweep` and `eval`."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator

from softlabels.choices import (
    BlendChoice,
    DataChoice,
    HeldOutChoice,
    LossChoice,
    NetworkChoice,
    RecipeChoice,
    StudentChoice,
    TeacherChoice,
    TermChoice,
)
from softlabels.core.config import MOST, Choice, CommandConfig
from softlabels.core.types import LOGITS
from softlabels.errors import did_you_mean
from softlabels.loading.settings import Caching, Machine
from softlabels.training.settings import TrainSettings
from softlabels.training.temperatures import Shape
from softlabels.training.tracking import TRACKERS, Tracker


class TrackerChoice(Choice[Tracker]):
    """Where records go besides the run's folder."""

    what = "tracker"
    check = staticmethod(TRACKERS.check)

    def make(self) -> Tracker:
        """See `Choice.make`."""
        return TRACKERS.make(self.given)


class TrainConfig(TrainSettings, Machine, Caching):
    """What `softlabels train` does."""

    LOCAL: ClassVar[frozenset[str]] = CommandConfig.LOCAL | {"out"}

    student: StudentChoice | None = Field(
        None,
        description="student: torchvision or small network, timm:NAME, module:function  [default: mobilenetv3, or the "
        "one of `init`]",
    )
    init: str | None = Field(
        None, description="run or file of softlabels to go on from, to fine-tune: network, size and weights are read"
    )
    weights: str | None = Field(
        None,
        description="weights of the student to start from: FILE or FILE:KEY, default, a name of torchvision's such as "
        "IMAGENET1K_V1, or random  [default: random]",
    )
    init_from: NetworkChoice | None = Field(
        None,
        description="network of which the student begins with copies of some layers, of whatever architecture: a run, "
        "file:PATH, or a network's name",
    )
    init_from_weights: str | None = Field(
        None, description="weights of `init_from`: FILE, default, or a name of torchvision's  [default: published ones]"
    )
    layers: tuple[str, ...] = Field(
        (),
        description="layers to copy from `init_from`: NAME, or STUDENT=OTHER where names differ; repeatable  [default: "
        "all whose names and shapes match]",
    )
    size: int | None = Field(None, ge=1, le=8192, description="side of the student's images  [default: its own]")
    labels: str | None = Field(None, description="label store, a folder or a URL; without it: hard labels")
    teachers: tuple[str, ...] | None = Field(
        None, description="teachers of the store to learn from; repeatable  [default: all]"
    )
    teacher: tuple[TeacherChoice, ...] = Field(
        (), description="teacher in the loop instead of stored labels (a control); repeatable"
    )
    teacher_weights: tuple[str, ...] = Field((), description="weights of the teachers in the loop, one per `teacher`")
    class_map: str | None = Field(
        None,
        description="file of lines CLASS,COLUMN (or a JSON object): which column of a `teacher` of more classes is "
        "each class of the data set, by number or name  [default: found by name]",
    )
    data: DataChoice | None = Field(
        None, description="data set  [default: the one the labels were made of; without `labels` it must be named]"
    )
    data_dir: str | None = Field(None, description="where the data set lies")
    eval_data: HeldOutChoice | None = Field(
        None, description="data set to evaluate on, or none  [default: the test split of the data set]"
    )
    eval_size: int | None = Field(None, ge=1, le=8192, description="side of the images evaluated on  [default: `size`]")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by `limit_seed`")
    limit_seed: int | None = Field(
        None, ge=0, lt=1 << 64, description="seed that picks the images of `limit`  [default: `seed`]"
    )
    recipe: RecipeChoice | None = Field(None, description="augmentation recipe without labels  [default: crop-flip]")
    unpaired: RecipeChoice | None = Field(
        None,
        description="a control: show views of this recipe that no teacher saw, each with the stored label of another "
        "view of its image",
    )
    loss: LossChoice = Field("kl", validate_default=True, description="soft loss: kl, ce, js, jeffreys, mse, l1, ...")
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the hard loss: loss = alpha * hard + (1 - alpha) * soft; DeiT's and timm's alpha is 1 - "
        "this one  [default: 0 with teachers, else 1]",
    )
    alpha_end: float | None = Field(
        None, ge=0, le=1, description="`alpha` at the last step; it changes linearly  [default: alpha]"
    )
    term: tuple[TermChoice, ...] = Field(
        (), description="further term of the loss, WEIGHT*LOSS such as 0.5*relational-distance; repeatable"
    )
    aux_heads: tuple[str, ...] = Field(
        (),
        description="layers of the student that get a classifier while it trains, which learns from the labels and "
        "from the student itself (self-distillation): layer1,layer2; repeatable",
    )
    aux_weight: float = Field(
        0.3, ge=0, le=1, description="how much such a classifier learns from the student, not from the labels"
    )
    min_confidence: float = Field(
        0.0, ge=0, lt=1, description="leave out soft labels whose highest probability is lower"
    )
    wrong_teacher: Literal["keep", "hard"] = Field(
        "keep", description="where the teacher is wrong: keep its label, or learn from the hard one alone"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="divides the logits of teachers and student: 1 with many views, 2 to 5 with clean labels; inf: "
        "match logits (with kl)",
    )
    temperature_end: float | None = Field(
        None,
        gt=0,
        description="`temperature` at the last step; it changes by `temperature_schedule`  [default: temperature]",
    )
    temperature_schedule: Shape = Field(
        "linear",
        description="how the temperature goes to `temperature_end`: linear, cosine, or step, by `temperature_decay`",
    )
    temperature_decay: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="factor of the temperature every `temperature_decay_epochs`, with the schedule step",
    )
    temperature_decay_epochs: int = Field(
        30, ge=1, le=MOST, description="epochs between steps of the temperature, with the schedule step"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the hard labels")
    hard_logits: Literal["plain", "standardized"] = Field(
        "plain", description="the student's logits in the hard loss: as they are, or standardised row by row"
    )
    hard_temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="divides the student's logits in the hard loss"
    )
    soft_warmup_epochs: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="epochs in which the soft loss rises to its weight, linearly"
    )
    ignore_label: int | None = Field(
        None, ge=-1, description="images of this class number count in no part of the loss; -1: those without a label"
    )
    normalization: Literal["valid", "full", "batch-size", "none"] = Field(
        "valid",
        description="what the sum over images is divided by, as in Caffe: those that count, all of the batch, 1",
    )
    blend: BlendChoice = Field(
        "mean-probabilities",
        validate_default=True,
        description="how several teachers become one target: mean-probabilities, mean-logits, ...",
    )
    unlabelled: Literal["refuse", "leave-out"] = Field(
        "refuse", description="what to do with images that have no soft labels"
    )
    pixels: Literal["same", "other"] = Field(
        "same",
        description="whether `data` shows what the teacher saw, or other pixels under the same keys (edges, grey, a "
        "second camera), which are then not compared with what it saw",
    )
    incomplete: bool = Field(False, description="train on the finished views of a store that is not complete")
    compile: bool = Field(False, description="compile the student with torch.compile")
    channels_last: bool = Field(False, description="use torch.channels_last, which convolutions on GPUs prefer")
    compare: bool = Field(False, description="compare student and teacher on every training image after the last step")
    track: tuple[TrackerChoice, ...] = Field(
        (), description="where records go besides the run's folder: tensorboard, wandb (offline), mlflow; repeatable"
    )
    out: str | None = Field(
        None,
        description="folder of the run  [default: runs/STUDENT, with `init` runs/STUDENT-tuned; -2, -3, ... where that "
        "holds another run]",
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _named_layers(cls, value: Any) -> Any:
        words = (value,) if isinstance(value, str) else value
        return tuple(each.strip() for word in words for each in str(word).split(",") if each.strip()) if words else ()

    @field_validator("aux_heads", mode="before")
    @classmethod
    def _are_layers(cls, value: Any) -> Any:
        words = (value,) if isinstance(value, str) else value or ()
        layers = tuple(each.strip() for word in words for each in str(word).split(","))
        if len(set(layers)) < len(layers):
            raise ValueError("a layer is named twice; name each once")
        if LOGITS in layers:
            raise ValueError("logits are what the student's own classifier gives; name a layer before it")
        return layers

    @property
    def settings(self) -> TrainSettings:
        """The part that the training stage knows."""
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.model_fields})


SWEEP_OWN = frozenset({"grid", "runs"})
"""Settings of a sweep that are none of its runs."""


_NOT_SWEPT = frozenset({"out", "seed", "device", "workers"})


class SweepConfig(TrainConfig):
    """What `softlabels sweep` does: the settings of a run, and which of them vary."""

    grid: tuple[str, ...] = Field((), description="SETTING=VALUE,VALUE,... of `softlabels train`; repeatable")
    runs: int = Field(1, ge=1, le=MOST, description="runs of each combination, with seeds from `seed` upward")
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

    student: NetworkChoice = Field(
        ...,
        description="a run's folder, file:PATH, or a network's name with `weights`",
        json_schema_extra={"argument": True},
    )
    weights: str | None = Field(
        None, description="FILE or FILE:KEY of weights, default, a name of torchvision's, or random[:SEED]"
    )
    size: int | None = Field(None, ge=1, le=8192, description="side of the images  [default: the network's own]")
    data: DataChoice | None = Field(None, description="data set to evaluate on  [default: that of the run]")
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("test", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images")
    class_map: str | None = Field(
        None,
        description="file of lines CLASS,COLUMN (or a JSON object): which column of a network of more classes is each "
        "class of the data set, by number or name  [default: found by name]",
    )
    batch_size: int = Field(256, ge=1, le=MOST, description="images per forward pass")


class ExportConfig(CommandConfig):
    """What `softlabels export` does."""

    LOCAL: ClassVar = CommandConfig.LOCAL | {"student", "out"}

    student: str = Field(
        ..., description="a run's folder, or the weights of a student", json_schema_extra={"argument": True}
    )
    format: Literal["torch", "onnx", "int8"] = Field(
        "torch", description="torch.export, ONNX, or ONNX with dynamic 8-bit quantisation"
    )
    out: str | None = Field(None, description="file to write  [default: student.pt2, .onnx, .int8.onnx in the run]")
    function: str | None = Field(
        None, description="module:function that makes the student's network, where it is your own"
    )
    data: DataChoice | None = Field(None, description="data set on which student and file are compared")
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("test", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images")
