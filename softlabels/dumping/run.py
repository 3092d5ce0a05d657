"""`softlabels plan` and `softlabels dump`."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches

import torch

from softlabels.choices import RECORDED_VIEWS
from softlabels.codecs import CODECS, Codec, spelled
from softlabels.core.config import config_text
from softlabels.core.processes import started_with_others
from softlabels.core.progress import Terminal, plural
from softlabels.core.types import LOGITS
from softlabels.datasets import Images
from softlabels.dumping import dump as dumping
from softlabels.dumping import pack as packing
from softlabels.dumping import plan as planning
from softlabels.dumping.comparing import usual_codecs
from softlabels.dumping.config import DumpConfig, PlanConfig
from softlabels.dumping.dump import DumpReport, StoredOutput
from softlabels.dumping.fitting import as_there, fitted, needs_fit
from softlabels.dumping.plan import Plan
from softlabels.dumping.stores import (
    Arrangement,
    arrange,
    as_written,
    check_labelled,
    rows_to_recheck,
    update_checksums,
)
from softlabels.errors import ConfigError, ModelError
from softlabels.loading.distributed import Ranks, local_rank, process_group, run_on
from softlabels.loading.labels import layout_beside
from softlabels.loading.opening import (
    alias,
    check_teacher_files,
    describe,
    limited,
    offering_to_skip,
    open_data,
    open_teacher,
    teacher_specs,
)
from softlabels.loading.provenance import versions
from softlabels.loading.records import IMPORTED
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import Preprocessing, Teacher, TeacherSpec
from softlabels.store import Location, Shard, Store, TeacherCard, TeacherLabels, find_store, folder_name, locate
from softlabels.views import RECIPES, Recipe, record_spec, recorded_steps


class Plans(list[Plan]):
    """What a dump would hold and cost, by teacher; `packs` says in lines what packs of the images would hold."""

    packs: Sequence[str] = ()


def run_plan(config: PlanConfig, terminal: Terminal) -> Plans:
    """What a dump would hold and cost, per teacher; writes nothing."""
    codecs = _codecs(config)
    images = _images(config, terminal)
    out = locate(config.out, config.cache)
    specs, classes = _specs(config, find_store(out, config.cache)), _stored_classes(config, out)
    plans = Plans(
        _plan(config, out, teacher, images, codecs, terminal)
        for teacher in _teachers(config, out, specs, classes, images, terminal)
    )
    if config.devices is not None:
        terminal.say(f"times are those of one process; `devices={config.devices}` divides them")
    plans.packs = packing.usual_packs(images, threads=os.cpu_count() or 1)
    return plans


def run_dump(config: DumpConfig, terminal: Terminal) -> list[DumpReport] | Plans:
    """Label every image whose shard is missing, teacher by teacher; with `dry_run` what `run_plan` returns.

    Under `torchrun` every process calls this and labels a part; with `devices` this one starts one for each.
    """
    if config.dry_run:
        return run_plan(PlanConfig.model_validate(dict(config)), terminal)
    devices = _devices(config)
    if len(devices) == 1:
        return _dump_on(devices[0], config, terminal)
    check_teacher_files(_specs(config, None), config.class_map)
    terminal.say(f"labels on {', '.join(devices)}, a process each; progress is that of the first")
    return run_on(devices, _dump_on, config, terminal)


def _devices(config: DumpConfig) -> list[str]:
    """The devices of this machine that label together, by the names that `device` has."""
    if config.devices is None:
        return [config.device]
    if config.device != "auto":
        raise ConfigError("`device` and `devices` exclude each other; give one of them")
    if started_with_others():
        raise ConfigError("`devices` starts processes, and torchrun has started them already; leave one of them out")
    kind, _, count = config.devices.partition(":")
    if kind == "cpu":
        return ["cpu"] * int(count)
    gpus = torch.cuda.device_count()
    numbers = range(gpus) if kind == "all" else [int(number) for number in kind.split(",")]
    absent = [number for number in numbers if number >= gpus]
    if absent or not numbers:
        there = "no GPU" if gpus == 0 else "1 GPU, number 0" if gpus == 1 else f"{gpus} GPUs, 0 to {gpus - 1}"
        raise ConfigError(
            f"`devices={config.devices}`: there is {there}; name others, or `devices=cpu:2`, two processes on the CPU"
        )
    return [f"cuda:{number}" for number in numbers]


_LONGEST_DUMP = timedelta(days=30)
"""How long processes that are done with their parts wait for the others: shards are few and large."""


def _dump_on(device: str, config: DumpConfig, terminal: Terminal) -> list[DumpReport]:
    """This process's part of a dump; of several processes the first says what all of them did."""
    with process_group(gpus=False, timeout=_LONGEST_DUMP) as ranks:
        gpus = torch.cuda.device_count()
        if ranks.count > 1 and config.devices is None and device in ("auto", "cuda") and gpus:
            device = f"cuda:{local_rank() % gpus}"
        placed = config.model_copy(update={"device": device})
        return _dump(placed, config_text(config), terminal if ranks.first else Terminal(quiet=True), ranks)


