"""A label store beside a plain model of it: commands in any order, killed or whole, change both alike."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from linear_teachers import CLASSES, NAMES, SIZE, logits
from moving import all_bytes, flip
from numpy.typing import NDArray
from PIL import Image

import softlabels

POOL = tuple(f"class-{label}/{number}.png" for label in range(CLASSES) for number in range(4))
"""The keys of all images that there can be; the first of each class is there from the start."""

MOST_VIEWS, RECIPE, TOP = 4, "pad-flip", 2
CODECS = {"dense:fp32": 1e-2, "dense": 1e-2, f"topk:{TOP}": 0.3}
"""Each codec, and how far its logits, less their mean, may lie from the teacher's."""

OTHER = {"hdf5": "zarr", "zarr": "hdf5"}
OPERATIONS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "link")
"""What of `os` a writer may be killed at."""

Cell = tuple[int, int]
"""Run and view: what is written whole or not at all."""

Part = tuple[int, int]
Kill = tuple[int, bool] | None
"""At which operation on files a command is killed, and whether that one is done before."""


@cache
def content(key: str) -> bytes:
    """The file of a readable image."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(POOL.index(key)).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder, "picture.png"))
        return Path(folder, "picture.png").read_bytes()


@cache
def pictures() -> dict[tuple[str, int], NDArray[np.uint8]]:
    """What a teacher sees of every image in every view, uint8 (3, 8, 8): rendered once, without a teacher."""
    with tempfile.TemporaryDirectory() as folder:
        for key in POOL:
            put(Path(folder, "images", key), content(key))
        images = softlabels.open_images(str(Path(folder, "images")))
        seen = {}
        with softlabels.create_labels(
            Path(folder, "views"), images=images, recipe=RECIPE, views=MOST_VIEWS + 1, classes=CLASSES
        ) as store:
            for batch in store.missing("nobody", size=SIZE):
                store.put(batch.pictures[:, 0, 0, :CLASSES].float())
                for picture, row, view in zip(batch.pictures, batch.rows, batch.views, strict=True):
                    seen[images.keys[int(row)].as_py(), int(view)] = picture.numpy().copy()
    return seen


@cache
def said(teacher: str, key: str, view: int) -> NDArray[np.float64]:
    """What a teacher says of one view, less its mean: float64 (classes,)."""
    return centred(logits(teacher, pictures()[key, view][None])[0])


def centred(rows: NDArray[Any]) -> NDArray[Any]:
    return rows - rows.mean(-1, keepdims=True)


def agrees(found: NDArray[np.float32], teacher: str, key: str, view: int, codec: str) -> bool:
    """Whether stored logits (classes,) are what the teacher said, as far as the codec keeps it."""
    wanted, bound = said(teacher, key, view), CODECS[codec]
    if not codec.startswith("topk"):
        return bool(np.abs(centred(found) - wanted).max() < bound)
    # What is kept of the others is the probability that they have together.
    kept = np.argsort(-wanted)[:TOP]
    told, true = (np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in (found, wanted))
    others = np.delete(found, kept)
    return bool(
        np.abs(np.diff(found[kept]) - np.diff(wanted[kept])).max() < bound
        and np.abs(told[kept] - true[kept]).max() < bound / 4
        and (others.max() <= found[kept].min() + 1e-5)
        and np.ptp(others) < 1e-5
    )


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@dataclass
class Kept:
    """What a store holds of one teacher: cells, and which images of each were skipped.

    `unsure` cells may be there or not: a killed writer was at them, and all their images are unreadable. `due` cells
    were taken away by a repair, and the next dump or `repair --redump` has to bring them back; `noted` ones are not
    there either, and it may.
    """

    codec: str
    format: str
    compression: str
    held: dict[Cell, set[str]] = field(default_factory=dict)
    unsure: set[Cell] = field(default_factory=set)
    due: set[Cell] = field(default_factory=set)
    noted: set[Cell] = field(default_factory=set)

    @property
    def skipped(self) -> set[str]:
        """Images without a label in some view."""
        return set().union(*self.held.values())


@dataclass(frozen=True)
class Damage:
    """A shard of which a byte is not as it was written: its cells and what its file holds."""

    teacher: str
    cells: frozenset[Cell]
    path: Path
    digest: int
    hides: bool
    """Whether the shard can be taken for one that is not there: its header is damaged, or it is cut off."""

    @property
    def is_there(self) -> bool:
        return self.path.exists() and fingerprint(self.path) == self.digest


@dataclass
class Model:
    """All that a store at `path` has to hold."""

    path: Path
    rows_per_shard: int
    additions: list[list[str]] = field(default_factory=list)
    teachers: dict[str, Kept] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)
    begun: bool = False
    """Whether a killed dump may have left a table of images that the manifest does not name; the next removes it."""

    @property
    def keys(self) -> list[str]:
        return [key for added in self.additions for key in added]

    @property
    def runs(self) -> list[list[str]]:
        size = self.rows_per_shard
        return [added[start : start + size] for added in self.additions for start in range(0, len(added), size)]

    def cells(self, views: int, part: Part = (0, 1)) -> set[Cell]:
        """The cells of the first views, of the runs of a part."""
        index, count = part
        return {(run, view) for run in range(len(self.runs)) if run % count == index for view in range(views)}

    def forget_what_is_due(self) -> None:
        """A copy of a store has no notes of what was taken away."""
        for each in self.teachers.values():
            each.due, each.noted = set(), set()

    def damaged(self, teacher: str) -> set[Cell]:
        return {cell for each in self.damage if each.teacher == teacher for cell in each.cells}

    def sound(self, teacher: str) -> dict[Cell, set[str]]:
        """The cells that have to be read, and their skipped images."""
        broken = self.damaged(teacher)
        return {cell: skipped for cell, skipped in self.teachers[teacher].held.items() if cell not in broken}

    def prefix(self, cells: Iterable[Cell]) -> int:
        """Views, counted from 0, that every run has among `cells`."""
        there, views = set(cells), 0
        while all((run, views) in there for run in range(len(self.runs))):
            views += 1
        return views


def fingerprint(path: Path) -> int:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return hash(tuple((str(each), each.read_bytes()) for each in files))


def cut(shard: Path) -> None:
    """Take the last bytes of a shard's labels away."""
    path = shard if shard.is_file() else next(path for path in sorted(shard.rglob("c/**/*")) if path.is_file())
    path.write_bytes(path.read_bytes()[:-5])


