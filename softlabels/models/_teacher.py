"""Teachers: frozen networks that give their logits of images. A teacher knows no views and no files of labels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from softlabels.core.types import LOGITS, Outputs
from softlabels.errors import ConfigError, ModelError
from softlabels.models._outputs import OutputReader, set_mode, try_answer, weight_dtype
from softlabels.models._preprocessing import Preprocessing
from softlabels.models._weights import digest
from softlabels.models.devices import Passes, best_batch, find_device, first_line, is_out_of_memory

Amp = Literal["fp16", "bf16"]
BatchSize = int | Literal["auto"]
"""Images per forward pass; "auto": as many as are worth it and fit into memory."""

_AMP_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_MOST_AT_ONCE = 512
"""Images of the largest batch that "auto" tries: whoever makes batches holds several of them."""


class Teacher(Protocol):
    """A frozen network, ready to answer.

    `spec` is the part it was opened from, as JSON; `weights_sha256` is equal for equal weights, whatever file they came
    in; `class_names` is empty and `licence` None where they are not known.
    """

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def classes(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def licence(self) -> str | None: ...
    @property
    def device(self) -> torch.device: ...

    def compile(self, names: Collection[str] = (LOGITS,)) -> Teacher:
        """The same teacher, quicker for batches of one size, for these outputs; they are equal within rounding."""

    def logits(self, pictures: Tensor) -> Tensor:
        """uint8 images (n, 3, S, S) on any device to float32 logits (n, classes), each row its image's alone."""

    def outputs(self, pictures: Tensor, names: Collection[str] = (LOGITS,)) -> Outputs:
        """As `logits`, of these outputs (`softlabels.core.outputs`): float32, features as they are, (n, ...)."""


class TeacherSpec(Protocol):
    """A frozen, validated value that says which teacher: a `NetworkSpec`, or one that stands on another."""

    @property
    def kind(self) -> str: ...
    @property
    def short_name(self) -> str: ...
    @property
    def resolved(self) -> str: ...

    def model_dump(self, *, mode: str = ...) -> dict[str, Any]:
        """It as a mapping."""

    def check_weights(self, *, training: bool = False) -> None:
        """See `NetworkSpec.check_weights`."""

    def open(
        self,
        device: str | torch.device = "cpu",
        amp: Amp | None = None,
        classes: int | None = None,
        *,
        clean: bool = False,
        preprocessing: Preprocessing | None = None,
        role: str = "teacher",
    ) -> Teacher:
        """See `NetworkSpec.open`."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights, and what is known of it before it becomes a teacher.

    `own` is the preprocessing it comes with, `preprocessing` the one it is to be used with. `classes` is None when only
    a trial image shows; `where` names its weights in messages, `weights` is how its spec finds them again; `foreign`
    says that nothing is known of how it was written.
    """

    network: nn.Module
    own: Preprocessing
    preprocessing: Preprocessing
    classes: int | None
    class_names: tuple[str, ...] = ()
    licence: str | None = None
    where: str = ""
    weights: str | None = None
    foreign: bool = False


