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


def test_other_pixels_name_image_view_decoder_and_the_versions_that_differ(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The files are the same, what is made of them is not: as by another decoder or another release of a library."""
    from softlabels.pictures import Pictures

    then = softlabels.open_labels(store).of().card.versions
    real = Pictures.render
    monkeypatch.setattr(Pictures, "render", lambda self, *samples: real(self, *samples) ^ 1)
    monkeypatch.setattr("softlabels.provenance.version", lambda name: "99.9" if name == "torchvision" else then[name])
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert len(findings.problems) == 54
    assert findings.problems[0].startswith("image 'class-0/000.jpg', view 0: the picture is not the one that cnn_tiny")
    assert f"then {then['decoder']}" in findings.problems[0]
    assert f"torchvision now 99.9, then {then['torchvision']}" in findings.problems[0]
    assert "numpy" not in findings.problems[0]
    with pytest.raises(softlabels.StoreError, match=r"torchvision now 99\.9"):
        softlabels.train(student="cnn_tiny", size=16, labels=str(store), out=str(tmp_path / "run"), quiet=True)


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


def test_images_that_could_not_be_read_are_left_out_and_counted(softlabels_command: Callable, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    (root / "class-1" / "003.jpg").write_bytes(b"")
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", root, "--views", 2, "--out", "shards")
    assert "wrote 1 shard, 34 labels" in softlabels_command(*dump, "--on-bad-image", "skip").output
    verified = softlabels_command("verify", "--labels", "shards")
    assert verified.exit_code == 0, verified.output
    assert "run again on 17 views: ok" in verified.output
    assert "1 image without labels" in softlabels_command("info", "shards").output


def test_a_teacher_that_the_store_lacks_is_not_passed_over(store: Path) -> None:
    with pytest.raises(softlabels.ConfigError, match="no labels of 'cnn_small'; known: cnn_tiny"):
        softlabels.verify(labels=str(store), teacher=["cnn_small"], weights=["random"], quiet=True)


def test_only_options_that_help_are_named_when_images_have_moved(store: Path) -> None:
    (store.parent / "photos").rename(store.parent / "elsewhere")
    with pytest.raises(softlabels.DataError, match="say with --data where the images lie now"):
        softlabels.verify(labels=str(store), quiet=True)


def test_info_says_what_a_store_holds(store: Path, softlabels_command: Callable) -> None:
    told = softlabels_command("info", store)
    assert told.exit_code == 0
    assert "18 images" in told.output
    assert "cnn_tiny: 3 views complete in 3" in told.output
