"""`softlabels convert` and `softlabels merge`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from softlabels.codecs import CODECS, Codec
from softlabels.core.progress import Terminal
from softlabels.core.types import LOGITS
from softlabels.dumping.fitting import as_there, needs_fit
from softlabels.errors import ConfigError, StoreError
from softlabels.loading.labels import Labels, open_labels
from softlabels.loading.views import key_hashes
from softlabels.store import (
    TeacherCard,
    TeacherLabels,
    copy_images,
    find_store,
    folder_name,
    is_url,
    locate,
    open_store,
)
from softlabels.upkeep import convert as converting
from softlabels.upkeep.config import ConvertConfig, MergeConfig
from softlabels.upkeep.convert import CopyReport, Recode


def run_convert(config: ConvertConfig, terminal: Terminal) -> list[CopyReport]:
    """Copy a store's labels into another format or codec; all is checked before anything is written."""
    labels = open_labels(config.labels, cache_dir=config.cache_dir, cache_size=config.cache_size)
    if _place(config.out) == _place(labels.store.location):
        raise ConfigError(f"`out={config.out}` is the store to convert; choose another folder")
    names = _folders(labels, config.teachers)
    _check_any(labels.store.location, names)
    wanted = None if config.codec is None else config.codec.make()
    for name in names:
        labels.of(name).check_headers()
    there = find_store(locate(config.out, config.cache), config.cache)
    cards = {} if there is None else {name: there.teacher(name).card for name in there.folders}
    changes = {name: _change(labels, name, wanted, cards.get(name), lossy=config.lossy) for name in names}
    target = copy_images(labels.store, config.out, config.cache)
    reports = []
    for name, change in changes.items():
        card = _card(labels.of(name).card, change, config)
        copied = target.prepare(name, card)
        if change is not None:
            change = replace(change, new=CODECS.make(copied.card.codec))
        report = converting.copy(labels.of(name), copied, change, terminal=terminal)
        reports.append(_completed(report, labels.of(name), copied))
    return reports


def run_merge(config: MergeConfig, terminal: Terminal) -> list[CopyReport]:
    """Unite stores of the same images and views; that they agree is checked before anything is written."""
    out, cache = locate(config.out, config.cache), config.cache
    there = [store] if (store := find_store(out, cache)) is not None else []
    others = {_place(each): each for each in reversed(config.labels)}
    if there:
        others.pop(_place(config.out), None)
    stores = [*there, *(open_store(each, cache) for each in reversed(others.values()))]
    if len(stores) == len(there):
        raise ConfigError(f"`out={config.out}` is the only store to merge; name those that are to be merged into it")
    converting.check_mergeable(stores)
    names = sorted({name for store in stores for name in store.folders})
    _check_any(", ".join(config.labels), names)
    holding = {name: [store.teacher(name) for store in stores if name in store.folders] for name in names}
    for each in holding.values():
        converting.check_agreement(each, terminal)
    target = there[0] if there else copy_images(stores[0], out, cache)
    reports = []
    for name, sources in holding.items():
        merged = target.teacher(name) if name in target.folders else target.prepare(name, sources[0].card)
        for source in sources:
            if _place(source.location) != _place(merged.location):
                reports.append(_completed(converting.copy(source, merged, terminal=terminal), source, merged))
    return reports


def copies_text(reports: Sequence[CopyReport]) -> str:
    """What `run_convert` or `run_merge` returns, in lines for a person."""
    return "\n".join(line for each in reports for line in each.lines())


def _folders(labels: Labels, teachers: tuple[str, ...] | None) -> list[str]:
    """The folders of labels of these teachers (None: all), each teacher's logits before its other outputs."""
    chosen = dict.fromkeys(labels.select(teachers))
    return [each for name in chosen for each in (name, *(folder_name(name, it) for it in labels.outputs(name)))]


def _change(
    labels: Labels, name: str, wanted: Codec | None, there: TeacherCard | None, *, lossy: bool
) -> Recode | None:
    """How one teacher's labels change their codec; None when they keep it, as other outputs than logits do.

    `there` is the card of those that are in the target already.
    """
    old = labels.codec(name)
    wanted = None if wanted is None else as_there(wanted, labels.of(name).card)
    if wanted is None or wanted == old or labels.of(name).card.output != LOGITS:
        return None
    converting.check_recoding(old, wanted, lossy=lossy)
    wanted = as_there(wanted, there)
    if needs_fit(wanted):
        wanted = converting.fitted_to_labels(labels, name, wanted)
    return Recode(old, wanted, labels.classes, key_hashes(labels.keys), labels.seed)


def _card(card: TeacherCard, change: Recode | None, config: ConvertConfig) -> TeacherCard:
    recoded = card if change is None else converting.recoded_card(card, change.old, change.new)
    formatted = recoded if config.format is None else recoded.model_copy(update={"format": config.format})
    return formatted if config.compression is None else converting.recompressed(formatted, config.compression)


def _check_any(locations: str, teachers: Collection[str]) -> None:
    if not teachers:
        raise StoreError(f"{locations}: no teacher's labels are there; dump some first, or copy the store whole")


def _place(location: str) -> str:
    """What two names of one folder or URL have in common."""
    return location.rstrip("/") if is_url(location) else str(Path(location).resolve())


def _completed(report: CopyReport, source: TeacherLabels, target: TeacherLabels) -> CopyReport:
    """A report with what the target holds now."""
    return replace(
        report,
        source=source.location,
        removed=len(source.removed) if report.lacking else 0,
        out=target.location,
        views=target.complete,
        bytes=target.nbytes,
    )
