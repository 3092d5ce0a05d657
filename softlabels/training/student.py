"""A trained student, back as a network that takes images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from softlabels.datasets import decode_file, images_of
from softlabels.errors import ConfigError, ModelError
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import (
    Preprocessing,
    from_function,
    load_file,
    load_weights,
    logits_of,
    read_description,
    set_mode,
    weights_file,
)
from softlabels.views import RECIPES


class Student(nn.Module):
    """A trained network with its preprocessing, in evaluation mode; made by `load_student`.

    Attributes:
        network: the network itself, which takes normalised float images.
        preprocessing: size, mean, std and interpolation of the images that it wants.
        classes: the classes' names in the order of the logits; empty where they are not known.
        architecture: its full name, such as ``small:cnn_tiny``.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, classes: tuple[str, ...], architecture: str
    ) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing
        self.classes, self.architecture = classes, architecture
        set_mode(self, False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise uint8 images (n, 3, size, size) and answer with logits (n, classes)."""
        first = next((each.device for each in self.parameters()), images.device)
        return logits_of(self.network(self.preprocessing.normalise(images.to(first))), "the student")

    def prepare(self, image: Any) -> Tensor:
        """Make uint8 (3, size, size) of a whole image as `evaluate` does: resize it and cut out its centre.

        Args:
            image: a path, a PIL image, a uint8 tensor (3, H, W), or a uint8 array (H, W, 3).
        """
        if isinstance(image, str | PathLike):
            image = decode_file(fspath(image))
        images = images_of([image], keys=["image"])
        return ViewDataset(images, RECIPES.make("clean"), 0, 1, image_spec(self.preprocessing))[0]

    def extra_repr(self) -> str:
        """What `repr` shows beside the layers."""
        side = self.preprocessing.size
        return f"{self.architecture}, {len(self.classes) or 'unnamed'} classes, images of {side} px"


def load_student(
    run: str | PathLike[str],
    weights: Literal["best", "last"] = "best",
    *,
    student: str | nn.Module | Mapping[str, Any] | None = None,
) -> Student:
    """Load a trained student with its preprocessing, on the CPU and in evaluation mode.

    Args:
        run: a run's folder, or a file of weights that softlabels wrote.
        weights: of a run's folder, those of its best epoch or those at its end.
        student: of a network of your own, the ``module:function`` that makes it, or a `torch.nn.Module`, into a copy of
            which the weights are loaded: a file of weights never chooses code that is then run.

    Returns:
        A module that takes uint8 images (n, 3, size, size) and gives logits (n, classes).

    Raises:
        ModelError: there are no such weights, they do not fit, or they are of another network than `student`.

    Example:
        >>> student = softlabels.load_student("runs/cnn_tiny")
        >>> image = student.prepare(softlabels.open_images("digits").decode(0))
        >>> student(image[None]).shape, student.preprocessing.size, student.classes[:3]
        (torch.Size([1, 10]), 8, ('0', '1', '2'))
    """
    if weights not in ("best", "last"):
        raise ConfigError(f"weights is 'best' or 'last', not {weights!r}")
    place = Path(run).expanduser()
    source = place / f"{weights}.safetensors" if place.is_dir() and weights == "last" else place
    if student is None:
        found = load_file(source)
        network = found.build(size=found.preprocessing.size)
        return Student(network, found.preprocessing, found.class_names, str(found.architecture))
    given = student.get("module") if isinstance(student, Mapping) else student
    described, name = read_description(source), "a network of yours"
    if isinstance(given, str):
        name = f"function:{given}"
        if described is None or described.architecture != name:
            whose = f"of {described.architecture}" if described else "of a network that they do not name"
            raise ModelError(f"the weights at {source} are {whose}, not of {name}; name that one, or leave it out")
        given, _ = from_function(given, described.classes, over=lambda _: described.preprocessing)
    if described is None:
        raise ModelError(
            f"{weights_file(source)} does not say how its network takes images; softlabels did not write it"
        )
    if not isinstance(given, nn.Module):
        raise ConfigError(f"student is 'module:function' or a torch.nn.Module, not {type(given).__name__}")
    network = copy.deepcopy(given)
    load_weights(network, str(source), name)
    return Student(network, described.preprocessing, described.class_names, described.architecture)
