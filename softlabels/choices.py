"""What can be chosen, by name: a line for each kind of each part, and the choices of parts that configs hold.

A part's module is imported when the part is made, so that help, completion and a mistyped name need not wait for torch.
A new codec, loss, step or data set is one file and one line here, or an entry point of another package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from softlabels.core.config import OBJECT, Choice, Given, Table, is_url, validated, without_settings
from softlabels.core.installed import (
    timm_mentions,
    timm_networks,
    timm_weights,
    torchvision_networks,
    working_directory_importable,
)
from softlabels.core.outputs import read_address, read_addresses
from softlabels.core.types import LOGITS
from softlabels.errors import ConfigError, DataError, ModelError, did_you_mean

if TYPE_CHECKING:
    from softlabels.codecs import Codec
    from softlabels.datasets import DataSet
    from softlabels.importing.projects import Source
    from softlabels.losses import Blend, Loss, Term
    from softlabels.models import StudentSpec, TeacherSpec
    from softlabels.views import Recipe, Step

CODECS: Table[Codec] = Table(
    "codec",
    "codecs",
    {
        "dense": "softlabels.codecs._dense:Dense",
        "quantized": "softlabels.codecs._quantized:Quantized",
        "head_tail": "softlabels.codecs._head_tail:HeadTail",
        "int8": "softlabels.codecs._int8:Int8",
        "pca": "softlabels.codecs._pca:PrincipalComponents",
        "topk": "softlabels.codecs._topk:TopK",
        "sampled": "softlabels.codecs._sampled:Sampled",
        "transform": "softlabels.codecs._transform:TransformCoding",
        "probabilities": "softlabels.codecs._probabilities:Probabilities",
        "top_logits": "softlabels.codecs._top_logits:TopLogits",
    },
)

IMPORTERS: Table[Source] = Table(
    "project",
    "importers",
    {
        "fkd": "softlabels.importing._fkd:Fkd",
        "tinyvit": "softlabels.importing._tinyvit:TinyViT",
        "ml-dr": "softlabels.importing._ml_dr:MlDr",
        "sre2l": "softlabels.importing._distilled:Sre2l",
        "lpld": "softlabels.importing._distilled:Lpld",
        "lpqld": "softlabels.importing._distilled:Lpqld",
    },
)
"""Whose label files are read."""

LOSSES: Table[Loss] = Table(
    "loss",
    "losses",
    {
        "kl": "softlabels.losses._divergences:KL",
        "ce": "softlabels.losses._divergences:SoftCrossEntropy",
        "js": "softlabels.losses._divergences:JS",
        "jeffreys": "softlabels.losses._divergences:Jeffreys",
        "mse": "softlabels.losses._logits:LogitMSE",
        "l1": "softlabels.losses._logits:LogitL1",
        "dkd": "softlabels.losses._true_class:DecoupledKD",
        "dist": "softlabels.losses._relational:DIST",
        "wsl": "softlabels.losses._true_class:WeightedSoftLabels",
        "standardized-kl": "softlabels.losses._logits:StandardizedKL",
        "spherical-kd": "softlabels.losses._logits:SphericalKD",
        "relational-distance": "softlabels.losses._relational:RelationalDistance",
        "relational-angle": "softlabels.losses._relational:RelationalAngle",
        "mlkd": "softlabels.losses._multi_level:MultiLevel",
        "batch-correlation": "softlabels.losses._multi_level:BatchCorrelation",
        "class-correlation": "softlabels.losses._multi_level:ClassCorrelation",
        "teacher-free": "softlabels.losses._true_class:TeacherFree",
        "confidence-penalty": "softlabels.losses._divergences:ConfidencePenalty",
    },
)

FEATURE_LOSSES: Table[Loss] = Table(
    "loss of features",
    "feature_losses",
    {
        "hint": "softlabels.losses._features:Hint",
        "cosine": "softlabels.losses._features:Cosine",
        "attention": "softlabels.losses._features:AttentionTransfer",
        "channel-map": "softlabels.losses._features:ChannelMap",
        "rkd-distance": "softlabels.losses._features:EmbeddingDistance",
        "rkd-angle": "softlabels.losses._features:EmbeddingAngle",
        "inherit-explore": "softlabels.losses._features:InheritExplore",
    },
)
"""Losses of terms that compare other outputs than the logits."""

BLENDS: Table[Blend] = Table(
    "blend",
    "blends",
    {
        "mean-probabilities": "softlabels.losses._blends:MeanProbabilities",
        "mean-logits": "softlabels.losses._blends:MeanLogits",
        "weighted": "softlabels.losses._blends:Weighted",
        "random-teacher": "softlabels.losses._blends:RandomTeacher",
        "per-class": "softlabels.losses._blends:PerClass",
        "class-accuracy": "softlabels.losses._blends:ClassAccuracy",
    },
)

DATASETS: Table[DataSet] = Table(
    "data set",
    "datasets",
    {
        "digits": "softlabels.datasets._digits:Digits",
        "digit-pairs": "softlabels.datasets._digits:DigitPairs",
        "folder": "softlabels.datasets._folder:Folder",
        "images": "softlabels.datasets._folder:Unlabelled",
        "csv": "softlabels.datasets._csv:Csv",
        "cifar10": "softlabels.datasets._cifar:Cifar10",
        "cifar100": "softlabels.datasets._cifar:Cifar100",
        "imagenet": "softlabels.datasets._imagenet:ImageNet",
        "pack": "softlabels.datasets.packs._pack:Pack",
        "parts": "softlabels.datasets._parts:Parts",
        "function": "softlabels.datasets._function:Function",
        "object": "softlabels.datasets._object:ObjectImages",
    },
)

TEACHERS: Table[TeacherSpec] = Table(
    "teacher",
    "teachers",
    {
        "torchvision": "softlabels.models._torchvision:TorchvisionNetwork",
        "small": "softlabels.models._small:SmallNetwork",
        "timm": "softlabels.models._timm:TimmNetwork",
        "file": "softlabels.models._file:FileNetwork",
        "columns": "softlabels.models._columns:ColumnsTeacher",
        "function": "softlabels.models._function:FunctionNetwork",
        "object": "softlabels.models._object:ObjectNetwork",
    },
)

STUDENTS: Table[StudentSpec] = Table(
    "student",
    "students",
    {
        "torchvision": "softlabels.models._torchvision:TorchvisionNetwork",
        "small": "softlabels.models._small:SmallNetwork",
        "timm": "softlabels.models._timm:TimmNetwork",
        "function": "softlabels.models._function:FunctionNetwork",
        "object": "softlabels.models._object:ObjectNetwork",
    },
)

NETWORK_LIBRARIES = ("small", "torchvision", "timm")
"""Kinds of teachers and students whose networks have names."""

SMALL_NETWORKS = ("cnn_tiny", "cnn_mini", "cnn_small", "resnet8_cifar", "resnet20_cifar", "resnet56_cifar")
"""Our own networks for images of 8x8 to 32x32."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Ends of names of files of weights."""

