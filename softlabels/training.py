"""Stage two: a student learns from stored labels, from hard labels, or with its teachers in the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from softlabels._philox import philox
from softlabels.checkpoints import load_checkpoint, save_checkpoint
from softlabels.errors import RunError, StoreError, did_you_mean
from softlabels.evaluating import Score
from softlabels.journal import Journal, Metrics
from softlabels.labels import Labels
from softlabels.losses import Blend, Objective
from softlabels.networks import Preprocessing
from softlabels.samples import Batch, LabelledPictures, OneViewEach, Pictures, as_mapping, batches
from softlabels.teachers import Teacher
from softlabels.views import Frame

Amp = torch.dtype | None

_DROPOUT = 6
"""Stream of chance for what a network draws itself."""


class Settings(BaseModel):
    """How a student is trained, whatever it learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(100, ge=1, description="times each image is seen (in another view each time)")
    batch_size: int = Field(256, ge=1, description="pictures per forward pass")
    accumulate: int = Field(1, ge=1, description="forward passes per optimizer step")
    views_per_image: int = Field(1, ge=1, description="views of an image that come together, sharing one decode")
    optimizer: str = Field("adamw", description="any optimizer of timm's factory: sgd, adamw, lamb, ...")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup_epochs: float = Field(5.0, ge=0, description="epochs of linear warmup")
    weight_decay: float = Field(0.05, ge=0, description="weight decay; norms and biases have none")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an exponential moving average that is evaluated")
    seed: int = Field(0, ge=0, description="seed of the student's initialisation and of the order")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations; the last is always evaluated")
    checkpoint_every: int | None = Field(
        None, ge=1, description="optimizer steps between checkpoints  [default: epoch]"
    )

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = list_optimizers()
        if name not in known:
            raise ValueError(f"unknown optimizer {name!r}; {did_you_mean(name, known)}")
        return name


class Targets(Protocol):
    """What the teachers say of a batch: logits (n, classes) on `device`, or None where there is no teacher."""

    def __call__(self, batch: Batch, device: torch.device) -> Tensor | None: ...


@dataclass(frozen=True)
class NoTargets:
    """Hard labels alone."""

    def __call__(self, batch: Batch, device: torch.device) -> None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class StoredTargets:
    """Labels read from a store, decoded and blended at the objective's temperature."""

    labels: Labels
    label_rows: NDArray[np.int64]
    blend: Blend
    temperature: float

    def __call__(self, batch: Batch, device: torch.device) -> Tensor:
        arrays = {name: as_mapping(each) for name, each in batch.arrays.items()}
        logits = self.labels.decode(arrays, self.temperature).to(device, non_blocking=True)
        words = None
        if self.blend.samples:
            words = self.labels.blend_words(self.label_rows[batch.rows.numpy()], batch.views.numpy())
        return self.blend(logits, temperature=self.temperature, words=words)


@dataclass(frozen=True)
class LiveTargets:
    """Teachers in the loop, each on its own rendering of the very same views: the control of every offline claim."""

    teachers: Sequence[Teacher]
    pictures: Sequence[Pictures]
    student_frame: Frame
    blend: Blend
    temperature: float

    def __call__(self, batch: Batch, device: torch.device) -> Tensor:
        rows, views = batch.rows.numpy(), batch.views.numpy()
        said = [
            teacher.logits(batch.pictures if pictures.frame == self.student_frame else pictures.render(rows, views))
            for teacher, pictures in zip(self.teachers, self.pictures, strict=True)
        ]
        words = self.pictures[0].words(rows, views) if self.blend.samples else None
        logits = torch.stack([logits.to(device) for logits in said])
        return self.blend(logits, temperature=self.temperature, words=words)


@dataclass(frozen=True)
class Joined:
    """Images that have labels: their rows in the data set and in the store, int64 (n,) each, and how many have none."""

    rows: NDArray[np.int64]
    label_rows: NDArray[np.int64]
    without: int


def join(keys: Any, labels: Labels, teachers: Sequence[str], *, leave_out: bool) -> Joined:
    """Find the labels of a data set by key; the data set may be a subset, a superset or in another order.

    Raises:
        StoreError: images without labels, unless `leave_out`; or none has labels.
    """
    found = labels.store.find(keys)
    held = found >= 0
    held[held] = labels.labelled(found[held], teachers)
    without = int((~held).sum())
    if not held.any():
        raise StoreError(f"no image of this data set has labels in {labels.store.root}; is --data the right one?")
    if without and not leave_out:
        first = keys[int(np.flatnonzero(~held)[0])].as_py()
        raise StoreError(
            f"{without:,} of {len(held):,} images have no labels in {labels.store.root} (first: {first!r}); "
            f"dump them, or train without them: --unlabelled leave-out"
        )
    return Joined(np.flatnonzero(held), found[held], without)


