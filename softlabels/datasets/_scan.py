"""Finding images below a folder: fast for millions of files, in an order that is the same on every machine."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from softlabels.datasets._decode import SUFFIXES
from softlabels.errors import DataError


def subfolders(folder: str) -> list[str]:
    """Names of the folders in `folder`, sorted; hidden ones are passed over."""
    with _scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def has_pictures(folder: str) -> bool:
    """Whether `folder` itself holds an image."""
    with _scandir(folder) as entries:
        return any(_is_picture(entry) for entry in entries)


@dataclass
class PassedOver:
    """Files that lie among the images and do not count as such: how many of each suffix, and the first."""

    suffixes: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def add(self, path: str) -> None:
        """Count the file at `path`."""
        self.suffixes[posixpath.splitext(path)[1].lower()] += 1
        self.first = min(self.first or path, path)

    def lines(self, root: str) -> list[str]:
        """In one line what was passed over below `root`; nothing where nothing was."""
        if not self.suffixes:
            return []
        kinds = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.suffixes.most_common(4)]
        more = ", ..." if len(self.suffixes) > 4 else ""
        return [
            f"{self.suffixes.total():,} files below {root} are passed over, their names are of no image that is read "
            f"here: {', '.join(kinds)}{more} (first: {self.first})"
        ]


def pictures(root: str, below: str = "", passed_over: PassedOver | None = None) -> list[str]:
    """Posix paths below `root` of all images in its folder `below`, at any depth, sorted.

    Hidden files and folders are passed over, and so are files that are no images, which are counted in `passed_over`;
    links are followed. Code points sort as UTF-8 bytes do, so no locale and no file system plays a part in the order.

    Raises:
        DataError: a folder cannot be read, or a link leads back to a folder that holds it; the message names it.
    """
    folder, prefix = (f"{root}/{below}", f"{below}/") if below else (root, "")
    return sorted(_walk(folder, prefix, (), PassedOver() if passed_over is None else passed_over))


def _walk(folder: str, prefix: str, above: tuple[str, ...], passed_over: PassedOver) -> Iterator[str]:
    above = (*above, os.path.realpath(folder))
    inner = []
    with _scandir(folder) as entries:
        for entry in entries:
            if _is_picture(entry):
                yield prefix + entry.name
            elif entry.name.startswith("."):
                continue
            elif entry.is_dir():
                if entry.is_symlink() and os.path.realpath(entry.path) in above:
                    raise DataError(f"the link {entry.path} leads back to a folder above it; remove the link")
                inner.append(entry.name)
            else:
                passed_over.add(prefix + entry.name)
    for name in inner:
        yield from _walk(f"{folder}/{name}", f"{prefix}{name}/", above, passed_over)


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()


def _scandir(folder: str) -> os._ScandirIterator[str]:
    try:
        return os.scandir(folder)
    except FileNotFoundError as problem:
        raise DataError(f"no such directory: {folder}") from problem
    except OSError as problem:
        raise DataError(f"the directory {folder} cannot be read: {problem.strerror}") from problem
