"""Codecs that take something from their teacher: from a sample of what it gives, before its card is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.codecs import CODECS, Codec, FittedCodec
from softlabels.core.progress import plural
from softlabels.core.types import LOGITS, Outputs
from softlabels.errors import ConfigError, DataError, ModelError
from softlabels.loading.batches import LabelledViews, Workers, batches
from softlabels.loading.samplers import spread
from softlabels.loading.views import ViewDataset
from softlabels.models import BatchSize, Teacher, classifier_weight, teacher_passes
from softlabels.models.devices import Passes
from softlabels.store import TeacherCard


def needs_fit(codec: Codec) -> TypeGuard[FittedCodec]:
    """Whether the codec is to take something from its teacher and has not done so."""
    return isinstance(codec, FittedCodec) and codec.fit is None


def as_there(codec: Codec, there: TeacherCard | None) -> Codec:
    """The codec with what the one of a card took from its teacher, where that is asked for in the same words."""
    if there is None or not needs_fit(codec):
        return codec
    held = CODECS.make(there.codec)
    same = isinstance(held, FittedCodec) and held.model_dump() | {"fit": None} == codec.model_dump()
    return held if same else codec


def sample_numbers(pictures: ViewDataset, sample: tuple[int, int]) -> NDArray[np.int64]:
    """Samples for a fit, ``row * views + view``, of some images all views or the first ones: int64 (images, views).

    `sample` is how many images and views they are at most.
    """
    images, views = sample
    rows, _ = spread(len(pictures.images), 1, images)
    return np.sort(rows)[:, None] * pictures.views + np.arange(min(pictures.views, views))


def fitted(
    codecs: Mapping[str, Codec],
    teacher: Teacher,
    pictures: ViewDataset,
    *,
    sources: Mapping[str, str],
    widths: Mapping[str, int],
    batch_size: BatchSize,
    workers: Workers,
    say: Callable[[str], None],
) -> dict[str, Codec]:
    """The codecs of these outputs with what they need of this teacher, from its weights and what it gives of a sample.

    `sources` says what the teacher is asked for where that is not the output's name, `widths` how many values each of
    what it is asked for has. Codecs that need nothing stay as they are.

    Raises:
        ConfigError: the images are too few to learn from.
        DataError: none of the sample can be read.
        ModelError: the teacher gives values that are not finite.
    """
    made, lacking = dict(codecs), {name: codec for name, codec in codecs.items() if needs_fit(codec)}
    whose = {name: teacher.name if name == LOGITS else f"{teacher.name}, output {name!r}" for name in lacking}
    for name, codec in lacking.items():
        with _named(whose[name]):
            codec.check_width(widths[sources.get(name, name)])
    for sample in dict.fromkeys(codec.sample for codec in lacking.values()):
        of_sample = {name: codec for name, codec in lacking.items() if codec.sample == sample}
        asked = {name: sources.get(name, name) for name in of_sample}
        numbers, names = sample_numbers(pictures, sample), list(dict.fromkeys(asked.values()))
        passes = teacher_passes(teacher, batch_size, most=numbers.size, names=names, say=say)
        kinds = " and ".join(dict.fromkeys(codec.kind for codec in of_sample.values()))
        say(f"{teacher.name}: {kinds} looks at {numbers.size:,} of its labels first")
        values, kept = read_outputs(teacher, passes, pictures, numbers.reshape(-1), workers=workers)
        images = int(kept.sum()) // numbers.shape[1]
        for name, codec in of_sample.items():
            weight = classifier_weight(teacher) if name == LOGITS else None
            sampled = values[asked[name]].float().reshape(images, numbers.shape[1], -1).transpose(0, 1)
            made[name] = fit_to_sample(codec, sampled, views=pictures.views, weight=weight, whose=whose[name])
    return made


def read_outputs(
    teacher: Teacher, passes: Passes[Outputs], pictures: ViewDataset, numbers: NDArray[np.int64], *, workers: Workers
) -> tuple[Outputs, NDArray[np.bool_]]:
    """What the teacher gives of the samples `numbers`, ``row * views + view``, int64 (n,), whose images can be read.

    Returns:
        Each output that `passes` gives, (m, ...) on the CPU, and which of the samples they are of, bool (n,).

    Raises:
        DataError: none of the images can be read.
        ModelError: values that are not finite.
    """
    given: dict[str, list[Tensor]] = {}
    failed: set[int] = set()
    cut = (numbers[start : start + passes.size] for start in range(0, len(numbers), passes.size))
    for batch in batches(LabelledViews(pictures, tolerant=True), cut, workers=workers, device=teacher.device):
        failed.update(batch.failed)
        for name, values in passes(batch.pictures).items():
            given.setdefault(name, []).append(values.cpu())
    rows = numbers // pictures.views
    kept = ~np.isin(rows, list(failed))
    if not kept.any():
        raise DataError(
            f"none of {plural(len(np.unique(rows)), 'image')} of {pictures.images.name} can be read; look at the files"
        )
    outputs = {name: torch.cat(each)[torch.from_numpy(kept)] for name, each in given.items()}
    for name, values in outputs.items():
        if not values.isfinite().all():
            raise ModelError(
                f"teacher {teacher.name} gave NaN or infinite {name}; check its weights, or leave out `amp`"
            )
    return outputs, kept


def fit_to_sample(
    codec: FittedCodec, logits: Tensor, *, views: int, whose: str, weight: Tensor | None = None
) -> FittedCodec:
    """See `FittedCodec.fit_to`; errors name the teacher."""
    with _named(whose):
        return codec.fit_to(logits, views=views, weight=weight)


@contextmanager
def _named(whose: str) -> Iterator[None]:
    """Errors name the teacher."""
    try:
        yield
    except ConfigError as problem:
        raise ConfigError(f"teacher {whose}: {problem}") from problem