@dataclass(frozen=True)
class Order:
    """Which samples each optimizer step sees: a function of (seed, epoch, step) alone."""

    pictures: Pictures
    settings: Settings

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last may hold fewer pictures."""
        samples = len(self.pictures.images) * self.settings.views_per_image
        return math.ceil(math.ceil(samples / self.settings.batch_size) / self.settings.accumulate)

    def epoch(self, epoch: int, first_step: int = 0) -> list[list[NDArray[np.int64]]]:
        """Sample numbers of each step from `first_step` on, as the step's forward passes."""
        each = OneViewEach(self.pictures, epoch, self.settings.seed, self.settings.views_per_image)
        numbers, size, accumulate = each.numbers(), self.settings.batch_size, self.settings.accumulate
        passes = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        steps = [passes[start : start + accumulate] for start in range(0, len(passes), accumulate)]
        return steps[first_step:]


@dataclass(frozen=True)
class TrainReport:
    """The best and the last score, steps made in all, pictures per second and seconds of this call."""

    best: Score | None
    last: Score | None
    steps: int
    pictures_per_second: float
    seconds: float


class Learner:
    """A network with its optimizer, schedule, average and loss scale: all that a step changes."""

    def __init__(
        self, network: nn.Module, settings: Settings, steps: int, warmup: int, device: torch.device, amp: Amp
    ) -> None:
        self.network = network.to(device)
        self._settings, self._device, self._amp = settings, device, amp
        self._optimizer = create_optimizer_v2(
            network,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
        self._schedule = CosineLRScheduler(
            self._optimizer,
            t_initial=max(steps - warmup, 2),
            lr_min=settings.min_lr,
            warmup_t=warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self._average = ModelEmaV3(network, decay=settings.ema) if settings.ema else None
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return self._optimizer.param_groups[0]["lr"]

    @property
    def best_network(self) -> nn.Module:
        """What is evaluated and kept: the moving average where there is one."""
        return self._average.module if self._average is not None else self.network

    def learn(self, passes: Sequence[Batch], step: int, loss: Callable[[Batch], tuple[Tensor, Tensor]]) -> Tensor:
        """Make optimizer step number `step` (from 0), each picture of its passes weighing the same.

        `loss` gives a batch's mean loss and the terms to be reported; returns the terms summed over the pictures.
        """
        # Reseeded at each step, so that dropout too is a function of (seed, step) and a resumed run equals a whole one.
        torch.manual_seed(int(philox((self._settings.seed, _DROPOUT), (step, 0, 0, 0))[0] >> np.uint64(1)))
        self.network.train()
        total = sum(len(batch) for batch in passes)
        sums: list[Tensor] = []
        for batch in passes:
            value, terms = loss(batch)
            self._scaler.scale(value * (len(batch) / total)).backward()
            sums.append(terms.detach() * len(batch))
        if self._settings.clip_grad:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip_grad)
        self._schedule.step_update(step)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.network)
        return torch.stack(sums).sum(0)

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.module.state_dict() if self._average is not None else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])


@dataclass(frozen=True)
class Lesson:
    """What a student learns from: samples, what the teachers say of them, and what is to be minimised."""

    samples: LabelledPictures
    targets: Targets
    objective: Objective


