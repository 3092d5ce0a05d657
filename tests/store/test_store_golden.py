"""Stores of every format version there was stay readable.

They lie in ``tests/golden/store-<version>`` and were written by ``tests/store/make_golden.py``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from store.stores import KINDS, assert_holds, fill, table

from softlabels.store import FORMAT, open_store

GOLDEN = Path(__file__).parents[1] / "golden"


def test_there_is_a_golden_store_of_every_version() -> None:
    assert [path.name for path in sorted(GOLDEN.glob("store-*"))] == [f"store-{n}" for n in range(1, FORMAT + 1)]


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_old_stores_are_read_and_grown(tmp_path: Path, version: int) -> None:
    shutil.copytree(GOLDEN / f"store-{version}", tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert store.verify() == []
    assert store.teachers == tuple("-".join(kind) for kind in KINDS)
    assert store.keys.equals(table(6)["key"])
    np.testing.assert_array_equal(store.labels, table(6)["label"])
    for name in store.teachers:
        labels = store.teacher(name)
        assert labels.verify() == []
        assert labels.missing(3) == []
        assert_holds(labels, 3)
        assert labels.skipped == {1: "truncated"}
        assert next(labels.digests()) == (0, 0, "0" * 16)
        fill(labels, 4)
        assert_holds(labels, 4)
