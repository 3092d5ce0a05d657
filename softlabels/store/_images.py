"""The images of a store: key, hard label and content checksum, as Arrow columns."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from softlabels.core.paths import Damaged, SafePath
from softlabels.errors import StoreError

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("checksum", pa.uint64(), nullable=False),
    ]
)
SMALLEST_ROW = 16
"""Bytes that a row has in the file at least: nothing is compressed, so a small file cannot become a large table."""

_FEW = 16
"""Up to this many keys are looked for one by one, which is quicker than a table of all keys."""

_ROWS_PER_GROUP = 1 << 20


def normalised(table: pa.Table, columns: Sequence[str] = tuple(SCHEMA.names)) -> pa.Table:
    """`table` with exactly these columns of `SCHEMA`.

    Raises:
        StoreError: a column is missing or of another kind, holds nulls, or there are no rows.
    """
    if not set(columns) <= set(table.column_names):
        raise StoreError(f"the table of images needs the columns {list(columns)}, it has {table.column_names}")
    if any(table[name].null_count for name in columns):
        raise StoreError("the table of images holds nulls; an image without a hard label has label -1")
    try:
        images = table.select(columns).cast(pa.schema([SCHEMA.field(name) for name in columns]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as problem:
        raise StoreError(f"the table of images does not fit: {' '.join(str(problem).split())}") from problem
    if not len(images):
        raise StoreError("there are no images to label")
    return images


def check_unique(images: pa.Table) -> None:
    """Raise StoreError when two images have one key."""
    counts = pc.value_counts(images["key"].combine_chunks())
    if len(counts) != len(images):
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
        raise StoreError(f"two images have the key {twice!r}; labels are found by key, give each image its own")


def to_parquet(images: pa.Table) -> bytes:
    """The Parquet file of `images`, plain: neither compressed nor with dictionaries."""
    file = io.BytesIO()
    pq.write_table(
        images,
        file,
        compression="none",
        use_dictionary=False,
        column_encoding="PLAIN",
        row_group_size=_ROWS_PER_GROUP,
        write_statistics=False,
        store_schema=False,
    )
    return file.getvalue()


def table_fingerprint(images: pa.Table) -> str:
    """SHA-256 of keys and labels, however the table is cut into chunks."""
    total = hashlib.sha256()
    for chunk in images["key"].chunks:
        total.update(pc.binary_length(chunk).to_numpy(zero_copy_only=False).astype("<i4").data)
    for chunk in images["key"].chunks:
        _, offsets, data = chunk.buffers()
        if data is not None:
            ends = np.frombuffer(offsets, np.int32)
            total.update(memoryview(data)[ends[chunk.offset] : ends[chunk.offset + len(chunk)]])
    total.update(images["label"].to_numpy().astype("<i8").data)
    return total.hexdigest()


def contents(images: pa.Table) -> str:
    """SHA-256 of the content checksums."""
    return hashlib.sha256(images["checksum"].to_numpy().astype("<u8").data).hexdigest()


def read(place: SafePath, rows: int, sha256: str, size: int) -> pa.Table:
    """The table in the Parquet file at `place`.

    Raises:
        StoreError: the file is damaged, or is not the plain table of `rows` rows that the manifest states.
    """
    data = place.read(size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged(f"{place} does not match the checksum in the manifest; copy it again from its source")
    try:
        # In this thread alone: arrow may abort a process that ends just as its threads have begun to wait. Of a Python
        # file it would begin one, too.
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_plain(file, rows, place)
        table = file.read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise Damaged(f"{place} is no table of images: {' '.join(str(problem).split())[:200]}") from problem
    if len(table) != rows or any(column.null_count for column in table.columns):
        raise Damaged(f"{place} is no table of {rows:,} images")
    return table


def _check_plain(file: pq.ParquetFile, rows: int, place: SafePath) -> None:
    meta = file.metadata
    plain = meta.num_rows == rows and file.schema_arrow.remove_metadata().equals(SCHEMA)
    for group in range(meta.num_row_groups if plain else 0):
        for number in range(meta.num_columns):
            column = meta.row_group(group).column(number)
            plain &= column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
            plain &= set(column.encodings) <= {"PLAIN", "RLE"}
    if not plain:
        raise Damaged(f"{place} is not a plain table of {rows:,} keys, labels and checksums")


def find(stored: pa.ChunkedArray, keys: Any) -> NDArray[np.int64]:
    """The row of each key, -1 where it is not stored: int64 (n,)."""
    given = as_strings(keys)
    if len(given) == len(stored) and given.equals(stored):
        return np.arange(len(stored))
    if len(given) <= _FEW:
        return np.array([pc.index(stored, key).as_py() for key in given], np.int64)
    return np.asarray(pc.fill_null(pc.index_in(given, value_set=stored), -1), np.int64)


def as_strings(keys: Any) -> pa.ChunkedArray:
    """`keys` (Arrow, or any iterable of str) as one column of strings."""
    if isinstance(keys, str):
        raise TypeError("keys are a sequence of str, not one str")
    if isinstance(keys, pa.Array):
        keys = pa.chunked_array([keys])
    if isinstance(keys, pa.ChunkedArray):
        return keys if keys.type == pa.string() else keys.cast(pa.string())
    return pa.chunked_array([pa.array(_listed(keys), pa.string())])


def _listed(keys: Iterable[str]) -> Any:
    return keys if isinstance(keys, list | np.ndarray) else list(keys)


def first_row_difference(there: pa.Table, here: pa.Table) -> str:
    """One clause about where two tables of images begin to differ."""
    common = min(len(there), len(here))
    places = []
    for order, name in enumerate(here.column_names):
        differ = np.asarray(pc.not_equal(there[name].slice(0, common), here[name].slice(0, common)), bool)
        places += [(int(row), order, name) for row in np.flatnonzero(differ)[:1]]
    if not places:
        return f"it holds {len(there):,} images, here are {len(here):,}, of which the first {common:,} are the same" + (
            "; append_images adds the new ones" if len(here) > common else ""
        )
    row, _, name = min(places)  # where several columns differ, the key says it best
    key, old, new = there["key"][row].as_py(), there[name][row].as_py(), here[name][row].as_py()
    if name == "key":
        return f"image {row} is {old!r} there and {new!r} here ({len(there):,} images there, {len(here):,} here)"
    return f"image {key!r} has {'hard label' if name == 'label' else 'content'} {old} there and {new} here"