NETWORK_ALIASES: Mapping[str, str] = {"resnext101": "resnext101_32x8d", "mobilenetv3": "mobilenet_v3_large"}
"""Short names and the torchvision networks they stand for."""


def network_names(source: str | None = None) -> tuple[str, ...]:
    """Names of the networks of one source (``small``, ``torchvision``, ``timm``), sorted, or all that need no prefix.

    timm has more than a thousand networks, many under torchvision's names, so they are asked for by prefix.
    """
    if source == "small":
        return tuple(sorted(SMALL_NETWORKS))
    if source is not None:
        return tuple(sorted(torchvision_networks() if source == "torchvision" else timm_networks()))
    return tuple(sorted({*NETWORK_ALIASES, *SMALL_NETWORKS, *torchvision_networks()}))


def unknown_network(name: str, source: str | None = None) -> ModelError:
    """The error for a network that is not there; `source` is the prefix that was written before its `name`."""
    if source is not None:
        tagged = timm_weights() if source == "timm" and "." in name else ()
        known = did_you_mean(name, (*network_names(source), *tagged))
        return ModelError(f"unknown network {f'{source}:{name}'!r}; {known}")
    if Path(name).exists():
        return ModelError(f"unknown network {name!r}; to load the file or run at that path, write file:{name}")
    if "/" in name or Path(name).suffix in WEIGHT_SUFFIXES:
        return ModelError(f"there is no file or folder at {name}; check the path, or name a network such as resnet18")
    if name in timm_networks():
        return ModelError(f"unknown network {name!r}; timm has one of that name: timm:{name}")
    return ModelError(f"unknown network {name!r}; {did_you_mean(name, network_names())}")


