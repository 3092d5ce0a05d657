"""The labels of one teacher: written shard by shard, read row by row."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softlabels.core import locks as _lock
from softlabels.core.arrayfile import FORMATS
from softlabels.core.arrayfile.arrays import write_arrays
from softlabels.core.arrays import Arrays
from softlabels.core.documents import document_problems
from softlabels.core.files import TEMPORARY, can_exchange, remove_leftovers, whole, write_text
from softlabels.core.paths import Damaged, SafePath
from softlabels.errors import StoreError
from softlabels.store._ahead import Ahead
from softlabels.store._cache import Cache
from softlabels.store._claims import Claim
from softlabels.store._folder import CARD, REMOVED, ShardFolder, advice
from softlabels.store._gather import LabelReader, check_extent
from softlabels.store._layout import TeacherCard, check_arrays
from softlabels.store._manifest import Manifest
from softlabels.store._mirror import RemoteStore, ShardSource
from softlabels.store._shard import MOST_VIEWS, Header, Owner, Shard
from softlabels.store._unpacked import unit


@dataclass(frozen=True)
class ShardContent:
    """All that a shard holds: arrays (views, rows, ...), rows that were not labelled and why, digests by row."""

    arrays: dict[str, NDArray[Any]]
    skipped: dict[int, str]
    digests: dict[int, tuple[str, ...]]


class TeacherLabels:
    """One teacher's labels in a store.

    It pickles as its path: a process that receives it opens the store again, and maps a shard when it first reads it.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        name: str,
        card: TeacherCard,
        mirror: RemoteStore | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.root = root
        self.name = name
        self.card = card
        owner = Owner(manifest.ids, name, card.digest, card.layout, card.compression)
        local = ShardFolder(SafePath(root, (name,)), manifest.runs, owner, FORMATS[card.format])
        self._mirror, self._cache = mirror, cache
        self._shelf = None if mirror is None else ShardSource(mirror, name, local)
        self._folder = replace(local, away=self._shelf)
        self._gather: LabelReader | None = None
        self._headers: dict[Shard, tuple[int, Header]] = {}
        self._current = False
        self._broken: tuple[Shard, ...] = ()
        self._part: tuple[int, int] | None = None
        self._claim: Claim | None = None
        self._named: dict[int, set[Shard]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        from softlabels.store._store import reopened

        return reopened, (self.location, self.name, self._cache)

    def __repr__(self) -> str:
        return f"TeacherLabels({self.location!r}, {self.name!r})"

    @property
    def location(self) -> str:
        """The folder or the URL of the store."""
        return str(self.root) if self._mirror is None else self._mirror.url

    def take(self, rows: ArrayLike, views: ArrayLike) -> dict[str, NDArray[Any]]:
        """Each array of the label of every (row, view): (n, ...), a copy.

        Args:
            rows: row numbers, integers (n,), in any order and with repetitions.
            views: view numbers, integers (n,).

        Raises:
            IndexError: a row is not of this store.
            StoreError: a label is not there, or its shard is damaged.
        """
        where, numbers = np.asarray(rows, np.int64), np.asarray(views, np.int64)
        if where.ndim != 1 or where.shape != numbers.shape:
            raise ValueError(f"rows and views must have one equal length, they are {where.shape} and {numbers.shape}")
        return self._reader.take(where, numbers)

    def before_fork(self) -> None:
        """Make ready for forked processes: what one of them compares with its checksum, the others need not."""
        self._reader  # noqa: B018

    @property
    def unit(self) -> int:
        """Bytes that one view of a shard takes in memory."""
        return unit(self._folder)

    def ahead(self, rows: ArrayLike, views: ArrayLike) -> Ahead | None:
        """Make these labels ready in this order, in a thread: copied from a URL, or unpacked. None: nothing to do.

        Whoever reads tells `Ahead.reached` how far it has come, and closes it in the end.
        """
        return self._reader.ahead(np.asarray(rows, np.int64), np.asarray(views, np.int64))

    @property
    def _reader(self) -> LabelReader:
        if self._gather is None:
            self._gather = LabelReader(self._folder, self._cache)
        return self._gather

    def labelled(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Which of these rows were labelled, bool (n,): False for those skipped in any view that is held."""
        return ~np.isin(np.asarray(rows, np.int64), list(self.skipped))

    def unlabelled(self, rows: ArrayLike, views: ArrayLike) -> NDArray[np.bool_]:
        """Which labels that were just taken are none, since their images could not be read, bool (n,).

        This goes by the headers of the shards that were read, whatever became of them since.
        """
        return self._reader.unlabelled(np.asarray(rows, np.int64), np.asarray(views, np.int64))

    def held(self, rows: ArrayLike, views: ArrayLike) -> NDArray[np.bool_]:
        """For which (row, view) a whole shard is there, bool (n,)."""
        where, numbers = np.asarray(rows, np.int64), np.asarray(views, np.int64)
        ends = [shard.stop_view for shard in self._known()]
        table = np.zeros((len(self._folder.runs), max(ends, default=0) + 1), bool)
        for shard in self._known():
            table[shard.run, shard.first_view : shard.stop_view] = True
        inside = (where >= 0) & (where < self._folder.runs.rows) & (numbers >= 0) & (numbers < table.shape[1])
        return inside & table[self._folder.runs.of(np.where(inside, where, 0)), np.where(inside, numbers, 0)]

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The ranges (first, stop) of rows that shards hold."""
        starts = self._folder.runs.starts.tolist()
        return tuple(zip(starts, [*starts[1:], self._folder.runs.rows], strict=True))

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards that are there and whole, sorted; headers of files that changed are read again each time."""
        self._read_headers()
        return tuple(self._headers)

    @property
    def broken(self) -> tuple[Shard, ...]:
        """The shards whose names are there, but whose headers are damaged or whose files are cut off; sorted."""
        self._read_headers()
        return self._broken

    @property
    def complete(self) -> int:
        """How many views, counted from 0, every row has in whole shards."""
        return _complete(self.shards, len(self._folder.runs))

    @property
    def views(self) -> int:
        """How many views, counted from 0, every row has.

        Raises:
            StoreError: some have fewer because a shard is damaged; it is named.
        """
        complete = self.complete
        if self._broken:
            named = _complete([*self._known(), *self._broken], len(self._folder.runs))
            if named > complete:
                self.check_headers()
        return complete

    def check_headers(self) -> None:
        """Raise StoreError, naming it, when a shard that is there has a damaged header or is cut off."""
        for shard in self.broken:
            with advice():
                self._folder.header(shard)

    @property
    def nbytes(self) -> int:
        """Bytes of the shards on disk."""
        return sum(file.size for header in self._known().values() for file in header.files.values())

    @property
    def skipped(self) -> dict[int, str]:
        """Rows that were not labelled, and why."""
        return {row: reason for header in self._known().values() for row, reason in sorted(header.skipped.items())}

    def skips(self) -> Iterator[tuple[Shard, dict[int, str]]]:
        """The shards in which rows were not labelled, with these rows and why."""
        return (
            (shard, dict(sorted(header.skipped.items()))) for shard, header in self._known().items() if header.skipped
        )

    def digests(self) -> Iterator[tuple[int, int, str]]:
        """(row, view, digest of the rendered image) of the labels that have one."""
        for shard, header in self._known().items():
            for row, texts in sorted(header.digests.items()):
                for view, text in enumerate(texts, shard.first_view):
                    yield row, view, text

    def missing(self, views: int, part: tuple[int, int] = (0, 1), *, besides: Sequence[Shard] = ()) -> list[Shard]:
        """The shards that the first `views` views still lack, of every n-th run from the i-th for `part` (i, n).

        Those of `besides` count as if they were there. Only headers and file sizes are read. A shard that is cut off or
        has a damaged header is missing.

        Raises:
            StoreError: a shard is of another store or a newer format.
        """
        index, count = _checked_part(part)
        if not 0 <= views < MOST_VIEWS:
            raise StoreError(f"a store holds fewer than {MOST_VIEWS:,} views per image, asked for were {views:,}")
        check_extent(self._folder, views)
        gaps = _gaps([*self.shards, *besides], len(self._folder.runs))
        return [
            self._folder.runs.shard(run, first, min(stop, views))
            for run in range(index, len(self._folder.runs), count)
            for first, stop in gaps[run]
            if first < views
        ]

    def read_shard(self, shard: Shard) -> ShardContent:
        """A whole shard, every byte of it checked. Raises StoreError, naming it, when it is damaged."""
        with advice():
            header = self._folder.header(shard)
            return ShardContent(self._folder.arrays(shard, header), dict(header.skipped), dict(header.digests))

    @contextlib.contextmanager
    def writing(self, part: tuple[int, int] = (0, 1)) -> Iterator[None]:
        """Be the one writer of every n-th run from the i-th, for `part` (i, n); what a killed one left is removed.

        Behind a URL that holds against processes of other machines, too.

        Raises:
            StoreError: another process writes some of these runs, or the folder cannot be written.
        """
        index, count = _checked_part(part)
        shelf = self._shelf
        with (
            _lock.writing(self._folder.place.path, part),
            contextlib.nullcontext() if shelf is None else shelf.writing(part) as self._claim,
        ):
            self._part, self._current = (index, count), False
            try:
                self._remove_leftovers()
                yield
            finally:
                self._part = self._named = self._claim = None

    def refresh(self) -> None:
        """See what other machines wrote behind a URL since its shards were listed; a folder is always read anew."""
        if self._shelf is not None:
            self._shelf.refresh()
            self._current = False

    def write(
        self,
        shard: Shard,
        arrays: Arrays,
        *,
        skipped: Mapping[int, str] | None = None,
        digests: Mapping[int, Sequence[str]] | None = None,
        replacing: bool = False,
    ) -> None:
        """Add a shard: it is there whole, synced to the disk, or not at all. To be called within `writing`.

        Args:
            shard: one that `missing` or `due` named.
            arrays: each (views, rows, ...) with dtype and shape as the card's layout says.
            skipped: rows that could not be labelled, and why; what their arrays hold is never read.
            digests: for some rows, of each view of the shard the digest of the rendered image.
            replacing: the shard is there and goes when this one is complete. In a folder that is in the same moment,
                but for Zarr where `can_exchange` is not; behind a URL it goes before. A writer that is killed between
                leaves a note, so that the shard is `due`.

        Raises:
            StoreError: the arrays do not fit, some labels are there already, fewer would be there than before, or the
                disk is full or read-only.
        """
        self._check_part(shard)
        if self._folder.runs.parse(shard.name) != shard:
            raise StoreError(f"{shard} is no shard of {self._folder.place}; ask `missing` for those to write")
        stored = check_arrays(arrays, self.card.layout, (shard.views, shard.rows))
        header = self._folder.owner.header(shard, skipped or {}, digests or {})
        damaged = self._damaged_overlaps(shard, replacing, header.skipped)
        if self._shelf is not None:
            self._shelf.make_way(shard)  # what a killed writer did not get to send
        path = self._folder.shard_place(shard).path
        with whole(path) as partial:
            write_arrays(self._folder.format, partial, header, self.card.layout, stored)
            for other in damaged:
                # What is of one kind is replaced in the moment in which it is named.
                if other != shard or self._shelf is not None or not _replaces(partial, path):
                    self._mark(other)
                    self._take_away(other)
        if self._shelf is not None:
            self._check_claim()
            self._shelf.publish(shard)
        self._named_in(shard.run).add(shard)
        self._gather, self._current = None, False
        for each in {shard, *damaged}:
            self._unmark(each)

    def remove(self, shard: Shard) -> None:
        """Take a shard away, for instance a damaged one: it is `missing` and `removed` then. Within `writing`."""
        self._check_part(shard)
        self._mark(shard)
        self._take_away(shard)
        self._gather, self._current = None, False

    @property
    def removed(self) -> list[Shard]:
        """What was taken away by `remove`, or by a `write` that was killed, and is still missing; sorted."""
        gone = self._noted()
        gaps = _gaps(self.shards, len(self._folder.runs)) if gone else []
        lost = set()
        for shard in gone:
            for first, stop in gaps[shard.run]:
                begin, end = max(first, shard.first_view), min(stop, shard.stop_view)
                if begin < end:
                    lost.add(replace(shard, first_view=begin, stop_view=end))
        return sorted(lost)

    def due(self, views: int, part: tuple[int, int] = (0, 1)) -> list[Shard]:
        """What a dump of the first `views` views writes: what was `removed`, whole, then what is `missing` besides."""
        index, count = _checked_part(part)
        removed = [shard for shard in self.removed if shard.run % count == index]
        return [*removed, *self.missing(views, part, besides=removed)]

    def verify(self) -> list[str]:
        """Read every byte of every file of this teacher; what is damaged or does not belong, one line each."""
        place = self._folder.place
        try:
            problems = document_problems(place / CARD, self.card)
            problems += [f"{place / name} is no shard of this store" for name in self._folder.unknown()]
            return problems + [each for shard in self._folder.named() for each in self._folder.problems(shard)]
        except StoreError as problem:
            return [str(problem)]

    def damaged(self) -> list[Shard]:
        """The shards with a problem that `verify` would name: what a repair removes and dumps again."""
        return [shard for shard in self._folder.named() if self._folder.problems(shard)]

    def _known(self) -> dict[Shard, Header]:
        if not self._current:
            self._read_headers()
        return {shard: header for shard, (_, header) in self._headers.items()}

    def _read_headers(self) -> None:
        """Know the sound headers, without the places of arrays; of files that did not change none is read again."""
        found: dict[Shard, tuple[int, Header]] = {}
        broken, named = [], self._folder.named()
        if self._shelf is not None:
            self._shelf.heads(named)
        for shard in named:
            stamp = self._folder.stamp(shard)
            held = self._headers.get(shard)
            if held is not None and held[0] == stamp != 0:
                found[shard] = held
                continue
            try:
                found[shard] = stamp, self._folder.header(shard).model_copy(update={"arrays": {}})
            except Damaged:
                broken.append(shard)
        self._headers, self._broken, self._current = found, tuple(broken), True

    def _check_part(self, shard: Shard) -> None:
        if self._part is None or shard.run % self._part[1] != self._part[0]:
            raise StoreError(
                f"shard {shard.name} of {self._folder.place} is written within `with labels.writing(part):`, "
                f"for the part that holds run {shard.run}"
            )
        self._check_claim()

    def _check_claim(self) -> None:
        """Raise StoreError when this process slept so long that another machine may write its part by now."""
        if self._claim is not None:
            self._claim.check()

    def _damaged_overlaps(self, shard: Shard, replacing: bool, skipped: Mapping[int, str]) -> list[Shard]:
        """What is damaged, or replaced, and overlaps `shard`.

        Raises:
            StoreError: something sound does, or what is replaced has labels of rows that are `skipped` now.
        """
        found = []
        for other in sorted(self._named_in(shard.run)):
            if _overlap(other, shard):
                place = self._folder.shard_place(other)
                with contextlib.suppress(Damaged):
                    held = self._folder.header(other)
                    if replacing and other == shard:
                        lost = min(skipped.keys() - held.skipped.keys(), default=None)
                        if lost is not None and not self._folder.problems(other):
                            raise StoreError(f"{place} stays, since row {lost} would lose its label: {skipped[lost]}")
                    elif not self._folder.problems(other):
                        raise StoreError(f"{place} holds labels of shard {shard.name} already; remove it first")
                found.append(other)
        return found

    def _named_in(self, run: int) -> set[Shard]:
        """The shards of a run by their names. The folder is listed once: its one writer knows what it adds."""
        if self._named is None:
            self._named = {}
            for shard in self._folder.named():
                self._named.setdefault(shard.run, set()).add(shard)
        return self._named.setdefault(run, set())

    def _take_away(self, shard: Shard) -> None:
        _discard(self._folder.shard_place(shard).path)
        if self._shelf is not None:
            self._shelf.withdraw(shard)
        self._named_in(shard.run).discard(shard)

    def _noted(self) -> list[Shard]:
        """The shards of which there is a note that they were removed."""
        names = [name.removeprefix(REMOVED) for name in self._folder.entries() if name.startswith(REMOVED)]
        return [shard for name in names if (shard := self._folder.runs.parse(name)) is not None]

    def _mark(self, shard: Shard) -> None:
        """Note that a shard was there: whatever happens now, `removed` tells."""
        name = f"{self.name}/{REMOVED}{shard.name}"
        if self._mirror is not None:
            self._mirror.write(name, "\n")
        else:
            write_text(self.root / name, "\n")

    def _unmark(self, shard: Shard) -> None:
        name = f"{self.name}/{REMOVED}{shard.name}"
        if self._mirror is not None:
            self._mirror.withdraw(name)
            return
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {self.root / name}: {error.strerror}") from error

    def _remove_leftovers(self) -> None:
        assert self._part is not None
        index, count = self._part
        remove_leftovers(self._folder.place.path)
        for entry in self._folder.place.path.glob(f"{TEMPORARY}*"):
            if self._is_of_part(entry.name.removeprefix(TEMPORARY), index, count):
                _discard(entry)
        if self._shelf is not None:
            for leftover in self._shelf.leftovers():
                if self._is_of_part(leftover, index, count):
                    self._shelf.clear(leftover)
        lost = self.removed
        for shard in self._noted():
            if shard.run % count == index and not any(_overlap(shard, other) for other in lost):
                self._unmark(shard)  # a writer was killed when the shard was there again

    def _is_of_part(self, leftover: str, index: int, count: int) -> bool:
        # Another part's writer may be at work on one of the other names.
        shard = self._folder.runs.parse(leftover.split(".", 1)[0])
        return count == 1 or (shard is not None and shard.run % count == index)


def _overlap(one: Shard, other: Shard) -> bool:
    """Whether two shards hold a label of the same image and view."""
    return one.run == other.run and max(one.first_view, other.first_view) < min(one.stop_view, other.stop_view)


def _replaces(fresh: Path, old: Path) -> bool:
    """Whether `fresh` gets the name of `old` in one moment."""
    if fresh.is_dir():
        return old.is_dir() and not old.is_symlink() and can_exchange(fresh.parent)
    return not old.is_dir()


def _gaps(shards: Iterable[Shard], runs: int) -> list[list[tuple[int, int]]]:
    """For each run the ranges (first, stop) of views that no shard holds, the last one without an end."""
    held: list[list[tuple[int, int]]] = [[] for _ in range(runs)]
    for shard in shards:
        held[shard.run].append((shard.first_view, shard.stop_view))
    return [list(_between(sorted(ranges))) for ranges in held]


def _complete(shards: Iterable[Shard], runs: int) -> int:
    """Views, counted from 0, that these shards hold of every run."""
    return min(run_gaps[0][0] for run_gaps in _gaps(shards, runs))


def _between(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    reached = 0
    for first, stop in ranges:
        if first > reached:
            yield reached, first
        reached = max(reached, stop)
    yield reached, MOST_VIEWS


def _checked_part(part: tuple[int, int]) -> tuple[int, int]:
    index, count = part
    if not 0 <= index < count:
        raise StoreError(f"part {index}/{count} does not exist; parts are 0/{count} to {count - 1}/{count}")
    return index, count


def _discard(path: Path) -> None:
    """Remove a file or folder, which never has its own name while it is half gone."""
    try:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            aside = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent))
            path.rename(aside / path.name)
            shutil.rmtree(aside, ignore_errors=True)  # what is left of it, the next writer removes
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {error.strerror}") from error
