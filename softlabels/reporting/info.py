"""What a label store holds, for people and for scripts. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.choices import steps_in_words
from softlabels.core.progress import percent, plural, size
from softlabels.core.types import FIT
from softlabels.errors import StoreError
from softlabels.store import FORMAT, Store, TeacherLabels, open_store, output_name

MOST_COMPARED = 2000
"""Labels of a teacher that are compared with the hard ones."""

_MOST_READ = 64 << 20
"""Bytes that are read for that: of a shard all labels of a view are, since they have one checksum."""


def describe_store(location: str) -> dict[str, Any]:
    """What a store holds, as JSON values.

    `top1` is how often a teacher's highest class is the hard label in view 0 of `top1_images` images, picked from
    several shards; None where no image has a hard label, and where it takes long or needs torch to know: behind a URL,
    of compressed shards, and of other codecs than dense.
    """
    store = open_store(location)
    manifest, local = store.manifest, Path(store.location).is_dir()
    hard = np.concatenate([_numbers(chunk) for chunk in store.images["label"].chunks])
    teachers: dict[str, dict[str, Any]] = {}
    for name in store.teachers:
        each = store.teacher(name)
        lacking = len(each.missing(max([shard.stop_view for shard in each.shards], default=1)))
        top1, compared = _top1(each, hard) if local else (None, 0)
        teachers[name] = {
            "views": each.complete,
            "shards": len(each.shards),
            "missing": lacking,
            "damaged": [shard.name for shard in each.broken],
            "unlabelled": len(each.skipped),
            "bytes": each.nbytes,
            "bytes_per_label": _bytes_per_label(each),
            "codec": {setting: value for setting, value in each.card.codec.items() if setting != FIT},
            "format": each.card.format,
            "top1": top1,
            "top1_images": compared,
            "spec": dict(each.card.spec),
            "weights_sha256": each.card.weights_sha256,
            "licence": each.card.licence,
            "preprocessing": dict(each.card.preprocessing),
            "outputs": [output_name(folder) for folder in store.folders if folder.startswith(f"{name}@")],
        }
    problems = store.orphans
    return {
        "location": store.location,
        "complete": bool(teachers) and not problems and not any(each["missing"] for each in teachers.values()),
        "bytes": sum(each["bytes"] for each in teachers.values()),
        "format_version": FORMAT,
        "written": _written(store) if local else None,
        "softlabels": manifest.versions.get("softlabels"),
        "data": dict(manifest.data),
        "images": len(store),
        "without_hard_label": int((hard < 0).sum()),
        "classes": manifest.classes,
        "recipe": dict(manifest.recipe),
        "seed": manifest.seed,
        "views": min((each["views"] for each in teachers.values()), default=0),
        "teachers": teachers,
        "problems": problems,
    }


def _bytes_per_label(labels: TeacherLabels) -> float:
    """Bytes of a label; of a codec that is made for compression, those on disk."""
    held, arrays = sum(shard.rows * shard.views for shard in labels.shards), labels.card.layout.values()
    if held and any(array.columns or array.per_image for array in arrays):
        return round(labels.nbytes / held, 2)
    return sum(array.record for array in arrays)


def _numbers(chunk: Any) -> NDArray[np.int64]:
    """The int64 numbers of a chunk of pyarrow's, whose own ways to numpy import pandas."""
    return np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk)]


def _top1(labels: TeacherLabels, hard: NDArray[np.int64]) -> tuple[float | None, int]:
    """How often the highest class of a stored label is the `hard` one, and of how many images that is."""
    card, (logits, *others) = labels.card, labels.card.layout.values()
    shards = [shard for shard in labels.shards if shard.first_view == 0]
    most = _MOST_READ // max([shard.rows * logits.record for shard in shards], default=1)
    if others or card.codec.get("kind") != "dense" or card.compression != "none" or not min(most, len(shards)):
        return None, 0
    places = np.linspace(0, len(shards) - 1, min(most, len(shards))).round().astype(int)
    rows = np.concatenate(
        [np.arange(shards[at].first_row, shards[at].stop_row) for at in dict.fromkeys(places.tolist())]
    )
    rows = rows[(hard[rows] >= 0) & labels.labelled(rows)]
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_COMPARED)).round().astype(int)]
    try:
        (stored,) = labels.take(rows, np.zeros_like(rows)).values()
    except StoreError:  # `softlabels verify` is for damage
        return None, 0
    return (float((stored.argmax(1) == hard[rows]).mean()), len(rows)) if len(rows) else (None, 0)


def _written(store: Store) -> str:
    """The day on which a shard was last added, by the clock of the machine."""
    folders = [Path(store.location), *(Path(store.location) / name for name in store.folders)]
    return datetime.fromtimestamp(max(folder.stat().st_mtime for folder in folders)).astimezone().date().isoformat()


