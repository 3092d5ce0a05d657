"""Stage two: a student learns from stored labels, from hard labels, or with its teachers in the loop."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softlabels.core.files import remove_leftovers
from softlabels.core.progress import Metrics, Terminal
from softlabels.core.signals import Terminated, noted
from softlabels.errors import ConfigError, RunError
from softlabels.loading.batches import Batch, LabelledViews, batches
from softlabels.loading.distributed import SINGLE, Ranks, StopVote
from softlabels.loading.samplers import OneViewEach, ShuffledShards
from softlabels.models import Preprocessing, write_weights
from softlabels.models.devices import first_line, is_out_of_memory
from softlabels.training.checkpoints import load_checkpoint, save_checkpoint
from softlabels.training.epoch_lines import EpochLines
from softlabels.training.evaluate import Evaluator, Score
from softlabels.training.heads import Heads
from softlabels.training.settings import TrainSettings
from softlabels.training.state import Runtime, TrainState
from softlabels.training.targets import Task

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in its own."""

_SECONDS_BETWEEN_CHECKPOINTS = 15.0
"""Least time between checkpoints at the ends of epochs, so that short epochs are not spent on writing."""

_LOSS_CHECKED_EVERY = 20
"""Steps between looks at the loss: each look waits for the device, and for the other processes."""


@dataclass(frozen=True)
class OptimizerStep:
    """One process's slice of an optimizer step: sample numbers of its passes, and the images of all processes.

    With `padded` the last pass is an image of another process, for one that has none: it makes the pass as all do, and
    adds nothing.
    """

    passes: list[NDArray[np.int64]]
    images: int
    padded: bool


@dataclass(frozen=True)
class StepSampler:
    """Which samples each optimizer step sees: a function of (seed, epoch, step) alone.

    Each pass of a step is cut into one slice per process, so that any number of processes makes the same steps.
    """

    samples: LabelledViews
    settings: TrainSettings
    ranks: Ranks = SINGLE

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last may hold fewer images."""
        samples = len(self.samples.pictures.images) * self.settings.views_per_image
        return math.ceil(math.ceil(samples / self.settings.batch_size) / self.settings.accumulate)

    def epoch(self, epoch: int, first_step: int = 0) -> list[OptimizerStep]:
        """This process's slice of each step from `first_step` on."""
        numbers, size, accumulate = self._numbers(epoch), self.settings.batch_size, self.settings.accumulate
        passes = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        steps = [passes[start : start + accumulate] for start in range(0, len(passes), accumulate)]
        return [self._slice(step) for step in steps[first_step:]]

    def _numbers(self, epoch: int) -> NDArray[np.int64]:
        seed, window, views = self.settings.seed, self.settings.shuffle_window, self.settings.views_per_image
        if window is None:
            return OneViewEach(self.samples.pictures, epoch, seed, views).numbers()
        return ShuffledShards(self.samples, window, epoch, seed, views).numbers()

    def _slice(self, passes: list[NDArray[np.int64]]) -> OptimizerStep:
        slices = [self.ranks.slice(each) for each in passes]
        padded = not len(slices[-1])  # only the last pass of an epoch may hold fewer images than there are processes
        if padded:
            slices[-1] = passes[-1][-1:]
        return OptimizerStep(slices, sum(len(each) for each in passes), padded)


@dataclass(frozen=True)
class TrainReport:
    """The best and the last score, steps and epochs made in all, images per second and seconds of this call.

    `best_epoch` is the one of the best score, None where that is not known.
    """

    best: Score | None
    last: Score | None
    steps: int
    pictures_per_second: float
    seconds: float
    epochs: int = 0
    best_epoch: int | None = None