def unknown_source(text: str, table: Table[object]) -> ModelError:
    """The error for ``KIND:VALUE`` that is neither of a kind in `table` nor ``module:function``."""
    kind, _, rest = text.partition(":")
    if kind in ("hf-hub", "hf_hub"):
        name = rest.removeprefix("timm/")
        return ModelError(f"{text} is a network of timm on the hub; write timm:{name if '/' not in name else text}")
    known = did_you_mean(kind, table.names)
    return ModelError(f"unknown {table.what} {text!r}: neither module:function nor of a known source; {known}")


def check_network(value: Given, table: Table[object]) -> Given:
    """`value` itself, which names a network or a kind of `table` (`TEACHERS`, `STUDENTS`); nothing is imported.

    A mapping with a `module` and no kind is of kind ``object``.

    Raises:
        ModelError: there is no such network, or neither a kind nor a module before the colon.
        ConfigError: a mapping has an unknown kind.
    """
    if not isinstance(value, str):
        if isinstance(value, Mapping) and "module" in value:
            value = {"kind": OBJECT, **value}
        return table.check(value)
    kind, colon, rest = value.partition(":")
    if colon and kind in NETWORK_LIBRARIES:
        known = {*network_names(kind), *(NETWORK_ALIASES if kind == "torchvision" else ())}
        # What timm's sources mention may be a former name, which it resolves itself.
        if rest.partition(".")[0] not in known and not (kind == "timm" and (":" in rest or timm_mentions(rest))):
            raise unknown_network(rest, kind)
    elif colon and not table.has(kind) and not importable(kind):
        raise unknown_source(value, table)
    elif not colon and not table.has(kind) and kind not in network_names():
        raise unknown_network(value)
    return value


def importable(module: str) -> bool:
    """Whether `module` is installed or lies in the current directory; nothing but its parent packages is imported."""
    with working_directory_importable():
        try:
            return importlib.util.find_spec(module) is not None
        except (ImportError, ValueError, AttributeError):
            return False


def check_data(value: Given) -> Given:
    """`value` itself, of which a kind of data set, a directory or a module is known where it names one.

    Raises:
        ConfigError: it is none of these; the nearest kinds are given.
    """
    if not isinstance(value, str):
        return DATASETS.check(value)
    kind, colon, _ = value.partition(":")
    kind = kind if colon else without_settings(kind)
    there = importable(kind) if colon else Path(kind).exists()
    if (
        not there
        and "/" not in kind
        and os.sep not in kind
        and not kind.startswith((".", "~"))
        and not DATASETS.has(kind)
    ):
        raise unknown_data(value)
    return value


def unknown_data(text: str) -> ConfigError:
    """The error for a data set that is neither a kind nor a module nor a directory."""
    kind, colon, _ = text.partition(":")
    if is_url(text):
        return ConfigError(
            f"{text} is a URL; images are read from folders of this machine: copy them, or mount the place"
        )
    nor = f"nor a module {kind!r} that could be imported" if colon else "nor a directory of that name here"
    known = did_you_mean(kind, DATASETS.names)
    return ConfigError(f"unknown data set {text!r}: there is neither a kind {kind!r} {nor}; {known}")


