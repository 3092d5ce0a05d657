"""Objects behind a URL, through fsspec, with patience: what fails is tried again, so often and no more."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from softlabels.core.files import TEMPORARY
from softlabels.core.paths import PIECE, Damaged
from softlabels.errors import StoreError

_T = TypeVar("_T")

WAITS = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
"""Seconds between the attempts of one operation."""

_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "created")
"""What file systems call that which changes when an object does."""

_HOPELESS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"})
"""Errors of S3's client that waiting does not help."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    # Patience is ours alone: with the client's own on top, a server that is gone would be waited for many times over.
    "s3": {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}},
}
"""Settings of file systems, by protocol."""


@dataclass(frozen=True)
class Object:
    """One object: its bytes and a text that changes when it does."""

    size: int
    version: str


class Remote:
    """The objects below `url`, by their names relative to it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._of: tuple[int, Any, str] | None = None
        self._system()

    def where(self, name: str) -> str:
        """The URL of an object, for messages."""
        return f"{self.url}/{name}"

    def listing(self, folder: str = "") -> dict[str, Object]:
        """Every object, or every one in `folder`, by name; none when nothing is there."""

        def find() -> dict[str, Object]:
            system, root = self._system()
            system.invalidate_cache()
            try:
                found = system.find(f"{root}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return {path[len(root) + 1 :]: _object(info) for path, info in found.items() if path.startswith(f"{root}/")}

        return self._persist(folder, find)

    def read(self, pieces: Sequence[tuple[str, int]]) -> list[bytes]:
        """The first bytes, so many, of each of these objects, fetched at the same time where the system can."""

        def cat() -> list[bytes]:
            system, root = self._system()
            paths, ends = [f"{root}/{name}" for name, _ in pieces], [size for _, size in pieces]
            found = system.cat_ranges(paths, [0] * len(paths), ends, on_error="raise")
            short = [name for (name, size), data in zip(pieces, found, strict=True) if len(data) != size]
            if short:
                raise OSError(f"{short[0]} came incomplete")
            return [bytes(data) for data in found]

        return self._persist(pieces[0][0], cat) if pieces else []

    def download(self, name: str, size: int, path: Path) -> None:
        """Write an object of so many bytes to `path`."""

        def get() -> None:
            system, root = self._system()
            path.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{root}/{name}", str(path))
            if path.stat().st_size != size:
                raise OSError(f"{path.stat().st_size:,} of {size:,} bytes came")

        self._persist(name, get)

    def upload(self, path: Path, name: str) -> Object:
        """Make the file at `path` the object `name`, which has its name only when all bytes are there and compared."""

        def put() -> Object:
            system, root = self._system()
            folder, _, last = name.rpartition("/")
            partial = "/".join(filter(None, [root, folder, f"{TEMPORARY}{last}-{uuid.uuid4().hex[:12]}"]))
            try:
                system.put_file(str(path), partial)
                system.invalidate_cache()
                _compare(system, partial, path)
                system.cp_file(partial, f"{root}/{name}")
            finally:
                _remove_quietly(system, partial)
            system.invalidate_cache()
            made = _object(system.info(f"{root}/{name}"))
            if made.size != path.stat().st_size:
                raise OSError(f"it has {made.size:,} bytes, not the {path.stat().st_size:,} that were sent")
            return made

        return self._persist(name, put)

    def put(self, name: str, text: str) -> None:
        """Make a small text the object `name`."""

        def pipe() -> None:
            system, root = self._system()
            system.pipe_file(f"{root}/{name}", text.encode())

        self._persist(name, pipe)

    def written(self, name: str) -> float | None:
        """When an object was put, in seconds of the server's clock; None when the system does not know.

        Raises Damaged when there is none.
        """

        def modified() -> float | None:
            system, root = self._system()
            system.invalidate_cache()
            try:
                return float(system.modified(f"{root}/{name}").timestamp())
            except (NotImplementedError, AttributeError):
                return None

        return self._persist(name, modified)

    def replace(self, name: str, text: str) -> bool:
        """Put a small text again if the object is there; whether it was. One attempt, which may raise any error."""
        system, root = self._system()
        system.invalidate_cache()
        try:
            system.info(f"{root}/{name}")
        except FileNotFoundError:
            return False
        system.pipe_file(f"{root}/{name}", text.encode())
        return True

    def discard(self, name: str) -> None:
        """Remove an object if that can be done now."""
        system, root = self._system()
        _remove_quietly(system, f"{root}/{name}")

    def remove(self, names: Sequence[str]) -> None:
        """Take objects away; those that are not there any more are passed over."""

        def delete() -> None:
            system, root = self._system()
            for name in names:
                try:
                    system.rm_file(f"{root}/{name}")
                except FileNotFoundError:
                    continue

        self._persist(names[0] if names else "", delete)

    def _system(self) -> tuple[Any, str]:
        """The file system of this process (a connection does not survive a fork), and the path of the URL in it."""
        if self._of is None or self._of[0] != os.getpid():
            self._of = (os.getpid(), *_connected(self.url))
        return self._of[1:]

    def _persist(self, name: str, action: Callable[[], _T]) -> _T:
        where = self.where(name) if name else self.url
        began = time.monotonic()
        for wait in [*WAITS, None]:
            try:
                return action()
            except FileNotFoundError as problem:
                raise Damaged(f"{where} is missing") from problem
            except PermissionError as problem:
                raise StoreError(f"{where} may not be used: {_line(problem)}; check the credentials") from problem
            except Exception as problem:
                if getattr(problem, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise StoreError(f"no space left for {where}; free some, or set `cache_size`") from problem
                if type(problem).__name__ in _HOPELESS:
                    raise StoreError(f"{where} cannot be used: {_line(problem)}") from problem
                if wait is None:
                    raise StoreError(
                        f"{where} cannot be reached: {_line(problem)}; gave up after {len(WAITS) + 1} attempts in "
                        f"{time.monotonic() - began:.0f} s; the same command goes on when the server is back"
                    ) from problem
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _connected(url: str) -> tuple[Any, str]:
    try:
        import fsspec  # only remote stores need it
    except ImportError as problem:
        raise _no_extra(url, problem) from problem
    try:
        protocol = url.partition("://")[0]
        # An instance of its own: those that fsspec shares keep the endpoint and the keys of their first use.
        own = {"use_listings_cache": False, "skip_instance_cache": True}
        system, root = fsspec.core.url_to_fs(url, **own, **_OPTIONS.get(protocol, {}))
    except ImportError as problem:
        raise _no_extra(url, problem) from problem
    except (ValueError, TypeError, OSError) as problem:
        raise StoreError(f"{url} is no location that can be opened: {_line(problem)}") from problem
    return system, root.rstrip("/")


def _no_extra(url: str, problem: ImportError) -> StoreError:
    return StoreError(f"{url} needs a package that is not installed ({problem}): pip install 'softlabels[remote]'")


def _object(info: dict[str, Any]) -> Object:
    said = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return Object(int(info["size"]), f"{said.strip(chr(34))} {info['size']}")


def _compare(system: Any, path: str, local: Path) -> None:
    """Raise OSError unless the object holds the file's bytes: by its ETag where that is an MD5, else read again."""
    info = system.info(path)
    if info["size"] != local.stat().st_size:
        raise OSError(f"{info['size']:,} of {local.stat().st_size:,} bytes arrived")
    with local.open("rb") as file:
        if str(info.get("ETag", "")).strip('"') == hashlib.file_digest(file, _md5).hexdigest():
            return
        file.seek(0)
        with system.open(path, "rb") as there:
            while piece := file.read(PIECE):
                if there.read(len(piece)) != piece:
                    raise OSError("other bytes arrived than were sent")


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _remove_quietly(system: Any, path: str) -> None:
    try:
        system.rm_file(path)
    except Exception:
        return


def _line(problem: BaseException) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text[:200]
