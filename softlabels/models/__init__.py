"""Networks that answer: teachers and students, and the devices that they run on.

A spec of `TEACHERS` or `STUDENTS` says which network and which weights: an architecture of torchvision, of timm or of
ours (``small``), a file that describes itself, or a function. `open` makes a teacher of it, `build` a student. Files of
weights are read without running code, and those that are written here describe themselves, so that a path is all that
is needed to use them again.

A new library is one file, with a subclass of `Architecture`, and a line in each of the tables.
"""

from softlabels.choices import STUDENTS, TEACHERS
from softlabels.models._architecture import (
    Architecture,
    PretrainedWeights,
    build,
    head_classes,
    head_tensors,
    layout,
    load_pretrained,
    preprocessing,
    published_weights,
    resolve,
)
from softlabels.models._classifier import classifier_weight
from softlabels.models._columns import (
    are_numbers,
    check_class_map,
    chosen,
    columns_by_name,
    columns_from_file,
    first_difference,
    innermost,
    known_lists,
)
from softlabels.models._file import FileNetwork, load_file
from softlabels.models._function import from_function
from softlabels.models._named import student_spec, teacher_spec
from softlabels.models._outputs import (
    Logits,
    OutputReader,
    logits_of,
    parameter_count,
    set_mode,
    try_learning,
    try_outputs,
)
from softlabels.models._preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocessing_of
from softlabels.models._spec import NetworkSpec, StudentSpec, random_seed, safe_name
from softlabels.models._teacher import (
    ROUNDING,
    BatchSize,
    LoadedNetwork,
    NetworkTeacher,
    Teacher,
    TeacherSpec,
    dependence_on_neighbours,
    distance,
    is_rounding,
    spread_of,
    teacher_passes,
)
from softlabels.models._weights import (
    Description,
    digest,
    load_state,
    load_weights,
    read_description,
    read_weights,
    unwrapped,
    weights_file,
    write_weights,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ROUNDING",
    "STUDENTS",
    "TEACHERS",
    "Architecture",
    "BatchSize",
    "Description",
    "FileNetwork",
    "LoadedNetwork",
    "Logits",
    "NetworkSpec",
    "NetworkTeacher",
    "OutputReader",
    "Preprocessing",
    "PretrainedWeights",
    "StudentSpec",
    "Teacher",
    "TeacherSpec",
    "are_numbers",
    "build",
    "check_class_map",
    "chosen",
    "classifier_weight",
    "columns_by_name",
    "columns_from_file",
    "dependence_on_neighbours",
    "digest",
    "distance",
    "first_difference",
    "from_function",
    "head_classes",
    "head_tensors",
    "innermost",
    "is_rounding",
    "known_lists",
    "layout",
    "load_file",
    "load_pretrained",
    "load_state",
    "load_weights",
    "logits_of",
    "parameter_count",
    "preprocessing",
    "preprocessing_of",
    "published_weights",
    "random_seed",
    "read_description",
    "read_weights",
    "resolve",
    "safe_name",
    "set_mode",
    "spread_of",
    "student_spec",
    "teacher_passes",
    "teacher_spec",
    "try_learning",
    "try_outputs",
    "unwrapped",
    "weights_file",
    "write_weights",
]
