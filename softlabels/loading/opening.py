"""Parts that several commands make from their settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.choices import DataChoice, TeacherChoice
from softlabels.core.config import OBJECT
from softlabels.core.philox import permutation
from softlabels.core.progress import Terminal
from softlabels.datasets import Images, by_part, notes, open_images, subset
from softlabels.errors import ConfigError, DataError, ImageError, ModelError, StoreError, did_you_mean
from softlabels.loading.checks import check_classes
from softlabels.loading.labels import Labels
from softlabels.loading.naming import distinct
from softlabels.loading.records import IMPORTED
from softlabels.loading.settings import Machine, Reopening
from softlabels.models import (
    FileNetwork,
    Teacher,
    TeacherSpec,
    are_numbers,
    check_class_map,
    chosen,
    columns_by_name,
    columns_from_file,
    innermost,
    preprocessing_of,
    random_seed,
    teacher_spec,
)
from softlabels.store import Store, is_url
from softlabels.views import RECIPES

_LIMIT = 7
"""Stream of chance for which images a limit keeps."""


def limited(images: Images, limit: int | None, seed: int) -> Images:
    """At most `limit` of the images, picked by `seed`, in their old order."""
    if limit is None or limit >= len(images):
        return images
    return subset(images, np.sort(permutation(len(images), seed, _LIMIT)[:limit]))


def open_data(data: DataChoice | None, data_dir: str | None, split: str | None = None) -> Images:
    """The data set that a user names.

    Raises:
        ConfigError: none is named.
    """
    if data is None:
        raise ConfigError("no data set is named; give `data`: a directory, csv:FILE, imagenet, cifar10, digits, ...")
    return open_images(data.make(), data_dir=data_dir, split=split)


MARKS = {
    "label store": ("manifest.json", "images.parquet"),
    "pack": ("pack.json",),
    "run": ("config.yaml", "header.txt"),
}
"""Files by which a folder is known as what one of the commands wrote."""


def check_place(out: str | PathLike[str], what: str, images: Images | None = None) -> None:
    """Raises ConfigError where `out`, the folder of a new `what`, would spoil something else that is there.

    That is the folder of the images themselves, where it would count as one of their classes, and a store, pack or run,
    or what lies in one.
    """
    if is_url(out):
        return
    place = Path(os.path.abspath(out))  # noqa: PTH100  (links stay as they are)
    for other, names in MARKS.items():
        # A run may hold what was made of it, and what is there already is looked at by its own writer.
        for folder in [place] if other == "run" else [place, *place.parents]:
            # A store within a store is refused by its own writer.
            own = other == what and (folder == place or what == "label store")
            if not own and all((folder / name).exists() for name in names):
                where = "is" if folder == place else f"lies in {folder},"
                raise ConfigError(f"{place} {where} a {other}; choose a folder beside it for the {what}: another `out`")
    for part, _, _ in () if images is None else by_part(images):
        if part.spec.get("kind") not in ("folder", "images", "imagenet"):
            continue
        scanned = Path(getattr(part, "root", part.spec.get("root", os.sep)))
        if place in (scanned, Path(part.spec.get("root", scanned))) or scanned in place.parents:
            raise ConfigError(
                f"{place} is in the folder of the images, {scanned}, and would count as one of them; choose a folder "
                f"beside it for the {what}: another `out`"
            )


def label_images(labels: Labels, data: DataChoice | None, data_dir: str | None) -> Images:
    """The data set of a store: where its manifest says it lies, or where the user says.

    Of a store that was made with a `limit`, the images that it holds.

    Raises:
        ConfigError: the manifest names code; a store may come from a stranger, so only a user may have it imported.
        DataError: the images are not there (any more).
    """
    if data is not None:
        images = open_data(data, data_dir)
        known = labels.store.find(images.keys) >= 0
        whole = "limit" not in labels.store.manifest.data or known.all() or not known.any()
        return images if whole else subset(images, np.flatnonzero(known))
    spec = dict(labels.store.manifest.data)
    limit = spec.pop("limit", None)
    for each in _specs_in(spec):
        if each.get("kind") == "function":
            raise ConfigError(f"{labels.store.root} was made of {each.get('target')!r}; name it yourself with `data`")
    if spec.get("kind") == "folder":
        spec.setdefault("class_order", "text")  # a store from before there was a choice
    try:
        return limited(open_images(spec, data_dir=data_dir), limit, labels.seed)
    except DataError as problem:
        options = "`data` or `data_dir`" if "data_dir" in spec else "`data`"
        raise DataError(f"{problem}; say with {options} where the images lie now") from problem


def _specs_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """A data set as a store keeps it, and those that it is made of."""
    if isinstance(value, Mapping):
        yield value
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _specs_in(each)


def teacher_specs(
    teachers: Sequence[TeacherChoice],
    weights: Sequence[str],
    *,
    names: Sequence[str] = (),
    sizes: Sequence[int] = (),
    there: Store | None = None,
) -> list[TeacherSpec]:
    """What `teacher`, `weights`, `name` and `size` mean, one of each for each teacher, under distinct names.

    `there` is the store of their labels, which may know some of them already.

    Raises:
        ConfigError: no teacher, not as many of the others as teachers, or two teachers of one name.
    """
    if not teachers:
        raise ConfigError("no teacher is named; give `teacher=NAME`")
    for setting, values in (("weights", weights), ("name", names), ("size", sizes)):
        if len(values) not in (0, len(teachers)):
            raise ConfigError(
                f"{len(teachers)} `teacher` but {len(values)} `{setting}`; give one for each teacher, or none"
            )
    made = zip_longest(teachers, weights, sizes, names)
    return distinct([teacher.make(file, size, name) for teacher, file, size, name in made], there)


def check_teacher_files(teachers: Sequence[TeacherSpec], class_map: str | None = None) -> None:
    """Raises SoftlabelsError where the weights of a teacher or the class map are not there.

    Before a data set is opened, which may take long.
    """
    for each in teachers:
        each.check_weights()
    if class_map is not None:
        check_class_map(class_map)


def open_teacher(
    spec: TeacherSpec,
    machine: Machine,
    images: Images,
    classes: int | None = None,
    *,
    clean: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
    class_map: str | None = None,
    role: str = "teacher",
    say: Callable[[str], None] = lambda line: None,  # noqa: ARG005
) -> Teacher:
    """The teacher on this machine's device, answering with one logit for each class of `images`.

    One that knows more classes answers with the columns of theirs, as the file `class_map` says or found by name; `say`
    gets a line about it.

    Args:
        classes: of the store whose labels are the teacher's; a store may have more than the data set (a teacher of
            1,000 classes on images of 12), and the teacher then answers with as many.
        clean: whether its views are clean ones, on which a network may want images of another size.
        preprocessing: that of a store, which stands over the network's own.
        role: what messages call it.

    Raises:
        ModelError: its classes and the store's, or the data set's, differ in number.
        ConfigError: it knows a class of theirs by another number, or not at all.
    """
    count, device = len(images.classes) or None, machine.torch_device()
    if isinstance(spec, FileNetwork) and (unfinished := spec.unfinished_run):
        say(f"warning: the run in {unfinished} is not finished; its weights are those of its best epoch so far")
    wider = classes if classes not in (None, count) else None
    if class_map and (wider or count is None):
        width = f"the labels there are of {wider:,} classes" if wider else "they have no names"
        raise ConfigError(f"`class_map` says which columns are the classes of {images.name}, and {width}; leave it out")
    # A head that is drawn, or that a function makes, is made for these classes; others have those they have.
    made = spec.kind == "function" or random_seed(getattr(spec, "weights", None)) is not None
    wanted = wider or count
    stored = preprocessing_of(preprocessing, "the store's preprocessing") if preprocessing else None
    opened = partial(spec.open, device, machine.amp, clean=clean, preprocessing=stored, role=role)
    try:
        teacher = opened(classes=wanted if made and not class_map else None)
    except ModelError as problem:
        if spec.kind != "function" or wanted is None:
            raise
        try:
            teacher = opened()
        except ModelError:  # it wants to be told a number of classes, and what it gave for theirs was wrong
            raise problem from None
        if teacher.classes == wanted:
            raise
    if wider and teacher.classes != wider:
        raise ModelError(
            f"teacher {teacher.name} has {teacher.classes:,} classes (the store's labels are of {wider:,} classes); "
            f"choose weights made for these, or another `out`"
        )
    if count is not None and not wider and (class_map or teacher.classes > count):
        return _for_classes(teacher, images, class_map, say)
    if count is not None and teacher.classes < count:
        raise ModelError(
            f"{role} {teacher.name} has {teacher.classes:,} classes and the images of {images.name} have {count:,}; "
            f"choose weights made for these classes, or other data"
        )
    check_classes(images, teacher.class_names, teacher.name)
    return teacher


def _for_classes(teacher: Teacher, images: Images, class_map: str | None, say: Callable[[str], None]) -> Teacher:
    wanted, names, head = images.classes, teacher.class_names, teacher.classes
    try:
        found = columns_from_file(class_map, wanted, names, head) if class_map else columns_by_name(wanted, names, head)
    except ConfigError as problem:
        if class_map:
            raise
        numbers = f", or, where the labels are its class numbers, {images.spec.get('kind')}:... classes={head}"
        raise ConfigError(
            f"{teacher.name} has {head:,} classes, {images.name} {len(wanted):,}, and {problem}; say which column each "
            f"class is with `class_map=FILE` (lines CLASS,COLUMN){numbers if are_numbers(wanted) else ''}, or choose "
            f"other weights or data"
        ) from problem
    first = ", ".join(f"{name} is {column}" for name, column in zip(wanted[:3], found.columns, strict=False))
    say(
        f"{teacher.name} answers with {len(wanted):,} of its {head:,} classes, those of {images.name}, found "
        f"{found.how} ({first}{', ...' if len(wanted) > 3 else ''}); a softmax is one over these alone"
    )
    return chosen(teacher, found.columns, wanted)


@contextmanager
def offering_to_skip(on_bad_image: str) -> Iterator[None]:
    """Within the block an image that cannot be read ends the command, with the option that would have left it out."""
    try:
        yield
    except ImageError as problem:
        if on_bad_image == "skip":
            raise
        raise DataError(f"{problem}, or leave bad images out with `on_bad_image=skip`") from problem


def describe(images: Images, terminal: Terminal) -> Images:
    """Say what a person should know of these images before they are used; gives them back."""
    for line in notes(images):
        terminal.say(line)
    return images


def matched(store: Store, images: Images) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row of the store its row in `images` (-1: not there), and the rows of `images` that are not stored."""
    found = store.find(images.keys)
    places = np.full(len(store), -1, np.int64)
    places[found[found >= 0]] = np.flatnonzero(found >= 0)
    return places, np.flatnonzero(found < 0)


