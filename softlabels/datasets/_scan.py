"""Finding pictures below a folder: fast for millions of files, in an order that is the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

from softlabels.datasets._decode import SUFFIXES
from softlabels.errors import DataError


def subfolders(folder: str) -> list[str]:
    """Names of the folders in `folder`, sorted; hidden ones are passed over."""
    with _scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def has_pictures(folder: str) -> bool:
    """Whether `folder` itself holds a picture."""
    with _scandir(folder) as entries:
        return any(_is_picture(entry) for entry in entries)


def pictures(root: str, below: str = "") -> list[str]:
    """Posix paths below `root` of all pictures in its folder `below`, at any depth, sorted.

    Hidden files and folders and files that are no pictures are passed over; links are followed.
    Code points sort as UTF-8 bytes do, so no locale and no file system plays a part in the order.

    Raises:
        DataError: a folder cannot be read, or a link leads back to a folder that holds it; the message names it.
    """
    return sorted(_walk(f"{root}/{below}" if below else root, f"{below}/" if below else "", ()))


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    above = (*above, os.path.realpath(folder))
    inner = []
    with _scandir(folder) as entries:
        for entry in entries:
            if _is_picture(entry):
                yield prefix + entry.name
            elif not entry.name.startswith(".") and entry.is_dir():
                if entry.is_symlink() and os.path.realpath(entry.path) in above:
                    raise DataError(f"the link {entry.path} leads back to a folder above it; remove the link")
                inner.append(entry.name)
    for name in inner:
        yield from _walk(f"{folder}/{name}", f"{prefix}{name}/", above)


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()


def _scandir(folder: str) -> os._ScandirIterator[str]:
    try:
        return os.scandir(folder)
    except FileNotFoundError as problem:
        raise DataError(f"no such directory: {folder}") from problem
    except OSError as problem:
        raise DataError(f"the directory {folder} cannot be read: {problem.strerror}") from problem
