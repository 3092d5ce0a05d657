"""Images listed in a CSV file."""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from csv import writer as csv_writer
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv
from pydantic import BeforeValidator, Field

from softlabels.choices import DATASETS
from softlabels.core.config import Part
from softlabels.core.files import write_text
from softlabels.core.reading import FIRST_BYTES, kind_of_file
from softlabels.datasets._images import FileImages, Images, absolute, key_column
from softlabels.datasets._parts import by_part
from softlabels.datasets._subset import SomeImages, subset
from softlabels.errors import ConfigError, DataError, did_you_mean

_NUMBER = re.compile(r"-?\d{1,18}(\.0+)?")  # "3.0" is what pandas writes once a column of integers has a gap
_MOST_CLASSES = 1_000_000
_SPARSE_FROM, _SPARSE = 1000, 100
"""Beyond so many classes, at least one in so many must be used, or the numbers are ids."""

_SEVERAL = re.compile(r".*[;|].*|\[.*\]|\{.*\}", re.DOTALL)
"""What looks like several labels in one cell."""

_USUAL_LABELS = (
    *("label", "labels", "class", "classes", "class_name", "classname", "class_id", "classid", "class_label", "cls"),
    *("target", "targets", "y", "category", "categories", "gt", "ground_truth", "truth", "species", "diagnosis"),
)
_USUAL_PATHS = (
    *("path", "paths", "file", "filename", "file_name", "filepath", "file_path", "image", "images", "img"),
    *("image_path", "imagepath", "img_path", "image_name", "image_file", "image_id", "name", "id"),
)
NONE = "none"
"""As `label_column`: the images have no labels."""

KEY_COLUMN = "softlabels_key"
"""The column of a list that `write_list` made: the key that each image has in the data set that it was taken from."""


def _made(value: Any) -> Any:
    return None if value is None else DATASETS.make(value)


class Csv(Part):
    """``csv:FILE``: one image per line, with a path and, if there is one, a label (an empty cell: none).

    Labels are class numbers when every one is a whole number, else class names, numbered in sorted order. `classes`
    says how many there are (or their names, in order) when the file does not show them all. Relative paths are meant
    below `data_dir`, or below the CSV's folder. `label_column` None: the column ``label`` if there is one, and a column
    that only looks like it is asked about; ``none``: the images have no labels. Blanks around names and cells do not
    count.

    Keys are the paths, or what the column ``softlabels_key`` has, which the lists of ``softlabels select`` and
    ``dedup`` have. With `of`, a data set (``'csv:FILE of=cifar10'``), they are keys of its images and no files.
    """

    shorthand: ClassVar[str] = "file"
    kind: Literal["csv"] = "csv"
    file: str
    data_dir: str | None = None
    path_column: str = "path"
    label_column: str | None = None
    classes: Annotated[int, Field(ge=1, le=_MOST_CLASSES)] | tuple[str, ...] | None = None
    of: Annotated[Any, BeforeValidator(_made)] = None

    def open(self) -> Images:
        """The data set in the file's order; keys are the paths as they are listed.

        Raises:
            DataError: a column, an image or a label is missing or wrong, or a path comes twice; it is named.
        """
        file = Path(absolute(self.file))
        root = absolute(self.data_dir) if self.data_dir else str(file.parent)
        table = _read(file)
        name = _label_column(table, self.label_column, self.path_column, file)
        cells = [""] * len(table) if name is None else [cell.strip() for cell in _column(table, name, file)]
        own = KEY_COLUMN in table.column_names
        spec = {**self.model_dump(exclude={"of"}), "file": str(file), "data_dir": root}
        if self.of is not None:
            named = _unique(_column(table, KEY_COLUMN if own else self.path_column, file), file)
            return self._picked(self.of.open(), named, cells, file, spec)
        labels, classes = _labels(cells, self.classes, file)
        paths = _column(table, self.path_column, file, _USUAL_PATHS, "path_column")
        if own and not any(cell.strip() for cell in paths):
            raise DataError(
                f"{file} lists images that are no files; name the data set that they are of: 'csv:{file} of=DATA'"
            )
        keys = _keys(paths, root, file)
        if own:
            named = _unique(_column(table, KEY_COLUMN, file), file)
            return FileImages(f"csv:{file}", spec, root, key_column(named), labels, classes, (), key_column(keys))
        others = [one for one in table.column_names if one.strip() != self.path_column.strip()]
        lines: tuple[str, ...] = ()
        if name is None and others and self.label_column != NONE:
            lines = (f"csv:{file} has no column 'label'; its other columns, {_named(others)}, are passed over",)
        return FileImages(f"csv:{file}", spec, root, key_column(keys), labels, classes, lines)

    def _picked(
        self, whole: Images, keys: list[str], cells: Sequence[str], file: Path, spec: Mapping[str, Any]
    ) -> Images:
        """The images of these keys, with the labels of the list."""
        found = pc.index_in(pa.array(keys, pa.string()), value_set=whole.keys)
        if found.null_count:
            first = keys[int(np.flatnonzero(np.asarray(pc.is_null(found)))[0])]
            raise DataError(
                f"{found.null_count:,} of the {len(keys):,} keys that {file} lists are none of {whole.name} (the first "
                f"is {first!r}); name the data set that the list was made of: 'csv:{file} of=DATA'"
            )
        known = self.classes
        if known is None and {cell for cell in cells if cell} <= set(whole.classes):
            known = whole.classes if any(cells) else None
        labels, classes = _labels(cells, known, file)
        picked = subset(whole, found.to_numpy())
        assert isinstance(picked, SomeImages)
        return replace(
            picked, name=f"csv:{file}", spec={**spec, "of": dict(whole.spec)}, labels=labels, classes=classes
        )


