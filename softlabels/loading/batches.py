"""Images with what is known of them: batches for both stages, and the data set for a loop of one's own.

A sample's number is ``row * views + view``. It says all there is to know, so workers, ranks, epochs and batches play no
part in what a sample shows, and any sampler or loader that hands out numbers keeps images and labels paired.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from softlabels.core import progress, signals
from softlabels.core.arrays import Rows
from softlabels.core.progress import waiting
from softlabels.datasets import open_images, report_decoding, subset
from softlabels.errors import ConfigError, RunError, SoftlabelsError, StoreError
from softlabels.loading.checks import check_classes, check_seen_views
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.views import ThreadPool, ViewDataset, check_number
from softlabels.models.devices import CPU, SideStream
from softlabels.views import ImageSpec

_AHEAD = 2
"""Batches that wait, beside those that threads are making."""

_PREFETCH = 4
"""Batches that each worker process makes ahead."""


@dataclass
class Batch:
    """Some samples: uint8 images (n, 3, H, W), rows and views (n,), hard labels or -1 (n,), codec arrays per teacher.

    Where the recipe mixes, `partners` (n,) are the hard labels of the partners and `shares` float32 (n,) how much of
    each view is the image's own. `failed` names the images that could not be decoded; their views are black.
    """

    pictures: Tensor
    rows: Tensor
    views: Tensor
    targets: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None
    arrays: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        n, _, _, size = self.pictures.shape
        more = [f"failed={len(self.failed)}"] if self.failed else []
        named = [f"labels of {', '.join(self.arrays)}"] if self.arrays else []
        return f"Batch({', '.join([f'{n} images of {size} px', *named, *more])})"

    def pin_memory(self) -> Batch:
        """Page-lock what goes to the device."""
        self.pictures, self.targets = self.pictures.pin_memory(), self.targets.pin_memory()
        return self


class LabelledViews(Dataset[Batch]):
    """Images with their hard labels and stored labels; one item is a whole `Batch`.

    `label_rows` (images,) maps a row of the data set to its row in the store. Stored arrays come as the codec wrote
    them; who computes the target decodes them. Where the images are shown in views of their own, `label_views` is how
    many the labels have: view v then goes with the label of view v modulo `label_views`.
    """

    def __init__(
        self,
        pictures: ViewDataset,
        labels: Labels | None = None,
        label_rows: Rows | None = None,
        teachers: Sequence[str] = (),
        *,
        tolerant: bool = False,
        label_views: int | None = None,
    ) -> None:
        self.pictures, self.labels, self.label_rows, self.teachers = pictures, labels, label_rows, tuple(teachers)
        self.label_views = label_views or pictures.views
        self._tolerant = tolerant
        if labels is not None:
            labels.before_fork()

    @property
    def views(self) -> int:
        """Views per image."""
        return self.pictures.views

    def runs(self) -> Rows:
        """The run of rows, and so the shards, in which each image's labels lie: int64 (images,)."""
        if self.labels is None or self.label_rows is None:
            return np.zeros(len(self.pictures.images), np.int64)
        return self.labels.store.manifest.runs.of(self.label_rows)

    def ahead(self, numbers: Sequence[Rows]) -> Iterator[Rows]:
        """These arrays of sample numbers, one by one, while a thread makes their labels ready where that takes time."""
        if self.labels is None or self.label_rows is None or not numbers:
            yield from numbers
            return
        rows, views = np.divmod(np.concatenate(numbers), self.pictures.views)
        # Worker processes are forked between the first and the second: no thread may hold a lock then.
        yield numbers[0]
        with self.labels.ahead(self.label_rows[rows], views % self.label_views, self.teachers) as reached:
            place = len(numbers[0])
            for each in numbers[1:]:
                reached(place)
                place += len(each)
                yield each

    def __getitems__(self, numbers: Sequence[int] | Rows) -> Batch:
        return self.labelled(self.rendered(numbers))

    def rendered(self, numbers: Sequence[int] | Rows) -> Batch:
        """The batch without stored labels; threads may ask at the same time."""
        rows, views = np.divmod(np.asarray(numbers, np.int64), self.pictures.views)
        failed: dict[int, str] = {}
        batch = Batch(
            pictures=self.pictures.render(rows, views, failed if self._tolerant else None),
            rows=torch.from_numpy(rows),
            views=torch.from_numpy(views),
            targets=torch.from_numpy(self.pictures.images.labels[rows].astype(np.int64)),
            failed=failed,
        )
        if self.pictures.recipe.mixes:
            batch.partners, batch.shares = self._mixtures(rows, views)
        return batch

    def labelled(self, batch: Batch) -> Batch:
        """The batch with stored labels; for one thread at a time, since shards are opened at first use."""
        if self.labels is not None and self.label_rows is not None:
            rows, views = self.label_rows[batch.rows.numpy()], batch.views.numpy() % self.label_views
            taken = self.labels.take(rows, views, self.teachers)
            batch.arrays = {name: {k: torch.from_numpy(a) for k, a in each.items()} for name, each in taken.items()}
        return batch

    def _mixtures(self, rows: Rows, views: Rows) -> tuple[Tensor, Tensor]:
        """Hard labels of the partners (the image's own where it is not mixed) and shares, (n,) each."""
        members, shares = self.pictures.mixtures(rows, views)
        pool = self.pictures.pool
        theirs = pool.images.labels[pool.rows[members]]
        hard = np.where(members >= 0, theirs, self.pictures.images.labels[rows]).astype(np.int64)
        return torch.from_numpy(hard), torch.from_numpy(shares.astype(np.float32))


