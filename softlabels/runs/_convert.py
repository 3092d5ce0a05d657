"""`softlabels convert` and `softlabels merge`."""

from __future__ import annotations

from pathlib import Path

from softlabels import converting
from softlabels.codecs import CODECS, Codec
from softlabels.converting import CopyReport, Recode
from softlabels.errors import ConfigError
from softlabels.journal import Journal, duration, size
from softlabels.labels import Labels, open_labels
from softlabels.pictures import key_hashes
from softlabels.runs._configs import ConvertConfig, MergeConfig
from softlabels.store import Store, TeacherCard, TeacherLabels, copy_images, open_store


def run_convert(config: ConvertConfig, journal: Journal) -> list[CopyReport]:
    """Copy a store's labels into another format or codec; all is checked before anything is written."""
    labels = open_labels(config.labels, cache_dir=config.cache_dir, cache_size=config.cache_size)
    if Path(config.out).resolve() == Path(labels.store.root).resolve():
        raise ConfigError(f"--out {config.out} is the store to convert; choose another folder")
    names = labels.select(config.teachers)
    wanted: Codec | None = None if config.codec is None else CODECS.make(config.codec)
    changes = {name: _change(labels, name, wanted, lossy=config.lossy) for name in names}
    target = copy_images(labels.store, Path(config.out))
    reports = []
    for name, change in changes.items():
        card = _card(labels.of(name).card, change, config)
        copied = target.prepare(name, card)
        reports.append(converting.copy(labels.of(name), copied, change, journal=journal))
        _say(reports[-1], labels.of(name), copied, journal)
    return reports


def run_merge(config: MergeConfig, journal: Journal) -> list[CopyReport]:
    """Unite stores of the same images and views; that they agree is checked before anything is written."""
    out = Path(config.out)
    there = [open_store(out)] if (out / "manifest.json").exists() else []
    stores = _distinct([*there, *(open_labels(each).store for each in config.labels)])
    converting.check_same(stores)
    names = sorted({name for store in stores for name in store.teachers})
    holding = {name: [store.teacher(name) for store in stores if name in store.teachers] for name in names}
    for each in holding.values():
        converting.check_agreement(each, journal)
    target = there[0] if there else copy_images(stores[0], out)
    reports = []
    for name, sources in holding.items():
        merged = target.teacher(name) if name in target.teachers else target.prepare(name, sources[0].card)
        for source in sources:
            if source.root != merged.root:
                reports.append(converting.copy(source, merged, journal=journal))
                _say(reports[-1], source, merged, journal)
    return reports


def _change(labels: Labels, name: str, wanted: Codec | None, *, lossy: bool) -> Recode | None:
    """How one teacher's labels change their codec; None when they keep it."""
    old = labels.codec(name)
    if wanted is None or wanted == old:
        return None
    converting.check_recoding(old, wanted, lossy=lossy)
    return Recode(old, wanted, labels.classes, key_hashes(labels.keys), labels.seed)


def _card(card: TeacherCard, change: Recode | None, config: ConvertConfig) -> TeacherCard:
    recoded = card if change is None else converting.recoded_card(card, change.old, change.new)
    chosen = {"format": config.format, "compression": config.compression}
    return recoded.model_copy(update={name: value for name, value in chosen.items() if value is not None})


def _distinct(stores: list[Store]) -> list[Store]:
    return list({store.root.resolve(): store for store in reversed(stores)}.values())[::-1]


def _say(report: CopyReport, source: TeacherLabels, target: TeacherLabels, journal: Journal) -> None:
    if report.shards:
        journal.say(
            f"{report.teacher}: copied {report.shards:,} shards, {report.labels:,} labels from {source.root} in "
            f"{duration(report.seconds)}; {size(target.nbytes)}, {target.views} views complete in {target.root}"
        )
    else:
        journal.say(f"{report.teacher}: all labels of {source.root} are in {target.root} already; nothing to do")
    if report.lacking:
        journal.say(f"{report.teacher}: {source.root} lacks {report.lacking:,} shards of its views itself")