def write_list(file: Path, images: Images, rows: NDArray[np.int64], columns: Mapping[str, Sequence[Any]]) -> bool:
    """Write a CSV of these images that ``csv:FILE`` opens, under their keys; gives whether all of them are files.

    `columns` are further ones, a value for each row; labels are in one called ``label``. Images that are no files have
    an empty path: the list is opened with the data set that they are of. Paths are relative to `file` where they lie
    below its folder.

    Raises:
        DataError: another file is there, which no `write_list` wrote.
        StoreError: it cannot be written.
    """
    check_list(file)
    paths = np.full(len(images), "", object)
    below = absolute(str(file.parent)).rstrip("/") + "/"
    for part, places, own in by_part(images):
        if isinstance(part, FileImages):
            wanted = np.isin(places, rows)
            for place, row in zip(places[wanted].tolist(), own[wanted].tolist(), strict=True):
                paths[place] = part.path(row).removeprefix(below)
    chosen = paths[rows]
    files = all(chosen)
    text = io.StringIO()
    writer = csv_writer(text, lineterminator="\n")
    writer.writerow(["path", KEY_COLUMN, *columns])
    keys = images.keys.take(pa.array(rows)).to_pylist()
    writer.writerows(zip(chosen if files else [""] * len(rows), keys, *columns.values(), strict=True))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.getvalue())
    return files


def check_list(file: Path) -> None:
    """Raises DataError where a list cannot be written, since another file or a folder is at its place."""
    if file.is_dir():
        raise DataError(f"{file} is a folder; give a file such as {file / 'pool.csv'} as `out`")
    if file.exists():
        with file.open("rb") as opened:
            first = opened.readline(4096).decode("utf-8", "replace")
        if KEY_COLUMN not in first.strip().split(","):
            raise DataError(f"{file} is there, and softlabels did not write it; choose another `out`")


def _unique(cells: Sequence[str], file: Path) -> list[str]:
    """Keys, each once and none empty."""
    lines: dict[str, int] = {}
    for line, cell in enumerate(cells, start=2):
        if not cell:
            raise DataError(f"{file}, line {line}: the key is empty")
        if cell in lines:
            raise DataError(f"{file} lists {cell!r} twice, in lines {lines[cell]} and {line}; keep one of them")
        lines[cell] = line
    return list(lines)


def _label_column(table: pa.Table, asked: str | None, path_column: str, file: Path) -> str | None:
    """The column of the labels; None where there is none.

    Raises:
        DataError: no column is called ``label``, but others look as if they were meant.
    """
    names = table.column_names
    if asked is not None:
        return None if asked == NONE and NONE not in names else asked
    if any(name.strip() == "label" for name in names):
        return "label"
    alike = [name for name in names if name.strip().lower() in _USUAL_LABELS and name.strip() != path_column.strip()]
    if alike:
        choices = " or ".join(f"label_column={name.strip()}" for name in alike[:3])
        raise DataError(
            f"{file} has no column 'label'; did you mean {_named(alike)}? Say {choices}, or label_column=none where "
            f"the images have no labels: 'csv:{file} label_column={alike[0].strip()}'"
        )
    return None


