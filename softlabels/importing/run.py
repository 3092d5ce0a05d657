"""`softlabels import`."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from softlabels.core.arrays import Rows
from softlabels.core.config import config_text
from softlabels.core.philox import Words
from softlabels.core.progress import Terminal
from softlabels.datasets import Images
from softlabels.dumping.run import card, saved_import
from softlabels.dumping.stores import make_store
from softlabels.errors import ConfigError, DataError
from softlabels.importing import projects
from softlabels.importing.config import ImportConfig
from softlabels.importing.projects import Choices, ImportReport, Pairing, ShardRecords, Source
from softlabels.importing.replayed import foreign_view
from softlabels.loading.opening import limited, matched, open_data
from softlabels.loading.records import IMPORTED
from softlabels.loading.settings import share_of
from softlabels.loading.views import ViewDataset, encoding_words, key_hashes
from softlabels.store import Store, TeacherCard
from softlabels.views import ImageSpec


def run_import(config: ImportConfig, terminal: Terminal) -> ImportReport:
    """Make a store of another project's label files; what can be checked is checked before anything is written."""
    began = time.monotonic()
    _check_settings(config)
    whole = open_data(config.data, config.data_dir, config.split)
    choices = _choices(config, whole)
    listing = projects.listed(config.project, config.source, whole)
    for line in listing.lines:
        terminal.say(line)
    source = projects.open_source(config.project, config.source, listing.images, choices)
    views = _views(config, source)
    _check_missing(config, source, listing.images, terminal)
    pairing = projects.check_pairing(source, listing.images)
    _check_pairing(config, pairing, terminal)
    if config.limit is not None and source.recipe.mixes:
        raise ConfigError("`limit` leaves out images with which views of these labels are mixed; import them all")
    store, arranged = make_store(
        config.out,
        limited(whole, config.limit, config.seed),
        source.recipe,
        seed=config.seed,
        classes=_classes(config, whole),
        rows_per_shard=config.rows_per_shard,
        limit=config.limit,
        cache=config.cache,
    )
    name = config.name or config.project
    labels = store.prepare(name, _card(config, source, len(listing.images), whole, arranged, store))
    places, _ = matched(store, listing.images)
    records = ShardRecords()
    shards, written = projects.import_labels(
        source,
        places,
        labels,
        views=views,
        pictures=_pictures(source, store, arranged, views, records),
        records=records,
        words=_Words(store).of,
        part=share_of(config.part),
        terminal=terminal,
    )
    if shards:
        store.keep(saved_import(name), config_text(config))
    unlabelled = np.flatnonzero(np.isin(places, source.missing) | (places < 0))
    skipped = tuple(store.keys.take(unlabelled).to_pylist())
    seconds = time.monotonic() - began
    if share_of(config.part)[1] > 1:
        labels.refresh()  # the other parts may be written by other machines meanwhile
    return ImportReport(
        name,
        shards,
        written,
        seconds,
        pairing,
        skipped,
        out=config.out,
        views=labels.complete,
        bytes=labels.nbytes,
        temperatures=source.codec.temperatures,
        notes=tuple(_notes(config, source)),
    )


class _Words:
    """Random words of a store's labels, for codecs that draw."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @functools.cached_property
    def _hashes(self) -> Words:
        return key_hashes(self._store.keys)

    def of(self, rows: Rows, views: Rows) -> Words:
        """A word for each of these views (v,) of each of these rows (r,): uint64 (r * v,)."""
        hashes = np.repeat(self._hashes[rows], len(views))
        return encoding_words(hashes, self._store.manifest.seed, np.tile(views, len(rows)))


def import_text(report: ImportReport) -> str:
    """What `run_import` returns, in lines for a person."""
    return "\n".join(report.lines())


def _classes(config: ImportConfig, images: Images) -> int:
    classes = config.classes or len(images.classes)
    if not classes:
        raise ConfigError(f"{images.name} has no class names; give the teacher's number of classes: `classes`")
    return classes


_OF_SOME = (
    "temperature",
    "tail",
    "values",
    "mixup",
    "cutmix",
    "mixup_prob",
    "mixup_switch_prob",
    "codec",
    "order",
    "order_seed",
    "input_size",
)
"""Settings that some projects' files need and others do not."""