def _dump(config: DumpConfig, text: str, terminal: Terminal, ranks: Ranks) -> list[DumpReport]:
    """`text` is the config that the store keeps."""
    codecs = _codecs(config)
    images = _images(config, terminal)
    out = locate(config.out, config.cache)
    recipe = _recipe(config, out)
    index, count = config.share
    part = (index + ranks.rank * count, count * ranks.count)
    _check_known(config, out, images, recipe, codecs, ranks)
    specs, classes = _specs(config, find_store(out, config.cache)), _stored_classes(config, out)
    ranks.gather(None)  # all processes have looked at the store before one writes to it
    reports = []
    for teacher in _teachers(config, out, specs, classes, images, terminal):

        def prepared(teacher: Teacher = teacher) -> tuple[Store, Images, list[StoredOutput]]:
            job = _job(config, out, images, recipe, teacher, codecs, part, terminal)
            store, cards = job.store.made(), job.cards.items()
            outputs = [StoredOutput.of(store.prepare(name, card)) for name, card in cards]
            return store, job.store.images, outputs

        store, arranged, outputs = ranks.first_then_others(prepared)
        labels = outputs[0].labels
        for line in _seen_otherwise(store, recipe, teacher):
            terminal.say(line)

        def reread(
            store: Store = store, arranged: Images = arranged, labels: TeacherLabels = labels
        ) -> tuple[list[Shard], list[int]]:
            again, readable = dumping.readable_again(labels, arranged, recipe)
            update_checksums(store, arranged, sorted({*readable, *rows_to_recheck(store, arranged).tolist()}))
            return again, readable

        again, readable = ranks.on_first(reread)
        if readable:
            terminal.say(
                f"{teacher.name}: {len(readable):,} skipped images can be read now, their shards are dumped again"
            )
        check_labelled(store, labels, arranged, [shard for shard in again if shard.run % part[1] == part[0]])
        shards = [*again, *(shard for each in outputs for shard in each.labels.due(config.views, part))]
        views = max([config.views, *(shard.stop_view for shard in shards)])
        with offering_to_skip(config.on_bad_image):
            report = dumping.dump(
                ViewDataset.of_store(store, arranged, views, image_spec(teacher.preprocessing)),
                teacher,
                outputs,
                batch_size=config.batch_size,
                compile=config.compile,
                workers=config.helpers(images),
                part=part,
                views=config.views,
                again=again,
                skip_bad_images=config.on_bad_image == "skip",
                odd_logits=config.on_odd_logits,
                ranks=ranks,
                terminal=terminal,
            )
        if report.shards and ranks.first:
            store.keep(saved_config(teacher.name), text)
        if part[1] > 1:
            labels.refresh()  # others write the other parts meanwhile
        seen = teacher.preprocessing.size
        report = replace(report, views=labels.complete, out=config.out, part=config.share, size=seen)
        _say(report, terminal)
        reports.append(report)
        for name in store.teachers:
            weights = store.teacher(name).card.weights_sha256
            if name != teacher.name and weights and weights == teacher.weights_sha256:
                terminal.say(f"warning: {teacher.name} has the weights of {name} in {config.out}; a blend counts both")
    if len(store.teachers) > len(specs):
        terminal.say(
            f"{config.out} has labels of {', '.join(store.teachers)}; "
            f"a training blends them all unless `teachers` names some"
        )
    return reports


