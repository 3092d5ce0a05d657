"""An image that could not be read is labelled by the same dump when it can be read again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from histories import do
from worlds import TINY, picture, write_pictures

import softlabels

FORMATS = ("hdf5", "zarr")
SETTINGS: dict[str, Any] = {"teacher": ["cnn_tiny"], "weights": ["random"], "device": "cpu", "quiet": True}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of which one is broken."""
    root = write_pictures(tmp_path / "photos")
    (root / "class-1" / "003.jpg").write_bytes(b"broken")
    return root


def mend(photos: Path, seed: int = 103) -> None:
    from torchvision.io import write_jpeg

    write_jpeg(picture(seed), str(photos / "class-1" / "003.jpg"), quality=90)


def dump(photos: Path, out: Path, **settings: Any) -> Any:
    given = {**SETTINGS, "data": str(photos), "views": 2, "rows_per_shard": 6, "on_bad_image": "skip", **settings}
    return softlabels.dump(out=str(out), **given)[0]


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_dump_labels_an_image_that_was_mended(photos: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "shards"
    assert len(dump(photos, out, format=format, codec="dense:fp32").skipped) == 1
    assert dump(photos, out, format=format, codec="dense:fp32").shards == 0  # it is still broken
    mend(photos)
    report = dump(photos, out, format=format, codec="dense:fp32")
    assert (report.shards, report.skipped) == (1, {})
    labels = softlabels.open_labels(out)
    assert labels.of().skipped == {}
    fresh_out = tmp_path / "fresh"
    dump(photos, fresh_out, format=format, codec="dense:fp32")
    fresh = softlabels.open_labels(fresh_out)
    for view in range(2):
        torch.testing.assert_close(labels.logits(range(18), view), fresh.logits(range(18), view), atol=1e-5, rtol=1e-5)
    findings = softlabels.verify(labels=str(out), quiet=True, device="cpu")
    assert findings.ok, findings.problems
    assert dump(photos, out, format=format, codec="dense:fp32").shards == 0
    softlabels.train(labels=str(out), out=str(tmp_path / "run"), **TINY)


def test_views_that_the_command_does_not_ask_for_stay(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    dump(photos, out, views=3)
    mend(photos)
    dump(photos, out, views=1)
    labels = softlabels.open_labels(out)
    assert labels.views == 3
    assert labels.logits([9], 2).shape == (1, 3)


def test_a_mended_image_is_counted_as_changed_no_more_and_a_changed_one_still_is(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    dump(photos, out)
    mend(photos)
    assert softlabels.verify(labels=str(out), quiet=True, device="cpu").ok  # it has no label yet
    dump(photos, out)
    mend(photos, seed=999)
    findings = softlabels.verify(labels=str(out), quiet=True, device="cpu")
    assert findings.problems == ["image 'class-1/003.jpg': other content than when the labels were made"]
    with pytest.raises(softlabels.StoreError, match="was made otherwise"):
        dump(photos, out)


def test_other_teachers_and_copies_know_the_mended_image(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    dump(photos, out)
    dump(photos, out, teacher=["cnn_small"])
    mend(photos)
    dump(photos, out)
    assert softlabels.open_labels(out).labelled(np.arange(18), ["cnn_small"]).sum() == 17
    dump(photos, out, teacher=["cnn_small"])
    softlabels.convert(labels=str(out), out=str(tmp_path / "copy"), format="zarr", quiet=True)
    for store in (out, tmp_path / "copy"):
        assert softlabels.open_labels(store).labelled(np.arange(18)).all()
        assert softlabels.verify(labels=str(store), quiet=True, device="cpu").ok


def test_an_image_that_another_teacher_labelled_may_not_come_back_as_another(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    mend(photos)
    dump(photos, out)
    good = (photos / "class-1" / "003.jpg").read_bytes()
    (photos / "class-1" / "003.jpg").write_bytes(b"broken")
    # As of a data set too large for every file to be read: none of those that are compared is the broken one.
    monkeypatch.setattr("softlabels.dumping.stores.some_rows", lambda _: np.arange(3))
    dump(photos, out, teacher=["cnn_small"])
    mend(photos, seed=999)
    with pytest.raises(softlabels.StoreError, match="is not the one that other teachers"):
        dump(photos, out, teacher=["cnn_small"])
    (photos / "class-1" / "003.jpg").write_bytes(good)
    assert dump(photos, out, teacher=["cnn_small"]).shards == 1
    assert softlabels.verify(labels=str(out), quiet=True, device="cpu").ok


def test_what_was_mixed_with_a_broken_image_is_labelled_with_it(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    skipped = dump(photos, out, recipe="crop-flip-mix", views=3).skipped
    assert len(skipped) > 1
    mend(photos)
    assert dump(photos, out, recipe="crop-flip-mix", views=3).skipped == {}
    assert softlabels.open_labels(out).of().skipped == {}
    assert softlabels.verify(labels=str(out), quiet=True, device="cpu").ok


def test_a_mended_image_is_known_to_every_teacher_whichever_labels_it_first(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    dump(photos, out)
    dump(photos, out, teacher=["cnn_small"], part="0/2")  # it has not come to the broken image yet
    mend(photos)
    for teacher in ("cnn_small", "cnn_small", "cnn_tiny", "cnn_tiny"):
        assert dump(photos, out, teacher=[teacher]).skipped == {}
    assert softlabels.open_labels(out).labelled(np.arange(18)).all()
    findings = softlabels.verify(labels=str(out), quiet=True, device="cpu")
    assert findings.ok, findings.problems


@pytest.mark.slow
def test_a_dump_that_is_killed_while_it_labels_a_mended_image_keeps_the_labels_of_the_others(
    photos: Path, tmp_path: Path
) -> None:
    dump(photos, tmp_path / "shards", views=3, format="hdf5")
    mend(photos)
    for moment in range(1, 60):
        out = tmp_path / f"killed-{moment}"
        shutil.copytree(tmp_path / "shards", out)
        ended = do(lambda out=out: dump(photos, out, views=1, format="hdf5"), (moment, False))  # type: ignore[misc]
        assert softlabels.open_labels(out).views == 3
        if ended == "done":
            break
    assert 5 < moment < 59
