"""Files that a stranger may have made: told by their first bytes, reached without links, and mapped into memory."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import sys
import weakref
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_UNRESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def opened_below(root: Path, names: Sequence[str], flags: int) -> int:
    """A descriptor of what lies at `names`, one folder in the other, below `root`.

    The root may be a link (its owner chose it); what lies below it is not followed if it is one.

    Raises:
        OSError: it is missing, a link or behind one (ELOOP, ENOTDIR), or may not be opened.
    """
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for depth, name in enumerate(names, 1):
        inner = flags if depth == len(names) else os.O_RDONLY | os.O_DIRECTORY
        try:
            below = os.open(name, inner | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


class Mapped:
    """A whole file as memory at `address`; it is unmapped when nothing refers to it any more.

    The mmap module of Python 3.11 keeps a descriptor open for each map, and a large data set has more shards than a
    process may have descriptors. A `private` map counts as writable, as torch wants it; what is written to it stays in
    this process and never reaches the file.

    Raises:
        OSError: it cannot be mapped.
    """

    def __init__(self, handle: int, size: int, *, private: bool = False) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if private else 0)
        # Nobody writes, so that a pack larger than memory and swap must not count as memory that could be needed.
        flags = mmap.MAP_PRIVATE | _UNRESERVED if private else mmap.MAP_SHARED
        address = _libc().mmap(None, size, protection, flags, handle, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address: int = address
        self.size = size
        guard()
        _live[address] = size
        weakref.finalize(self, _unmap, address, size).atexit = False

    @property
    def shrank(self) -> bool:
        """Whether bytes were read that the file has not any more; zeros came in their place."""
        return self.address in shrunken

    def array(self) -> NDArray[np.uint8]:
        """The bytes, uint8 (size,); the map lives as long as any view of them."""
        return np.asarray(_Interface(self))


class _Interface:
    """What numpy makes an array of, which keeps the map alive."""

    def __init__(self, mapped: Mapped) -> None:
        self._mapped = mapped
        where = (mapped.address, False)
        self.__array_interface__ = {"data": where, "shape": (mapped.size,), "typestr": "|u1", "version": 3}


_live: dict[int, int] = {}
"""Address and size of each map."""

shrunken: set[int] = set()
"""Addresses of maps whose files ended before what was read of them; zeros came in its place."""


def _unmap(address: int, size: int) -> None:
    _libc().munmap(address, size)
    _live.pop(address, None)
    shrunken.discard(address)


def guard() -> None:
    """Let reads beyond the end of a mapped file that became shorter give zeros, and note the map.

    The system would kill the process (SIGBUS) without a word. Whoever reads asks `Mapped.shrank` afterwards. A SIGBUS
    anywhere else does what it did before. To be called again in a forked process: torch's workers have handlers of
    their own.
    """
    _guarded(os.getpid())


@functools.cache
def _guarded(_: int) -> None:
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    libc, before, action = _libc(), _Action(), _Action()

    def handle(number: int, info: int | None, _: int | None) -> None:
        address = ctypes.c_void_p.from_address((info or 0) + _SI_ADDR).value or 0
        found = next((at for at, size in _live.copy().items() if at <= address < at + size), None)
        if found is None:
            libc.sigaction(number, ctypes.byref(before), None)
            signal.raise_signal(signal.SIGBUS)
            return
        # An empty page in the place of the one that is gone: the read goes on.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        page = address // mmap.PAGESIZE * mmap.PAGESIZE
        libc.mmap(page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        shrunken.add(found)

    handler = _HANDLER(handle)
    _handlers.append(handler)
    action.handler, action.flags = ctypes.cast(handler, ctypes.c_void_p), _SA_SIGINFO
    libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before))


class _Action(ctypes.Structure):
    """``struct sigaction`` of glibc and musl on 64-bit Linux."""

    _fields_: ClassVar = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_MAP_FIXED, _SA_SIGINFO, _SI_ADDR = 0x10, 4, 16
_handlers: list[Any] = []
"""Kept, since the system may call them at any time."""


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_longlong]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.sigaction.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    return libc


@dataclass(frozen=True)
class FileKind:
    """What a file is by its first bytes: `name` such as ``png`` or ``lfs``, `text` for a message ("a PNG image").

    `advice` is the next thing to do where it is the same whatever the file was wanted for.
    """

    name: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}" if self.advice else self.text


FIRST_BYTES = 512
"""Bytes of a file that `kind_of_file` looks at."""

_AGAIN = "download it again"
_MAGICS: tuple[tuple[int, bytes, FileKind], ...] = tuple(
    (offset, magic, FileKind(name, text, advice))
    for offset, magic, name, text, advice in (
        (0, b"version https://git-lfs", "lfs", "a Git LFS pointer", "run `git lfs pull` to get the file itself"),
        (0, b"\x89PNG\r\n\x1a\n", "png", "a PNG image", ""),
        (0, b"\xff\xd8\xff", "jpeg", "a JPEG image", ""),
        (0, b"GIF8", "gif", "a GIF image", ""),
        (8, b"WEBP", "webp", "a WebP image", ""),
        (0, b"BM", "bmp", "a BMP image", ""),
        (0, b"II*\0", "tiff", "a TIFF image", ""),
        (0, b"MM\0*", "tiff", "a TIFF image", ""),
        (0, b"II+\0", "tiff", "a BigTIFF image", ""),
        (0, b"MM\0+", "tiff", "a BigTIFF image", ""),
        (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jp2", "a JPEG 2000 image", ""),
        (0, b"\xffO\xffQ", "jp2", "a JPEG 2000 image", ""),
        (4, b"ftypavif", "avif", "an AVIF image", ""),
        (4, b"ftypavis", "avif", "an AVIF image", ""),
        *((4, b"ftyp" + brand, "heic", "a HEIC image", "") for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
        (0, b"\xff\x0a", "jxl", "a JPEG XL image", ""),
        (0, b"\0\0\0\x0cJXL ", "jxl", "a JPEG XL image", ""),
        (0, b"8BPS", "psd", "a Photoshop file", ""),
        (0, b"%PDF", "pdf", "a PDF document", ""),
        (0, b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file", ""),
        (0, b"\x93NUMPY", "npy", "a NumPy array", ""),
        (0, b"PK\x03\x04", "zip", "a zip archive", ""),
        (0, b"\x1f\x8b", "gzip", "a gzip archive", ""),
        (0, b"BZh", "bzip2", "a bzip2 archive", ""),
        (0, b"\xfd7zXZ", "xz", "an xz archive", ""),
        (0, b"7z\xbc\xaf", "7z", "a 7z archive", ""),
        (0, b"Rar!", "rar", "a RAR archive", ""),
        (257, b"ustar", "tar", "a tar archive", ""),
        (0, b"\x7fELF", "elf", "a program", ""),
    )
)
_PNM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")
_PICKLE_PROTOCOLS = range(2, 6)


def kind_of_file(first: bytes) -> FileKind | None:
    """What a file is of which these are the first `FIRST_BYTES` (all, where it has fewer); None where they do not tell.

    Images, archives, pickles, files of weights, and what stands in their place when a download went wrong.
    """
    if not first:
        return FileKind("empty", "empty (0 bytes)", _AGAIN)
    if not first.strip(b"\0"):
        return FileKind("zeros", "nothing but zero bytes", f"its copy was cut off; {_AGAIN}")
    for offset, magic, kind in _MAGICS:
        if first.startswith(magic, offset):
            return kind
    if first[:2] in _PNM and first[2:3].isspace():
        return FileKind("pnm", "a PPM, PGM or PBM image")
    if first[0] == 0x80 and len(first) > 1 and first[1] in _PICKLE_PROTOCOLS:
        return FileKind("pickle", "a Python pickle")
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") < 1 << 32:
        return FileKind("safetensors", "a safetensors file")
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_HTML):
        return FileKind("html", "an HTML page", f"the server sent an error or a login page; {_AGAIN}")
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return FileKind("svg", "an SVG drawing")
    if text.startswith(b"<?xml"):
        return FileKind("xml", "an XML document", f"the server sent an error; {_AGAIN}")
    if text.startswith((b'{"', b"{\n", b"{ ", b"[")):
        return FileKind("json", "a JSON text")
    return FileKind("text", "a text") if _is_text(first) else None


def kind_at(path: str | os.PathLike[str]) -> FileKind | None:
    """As `kind_of_file`, of the file at `path`; of zip archives also whether they are torch's files or TorchScript.

    None as well where it cannot be read.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a path may be text)
            kind = kind_of_file(file.read(FIRST_BYTES))
            if kind is None or kind.name != "zip":
                return kind
            with zipfile.ZipFile(file) as archive:
                inner = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    if "constants.pkl" in inner:
        return FileKind("torchscript", "a TorchScript file")
    return FileKind("torch", "a file of torch.save") if "data.pkl" in inner else kind


def _is_text(first: bytes) -> bool:
    try:
        text = first.decode()
    except UnicodeDecodeError as problem:
        if problem.start < len(first) - 3:  # else it is a letter that the last byte cut in two
            return False
        text = first[: problem.start].decode()
    return all(each.isprintable() or each.isspace() for each in text)
