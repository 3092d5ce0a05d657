"""A store that changes under a reader: an error that names the file, never a dead process, never zeros as labels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving import dump, flip
from reliability.ledger import note
from store.stores import card, fill, filled, make

import softlabels
from softlabels import StoreError
from softlabels.store import open_store

ROWS = np.arange(18)


def files_of(root: Path, number: int) -> list[Path]:
    """The files of a shard that hold labels."""
    (shard,) = root.glob(f"cnn_tiny/0000{number}-*")
    return [shard] if shard.is_file() else [path for path in sorted(shard.rglob("c/**/*")) if path.is_file()]


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_flipped_label_is_refused_when_it_is_first_read_and_the_others_are_read(
    photos: Path, tmp_path: Path, format: str
) -> None:
    dump(tmp_path / "s", photos, format=format)
    (shard,) = (tmp_path / "s").glob("cnn_tiny/00001-*")
    whole = softlabels.open_labels(tmp_path / "s").logits(ROWS, 0)
    flip(shard)
    labels = softlabels.open_labels(tmp_path / "s")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"00001-v0-2.*does not match its checksum.*softlabels repair"):
            labels.logits([1, 7], 0)
    others = np.r_[0:5, 10:18]
    assert (labels.logits(others, 0) == whole[others]).all()
    with pytest.raises(StoreError, match="00001-v0-2"):
        softlabels.train(student="cnn_tiny", labels=str(tmp_path / "s"), out=str(tmp_path / "run"), quiet=True)


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
@pytest.mark.parametrize("size", [0, 0.5, -1])
def test_a_shard_that_becomes_shorter_under_a_reader_is_an_error(
    photos: Path, tmp_path: Path, format: str, size: float
) -> None:
    dump(tmp_path / "s", photos, format=format)
    labels = softlabels.open_labels(tmp_path / "s")
    whole = labels.logits(ROWS, 0)
    for path in files_of(tmp_path / "s", 1):
        os.truncate(path, int(path.stat().st_size * size) if size >= 0 else path.stat().st_size - 1)
    for _ in range(2):
        with pytest.raises(StoreError, match="00001-v0-2"):
            labels.logits([7], 0)
    assert (labels.logits([0, 12], 1) == softlabels.open_labels(tmp_path / "s").logits([0, 12], 1)).all()
    assert (labels.logits([0], 0) == whole[0]).all()
    note("a shard cut off under an own loop")


UNSEEN = """
import os, sys
import numpy as np
import softlabels
from softlabels.store import _gather
labels = softlabels.open_labels(sys.argv[1])
labels.logits(np.arange(18), 0)
_gather.time.perf_counter = lambda: -1.0  # as under a load at which no look is due
for path in sys.argv[2:]:
    os.truncate(path, 0)
try:
    labels.logits([7], 0)
except softlabels.StoreError as problem:
    print(problem)
