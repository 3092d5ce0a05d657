"""Networks: architectures by name, files of weights, and how a network wants its pictures.

Teachers and students both stand on it. An architecture is one of ours (`small`), of torchvision or of timm; its full
name is ``source:name``. Weights are published ones, a file, or drawn from a seed. Files are read without running code,
and those that are written here describe themselves, so that a path is all that is needed to use them again.
"""

from softlabels.networks._architectures import (
    SOURCES,
    build,
    default_classes,
    default_weights,
    head_classes,
    head_tensors,
    is_convolutional,
    parameter_count,
    preprocessing,
    random_seed,
    resolve,
    seeded,
)
from softlabels.networks._loading import Trained, built, from_function, started, trained, trained_file
from softlabels.networks._preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from softlabels.networks._settings import ArchitectureSettings, NetworkSettings, named, slug, slug_of_file
from softlabels.networks._source import Architecture, DefaultWeights, Source
from softlabels.networks._weights import (
    Description,
    Weights,
    digest,
    fit,
    read_description,
    read_weights,
    weights_file,
    write_weights,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SOURCES",
    "Architecture",
    "ArchitectureSettings",
    "DefaultWeights",
    "Description",
    "NetworkSettings",
    "Preprocessing",
    "Source",
    "Trained",
    "Weights",
    "build",
    "built",
    "default_classes",
    "default_weights",
    "digest",
    "fit",
    "from_function",
    "head_classes",
    "head_tensors",
    "is_convolutional",
    "named",
    "parameter_count",
    "preprocessing",
    "random_seed",
    "read_description",
    "read_weights",
    "resolve",
    "seeded",
    "slug",
    "slug_of_file",
    "started",
    "trained",
    "trained_file",
    "weights_file",
    "write_weights",
]
