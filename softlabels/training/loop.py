"""Stage two: a student learns from stored labels, from hard labels, or with its teachers in the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.core.files import remove_leftovers
from softlabels.core.progress import Journal, Metrics
from softlabels.errors import ConfigError, RunError
from softlabels.loading.batches import Batch, LabelledPictures, batches
from softlabels.loading.samplers import OneViewEach, ShuffledShards
from softlabels.loading.views import Pictures
from softlabels.models import Preprocessing
from softlabels.models.devices import first_line, is_out_of_memory
from softlabels.training.checkpoints import load_checkpoint, save_checkpoint
from softlabels.training.distributed import ALONE, Processes
from softlabels.training.evaluate import Score
from softlabels.training.settings import Settings
from softlabels.training.state import Learner, Place
from softlabels.training.targets import Lesson

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in its own."""

_REST_SECONDS = 15.0
"""Least time between checkpoints at the ends of epochs, so that short epochs are not spent on writing."""

_SETTLED_EVERY = 20
"""Steps between looks at the loss: each look waits for the device, and for the other processes."""


@dataclass(frozen=True)
class Order:
    """Which samples each optimizer step sees: a function of (seed, epoch, step) alone.

    Each of a step's passes is cut into one slice per process, so that any number of processes makes the same steps.
    """

    pictures: Pictures
    settings: Settings
    processes: Processes = ALONE
    samples: LabelledPictures | None = None
    """Whose shards are visited one after the other, where the settings name a window of them."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last may hold fewer pictures."""
        samples = len(self.pictures.images) * self.settings.views_per_image
        return math.ceil(math.ceil(samples / self.settings.batch_size) / self.settings.accumulate)

    def epoch(self, epoch: int, first_step: int = 0) -> list[Share]:
        """What this process does of each step from `first_step` on."""
        numbers, size, accumulate = self._numbers(epoch), self.settings.batch_size, self.settings.accumulate
        passes = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        steps = [passes[start : start + accumulate] for start in range(0, len(passes), accumulate)]
        return [self._share(step) for step in steps[first_step:]]

    def _numbers(self, epoch: int) -> NDArray[np.int64]:
        seed, window, views = self.settings.seed, self.settings.shuffle_window, self.settings.views_per_image
        if window is None or self.samples is None:
            return OneViewEach(self.pictures, epoch, seed, views).numbers()
        return ShuffledShards(self.samples, window, epoch, seed, views).numbers()

    def _share(self, passes: list[NDArray[np.int64]]) -> Share:
        shares = [self.processes.share(each) for each in passes]
        # With common batch statistics all processes make all passes, on no picture if need be.
        kept = [each for each in shares if len(each) or self.settings.sync_bn]
        return Share(kept, sum(len(each) for each in passes))


@dataclass(frozen=True)
class Share:
    """One process's part of a step: sample numbers of its forward passes; pictures of all.

    None of the passes is empty unless batch statistics are common.
    """

    passes: list[NDArray[np.int64]]
    pictures: int


@dataclass(frozen=True)
class TrainReport:
    """The best and the last score, steps made in all, pictures per second and seconds of this call."""

    best: Score | None
    last: Score | None
    steps: int
    pictures_per_second: float
    seconds: float