@dataclass(frozen=True)
class Threads:
    """So many threads of this process, in the place of worker processes: decoders and kernels let go of the GIL."""

    count: int


Workers = int | Threads
"""Who makes batches ahead of their use: a number of processes (0: none, made when asked for), or threads."""


def prefetched(workers: Workers) -> int:
    """How many batches at most are made, or being made, before they are asked for."""
    return workers.count + _AHEAD if isinstance(workers, Threads) else workers * _PREFETCH


def batches(
    samples: LabelledViews,
    numbers: Iterable[NDArray[np.int64]],
    *,
    workers: Workers = 0,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """A `Batch` for each array of sample numbers, in that order, made in this process or by `workers`.

    For a CUDA `device`, images are copied there from page-locked memory while it computes earlier batches; other
    devices copy images when they use them.
    """
    stream = SideStream(device)
    for batch in _made(samples, numbers, workers, pin_memory=device.type == "cuda"):
        batch.pictures = stream.join(stream.send(batch.pictures, device))
        yield batch


def _made(
    samples: LabelledViews, numbers: Iterable[NDArray[np.int64]], workers: Workers, pin_memory: bool
) -> Iterator[Batch]:
    if workers == 0:
        made = (samples.__getitems__(each) for each in numbers)
        return (each.pin_memory() for each in made) if pin_memory else made
    if isinstance(workers, Threads):
        return _by_threads(samples, numbers, workers.count, pin_memory)
    if multiprocessing.current_process().daemon:  # as in a pool: such a process may have no children
        return _by_threads(samples, numbers, workers, pin_memory)
    return _by_processes(samples, numbers, workers, pin_memory)


_LOOK_SECONDS = 5
"""How often a process that waits for a batch looks whether the workers are there and their memory is not full."""

_LONGEST_WAIT = 1800.0
"""Seconds after which a batch is not waited for any more."""

_REMEDY = "use `workers=threads:N` or 0, a smaller `batch_size`, or a larger /dev/shm (docker run --shm-size 8g)"


def _by_processes(
    samples: LabelledViews, numbers: Iterable[NDArray[np.int64]], workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Worker processes send their batches through shared memory.

    Raises:
        ConfigError: /dev/shm has no room for one batch of each worker.
        RunError: a worker died, or no batch came for long; the cause is named.
        SoftlabelsError: what a worker could not make, as it raised it.
    """
    rest = iter(numbers)
    first = next(rest, None)
    if first is None:
        return
    size = len(first) * 3 * samples.pictures.image_spec.size**2
    prefetch = _prefetch(size, workers, samples.pictures.image_spec.size, len(first))
    # Anonymous memory, of which nothing is left however this process ends; only forked workers share it.
    decoding = mmap.mmap(-1, workers * _NAME_BYTES) if multiprocessing.get_start_method() == "fork" else None
    loader: DataLoader[Batch | _Refused] = DataLoader(
        _Rendered(samples),
        batch_sampler=(each.tolist() for each in itertools.chain([first], rest)),
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch,
        timeout=_LOOK_SECONDS,
        worker_init_fn=partial(_begin_worker, decoding),
    )
    source = _quiet_start(loader)
    for batch in _waited_for(source, workers, size, decoding):
        yield samples.labelled(batch)


def _waited_for(source: Any, workers: int, size: int, decoding: mmap.mmap | None) -> Iterator[Batch]:
    began = time.monotonic()
    while True:
        try:
            with waiting(f"a batch from {workers} worker processes"):
                batch = next(source, None)
        except (RuntimeError, OSError, EOFError) as problem:  # the latter when it died as it sent a batch
            if "timed out" not in str(problem):
                raise _death(source, decoding, problem) from problem
            free = shared_memory()
            if free is not None and free < size:
                raise RunError(
                    f"/dev/shm is full: a batch takes {progress.size(size)} and {progress.size(free)} are free; "
                    f"{_REMEDY}"
                ) from problem
            if time.monotonic() - began > _LONGEST_WAIT:
                raise RunError(
                    f"no batch came from {workers} worker processes in {progress.duration(time.monotonic() - began)}; "
                    f"look whether the images can be read, or use `workers=threads:N`"
                ) from problem
            continue
        if batch is None:
            return
        if isinstance(batch, _Refused):
            raise batch.problem
        yield batch
        began = time.monotonic()


def _prefetch(size: int, workers: int, side: int, count: int) -> int:
    """How many batches of `size` bytes each worker may be ahead; ConfigError where there is no room for one."""
    free = shared_memory()
    if free is None:
        return _PREFETCH
    ahead = int(0.9 * free / max(1, size * workers))
    if ahead < 1:
        raise ConfigError(
            f"/dev/shm has {progress.size(free)} free, and {workers} worker processes need "
            f"{progress.size(size * workers)} for a batch of {count:,} images of {side} px each; {_REMEDY}"
        )
    return min(ahead, _PREFETCH)


def shared_memory() -> int | None:
    """Bytes that are free in /dev/shm for a process of this run; None where there is no such place."""
    try:
        there = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return None
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # as torchrun says it
    return there.f_bavail * there.f_frsize // max(1, int(here) if here.isdecimal() else 1)


def _quiet_start(loader: DataLoader[Any]) -> Any:
    """An iterator of the loader, which raises in `next` alone.

    torch raises from a signal handler when a worker dies, wherever this process then is.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        return iter(loader)
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _death(source: Any, decoding: mmap.mmap | None, problem: Exception) -> SoftlabelsError:
    """Why a worker died, as far as its exit code and the last image that it decoded tell."""
    processes = list(getattr(source, "_workers", []))
    until = time.monotonic() + 2  # its end may be known a moment later
    while time.monotonic() < until and not any(process.exitcode for process in processes):
        # A handler of SIGCHLD that an earlier loader of this process left raises wherever this process is.
        with contextlib.suppress(RuntimeError):
            time.sleep(0.02)
    ended = [(number, process.exitcode) for number, process in enumerate(processes) if process.exitcode]
    if not ended:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        return RunError(f"a worker process failed ({reason}); use `workers=threads:N`, or 0")
    number, code = ended[0]
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if name == "SIGKILL":
        return RunError(
            "a worker process was killed (SIGKILL), most likely as memory ran out; use fewer `workers` or a smaller "
            "`batch_size`"
        )
    if name == "SIGBUS":
        return RunError(f"a worker process ended with SIGBUS: /dev/shm is full; {_REMEDY}")
    if decoding is not None:
        held = decoding[number * _NAME_BYTES : (number + 1) * _NAME_BYTES]
        where = held.partition(b"\0")[0].decode(errors="replace")
        if where:
            return RunError(f"a worker process ended with {name} as it decoded {where}; repair or remove that image")
    return RunError(f"a worker process ended with {name}; use `workers=threads:N` or 0 to see where")


def _begin_worker(decoding: mmap.mmap | None, worker: int) -> None:
    """In a worker: keep the name of the image that is being decoded in memory that outlives the process."""
    signals.put_off()
    if decoding is None:
        return
    begin = worker * _NAME_BYTES

    def report(where: str) -> None:
        name = where.encode(errors="replace")[: _NAME_BYTES - 1]
        decoding[begin : begin + len(name) + 1] = name + b"\0"

    report_decoding(report)


_NAME_BYTES = 4096


@dataclass(frozen=True)
class _Refused:
    """What a worker could not make; a raised error would come with the worker's traceback as its text."""

    problem: SoftlabelsError


@dataclass(frozen=True)
class _Rendered(Dataset[Batch]):
    """What worker processes make: no labels, which the receiver gathers in less time than it takes to send them."""

    samples: LabelledViews

    def __getitems__(self, numbers: Sequence[int]) -> Batch | _Refused:
        try:
            return self.samples.rendered(numbers)
        except SoftlabelsError as problem:
            return _Refused(problem)


def _by_threads(
    samples: LabelledViews, numbers: Iterable[NDArray[np.int64]], threads: int, pin_memory: bool
) -> Iterator[Batch]:
    """Each batch is one thread's, which fills its memory from end to end; nothing is sent."""

    def rendered(each: NDArray[np.int64]) -> Batch:
        batch = samples.rendered(each)
        return batch.pin_memory() if pin_memory else batch

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for each in numbers:
                waiting.append(pool.submit(rendered, each))
                if len(waiting) > threads + _AHEAD:
                    yield samples.labelled(waiting.popleft().result())
            while waiting:
                yield samples.labelled(waiting.popleft().result())
        finally:
            for one in waiting:
                one.cancel()


Sample = tuple[Any, ...]
"""(image, hard label, target), and its number where it was asked for."""


class SoftLabelDataset(Dataset[Sample]):
    """Pair images with the teachers' stored labels, for a training loop of your own.

    Map-style, ``len(images) * views`` items, of the views that all `teachers` have. Item ``row * views + view`` is
    (image, hard label, target): uint8 (3, size, size), an int (-1 where there is none, or where the view is mixed of
    two images), float32 (classes,). Works with `torch.utils.data.DataLoader` and `torch.nn.CrossEntropyLoss` as they
    are; give the loader a `OneViewEach` sampler to see one view of each image per epoch. `make_loader` does both.

    Args:
        labels: what `open_labels` gives, or takes.
        images: what `open_images` gives, or takes (a folder, a torchvision ``ImageFolder``): the data set that was
            labelled, some of it, or another one with the same keys. Images are joined to labels by key.
        size: side of the images in pixels, usually 32 to 384; any size shows the views that the teacher saw.
        teachers: names to blend; None for all.
        temperature: of the target, usually 1 to 4: probabilities are softened by it. Logits of one teacher stay as they
            are; those of several are blended so that their softmax at this temperature is the blended target.
        blend: how several teachers become one target: ``mean-probabilities``, ``mean-logits``, ...
        interpolation: how images are resized; None: as the teachers saw them, which their cards say.
        unlabelled: what becomes of images without a label, since they are not in the store or a teacher could not read
            them: "refuse", or "leave-out"; then `pictures.images` are the others.
        threads: how many threads of this process share the images of a batch; 1 for none beside the caller. They take
            the place of a `DataLoader`'s worker processes: a batch is made where it is used, and never sent.
        target: "probabilities", whose rows sum to 1; or "logits", up to a constant per row, for the losses of
            `softlabels.losses`.
        return_index: end each item with its number, ``row * views + view``.
        pixels: "same", or "other" for images that show something else than the teachers saw under the same keys (edges,
            grey, a second camera): then views are not compared with what the teachers saw.

    Raises:
        KeyError: images that are not in the store; the first are named.
        ConfigError: classes of other names or in another order than the store's, fewer than one thread, a temperature,
            blend or target that these labels do not support, or teachers that saw images of different interpolations
            and none is chosen.
        StoreError: a teacher of `teachers` is not there or has no complete view, could not read some images, or saw
            other images under these keys, as far as a few views tell.

    Example:
        >>> labels, images = softlabels.open_labels("shards/"), softlabels.open_images("digits")
        >>> dataset = softlabels.SoftLabelDataset(labels, images, size=8, temperature=2.0)
        >>> image, hard_label, probabilities = dataset[0]
        >>> len(dataset), image.shape, hard_label, probabilities.shape
        (2694, torch.Size([3, 8, 8]), 1, torch.Size([10]))
    """

    def __init__(
        self,
        labels: Labels | str | PathLike[str],
        images: Any,
        size: int = 224,
        teachers: Sequence[str] | None = None,
        temperature: float = 1.0,
        *,
        blend: Any = "mean-probabilities",
        interpolation: str | None = None,
        unlabelled: Literal["refuse", "leave-out"] = "refuse",
        threads: int = 1,
        target: Literal["probabilities", "logits"] = "probabilities",
        return_index: bool = False,
        pixels: Literal["same", "other"] = "same",
    ) -> None:
        if pixels not in ("same", "other"):
            raise ConfigError(f"pixels is 'same' or 'other', not {pixels!r}")
        if threads < 1:
            raise ConfigError(f"threads is a number from 1 upward, not {threads}; 1 is the caller alone")
        if target not in ("probabilities", "logits"):
            raise ConfigError(f"target is 'probabilities' or 'logits', not {target!r}")
        labels, images = labels if isinstance(labels, Labels) else open_labels(labels), open_images(images)
        self._crew = ThreadPool(threads) if threads > 1 else None
        self.labels, self.teachers, self.temperature, self.blend = labels, teachers, temperature, blend
        self.target, self.return_index = target, return_index
        self._targets(np.empty(0, np.int64), np.empty(0, np.int64))  # refuses now what items would
        views, names = labels.complete_views(teachers), labels.select(teachers)
        if unlabelled not in ("refuse", "leave-out"):
            raise ConfigError(f"unlabelled is 'refuse' or 'leave-out', not {unlabelled!r}")
        if unlabelled == "leave-out":
            rows = labels.store.find(images.keys)
            known = rows >= 0
            known[known] = labels.labelled(rows[known], names)
            if not known.any():
                raise StoreError(
                    f"no image of {images.name} has labels in {labels.store.location}; is it the right one?"
                )
            images = images if known.all() else subset(images, np.flatnonzero(known))
        self._rows = labels.rows(images.keys)
        for name in names:
            lost = self._rows[~labels.labelled(self._rows, [name])]
            if len(lost):
                raise StoreError(f"{labels.unlabelled_images(lost, name)} (unlabelled='leave-out')")
        if (images.labels >= 0).any():
            check_classes(images, labels.class_names, f"the labels in {labels.store.location}")
        check_seen_views(labels, images, names, pixels)
        labels.before_fork()
        image_spec = ImageSpec(size, _interpolation(labels, names) if interpolation is None else interpolation)
        self.pictures = ViewDataset.of_store(labels.store, images, views, image_spec)

    def __repr__(self) -> str:
        names = ", ".join(self.labels.select(self.teachers))
        return (
            f"SoftLabelDataset({self.pictures.images.name}: {len(self.pictures.images):,} images, {self.views} views "
            f"each, of {self.pictures.image_spec.size} px; {self.target} of {names} at temperature "
            f"{self.temperature:g})"
        )

    @property
    def views(self) -> int:
        """Views per image."""
        return self.pictures.views

    def runs(self) -> Rows:
        """The run of rows, and so the shards, in which each image's labels lie: int64 (images,)."""
        return self.labels.store.manifest.runs.of(self._rows)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> Sample:
        return self.__getitems__([check_number(number, len(self))])[0]

    def __getitems__(self, numbers: Sequence[int]) -> Samples:
        given = np.asarray(numbers, np.int64)
        rows, views = np.divmod(given, self.views)
        pictures = self.pictures.render(rows, views, thread_pool=self._crew)
        hard = self.pictures.images.labels[rows]
        if self.pictures.recipe.mixes:
            hard = np.where(self.pictures.mixtures(rows, views)[1] < 1, -1, hard)
        index = torch.from_numpy(given) if self.return_index else None
        targets = self._targets(self._rows[rows], views)
        return Samples(pictures, torch.from_numpy(hard.astype(np.int64)), targets, index)

    def _targets(self, rows: Rows, views: Rows) -> Tensor:
        made = self.labels.blended_logits if self.target == "logits" else self.labels.probabilities
        return made(rows, views, self.temperature, teachers=self.teachers, blend=self.blend)

    @staticmethod
    def collate(samples: list[Sample]) -> tuple[Tensor, ...]:
        """Make a batch of samples, (images, hard labels, targets) and, where asked for, indices, without copying it.

        For a `DataLoader`'s `collate_fn`; the usual one lays the images out anew, channel by channel. Here a pixel's
        channels lie together (torch.channels_last), as convolutions like them.
        """
        if isinstance(samples, Samples):
            return samples.batch
        pictures, hard, targets, *index = zip(*samples, strict=True)
        stacked = torch.stack(pictures).contiguous(memory_format=torch.channels_last)
        numbers = [torch.tensor(each, dtype=torch.int64) for each in (hard, *index)]
        return (stacked, numbers[0], torch.stack(targets), *numbers[1:])


def _interpolation(labels: Labels, teachers: Sequence[str]) -> str:
    """How all these teachers' images were resized, as their cards say; bilinear where they do not.

    Raises:
        ConfigError: they saw different ones.
    """
    seen = {name: labels.of(name).card.preprocessing.get("interpolation", "bilinear") for name in teachers}
    if len(set(seen.values())) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in seen.items())
        raise ConfigError(f"these teachers saw images of different interpolations ({shown}); choose interpolation=")
    return str(next(iter(seen.values())))


class Samples(list[Sample]):
    """Items that remember the `batch` they are of: uint8 (n, 3, size, size), int64 (n,) and float32 (n, classes), and
    where there is an `index` int64 (n,)."""

    def __init__(self, pictures: Tensor, hard: Tensor, targets: Tensor, index: Tensor | None = None) -> None:
        numbers = () if index is None else (index,)
        super().__init__(zip(pictures, hard.tolist(), targets, *(each.tolist() for each in numbers), strict=True))
        self.batch: tuple[Tensor, ...] = (pictures, hard, targets, *numbers)


def _as_it_is(batch: Any) -> Any:
    return batch


def as_mapping(arrays: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors of a batch as the numpy arrays that a codec decodes, without a copy."""
    return {name: tensor.numpy() for name, tensor in arrays.items()}