@dataclass(frozen=True)
class NetworkTeacher:
    """A network that answers in inference alone: eval mode, no gradients, weights frozen. Make one with `freeze`."""

    name: str
    spec: dict[str, Any]
    classes: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    weights_sha256: str
    licence: str | None
    device: torch.device
    amp: Amp | None
    network: nn.Module = field(repr=False)
    channels_last: bool
    role: str = "teacher"
    compiled: Callable[[Tensor], Any] | None = field(default=None, repr=False)
    """What `compile` made: it answers to uint8 images."""
    reader: OutputReader | None = field(default=None, repr=False)
    """What reads the outputs of `compiled`, whose layers had to be watched before it was compiled."""

    def compile(self, names: Collection[str] = (LOGITS,)) -> NetworkTeacher:
        """This teacher compiled with torch.compile, normalisation and all, for few sizes of batches: static shapes."""
        mean, std = (
            torch.tensor(each, device=self.device).view(3, 1, 1)
            for each in (self.preprocessing.mean, self.preprocessing.std)
        )
        kind = weight_dtype(self.network)

        def answered(pictures: Tensor) -> Any:
            return self.network(((pictures.to(torch.float32) / 255 - mean) / std).to(kind))

        reader = OutputReader(self.network, names)
        return replace(self, compiled=torch.compile(answered, dynamic=False), reader=reader)

    def logits(self, pictures: Tensor) -> Tensor:
        """See `Teacher.logits`."""
        return self.outputs(pictures)[LOGITS]

    def outputs(self, pictures: Tensor, names: Collection[str] = (LOGITS,)) -> Outputs:
        """uint8 images (n, 3, S, S) on any device to float32 outputs (n, ...) on the teacher's.

        They are normalised on the teacher's device. BatchNorm uses its stored statistics and dropout is off even when
        somebody has put the network into train mode since. Whether the numbers are finite is not looked at.

        Raises:
            ModelError: the images are of another kind, the network gives another shape or has no such output, or it
                cannot be compiled.
        """
        set_mode(self.network, False)
        with torch.inference_mode():
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            pictures = pictures.to(self.device, non_blocking=True).contiguous(memory_format=layout)
            normalised = pictures if self.compiled else self.preprocessing.normalise(pictures)
            with torch.autocast(self.device.type, _AMP_TYPES.get(self.amp or ""), enabled=self.amp is not None):
                found = self._answer(normalised, names)
        shape = tuple(found[LOGITS].shape) if LOGITS in found else (len(pictures), self.classes)
        if shape != (len(pictures), self.classes):
            raise ModelError(
                f"{self.role} {self.name} answers {len(pictures)} images with shape {shape}; "
                f"logits must be ({len(pictures)}, {self.classes})"
            )
        # A copy made out here is an ordinary tensor, which a loss may keep for its backward pass.
        return {name: each.to(torch.float32, copy=True) for name, each in found.items()}

    def _answer(self, pictures: Tensor, names: Collection[str]) -> Outputs:
        whose = f"{self.role} {self.name}"
        if self.compiled is None or self.reader is None:
            with closing(OutputReader(self.network, names)) as reader:
                return reader.read(self.network(pictures.to(weight_dtype(self.network))), whose)
        try:
            found = self.reader.read(self.compiled(pictures), whose)
            return {name: found[name] for name in names}
        except RuntimeError as problem:
            compilers = ("torch._dynamo", "torch._inductor", "torch._functorch")
            if is_out_of_memory(problem) or not type(problem).__module__.startswith(compilers):
                raise
            reason = first_line(problem)
            raise ModelError(f"{whose} cannot be compiled ({reason}); leave out `compile=True`") from problem


def freeze(
    loaded: LoadedNetwork,
    *,
    name: str,
    spec: dict[str, Any],
    device: str | torch.device,
    amp: Amp | None,
    classes: int | None,
    role: str = "teacher",
) -> NetworkTeacher:
    """The network as a teacher on `device`.

    `classes` is the count that the data set has (None: not to be compared); `role` is what messages call it.

    Raises:
        ModelError: the class counts differ, it normalises over the batch, or does not run.
        ConfigError: `amp` is unknown, or `device` cannot be used.
    """
    if amp is not None and amp not in _AMP_TYPES:
        raise ConfigError(f"mixed precision is fp16 or bf16, not {amp!r}; choose one with `amp` or leave it out")
    network, whose = loaded.network, f"{role} {name}"
    _refuse_batch_statistics(network, whose)
    fingerprint = digest(network.state_dict())
    moved = _moved(network, device)
    # The types of weights that autocast would change anyway, and layouts, are TorchScript's own affair.
    channels_last = is_convolutional(network) and not isinstance(network, torch.jit.ScriptModule)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    for parameter in network.parameters():  # TorchScript has no requires_grad_ of its own
        parameter.requires_grad_(False)
    # A network that we know runs at the size it was made for; only otherwise is an image spent on trying.
    trial = loaded.foreign or loaded.preprocessing.size != loaded.own.size
    width = try_answer(network, loaded.preprocessing, moved, whose) if trial else None
    count = loaded.classes or width or 0
    if width is not None and width != count:
        raise ModelError(f"{whose} ({loaded.where}) answers with {width} numbers, its weights have {count} classes")
    if classes is not None and classes != count:
        raise ModelError(
            f"{whose} ({loaded.where}) has {count} classes, the data set {classes}; "
            f"choose weights made for these classes, or other `data`"
        )
    set_mode(network, False)
    return NetworkTeacher(
        name=name,
        spec=spec,
        classes=count,
        class_names=loaded.class_names,
        preprocessing=loaded.preprocessing,
        weights_sha256=fingerprint,
        licence=loaded.licence,
        device=moved,
        amp=amp,
        network=network,
        channels_last=channels_last,
        role=role,
    )


