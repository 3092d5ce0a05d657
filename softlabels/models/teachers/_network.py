"""A frozen network as a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from softlabels.errors import ConfigError, ModelError
from softlabels.models.devices import find_device, first_line, is_out_of_memory
from softlabels.models.networks import (
    Preprocessing,
    answer,
    digest,
    freeze,
    is_convolutional,
    logits_of,
    set_mode,
    try_answer,
    weight_dtype,
)

Amp = Literal["fp16", "bf16"]

_AMP_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Origin(NamedTuple):
    """What is known of a network before it becomes a teacher; `where` names its weights in messages.

    `classes` is None when only a picture can tell; `foreign` says that nothing is known of how it was written.
    """

    network: nn.Module
    preprocessing: Preprocessing
    classes: int | None
    class_names: tuple[str, ...]
    licence: str | None
    where: str
    foreign: bool


@dataclass(frozen=True)
class NetworkTeacher:
    """A network that answers in inference alone: eval mode, no gradients, weights frozen. Make one with `teach`."""

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
    """What `compile` made: it answers to uint8 pictures."""

    def compile(self) -> NetworkTeacher:
        """This teacher compiled with torch.compile, normalisation and all, for few sizes of batches: static shapes."""
        mean, std = (
            torch.tensor(each, device=self.device).view(3, 1, 1)
            for each in (self.preprocessing.mean, self.preprocessing.std)
        )
        kind = weight_dtype(self.network)

        def answered(pictures: Tensor) -> Any:
            return self.network(((pictures.to(torch.float32) / 255 - mean) / std).to(kind))

        return replace(self, compiled=torch.compile(answered, dynamic=False))

    def logits(self, pictures: Tensor) -> Tensor:
        """What the network says of uint8 pictures (n, 3, S, S) on any device: float32 (n, classes) on the teacher's.

        They are normalised on the teacher's device. BatchNorm uses its stored statistics and dropout is off even when
        somebody has put the network into train mode since. Whether the numbers are finite is not looked at.

        Raises:
            ModelError: the pictures are of another kind, the network gives another shape, or it cannot be compiled.
        """
        set_mode(self.network, False)
        with torch.inference_mode():
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            pictures = pictures.to(self.device, non_blocking=True).contiguous(memory_format=layout)
            normalised = pictures if self.compiled else self.preprocessing.normalise(pictures)
            with torch.autocast(self.device.type, _AMP_TYPES.get(self.amp or ""), enabled=self.amp is not None):
                logits = self._answer(normalised)
        if tuple(logits.shape) != (len(pictures), self.classes):
            raise ModelError(
                f"{self.role} {self.name} answers {len(pictures)} pictures with shape {tuple(logits.shape)}; "
                f"logits must be ({len(pictures)}, {self.classes})"
            )
        # A copy made out here is an ordinary tensor, which a loss may keep for its backward pass.
        return logits.to(torch.float32, copy=True)

    def _answer(self, pictures: Tensor) -> Tensor:
        whose = f"{self.role} {self.name}"
        if self.compiled is None:
            return answer(self.network, pictures, whose)
        try:
            return logits_of(self.compiled(pictures), whose)
        except RuntimeError as problem:
            if is_out_of_memory(problem) or not _is_of_compiler(problem):
                raise
            reason = first_line(problem)
            raise ModelError(f"{whose} cannot be compiled ({reason}); leave out `compile=True`") from problem


def _is_of_compiler(problem: BaseException) -> bool:
    return type(problem).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))


def teach(
    origin: Origin,
    *,
    name: str,
    spec: dict[str, Any],
    preprocessing: Preprocessing,
    device: str | torch.device,
    amp: Amp | None,
    classes: int | None,
    role: str = "teacher",
) -> NetworkTeacher:
    """The network of `origin` as a teacher on `device`, for pictures as `preprocessing` says.

    `classes` is the count that the data set has (None: not to be compared); `role` is what messages call it.

    Raises:
        ModelError: the class counts differ, it normalises over the batch, or does not run.
        ConfigError: `amp` is unknown, or `device` cannot be used.
    """
    if amp is not None and amp not in _AMP_TYPES:
        raise ConfigError(f"mixed precision is fp16 or bf16, not {amp!r}; choose one with `amp` or leave it out")
    network, whose = origin.network, f"{role} {name}"
    _refuse_batch_statistics(network, whose)
    fingerprint = digest(network.state_dict())
    place = _moved(network, device)
    # The types of weights that autocast would change anyway, and layouts, are TorchScript's own affair.
    channels_last = is_convolutional(network) and not isinstance(network, torch.jit.ScriptModule)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    freeze(network)
    # A network that we know runs at the size it was made for; only otherwise is a picture spent on trying.
    trial = origin.foreign or preprocessing.size != origin.preprocessing.size
    width = try_answer(network, preprocessing, place, whose) if trial else None
    count = origin.classes or width or 0
    if width is not None and width != count:
        raise ModelError(f"{whose} ({origin.where}) answers with {width} numbers, its weights have {count} classes")
    if classes is not None and classes != count:
        raise ModelError(
            f"{whose} ({origin.where}) has {count} classes, the data set {classes}; "
            f"choose weights made for these classes, or other `data`"
        )
    set_mode(network, False)
    return NetworkTeacher(
        name=name,
        spec=spec,
        classes=count,
        class_names=origin.class_names,
        preprocessing=preprocessing,
        weights_sha256=fingerprint,
        licence=origin.licence,
        device=place,
        amp=amp,
        network=network,
        channels_last=channels_last,
        role=role,
    )


def _refuse_batch_statistics(network: nn.Module, whose: str) -> None:
    """A label must not depend on what else is in the batch."""
    for path, module in network.named_modules():
        # InstanceNorm shares the base class but looks at one picture alone.
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"{whose}: its layer {path or 'itself'} has no running statistics and would normalise over each "
                f"batch, so that labels depended on their neighbours; use a network with track_running_stats=True"
            )


def _moved(network: nn.Module, device: str | torch.device) -> torch.device:
    place = find_device(device)
    try:
        network.to(place)
    except (RuntimeError, NotImplementedError) as problem:
        raise ModelError(f"the network does not go to device {str(device)!r} ({first_line(problem)})") from problem
    return place