def info_lines(store: Mapping[str, Any]) -> list[str]:
    """What `describe_store` found, in lines for a person."""
    return [*_store_lines(store), *_table(store["teachers"]), *_teacher_lines(store["teachers"]), *store["problems"]]


def _store_lines(store: Mapping[str, Any]) -> Iterator[str]:
    teachers = store["teachers"].values()
    state = "complete" if store["complete"] else "incomplete" if teachers else "without labels"
    formats = ", ".join(dict.fromkeys({"hdf5": "HDF5", "zarr": "Zarr"}[each["format"]] for each in teachers))
    facts = [state, size(store["bytes"]), formats, f"format {store['format_version']}"]
    if store["written"] is not None:
        facts.append(f"written {store['written']}")
    by = f" by softlabels {store['softlabels']}" if store["softlabels"] else ""
    yield f"{store['location']}: {', '.join(fact for fact in facts if fact)}{by}"
    without, images = store["without_hard_label"], store["images"]
    labelled = "none with a hard label" if without == images else "all with a hard label"
    if 0 < without < images:
        labelled = f"{without:,} without a hard label"
    yield f"images  {plural(images, 'image')} of {_in_words(store['data'])}, {store['classes']:,} classes, {labelled}"
    yield f"views   {store['views']} of each image, recipe {steps_in_words(store['recipe'])}, seed {store['seed']}"


def _table(teachers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A row for each teacher, its columns as wide as they must be."""
    heads = ("teacher", "codec", "bytes/label", "shards", "views", "teacher top-1", "unlabelled", "licence")
    rows = [heads, *(_row(name, each) for name, each in teachers.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if teachers else ():
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(name: str, teacher: Mapping[str, Any]) -> tuple[str, ...]:
    top1 = "-" if teacher["top1"] is None else percent(teacher["top1"], 1)
    return (
        name,
        _codec(teacher["codec"]),
        f"{teacher['bytes_per_label']:,.4g}" if teacher["bytes_per_label"] % 1 else f"{teacher['bytes_per_label']:,}",
        f"{teacher['shards']:,} / {teacher['shards'] + teacher['missing']:,}",
        f"{teacher['views']}",
        top1,
        f"{teacher['unlabelled']:,}",
        teacher["licence"] or "not stated",
    )


def _teacher_lines(teachers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, each in teachers.items():
        weights = f", weights {each['weights_sha256'][:16]}" if each["weights_sha256"] else ""
        yield f"{name}: {_in_words(each['spec'])}{weights}"
        if each["top1"] is not None:
            yield f"  top-1 on view 0 of {plural(each['top1_images'], 'image')}"
        if each["damaged"]:
            more = f" and {len(each['damaged']) - 5:,} more" if len(each["damaged"]) > 5 else ""
            yield f"  damaged: {', '.join(each['damaged'][:5])}{more}; see `softlabels repair`"
        elif each["missing"]:
            yield f"  {plural(each['missing'], 'shard')} missing; the same dump goes on with them"
        if each["unlabelled"]:
            yield f"  {plural(each['unlabelled'], 'image')} without labels: not readable, or no label was there"
        if each["outputs"]:
            yield f"  stored beside its logits: {', '.join(each['outputs'])}"


def _codec(codec: Mapping[str, Any]) -> str:
    """``dense:fp16``, ``topk:10 levels=32``: short forms give K, or the only setting."""
    settings = {name: value for name, value in codec.items() if name != "kind"}
    only = next(iter(settings)) if len(settings) == 1 else None
    short = next((name for name in ("bytes", "k") if name in settings), only)
    value = settings.get(short) if short is not None else None
    first = "" if short is None else f":{value:g}" if isinstance(value, float) else f":{value}"
    return " ".join([f"{codec['kind']}{first}", *(f"{name}={settings[name]}" for name in settings if name != short)])


def _in_words(spec: Mapping[str, Any]) -> str:
    """A part as a store keeps it: its kind, then its settings but for those that say nothing."""
    if spec.get("kind") == "parts":
        prefixes = spec.get("prefixes") or [""] * len(spec["parts"])
        named = zip(spec["parts"], prefixes, strict=True)
        return " + ".join(_in_words({**part, "prefix": prefix}) for part, prefix in named)
    settings = [f"{name} {_short(value)}" for name, value in spec.items() if name != "kind" and _says(value)]
    return str(spec.get("kind", "unknown")) + (f" ({', '.join(settings)})" if settings else "")


def _says(value: Any) -> bool:
    return value not in (None, False, "") and not (isinstance(value, Sequence | Mapping) and not value)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return _in_words(value)
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
