"""Verifying a store: each kind of wrong is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from worlds import write_pictures

import softlabels

FORMATS = ("hdf5", "zarr")


@pytest.fixture(params=FORMATS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of photos that lie beside it."""
    root = write_pictures(tmp_path / "photos")
    softlabels.dump(
        teacher=["cnn_tiny"],
        weights=["random:3"],
        data=str(root),
        views=3,
        rows_per_shard=6,
        format=request.param,
        out=str(tmp_path / "shards"),
        quiet=True,
    )
    return tmp_path / "shards"


def test_a_sound_store_passes_every_check(store: Path) -> None:
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert findings.ok
    assert [agreement.teacher for agreement in findings.agreements] == ["cnn_tiny"]
    assert findings.agreements[0].top1 == 1
    assert findings.agreements[0].mean_kl < 1e-5
    assert any("digests of 54 rendered views" in check for check in findings.checks)


def test_changed_images_are_named(store: Path) -> None:
    photos = store.parent / "photos"
    one, other = photos / "class-0" / "001.jpg", photos / "class-2" / "003.jpg"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert sorted(findings.problems) == [
        "image 'class-0/001.jpg': other content than when the labels were made",
        "image 'class-2/003.jpg': other content than when the labels were made",
    ]


def test_other_weights_are_noticed(store: Path) -> None:
    with pytest.raises(softlabels.StoreError, match="other weights"):
        softlabels.verify(labels=str(store), teacher=["cnn_tiny"], weights=["random:4"], quiet=True)


def test_labels_of_other_pixels_are_noticed(store: Path) -> None:
    """A teacher that is shown other pictures than the stored ones disagrees: here the labels of two views swap."""
    import numpy as np

    labels = softlabels.open_labels(store)
    each = labels.of("cnn_tiny")
    shard = each.shards[0]
    content = each.read_shard(shard)
    swapped = {name: np.ascontiguousarray(array[::-1]) for name, array in content.arrays.items()}
    with each.writing():
        each.remove(shard)
        each.write(shard, swapped, digests=content.digests)
    findings = softlabels.verify(labels=str(store), samples=18, largest_kl=1e-6, quiet=True)
    assert len(findings.problems) == 1
    assert "mean KL" in findings.problems[0]


def test_a_store_that_was_copied_halfway_is_incomplete(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    shard = sorted((copy / "cnn_tiny").glob("00002*"))[0]
    shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    findings = softlabels.verify(labels=str(copy), quiet=True)
    assert any("incomplete" in problem and "00002-v0-3" in problem for problem in findings.problems)


def test_a_store_without_its_manifest_is_no_store(store: Path) -> None:
    (store / "manifest.json").unlink()
    with pytest.raises(softlabels.StoreError, match=r"manifest\.json"):
        softlabels.verify(labels=str(store), quiet=True)


def test_moved_images_are_found_with_data(store: Path) -> None:
    photos = store.parent / "photos"
    photos.rename(store.parent / "elsewhere")
    with pytest.raises(softlabels.DataError, match="--data"):
        softlabels.verify(labels=str(store), quiet=True)
    assert softlabels.verify(labels=str(store), data=str(store.parent / "elsewhere"), quiet=True).ok


def test_a_dump_goes_on_when_the_images_have_moved(store: Path) -> None:
    photos = store.parent / "photos"
    photos.rename(store.parent / "elsewhere")
    softlabels.dump(
        teacher=["cnn_tiny"],
        weights=["random:3"],
        data=str(store.parent / "elsewhere"),
        views=4,
        format=softlabels.open_labels(store).of().card.format,
        out=str(store),
        quiet=True,
    )
    assert softlabels.open_labels(store).views == 4


def test_a_stores_word_imports_no_code(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = softlabels.open_labels(store)
    hostile = labels.store.manifest.model_copy(update={"data": {"kind": "function", "target": "os:getcwd"}})
    monkeypatch.setattr(type(labels.store), "manifest", hostile, raising=False)
    from softlabels.runs._parts import label_images

    object.__setattr__(labels.store, "manifest", hostile)
    with pytest.raises(softlabels.ConfigError, match="name it yourself"):
        label_images(labels, None, None)


def test_info_says_what_a_store_holds(store: Path, softlabels_command: Callable) -> None:
    told = softlabels_command("info", store)
    assert told.exit_code == 0
    assert "18 images" in told.output
    assert "cnn_tiny: 3 views complete in 3" in told.output
