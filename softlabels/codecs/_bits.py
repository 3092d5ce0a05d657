"""Numbers of any width in records of bytes, least significant bit first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
RecordBytes = NDArray[np.uint8]

WIDEST = 56
"""Bits of the widest number: with the 7 bits that may precede it in its first byte it still fits an int64."""


def width(values: int) -> int:
    """Bits that tell `values` values apart."""
    return (values - 1).bit_length()


def pack_bits(columns: Sequence[tuple[Integers, int]]) -> RecordBytes:
    """Rows of numbers as bytes: each column is (numbers (n, count), their width); zeros fill the last byte."""
    bits = [
        ((numbers[:, :, None] >> np.arange(wide)) & 1).reshape(len(numbers), numbers.shape[1] * wide)
        for numbers, wide in columns
    ]
    return np.packbits(np.concatenate(bits, axis=1).astype(np.uint8), axis=1, bitorder="little")


def unpack_bits(record: RecordBytes, first: int, wide: int, count: int) -> Integers:
    """`count` numbers of `wide` bits each, from bit `first` on: int64 (n, count)."""
    begin = first + wide * np.arange(count)
    byte, last = begin >> 3, record.shape[1] - 1
    window = np.zeros((len(record), count), np.int64)
    for step in range((wide + 14) // 8):
        # The last number's window may reach past the record; what is read again there lies above its bits.
        window |= record[:, np.minimum(byte + step, last)].astype(np.int64) << (8 * step)
    return (window >> (begin & 7)) & ((1 << wide) - 1)


@dataclass(frozen=True)
class Ascending:
    """`count` numbers below `levels` that never fall, in as few bits as one fixed width allows.

    They are numbered in the combinatorial number system (Knuth, The Art of Computer Programming 4A, 7.2.1.3) where
    that number fits `WIDEST` bits. Longer runs are a bitmap: a 1 for each number, a 0 for each step to the next level.
    """

    count: int
    levels: int

    @staticmethod
    def within(bits: int, count: int, fewest: int) -> Ascending:
        """The finest of at least `fewest` levels that takes no more than `bits` or what the fewest take."""
        levels = fewest
        while count and Ascending(count, levels + 1).bits <= bits:
            levels += 1
        return Ascending(count, levels)

    @cached_property
    def bits(self) -> int:
        """Bits of one run."""
        return self._numbered if self._numbered <= WIDEST else self._marks

    @property
    def _marks(self) -> int:
        return self.count + self.levels - 1

    @cached_property
    def _numbered(self) -> int:
        return width(math.comb(self._marks, self.count))

    @cached_property
    def _table(self) -> Integers:
        """Row i: how many runs of i + 1 numbers end below each level."""
        return np.array([[math.comb(level + i, i + 1) for level in range(self.levels)] for i in range(self.count)])

    def columns(self, runs: Integers) -> tuple[Integers, int]:
        """`runs` (n, count) as a column for `pack_bits`."""
        if self._numbered <= WIDEST:
            terms = self._table[np.arange(self.count), runs] if self.count else runs
            return terms.sum(axis=1, keepdims=True), self.bits
        bitmap = np.zeros((len(runs), self._marks), np.int64)
        np.put_along_axis(bitmap, runs + np.arange(self.count), 1, axis=1)
        return bitmap, 1

    def read(self, record: RecordBytes, first: int) -> Integers:
        """The runs (n, count) that `pack_bits` put at bit `first`; damaged bits give some run or other."""
        if self._numbered > WIDEST:
            return self._read_bitmap(record, first)
        runs = np.zeros((len(record), self.count), np.int64)
        number = unpack_bits(record, first, self.bits, 1)[:, 0]
        for i in reversed(range(self.count)):
            runs[:, i] = np.searchsorted(self._table[i], number, side="right") - 1
            number -= self._table[i][runs[:, i]]
        return runs

    def _read_bitmap(self, record: RecordBytes, first: int) -> Integers:
        bits = np.unpackbits(record, axis=1, bitorder="little")[:, first : first + self._marks]
        # A stable sort puts the places of the 1s first, in their order, also where damage left fewer of them.
        marks = np.argsort(1 - bits, axis=1, kind="stable")[:, : self.count]
        runs: Integers = np.clip(marks - np.arange(self.count), 0, self.levels - 1)
        return runs