def _read(file: Path) -> pa.Table:
    """Every column as text."""
    if file.exists() and not file.is_file():
        raise DataError(f"{file} is not a regular file; a list of images is a CSV file")  # a pipe may never end
    try:
        with file.open("rb") as opened:
            first = opened.read(FIRST_BYTES)
        with csv.open_csv(file) as reader:
            names = reader.schema.names
        as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        table = csv.read_csv(file, convert_options=as_text, parse_options=csv.ParseOptions(newlines_in_values=True))
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise DataError(f"the CSV file {file} cannot be read: {reason}") from problem
    except (pa.ArrowInvalid, pa.ArrowKeyError) as problem:
        reason = _other_kind(first) or str(problem).splitlines()[0]
        raise DataError(f"{file} is not a CSV file in UTF-8: {reason}") from problem
    if other := _other_kind(first):
        raise DataError(f"{file} is no CSV file: {other}")
    if not len(table):
        raise DataError(f"{file} lists no images; it needs a line with the column names and one line per image")
    return table


def _other_kind(first: bytes) -> str:
    """What a file is of which these are the first bytes, where it is not text in UTF-8 as far as they tell."""
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it is UTF-16; save it as UTF-8 (in Excel: 'CSV UTF-8')"
    kind = kind_of_file(first)
    return "" if kind is None or kind.name in ("text", "json", "empty") else f"it is {kind}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(repr(one) for one in names)


def _column(
    table: pa.Table, name: str, file: Path, usual: Sequence[str] = _USUAL_LABELS, setting: str = "label_column"
) -> list[str]:
    """The cells of a column; blanks around its name do not count. `usual` names are offered where it is not there."""
    names = table.column_names
    places = [place for place, one in enumerate(names) if one == name]
    places = places or [place for place, one in enumerate(names) if one.strip() == name.strip()]
    if len(places) != 1:
        alike = [one.strip() for one in names if one.strip().lower() in (*usual, name.strip().lower())]
        hint = f"; choose with {' or '.join(f'{setting}={one}' for one in alike[:3])}" if alike and not places else ""
        lacking = "no" if not places else "more than one"
        raise DataError(f"{file} has {lacking} column {name!r}; its columns are {_named(names)}{hint}")
    cells: list[str] = table.column(places[0]).to_pylist()
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
            "relative paths are looked up below the CSV's folder or `data_dir`"
        )
    return list(lines)


def _labels(
    cells: Sequence[str], classes: int | tuple[str, ...] | None, file: Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Label numbers (n,) and class names."""
    given = {cell for cell in cells if cell}
    if not isinstance(classes, tuple):
        _refuse_other_tasks(given, cells, file)
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


def _refuse_other_tasks(given: set[str], cells: Sequence[str], file: Path) -> None:
    """Raises DataError where cells hold several labels each, or numbers to be predicted as such."""
    several = sorted(cell for cell in given if _SEVERAL.fullmatch(cell))
    fractions = [] if not all(map(_is_float, given)) else sorted(cell for cell in given if not _NUMBER.fullmatch(cell))
    for cell, what in ((several[:1], "looks like several labels"), (fractions[:1], "is no whole number")):
        if cell:
            raise DataError(
                f"{file}, line {cells.index(cell[0]) + 2}: the label {cell[0]!r} {what}; an image has one class here, "
                f"by name or number. Where it is a class name, list all names as `classes` in a config file"
            )


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbered(numbers: dict[str, int], classes: int | None, file: Path) -> tuple[str, ...]:
    lowest, highest = min(numbers.values(), default=-1), max(numbers.values(), default=-1)
    limit = _MOST_CLASSES if classes is None else classes
    used = len(set(numbers.values()) - {-1})
    if classes is None and highest >= max(_SPARSE_FROM, _SPARSE * used):
        count = f", or say how many there are: 'csv:{file} classes={highest + 1}'" if highest < _MOST_CLASSES else ""
        raise DataError(
            f"{file}: {used:,} of the numbers 0 to {highest:,} are labels, so these look like ids; number the classes "
            f"from 0 upward, or give their names instead{count}"
        )
    if lowest < -1 or highest >= limit:
        wrong = lowest if lowest < -1 else highest
        raise DataError(f"{file}: the label {wrong} is out of range; class numbers are 0 to {limit - 1:,}, -1 is none")
    return tuple(str(number) for number in range(highest + 1 if classes is None else classes))
