"""A store behind a URL, as a local folder that fills as it is read.

Manifest, tables of images and teachers' cards are copied when the store is opened. Of a shard its header is fetched
when it is looked at, and the whole of it when its labels are: all of its bytes are checked, then it gets its name. Only
names that the manifest and the cards give rise to are ever looked for among the remote ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from softlabels.core import locks as _lock
from softlabels.core.files import TEMPORARY, write_text
from softlabels.core.paths import Damaged, SafePath
from softlabels.errors import StoreError
from softlabels.store._cache import COPIES, COPYING, Cache, discard, drop, enter, entered, making, used
from softlabels.store._claims import Claim, claimed
from softlabels.store._folder import CARD, ShardFolder
from softlabels.store._remote import Object, Remote
from softlabels.store._shard import Shard

_HEADS, _VERSIONS = ".heads", ".versions"
_LARGEST_DOCUMENT = 1 << 36


class RemoteStore:
    """The local folder of the store at `url`.

    Its `objects` are listed once and then kept as this process changes them; what other machines write meanwhile is
    seen after `refresh`.
    """

    def __init__(self, url: str, cache: Cache) -> None:
        self.url, self.cache = url.rstrip("/"), cache
        self.remote = Remote(self.url)
        self.folder = cache.folder / _folder_name(self.url)
        self.objects = self.remote.listing()

    def __str__(self) -> str:
        return self.url

    def refresh(self, folder: str = "") -> None:
        """List all objects, or those in one folder, once more."""
        self._relist(folder, self.remote.listing(folder))

    @contextlib.contextmanager
    def alone(self, folder: str = "") -> Iterator[None]:
        """Be the only process, of all machines, that makes documents in a folder, whose objects are as they are then.

        Raises:
            StoreError: the server cannot be reached.
        """
        with (
            _lock.in_turn(self.folder / f"{_lock.LOCK}url-{folder}"),
            claimed(self.remote, folder, self.folder) as (_, there),
        ):
            self._relist(folder, there)
            yield

    @contextlib.contextmanager
    def writing(self, teacher: str, part: tuple[int, int]) -> Iterator[Claim]:
        """Be the only process, of all machines, that writes a part of a teacher's shards, which are listed again.

        They are listed since another machine may have written some of them since the store was opened. To be called by
        the one process of this machine that does.

        Raises:
            StoreError: a process of another machine writes some of this part.
        """
        with claimed(self.remote, teacher, self.folder / teacher, part) as (claim, there):
            self._relist(teacher, there)
            yield claim

    def _relist(self, folder: str, there: dict[str, Object]) -> None:
        below = f"{folder}/" if folder else ""
        kept = {name: each for name, each in self.objects.items() if not name.startswith(below)}
        self.objects = kept | there

    def teachers(self) -> list[str]:
        """Names of the folders that hold a card, as they are there, good or bad."""
        return sorted(
            name.removesuffix(f"/{CARD}") for name in self.objects if name.count("/") == 1 and name.endswith(f"/{CARD}")
        )

    def bring(self, name: str) -> None:
        """Copy a document unless its copy is of the same version. Raises Damaged when it is missing."""
        there, note = self.objects.get(name), self.folder / _VERSIONS / name.replace("/", "+")
        path = self.folder / name
        if there is None:
            discard(path)
            raise Damaged(f"{self.remote.where(name)} is missing")
        if path.exists() and entered(note)[0] == there.version:
            return
        if there.size > _LARGEST_DOCUMENT:
            raise StoreError(f"{self.remote.where(name)} has {there.size:,} bytes, more than is read of it")
        fresh = self.folder / COPYING / f"{name.replace('/', '+')}-{os.getpid()}"
        with making(fresh):
            self.remote.download(name, there.size, fresh)
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.replace(path)
        enter(note, there.version, there.size)

    def forget(self) -> None:
        """Remove what is left here of a store that is not there (any more)."""
        for path in self.folder.glob("*") if self.folder.exists() else ():
            if not path.name.startswith(_lock.LOCK):
                discard(path)

    def publish(self, name: str) -> None:
        """Make the remote document as the local one is."""
        path, there = self.folder / name, self.objects.get(name)
        note = self.folder / _VERSIONS / name.replace("/", "+")
        if there is not None and entered(note) == (there.version, path.stat().st_size) and not _newer(path, note):
            return
        made = self.remote.upload(path, name)
        self.objects[name] = made
        enter(note, made.version, made.size)

    def write(self, name: str, text: str) -> None:
        """Write a small text beside the labels, here and there."""
        write_text(self.folder / name, text)
        self.publish(name)

    def withdraw(self, name: str) -> None:
        """Remove a small text here and there, if it is there."""
        (self.folder / name).unlink(missing_ok=True)
        if name in self.objects:
            self.remote.remove([name])
            del self.objects[name]


class ShardSource:
    """One teacher's shards behind a URL; `local` is the folder of their copies."""

    def __init__(self, mirror: RemoteStore, teacher: str, local: ShardFolder) -> None:
        self._mirror, self._teacher, self._local = mirror, teacher, local
        self._headed: dict[Shard, SafePath] = {}

    @property
    def limit(self) -> int | None:
        """Bytes that copies may have."""
        return self._mirror.cache.limit

    def refresh(self) -> None:
        """See what other machines wrote since the shards were listed."""
        self._mirror.refresh(self._teacher)
        self._headed.clear()

    @contextlib.contextmanager
    def writing(self, part: tuple[int, int]) -> Iterator[Claim]:
        """See `RemoteStore.writing`."""
        with self._mirror.writing(self._teacher, part) as claim:
            self._headed.clear()
            yield claim

    def entries(self) -> list[str]:
        """The names in the remote folder."""
        below = f"{self._teacher}/"
        return sorted({name[len(below) :].split("/")[0] for name in self._mirror.objects if name.startswith(below)})

    def where(self, shard: Shard) -> str:
        """The URL of a shard, for messages."""
        return self._mirror.remote.where(self._name(shard))

    def strays(self, shard: Shard) -> list[str]:
        """What lies below a remote shard without belonging to it."""
        below, known = f"{self._name(shard)}/", set(self._members(shard))
        return [name[len(below) :] for name in self._mirror.objects if name.startswith(below) and name not in known]

    def size(self, shard: Shard) -> int:
        """Bytes of a shard; 0 when it is not there whole."""
        return sum(each.size for each in self._objects(shard).values())

    def heads(self, shards: Sequence[Shard]) -> None:
        """Fetch the headers of these shards, many at a time."""
        lacking = [shard for shard in shards if self._objects(shard) and not self._head_place(shard).path.exists()]
        for start in range(0, len(lacking), _AT_ONCE):
            some = lacking[start : start + _AT_ONCE]
            names = [self._header_name(shard) for shard in some]
            sizes = [self._mirror.objects[name].size for name in names]
            first = [min(size, self._local.format.head) for size in sizes]
            begun = self._mirror.remote.read(list(zip(names, first, strict=True)))
            ends = [min(self._local.format.head_end(data), size) for data, size in zip(begun, sizes, strict=True)]
            longer = [place for place, data in enumerate(begun) if ends[place] > len(data)]
            rest = self._mirror.remote.read([(names[place], ends[place]) for place in longer])
            for place, data in zip(longer, rest, strict=True):
                begun[place] = data
            for shard, data in zip(some, begun, strict=True):
                self._lay_head(shard, data)

    def head(self, shard: Shard) -> SafePath:
        """A file, or a folder of files, as long as the shard that begins as it does. Raises Damaged."""
        if shard not in self._headed:
            if not self._objects(shard):
                raise Damaged(f"{self.where(shard)} is not there whole")
            self.heads([shard])
            self._headed[shard] = self._head_place(shard)
        return self._headed[shard]

    @contextlib.contextmanager
    def local(self, shard: Shard) -> Iterator[None]:
        """While this lasts, a whole and checked copy of the shard is here; StoreError when there can be none."""
        while True:
            self.bring(shard)
            with self._mirror.cache.reading():
                if self._is_here(shard):
                    yield
                    return

    def bring(self, shard: Shard, *, later: bool = False) -> None:
        """Copy a shard, unless it is here; of several processes that want it one does.

        One that is for `later` goes only after those that were read, for a while or until it is read itself.
        """
        self._copy_here(shard)
        used(self._note(shard), later=later)

    def _copy_here(self, shard: Shard) -> None:
        if self._is_here(shard):
            return
        objects = self._objects(shard)
        if not objects:
            raise Damaged(f"{self.where(shard)} is not there whole")
        with _lock.in_turn(self._mirror.folder / COPYING / f"{self._teacher}-{shard.name}.lock"):
            if self._is_here(shard):
                return
            note, size = self._note(shard), self.size(shard)
            self._mirror.cache.reserve(note, size)
            try:
                self._copy(shard, objects)
            except BaseException:
                note.unlink(missing_ok=True)
                raise

    def is_here(self, shard: Shard) -> bool:
        """Whether a copy is there now."""
        return self._is_here(shard)

    def release(self, shard: Shard) -> None:
        """Remove the copy, which nobody needs any more."""
        with self._mirror.cache.changing():
            drop(self._note(shard))

    def publish(self, shard: Shard) -> None:
        """Copy a shard that was written here to the remote store, the file that makes it one last; ours goes."""
        path = self._path(shard)
        try:
            for name in self._members(shard):
                local = path / name[len(self._name(shard)) + 1 :] if name != self._name(shard) else path
                self._mirror.objects[name] = self._mirror.remote.upload(local, name)
        finally:
            self.make_way(shard)
        self._headed.pop(shard, None)

    def make_way(self, shard: Shard) -> None:
        """Remove what lies here under the name of a shard, so that it can be written: a folder is never replaced."""
        drop(self._note(shard))

    def withdraw(self, shard: Shard) -> None:
        """Take a remote shard away, the file that makes it one first."""
        name = self._name(shard)
        there = [each for each in self._mirror.objects if each == name or each.startswith(f"{name}/")]
        there.sort(key=lambda each: each != self._header_name(shard))
        self._mirror.remote.remove(there)
        for each in there:
            del self._mirror.objects[each]
        self._headed.pop(shard, None)
        self._note(shard).unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """Names of objects that a killed writer left, without the prefix that says so."""
        return [name.removeprefix(TEMPORARY) for name in self.entries() if name.startswith(TEMPORARY)]

    def clear(self, leftover: str) -> None:
        """Remove one of `leftovers`."""
        name = f"{self._teacher}/{TEMPORARY}{leftover}"
        self._mirror.remote.remove([name])
        self._mirror.objects.pop(name, None)

    def _copy(self, shard: Shard, objects: dict[str, Object]) -> None:
        room = self._copying(shard)
        fresh = room / self._file(shard)
        for attempt in (1, 2):
            with making(room):
                for name, each in objects.items():
                    inner = name[len(self._name(shard)) + 1 :]
                    self._mirror.remote.download(name, each.size, fresh / inner if inner else fresh)
                problems = replace(self._local, place=SafePath(room)).problems(shard)
                if not problems:
                    self._mirror.cache.keep(
                        self._note(shard), self._version(shard), self.size(shard), lambda: self._install(shard, fresh)
                    )
                    return
            if attempt == 2:
                raise Damaged(problems[0].replace(str(fresh), self.where(shard)))

    def _install(self, shard: Shard, fresh: Path) -> None:
        path = self._path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        discard(path)
        fresh.replace(path)

    def _lay_head(self, shard: Shard, data: bytes) -> None:
        place, header = self._head_place(shard), self._header_name(shard)
        room = self._mirror.folder / _HEADS / f"{TEMPORARY}{self._teacher}-{shard.name}-{os.getpid()}"
        with making(room):
            fresh = room / place.names[-1]
            for name, each in self._objects(shard).items():
                inner = name[len(self._name(shard)) + 1 :]
                path = fresh / inner if inner else fresh
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data if name == header else b"")
                try:
                    os.truncate(path, each.size)
                except OSError as error:
                    raise StoreError(f"{self.where(shard)} has {each.size:,} bytes: {error.strerror}") from error
            place.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError, OSError):  # another process was faster
                fresh.rename(place.path)

    def _is_here(self, shard: Shard) -> bool:
        version, _ = entered(self._note(shard))
        return bool(version) and version == self._version(shard) and self._path(shard).exists()

    def _objects(self, shard: Shard) -> dict[str, Object]:
        """The objects of a shard by name; none when one is missing."""
        names = self._members(shard)
        found = {name: self._mirror.objects[name] for name in names if name in self._mirror.objects}
        return found if len(found) == len(names) else {}

    def _members(self, shard: Shard) -> list[str]:
        """The names of a shard's objects, the one with its header last."""
        name, header = self._name(shard), self._header_name(shard)
        inner = sorted(self._local.format.members(self._local.owner.layout))
        members = [f"{name}/{each}" if each else name for each in inner]
        return [each for each in members if each != header] + [header]

    def _version(self, shard: Shard) -> str:
        said = "\n".join(f"{name} {each.version}" for name, each in self._objects(shard).items())
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def _head_place(self, shard: Shard) -> SafePath:
        return SafePath(self._mirror.folder, (_HEADS, self._teacher, self._version(shard), self._file(shard)))

    def _file(self, shard: Shard) -> str:
        return f"{shard.name}{self._local.format.suffix}"

    def _name(self, shard: Shard) -> str:
        return f"{self._teacher}/{self._file(shard)}"

    def _header_name(self, shard: Shard) -> str:
        member = self._local.format.header_member
        return f"{self._name(shard)}/{member}" if member else self._name(shard)

    def _path(self, shard: Shard) -> Path:
        return self._mirror.folder / self._teacher / self._file(shard)

    def _note(self, shard: Shard) -> Path:
        return self._mirror.folder / COPIES / self._teacher / self._file(shard)

    def _copying(self, shard: Shard) -> Path:
        return self._mirror.folder / COPYING / f"{self._teacher}-{shard.name}"


_AT_ONCE = 256
"""Headers that are fetched at the same time."""


def _folder_name(url: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url).strip("-")[-60:]
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def _newer(path: Path, note: Path) -> bool:
    return path.stat().st_mtime_ns > note.stat().st_mtime_ns