"""


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_shard_that_becomes_shorter_between_two_looks_kills_no_process(
    photos: Path, tmp_path: Path, format: str
) -> None:
    dump(tmp_path / "s", photos, format=format)
    words = [sys.executable, "-c", UNSEEN, str(tmp_path / "s"), *map(str, files_of(tmp_path / "s", 1))]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "00001-v0-2" in ended.stdout
    assert "became shorter while it was read" in ended.stdout
    note("a shard cut off under an own loop")


def test_workers_of_a_loader_refuse_a_shard_that_becomes_shorter(photos: Path, tmp_path: Path) -> None:
    import torch

    dump(tmp_path / "s", photos)
    labels = softlabels.open_labels(tmp_path / "s")
    pictures = softlabels.SoftLabelDataset(labels, softlabels.open_images(photos), size=8)
    list(pictures.labels.logits(ROWS, 0))
    for path in files_of(tmp_path / "s", 1):
        os.truncate(path, 0)
    loader = torch.utils.data.DataLoader(pictures, batch_size=4, num_workers=2)
    with pytest.raises(StoreError, match="00001-v0-2"):
        list(loader)
    note("a shard cut off under a loader's workers")


@pytest.mark.slow
def test_a_training_whose_shard_becomes_shorter_ends_with_one_line(photos: Path, tmp_path: Path) -> None:
    dump(tmp_path / "s", photos)
    command = [sys.executable, "-m", "softlabels.cli", "train", "--labels", "s", "--student", "cnn_tiny", "--size", "8"]
    command += ["--batch-size", "4", "--epochs", "100000", "--device", "cpu", "--workers", "0", "--out", "run"]
    command += ["--checkpoint-every", "5"]
    training = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while training.poll() is None and not list(tmp_path.glob("run/checkpoints/step-*")):
        time.sleep(0.05)
    for path in files_of(tmp_path / "s", 1):
        os.truncate(path, 0)
    said = training.communicate(timeout=60)[1]
    assert training.returncode == 1, said
    assert re.search(r"^error: .*00001-v0-2\.h5", said.splitlines()[-1])
    assert "Traceback" not in said
    note("a shard cut off under train")


def test_labels_that_are_replaced_by_equal_ones_are_read_on_and_by_others_refused(photos: Path, tmp_path: Path) -> None:
    dump(tmp_path / "s", photos)
    dump(tmp_path / "other", photos, weights=["random:3"])
    labels = softlabels.open_labels(tmp_path / "s")
    whole = labels.logits(ROWS, 0)
    (path,) = files_of(tmp_path / "s", 1)
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    assert (labels.logits(ROWS, 0) == whole).all()
    flip(path)  # in its place, as rsync --inplace does
    with pytest.raises(StoreError, match=r"00001-v0-2\.h5: .*checksum"):
        labels.logits(ROWS, 0)
    path.unlink()
    with pytest.raises(StoreError, match=r"00001-v0-2\.h5 is missing"):
        labels.logits(ROWS, 0)
    shutil.copy(tmp_path / "other/cnn_tiny/00001-v0-2.h5", path)
    with pytest.raises(StoreError, match=r"00001-v0-2\.h5 is of another teacher's card"):
        labels.logits(ROWS, 0)


def test_other_labels_of_the_same_teacher_are_refused_in_the_middle_of_a_reading(tmp_path: Path) -> None:
    labels = filled(tmp_path / "s")
    fill(make(tmp_path / "t").prepare("cnn", card()), 3, seed=1)
    labels.take(ROWS, ROWS % 3)
    shutil.copy(tmp_path / "t/cnn/00000-v0-3.h5", tmp_path / "s/cnn/00000-v0-3.h5")
    with pytest.raises(StoreError, match=r"00000-v0-3\.h5 was replaced by other labels while it was read"):
        labels.take(ROWS, ROWS % 3)
    open_store(tmp_path / "s").teacher("cnn").take(ROWS, ROWS % 3)  # who opens it now, reads it


def test_forked_processes_compare_what_their_parent_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softlabels.store._gather import LabelReader

    compared: list[Any] = []
    compute = LabelReader._crc32
    monkeypatch.setattr(LabelReader, "_crc32", lambda self, job: compared.append(job) or compute(self, job))
    labels = filled(tmp_path / "s", rows=60)
    labels.before_fork()
    labels.take(np.arange(20), np.zeros(20, int))
    assert len(compared) == 3  # one view of one shard, three arrays
    child = os.fork()
    if child == 0:
        labels.take(np.arange(60), np.zeros(60, int))
        os._exit(len(compared))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    labels.take(np.arange(60), np.zeros(60, int))
    assert len(compared) == 3  # the child did it


def test_a_damaged_header_is_named_by_an_own_loop(photos: Path, tmp_path: Path) -> None:
    dump(tmp_path / "s", photos)
    (path,) = files_of(tmp_path / "s", 1)
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    labels = softlabels.open_labels(tmp_path / "s")
    with pytest.raises(StoreError, match=r"00001-v0-2\.h5 has a header that does not match its checksum.*repair"):
        softlabels.SoftLabelDataset(labels, softlabels.open_images(photos), size=8)
    with pytest.raises(StoreError, match=r"00001-v0-2\.h5"):
        softlabels.train(student="cnn_tiny", labels=str(tmp_path / "s"), out=str(tmp_path / "run"), quiet=True)


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_pack_that_becomes_shorter_under_a_reader_is_an_error(photos: Path, tmp_path: Path, format: str) -> None:
    softlabels.pack(data=str(photos), out=str(tmp_path / "p"), quality="raw", max_side=0, format=format, quiet=True)
    images = softlabels.open_images(f"pack:{tmp_path / 'p'}")
    images.decode(3)
    path = tmp_path / "p/000000.h5" if format == "hdf5" else tmp_path / "p/000000.zarr/payload/c/0/0"
    for size in (path.stat().st_size // 2, 0):
        os.truncate(path, size)
        with pytest.raises(softlabels.SoftlabelsError, match="000000"):
            images.decode(17)
        note("a shard of a pack cut off under a reader")


def test_the_kept_settings_of_a_dump_are_compared_by_verify(photos: Path, tmp_path: Path) -> None:
    dump(tmp_path / "s", photos)
    assert softlabels.verify(labels=str(tmp_path / "s"), shards_only=True, quiet=True).ok
    path = tmp_path / "s/dump-cnn_tiny.yaml"
    path.write_text(path.read_text().replace("batch_size: 8", "batch_size: 9"))
    (problem,) = softlabels.verify(labels=str(tmp_path / "s"), shards_only=True, quiet=True).problems
    assert "dump-cnn_tiny.yaml does not match its checksum" in problem


def test_checkpoints_and_students_of_before_have_no_checksums_and_are_read(photos: Path, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    from softlabels.models import read_weights
    from softlabels.training.checkpoints import load_checkpoint

    out = tmp_path / "run"
    settings = {"student": "cnn_tiny", "data": str(photos), "epochs": 1, "checkpoint_every": 1, "device": "cpu"}
    softlabels.train(**settings, out=str(out), quiet=True)
    (path,) = (out / "checkpoints").glob("step-*/state.json")
    now = load_checkpoint(out / "checkpoints")
    path.write_text(json.dumps(json.loads(path.read_text())["state"]))
    before = load_checkpoint(out / "checkpoints")
    assert now is not None
    assert before is not None
    assert before[0] == now[0]
    assert before[1].keys() == now[1].keys()
    weights = read_weights(out / "last.safetensors")
    save_file(load_file(out / "last.safetensors"), out / "old.safetensors", metadata={"softlabels": "1"})
    assert read_weights(out / "old.safetensors").sha256 == weights.sha256
