"""Codecs: how a row of logits lies in bytes, and what it is when it comes back.

A codec is a frozen part of a config. It knows no files: it turns logits, float32 (labels, classes), into named numpy
arrays and back. What comes back is logits up to a constant per row; where a label has no value of its own for some
classes, they depend on the temperature at which they are softened, which is why `decode` is told.

    dense      every logit as a float                              dense, dense:fp16, dense:fp32
    quantized  every logit in 8 or 4 bits, a scale per row          quantized, quantized:4
    head_tail  the K highest, 2 or 4 bits for each other class      head_tail:10
    topk       the K highest, the others by their mass and mean     topk:10
    sampled    K classes drawn by chance, unbiased                  sampled:30
    transform  every logit coarsely in a basis of the teacher's     transform:40

    int8       features, not logits: 8 bits a value, a scale per row  int8
    pca        features: 8 bits for each of K principal components     pca:64

    probabilities  the K highest at one temperature alone, as other projects write them   probabilities:5
    top_logits     the K highest at any temperature, nothing for the others                 top_logits:10

All arrays have one fixed size per label, so that a label can be read from a memory map. They are stored uncompressed;
those of `transform` are compressed, and unpacked before they are mapped.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from softlabels.choices import CODECS
from softlabels.codecs._dense import Dense
from softlabels.codecs._head_tail import HeadTail
from softlabels.codecs._int8 import Int8
from softlabels.codecs._label import Field
from softlabels.codecs._pca import PrincipalComponents
from softlabels.codecs._probabilities import Probabilities
from softlabels.codecs._quantized import Quantized
from softlabels.codecs._sampled import Sampled
from softlabels.codecs._top_logits import TopLogits
from softlabels.codecs._topk import TopK
from softlabels.codecs._transform import TransformCoding
from softlabels.core.arrays import Arrays
from softlabels.core.philox import Words
from softlabels.core.types import FIT, SparseLogits
from softlabels.errors import ConfigError

__all__ = [
    "CODECS",
    "LEAST_LOGARITHM",
    "Codec",
    "Dense",
    "Field",
    "FittedCodec",
    "HeadTail",
    "Int8",
    "PrincipalComponents",
    "Probabilities",
    "Quantized",
    "Sampled",
    "ShardCodec",
    "SparseCodec",
    "SparseLogits",
    "TopK",
    "TopLogits",
    "TransformCoding",
    "check_for_logits",
    "check_for_outputs",
    "nearest_temperature",
    "spelled",
]


LEAST_LOGARITHM = -900.0
"""What codecs without logits decode for a class of probability 0 lies below it, times the temperature; all logarithms
of probabilities that they keep lie above."""


@runtime_checkable
class Codec(Protocol):
    """Both directions of one way to store labels."""

    @property
    def kind(self) -> str:
        """Its name in the table."""

    @property
    def compressed(self) -> bool:
        """Whether its shards are compressed on disk."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """The mapping that `CODECS.make` turns into this codec again."""

    def layout(self, classes: int) -> dict[str, Field]:
        """The arrays of one label."""

    def bytes_per_label(self, classes: int) -> float:
        """Bytes of one label of one view, before any compression."""

    @property
    def has_logits(self) -> bool:
        """Whether a label has a logit for every class: False where classes may have nothing (a probability of 0).

        Losses and blends on logits, and `Labels.logits`, need labels that have.
        """

    @property
    def temperatures(self) -> tuple[float, float]:
        """Lowest and highest temperature at which its labels are valid; equal for labels of one temperature alone."""

    @property
    def deepest(self) -> float:
        """Logits farther than this below the highest one of their row are stored as if they lay there."""

    def check_temperature(self, temperature: float) -> None:
        """Refuse a temperature at which the labels are not valid.

        Raises:
            ConfigError: with the codec, its range, and the flags that help.
        """

    def encode(self, logits: Tensor, words: Words | None = None) -> dict[str, np.ndarray]:
        """Arrays (n, *shape) as `layout` says, of finite logits, float32 (n, classes).

        A row's bytes depend on that row alone, and on its random word, uint64 (n,), where the codec draws.

        Raises:
            ConfigError: the logits are no matrix of floats, or words are needed and missing.
        """

    def decode(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> Tensor:
        """Logits, float32 (n, classes) on the CPU, such that softmax(logits / temperature) is the label there.

        Without a temperature it is 1, or the one that the labels are of.

        Raises:
            StoreError: the arrays are of another layout, or damaged.
        """


@runtime_checkable
class FittedCodec(Codec, Protocol):
    """A codec that takes from each teacher what it needs (`fit`)."""

    @property
    def fit(self) -> Any:
        """What it took from the teacher; None where that is still to be done."""

    @property
    def sample(self) -> tuple[int, int]:
        """Of how many images, and how many views of each, it takes that at most."""

    def check_width(self, values: int) -> None:
        """Refuse rows of so many values, before a sample is taken. Raises ConfigError."""

    def fit_to(self, logits: Tensor, *, views: int, weight: Tensor | None = None) -> FittedCodec:
        """The same with what it needs of the teacher that gave these logits or values (views, images, classes)."""

    def decode(
        self,
        arrays: Arrays,
        classes: int,
        *,
        temperature: float | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """See `Codec.decode`; computed on `device`, the CPU if none is named, where the logits stay."""


@runtime_checkable
class ShardCodec(FittedCodec, Protocol):
    """A fitted codec that encodes all views of an image together."""

    def encode_shard(self, logits: Tensor) -> dict[str, np.ndarray]:
        """Arrays (views, images, *shape), or (1, images, *shape) of fields `per_image`, of logits of such a shape."""

    def encode_like(self, logits: Tensor, arrays: Arrays) -> dict[str, np.ndarray]:
        """The arrays (n, ...) that logits (n, classes) would have in the place of these: what is `per_image` stays."""


@runtime_checkable
class SparseCodec(Codec, Protocol):
    """A codec whose labels name K classes and give all others one logit."""

    def sparse(self, arrays: Arrays, classes: int, *, temperature: float | None = None) -> SparseLogits:
        """What `decode` gives, without building rows of all classes."""


def check_for_logits(codec: Codec) -> None:
    """Raises ConfigError where the codec is for features alone."""
    if not getattr(codec, "for_logits", True):
        raise ConfigError(
            f"`codec={codec.kind}` is for other outputs than the logits (`output=NAME={codec.kind}`); choose "
            f"quantized, which keeps logits in 8 bits"
        )


def check_for_outputs(codec: Codec, output: str) -> None:
    """Raises ConfigError where the codec keeps rows up to a constant alone, as logits may be kept and features not."""
    if not getattr(codec, "keeps_offset", False):
        raise ConfigError(
            f"output {output!r}: {spelled(codec)} is for logits, and does not keep other values as they are; write "
            f"dense:fp16-raw, dense:fp32, int8 or pca:64"
        )


def nearest_temperature(codec: Codec, temperature: float = 1.0) -> float:
    """The temperature nearest to this one at which the codec's labels are valid."""
    lowest, highest = codec.temperatures
    return min(max(temperature, lowest), highest)


def spelled(codec: Codec) -> str:
    """A codec as a person writes it: ``topk:10``; other settings where they are unusual: ``head_tail:10 bits=4``."""
    short = getattr(codec, "shorthand", None)
    said = {name: value for name, value in codec.model_dump(mode="json").items() if name != FIT}
    usual = {name: field.default for name, field in getattr(type(codec), "model_fields", {}).items()}
    others = {name: value for name, value in said.items() if name not in (short, "kind")}
    own = [f"{name}={value}" for name, value in others.items() if value != usual.get(name)]
    if short is None:
        return " ".join([codec.kind, *own])
    value = said[short]
    return " ".join([f"{codec.kind}:{f'{value:g}' if isinstance(value, float) else value}", *own])