def break_header(shard: Path) -> None:
    """Misspell a name in a shard's header."""
    path = shard if shard.is_file() else shard / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"first_row', b'"first_rox', 1))


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "header": break_header}


def do(command: Callable[[], object], kill: Kill, limit: float = 120) -> str:
    """Do a command, here or in a child that is killed in the midst of it: "done", "killed", or the refusal."""
    if kill is None:
        try:
            command()
        except softlabels.SoftlabelsError as problem:
            return one_line(problem)
        return "done"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            die_at(*kill)
            command()
            os.write(writing, b"done")
        except softlabels.SoftlabelsError as problem:
            os.write(writing, one_line(problem).encode()[:4000])
        except BaseException:
            os.write(writing, b"crashed " + traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writing)
    end = time.monotonic() + limit
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"a command hangs that was to be killed at operation {kill}")
        time.sleep(0.001)
    with os.fdopen(reading) as pipe:
        outcome = pipe.read()
    if os.WIFSIGNALED(ended[1]):
        assert os.WTERMSIG(ended[1]) == signal.SIGKILL
        return "killed"
    assert outcome and not outcome.startswith("crashed"), outcome
    return outcome


def one_line(problem: softlabels.SoftlabelsError) -> str:
    assert "\n" not in str(problem), problem
    return str(problem)


def die_at(moment: int, done: bool) -> None:
    """Kill this process at its nth operation on files, before or after it is done."""
    numbers = itertools.count(1)  # threads draw from it, too

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            last = next(numbers) == moment
            result = operation(*args, **kwargs) if done or not last else None
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


kills = st.none() | st.tuples(st.integers(1, 30), st.booleans())
parts = st.sampled_from([(0, 1), (0, 1), (0, 1), (0, 2), (1, 2)])
names = st.sampled_from(NAMES)
views = st.integers(1, MOST_VIEWS)


