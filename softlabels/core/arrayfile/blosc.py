"""Compressed chunks: a blosc frame each, in both formats the same."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softlabels.core.paths import Damaged

_HEADER = struct.Struct("<4B3I")

ROWS: dict[str, Any] = {"cname": "zstd", "clevel": 5, "shuffle": 2}
"""How chunks are compressed: bit by bit of each element."""

COLUMNS: dict[str, Any] = {"cname": "zstd", "clevel": 9, "shuffle": 2}
"""The same of arrays in columns, where more time makes them a tenth smaller."""


def decompress(frame: bytes, out: NDArray[Any], where: str) -> None:
    """Fill `out` with what `frame` holds.

    Raises:
        Damaged: the frame is damaged, or states another size than that of `out`; nothing is allocated for it.
    """
    from numcodecs import blosc  # type: ignore[import-untyped]  # only compressed stores need it

    if len(frame) < _HEADER.size:
        raise Damaged(f"{where} is no compressed chunk")
    *_, size, _, stored = _HEADER.unpack_from(frame)
    if size != out.nbytes or stored != len(frame):
        raise Damaged(f"{where} is a chunk of {size:,} bytes, not of {out.nbytes:,}")
    try:
        blosc.decompress(frame, out)
    except (RuntimeError, ValueError) as problem:
        raise Damaged(f"{where} cannot be decompressed: {problem}") from problem


def compressed_size(array: NDArray[Any]) -> int:
    """Bytes that an array of columns takes in a chunk on disk."""
    from numcodecs import Blosc

    return len(Blosc(**COLUMNS).encode(np.ascontiguousarray(array)))