def train(
    network: nn.Module,
    preprocessing: Preprocessing,
    lesson: Lesson,
    settings: Settings,
    *,
    folder: Path,
    device: torch.device,
    amp: Amp = None,
    workers: int = 0,
    score: Callable[[nn.Module], Score] | None = None,
    keep: Callable[[str, nn.Module, Score | None], None],
    journal: Journal,
) -> TrainReport:
    """Train to the last step, from the newest checkpoint in `folder` where there is one.

    Args:
        score: evaluates a network; None when there is nothing to evaluate on.
        keep: is given "best" or "last", the network and its score whenever one of them is to be written.

    Raises:
        RunError: the loss is no longer finite; the last checkpoint stays.
    """
    order = Order(lesson.samples.pictures, settings)
    per_epoch = order.steps_per_epoch
    steps = per_epoch * settings.epochs
    warmup = min(round(settings.warmup_epochs * per_epoch), steps // 2)
    learner = Learner(network, settings, steps, warmup, device, amp)
    progress = _resume(learner, folder / "checkpoints", journal, steps)
    metrics = Metrics(folder, keep_until=progress.step)
    began, seen = time.monotonic(), 0

    def loss(batch: Batch) -> tuple[Tensor, Tensor]:
        hard = batch.hard.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            logits = learner.network(preprocessing.normalise(batch.pictures.to(device, non_blocking=True)))
        value, terms = lesson.objective(logits, hard, lesson.targets(batch, device))
        reported = [value, *(terms.get(name, value.new_zeros(())) for name in ("hard", "soft")), value.new_ones(())]
        return value, torch.stack([each.detach().double() for each in reported])

    with journal.progress("train", steps, "steps") as advance:
        advance(progress.step)
        while progress.step < steps:
            epoch, within = divmod(progress.step, per_epoch)
            for passes in _passes(lesson.samples, order.epoch(epoch, within), workers, device):
                progress.sums += learner.learn(passes, progress.step, loss).cpu()
                progress.step += 1
                seen += sum(len(batch) for batch in passes)
                advance(1, f"epoch {epoch + 1}/{settings.epochs}")
                _check(progress)
                every = settings.checkpoint_every
                if every and progress.step % every == 0 and progress.step % per_epoch:
                    _save(learner, progress, folder)
            record = {"epoch": epoch + 1, "step": progress.step, "lr": learner.lr, **progress.means()}
            due = progress.step == steps or (epoch + 1) % settings.eval_every == 0
            if score is not None and due:
                record |= progress.scored(score(learner.best_network), learner.best_network, keep)
            if progress.step == steps:
                progress.finish(learner.best_network, keep)
            seconds = time.monotonic() - began
            metrics.add(record | {"pictures_per_second": seen / max(seconds, 1e-9), "seconds": seconds})
            progress.sums.zero_()
            _save(learner, progress, folder)
    seconds = time.monotonic() - began
    return TrainReport(progress.best, progress.last, steps, seen / max(seconds, 1e-9), seconds)


@dataclass
class _Progress:
    """Where a run stands: steps made, sums over this epoch's pictures (loss, hard, soft, count), scores so far."""

    step: int
    sums: Tensor
    best: Score | None = None
    last: Score | None = None

    def means(self) -> dict[str, float]:
        loss, hard, soft, count = self.sums.tolist()
        return {name: value / max(count, 1) for name, value in (("loss", loss), ("hard", hard), ("soft", soft))}

    def scored(self, score: Score, network: nn.Module, keep: Callable[..., None]) -> dict[str, float]:
        self.last = score
        if self.best is None or score.top1 > self.best.top1:
            self.best = score
            keep("best", network, score)
        return {"top1": score.top1, "top5": score.top5, "cross_entropy": score.cross_entropy}

    def finish(self, network: nn.Module, keep: Callable[..., None]) -> None:
        keep("last", network, self.last)
        if self.best is None:
            keep("best", network, None)


def _passes(
    samples: LabelledPictures, steps: list[list[NDArray[np.int64]]], workers: int, device: torch.device
) -> Iterator[list[Batch]]:
    """The batches of each step."""
    numbers = (each for step in steps for each in step)
    source = batches(samples, numbers, workers=workers, pin_memory=device.type == "cuda")
    for step in steps:
        yield [next(source) for _ in step]


def _check(progress: _Progress) -> None:
    if not math.isfinite(float(progress.sums[0])):
        raise RunError(
            f"the loss is no longer finite at step {progress.step}; lower --lr, clip gradients (--clip-grad 1) or "
            f"train without --amp fp16; the last checkpoint is kept"
        )


def _save(learner: Learner, progress: _Progress, folder: Path) -> None:
    scores = {
        name: vars(score) if score else None for name, score in (("best", progress.best), ("last", progress.last))
    }
    save_checkpoint(folder / "checkpoints", progress.step, {**learner.state(), "sums": progress.sums, **scores})


def _resume(learner: Learner, folder: Path, journal: Journal, steps: int) -> _Progress:
    found = load_checkpoint(folder)
    if found is None:
        return _Progress(0, torch.zeros(4, dtype=torch.float64))
    step, state = found
    learner.load(state)
    journal.say(f"going on from step {step:,} of {steps:,}")
    best, last = (Score(**state[name]) if state[name] else None for name in ("best", "last"))
    return _Progress(step, state["sums"], best, last)