class Histories(RuleBasedStateMachine):
    """Rules are commands as users give them; after each, the store is opened anew and has to hold what the model does.

    At any time: every label that was ever complete is read and is what the teacher said; what is not there, or was
    skipped, or is damaged, is refused and never served; and a command that was done does nothing when given again.
    """

    format: ClassVar[str] = "hdf5"
    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        pictures()  # and with them all that commands import, so that no child that is to be killed has to
        self.home = Path(tempfile.mkdtemp(prefix="histories-"))
        self.images = self.home / "images"
        self.bad: set[str] = set()
        self.there: set[str] = set()
        self.made = 0
        self.reader: tuple[softlabels.Labels, dict[str, list[tuple[int, int, str]]]] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.home)

    @initialize(
        rows_per_shard=st.integers(2, 3),
        codecs=st.tuples(st.sampled_from(sorted(CODECS)), st.sampled_from(sorted(CODECS))),
        compression=st.sampled_from(["none", "none", "zstd"]),
        more=st.sets(st.sampled_from(POOL), max_size=4),
        bad=st.sets(st.sampled_from(POOL), max_size=2),
        teacher=names,
        views=views,
        kill=kills,
    )
    def begin(
        self,
        rows_per_shard: int,
        codecs: tuple[str, str],
        compression: str,
        more: set[str],
        bad: set[str],
        teacher: str,
        views: int,
        kill: Kill,
    ) -> None:
        self.codecs, self.compression = dict(zip(NAMES, codecs, strict=True)), compression
        self.store = Model(self.place(), rows_per_shard)
        for key in sorted({*POOL[::4], *more}):
            self.add(key, bad=key in bad)
        self.dump_to(self.store, teacher, views, kill=kill)

    @rule(teacher=names, views=views, part=parts, tolerant=st.sampled_from([True, True, False]), kill=kills)
    def dump(self, teacher: str, views: int, part: Part, tolerant: bool, kill: Kill) -> None:
        """More views, a second teacher, a part, what a killed dump left to do, or nothing."""
        self.dump_to(self.store, teacher, views, part, tolerant=tolerant, kill=kill)

    @precondition(lambda self: len(self.there) < len(POOL))
    @rule(
        more=st.lists(st.tuples(st.sampled_from(POOL), st.sampled_from([False, False, True])), min_size=1, max_size=3),
        teacher=names,
        views=views,
        part=parts,
        kill=kills,
    )
    def grow(self, more: list[tuple[str, bool]], teacher: str, views: int, part: Part, kill: Kill) -> None:
        self.count("images added")
        for key, bad in more:
            if key not in self.there:
                self.add(key, bad)
        self.dump_to(self.store, teacher, views, part, kill=kill)

    @precondition(lambda self: self.bad & {*self.store.keys})
    @rule(choice=st.integers(0, 99), views=views, part=parts, kill=kills)
    def label_what_was_skipped(self, choice: int, views: int, part: Part, kill: Kill) -> None:
        """An image becomes readable; a dump as before labels it."""
        self.count("image readable now")
        candidates = sorted(self.bad & {*self.store.keys})
        key = candidates[choice % len(candidates)]
        put(self.images / key, content(key))
        self.bad.remove(key)
        self.dump_to(self.store, self.kept[choice % len(self.kept)][0], views, part, kill=kill)

    @precondition(lambda self: self.store.teachers)
    @rule(data=st.data(), to=st.sampled_from(["other", "same"]), kill=kills, adopt=st.booleans())
    def convert(self, data: st.DataObject, to: str, kill: Kill, adopt: bool) -> None:
        held = {each.codec for each in self.store.teachers.values()}
        codec = data.draw(st.sampled_from([None, None, *CODECS]))
        compression = data.draw(st.sampled_from([None, "none", "zstd"]))
        formats = {name: OTHER[each.format] if to == "other" else each.format for name, each in self.kept}
        format = next(iter(formats.values()))
        result = deepcopy(self.store)
        result.path, result.damage, result.begun = self.place(), [], False
        result.forget_what_is_due()

        def command() -> None:
            settings = {"format": format, "compression": compression, "codec": codec, "lossy": True}
            softlabels.convert(labels=str(self.store.path), out=str(result.path), quiet=True, **settings)

        outcome = do(command, kill)
        self.count("convert", kill=outcome == "killed")
        if codec is not None and any(each.startswith("topk") and each != codec for each in held):
            assert outcome == "killed" or "stand for other logits" in outcome or self.store.damage, outcome
            assert not result.path.exists()
            return
        if outcome == "killed":
            outcome = do(command, None)
        if self.store.damage:
            assert outcome != "done", "a damaged store was converted as if it were whole"
            shutil.rmtree(result.path, ignore_errors=True)
            return
        assert outcome == "done", outcome
        for each in result.teachers.values():
            each.format, each.compression = format, compression or each.compression
            each.codec = codec or each.codec
        self.does_nothing(command, result.path)
        self.check(result)
        if adopt:
            shutil.rmtree(self.store.path)
            self.store, self.reader = result, None
            for name, each in result.teachers.items():
                self.codecs[name], self.compression = each.codec, each.compression
        else:
            shutil.rmtree(result.path)

    @precondition(lambda self: self.store.teachers and not self.stale)
    @rule(
        into_itself=st.booleans(),
        here=st.tuples(names, views, parts),
        there=st.tuples(names, views, parts),
        kill=kills,
    )
    def merge_what_two_machines_dumped(
        self,
        into_itself: bool,
        here: tuple[str, int, Part],
        there: tuple[str, int, Part],
        kill: Kill,
    ) -> None:
        if self.store.damage or {*self.store.keys} != self.there:
            return
        twin = deepcopy(self.store)
        twin.path = self.place()
        shutil.copytree(self.store.path, twin.path)
        for model, what in ((self.store, here), (twin, there)):
            self.dump_to(model, *what)
        result = self.store if into_itself else deepcopy(self.store)
        if not into_itself:
            result.path = self.place()
            result.forget_what_is_due()

        def command() -> None:
            sources = [str(self.store.path), str(twin.path)]
            softlabels.merge(labels=sources, out=str(result.path), quiet=True)

        outcome = do(command, kill)
        self.count("merge", kill=outcome == "killed")
        if outcome == "killed":
            if into_itself:
                for name, each in twin.teachers.items():
                    self.observe(result, name, set(each.held), known=each)
                self.check(result)
            outcome = do(command, None)
        assert outcome == "done", outcome
        for name, each in twin.teachers.items():
            if name not in result.teachers:
                result.teachers[name] = deepcopy(each)
                result.teachers[name].due, result.teachers[name].noted = set(), set()
            kept = result.teachers[name]
            kept.held |= each.held
            kept.unsure = (kept.unsure | each.unsure) - kept.held.keys()
        self.does_nothing(command, result.path)
        shutil.rmtree(twin.path)
        if not into_itself:
            shutil.rmtree(self.store.path)
            self.store, self.reader = result, None

    @rule(choice=st.integers(0, 99), kind=st.sampled_from(sorted(DAMAGES)))
    def damage_a_shard(self, choice: int, kind: str) -> None:
        known = {each.path for each in self.store.damage}
        shards = [path for name, each in self.kept for path in shard_paths(self.store.path / name) if path not in known]
        if not shards:
            return
        self.count(f"damage: {kind}")
        path = shards[choice % len(shards)]
        run, first, stop = (int(word.lstrip("v")) for word in path.name.partition(".")[0].split("-"))
        DAMAGES[kind](path)
        cells = frozenset((run, view) for view in range(first, stop))
        self.store.damage.append(Damage(path.parent.name, cells, path, fingerprint(path), kind != "flip"))
        self.reader = None

    @precondition(lambda self: self.store.teachers)
    @rule(
        damage=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(sorted(DAMAGES))), max_size=2),
        redump=st.booleans(),
        kill=kills,
    )
    def repair(self, damage: list[tuple[int, str]], redump: bool, kill: Kill) -> None:
        for choice, kind in damage:
            self.damage_a_shard(choice, kind)
        self.check(self.store)
        redump = redump and not self.stale
        teachers = [name.replace("-", ":") for name in self.store.teachers]

        def command() -> None:
            settings = {"redump": redump, "teacher": teachers if redump else (), "on_bad_image": "skip"}
            softlabels.repair(labels=str(self.store.path), **settings, **MACHINE)

        outcome = do(command, kill)
        self.count("repair --redump" if redump else "repair", kill=outcome == "killed")
        before = self.store.damage
        self.store.damage = [each for each in before if each.is_there]
        if outcome == "killed":
            for name, kept in self.kept:
                gone = {cell for each in before if each.teacher == name and not each.is_there for cell in each.cells}
                for cell in gone:
                    kept.held.pop(cell, None)
                kept.due |= gone
                self.observe(self.store, name, self.store.cells(MOST_VIEWS) - self.store.damaged(name))
            return
        assert outcome == "done", outcome
        assert not self.store.damage, "a repair left damage"
        for name, kept in self.kept:
            gone = {cell for each in before if each.teacher == name for cell in each.cells}
            if redump:
                kept.held |= self.fresh(self.store, gone | kept.due)
                kept.due, kept.noted = set(), set()
                self.observe(self.store, name, self.store.cells(MOST_VIEWS) - kept.held.keys())
            else:
                kept.due |= gone
                for cell in gone:
                    kept.held.pop(cell, None)
        self.does_nothing(command, self.store.path)

    @precondition(lambda self: self.store.teachers)
    @rule(
        what=st.sampled_from(["seed", "recipe", "codec", "image changed", "image gone", "more images"]),
        teacher=names,
        choice=st.integers(0, 99),
    )
    def ask_for_something_else(self, what: str, teacher: str, choice: int) -> None:
        """A dump of other views, labels or images than the store's is refused in a line, and nothing changes."""
        told = {key for _, each in self.kept for run, _ in each.held for key in self.store.runs[run]}
        readable = sorted(told - self.bad - self.stale)
        changes: dict[str, Any] = {}
        if what == "seed":
            changes = {"seed": 1}
        elif what == "recipe":
            changes = {"recipe": "pad"}
        elif what == "codec" and teacher in self.store.teachers:
            changes = {"codec": "quantized"}
        elif what.startswith("image") and readable:
            key = readable[choice % len(readable)]
            if what == "image gone" and sum(other.startswith(key.split("/")[0]) for other in self.there) == 1:
                return
            (self.images / key).unlink() if what == "image gone" else put(self.images / key, content(POOL[-1]) + b"0")
        elif what == "more images" and self.there != {*POOL}:
            left = sorted({*POOL} - self.there)
            key = left[choice % len(left)]
            put(self.images / key, content(key))
        else:
            return
        self.count(f"refused: {what}")
        before = all_bytes(self.store.path)
        changes["grow"] = what != "more images"
        outcome = do(lambda: self.dump_command(self.store, teacher, MOST_VIEWS, **changes), None)
        assert outcome not in ("done", "killed"), f"a dump of another {what} was done"
        assert all_bytes(self.store.path) == before
        if what.startswith("image"):
            put(self.images / key, content(key))
        elif what == "more images":
            (self.images / key).unlink()

    @precondition(lambda self: self.store.teachers)
    @rule(how=st.sampled_from(["verify_the_files", "verify_teachers_and_images", "read_pairs", "keep_a_reader_open"]))
    def look(self, how: str) -> None:
        """Look at what is there."""
        getattr(self, how)()

    def verify_the_files(self) -> None:
        self.count("verify: files")
        findings = softlabels.verify(labels=str(self.store.path), shards_only=True, quiet=True)
        if any(each.unsure for _, each in self.kept):
            return
        whole = all(self.is_complete(each) for _, each in self.kept)
        if self.store.begun and all("images-" in problem for problem in findings.problems):
            return
        assert findings.ok == (whole and not self.store.damage), findings.problems

    def finish(self) -> None:
        """Dump what is missing, so that every image has the same views from every teacher."""
        dumped = 0
        while dumped < (views := self.most_views()):  # removed shards come back with views that were not asked for
            dumped = views
            for name, _ in self.kept:
                self.dump_to(self.store, name, views)

    def most_views(self) -> int:
        """Views of the cell with most."""
        return 1 + max((view for _, each in self.kept for _, view in {*each.held, *each.due}), default=0)

    def verify_teachers_and_images(self) -> None:
        if self.store.damage:
            return
        self.finish()
        self.count("verify: teachers")
        teachers = [name.replace("-", ":") for name in self.store.teachers]
        findings = softlabels.verify(labels=str(self.store.path), teacher=teachers, samples=6, **MACHINE)
        assert findings.ok, findings.problems

    def read_pairs(self) -> None:
        """What a training reads: each image is the one of which the label beside it was said."""
        names = [name for name, each in self.kept if each.codec.startswith("dense")]
        if self.bad or self.store.damage or not names:
            return
        self.finish()
        self.count("pairs")
        labels = softlabels.open_labels(self.store.path)
        images = softlabels.open_images(str(self.images))
        dataset = softlabels.SoftLabelDataset(labels, images, size=SIZE, teachers=names[:1], temperature=2.0)
        for number in range(0, len(dataset), 3):
            row, view = divmod(number, len(dataset) // len(images))
            key = images.keys[row].as_py()
            picture, _, probabilities = dataset[number]
            assert np.array_equal(picture.numpy(), pictures()[key, view])
            wanted = torch.from_numpy(said(names[0], key, view) / 2).softmax(-1)
            assert (probabilities.double() - wanted).abs().max() < 1e-2, (key, view)

    def keep_a_reader_open(self) -> None:
        if self.store.damage:
            return
        self.count("a reader stays")
        labels, rows = softlabels.open_labels(self.store.path), {key: row for row, key in enumerate(self.store.keys)}
        self.reader = labels, {name: list(self.readable(self.store, name, rows)) for name, _ in self.kept}
        self.read_on()

    # What holds after every command.

    @invariant()
    def the_store_holds_what_the_model_does(self) -> None:
        self.check(self.store)
        self.read_on()

    # How it is done.

    def count(self, what: str, *, kill: bool = False) -> None:
        type(self).counts[f"{what}, killed" if kill else what] += 1

    def place(self) -> Path:
        """A fresh place for a store."""
        self.made += 1
        return self.home / f"store-{self.made}"

    def add(self, key: str, bad: bool) -> None:
        put(self.images / key, f"no picture: {key}".encode() if bad else content(key))
        self.there.add(key)
        if bad:
            self.bad.add(key)

    @property
    def kept(self) -> list[tuple[str, Kept]]:
        return sorted(self.store.teachers.items())

    @property
    def stale(self) -> set[str]:
        """Images that were skipped and are readable now."""
        return {key for _, each in self.kept for key in each.skipped} - self.bad

    def is_complete(self, kept: Kept) -> bool:
        """Whether each run has all views that some run has."""
        return bool(kept.held) and kept.held.keys() == self.store.cells(1 + max(view for _, view in kept.held))

    def fresh(self, model: Model, cells: Iterable[Cell]) -> dict[Cell, set[str]]:
        """Cells as they are dumped now."""
        return {cell: self.bad & {*model.runs[cell[0]]} for cell in cells}

    def dump_command(
        self,
        model: Model,
        teacher: str,
        views: int,
        part: Part = (0, 1),
        tolerant: bool = True,
        **changes: Any,
    ) -> None:
        kept = model.teachers.get(teacher) or Kept(self.codecs[teacher], self.store_format(model), self.compression)
        settings = {
            "teacher": [teacher.replace("-", ":")],
            "data": str(self.images),
            "recipe": RECIPE,
            "views": views,
            "part": f"{part[0]}/{part[1]}",
            "grow": bool(model.additions),
            "codec": kept.codec,
            "format": kept.format,
            "compression": kept.compression,
            "rows_per_shard": model.rows_per_shard,
            "batch_size": 5,
            "on_bad_image": "skip" if tolerant else "fail",
            "out": str(model.path),
        }
        softlabels.dump(**(settings | MACHINE | changes))

    def store_format(self, model: Model) -> str:
        return next((each.format for each in model.teachers.values()), self.format)

    def dump_to(
        self,
        model: Model,
        teacher: str,
        views: int,
        part: Part = (0, 1),
        tolerant: bool = True,
        kill: Kill = None,
    ) -> None:
        """Dump, and let the model know what came of it."""
        new = sorted(self.there - {*model.keys})
        tolerant = tolerant or bool(model.damage)
        # The card says what is asked for, also when a killed dump wrote no label yet.
        kept = deepcopy(model.teachers.get(teacher)) or Kept(
            self.codecs[teacher], self.store_format(model), self.compression
        )
        after = deepcopy(model)
        if new:
            after.additions.append(new)
        wanted = after.cells(views, part)
        damage = [each for each in model.damage if each.teacher == teacher]
        hidden = {cell for each in damage if each.hides for cell in each.cells}
        due, noted = (cells & after.cells(MOST_VIEWS + 1, part) for cells in (kept.due, kept.noted))
        todo = {cell for cell in wanted | due if cell not in kept.held or cell in hidden}
        stale = {cell for cell in wanted if kept.held.get(cell, set()) - self.bad}
        stops = not tolerant and any(self.fresh(after, todo - kept.unsure).values())
        may_stop = not tolerant and (stale or any(self.fresh(after, todo | noted).values()))
        if stale:
            self.reader = None  # its shards may be replaced

        def command() -> None:
            self.dump_command(model, teacher, views, part, tolerant)

        outcome = do(command, kill)
        self.count("dump", kill=outcome == "killed")
        if outcome != "killed":
            # An image that can be read again may be one that a shard has labels of, as long as none can tell.
            may_stop = may_stop or (any(each.hides for each in model.damage) and "count as labels of all" in outcome)
            assert not stops if outcome == "done" else may_stop, outcome
        model.begun = outcome != "done" and (bool(new) or model.begun)
        if new:
            self.see_images(model, after, must=outcome == "done")
        if outcome != "done" and not self.see_teacher(model, teacher):
            return
        model.teachers[teacher] = kept
        if new and model.additions[-1:] != after.additions[-1:]:
            return
        gone = {cell for each in damage if not each.is_there for cell in each.cells}
        model.damage = [each for each in model.damage if each.is_there]
        if outcome == "done":
            for cell in gone - wanted:
                kept.held.pop(cell, None)
            kept.held |= self.fresh(model, (todo | gone) & (wanted | due))
            kept.unsure -= wanted | due
            for cell in stale:
                kept.held[cell] &= self.bad
            self.observe(model, teacher, (gone | noted) - wanted)
            kept.due, kept.noted = kept.due - due, kept.noted - noted
            self.see_labelled(model, teacher)
            self.does_nothing(command, model.path)
            if part == (0, 1):
                self.find_no_leftovers(model.path, model.path / teacher)
        else:
            for cell in gone:
                kept.held.pop(cell, None)
            kept.noted |= gone
            self.observe(model, teacher, (todo | gone | noted | kept.unsure) - model.damaged(teacher))
            self.see_labelled(model, teacher)

    def see_images(self, model: Model, after: Model, *, must: bool) -> None:
        """Know whether a dump got to add the new images; a store that is not there has none."""
        try:
            keys = softlabels.open_labels(model.path).keys.to_pylist()
        except softlabels.StoreError:
            assert not model.additions, "a store cannot be opened any more"
            keys = []
        assert keys in ([after.keys] if must else [model.keys, after.keys])
        if keys == after.keys:
            model.additions = after.additions

    def see_teacher(self, model: Model, teacher: str) -> bool:
        """Whether a dump that did not end well got to write the teacher's card."""
        if not model.additions or teacher in model.teachers:
            return bool(model.additions)
        return teacher in softlabels.open_labels(model.path).teachers

    def observe(self, model: Model, teacher: str, cells: set[Cell], known: Kept | None = None) -> None:
        """Know which cells are there that need not be: those whose readable images have labels."""
        if teacher not in model.teachers:
            if teacher not in softlabels.open_labels(model.path).teachers:
                return
            assert known is not None
            model.teachers[teacher] = Kept(known.codec, known.format, known.compression)
        kept = model.teachers[teacher]
        labels = softlabels.open_labels(model.path)
        for run, view in sorted(cells):
            if (run, view) in kept.held:
                continue
            skipped = known.held[run, view] if known else self.fresh(model, [(run, view)])[run, view]
            keys = [key for key in model.runs[run] if key not in skipped]
            if not keys:
                kept.unsure.add((run, view))
                continue
            kept.unsure.discard((run, view))
            with contextlib.suppress(softlabels.StoreError):
                labels.logits(labels.rows(keys), view, teacher)
                kept.held[run, view] = set(skipped)

    def see_labelled(self, model: Model, teacher: str) -> None:
        """Know which images that were skipped got labels, view by view; unreadable ones cannot have got one."""
        labels, kept = softlabels.open_labels(model.path), model.teachers[teacher]
        for (run, view), skipped in kept.held.items():
            if (run, view) in model.damaged(teacher):
                continue
            for key in skipped - self.bad:
                row = labels.rows([key])
                with contextlib.suppress(softlabels.StoreError):
                    labels.logits(row, view, teacher)
                    skipped.remove(key)

    def does_nothing(self, command: Callable[[], None], path: Path) -> None:
        """A command that was done does nothing when it is given again."""
        before = all_bytes(path), {each: each.stat().st_mtime_ns for each in path.rglob("*") if each.is_file()}
        command()
        after = all_bytes(path), {each: each.stat().st_mtime_ns for each in path.rglob("*") if each.is_file()}
        changed = {name for name in before[0].keys() | after[0].keys() if before[0].get(name) != after[0].get(name)}
        assert not changed, f"the same command again changed {sorted(changed)}"
        assert before == after

    def find_no_leftovers(self, *folders: Path) -> None:
        left = [path.name for folder in folders for path in folder.glob(".partial-*")]
        assert not left, f"a dump left what killed writers left before it: {left}"

    def readable(self, model: Model, teacher: str, rows: dict[str, int]) -> Iterator[tuple[int, int, str]]:
        """Row, view and key of every label that has to be read."""
        for (run, view), skipped in sorted(model.sound(teacher).items()):
            yield from ((rows[key], view, key) for key in model.runs[run] if key not in skipped)

    def check(self, model: Model) -> None:
        """Open the store anew; it has to hold what the model does, and nothing else."""
        if not model.additions:
            return
        labels = softlabels.open_labels(model.path)
        assert labels.keys.to_pylist() == model.keys
        assert labels.teachers == tuple(sorted(model.teachers))
        rows = {key: row for row, key in enumerate(model.keys)}
        for name, kept in model.teachers.items():
            self.compare(labels, name, list(self.readable(model, name, rows)), kept.codec)
            for cell in model.cells(MOST_VIEWS + 1) - kept.held.keys() - kept.unsure - model.damaged(name):
                for key in model.runs[cell[0]]:
                    assert self.is_refused(labels, name, [rows[key]], cell[1]), f"{cell} is not there"
            for (_, view), skipped in model.sound(name).items():
                for key in skipped:
                    assert self.is_refused(labels, name, [rows[key]], view), f"view {view} of {key} was skipped"
            if not model.damaged(name) and not kept.unsure:
                everything = np.arange(len(rows))
                labelled = [key not in kept.skipped for key in model.keys]
                assert labels.labelled(everything, [name]).tolist() == labelled
        for each in model.damage:
            self.is_found(labels, model, each, rows)
        self.count_views(labels, model)

    def count_views(self, labels: softlabels.Labels, model: Model) -> None:
        least = min((model.prefix(model.sound(name)) for name in model.teachers), default=0)
        most = min((model.prefix({*each.held, *each.unsure}) for each in model.teachers.values()), default=0)
        try:
            assert least <= labels.views <= most
        except softlabels.StoreError:
            assert model.damage

    def compare(
        self, labels: softlabels.Labels, teacher: str, wanted: Sequence[tuple[int, int, str]], codec: str
    ) -> None:
        if not wanted:
            return
        rows, views = (np.array([each[place] for each in wanted]) for place in (0, 1))
        found = labels.logits(rows, views, teacher).numpy()
        for (_, view, key), row in zip(wanted, found, strict=True):
            assert agrees(row, teacher, key, view, codec), f"{teacher}, view {view} of {key}: {row}"

    def is_refused(self, labels: softlabels.Labels, teacher: str, rows: list[int], view: int) -> bool:
        for read in (labels.logits, labels.probabilities):
            try:
                read(rows, view, **({"teacher": teacher} if read == labels.logits else {"teachers": [teacher]}))
            except softlabels.StoreError as problem:
                one_line(problem)
            else:
                return False
        return True

    def is_found(self, labels: softlabels.Labels, model: Model, damage: Damage, rows: dict[str, int]) -> None:
        """A damaged shard is not read to its end without a word, and what is read of it is right."""
        kept, refused = model.teachers[damage.teacher], 0
        for run, view in damage.cells:
            skipped = kept.held.get((run, view), set())
            wanted = [(rows[key], view, key) for key in model.runs[run] if key not in skipped]
            if not wanted:
                return
            try:
                self.compare(labels, damage.teacher, wanted, kept.codec)
            except softlabels.StoreError:
                refused += 1
        # Of a compressed shard that was unpacked before, the copy is read, which is sound.
        copied = labels.of(damage.teacher).card.compression != "none"
        assert refused or copied, f"nobody noticed the damage of {damage.path.name}"

    def read_on(self) -> None:
        """A reader that was opened before goes on to read what it read."""
        if self.reader is not None:
            labels, known = self.reader
            for name, wanted in known.items():
                self.compare(labels, name, wanted, self.store.teachers[name].codec)


def shard_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("0*") if path.suffix in (".h5", ".zarr"))


MACHINE: dict[str, Any] = {"device": "cpu", "workers": 0, "quiet": True}


class HistoriesInZarr(Histories):
    format = "zarr"
    counts: ClassVar[Counter[str]] = Counter()