def lengths(settings: TrainSettings, per_epoch: int) -> tuple[int, int]:
    """Optimizer steps of a run in all, and of its warmup."""
    steps = per_epoch * settings.epochs
    return steps, min(round(settings.warmup * per_epoch), steps // 2)


def train(
    network: nn.Module,
    preprocessing: Preprocessing,
    task: Task,
    settings: TrainSettings,
    *,
    folder: Path,
    runtime: Runtime,
    evaluator: Evaluator | None = None,
    metadata: Mapping[str, str] | None = None,
    terminal: Terminal,
    note: Callable[[dict[str, Any]], None] | None = None,
    heads: Heads | None = None,
) -> TrainReport:
    """Train to the last step, from the newest checkpoint in `folder` where there is one.

    Every process of `runtime` calls this; the first alone writes.

    Args:
        evaluator: scores the student; None when there is nothing to evaluate on.
        metadata: of the files of the student's best and last weights; None: none are written.
        note: is given each epoch's record as well.
        heads: layers that are trained beside the student, `make_heads`.

    Raises:
        KeyboardInterrupt: Ctrl-C; its last step has a checkpoint.
        Terminated: a signal asked this or another process of the run to end; its last step has a checkpoint.
        RunError: the loss is no longer finite, or a pass does not fit into memory; the last checkpoint stays.
        ConfigError: `patience` without anything to evaluate on, or a layer that the student has not.
    """
    if settings.patience is not None and evaluator is None:
        raise ConfigError("`patience` needs images to evaluate on; name them with `eval_data`")
    ranks, device = runtime.ranks, runtime.device
    sampler = StepSampler(task.samples, settings, ranks)
    per_epoch = sampler.steps_per_epoch
    steps, warmup = lengths(settings, per_epoch)
    state = TrainState(network, preprocessing, settings, steps, warmup, runtime, task.student_outputs, heads)
    files = _StudentFiles(folder, metadata if ranks.first else None)
    if ranks.first:
        remove_leftovers(folder)
        remove_leftovers(folder / CHECKPOINTS)
    progress, records = _resume(state, task, folder / CHECKPOINTS, terminal, steps, runtime)
    metrics = Metrics(folder, keep_until=progress.step, records=records)
    if ranks.first and progress.step:
        metrics.write()  # the files are those of the checkpoint from now on
    lines, note_loss = EpochLines(terminal, settings.epochs, task.loss_parts), ""
    began, seen, before = time.monotonic(), 0, progress.step
    vote, stopping = StopVote(ranks), False
    evaluated_every = settings.epochs if evaluator is None else settings.eval_every
    with terminal.progress("train", steps, "steps", done=progress.step) as advance, noted() as asked:
        for epoch, batches_of_epoch in _epochs(sampler, progress.step, evaluated_every, runtime):
            if progress.stale(settings.patience):
                break
            for step, passes in batches_of_epoch:
                with _memory_errors(settings, ranks):
                    done, epochs = progress.step / max(steps - 1, 1), (progress.step + 1) / per_epoch
                    supervised = [
                        task.supervision(batch, device, done, epochs, padding=step.padded and batch is passes[-1])
                        for batch in passes
                    ]
                    counts = task.counts(supervised, device, ranks)
                    state.begin(progress.step, len(passes))
                    for each in supervised:
                        outputs = state.forward(each.batch)
                        loss, parts = each.loss(outputs, counts)
                        state.backward(loss)
                        progress.add(loss, parts, step.images, each.rows)
                    state.step()
                progress.step += 1
                seen += step.images
                advance(1, f"epoch {epoch + 1}/{settings.epochs}{note_loss}")
                if progress.step % _LOSS_CHECKED_EVERY == 0:
                    progress.check(ranks)
                    note_loss = f", loss {progress.means()['loss']:.3g}"
                stopping = vote.stop(bool(asked()))
                if (settings.saves_at(progress.step) or stopping) and progress.step % per_epoch:
                    _save(state, progress, metrics, folder, ranks)
                    _end(stopping, asked())
            progress.check(ranks)
            state.average_statistics()
            record = {"epoch": epoch + 1, "step": progress.step, "lr": state.lr, **progress.means()}
            better = False
            if evaluator is not None and (progress.step == steps or (epoch + 1) % settings.eval_every == 0):
                score = evaluator.score(state.best_network)
                record |= score.metrics
                better = progress.improved(score, epoch + 1)
                if better:
                    files.write("best", state.best_network, score)
            ended = progress.step == steps or progress.stale(settings.patience)
            if ended:
                files.write("last", state.best_network, progress.last)
                if progress.best is None:
                    files.write("best", state.best_network, None)
            seconds = time.monotonic() - began
            record |= {"pictures_per_second": seen / max(seconds, 1e-9), "seconds": seconds}
            if ranks.first:
                metrics.add(record)
                left = 0.0 if ended else seconds / (progress.step - before) * (steps - progress.step)
                lines.ended(record, progress.best, progress.best_epoch, left, wanted=better or ended)
                if note is not None:
                    note(record)
            progress.sums.zero_()
            due = settings.saves_at(progress.step)
            if settings.checkpoint_every is None:
                due = ranks.broadcast(time.monotonic() - progress.saved > _SECONDS_BETWEEN_CHECKPOINTS)
            if ended or due or stopping:
                _save(state, progress, metrics, folder, ranks)
            _end(stopping and not ended, asked())
    if progress.step < steps:
        terminal.say(
            f"stopped at step {progress.step:,} of {steps:,}: {progress.since_best} evaluations without a gain"
        )
    seconds = time.monotonic() - began
    speed, epochs = seen / max(seconds, 1e-9), progress.step // per_epoch
    return TrainReport(progress.best, progress.last, progress.step, speed, seconds, epochs, progress.best_epoch)


def _end(stopping: bool, signal: str) -> None:
    if stopping:
        if signal == "SIGINT":
            raise KeyboardInterrupt
        raise Terminated(f"asked to end ({signal or 'another process was'})")


_StepBatches = Iterator[tuple[OptimizerStep, list[Batch]]]


def _epochs(
    sampler: StepSampler, done: int, evaluated_every: int, runtime: Runtime
) -> Iterator[tuple[int, _StepBatches]]:
    """Each epoch's number, and this process's batches of each step of it, from step `done` on.

    Workers start once and go on into the next epoch, except where the student is evaluated in between: that starts
    workers of its own, which no thread may disturb.
    """
    per_epoch, epochs = sampler.steps_per_epoch, sampler.settings.epochs
    while done < per_epoch * epochs:
        first, within = divmod(done, per_epoch)
        ends = min(epochs, (first // evaluated_every + 1) * evaluated_every)
        source = _batches(sampler, first, within, ends, runtime)
        for epoch in range(first, ends):
            left = per_epoch * (epoch + 1) - done
            done += left
            yield epoch, (source if epoch + 1 == ends else itertools.islice(source, left))


def _batches(sampler: StepSampler, first: int, within: int, ends: int, runtime: Runtime) -> _StepBatches:
    """From step `within` of epoch `first` to the end of the last epoch before `ends`."""
    steps: deque[OptimizerStep] = deque()

    def numbers() -> Iterator[NDArray[np.int64]]:
        for epoch in range(first, ends):
            made = sampler.epoch(epoch, within if epoch == first else 0)
            steps.extend(made)
            yield from sampler.samples.ahead([each for step in made for each in step.passes])

    source = batches(sampler.samples, numbers(), workers=runtime.workers, device=runtime.device)
    for batch in source:
        step = steps.popleft()
        yield step, [batch, *itertools.islice(source, len(step.passes) - 1)]


@contextmanager
def _memory_errors(settings: TrainSettings, ranks: Ranks) -> Iterator[None]:
    """Turn an error of full memory into a line that says which settings make the same steps in less."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        reason, size = first_line(problem), settings.batch_size
    if size <= ranks.count:
        raise RunError(f"not even one image fits into memory ({reason}); take a smaller `student` or `size`")
    raise RunError(
        f"a pass of `batch_size={size}` does not fit into memory ({reason}); `batch_size={size // 2}` "
        f"`accumulate={2 * settings.accumulate}` makes steps of as many images; the last checkpoint is kept"
    )


@dataclass(frozen=True)
class _StudentFiles:
    """Where the weights of a student are written, with what is known of it; nowhere without `metadata`."""

    folder: Path
    metadata: Mapping[str, str] | None

    def write(self, name: str, network: nn.Module, score: Score | None) -> None:
        if self.metadata is not None:
            scores = {"top1": f"{score.top1:.6f}"} if score else {}
            write_weights(self.folder / f"{name}.safetensors", network.state_dict(), {**self.metadata, **scores})


@dataclass
class _Progress:
    """Steps made, sums over this epoch's images (loss, each of `parts`, count), and scores so far.

    `recent` are this process's sums on its device that are not yet in `sums`; `kept` is the newest checkpoint's step,
    and `saved` when it was written.
    """

    parts: tuple[str, ...]
    step: int
    sums: Tensor
    recent: Tensor
    best: Score | None = None
    last: Score | None = None
    best_epoch: int | None = None
    since_best: int = 0
    kept: int | None = None
    saved: float = 0.0

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], images: int, rows: int) -> None:
        """Add what a pass of `rows` rows adds to the loss of a step of `images` images."""
        values = [loss, *(parts.get(name, loss.new_zeros(())) for name in self.parts)]
        sums = torch.stack([value.detach().double() for value in values]) * images
        self.recent += torch.cat([sums, sums.new_full((1,), rows)])

    def check(self, ranks: Ranks) -> None:
        """Bring `sums` up to date, and raise RunError when the loss is not finite."""
        self.sums += ranks.all_reduce(self.recent).cpu()
        self.recent.zero_()
        if not math.isfinite(float(self.sums[0])):
            kept = "no checkpoint was written yet"
            if self.kept is not None:
                kept = f"the checkpoint of step {self.kept:,} is kept"
            raise RunError(
                f"the loss is no longer finite at step {self.step}; lower `lr`, clip gradients (`clip_grad=1`) or "
                f"train without `amp=fp16`; {kept}"
            )

    def means(self) -> dict[str, float]:
        *sums, count = self.sums.tolist()
        return {name: value / max(count, 1) for name, value in zip(("loss", *self.parts), sums, strict=True)}

    def improved(self, score: Score, epoch: int) -> bool:
        """Take a new score, that of an epoch; whether it is the best so far."""
        self.last, self.since_best = score, self.since_best + 1
        if self.best is None or score.top1 > self.best.top1:
            self.since_best = 0
        better = self.best is None or score.better_than(self.best)
        if better:
            self.best, self.best_epoch = score, epoch
        return better

    def stale(self, patience: int | None) -> bool:
        return patience is not None and self.since_best >= patience


def _save(state: TrainState, progress: _Progress, metrics: Metrics, folder: Path, ranks: Ranks) -> None:
    if ranks.first:
        metrics.write()  # first: a resumed run drops the records of steps that its checkpoint has not made
    progress.check(ranks)
    state.average_statistics()
    if ranks.first:
        scores = {"best": progress.best, "last": progress.last}
        own = {"sums": progress.sums, "since_best": progress.since_best, "records": metrics.records}
        own["best_epoch"] = progress.best_epoch
        written = {name: asdict(score) if score else None for name, score in scores.items()}
        save_checkpoint(folder / CHECKPOINTS, progress.step, {**state.state_dict(), **own, **written})
    progress.kept, progress.saved = progress.step, time.monotonic()


def _resume(
    state: TrainState, task: Task, folder: Path, terminal: Terminal, steps: int, runtime: Runtime
) -> tuple[_Progress, list[dict[str, Any]] | None]:
    """The progress at the newest sound checkpoint, and the records of the epochs until then, where it holds them.

    Raises:
        RunError: no checkpoint is sound, or the one that is fits another network or optimizer.
    """
    # Read by the first process alone: the others may have started later, or see the folder from afar.
    found = runtime.ranks.broadcast(load_checkpoint(folder) if runtime.ranks.first else None)
    empty = torch.zeros(len(task.reported) + 2, dtype=torch.float64)
    progress = _Progress(task.reported, 0, empty, torch.zeros_like(empty, device=runtime.device))
    progress.saved = time.monotonic()
    if found is None:
        return progress, None
    step, held, problems = found
    try:
        state.load_state_dict(held)
        progress.step = progress.kept = step
        *sums, count = held["sums"].tolist()
        progress.sums[: len(sums)] = torch.tensor(sums, dtype=torch.float64)  # earlier versions summed up fewer parts
        progress.sums[-1] = count
        progress.since_best, progress.best_epoch = held["since_best"], held.get("best_epoch")
        progress.best, progress.last = (Score(**held[name]) if held[name] else None for name in ("best", "last"))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as problem:
        raise RunError(
            f"checkpoint {step} in {folder} does not fit this run ({' '.join(str(problem).split())[:160]}); remove "
            f"{folder} to start it anew"
        ) from problem
    for each in problems:
        terminal.say(f"{each}; the one before it is used")
    terminal.say(f"going on from step {step:,} of {steps:,}")
    return progress, held.get("records")