def train(
    network: nn.Module,
    preprocessing: Preprocessing,
    lesson: Lesson,
    settings: Settings,
    *,
    folder: Path,
    place: Place,
    score: Callable[[nn.Module], Score] | None = None,
    keep: Callable[[str, nn.Module, Score | None], None],
    journal: Journal,
    note: Callable[[dict[str, Any]], None] | None = None,
) -> TrainReport:
    """Train to the last step, from the newest checkpoint in `folder` where there is one.

    Every process of `place` calls this; the first alone writes.

    Args:
        score: evaluates a network; None when there is nothing to evaluate on.
        keep: is given "best" or "last", the network and its score whenever one of them is to be written.
        note: is given each epoch's record as well.

    Raises:
        RunError: the loss is no longer finite, or a pass does not fit into memory; the last checkpoint stays.
        ConfigError: `patience` without anything to evaluate on, or a layer that the student has not.
    """
    if settings.patience is not None and score is None:
        raise ConfigError("`patience` needs images to evaluate on; name them with `eval_data`")
    processes = place.processes
    order = Order(lesson.samples.pictures, settings, processes, lesson.samples)
    per_epoch = order.steps_per_epoch
    steps = per_epoch * settings.epochs
    warmup = min(round(settings.warmup_epochs * per_epoch), steps // 2)
    learner = Learner(network, preprocessing, settings, steps, warmup, place)
    if processes.first:
        remove_leftovers(folder)
        remove_leftovers(folder / CHECKPOINTS)
    progress, records = _resume(learner, lesson, folder / CHECKPOINTS, journal, steps, place)
    metrics = Metrics(folder, keep_until=progress.step, records=records)
    if processes.first and progress.step:
        metrics.write()  # the files are those of the checkpoint from now on
    began, seen = time.monotonic(), 0
    saved = began

    def save() -> None:
        # The records first: a resumed run drops those of steps that its checkpoint has not made.
        nonlocal saved
        if processes.first:
            metrics.write()
        _save(learner, progress, metrics.records, folder, processes)
        progress.kept = progress.step
        saved = time.monotonic()

    def learn(passes: list[Batch], pictures: int) -> Tensor | None:
        told, of = lesson.step(passes, place.device, processes, progress.step / max(steps - 1, 1))
        left = iter(told)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            value, parts = next(left).loss(learner.logits(batch), of)
            said = [value, *(parts.get(name, value.new_zeros(())) for name in lesson.reported)]
            sums = torch.stack([each.detach().double() for each in said]) * pictures
            return value, torch.cat([sums, sums.new_full((1,), len(batch))])

        return learner.learn(passes, progress.step, loss)

    with journal.progress("train", steps, "steps", done=progress.step) as advance:
        while progress.step < steps and not progress.stale(settings.patience):
            epoch, within = divmod(progress.step, per_epoch)
            for passes, pictures in _passes(lesson, order.epoch(epoch, within), place):
                with _fitting(settings, processes):
                    progress.add(learn(passes, pictures))
                seen += pictures
                advance(1, f"epoch {epoch + 1}/{settings.epochs}")
                if progress.step % _SETTLED_EVERY == 0:
                    progress.settle(processes)
                if settings.saves_at(progress.step) and progress.step % per_epoch:
                    save()
            progress.settle(processes)
            learner.settle()
            record = {"epoch": epoch + 1, "step": progress.step, "lr": learner.lr, **progress.means(lesson.reported)}
            due = progress.step == steps or (epoch + 1) % settings.eval_every == 0
            if score is not None and due:
                record |= progress.scored(score(learner.best_network), learner.best_network, keep)
            ended = progress.step == steps or progress.stale(settings.patience)
            if ended:
                progress.finish(learner.best_network, keep)
            seconds = time.monotonic() - began
            record |= {"pictures_per_second": seen / max(seconds, 1e-9), "seconds": seconds}
            if processes.first:
                metrics.add(record)
                if note is not None:
                    note(record)
            progress.sums.zero_()
            rested = settings.checkpoint_every is None and processes.agreed(time.monotonic() - saved > _REST_SECONDS)
            if ended or rested or settings.saves_at(progress.step):
                save()
    if progress.step < steps:
        journal.say(f"stopped at step {progress.step:,} of {steps:,}: {progress.since_best} evaluations without a gain")
    seconds = time.monotonic() - began
    return TrainReport(progress.best, progress.last, progress.step, seen / max(seconds, 1e-9), seconds)


@contextmanager
def _fitting(settings: Settings, processes: Processes) -> Iterator[None]:
    """Turn an error of full memory into a line that says which settings make the same steps in less."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        reason, size = first_line(problem), settings.batch_size
    if size <= processes.count:
        raise RunError(f"not even one picture fits into memory ({reason}); take a smaller `student` or `size`")
    raise RunError(
        f"a pass of `batch_size={size}` does not fit into memory ({reason}); `batch_size={size // 2}` "
        f"`accumulate={2 * settings.accumulate}` makes steps of as many pictures; the last checkpoint is kept"
    )


@dataclass
class _Progress:
    """Where a run stands: steps made, sums over this epoch's pictures (loss, parts, count), scores so far.

    `recent` are this process's sums on its device that are not yet in `sums`; `kept` is the newest checkpoint's step.
    """

    step: int
    sums: Tensor
    recent: Tensor
    best: Score | None = None
    last: Score | None = None
    since_best: int = 0
    kept: int | None = None

    def add(self, sums: Tensor | None) -> None:
        self.step += 1
        if sums is not None:
            self.recent += sums

    def settle(self, processes: Processes) -> None:
        """Bring `sums` up to date, and see that the loss is finite."""
        self.sums += processes.total(self.recent).cpu()
        self.recent.zero_()
        if not math.isfinite(float(self.sums[0])):
            raise RunError(
                f"the loss is no longer finite at step {self.step}; lower `lr`, clip gradients (`clip_grad=1`) or "
                f"train without `amp=fp16`; "
                + (
                    "no checkpoint was written yet"
                    if self.kept is None
                    else f"the checkpoint of step {self.kept:,} is kept"
                )
            )

    def means(self, names: tuple[str, ...]) -> dict[str, float]:
        *sums, count = self.sums.tolist()
        return {name: value / max(count, 1) for name, value in zip(("loss", *names), sums, strict=True)}

    def scored(self, score: Score, network: nn.Module, keep: Callable[..., None]) -> dict[str, float]:
        self.last, self.since_best = score, self.since_best + 1
        if self.best is None or score.top1 > self.best.top1:
            self.since_best = 0
        if self.best is None or score.better_than(self.best):
            self.best = score
            keep("best", network, score)
        return {"top1": score.top1, "top5": score.top5, "cross_entropy": score.cross_entropy}

    def stale(self, patience: int | None) -> bool:
        return patience is not None and self.since_best >= patience

    def finish(self, network: nn.Module, keep: Callable[..., None]) -> None:
        keep("last", network, self.last)
        if self.best is None:
            keep("best", network, None)


def _passes(lesson: Lesson, shares: list[Share], place: Place) -> Iterator[tuple[list[Batch], int]]:
    """This process's batches of each step, and the pictures of all."""
    numbers = lesson.samples.ahead([each for share in shares for each in share.passes])
    source = batches(lesson.samples, numbers, workers=place.workers, device=place.device)
    for share in shares:
        yield [next(source) for _ in share.passes], share.pictures


def _save(
    learner: Learner, progress: _Progress, records: list[dict[str, Any]], folder: Path, processes: Processes
) -> None:
    progress.settle(processes)
    learner.settle()
    if not processes.first:
        return
    scores = {
        name: vars(score) if score else None for name, score in (("best", progress.best), ("last", progress.last))
    }
    own = {"sums": progress.sums, "since_best": progress.since_best, "records": records}
    state = {**learner.state(), **own, **scores}
    save_checkpoint(folder / CHECKPOINTS, progress.step, state)


def _resume(
    learner: Learner, lesson: Lesson, folder: Path, journal: Journal, steps: int, place: Place
) -> tuple[_Progress, list[dict[str, Any]] | None]:
    """Where the newest sound checkpoint stands, and the records of the epochs until then, where it holds them.

    Raises:
        RunError: no checkpoint is sound, or the one that is fits another network or optimizer.
    """
    # Read by the first process alone: the others may have started later, or see the folder from afar.
    found = place.processes.agreed(load_checkpoint(folder) if place.processes.first else None)
    empty = torch.zeros(len(lesson.reported) + 2, dtype=torch.float64)
    recent = torch.zeros_like(empty, device=place.device)
    if found is None:
        learner.load(place.processes.agreed(learner.state() if place.processes.first else {}))
        return _Progress(0, empty, recent), None
    step, state, problems = found
    try:
        learner.load(state)
        best, last = (Score(**state[name]) if state[name] else None for name in ("best", "last"))
        progress = _Progress(step, empty + state["sums"], recent, best, last, state["since_best"], kept=step)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as problem:
        raise RunError(
            f"checkpoint {step} in {folder} does not fit this run ({' '.join(str(problem).split())[:160]}); remove "
            f"{folder} to start it anew"
        ) from problem
    for each in problems:
        journal.say(f"{each}; the one before it is used")
    journal.say(f"going on from step {step:,} of {steps:,}")
    return progress, state.get("records")
