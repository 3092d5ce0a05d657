"""Images listed in a CSV file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import write_png

from softlabels.datasets import notes, open_images
from softlabels.errors import DataError, SoftlabelsError

ROWS = st.dictionaries(
    st.text(st.sampled_from("ab,\"é'-x "), min_size=1, max_size=5).filter(lambda name: name.strip()),
    st.one_of(st.none(), st.sampled_from(["cat", "dog", "a, b", 'the "one"', "Ünique"])),
    min_size=1,
    max_size=8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.png", "2.png", "sub/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_png(torch.zeros(3, 4, 4, dtype=torch.uint8), str(tmp_path / name))
    return tmp_path


def listing(folder: Path, text: str) -> str:
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return f"csv:{folder / 'list.csv'}"


def refusal(value: object, **options: str) -> str:
    with pytest.raises(SoftlabelsError) as caught:
        open_images(value, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_a_csv_gives_its_rows_in_its_order_with_names_numbered_as_sorted(rows: dict[str, str | None]) -> None:
    with tempfile.TemporaryDirectory() as top:
        paths = [f"{name.strip()}!{place}.jpg" for place, name in enumerate(rows)]
        for path in paths:
            (Path(top) / path).touch()
        pd.DataFrame({"label": list(rows.values()), "path": paths}).to_csv(f"{top}/list.csv")
        images = open_images(f"csv:{top}/list.csv")
    assert images.keys.to_pylist() == paths
    assert images.classes == tuple(sorted({label for label in rows.values() if label}))
    assert [images.classes[label] if label >= 0 else None for label in images.labels] == list(rows.values())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1, max_size=8))
def test_class_numbers_stay_as_they_are(labels: list[int | None]) -> None:
    with tempfile.TemporaryDirectory() as top:
        paths = [f"{place}.jpg" for place in range(len(labels))]
        for path in paths:
            (Path(top) / path).touch()
        # With a gap pandas writes the numbers as floats.
        pd.DataFrame({"path": paths, "label": pd.Series(labels, dtype="float64")}).to_csv(f"{top}/list.csv")
        images = open_images(f"csv:{top}/list.csv")
        wider = open_images({"kind": "csv", "file": f"{top}/list.csv", "classes": 40})
    assert images.labels.tolist() == [-1 if label is None else label for label in labels]
    assert images.classes == tuple(
        str(number) for number in range(1 + max((n for n in labels if n is not None), default=-1))
    )
    assert len(wider.classes) == 40


def test_without_a_label_column_nothing_is_labelled(folder: Path) -> None:
    images = open_images(listing(folder, "path\n2.png\nsub/3.png\n"))
    assert images.labels.tolist() == [-1, -1]
    assert images.classes == ()
    assert images.decode(1).shape == (3, 4, 4)


def test_columns_and_classes_can_be_named(folder: Path) -> None:
    listing(folder, "file,what,path\n1.png,dog,x\n2.png,,y\n")
    part = {
        "kind": "csv",
        "file": str(folder / "list.csv"),
        "path_column": "file",
        "label_column": "what",
        "classes": ["cat", "dog"],
    }
    images = open_images(part)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [1, -1]
    assert open_images(images.spec).keys.to_pylist() == ["1.png", "2.png"]
    assert "did you mean 'dog'" in refusal({**part, "classes": ["cat", "dogs"]}) or "'dogs'" in refusal(
        {**part, "classes": ["cat", "dogs"]}
    )


def test_paths_are_below_data_dir_or_the_csv_and_keys_do_not_show_where(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    wanted = ["1.png", "sub/3.png"]
    assert open_images(listing(folder, "path\n./1.png\nsub/../sub/3.png\n")).keys.to_pylist() == wanted
    moved = listing(elsewhere, "path\n1.png\nsub/3.png\n")
    images = open_images(moved, data_dir=str(folder))
    assert images.keys.to_pylist() == wanted
    assert open_images(images.spec).decode(0).shape == (3, 4, 4)
    assert open_images(listing(folder, f"path\n{folder}/1.png\n")).keys.to_pylist() == ["1.png"]
    assert f"{elsewhere}/1.png (line 2)" in refusal(moved)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(folder: Path) -> None:
    (folder / "list.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\n1.png,3\r\n")
    assert open_images(f"csv:{folder / 'list.csv'}").labels.tolist() == [3]


def test_a_missing_column_is_named_with_those_there_are(folder: Path) -> None:
    message = refusal(listing(folder, "file,label\n1.png,0\n"))
    assert "no column 'path'" in message
    assert "'file', 'label'" in message
    file = str(folder / "list.csv")
    assert "no column 'what'" in refusal({"kind": "csv", "file": file, "path_column": "file", "label_column": "what"})


def test_missing_files_are_counted_and_named_with_their_lines(folder: Path) -> None:
    message = refusal(listing(folder, "path\n1.png\nnope.png\ngone.png\n"))
    assert "2 of the 3 files" in message
    assert f"{folder}/nope.png (line 3)" in message


def test_a_path_listed_twice_is_refused_with_both_lines(folder: Path) -> None:
    message = refusal(listing(folder, "path\n1.png\n2.png\n./1.png\n"))
    assert "'1.png' twice, in lines 2 and 4" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a CSV file"),
        ("path,label\n", "lists no images"),
        ("path,label\n1.png\n", "not a CSV file"),
        ("path,label\n,3\n", "line 2: the path is empty"),
        ("path,label\n1.png,-2\n", "label -2 is out of range"),
        ("path,label\n1.png,999999999\n", "look like ids"),
        ("path,path\n1.png,2.png\n", "more than one column 'path'"),
    ],
)
def test_a_bad_list_is_refused_by_name(folder: Path, text: str, said: str) -> None:
    message = refusal(listing(folder, text))
    assert said in message
    assert "list.csv" in message


def test_a_list_that_is_not_there_or_not_text_is_named(folder: Path) -> None:
    assert "nope.csv cannot be read" in refusal(f"csv:{folder}/nope.csv")
    (folder / "list.csv").write_bytes(b"path\n\xff\xfe.png\n")
    assert "not a CSV file in UTF-8" in refusal(f"csv:{folder}/list.csv")
    with pytest.raises(DataError):
        open_images(f"csv:{folder}")


@pytest.mark.parametrize("name", ["Label", "class", "Target", " y", "category"])
def test_a_column_that_looks_like_the_labels_is_asked_about(folder: Path, name: str) -> None:
    value = listing(folder, f"path,{name}\n1.png,cat\n2.png,dog\n")
    assert f"did you mean {name!r}?" in refusal(value)
    assert open_images(f"{value} label_column={name.strip()}").classes == ("cat", "dog")
    assert open_images(f"{value} label_column=none").labels.tolist() == [-1, -1]


def test_blanks_around_the_names_of_columns_do_not_count(folder: Path) -> None:
    images = open_images(listing(folder, "path, label\n1.png, 1\n2.png, 0\n"))
    assert images.labels.tolist() == [1, 0]


def test_columns_that_are_passed_over_are_named(folder: Path) -> None:
    said = " ".join(notes(open_images(listing(folder, "path,width\n1.png,3\n"))))
    assert "no column 'label'; its other columns, 'width', are passed over" in said
    assert "none has a label" in said


def test_a_column_of_paths_under_another_name_is_offered(folder: Path) -> None:
    assert "path_column=filename" in refusal(listing(folder, "filename,label\n1.png,3\n"))


@pytest.mark.parametrize("labels", [(0, 9_999_999), (5000, 5001), (100_000_000_000, 1)])
def test_ids_in_the_place_of_class_numbers_are_refused(folder: Path, labels: tuple[int, int]) -> None:
    value = listing(folder, f"path,label\n1.png,{labels[0]}\n2.png,{labels[1]}\n")
    assert "2 of the numbers 0 to" in refusal(value)
    assert "look like ids" in refusal(value)
    if max(labels) < 10_000:
        assert len(open_images(f"{value} classes={max(labels) + 1}").classes) == max(labels) + 1


def test_classes_without_images_are_counted(folder: Path) -> None:
    said = " ".join(notes(open_images(listing(folder, "path,label\n1.png,1\n2.png,3\nsub/3.png,\n"))))
    assert "2 of 4 classes have no image (first: '0')" in said
    assert "1 of them have no label" in said


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (("cat;pet", "dog"), "'cat;pet' looks like several labels"),
        (("cat|pet", "dog"), "several labels"),
        (('"[0, 1]"', "[1]"), "several labels"),
        (("0.143", "2"), "'0.143' is no whole number"),
        (("nan", "2"), "'nan' is no whole number"),
    ],
)
def test_labels_of_other_tasks_are_refused(folder: Path, cells: tuple[str, str], said: str) -> None:
    assert said in refusal(listing(folder, f"path,label\n1.png,{cells[0]}\n2.png,{cells[1]}\n"))


def test_names_that_are_listed_may_look_like_anything(folder: Path) -> None:
    listing(folder, "path,label\n1.png,cat;pet\n2.png,0.5\n")
    images = open_images({"kind": "csv", "file": str(folder / "list.csv"), "classes": ["cat;pet", "0.5"]})
    assert images.labels.tolist() == [0, 1]


def test_a_file_of_another_kind_is_named(folder: Path) -> None:
    for data, said in (
        ("path,label\n1.png,0\n".encode("utf-16"), "it is UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<html>\n<body>\n", "an HTML page"),
        (b"PK\x03\x04\x14\0\x06\0", "a zip archive"),
    ):
        (folder / "list.csv").write_bytes(data)
        assert said in refusal(f"csv:{folder / 'list.csv'}")