def _check_settings(config: ImportConfig) -> None:
    """Refuse what is wrong whatever the data set is, which takes long to open."""
    if not Path(config.source).exists():
        raise DataError(f"no such file or directory: {config.source}")
    taken: frozenset[str] = getattr(projects.importer(config.project), "settings", frozenset())
    for name in (each for each in _OF_SOME if each not in taken):
        if getattr(config, name) != type(config).model_fields[name].default:
            others = [each for each in projects.IMPORTERS.own if name in projects.importer(each).settings]
            raise ConfigError(f"`{name}` is for `from_` {', '.join(others)}, not {config.project}; leave it out")


def _choices(config: ImportConfig, images: Images) -> Choices:
    return Choices(
        classes=_classes(config, images),
        temperature=config.temperature,
        tail=config.tail,
        values=config.values,
        pictures=not config.labels_only,
        mixup=config.mixup,
        cutmix=config.cutmix,
        mixup_prob=config.mixup_prob,
        mixup_switch_prob=config.mixup_switch_prob,
        stored=config.codec.make() if config.codec else None,
        order=Path(config.order) if config.order else None,
        order_seed=config.order_seed,
        input_size=config.input_size,
        skip_missing=config.on_missing == "skip",
        allow_mismatch=config.allow_mismatch,
    )


def _views(config: ImportConfig, source: Source) -> int:
    if config.views is not None and config.views > source.views:
        raise ConfigError(f"{config.source} holds {source.views} views of each image, asked for were {config.views}")
    return config.views or source.views


def _check_missing(config: ImportConfig, source: Source, images: Images, terminal: Terminal) -> None:
    if source.surplus:
        terminal.say(
            f"{source.surplus:,} labels in {config.source} are of no image of {images.name}; they are left out"
        )
    if len(source.missing) == 0:
        return
    first = images.keys[int(source.missing[0])].as_py()
    missing = f"{len(source.missing):,} of {len(images):,} images have no label in {config.source} (first: {first!r})"
    if config.on_missing == "fail":
        raise DataError(
            f"{missing}; leave them unlabelled with `on_missing=skip`, or give the data set that was labelled"
        )
    terminal.say(f"{missing}; they are left unlabelled")


def _check_pairing(config: ImportConfig, pairing: Pairing, terminal: Terminal) -> None:
    for line in pairing.lines():
        terminal.say(line)
    if pairing.doubt is not None and not config.allow_mismatch:
        raise DataError(
            f"{config.source}: {pairing.doubt}; say with `mixup` and `cutmix` what was on when the labels were saved, "
            f"or import them all the same with `allow_mismatch=True`"
        )
    if pairing.problem is not None and not config.allow_mismatch:
        raise DataError(
            f"{config.source} does not seem to be of these images: {pairing.problem}; give the data set that was "
            f"labelled, in its order, or import them all the same with `allow_mismatch=True`"
        )


def _card(config: ImportConfig, source: Source, count: int, whole: Images, images: Images, store: Store) -> TeacherCard:
    seen = {"size": source.size, "interpolation": None if foreign_view(source.recipe.steps) else source.interpolation}
    name = config.name or config.project
    made = card(
        spec={
            "kind": IMPORTED,
            "project": source.project,
            "fingerprint": projects.source_fingerprint(source, count),
        },
        weights_sha256="",
        licence=None,
        preprocessing={name: value for name, value in seen.items() if value is not None},
        codec=source.codec,
        classes=_classes(config, whole),
        format=config.format,
        images=images,
        recipe=source.recipe,
        compression=config.compression,
        there=store.teacher(name).card if name in store.teachers else None,
    )
    return made.model_copy(update={"versions": {**made.versions, "imported_from": config.source}})


def _pictures(source: Source, store: Store, images: Images, views: int, records: ShardRecords) -> ViewDataset | None:
    """What makes the images whose digests are kept; None where only the other project can."""
    if foreign_view(source.recipe.steps) is not None:
        return None
    return ViewDataset(images, source.recipe, store.manifest.seed, views, ImageSpec(32), taker=records)


def _notes(config: ImportConfig, source: Source) -> Iterator[str]:
    """What is to be known of these labels."""
    foreign = foreign_view(source.recipe.steps)
    if foreign is not None:
        yield f"their images are made by {foreign.of}: docs/importing.md says how to pair them"
    elif source.interpolation is not None:
        yield (
            f"the images that they are of were resized {source.interpolation}; a student sees them as its own "
            f"preprocessing says"
        )
    yield from source.notes
    if config.project == "tinyvit" and config.labels_only:
        yield "the files do not tell whether mixup or cutmix was on; where it was, your data set has to mix, too"
    if source.unpaired:
        yield (
            f"{source.unpaired:,} labels are of mixtures with an image that is not in the files (the last of an odd "
            f"number); `attach` names them"
        )
