"""A label store that an inference loop of the user's own fills."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from softlabels.codecs import CODECS, Codec, check_for_logits
from softlabels.core.types import LOGITS
from softlabels.datasets import Images, open_images
from softlabels.dumping.dump import LogitCheck, OnOddLogits, ShardBuilder, StoredOutput, shard_batches
from softlabels.dumping.fitting import as_there, fit_to_sample, needs_fit, sample_numbers
from softlabels.dumping.run import card
from softlabels.dumping.stores import make_store
from softlabels.errors import ConfigError
from softlabels.loading.batches import Batch, LabelledViews, Workers, batches
from softlabels.loading.views import ViewDataset
from softlabels.store import Store
from softlabels.views import RECIPES, ImageSpec, Recipe


class LabelWriter:
    """A label store that an inference loop of your own fills; made by `create_labels`."""

    def __init__(self, store: Store, images: Images, recipe: Recipe, views: int) -> None:
        self.store, self._images, self._recipe, self._views = store, images, recipe, views
        self._logits: Tensor | None = None
        self._waits = False

    def __repr__(self) -> str:
        return f"LabelWriter({self.store.location!r}, {len(self.store):,} images, {self._views} views)"

    def missing(
        self,
        teacher: str,
        *,
        size: int = 224,
        resize: int | None = None,
        interpolation: str = "bilinear",
        codec: Any = "dense",
        format: str = "hdf5",
        weights_sha256: str = "",
        licence: str | None = None,
        batch_size: int = 64,
        workers: Workers = 0,
        on_odd_logits: OnOddLogits = "fail",
    ) -> Iterator[Batch]:
        """Give batches of images that this teacher has not labelled; `put` the logits of each before the next.

        ``batch.pictures`` are its images, uint8 (n, 3, size, size); ``batch.rows`` and ``batch.views``, int64 (n,), say
        which views of which images they show. A shard is written as soon as the last of its batches is put; what was
        written is not asked for again.

        A codec that learns from a teacher (`transform`) is given some batches first, which it asks for again later.

        What is put is looked at as `softlabels dump` looks at a teacher's logits: with `on_odd_logits` "warn"
        probabilities in their place are a `UserWarning`, as are equal logits and a teacher that knows no label.

        Args:
            teacher: the name under which the labels are kept.
            size: side of the images that the network wants.
            resize: of the clean view, the shorter side before its centre is cut out.
            interpolation: how images are resized: ``bilinear``, ``bicubic`` or ``nearest``.
            codec: how logits are kept: ``dense`` (2 bytes a class), ``topk:10`` (18 bytes), ``transform:40``, ...
            format: ``hdf5`` or ``zarr``.
            weights_sha256: what tells the network's weights from others, for the record.
            licence: of the network's weights, for the record.
            batch_size: images in a batch, usually 64 to 512.
            workers: processes that make batches ahead; 0 for none.
            on_odd_logits: "fail" or "warn".

        Raises:
            ConfigError: the logits of the last batch were not put, or not one row for each image.
            ModelError: probabilities were put instead of logits, or logits that are not finite.
            StoreError: the store holds another teacher of this name, or cannot be written.
        """
        coding: Codec = CODECS.make(codec)
        check_for_logits(coding)
        image_spec = ImageSpec(size, interpolation, resize)
        pictures = ViewDataset.of_store(self.store, self._images, self._views, image_spec)
        classes = self.store.manifest.classes
        there = self.store.teacher(teacher).card if teacher in self.store.teachers else None
        coding = as_there(coding, there)
        if needs_fit(coding):
            sample = sample_numbers(pictures, coding.sample)
            todo = [each for each in np.array_split(sample.reshape(-1), -(-sample.size // batch_size)) if len(each)]
            said = []
            for batch in batches(LabelledViews(pictures), todo, workers=workers):
                yield from self._asked(batch)
                said.append(self._given(batch).cpu())
            logits = torch.cat(said).reshape(*sample.shape, classes).transpose(0, 1)
            coding = fit_to_sample(coding, logits, views=self._views, whose=teacher)
        own = card(
            spec={"kind": "own", "name": teacher},
            weights_sha256=weights_sha256,
            licence=licence,
            preprocessing={"size": size, "resize": resize, "interpolation": interpolation},
            codec=coding,
            classes=classes,
            format=format,
            images=self._images,
            recipe=self._recipe,
            there=there,
        )
        labels = self.store.prepare(teacher, own)
        outputs = [StoredOutput.of(labels)]
        look = LogitCheck(teacher, coding, on_odd_logits, _warn)
        with labels.writing():
            for shard in labels.missing(self._views):
                builder = ShardBuilder(shard, pictures, outputs)
                todo = list(shard_batches(shard, self._views, batch_size))
                for batch in batches(LabelledViews(pictures), todo, workers=workers):
                    yield from self._asked(batch)
                    given = self._given(batch)
                    if not look.done:
                        look.begin(batch, given)
                    builder.enter(batch, {LOGITS: given})
                    look.count(batch, given)
                builder.write()
        for line in look.lines():
            if line.startswith("warning: "):
                _warn(line)

    def _asked(self, batch: Batch) -> Iterator[Batch]:
        """Give a batch out."""
        self._logits, self._waits = None, True
        yield batch
        self._waits = False

    def _given(self, batch: Batch) -> Tensor:
        """What was put for it. Raises ConfigError where that are not its logits."""
        if self._logits is None:
            raise ConfigError("a batch got no logits; call put(logits) for each batch of missing(...)")
        if len(self._logits) != len(batch):
            raise ConfigError(
                f"a batch of {len(batch)} images got {len(self._logits)} rows of logits; put one for each"
            )
        return self._logits

    def put(self, logits: Tensor | ArrayLike) -> None:
        """Give the logits (n, classes) of the batch that `missing` gave last: a tensor, an array or a list of rows.

        Raises:
            ConfigError: they are no numbers, or of another width than the store's, or no batch waits for them.
        """
        if not self._waits:
            raise ConfigError("no batch waits for logits; put them once for each batch of missing(...)")
        wanted = f"put takes logits (images, {self.store.manifest.classes}), one row for each image"
        if not isinstance(logits, Tensor):
            try:
                logits = torch.from_numpy(np.array(logits, np.float32))
            except (TypeError, ValueError) as problem:
                raise ConfigError(f"{wanted}; got {type(logits).__name__} ({problem})") from problem
        if logits.ndim != 2 or logits.shape[1] != self.store.manifest.classes:
            raise ConfigError(f"{wanted}; got {tuple(logits.shape)}")
        self._logits, self._waits = logits.detach().to(torch.float32), False


@contextmanager
def create_labels(
    location: str | PathLike[str],
    *,
    images: Any,
    recipe: Any = "crop-flip",
    views: int = 8,
    seed: int = 0,
    classes: int,
    rows_per_shard: int = 4096,
    grow: bool = False,
) -> Iterator[LabelWriter]:
    """Create a label store that your own inference loop fills, or go on with the one that is there.

    Args:
        location: the store's folder.
        images: what `open_images` gives, or takes (a folder, a torchvision ``ImageFolder``).
        recipe: the random augmentation of which views are drawn: ``crop-flip``, ``pad-flip``, ``clean``, ...
        views: views of each image, usually 4 to 50.
        seed: of the views.
        classes: width of the logits.
        rows_per_shard: images per shard, which is what a crash can cost.
        grow: add images that the store does not have yet, instead of refusing them.

    Raises:
        StoreError: another data set, recipe or seed is in that place; the difference is shown.

    Example:
        >>> images = softlabels.open_images("digits")
        >>> with softlabels.create_labels("mine/", images=images, recipe="pad", views=2, classes=10) as store:
        ...     for batch in store.missing("mine", size=8):
        ...         store.put(network(batch.pictures / 255))
        >>> softlabels.open_labels("mine/").views
        2
    """
    if views < 1:
        raise ConfigError(f"views is a number from 1 upward, not {views}")
    images = open_images(images)
    made: Recipe = RECIPES.make(recipe)
    store, arranged = make_store(
        os.path.expanduser(location),  # noqa: PTH111
        images,
        made,
        seed=seed,
        classes=classes,
        rows_per_shard=rows_per_shard,
        grow=grow,
    )
    yield LabelWriter(store, arranged, made, views)


def _warn(line: str) -> None:
    warnings.warn(line.removeprefix("warning: "), stacklevel=3)
