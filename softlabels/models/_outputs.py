"""What networks return, by name, and the one trial image that each has to pass before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from softlabels.core.outputs import Address, read_address
from softlabels.core.types import LOGITS, Outputs
from softlabels.errors import ModelError, SoftlabelsError, did_you_mean, in_one_line
from softlabels.models._checkpoints import extra_metadata
from softlabels.models._pools import find_pool
from softlabels.models._preprocessing import Preprocessing


def logits_of(answer: Any, whose: str) -> Tensor:
    """The logits in what a network returns: a tensor, an object or mapping with `logits`, or a tuple led by them.

    Raises:
        ModelError: there are none; the message begins with `whose`, such as "teacher NAME".
    """
    found = answer
    if isinstance(found, dict) and "logits" in found:
        found = found["logits"]
    elif isinstance(getattr(found, "logits", None), Tensor):
        found = found.logits
    elif isinstance(found, (tuple, list)) and found:  # torch 2.6 compiles no union of types
        found = found[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"{whose} returns a {type(answer).__name__} without logits; it must return a tensor, a tuple that begins "
            f"with one, or a mapping or object with `logits`"
        )
    return found


class OutputReader:
    """Reads the outputs of these names from each answer of a network.

    An output is its logits, a tensor of the mapping that it returns, or what the layer at that path returned (as
    `torch.nn.Module.get_submodule` takes paths; of a layer that runs several times what it returned last), and may be
    pooled: ``layer3:mean`` (`softlabels.models._pools`). Layers are watched until `close`.
    """

    def __init__(self, network: nn.Module, names: Collection[str] = (LOGITS,)) -> None:
        self.names = tuple(names)
        self._seen: dict[str, Any] = {}
        self._layers: dict[str, nn.Module] = {} if self.names == (LOGITS,) else dict(network.named_modules())
        self._wanted = {name: _address(name) for name in self.names}
        modules = dict.fromkeys(each.module for each in self._wanted.values())
        watched = [name for name in modules if name and name in self._layers]
        self._hooks = [self._layers[name].register_forward_hook(partial(self._keep, name)) for name in watched]

    def read(self, answer: Any, whose: str) -> Outputs:
        """The outputs in what the network just returned: logits (n, classes), and features (n, ...) as they are.

        Raises:
            ModelError: there is none of a name, it is no tensor, or cannot be pooled so; the message begins with
                `whose`.
        """
        found, self._seen = self._seen, {}
        if isinstance(answer, dict):
            found |= answer
        if LOGITS in self.names:
            found[LOGITS] = logits_of(answer, whose)
        return {name: self._one(name, found, whose) for name in self.names}

    def close(self) -> None:
        """Watch no layer any more."""
        for hook in self._hooks:
            hook.remove()

    def _one(self, name: str, found: Mapping[str, Any], whose: str) -> Tensor:
        module, pool = self._wanted[name]
        if module not in found:
            if module in self._layers:
                raise ModelError(f"{whose} does not run its layer {module!r}; name another as the output")
            known = did_you_mean(module, [LOGITS, *found, *filter(None, self._layers)])
            raise ModelError(f"{whose} has no module or output {module!r}; {known}")
        value = found[module]
        if not isinstance(value, Tensor):
            inner = [each for each in self._layers if each.startswith(f"{module}.")]
            instead = f"name a layer within it, such as {inner[-1]}" if inner else "name another layer"
            raise ModelError(
                f"{whose} gives a {type(value).__name__} and no tensor as its output {module!r}; {instead}"
            )
        if value.ndim < 2:
            raise ModelError(
                f"{whose} has no output {module!r} of a value or more for each image: its shape is "
                f"{tuple(value.shape)}; name another layer"
            )
        if pool is None:
            return value
        try:
            return find_pool(pool)(value)
        except ModelError as problem:
            raise ModelError(f"output {name!r} of {whose}: {problem}") from problem

    def _keep(self, name: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        self._seen[name] = output


def _address(name: str) -> Address:
    try:
        return read_address(name)
    except ValueError:  # an entry of a mapping may be called anything
        return Address(name)


class Logits(nn.Module):
    """A network that returns nothing but its logits, (n, classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised images (n, 3, S, S) to logits (n, classes)."""
        return logits_of(self.network(pictures), "the network")


def weight_dtype(network: nn.Module) -> torch.dtype:
    """The type of the network's first floating weights; float32 where it has none."""
    floating = (each.dtype for each in network.parameters() if each.is_floating_point())
    return next(floating, torch.float32)


def set_mode(network: nn.Module, training: bool) -> None:
    """`network.train(training)`; programs of torch.export stay as they were exported."""
    with contextlib.suppress(NotImplementedError):
        network.train(training)


def is_program(network: nn.Module) -> bool:
    """Whether the network is a program of torch.export, which cannot go between training and evaluation."""
    return any(not _can_change(module) for module in (network, *network.children()))


def parameter_count(network: nn.Module) -> int:
    """How many numbers training would change."""
    return sum(parameter.numel() for parameter in network.parameters())


def try_answer(network: nn.Module, preprocessing: Preprocessing, device: torch.device, whose: str) -> int:
    """The width of the network's answer to one grey image, in evaluation mode.

    Raises:
        ModelError: it does not run, or what it returns are not logits (images, classes).
    """
    set_mode(network, False)
    with _explained(whose, preprocessing), torch.inference_mode():
        normalised = preprocessing.normalise(_grey(1, preprocessing, device))
        logits = logits_of(network(normalised.to(weight_dtype(network))), whose)
    if logits.ndim != 2 or len(logits) != 1:
        raise ModelError(
            f"{whose} answers one image with shape {tuple(logits.shape)}; logits must be (images, classes)"
        )
    return int(logits.shape[1])


def try_outputs(
    network: nn.Module, preprocessing: Preprocessing, device: torch.device, whose: str, names: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """The shape of each of these outputs for a grey image, in evaluation mode; the mode is left as it was.

    Raises:
        ModelError: it does not run, or has no such output.
    """
    mode = network.training
    set_mode(network, False)
    # Without gradients, and not in inference mode: what a network keeps of this pass may go into its training.
    with _explained(whose, preprocessing), torch.no_grad(), closing(OutputReader(network, names)) as reader:
        normalised = preprocessing.normalise(_grey(1, preprocessing, device))
        found = reader.read(network(normalised.to(weight_dtype(network))), whose)
    set_mode(network, mode)
    return {name: tuple(each.shape[1:]) for name, each in found.items()}


def try_learning(
    network: nn.Module,
    preprocessing: Preprocessing,
    classes: int,
    device: torch.device,
    whose: str,
    amp: torch.dtype | None = None,
) -> bool:
    """Let the network answer two grey images and go backward from a loss, as in training, and in evaluation.

    It is left as it was: gradients, statistics, mode and torch's generator. Returns whether the gradient reached every
    parameter that is trained.

    Raises:
        ModelError: it does not run, its answer is no (2, classes), or no gradient reaches its weights.
    """
    try:
        extra_metadata(network.state_dict())
    except ModelError as problem:
        raise ModelError(f"{whose}: {problem}") from problem
    held = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    pictures = _grey(2, preprocessing, device)
    try:
        with _explained(whose, preprocessing), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            network.train()
            with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
                logits = logits_of(network(preprocessing.normalise(pictures)), whose)
            if tuple(logits.shape) != (2, classes):
                raise ModelError(
                    f"{whose} answers 2 images with shape {tuple(logits.shape)}; to learn {classes} classes it must "
                    f"be (2, {classes})"
                )
            if not logits.requires_grad:
                raise ModelError(
                    f"no gradient leads from the logits of {whose} to its weights; leave torch.no_grad and detach out "
                    f"of its forward"
                )
            nn.functional.cross_entropy(logits.float(), torch.zeros(2, dtype=torch.int64, device=device)).backward()
            reached = all(each.grad is not None for each in network.parameters() if each.requires_grad)
            network.eval()
            with torch.no_grad():
                logits_of(network(preprocessing.normalise(pictures)), whose)
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                if name in held and held[name].shape == buffer.shape:
                    buffer.copy_(held[name])
        for parameter in network.parameters():
            parameter.grad = None
        set_mode(network, True)
    return reached


def materialise(network: nn.Module, preprocessing: Preprocessing, whose: str) -> None:
    """Let lazy layers take their shapes from one grey image.

    Raises:
        ModelError: the network does not run on it, or some layer is still without a shape.
    """
    if not _lazy(network):
        return
    mode = network.training
    network.eval()
    with _explained(whose, preprocessing), torch.no_grad():
        network(preprocessing.normalise(_grey(1, preprocessing, torch.device("cpu"))))
    network.train(mode)
    left = _lazy(network)
    if left:
        raise ModelError(f"{whose}: its {left[0]} has no shape even after an image; use a layer that is not lazy")


def _lazy(network: nn.Module) -> list[str]:
    every = (*network.named_parameters(), *network.named_buffers())
    return [name for name, tensor in every if is_lazy(tensor)]


def _can_change(module: nn.Module) -> bool:
    try:
        module.train(module.training)
    except NotImplementedError:
        return False
    return True


def _grey(count: int, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    return torch.full((count, 3, preprocessing.size, preprocessing.size), 128, dtype=torch.uint8, device=device)


@contextlib.contextmanager
def _explained(whose: str, preprocessing: Preprocessing) -> Iterator[None]:
    try:
        yield
    except SoftlabelsError:
        raise
    except Exception as problem:  # of the network's own code, or of a compiler
        size, reason = preprocessing.size, in_one_line(problem)
        raise ModelError(
            f"{whose} does not run on {size}x{size} images ({reason}); if it is made for another size, say so with "
            f"`size` beside it in a config, or in what its function returns: network, {{'size': 32}}"
        ) from problem