def is_convolutional(network: nn.Module) -> bool:
    """Whether most of the work lies in convolutions, so that channels_last serves it."""
    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 2


def _refuse_batch_statistics(network: nn.Module, whose: str) -> None:
    """A label must not depend on what else is in the batch."""
    for path, module in network.named_modules():
        # InstanceNorm shares the base class but looks at one image alone.
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"{whose}: its layer {path or 'itself'} has no running statistics and would normalise over each "
                f"batch, so that labels depended on their neighbours; use a network with track_running_stats=True"
            )


def _moved(network: nn.Module, device: str | torch.device) -> torch.device:
    found = find_device(device)
    try:
        network.to(found)
    except (RuntimeError, NotImplementedError) as problem:
        raise ModelError(f"the network does not go to device {str(device)!r} ({first_line(problem)})") from problem
    return found


def teacher_passes(
    teacher: Teacher,
    batch_size: BatchSize,
    *,
    most: int,
    compile: bool = False,
    names: Collection[str] = (LOGITS,),
    say: Callable[[str], None],
) -> Passes[Outputs]:
    """Runs the teacher on images, `size` at a time; on fewer, with a line to `say`, when memory is full.

    Compiled, the teacher always sees so many: a batch of fewer is filled up, and the filling's outputs are cut off.

    Args:
        most: images that there are together, at most: more are not tried.
        names: outputs that are asked for.

    Raises:
        ModelError: not even one image fits into memory.
    """
    if batch_size == "auto":
        side = teacher.preprocessing.size
        noise = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=teacher.device)
        run = partial(teacher.outputs, names=names)
        size, tried = best_batch(
            lambda count: run(noise.expand(count, 3, side, side)), teacher.device, most=min(most, _MOST_AT_ONCE)
        )
        say(f"teacher {teacher.name}: batches of {size} images ({'; '.join(tried)})")
    else:
        size = batch_size
    if compile:
        say(f"teacher {teacher.name} is compiled for batches of {size}, which takes up to some minutes")
        teacher = teacher.compile(names)

    def reduced(size: int, why: str) -> None:
        say(f"teacher {teacher.name}: {why}; going on with {size} images at a time")

    return Passes(partial(teacher.outputs, names=names), size, padded=compile, reduced=reduced)


ROUNDING = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2, "device": 3e-2}
"""How far logits of one network and image lie apart when they are computed again, in standard deviations of a row:
in fp32, also on another kind of device (where TF32 has the fraction of fp16); in mixed precision; and of images that
an earlier version rendered on a GPU. Two to three times what was measured; bilinear in the place of bicubic pixels
moves them by 6e-2."""


def spread_of(logits: Tensor) -> Tensor:
    """In what rounding is measured, per row (n, 1): the deviation over the classes, and a hundredth of the largest."""
    return logits.std(-1, correction=0, keepdim=True) + 0.01 * logits.abs().amax(-1, keepdim=True)


def distance(some: Tensor, others: Tensor) -> float:
    """How far logits (n, classes) lie from others, as `spread_of` measures: the root of the mean square.

    A constant per row counts for nothing.
    """
    change = (others.cpu() - some.cpu()).double()
    change = change - change.mean(-1, keepdim=True)
    return (change / spread_of(some.cpu().double()).clamp_min(1e-30)).square().mean().sqrt().item()


def dependence_on_neighbours(ask: Callable[[Tensor], Tensor], pictures: Tensor, logits: Tensor) -> float:
    """The `distance` of a batch's logits from those of its two halves; 0 of a single image."""
    if len(pictures) < 2:
        return 0.0
    middle = len(pictures) // 2
    halves = [ask(half.contiguous()).cpu() for half in (pictures[:middle], pictures[middle:])]
    return distance(logits, torch.cat(halves))


def is_rounding(apart: float, rounding: float) -> bool:
    """Whether a `distance` is no more than rounding: a logit may change by three times that when its batch is cut."""
    return apart <= 3.0 * rounding
