"""`softlabels eval`."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softlabels.choices import DATASETS, DataChoice
from softlabels.core.config import OBJECT, Given, read_yaml, without_settings
from softlabels.core.progress import Terminal, percent, plural
from softlabels.errors import DataError, StoreError
from softlabels.loading.distributed import Ranks, process_group
from softlabels.loading.labels import open_labels
from softlabels.loading.opening import check_teacher_files, describe, limited, open_data, open_teacher
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import FileNetwork, TeacherSpec, weights_file
from softlabels.training.config import EvalConfig
from softlabels.training.evaluate import Score, evaluate
from softlabels.views import RECIPES


@dataclass(frozen=True)
class NetworkScore(Score):
    """The score of a network: which one, with which weights, on which data set, of how many classes, at which size."""

    network: str
    weights: str
    data: str
    classes: int
    size: int


def run_eval(config: EvalConfig, terminal: Terminal) -> NetworkScore:
    """Score any network on the clean view of each labelled image.

    Under `torchrun` every process calls this and scores its slice of the images; the first one talks.
    """
    with process_group() as ranks:
        return _score_network(config, terminal if ranks.first else Terminal(quiet=True), ranks)


def _score_network(config: EvalConfig, terminal: Terminal, ranks: Ranks) -> NetworkScore:
    data, data_dir = config.data, config.data_dir
    if data is None:
        data, data_dir = _data_of_run(config.student.given, data_dir)
    spec = config.student.make(config.weights, config.size)
    check_teacher_files([spec], config.class_map)
    config.torch_device()
    try:
        images = describe(open_data(data, data_dir, config.split), terminal)
    except DataError as problem:
        if config.data is not None:
            raise
        raise DataError(f"{problem}; say with `data` where the images lie now") from problem
    images = limited(images, config.limit, 0)
    if not (images.labels >= 0).any():
        raise DataError(f"{images.name} has no hard labels to score against; give `data` with labels")
    network = open_teacher(
        spec, config, images, clean=True, class_map=config.class_map, role="student", say=terminal.say
    )
    pictures = ViewDataset(images, RECIPES.make("clean"), 0, 1, image_spec(network.preprocessing))
    workers = config.helpers(images)
    score = evaluate(network.logits, pictures, batch_size=config.batch_size, workers=workers, ranks=ranks)
    return NetworkScore(
        **asdict(score),
        network=network.name,
        weights=_scored_weights(spec),
        data=images.name,
        classes=network.classes,
        size=network.preprocessing.size,
    )


def eval_text(score: NetworkScore) -> str:
    """What `run_eval` returns, in one line for a person."""
    top5 = f", top-5 {percent(score.top5)}" if score.classes > 5 else ""  # of fewer classes it is always all
    best = " (of the best epoch on the evaluation images)" if Path(score.weights).name == "best.safetensors" else ""
    on = f"{plural(score.images, 'image')} of {score.data}, {score.size} px"
    scores = f"top-1 {percent(score.top1)}{top5}, cross-entropy {score.cross_entropy:.4f}"
    return f"{score.network}, weights {score.weights}{best}, on {on}: {scores}"


def _scored_weights(spec: TeacherSpec) -> str:
    """Which weights of a network are scored; a run's folder means those of its best epoch."""
    if isinstance(spec, FileNetwork):
        file = weights_file(spec.path)
        return str(file)
    return getattr(spec, "weights", None) or ("its own" if spec.kind in ("function", OBJECT) else "default")


def _data_of_run(student: Given, data_dir: str | None) -> tuple[DataChoice | None, str | None]:
    """The data set that a run was trained on, as its config says, and where it lies; (None, ...) where it is no run."""
    folder = Path(student).expanduser() if isinstance(student, str) else None
    if folder is not None and folder.is_file():
        folder = folder.parent
    if folder is None or not (folder / "config.yaml").is_file():
        return None, data_dir
    told = read_yaml(folder / "config.yaml")
    scored = told.get("eval_data")
    data, labels = told.get("data") if scored in (None, "none") else scored, told.get("labels")
    if data is None and isinstance(labels, str):
        with contextlib.suppress(StoreError):
            data = {name: value for name, value in open_labels(labels).store.manifest.data.items() if name != "limit"}
    parts = data if isinstance(data, list) else [data]
    if not all(map(_without_code, parts)):
        return None, data_dir  # files never choose code that is then run
    return DataChoice.of(data), data_dir or told.get("data_dir")


def _without_code(data: Any) -> bool:
    """Whether this names a data set that is opened without code of its own."""
    if isinstance(data, dict):
        inner = [*data.get("parts", ()), *([data["of"]] if data.get("of") is not None else [])]
        if not all(map(_without_code, inner)):
            return False
    elif " of=" in str(data):
        return all(map(_without_code, str(data).split(" of=", 1)))
    kind = data.get("kind") if isinstance(data, dict) else str(data).partition(":")[0]
    return kind != "function" and (kind in DATASETS.names or Path(without_settings(str(data))).is_dir())
