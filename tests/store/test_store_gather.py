"""Labels are found wherever a store's history has put them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from store.stores import KINDS, card, make, of_shard, table, values

from softlabels.store import Cache, Shard, TeacherLabels, open_store

MOST_ROWS = 60
KNOWN = values(MOST_ROWS)

steps = st.lists(st.one_of(st.integers(1, 10), st.just("images")), min_size=1, max_size=5)


def grow(root: Path, first: int, rows_per_shard: int, kind: tuple[str, str], history: list[int | str]) -> TeacherLabels:
    """A store that got views and images in this order, and at the end whatever was missing."""
    store = make(root, rows=first, rows_per_shard=rows_per_shard)
    store.prepare("cnn", card(*kind))
    views = 1
    for step in history:
        if step == "images" and len(store) + 7 <= MOST_ROWS:
            store = store.append_images(table(7, first=len(store)))
        elif isinstance(step, int):
            views = max(views, step)
            write(store.teacher("cnn"), step)
    write(store.teacher("cnn"), views)
    return open_store(root).teacher("cnn")


def write(labels: TeacherLabels, views: int) -> list[Shard]:
    with labels.writing():
        missing = labels.missing(views)
        for shard in missing:
            labels.write(shard, of_shard(KNOWN, shard))
    return missing


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(), first=st.integers(1, 40), per_shard=st.integers(1, 25), kind=st.sampled_from(KINDS), history=steps
)
def test_any_rows_and_views_of_any_history_are_found(
    data: st.DataObject, first: int, per_shard: int, kind: tuple[str, str], history: list[int | str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        labels = grow(Path(folder) / "s", first, max(per_shard, first // 4), kind, history)
        rows_held = labels.runs[-1][1]
        for _ in range(4):
            count = data.draw(st.integers(0, 200))
            rows = data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, rows_held - 1)))
            views = data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, labels.views - 1)))
            for name, array in labels.take(rows, views).items():
                np.testing.assert_array_equal(array, KNOWN[name][views, rows])
        assert labels.verify() == []
        assert labels.verify() == []


def test_what_was_there_is_not_touched_when_images_are_added(tmp_path: Path) -> None:
    labels = grow(tmp_path / "s", 30, 20, ("hdf5", "none"), [2])
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    store = open_store(tmp_path / "s").append_images(table(7, first=30))
    assert labels.views == 2
    grown = store.teacher("cnn")
    assert grown.views == 0
    assert [(shard.run, shard.first_row, shard.stop_row) for shard in write(grown, 2)] == [(2, 30, 37)]
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"manifest.json"}
    assert store.verify() == []
    assert store.keys[36].as_py() == "train/00036.jpg"
    assert (store.labels == np.asarray(table(37)["label"])).all()


def test_rows_of_more_shards_than_fit_into_the_cache_are_still_right(tmp_path: Path) -> None:
    labels = grow(tmp_path / "s", 60, 7, ("zarr", "zstd"), [3])
    rows, views = np.random.default_rng(0).integers(0, [[60], [3]], (2, 500))
    largest = 7 * (10 + 10 + 4) * 3 + 3 * 3 * (64 + 4)
    for limit in (largest, 2 * largest, 5 * largest, None):
        labels = open_store(tmp_path / "s", Cache.at(limit=limit)).teacher("cnn")
        for _ in range(3):
            for name, array in labels.take(rows, views).items():
                np.testing.assert_array_equal(array, KNOWN[name][views, rows])


def test_many_shards_need_no_file_descriptors(tmp_path: Path) -> None:
    labels = grow(tmp_path / "s", 60, 1, ("hdf5", "none"), [1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    labels.take(np.arange(60), np.zeros(60, int))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_that_open_shards_together_read_the_right_labels(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for kind in (("hdf5", "none"), ("hdf5", "zstd")):
        labels = grow(tmp_path / kind[1], 60, 3, kind, [4])
        draws = np.random.default_rng(0).integers(0, [[[60]], [[4]]], (2, 40, 25))
        with ThreadPoolExecutor(4) as pool:
            taken = list(pool.map(labels.take, draws[0], draws[1]))
        for rows, views, arrays in zip(*draws, taken, strict=True):
            np.testing.assert_array_equal(arrays["tail"], KNOWN["tail"][views, rows])
