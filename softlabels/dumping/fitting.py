"""Codecs that take something from their teacher: from a sample of its logits, before its card is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs import CODECS, Codec, ShardCodec
from softlabels.core.types import LOGITS
from softlabels.errors import ConfigError, DataError, ModelError
from softlabels.loading.batches import LabelledViews, Workers, batches
from softlabels.loading.samplers import spread
from softlabels.loading.views import ViewDataset
from softlabels.models import BatchSize, Teacher, classifier_weight, teacher_passes
from softlabels.store import TeacherCard

IMAGES, VIEWS = 256, 16
"""Of a sample, at most."""


def needs_fit(codec: Codec) -> TypeGuard[ShardCodec]:
    """Whether the codec is to take something from its teacher and has not done so."""
    return isinstance(codec, ShardCodec) and codec.fit is None


def as_there(codec: Codec, there: TeacherCard | None) -> Codec:
    """The codec with what the one of a card took from its teacher, where that is asked for in the same words."""
    if there is None or not needs_fit(codec):
        return codec
    held = CODECS.make(there.codec)
    same = isinstance(held, ShardCodec) and held.model_dump() | {"fit": None} == codec.model_dump()
    return held if same else codec


def sample_numbers(pictures: ViewDataset) -> NDArray[np.int64]:
    """Samples for a fit, ``row * views + view``, of some images all views or the first ones: int64 (images, views)."""
    rows, _ = spread(len(pictures.images), 1, IMAGES)
    return np.sort(rows)[:, None] * pictures.views + np.arange(min(pictures.views, VIEWS))


def fitted(
    codec: Codec,
    teacher: Teacher,
    pictures: ViewDataset,
    *,
    batch_size: BatchSize,
    workers: Workers,
    say: Callable[[str], None],
) -> Codec:
    """The codec with what it needs of this teacher, from its weights and what it says of a sample of the images.

    Raises:
        ConfigError: the images are too few to learn from.
        DataError: none of the sample can be read.
        ModelError: the teacher gives logits that are not finite.
    """
    assert needs_fit(codec)
    numbers = sample_numbers(pictures)
    passes = teacher_passes(teacher, batch_size, most=numbers.size, say=say)
    say(f"{teacher.name}: {codec.kind} looks at {numbers.size:,} of its logits first")
    found, failed = [], []
    for batch in batches(LabelledViews(pictures, tolerant=True), _cut(numbers, passes.size), workers=workers):
        found.append(passes(batch.pictures)[LOGITS].cpu())
        failed += list(batch.failed)
    logits = torch.cat(found).reshape(*numbers.shape, -1).transpose(0, 1)
    readable = ~np.isin(numbers[:, 0] // pictures.views, failed)
    if not readable.any():
        raise DataError(f"none of {len(readable)} images of {pictures.images.name} can be read; look at the files")
    logits = logits[:, torch.from_numpy(np.flatnonzero(readable))]
    if not logits.isfinite().all():
        raise ModelError(f"teacher {teacher.name} gave NaN or infinite logits; check its weights, or leave out `amp`")
    return fit_to_sample(codec, logits, views=pictures.views, weight=classifier_weight(teacher), whose=teacher.name)


def fit_to_sample(
    codec: ShardCodec, logits: Tensor, *, views: int, whose: str, weight: Tensor | None = None
) -> ShardCodec:
    """See `ShardCodec.fit_to`; errors name the teacher."""
    try:
        return codec.fit_to(logits, views=views, weight=weight)
    except ConfigError as problem:
        raise ConfigError(f"teacher {whose}: {problem}") from problem


def _cut(numbers: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    flat = numbers.reshape(-1)
    return (flat[start : start + size] for start in range(0, len(flat), size))
