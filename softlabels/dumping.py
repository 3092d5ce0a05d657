"""Stage one: a frozen teacher labels every picture whose shard is missing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels._philox import Words
from softlabels.codecs import Codec, Field
from softlabels.devices import SideStream, is_out_of_memory
from softlabels.errors import ModelError, StoreError
from softlabels.journal import Journal, plural, size
from softlabels.labels import layout_beside, machine_memory
from softlabels.pictures import Pictures
from softlabels.provenance import CPU, tagged
from softlabels.rendering import Renderer, check_alike
from softlabels.samples import Batch, LabelledPictures, Workers, batches
from softlabels.store import Shard, TeacherLabels
from softlabels.teachers import BatchSize, Teacher, teacher_passes
from softlabels.views import Recipe

_WAITING = 4
"""Batches that a GPU may be ahead of their encoding."""

_COPIES = {"hdf5": 2, "zarr": 3}
"""How often a shard is in memory while it is written, by format."""

DIGESTS_PER_SHARD = 8
"""Images of each shard whose rendered views are digested, evenly spread over its rows."""


@dataclass(frozen=True)
class DumpReport:
    """What a dump did: shards written, pictures rendered, seconds, labels kept, images that could not be read."""

    teacher: str
    shards: int
    pictures: int
    seconds: float
    labels: int
    skipped: dict[str, str] = field(default_factory=dict)


def dump(
    pictures: Pictures,
    teacher: Teacher,
    codec: Codec,
    labels: TeacherLabels,
    *,
    batch_size: BatchSize,
    compile: bool = False,
    workers: Workers = 0,
    part: tuple[int, int] = (0, 1),
    skip_bad_images: bool = False,
    renderer: Renderer | None = None,
    journal: Journal,
) -> DumpReport:
    """Write every shard of this part that is not there yet.

    Pictures are rendered by the workers, or by a `renderer` on its device; digests are those of the CPU's rendering.
    When the teacher's device is out of memory, the dump goes on with smaller batches.

    Batches never straddle shards, so what a batch holds, and with it the last bit of each logit, does not depend on
    where an earlier dump stopped.

    Raises:
        DataError: an image cannot be decoded (unless `skip_bad_images`).
        ModelError: the teacher gave logits that are not finite.
        StoreError: a shard cannot be written, or another process dumps the same part.
    """
    with labels.writing(part):
        return dump_shards(
            pictures,
            teacher,
            codec,
            labels,
            labels.missing(pictures.views, part),
            batch_size=batch_size,
            compile=compile,
            workers=workers,
            skip_bad_images=skip_bad_images,
            renderer=renderer,
            journal=journal,
        )


def dump_shards(
    pictures: Pictures,
    teacher: Teacher,
    codec: Codec,
    labels: TeacherLabels,
    shards: Sequence[Shard],
    *,
    batch_size: BatchSize,
    compile: bool = False,
    workers: Workers,
    skip_bad_images: bool,
    renderer: Renderer | None = None,
    journal: Journal,
) -> DumpReport:
    """Write these shards, in the place of damaged ones; `dump` says what can go wrong. Within `labels.writing`."""
    began, device = time.monotonic(), teacher.device
    counts = [count(shard) for shard in shards]
    if not shards:
        return DumpReport(teacher.name, 0, 0, 0.0, 0)
    passes = teacher_passes(teacher, batch_size, most=max(counts), compile=compile, say=journal.say)
    batch_size, total = passes.size, sum(counts)
    todo = (numbers for shard in shards for numbers in shard_batches(shard, pictures.views, batch_size))
    samples = LabelledPictures(pictures, tolerant=skip_bad_images, renderer=renderer)
    source, rendered_on = batches(samples, todo, workers=workers, device=device), renderer.name if renderer else CPU
    compared = rendered_on == CPU
    recorder = Recorder(labels, rendered_on, device)
    with journal.progress(f"dump {teacher.name}", total, "pictures") as advance, recorder:
        for done, shard in enumerate(shards):
            filling = Filling(shard, pictures, codec, teacher.classes)
            for _ in shard_batches(shard, pictures.views, batch_size):
                batch = next(source)
                if not compared and not batch.failed:
                    rows, views = batch.rows.numpy(), batch.views.numpy()
                    journal.say(check_alike(pictures, rows, views, batch.pictures, rendered_on))
                    compared = True
                recorder.enter(filling, batch, passes(batch.pictures))
                advance(len(batch), f"({len(shards) - done} shards waiting)")
            recorder.write(filling)
    skipped = {pictures.images.keys[row].as_py(): why for row, why in recorder.failed.items()}
    return DumpReport(teacher.name, len(shards), total, time.monotonic() - began, total - recorder.unlabelled, skipped)


def stored_as(codec: Codec, classes: int, *, beside: Mapping[str, Field]) -> dict[str, Any]:
    """What a teacher's card says of how its labels are coded, and with them what is recorded `beside` them."""
    fields = codec.layout(classes) | dict(beside)
    layout = {name: {"dtype": each.dtype, "shape": each.shape} for name, each in fields.items()}
    return {
        "codec": codec.model_dump(mode="json"),
        "layout": layout,
        "compression": "zstd" if codec.compressed else "none",
    }


