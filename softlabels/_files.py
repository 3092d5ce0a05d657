"""Files that have their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from softlabels.errors import SoftlabelsError, StoreError

TEMPORARY = ".partial-"
"""Prefix of names that are not whole yet; readers pass them over and writers may remove them."""

_SYNCS = 8
"""Files of one folder that are brought to the disk at the same time."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, fsync it and rename it to `path`.

    The block may make a file or a folder there. When it fails, or the process dies, `path` is as it was before.
    An existing file is replaced; an existing folder is not (rename refuses), so folders need fresh names.

    Raises:
        StoreError: the disk is full or the place cannot be written; the message names the place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        partial = room / path.name
        yield partial
        _sync_tree(partial)
        partial.rename(path)
        with contextlib.suppress(OSError):
            room.rmdir()  # before the folder is synced: afterwards it would wait for that to settle
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    except SafetensorError as error:
        # It tells what the system said in words alone: "I/O error: No space left on device (os error 28)".
        said = re.search(r"os error (\d+)", str(error))
        if said is None:
            raise
        raise _cannot_write(path, OSError(int(said[1]), os.strerror(int(said[1])))) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Only the folder's one writer may call this."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either all of it or what it held before."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, largest: int = 64 << 20, error: type[SoftlabelsError] = StoreError) -> Any:
    """Parse the JSON file at `path`, refusing one of more than `largest` bytes.

    Raises:
        error: the file is missing, too large, or not JSON; the message names it.
    """
    try:
        if path.stat().st_size > largest:
            raise error(f"{path} has {path.stat().st_size:,} bytes, more than the {largest:,} that are read of it")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON ({problem}); it is damaged or of another program") from problem


def _cannot_write(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left while writing {path}; free some and run the same command again to go on")
    return StoreError(f"cannot write {path}: {error.strerror or error}; choose another --out or mend its permissions")


def _sync_tree(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk.

    All at once: a file system writes its journal one time for all that wait for it, and anew for each that comes after
    the other. On a busy disk that is a tenth of the time.
    """
    if path.is_dir():
        for done in [_helpers(os.getpid()).submit(_sync, each) for each in (path, *path.rglob("*"))]:
            done.result()
    else:
        _sync(path)


@functools.cache
def _helpers(_: int) -> ThreadPoolExecutor:
    """Threads of the process of this number: a forked one has none of its parent's."""
    return ThreadPoolExecutor(_SYNCS, thread_name_prefix="softlabels-sync")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