STEPS: Table[Step] = Table(
    "step",
    "views",
    {
        "resize-centre-crop": "softlabels.views._crops:ResizeCentreCrop",
        "random-resized-crop": "softlabels.views._crops:RandomResizedCrop",
        "pad-and-crop": "softlabels.views._crops:PadAndCrop",
        "horizontal-flip": "softlabels.views._flips:HorizontalFlip",
        "vertical-flip": "softlabels.views._flips:VerticalFlip",
        "colour-jitter": "softlabels.views._colour:ColourJitter",
        "grayscale": "softlabels.views._colour:Grayscale",
        "gaussian-blur": "softlabels.views._colour:GaussianBlur",
        "solarize": "softlabels.views._colour:Solarize",
        "randaugment": "softlabels.views._auto_augment:RandAugment",
        "timm-randaugment": "softlabels.views._timm_augment:TimmRandAugment",
        "trivialaugment": "softlabels.views._auto_augment:TrivialAugmentWide",
        "autoaugment": "softlabels.views._auto_augment:AutoAugment",
        "choice": "softlabels.views._choice:OneStepOf",
        "random-erasing": "softlabels.views._erase:RandomErasing",
        "mixup": "softlabels.views._mix:MixUp",
        "cutmix": "softlabels.views._mix:CutMix",
        "mixup-or-cutmix": "softlabels.views._mix:MixUpOrCutMix",
    },
)
"""Every step that is drawn."""

RECORDED: Table[Step] = Table(
    "recorded step",
    "recorded_views",
    {
        "recorded-crop": "softlabels.importing.replayed:RecordedCrop",
        "recorded-flip": "softlabels.importing.replayed:RecordedFlip",
        "recorded-operations": "softlabels.importing.replayed:RecordedOperations",
        "recorded-erasing": "softlabels.importing.replayed:RecordedErasing",
        "recorded-mix": "softlabels.importing.replayed:RecordedMix",
        "foreign-view": "softlabels.importing.replayed:ForeignView",
        "seeded-mix": "softlabels.importing.replayed:SeededMix",
    },
)
"""Every step whose draws come with labels of other projects."""


@dataclass(frozen=True)
class RecipeNames:
    """Short names of recipes: words joined by hyphens, each a step, or one of the `presets`.

    `usual` are the names of words that lists show.
    """

    words: Mapping[str, str]
    usual: Sequence[str]
    presets: Mapping[str, Sequence[str | Mapping[str, Any]]]

    def expand(self, name: str) -> list[str | Mapping[str, Any]]:
        """The steps that a short name stands for. Raises ConfigError, which gives the nearest names."""
        if name in self.presets:
            return list(self.presets[name])
        step = name.partition(":")[0]
        if step in STEPS.names and step not in self.words:
            short = next((word for word, long in self.words.items() if long == name), None)
            instead = f"{short!r}, or " if short else ""
            raise ConfigError(
                f"{step!r} is a step, and a recipe is named by short words; give {instead}a list of steps in a config "
                f"file: `recipe: [{name}]`"
            )
        words = name.split("-")
        for word in words:
            if word not in self.words:
                near = {*self.usual, *self.presets, *(name.replace(word, other) for other in self.words)}
                known = ", ".join(self.words)
                raise ConfigError(f"unknown recipe {name!r}; {did_you_mean(name, near)} (words: {known})")
        return [self.words[word] for word in words]

    def check(self, value: Given) -> Given:
        """`value` itself, which is a known short name if it is a text. Raises ConfigError."""
        if isinstance(value, str):
            self.expand(value)
        return value


_ERASED: Mapping[str, Any] = {
    "kind": "random-erasing",
    "probability": 0.25,
    "scale": [0.02, 0.333333],
    "ratio": [0.3, 3.333333],
    "fill": "noise",
}
"""What timm's options ``--reprob 0.25 --remode pixel`` do."""

_THREE = "choice:grayscale:1|solarize:1|gaussian-blur:1"
"""3-Augment, of DeiT III."""