def count(shard: Shard) -> int:
    """Labels in a shard."""
    return (shard.stop_row - shard.first_row) * (shard.stop_view - shard.first_view)


def shard_batches(shard: Shard, views: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """The sample numbers of a shard in batches: image by image, so that one decode serves all views of an image."""
    rows = np.arange(shard.first_row, shard.stop_row)
    numbers = (rows[:, None] * views + np.arange(shard.first_view, shard.stop_view)).reshape(-1)
    for start in range(0, len(numbers), batch_size):
        yield numbers[start : start + batch_size]


def check_memory(codec: Codec, classes: int, recipe: Recipe, shards: Iterable[Shard], format: str) -> tuple[int, int]:
    """Bytes that the largest of these shards takes in memory while it is made, and while it is written.

    Raises:
        StoreError: that is more than the machine has.
    """
    record = sum(each.nbytes for each in (codec.layout(classes) | layout_beside(recipe)).values())
    largest = max(shards, key=count, default=None)
    made = 0 if largest is None else count(largest) * record
    written = made * _COPIES[format]
    if largest is not None and written > machine_memory():
        raise StoreError(
            f"a shard of {plural(largest.rows, 'image')} and {plural(largest.views, 'view')} takes {size(written)} of "
            f"memory, and there are {size(machine_memory())}; make a new store with fewer --rows-per-shard, or dump "
            f"fewer --views at a time"
        )
    return made, written


class Filling:
    """A shard that is being filled, batch by batch, and written when it is full."""

    def __init__(self, shard: Shard, pictures: Pictures, codec: Codec, classes: int) -> None:
        extent = (shard.stop_view - shard.first_view, shard.stop_row - shard.first_row)
        layout = codec.layout(classes) | layout_beside(pictures.recipe)
        try:
            self._arrays = {name: np.zeros((*extent, *each.shape), each.dtype) for name, each in layout.items()}
        except MemoryError as problem:
            raise StoreError(
                f"a shard of {extent[1]:,} images and {extent[0]:,} views does not fit into memory; make a new store "
                f"with fewer --rows-per-shard, or dump fewer --views at a time"
            ) from problem
        self._shard, self._pictures, self._codec = shard, pictures, codec
        self.failed: dict[int, str] = {}

    def enter(self, batch: Batch, logits: Tensor) -> None:
        """Encode the logits (n, classes) of a batch of this shard; unreadable images are entered as unlabelled.

        Raises:
            ModelError: logits that are not finite; the image and view are named.
        """
        if batch.failed:
            logits = logits.clone()
            logits[torch.isin(batch.rows, torch.tensor(list(batch.failed))).to(logits.device)] = 0.0
            self.failed.update(batch.failed)
        check_finite(logits, batch, self._pictures)
        rows, views = batch.rows.numpy(), batch.views.numpy()
        label = dict(self._encoded(logits, self._pictures.words(rows, views)))
        label |= self._pictures.recorded(rows, views) or {}
        if self._pictures.recipe.mixes:
            members, label["mix_share"] = self._pictures.mixtures(rows, views)
            label["mix_partner"] = np.where(members >= 0, members, rows)
        for name, values in label.items():
            self._arrays[name][views - self._shard.first_view, rows - self._shard.first_row] = values

    def _encoded(self, logits: Tensor, words: Words) -> dict[str, np.ndarray]:
        """The codec's arrays: made on the logits' device, or by the CPU when memory is full there."""
        try:
            return self._codec.encode(logits, words)
        except RuntimeError as problem:
            if logits.device.type == "cpu" or not is_out_of_memory(problem):
                raise
        return self._codec.encode(logits.cpu(), words)

    @property
    def unlabelled(self) -> int:
        """Labels that are missing since their images failed."""
        return len(self.failed) * (self._shard.stop_view - self._shard.first_view)

    def write(self, labels: TeacherLabels, rendered_on: str = CPU) -> None:
        """Write the shard, whole or not at all."""
        found = shard_digests(self._shard, self._pictures, self.failed)
        digests = {row: [tagged(text, rendered_on) for text in texts] for row, texts in found.items()}
        labels.write(self._shard, self._arrays, skipped=self.failed, digests=digests)


class Recorder:
    """Encodes the logits of batches and writes full shards: at once, or beside a GPU in two threads.

    There one thread encodes and one writes, so that the GPU waits for neither packed bits nor a synced disk. At most
    `_WAITING` batches and one shard wait; then the caller does. After an error nothing more is encoded or written.

    Attributes:
        failed: images that could not be read, by row, of shards that are written.
        unlabelled: labels of these.
    """

    def __init__(self, labels: TeacherLabels, rendered_on: str, device: torch.device) -> None:
        self._labels, self._rendered_on, self._stream = labels, rendered_on, SideStream(device)
        self.failed: dict[int, str] = {}
        self.unlabelled = 0
        self._encoder, self._writer = (_Worker(device.type != "cpu") for _ in range(2))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._encoder.close(at_once=kind is not None)
        except BaseException:
            self._writer.close(at_once=True)
            raise
        self._writer.close(at_once=kind is not None)

    def enter(self, filling: Filling, batch: Batch, logits: Tensor) -> None:
        """Encode the logits of a batch into its shard; raises what went wrong with an earlier batch or shard."""
        mark = self._stream.mark()
        batch.pictures = batch.pictures.new_empty(0)  # they may be on the device, and are not needed any more

        def encode() -> None:
            with self._stream.after(mark):
                filling.enter(batch, logits)

        self._encoder.submit(encode, waiting=_WAITING)

    def write(self, filling: Filling) -> None:
        """Write this shard when all of its batches are encoded."""
        self._encoder.submit(lambda: self._writer.submit(lambda: self._write(filling), waiting=1), waiting=_WAITING)

    def _write(self, filling: Filling) -> None:
        filling.write(self._labels, self._rendered_on)
        self.failed |= filling.failed
        self.unlabelled += filling.unlabelled


class _Worker:
    """One thread that does what it is given in order, and nothing more after an error; or nobody, and all at once."""

    def __init__(self, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1) if beside else None
        self._given: deque[Future[None]] = deque()
        self._broken = False

    def submit(self, work: Callable[[], None], *, waiting: int) -> None:
        """Have this done, once fewer than `waiting` pieces of work wait; raises the error of an earlier one."""
        if self._thread is None:
            work()
            return
        while self._given and (len(self._given) >= waiting or self._given[0].done()):
            self._given.popleft().result()
        self._given.append(self._thread.submit(self._do, work))

    def close(self, *, at_once: bool) -> None:
        """Wait until all is done, or `at_once` only for what is being done; raises an error of it unless `at_once`."""
        if self._thread is None:
            return
        self._broken |= at_once
        self._thread.shutdown(wait=True, cancel_futures=at_once)
        if not at_once:
            for each in self._given:
                each.result()

    def _do(self, work: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            work()
        except BaseException:
            self._broken = True
            raise


def shard_digests(shard: Shard, pictures: Pictures, failed: Container[int]) -> dict[int, list[str]]:
    """Digests of the rendered views of a few of a shard's images, by row; those that `failed` are left out."""
    spread = np.linspace(shard.first_row, shard.stop_row - 1, DIGESTS_PER_SHARD).astype(np.int64)
    chosen = [row for row in np.unique(spread).tolist() if row not in failed]
    views = np.arange(shard.first_view, shard.stop_view)
    texts = pictures.digests(np.repeat(np.array(chosen, np.int64), len(views)), np.tile(views, len(chosen)))
    return {row: texts[i * len(views) : (i + 1) * len(views)] for i, row in enumerate(chosen)}


def check_finite(logits: Tensor, batch: Batch, pictures: Pictures) -> None:
    """Raise ModelError for logits that are NaN or infinite, naming the image and view."""
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        place = int((~finite).nonzero()[0])
        key = pictures.images.keys[int(batch.rows[place])].as_py()
        raise ModelError(
            f"the teacher gave NaN or infinite logits for image {key!r}, view {int(batch.views[place])}; check its "
            f"weights, or run it without --amp fp16"
        )