def dump_text(done: Sequence[DumpReport] | Plans) -> str:
    """What `run_dump` or `run_plan` returns, in lines for a person."""
    lines = [line for each in done for line in each.lines()]
    return "\n".join([*lines, *(done.packs if isinstance(done, Plans) else ())])


def _seen_otherwise(store: Store, recipe: Recipe, teacher: Teacher) -> Iterator[str]:
    """A line for each import whose labels are of images that were resized otherwise than this teacher sees them."""
    ours = teacher.preprocessing.interpolation
    cards = ((name, store.teacher(name).card) for name in store.teachers) if record_spec(recipe) else ()
    for name, each in cards:
        theirs = each.preprocessing.get("interpolation", ours)
        if each.spec.get("kind") == IMPORTED and theirs != ours:
            yield (
                f"{teacher.name} sees these views resized {ours}, but the labels of {name} are of {theirs} ones; for "
                f"equal images give the teacher in a config file, with interpolation: {theirs}"
            )


def card(
    *,
    spec: Mapping[str, object],
    weights_sha256: str,
    licence: str | None,
    preprocessing: Mapping[str, object],
    codec: Codec,
    classes: int,
    format: str,
    images: Images,
    recipe: Recipe,
    compression: str | None = None,
    precision: str | None = None,
    output: str = LOGITS,
    source: str = "",
    shape: tuple[int, ...] = (),
    there: TeacherCard | None = None,
) -> TeacherCard:
    """What the store keeps of a teacher and of how its labels are coded; compressed as the codec says, or as told.

    `classes` counts the values of its `output`, which is `source` in the teacher and of `shape`. `there` is the card
    that the store has of it, if there is one: what means the same is written as it is there.
    """
    beside = layout_beside(recipe) if output == LOGITS else {}
    stored = dumping.stored_as(codec, classes, beside=beside, compression=compression)
    stored["codec"] = as_written(there.codec if there else None, stored["codec"], CODECS.make)
    return TeacherCard(
        spec=dict(spec),
        weights_sha256=weights_sha256,
        licence=licence,
        preprocessing=as_written(there.preprocessing if there else None, preprocessing, Preprocessing.model_validate),
        classes=classes,
        format=format,
        **stored,
        precision=precision,
        output=output,
        source="" if source == output else source,
        # A version that recorded no shape wrote the same values.
        shape=shape if len(shape) > 1 and not (there is not None and not there.shape) else (),
        versions=versions(images),
    )


def saved_config(teacher: str) -> str:
    """The file of a store that keeps the settings of the last dump of a teacher."""
    return f"dump-{teacher}.yaml"


def saved_import(teacher: str) -> str:
    """The file of a store that keeps the settings of an import."""
    return f"import-{teacher}.yaml"


def _images(config: DumpConfig, terminal: Terminal) -> Images:
    check_teacher_files(_specs(config, None), config.class_map)
    config.torch_device()
    images = describe(open_data(config.data, config.data_dir, config.split), terminal)
    return limited(images, config.limit, config.seed)


def _recipe(config: DumpConfig, out: Location) -> Recipe:
    """The recipe of the config; `RECORDED_VIEWS` is that of the store, whose views came with labels of another project.

    Raises:
        ConfigError: the store's views are recorded, and the config says to draw others or to add images.
    """
    there = find_store(out, config.cache)
    held = RECIPES.make(there.manifest.recipe) if there is not None else None
    steps = [] if held is None else recorded_steps(held)
    if held is None or not steps:
        if config.recipe.recorded:
            raise ConfigError(f"{config.out} holds no recorded views; `softlabels import` makes a store that does")
        return config.recipe.make()
    for step in steps:
        step.check_renderable()
    if not config.recipe.recorded:
        raise ConfigError(
            f"the views of {config.out} are recorded with imported labels; label these with "
            f"`recipe={RECORDED_VIEWS}`, or choose another `out`"
        )
    if config.grow:
        raise ConfigError(f"the views of {config.out} are recorded with imported labels; `grow=True` has none to add")
    return held


def _specs(config: DumpConfig, there: Store | None) -> list[TeacherSpec]:
    return teacher_specs(config.teacher, config.weights, names=config.name, sizes=config.size, there=there)