_JITTERED: Mapping[str, Any] = {"kind": "colour-jitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
_MIXED: Mapping[str, Any] = {"kind": "mixup-or-cutmix", "mixup": 1.0, "cutmix": 1.0, "probability": 0.75}
"""Of ml-dr, which does each with chance one half, so that a quarter of its views are mixed twice: here once."""

_AFTER_CROP_AND_FLIP: Mapping[str, Sequence[str | Mapping[str, Any]]] = {
    # Shen and Xing, "A fast knowledge distillation framework for visual recognition", 2022: crops and flips alone.
    "fkd": (),
    # The defaults of TinyViT's config.py.
    "tinyvit": ("timm-randaugment:rand-m9-mstd0.5-inc1", _ERASED, "mixup-or-cutmix"),
    # ml-dr's configs/imagenet/reinforce/randaug.yaml and randaug_mixing.yaml.
    "dataset-reinforcement": ("randaugment", "random-erasing:0.25"),
    "dataset-reinforcement-mix": ("randaugment", "random-erasing:0.25", _MIXED),
    # Touvron et al., "DeiT III: revenge of the ViT", 2022, table 1.
    "deit3": (_THREE, _JITTERED, "mixup-or-cutmix"),
}

RECIPE_NAMES = RecipeNames(
    presets={
        f"{name}{ending}": (crop, "horizontal-flip", *steps)
        for name, steps in _AFTER_CROP_AND_FLIP.items()
        for ending, crop in (("", "random-resized-crop"), ("-32", "pad-and-crop"))
    },
    words={
        "clean": "resize-centre-crop",
        "crop": "random-resized-crop",
        "pad": "pad-and-crop",
        "flip": "horizontal-flip",
        "vflip": "vertical-flip",
        "jitter": "colour-jitter",
        "grayscale": "grayscale",
        "blur": "gaussian-blur",
        "solarize": "solarize",
        "randaugment": "randaugment",
        "timmaugment": "timm-randaugment",
        "trivialaugment": "trivialaugment",
        "autoaugment": "autoaugment:imagenet",
        "cifaraugment": "autoaugment:cifar10",
        "threeaugment": _THREE,
        "erase": "random-erasing",
        "noise": "random-erasing:0.25 fill=noise",
        "mixup": "mixup",
        "cutmix": "cutmix",
        "mix": "mixup-or-cutmix",
    },
    usual=(
        "clean",
        "crop",
        "crop-flip",
        "crop-flip-autoaugment",
        "crop-flip-cutmix",
        "crop-flip-erase",
        "crop-flip-jitter",
        "crop-flip-mix",
        "crop-flip-mixup",
        "crop-flip-randaugment",
        "crop-flip-randaugment-erase",
        "crop-flip-trivialaugment",
        "pad",
        "pad-flip",
        "pad-flip-cifaraugment",
        "pad-flip-cutmix",
        "pad-flip-erase",
        "pad-flip-mix",
        "pad-flip-mixup",
        "pad-flip-randaugment",
    ),
)
"""Recipes by short name: any words in a sensible order, or what other projects use; ``-32`` is for small images."""


def steps_in_words(recipe: Mapping[str, Any]) -> str:
    """The steps of a recipe, as a store keeps it, with all of their settings: ``pad-and-crop (padding 0.125)``."""
    steps = []
    for step in recipe["steps"]:
        settings = ", ".join(
            f"{name} {_in_words(value)}" for name, value in step.items() if name != "kind" and value is not None
        )
        steps.append(f"{step['kind']} ({settings})" if settings else step["kind"])
    return ", ".join(steps) or "no steps"


def _in_words(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return " | ".join(steps_in_words({"steps": [each]}) for each in value)
    if isinstance(value, list):
        return (" to " if len(value) == 2 else "/").join(map(_in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


RECORDED_VIEWS = "recorded"
"""The recipe of a dump onto a store whose views came with imported labels."""


class CodecChoice(Choice["Codec"]):
    """How logits are stored."""

    what = "codec"
    check = staticmethod(CODECS.check)

    def make(self) -> Codec:
        """Its codec. Raises ConfigError for one that is for features alone."""
        codec = CODECS.make(self.given)
        import_module("softlabels.codecs").check_for_logits(codec)
        return codec


class OutputChoice(Choice["Codec"]):
    """Another output of a teacher than its logits, and how it is stored.

    ``NAME`` is an entry of the mapping that the teacher returns, or the path of a module. ``NAME=MODULE[:POOL]`` calls
    a module's output, pooled or not, by a name of one's own. ``=CODEC`` may follow either. What stands alone behind the
    first ``=`` is a codec where it is a kind of codec, else a module. Or a mapping with `name`, and `module`, `pool`
    and `codec` where they are wanted.
    """

    what = "output"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        fields = _output_fields(given)
        name = fields["name"]
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name == LOGITS:
            raise ConfigError(
                f"{given!r} is no output: write NAME, NAME=CODEC or NAME=MODULE:POOL, with a name that is not logits"
            )
        CODECS.check(fields["codec"])
        try:
            read_address(fields["source"])
        except ValueError as problem:
            raise ConfigError(f"{given!r} is no output: {problem}") from problem
        return given

    @property
    def name(self) -> str:
        """What it is called in the store."""
        return str(_output_fields(self.given)["name"])

    @property
    def source(self) -> str:
        """What is read from the teacher: ``layer3`` or ``layer3:mean``."""
        return str(_output_fields(self.given)["source"])

    def make(self) -> Codec:
        """Its codec. Raises ConfigError for one that does not keep values as they are."""
        codec = CODECS.make(_output_fields(self.given)["codec"])
        import_module("softlabels.codecs").check_for_outputs(codec, self.name)
        return codec


def _output_fields(given: Given) -> dict[str, Any]:
    """`name`, `source` and `codec` of an output."""
    if isinstance(given, Mapping):
        unknown = sorted(given.keys() - {"name", "module", "pool", "codec"})
        if unknown or "name" not in given:
            raise ConfigError(
                f"an output has a `name`, and may have `module`, `pool` and `codec`; found {', '.join(map(str, given))}"
            )
        module, pool = str(given.get("module") or given["name"]), given.get("pool")
        source = module if pool is None else f"{module}:{pool}"
        return {"name": given["name"], "source": source, "codec": given.get("codec") or RAW}
    if not isinstance(given, str):
        return {"name": "", "source": "", "codec": RAW}
    name, equals, rest = given.partition("=")
    if equals and not rest:
        raise ConfigError(f"{given!r} is no output: nothing follows the `=`")
    if not rest or CODECS.has(without_settings(rest).partition(":")[0]):
        return {"name": name, "source": name, "codec": rest or RAW}
    source, _, codec = rest.partition("=")
    return {"name": name, "source": source, "codec": codec or RAW}


RAW = "dense:fp16-raw"
"""How outputs that are no logits are stored unless a codec is named."""


class LossChoice(Choice["Loss"]):
    """A soft loss."""

    what = "loss"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        kind = _loss_kind(given)
        if FEATURE_LOSSES.has(kind) and not LOSSES.has(kind):
            raise ConfigError(f"loss {kind!r} compares features; write it as `term=WEIGHT*{kind}@OUTPUT:LAYER`")
        return LOSSES.check(given)

    def make(self) -> Loss:
        """See `Choice.make`."""
        return LOSSES.make(self.given)


def term_losses(loss: object) -> Table[Loss]:
    """The table that a term's `loss` is of: `FEATURE_LOSSES` where it is of one of its kinds, else `LOSSES`."""
    return FEATURE_LOSSES if FEATURE_LOSSES.has(_loss_kind(loss)) else LOSSES


def _loss_kind(loss: object) -> str:
    kind = loss.get("kind") if isinstance(loss, Mapping) else getattr(loss, "kind", loss)
    return re.split(r"[:\s]", kind, maxsplit=1)[0] if isinstance(kind, str) else ""


class TermChoice(Choice["Term"]):
    """A further term of the loss: a mapping with `weight` and `loss`.

    ``WEIGHT*LOSS@OUTPUT:LAYER`` becomes one: the teacher's output, and the student's where it is called otherwise.
    """

    what = "term"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        if isinstance(given, str):
            weight, _, rest = given.partition("*")
            loss, at, outputs = rest.partition("@")
            try:
                given = {"weight": float(weight), "loss": loss.strip()}
            except ValueError:
                raise ValueError(
                    "a term is WEIGHT*LOSS such as 0.5*dist, WEIGHT*LOSS@OUTPUT such as 0.5*mse@avgpool, or "
                    "WEIGHT*LOSS@OUTPUT:LAYER, LAYER being the student's"
                ) from None
            if at:
                teacher, *student = map(str, read_addresses(outputs.strip()))
                if len(student) > 1:
                    raise ValueError(f"{outputs!r} names more than the teacher's output and the student's")
                given |= {"output": teacher, **({"student_output": student[0]} if student else {})}
        if isinstance(given, Mapping) and "loss" in given:
            table = term_losses(given["loss"])
            if table is FEATURE_LOSSES and given.get("output", LOGITS) == LOGITS:
                raise ConfigError(
                    f"loss {given['loss']!r} compares features; name an output: WEIGHT*LOSS@OUTPUT:LAYER, of the "
                    f"teacher and of the student"
                )
            kind = _loss_kind(given["loss"])
            if kind and given.get("output", LOGITS) != LOGITS and not table.has(kind):
                raise ConfigError(
                    f"unknown loss {kind!r}; {did_you_mean(kind, {*LOSSES.names, *FEATURE_LOSSES.names})}"
                )
            table.check(given["loss"])
        return given

    def make(self) -> Term:
        """See `Choice.make`."""
        term: type[Term] = import_module("softlabels.losses").Term
        if isinstance(self.given, term):
            return self.given
        if not isinstance(self.given, Mapping):
            raise ConfigError(f"a term is a mapping with `weight` and `loss`, not {self.given!r}")
        return validated(term, self.given, "term of the loss")


class BlendChoice(Choice["Blend"]):
    """How several teachers become one target."""

    what = "blend"
    check = staticmethod(BLENDS.check)

    def make(self) -> Blend:
        """See `Choice.make`."""
        return BLENDS.make(self.given)


class ImporterChoice(Choice["Source"]):
    """Whose label files are read, by name alone."""

    what = "project"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        if not isinstance(given, str):
            raise ConfigError(f"a project is a name, not {given!r}; {did_you_mean('', IMPORTERS.names)}")
        return IMPORTERS.check(given)

    @staticmethod
    def named() -> tuple[str, ...]:
        """All that can be written, which are few."""
        return IMPORTERS.names

    @property
    def name(self) -> str:
        """The project's name."""
        return str(self.given)

    def make(self) -> Source:
        """Raises ConfigError: files are opened for a data set, by `softlabels.importing.projects.open_source`."""
        raise ConfigError(f"label files of {self.name} are opened for a data set")

    def check_settings(self) -> None:
        """Nothing: there are none."""


class RecipeChoice(Choice["Recipe"]):
    """How views are drawn, or that they are recorded."""

    what = "recipe"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        return given if given == RECORDED_VIEWS else RECIPE_NAMES.check(given)

    @property
    def recorded(self) -> bool:
        """Whether the views are those of the store, which came with imported labels: no recipe is made of that name."""
        return self.given == RECORDED_VIEWS

    def make(self) -> Recipe:
        """See `Choice.make`."""
        make: Callable[[Given], Recipe] = import_module("softlabels.views").RECIPES.make
        return make(self.given)

    def check_settings(self) -> None:
        """See `Choice.check_settings`."""
        if not self.recorded:
            self.make()


class DataChoice(Choice["DataSet"]):
    """A data set, or a list of data sets that are one together."""

    what = "data set"
    many: ClassVar[bool] = True
    """Whether the command line takes several, which are one together."""

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        if not isinstance(given, list | tuple):
            return check_data(given)
        each = [DataChoice.of(one).given for one in given]
        return each[0] if len(each) == 1 else each

    @property
    def parts(self) -> list[Given]:
        """What was given, each data set for itself."""
        return list(self.given) if isinstance(self.given, list | tuple) else [self.given]

    @classmethod
    def of_object(cls, value: object) -> Given:
        """See `Choice`: what `open_images` takes or gives."""
        return {"kind": OBJECT, "images": import_module("softlabels.datasets").images_of(value)}

    def in_file(self) -> Given:
        """See `Choice.in_file`; opened images of ours by how they are opened again."""
        if isinstance(self.given, list | tuple):
            return [DataChoice(each).in_file() for each in self.given]
        if isinstance(self.given, Mapping) and self.given.get("kind") == OBJECT:
            return self.make().model_dump(mode="json")
        return super().in_file()

    def make(self) -> DataSet:
        """See `Choice.make`; nothing is opened."""
        make: Callable[[Given], DataSet] = import_module("softlabels.datasets").data_set
        return make(self.given)

    def check_settings(self) -> None:
        """See `Choice.check_settings`."""
        with contextlib.suppress(DataError):  # the directory is not there, which a finished run does without
            self.make()


class HeldOutChoice(DataChoice):
    """A data set to evaluate on, or ``none``."""

    many = False

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        return given if given == "none" else DataChoice.check(given)

    @property
    def none(self) -> bool:
        """Whether nothing is evaluated."""
        return self.given == "none"

    def check_settings(self) -> None:
        """See `Choice.check_settings`."""
        if not self.none:
            super().check_settings()


def _network_object(value: object, what: str) -> Given:
    """What stands for a network that a Python caller hands over. Raises ConfigError for other objects."""
    if not isinstance(value, import_module("torch").nn.Module):
        raise ConfigError(f"a {what} is a name, a mapping with a `kind`, or a torch.nn.Module, not {value!r}")
    return {"kind": OBJECT, "module": value}


class TeacherChoice(Choice["TeacherSpec"]):
    """A teacher."""

    what = "teacher"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        return check_network(given, TEACHERS)

    @classmethod
    def of_object(cls, value: object) -> Given:
        """See `Choice`: a torch.nn.Module."""
        return _network_object(value, cls.what)

    def make(self, weights: str | None = None, size: int | None = None, name: str | None = None) -> TeacherSpec:
        """See `Choice.make`; with these weights, for images of this size, called `name`."""
        make: Callable[..., TeacherSpec] = import_module("softlabels.models").teacher_spec
        return make(self.given, weights, size=size, name=name)


class NetworkChoice(TeacherChoice):
    """A network to evaluate: a teacher, or a run's folder or a file of weights by its path alone."""

    what = "network"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        if isinstance(given, str) and Path(given).exists():
            return given
        if isinstance(given, str) and "/" in given and ":" not in given:
            raise ModelError(
                f"no such file or folder: {given}; give a run's folder, a file of weights, or a network's name"
            )
        return check_network(given, TEACHERS)

    def make(self, weights: str | None = None, size: int | None = None, name: str | None = None) -> TeacherSpec:
        """See `TeacherChoice.make`."""
        there = isinstance(self.given, str) and Path(self.given).exists()
        return TeacherChoice(f"file:{self.given}" if there else self.given).make(weights, size, name)


class StudentChoice(Choice["StudentSpec"]):
    """A student."""

    what = "student"

    @staticmethod
    def check(given: Given) -> Given:
        """See `Choice`."""
        return check_network(given, STUDENTS)

    @classmethod
    def of_object(cls, value: object) -> Given:
        """See `Choice`: a torch.nn.Module."""
        return _network_object(value, cls.what)

    def make(self, weights: str | None = None, size: int | None = None) -> StudentSpec:
        """See `Choice.make`; with these weights, for images of this size."""
        make: Callable[..., StudentSpec] = import_module("softlabels.models").student_spec
        return make(self.given, weights, size=size)
