"""`softlabels select`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.core.progress import Terminal
from softlabels.datasets import check_list, write_list
from softlabels.errors import DataError
from softlabels.loading.labels import open_labels
from softlabels.loading.opening import label_images, matched
from softlabels.selecting.config import SelectConfig
from softlabels.selecting.listing import opened_as
from softlabels.selecting.select import Selection, predict, surest


def run_select(config: SelectConfig, terminal: Terminal) -> Selection:
    """List the images of each predicted class that the labels are surest of."""
    out = Path(config.out)
    check_list(out)
    labels = open_labels(config.labels, cache_dir=config.cache_dir, cache_size=config.cache_size)
    images = label_images(labels, config.data, config.data_dir)
    places, _ = matched(labels.store, images)
    prediction = predict(labels, config.teachers, config.temperature)
    gone = (places < 0) & (prediction.classes >= 0)
    prediction.classes[gone] = -1
    pool = int((prediction.classes >= 0).sum())
    rows = surest(prediction, labels.keys, config.top_k_per_class, config.min_confidence)
    if not pool:
        raise DataError(f"no labelled image of {config.labels} is in {images.name}; name the labelled ones with `data`")
    if gone.any():
        terminal.say(f"{int(gone.sum()):,} labelled images are none of {images.name}, and are left out")
    if not len(rows):
        best = f"; the highest is {prediction.confidence.max():.3f}" if pool else ""
        raise DataError(
            f"none of the {pool:,} labelled images has a confidence of {config.min_confidence:g}{best}; choose a lower "
            f"`min_confidence`"
        )
    named, sure = prediction.classes[rows], prediction.confidence[rows]
    names = labels.class_names or tuple(str(number) for number in range(labels.classes))
    columns: dict[str, Sequence[Any]] = {
        "predicted": [names[number] for number in named.tolist()],
        "confidence": [f"{each:.6f}" for each in sure.tolist()],
    }
    if config.pseudo_labels:  # by number: a list of names would leave out the classes that have no image
        columns["label"] = named.tolist()
    elif (labels.store.labels[rows] >= 0).any():
        terminal.say("hard labels are not listed, as a pool has none; `pseudo_labels` lists the predicted classes")
    files = write_list(out, images, places[rows], columns)
    counts = np.bincount(named, minlength=labels.classes)
    return Selection(
        out=config.out,
        images=len(rows),
        pool=pool,
        classes=labels.classes,
        top_k=config.top_k_per_class,
        short=int((counts < config.top_k_per_class).sum()),
        empty=int((counts == 0).sum()),
        min_confidence=config.min_confidence,
        lowest_confidence=float(sure.min()),
        mean_confidence=float(sure.mean()),
        files=files,
        data=opened_as(
            f"{config.out} classes={labels.classes}" if config.pseudo_labels else config.out, images, files=files
        ),
    )


def select_text(selection: Selection) -> str:
    """What `run_select` found, for a person."""
    return "\n".join(selection.lines())
