"""An image that could not be read is labelled by the same dump when it can be read again."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from histories import MACHINE, POOL, RECIPE, content, do, put
from linear_teachers import NAMES
from moving import all_bytes, flip
from worlds import TINY, picture, write_pictures

import softlabels
from softlabels.core.files import can_exchange

FORMATS = ("hdf5", "zarr")
SETTINGS: dict[str, Any] = {"teacher": ["cnn_tiny"], "weights": ["random"], "device": "cpu", "quiet": True}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of which one is broken."""
    root = write_pictures(tmp_path / "photos")
    (root / "class-1" / "003.jpg").write_bytes(b"broken")
    return root


def fix(photos: Path, seed: int = 103) -> None:
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
    fix(photos)
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
    fix(photos)
    dump(photos, out, views=1)
    labels = softlabels.open_labels(out)
    assert labels.views == 3
    assert labels.logits([9], 2).shape == (1, 3)


def test_a_mended_image_is_counted_as_changed_no_more_and_a_changed_one_still_is(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    dump(photos, out)
    fix(photos)
    assert softlabels.verify(labels=str(out), quiet=True, device="cpu").ok  # it has no label yet
    dump(photos, out)
    fix(photos, seed=999)
    findings = softlabels.verify(labels=str(out), quiet=True, device="cpu")
    assert findings.problems == ["image 'class-1/003.jpg': other content than when the labels were made"]
    with pytest.raises(softlabels.StoreError, match="was made otherwise"):
        dump(photos, out)


def test_other_teachers_and_copies_know_the_mended_image(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    dump(photos, out)
    dump(photos, out, teacher=["cnn_small"])
    fix(photos)
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
    fix(photos)
    dump(photos, out)
    good = (photos / "class-1" / "003.jpg").read_bytes()
    (photos / "class-1" / "003.jpg").write_bytes(b"broken")
    # As of a data set too large for every file to be read: none of those that are compared is the broken one.
    monkeypatch.setattr("softlabels.dumping.stores.some_rows", lambda _: np.arange(3))
    dump(photos, out, teacher=["cnn_small"])
    fix(photos, seed=999)
    with pytest.raises(softlabels.StoreError, match="is not the one that other teachers"):
        dump(photos, out, teacher=["cnn_small"])
    (photos / "class-1" / "003.jpg").write_bytes(good)
    assert dump(photos, out, teacher=["cnn_small"]).shards == 1
    assert softlabels.verify(labels=str(out), quiet=True, device="cpu").ok


def test_what_was_mixed_with_a_broken_image_is_labelled_with_it(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    skipped = dump(photos, out, recipe="crop-flip-mix", views=3).skipped
    assert len(skipped) > 1
    fix(photos)
    assert dump(photos, out, recipe="crop-flip-mix", views=3).skipped == {}
    assert softlabels.open_labels(out).of().skipped == {}
    assert softlabels.verify(labels=str(out), quiet=True, device="cpu").ok


def test_a_mended_image_is_known_to_every_teacher_whichever_labels_it_first(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    dump(photos, out)
    dump(photos, out, teacher=["cnn_small"], part="0/2")  # it has not come to the broken image yet
    fix(photos)
    for teacher in ("cnn_small", "cnn_small", "cnn_tiny", "cnn_tiny"):
        assert dump(photos, out, teacher=[teacher]).skipped == {}
    assert softlabels.open_labels(out).labelled(np.arange(18)).all()
    findings = softlabels.verify(labels=str(out), quiet=True, device="cpu")
    assert findings.ok, findings.problems


# What a kill, a repair or a reader in between meets.

TEACHER = NAMES[0]
KEYS = tuple(key for key in POOL if key.endswith(("/0.png", "/1.png")))
BROKEN = (KEYS[1], KEYS[4])
"""One in each of two runs of rows."""


def write_images(root: Path, broken: Collection[str] = ()) -> None:
    for key in KEYS:
        put(root / key, b"broken" if key in broken else content(key))


def label(images: Path, out: Path, **settings: Any) -> None:
    given = {"teacher": [TEACHER.replace("-", ":")], "data": str(images), "recipe": RECIPE, "views": 3, **MACHINE}
    given |= {"codec": "dense:fp32", "rows_per_shard": 4, "batch_size": 5, "on_bad_image": "skip", **settings}
    softlabels.dump(out=str(out), **given)


def files(store: Path) -> dict[str, bytes]:
    """All but locks, and the settings of the last dump, which name the folder."""
    found = all_bytes(store).items()
    return {name: data for name, data in found if not name.startswith(".writer-") and not name.endswith(".yaml")}


def served(store: Path) -> dict[tuple[str, int], list[float] | None]:
    """The logits of each image and view, None where they are refused."""
    labels, found = softlabels.open_labels(store), {}
    for row, key in enumerate(KEYS):
        for view in range(3):
            try:
                found[key, view] = labels.logits([row], view)[0].tolist()
            except softlabels.StoreError:
                found[key, view] = None
    return found


READ = "import pickle, sys, pathlib, test_relabelling as t; stores = map(pathlib.Path, sys.argv[1:])"
READ += "; sys.stdout.buffer.write(pickle.dumps([t.served(store) for store in stores]))"


def served_to_another_process(stores: Sequence[Path]) -> list[dict[tuple[str, int], list[float] | None]]:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, stores)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return pickle.loads(done.stdout)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize(
    ("system", "asked"),
    [
        ("hdf5", 3),
        pytest.param("zarr", 1, marks=pytest.mark.slow),
        pytest.param("zarr, folders exchanged", 1, marks=pytest.mark.slow),
    ],
)
def test_a_dump_that_is_killed_while_it_labels_fixed_images_is_finished_by_the_same_command(
    tmp_path: Path, system: str, asked: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each operation on files, or each 7th: each label is as before or as after, and is not lost."""
    if system == "zarr":  # a file system that cannot, as network ones
        monkeypatch.setattr("softlabels.core.files._exchange", lambda *_: False)
    elif "exchanged" in system and not can_exchange(tmp_path):
        pytest.skip("this file system does not exchange folders")
    images, format = tmp_path / "images", system.split(",")[0]
    write_images(images, BROKEN)
    for views in (1, 3):  # so that an image has its views in two shards
        label(images, tmp_path / "before", views=views, format=format)
    write_images(images)
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    label(images, tmp_path / "after", views=asked, format=format)
    before, after, wanted = served(tmp_path / "before"), served(tmp_path / "after"), files(tmp_path / "after")
    assert None in before.values()
    assert None not in after.values()
    stores, here, ended = [], [], ""
    for moment in itertools.count(1, step):
        stores.append(tmp_path / f"killed-{moment}")
        shutil.copytree(tmp_path / "before", stores[-1])
        ended = do(lambda out=stores[-1]: label(images, out, views=asked, format=format), (moment, False))  # type: ignore[misc]
        here.append(served(stores[-1]))
        if ended == "done":
            break
    assert moment > 15
    assert here == served_to_another_process(stores)
    for store, found in zip(stores, here, strict=True):
        for place, row in found.items():
            assert row in (before[place], after[place]) or (system == "zarr" and row is None), (store.name, place)
        label(images, store, views=asked, format=format)
        assert files(store) == wanted, store.name


def test_a_dump_makes_what_a_repair_removed_whole_again(tmp_path: Path) -> None:
    """Also the views that it does not ask for."""
    write_images(tmp_path / "images")
    out = tmp_path / "store"
    label(tmp_path / "images", out)
    before = files(out)
    flip(out / TEACHER / "00001-v0-3.h5")
    softlabels.repair(labels=str(out), **MACHINE)
    assert softlabels.open_labels(out).views == 0
    label(tmp_path / "images", out, views=1, part="0/2")  # another part
    assert softlabels.open_labels(out).views == 0
    label(tmp_path / "images", out, views=1)
    assert files(out) == before


@pytest.mark.parametrize("compared", [True, False])
@pytest.mark.parametrize("now", ["broken", "another"])
def test_a_label_is_neither_lost_nor_changed_when_another_image_of_its_shard_is_labelled(
    tmp_path: Path, now: str, compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = tmp_path / "images", tmp_path / "store"
    write_images(images, BROKEN)
    label(images, out)
    if not compared:  # as of a data set too large for every file to be read
        monkeypatch.setattr("softlabels.dumping.stores.some_rows", lambda _: np.arange(1))
    write_images(images)
    put(images / KEYS[2], b"broken" if now == "broken" else content(POOL[-1]))
    before = files(out)
    with pytest.raises(softlabels.SoftlabelsError, match=KEYS[2]):
        label(images, out)
    assert files(out).items() >= {name: data for name, data in before.items() if name != "relabelled.json"}.items()
    put(images / KEYS[2], content(KEYS[2]))
    label(images, out)
    assert None not in served(out).values()


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_image_that_was_skipped_after_a_reader_looked_is_refused_by_it(
    tmp_path: Path, format: str, compression: str
) -> None:
    write_images(tmp_path / "images", BROKEN)
    settings = {"format": format, "compression": compression}
    label(tmp_path / "images", tmp_path / "store", part="0/2", **settings)
    labels = softlabels.open_labels(tmp_path / "store")
    assert labels.labelled(np.arange(len(KEYS))).sum() == len(KEYS) - 1  # nothing is known of the other part
    label(tmp_path / "images", tmp_path / "store", **settings)
    assert labels.logits([5], 0).abs().max() > 0
    for read in (labels.logits, labels.probabilities):
        with pytest.raises(softlabels.StoreError, match=BROKEN[1]):
            read([4], 0)