def named_teachers(config: Reopening, labels: Labels) -> dict[str, TeacherSpec]:
    """The teachers of a store that the user names, and whose weights are there, by name.

    Raises:
        ConfigError: the store has no labels of one of them.
    """
    specs = []
    if config.teacher:
        specs = teacher_specs(config.teacher, config.weights, names=config.name, sizes=config.size, there=labels.store)
    for name in (spec.short_name for spec in specs):
        if name not in labels.teachers:
            raise ConfigError(
                f"{labels.store.location} has no labels of {name!r}; {did_you_mean(name, labels.teachers)}"
            )
    check_teacher_files(specs)
    return {spec.short_name: spec for spec in specs}


def reopening(config: Reopening, labels: Labels, images: Images, instead: str) -> Callable[[str], Teacher]:
    """How to come by a teacher of a store again: as the user names it, else as the store describes it.

    `instead` says in messages what works without the teacher.
    """
    named = named_teachers(config, labels)

    def reopen(name: str) -> Teacher:
        card = labels.of(name).card
        inner = innermost(card.spec)
        kind = inner.get("kind")
        if name not in named and kind == "own":
            raise ConfigError(f"{name} answered in its maker's own inference loop; run that again, or {instead}")
        if name not in named and kind == IMPORTED:
            raise ConfigError(
                f"{name} came from files of {card.spec.get('project')}: run `softlabels import` again to get shards "
                f"back, or {instead}"
            )
        if name not in named and kind == OBJECT:
            raise ConfigError(
                f"{name} was an object of a Python program ({inner.get('module')}); give it there: `teacher`, with the "
                f"name {name!r}, or {instead}"
            )
        if name not in named and kind == "function":
            # A store may come from a stranger, so only a user may have code imported.
            raise ConfigError(f"{name} was made by {inner.get('function')!r}; name it yourself with `teacher`")
        # In what the labels were made in, so that what is compared, or made again, is of one kind.
        amp = None if card.precision in (None, "fp32") else card.precision
        if card.precision is not None and config.amp not in (None, amp):
            raise ConfigError(f"labels of {name} were made in {card.precision}; leave `amp={config.amp}` out")
        machine = config if card.precision is None else config.model_copy(update={"amp": amp})
        if name in named:
            spec, clean = named[name], RECIPES.make(labels.store.manifest.recipe).clean
            if inner is not card.spec:  # named is the whole teacher, the card says which columns
                spec = teacher_spec({**card.spec, "of": spec.model_dump()})
            opened = open_teacher(spec, machine, images, labels.classes, clean=clean)
        else:
            # As it was: what a network wants by default may have changed since.
            spec = teacher_spec(dict(card.spec))
            opened = open_teacher(spec, machine, images, labels.classes, preprocessing=card.preprocessing)
        if opened.weights_sha256 != card.weights_sha256:
            raise StoreError(
                f"{name} has other weights ({opened.weights_sha256[:12]}) than those that made the labels "
                f"({card.weights_sha256[:12]}); give `teacher` and `weights`, or {instead}"
            )
        return opened

    return reopen


def alias(spec: TeacherSpec) -> str:
    """What a network's name resolves to, as a clause; nothing where the name says it already."""
    return f" is {spec.resolved}" if spec.resolved.rpartition(":")[2] != spec.short_name else ""
