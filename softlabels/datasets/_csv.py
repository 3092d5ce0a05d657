"""Pictures listed in a CSV file."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv
from pydantic import PositiveInt

from softlabels.config import Part
from softlabels.datasets._images import FileImages, absolute, key_column
from softlabels.errors import ConfigError, DataError, did_you_mean

_NUMBER = re.compile(r"-?\d{1,9}(\.0+)?")  # "3.0" is what pandas writes once a column of integers has a gap
_MOST_CLASSES = 10_000_000


class Csv(Part):
    """``csv:FILE``: one picture per line, with a path and, if there is one, a label (an empty cell: none).

    Labels are class numbers when every one is a whole number, else class names, numbered in sorted order. `classes`
    says how many there are (or their names, in order) when the file does not show them all. Relative paths are meant
    below `data_dir`, or below the CSV's folder. `label_column` None: the column ``label`` if there is one.
    """

    shorthand: ClassVar[str] = "file"
    kind: Literal["csv"] = "csv"
    file: str
    data_dir: str | None = None
    path_column: str = "path"
    label_column: str | None = None
    classes: PositiveInt | tuple[str, ...] | None = None

    def open(self) -> FileImages:
        """The data set in the file's order; keys are the paths as they are listed.

        Raises:
            DataError: a column, a picture or a label is missing or wrong, or a path comes twice; it is named.
        """
        file = Path(absolute(self.file))
        root = absolute(self.data_dir) if self.data_dir else str(file.parent)
        table = _read(file)
        keys = _keys(_column(table, self.path_column, file), root, file)
        labels, classes = _labels(self._label_cells(table, file), self.classes, file)
        spec = {**self.model_dump(), "file": str(file), "data_dir": root}
        return FileImages(f"csv:{file}", spec, root, key_column(keys), labels, classes)

    def _label_cells(self, table: pa.Table, file: Path) -> list[str]:
        if self.label_column is None and "label" not in table.column_names:
            return [""] * len(table)
        return [cell.strip() for cell in _column(table, self.label_column or "label", file)]


def _read(file: Path) -> pa.Table:
    """Every column as text."""
    if file.exists() and not file.is_file():
        raise DataError(f"{file} is not a regular file; a list of pictures is a CSV file")  # a pipe may never end
    try:
        with csv.open_csv(file) as reader:
            names = reader.schema.names
        as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        table = csv.read_csv(file, convert_options=as_text, parse_options=csv.ParseOptions(newlines_in_values=True))
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise DataError(f"the CSV file {file} cannot be read: {reason}") from problem
    except (pa.ArrowInvalid, pa.ArrowKeyError) as problem:
        raise DataError(f"{file} is not a CSV file in UTF-8: {str(problem).splitlines()[0]}") from problem
    if not len(table):
        raise DataError(f"{file} lists no pictures; it needs a line with the column names and one line per picture")
    return table


def _column(table: pa.Table, name: str, file: Path) -> list[str]:
    count = table.column_names.count(name)
    if count != 1:
        names = ", ".join(repr(one) for one in table.column_names)
        raise DataError(f"{file} has {'no' if not count else 'more than one'} column {name!r}; its columns are {names}")
    cells: list[str] = table.column(name).to_pylist()
    return cells


def _keys(cells: Sequence[str], root: str, file: Path) -> list[str]:
    """`cells` as clean posix paths, below `root` where they are; each is a file and comes once."""
    lines: dict[str, int] = {}
    missing: list[str] = []
    inside = root.rstrip("/") + "/"
    for line, cell in enumerate(cells, start=2):
        if not cell.strip():
            raise DataError(f"{file}, line {line}: the path is empty")
        key = posixpath.normpath(cell.strip()).removeprefix(inside)
        if key in lines:
            raise DataError(f"{file} lists {key!r} twice, in lines {lines[key]} and {line}; keep one of them")
        lines[key] = line
        path = os.path.join(root, key)  # noqa: PTH118 (twice per line of a file of a million)
        if not os.path.isfile(path):  # noqa: PTH113
            missing.append(f"{path} (line {line})")
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing):,} of the {len(cells):,} files that {file} lists are missing: {shown}; "
            "relative paths are looked up below the CSV's folder or --data-dir"
        )
    return list(lines)


def _labels(
    cells: Sequence[str], classes: int | tuple[str, ...] | None, file: Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Label numbers (n,) and class names."""
    given = {cell for cell in cells if cell}
    if isinstance(classes, tuple):
        numbers = {name: number for number, name in enumerate(classes)}
        for cell in sorted(given - numbers.keys()):
            raise DataError(f"{file}: the label {cell!r} is none of the classes given; {did_you_mean(cell, classes)}")
        names = classes
    elif all(_NUMBER.fullmatch(cell) for cell in given):
        numbers = {cell: int(float(cell)) for cell in given}
        names = _numbered(numbers, classes, file)
    else:
        names = tuple(sorted(given))
        numbers = {name: number for number, name in enumerate(names)}
        if classes is not None and classes != len(names):
            raise ConfigError(f"{file} has {len(names)} class names, but classes = {classes}; list all names instead")
    return np.array([numbers[cell] if cell else -1 for cell in cells], np.int64), names


def _numbered(numbers: dict[str, int], classes: int | None, file: Path) -> tuple[str, ...]:
    lowest, highest = min(numbers.values(), default=-1), max(numbers.values(), default=-1)
    limit = _MOST_CLASSES if classes is None else classes
    if lowest < -1 or highest >= limit:
        wrong = lowest if lowest < -1 else highest
        raise DataError(f"{file}: the label {wrong} is out of range; class numbers are 0 to {limit - 1:,}, -1 is none")
    return tuple(str(number) for number in range(highest + 1 if classes is None else classes))