def _check_known(
    config: DumpConfig, out: Location, images: Images, recipe: Recipe, codecs: Mapping[str, Codec], ranks: Ranks
) -> None:
    """Raises StoreError where labels of one of several teachers cannot be added, before the first of them is run."""

    def check() -> None:
        there, quiet = find_store(out, config.cache), Terminal(quiet=True)
        if there is not None and len(config.teacher) > 1:
            specs = [spec for spec in _specs(config, there) if spec.short_name in there.teachers]
            for teacher in _teachers(config, out, specs, there.manifest.classes, images, quiet):
                _job(config, out, images, recipe, teacher, codecs, config.share, quiet)

    ranks.on_first(check)


def _teachers(
    config: DumpConfig,
    out: Location,
    specs: Sequence[TeacherSpec],
    classes: int | None,
    images: Images,
    terminal: Terminal,
) -> Iterator[Teacher]:
    """One teacher after the other, so that only one is in memory; `classes` is the width of stored labels."""
    for spec in specs:
        if alias(spec):
            terminal.say(f"teacher {spec.short_name}{alias(spec)}")
        clean = _recipe(config, out).clean
        yield open_teacher(spec, config, images, classes, clean=clean, class_map=config.class_map, say=terminal.say)


def _stored_classes(config: DumpConfig, out: Location) -> int | None:
    """Width of the labels that are in `out` already; None where there are none."""
    there = find_store(out, config.cache)
    return None if there is None else there.manifest.classes


@dataclass(frozen=True)
class _Job:
    """What a dump of one teacher does: to which store it writes, the card of each folder of labels (that of its logits
    first), and the shards that some of these lack."""

    store: Arrangement
    cards: dict[str, TeacherCard]
    missing: list[Shard]


def _codecs(config: DumpConfig) -> dict[str, Codec]:
    """The codec of each output, of the logits first."""
    return {LOGITS: config.codec.make(), **{each.name: each.make() for each in config.output}}


def _job(
    config: DumpConfig,
    out: Location,
    images: Images,
    recipe: Recipe,
    teacher: Teacher,
    codecs: Mapping[str, Codec],
    part: tuple[int, int],
    terminal: Terminal,
) -> _Job:
    """What a dump of this part does, and a plan tells; nothing is written.

    Raises:
        StoreError: for all that keeps a dump from labelling the first image, so that it and the plan agree.
    """
    store = arrange(
        out,
        images,
        recipe,
        seed=config.seed,
        classes=teacher.classes,
        rows_per_shard=config.rows_per_shard,
        limit=config.limit,
        grow=config.grow,
        cache=config.cache,
    )
    there, cards = store.card(teacher.name), {}
    sources = {each.name: each.source for each in config.output}
    shapes = _shapes(teacher, [sources.get(output, output) for output in codecs])
    widths = {source: math.prod(shape) for source, shape in shapes.items()}
    codecs = _fitted(config, store, recipe, teacher, codecs, sources, widths, terminal)
    for output, codec in codecs.items():
        name, source = folder_name(teacher.name, output), sources.get(output, output)
        kind = (output, source, shapes[source])
        cards[name] = _card(config, images, recipe, teacher, codec, kind, store.card(name))
        store.check(name, cards[name])
    if there is not None and there.precision is None:
        terminal.say(
            f"{teacher.name}: the labels in {config.out} do not say what the teacher computed in; it goes on in "
            f"{config.precision}"
        )
    lacking = (shard for name in cards for shard in store.missing(name, config.views, part))
    missing = list(dict.fromkeys(lacking))
    dumping.check_memory(cards.values(), missing, config.format)
    return _Job(store, cards, missing)


def _fitted(
    config: DumpConfig,
    store: Arrangement,
    recipe: Recipe,
    teacher: Teacher,
    codecs: Mapping[str, Codec],
    sources: Mapping[str, str],
    widths: Mapping[str, int],
    terminal: Terminal,
) -> dict[str, Codec]:
    """The codec of each output with what it needs of the teacher: what the store has, or from a sample."""
    codecs = {name: as_there(codec, store.card(folder_name(teacher.name, name))) for name, codec in codecs.items()}
    if not any(map(needs_fit, codecs.values())):
        return codecs
    return fitted(
        codecs,
        teacher,
        _pictures(config, store, recipe, teacher),
        sources=sources,
        widths=widths,
        batch_size=config.batch_size,
        workers=config.helpers(store.images),
        say=terminal.say,
    )


