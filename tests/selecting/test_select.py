"""The surest images of each class: which they are, and the list of them as a data set."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from worlds import TINY, write_pictures

import softlabels
from softlabels import DataError
from softlabels.selecting.select import Prediction, surest

PROBABILITIES = torch.tensor(
    [  # of view 0 and view 1
        [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]],  # in the mean class 0 with 0.55
        [[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]],  # class 0 with 0.6
        [[0.0, 0.7, 0.3], [0.0, 0.9, 0.1]],  # class 1 with 0.8
        [[0.4, 0.6, 0.0], [0.8, 0.2, 0.0]],  # class 0 with 0.6, as image 1
        [[0.0, 0.5, 0.5], [0.1, 0.6, 0.3]],  # class 1 with 0.55
    ]
)


def write_store(out: Path, images: Any, probabilities: torch.Tensor = PROBABILITIES) -> Path:
    with softlabels.create_labels(out, images=images, recipe="pad", views=2, classes=3) as store:
        for batch in store.missing("t", size=16, codec="dense:fp32", on_odd_logits="warn"):
            store.put(probabilities[batch.rows, batch.views].clamp_min(1e-9).log())
    return out


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos without labels; not to be changed."""
    return write_pictures(tmp_path_factory.mktemp("pool") / "crawl", classes=1, each=5)


@pytest.fixture
def store(pool: Path, tmp_path: Path) -> Path:
    return write_store(tmp_path / "labels", f"images:{pool}")


def listed(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_surest_images_of_each_class_by_the_mean_of_the_views(store: Path, tmp_path: Path) -> None:
    found = softlabels.select(store, top_k_per_class=1, out=tmp_path / "pool.csv", quiet=True)
    rows = listed(tmp_path / "pool.csv")
    assert [row["softlabels_key"] for row in rows] == ["class-0/001.jpg", "class-0/002.jpg"]  # of a tie the first key
    assert [float(row["confidence"]) for row in rows] == pytest.approx([0.6, 0.8], abs=1e-5)
    assert [row["predicted"] for row in rows] == ["0", "1"]
    assert (found.images, found.pool, found.short, found.empty) == (2, 5, 1, 1)


def test_classes_with_fewer_images_give_all_they_have_and_one_line_counts_them(
    store: Path, softlabels_command: Callable[..., Any], tmp_path: Path
) -> None:
    done = softlabels_command("select", store, "--top-k-per-class", 3, "--min-confidence", 0.58)
    assert done.exit_code == 0
    lines = [line for line in done.output.splitlines() if "have fewer" in line]
    assert lines == [
        "3 of 3 classes have fewer than 3 images of a confidence of 0.58 or more (1 have none): all of these are taken"
    ]
    assert len(listed(tmp_path / "pool.csv")) == 3


def test_ties_go_by_key_and_unlabelled_images_are_never_taken() -> None:
    classes, confidence = np.array([0, 0, 0, -1, 1]), np.array([0.5, 0.9, 0.5, 0.99, 0.2], np.float32)
    keys = pa.chunked_array([pa.array(["z", "y", "a", "b", "c"])])
    prediction = Prediction(classes, confidence)
    assert surest(prediction, keys, 2).tolist() == [1, 2, 4]
    assert surest(prediction, keys, 9, 0.5).tolist() == [0, 1, 2]


def test_the_list_is_a_data_set_under_the_keys_of_the_store(store: Path, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "far" / "pool.csv"
    softlabels.select(store, top_k_per_class=1, out=out, quiet=True)
    images = softlabels.open_images(f"csv:{out}")
    whole = softlabels.open_images(f"images:{pool}")
    assert images.keys.to_pylist() == ["class-0/001.jpg", "class-0/002.jpg"]
    assert images.classes == () and images.labels.tolist() == [-1, -1]
    assert images.content(1) == whole.content(2)
    result = softlabels.train(labels=store, data=f"csv:{out}", eval_data="none", out=tmp_path / "run", **TINY)
    assert result.top1 is None
    softlabels.dump(
        teacher="cnn_tiny",
        weights="random",
        data=f"csv:{out}",
        views=1,
        out=tmp_path / "again",
        device="cpu",
        quiet=True,
    )
    assert softlabels.open_labels(tmp_path / "again").keys == images.keys


def test_pseudo_labels_are_class_numbers_of_all_classes(store: Path, tmp_path: Path) -> None:
    found = softlabels.select(store, top_k_per_class=2, pseudo_labels=True, out=tmp_path / "pool.csv", quiet=True)
    assert found.data == f"csv:{tmp_path / 'pool.csv'} classes=3"
    images = softlabels.open_images(found.data)
    assert images.labels.tolist() == [0, 1, 0, 1] and images.classes == ("0", "1", "2")


def test_images_that_are_no_files_are_listed_by_key(tmp_path: Path) -> None:
    digits = softlabels.datasets.subset(softlabels.open_images("digits"), [5, 1, 7, 3, 9])  # type: ignore[attr-defined]
    store = write_store(tmp_path / "labels", digits)
    out = tmp_path / "pool.csv"
    found = softlabels.select(store, top_k_per_class=1, data="digits", out=out, quiet=True)
    assert found.data == f"csv:{out} of=digits" and not found.files
    images, whole = softlabels.open_images(found.data), softlabels.open_images("digits")
    assert images.pixels is not None and images.labels.tolist() == [-1, -1]
    for row, key in enumerate(images.keys.to_pylist()):
        assert (images.decode(row) == whole.decode(whole.keys.to_pylist().index(key))).all()
    assert softlabels.open_images(images.spec).keys == images.keys
    with pytest.raises(DataError, match="are no files; name the data set"):
        softlabels.open_images(f"csv:{out}")
    with pytest.raises(DataError, match="none of digit"):
        softlabels.open_images(f"csv:{out} of=digit-pairs")


def test_images_of_the_labels_that_the_data_lacks_are_left_out(store: Path, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("path\nclass-0/002.jpg\nclass-0/004.jpg\n", encoding="utf-8")
    found = softlabels.select(
        store, top_k_per_class=9, data=f"csv:{tmp_path}/some.csv", data_dir=pool, out=tmp_path / "p.csv", quiet=True
    )
    assert (found.images, found.pool) == (2, 2)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--top-k-per-class", 0], "--top-k-per-class must be 1 or more"),
        ([], "needs --top-k-per-class"),
        (["--top-k-per-class", 1, "--min-confidence", 0.9], "the highest is 0.800  tip: choose a lower --min-confid"),
        (["--top-k-per-class", 1, "--out", "mine.csv"], "softlabels did not write it  tip: choose another --out"),
        (["--top-k-per-class", 1, "--out", "folder"], "is a folder"),
        (["--top-k-per-class", 1, "--teachers", "x"], "'x'"),
        (["--top-k-per-class", 1, "--data", "images:nowhere"], "no such directory"),
        (["--top-k-per-class", 1, "--data", "digits"], "is in digits  tip: name the labelled ones with --data"),
    ],
)
def test_bad_input_is_one_line(
    options: list[Any], found: str, store: Path, softlabels_command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text("path,label\nx.jpg,3\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    done = softlabels_command("select", store, *options)
    assert done.exit_code in (1, 2) and found in done.output
    assert len(done.output.splitlines()) == 1
    assert (tmp_path / "mine.csv").read_text(encoding="utf-8").startswith("path,label")