def _pictures(config: DumpConfig, store: Arrangement, recipe: Recipe, teacher: Teacher) -> ViewDataset:
    """The images as a teacher will see them."""
    seen = image_spec(teacher.preprocessing)
    if store.there and record_spec(recipe):
        return ViewDataset.of_store(store.there, store.images, config.views, seen)
    return ViewDataset(store.images, recipe, config.seed, config.views, seen)


def _shapes(teacher: Teacher, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each of these outputs for one image.

    Raises:
        ModelError: the teacher has no such output, or one that is not of each image.
    """
    others = list(dict.fromkeys(name for name in names if name != LOGITS))
    found: dict[str, tuple[int, ...]] = {LOGITS: (teacher.classes,)}
    if others:
        side = teacher.preprocessing.size
        grey = torch.full((1, 3, side, side), 128, dtype=torch.uint8)
        try:
            answers = teacher.outputs(grey, others)
        except ModelError as problem:
            meant = next((name for name in others if f"no module or output {name!r}" in str(problem)), "")
            near = get_close_matches(meant, CODECS.names)
            raise ModelError(f"{problem} (as a codec: {near[0]!r}?)" if near else str(problem)) from problem
        for name, each in answers.items():
            if len(each) != 1:
                raise ModelError(
                    f"output {name!r} of {teacher.name} has shape {tuple(each.shape)} for one image; its first axis "
                    f"must count images: name another layer"
                )
            found[name] = tuple(each.shape[1:])
    return found


def _card(
    config: DumpConfig,
    images: Images,
    recipe: Recipe,
    teacher: Teacher,
    codec: Codec,
    output: tuple[str, str, tuple[int, ...]],
    there: TeacherCard | None,
) -> TeacherCard:
    """`output` is a name, what it is in the teacher, and the shape of its values."""
    name, source, shape = output
    return card(
        spec=teacher.spec,
        weights_sha256=teacher.weights_sha256,
        licence=teacher.licence,
        preprocessing=teacher.preprocessing.model_dump(mode="json"),
        codec=codec,
        classes=math.prod(shape),
        format=config.format,
        images=images,
        recipe=recipe,
        compression=config.compression,
        precision=config.precision,
        output=name,
        source=source,
        shape=shape,
        there=there,
    )


def _plan(
    config: PlanConfig,
    out: Location,
    teacher: Teacher,
    images: Images,
    codecs: Mapping[str, Codec],
    terminal: Terminal,
) -> Plan:
    recipe = _recipe(config, out)
    job = _job(config, out, images, recipe, teacher, codecs, config.share, terminal)
    codec = CODECS.make(job.cards[teacher.name].codec)
    return planning.plan(
        teacher,
        _pictures(config, job.store, recipe, teacher),
        codec,
        cards=list(job.cards.values()),
        runs=job.store.runs,
        missing=job.missing,
        part=config.share,
        format=config.format,
        batch_size=config.batch_size,
        compile=config.compile,
        workers=config.helpers(images),
        codecs=_compared(codec, teacher.classes) if config.codec_report else (),
        sample=config.codec_samples,
        for_temperature=config.for_temperature,
        say=terminal.say,
    )


def _compared(codec: Codec, classes: int) -> list[Codec]:
    """The usual codecs, and the chosen one, which may be one of them that is fitted already."""
    usual = [codec if spelled(codec) == spelled(each) else each for each in usual_codecs(classes)]
    return usual if codec in usual else [*usual, codec]


def _say(report: DumpReport, terminal: Terminal) -> None:
    """What a person should know of a teacher's dump before the next teacher begins."""
    for key, reason in list(report.skipped.items())[:10]:
        terminal.say(f"skipped {key}: {reason}")
    if len(report.skipped) > 10:
        terminal.say(f"and {plural(len(report.skipped) - 10, 'more image')} skipped")
    for line in report.notes:
        terminal.say(line)
