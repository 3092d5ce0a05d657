"""A run is known by what went into it, wherever that lies and however its place is spelled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.io import write_jpeg
from worlds import TINY, picture, write_pictures

import softlabels
from softlabels.errors import RunError

TRAIN: dict[str, Any] = {**TINY, "epochs": 2}


def labels(out: Path, photos: Path, **changes: Any) -> str:
    settings: dict[str, Any] = {"teacher": ["cnn_tiny"], "weights": ["random"], "views": 2, "device": "cpu"}
    softlabels.dump(**{**settings, "data": str(photos), "out": str(out), "quiet": True, **changes})
    return str(out)


def train(out: Path, **settings: Any) -> dict[str, Any]:
    return softlabels.train(**{**TRAIN, "out": str(out), **settings})


def cut_off(run: Path) -> None:
    """Leave the run as one that was killed behind its last checkpoint."""
    (run / "result.json").unlink()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos")


@pytest.mark.parametrize("finished", [True, False], ids=["done", "resumed"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": ["random:7"]}, "labels.cnn_tiny.weights_sha256"),
        ({"seed": 5}, "labels.store"),
        ({"codec": "dense:fp32"}, "labels.cnn_tiny.codec"),
        ({"amp": "bf16"}, "labels.cnn_tiny.precision fp32 then, bf16 now"),
        ({"teacher": ["cnn_small"]}, "labels.teachers cnn_tiny then, cnn_small now"),
        ({"recipe": "crop"}, "labels.store"),
    ],
)
def test_labels_that_were_dumped_anew_otherwise_are_another_run(
    tmp_path: Path, photos: Path, finished: bool, change: dict[str, Any], said: str
) -> None:
    store = labels(tmp_path / "shards", photos)
    train(tmp_path / "run", labels=store)
    if not finished:
        cut_off(tmp_path / "run")
    shutil.rmtree(store)
    labels(tmp_path / "shards", photos, **change)
    with pytest.raises(RunError, match=said) as refusal:
        train(tmp_path / "run", labels=store)
    assert "\n" not in str(refusal.value)
    assert "choose another `out`" in str(refusal.value)


@pytest.mark.parametrize("finished", [True, False], ids=["done", "resumed"])
def test_the_same_labels_anew_converted_moved_and_spelled_otherwise_are_the_same_run(
    tmp_path: Path, photos: Path, finished: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    labels(tmp_path / "g", photos)
    first = train(tmp_path / "run", labels="g", eval_data="photos")
    shutil.copytree("photos", "elsewhere/photos")
    softlabels.convert(labels="g", out="zarr", format="zarr", quiet=True)
    shutil.move("g", "moved")
    for place in ("moved", "moved/", "./moved", str(tmp_path / "moved"), "zarr"):
        if not finished:
            cut_off(tmp_path / "run")
        again = train(
            tmp_path / "run", labels=place, data="elsewhere/photos", eval_data="./elsewhere/photos/", quiet=False
        )
        said = capsys.readouterr().err
        assert ("is done already; nothing to do\n" if finished else "going on from step 6 of 6") in said
        assert again["last"] == first["last"]


@pytest.mark.parametrize("finished", [True, False], ids=["done", "resumed"])
def test_a_replaced_picture_is_another_run(tmp_path: Path, photos: Path, finished: bool) -> None:
    """In a folder, in a pack, and where it is only scored on."""
    held_out = write_pictures(tmp_path / "held-out", each=2)
    shutil.copytree(photos, tmp_path / "source")

    def pack() -> str:
        softlabels.pack(data=str(tmp_path / "source"), out=str(tmp_path / "pack"), quiet=True)
        return f"pack:{tmp_path / 'pack'}"

    packed = pack()
    runs = {
        "folder": ({"data": str(photos)}, "images: other images"),
        "pack": ({"data": packed}, "images: other images .*told apart by their checksums"),
        "scored": ({"data": packed, "eval_data": str(held_out)}, "other images"),
    }
    for name, (settings, _) in runs.items():
        train(tmp_path / "runs" / name, **settings)
        if not finished:
            cut_off(tmp_path / "runs" / name)
    for folder in (photos, tmp_path / "source", held_out):
        write_jpeg(picture(99), str(folder / "class-1" / "001.jpg"), quality=90)
    shutil.rmtree(tmp_path / "pack")
    pack()
    for name, (settings, said) in runs.items():
        with pytest.raises(RunError, match=said):
            train(tmp_path / "runs" / name, **settings)


def test_a_picture_of_the_same_size_in_bytes_is_noticed(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "bmp" / label).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "bmp" / label / f"{number}.bmp")
    train(tmp_path / "run", data=str(tmp_path / "bmp"))
    shutil.copy(tmp_path / "bmp/a/1.bmp", tmp_path / "bmp/b/2.bmp")
    with pytest.raises(RunError, match="other images under the same names"):
        train(tmp_path / "run", data=str(tmp_path / "bmp"))


@pytest.mark.parametrize("finished", [True, False], ids=["done", "resumed"])
def test_weights_that_were_trained_anew_are_another_run(tmp_path: Path, photos: Path, finished: bool) -> None:
    """First weights by --init and --weights, and those of a teacher in the loop."""
    before = tmp_path / "before"
    train(before, data=str(photos))
    weights = str(before / "best.safetensors")
    runs: dict[str, tuple[dict[str, Any], str]] = {
        "init": ({"init": str(before)}, "student.first weights"),
        "weights": ({"weights": weights}, "student.first weights"),
        "live": ({"teacher": [f"file:{before}"]}, "teachers"),
    }
    for name, (settings, _) in runs.items():
        train(tmp_path / name, data=str(photos), **settings)
        if not finished:
            cut_off(tmp_path / name)
    shutil.move(before, tmp_path / "kept")
    train(before, data=str(photos), seed=3)
    for name, (settings, said) in runs.items():
        with pytest.raises(RunError, match=said):
            train(tmp_path / name, data=str(photos), **settings)
    shutil.rmtree(before)
    shutil.copytree(tmp_path / "kept", before)
    for name, (settings, _) in runs.items():
        train(tmp_path / name, data=str(photos), **settings)


def test_views_that_were_added_later_make_no_other_run(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = labels(tmp_path / "shards", photos)
    whole = train(tmp_path / "whole", labels=store, epochs=4, checkpoint_every=3)
    train(tmp_path / "run", labels=store, epochs=4, checkpoint_every=3)
    labels(tmp_path / "shards", photos, views=5)
    train(tmp_path / "run", labels=store, epochs=4, checkpoint_every=3, quiet=False)
    assert "is done already" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run/checkpoints")
    cut_off(tmp_path / "run")
    train(tmp_path / "run", labels=store, epochs=4, checkpoint_every=3, quiet=False)
    assert "2 views of 18 images" in capsys.readouterr().err
    ours, theirs = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert whole["steps"] == 12
    cut_off(tmp_path / "run")
    shutil.rmtree(store)
    labels(tmp_path / "shards", photos, views=1)
    with pytest.raises(softlabels.StoreError, match=r"begun with 2 views of .*, which has 1 now"):
        train(tmp_path / "run", labels=store, epochs=4, checkpoint_every=3)


def test_a_second_teacher_is_named_where_all_were_learnt_from(tmp_path: Path, photos: Path) -> None:
    store = labels(tmp_path / "shards", photos)
    train(tmp_path / "run", labels=store)
    labels(tmp_path / "shards", photos, teacher=["cnn_small"])
    with pytest.raises(RunError, match=r"labels.teachers cnn_tiny then, cnn_small, cnn_tiny now .*`teachers`"):
        train(tmp_path / "run", labels=store)
    train(tmp_path / "run", labels=store, teachers=["cnn_tiny"])


def test_what_is_gone_is_not_compared_and_that_is_said(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = labels(tmp_path / "shards", photos)
    result = train(tmp_path / "run", labels=store)
    shutil.rmtree(store)
    assert train(tmp_path / "run", labels=store, quiet=False) == result
    assert "is not there to be compared" in capsys.readouterr().err


def test_runs_of_other_versions_are_compared_by_what_both_know(tmp_path: Path, photos: Path) -> None:
    """Settings and inputs that came later, or are gone, make no other run where they were at their default."""
    data = str(photos)
    result = train(tmp_path / "run", data=data)
    config, inputs = tmp_path / "run" / "config.yaml", tmp_path / "run" / "inputs.json"
    text, known = config.read_text(), json.loads(inputs.read_text())
    assert "\nclip_grad: null\n" in text
    older = {name: value for name, value in known["inputs"].items() if name != "held-out images"}
    config.write_text(text.replace("\nclip_grad: null\n", "\nhas_gone: 3\n"))
    inputs.write_text(json.dumps({**known, "inputs": {**older, "more": 1}}))
    assert train(tmp_path / "run", data=data) == result
    with pytest.raises(RunError, match=r"clip_grad: not set there, 1.0 now"):
        train(tmp_path / "run", data=data, clip_grad=1.0)
    inputs.write_text(json.dumps({**known, "chosen": {"has_gone": 3}}))
    with pytest.raises(RunError, match="has_gone: 3 there, and this version has no such setting"):
        train(tmp_path / "run", data=data)
    inputs.unlink()
    config.write_text(text)
    assert train(tmp_path / "run", data=data) == result
    assert train(tmp_path / "run", data=f"{data}/") == result
    shutil.copytree(photos, tmp_path / "copy")
    with pytest.raises(RunError, match="data: "):
        train(tmp_path / "run", data=str(tmp_path / "copy"))


@pytest.mark.parametrize("name", ["result.json", "inputs.json", "config.yaml"])
@pytest.mark.parametrize("damage", [b"", b'{"a": ', b"[1]", b"\xff\xfe"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(
    softlabels_command: Callable, tmp_path: Path, photos: Path, name: str, damage: bytes
) -> None:
    options = ("--student", "cnn_tiny", "--data", photos, "--epochs", 1, "--device", "cpu", "--out", "run")
    assert softlabels_command("train", *options).exit_code == 0
    (tmp_path / "run" / name).write_bytes(damage)
    again = softlabels_command("train", *options)
    if not damage and name == "config.yaml":
        return  # an empty config has every default
    assert again.exit_code in (1, 2), again.output
    assert f"run/{name}" in again.output.splitlines()[-1]


@pytest.mark.parametrize("damage", [b"", b'{"a": ', b"[1]", b"\xff\xfe"])
def test_damaged_records_come_back_from_the_checkpoint(
    softlabels_command: Callable, tmp_path: Path, photos: Path, damage: bytes
) -> None:
    options = ("--student", "cnn_tiny", "--data", photos, "--epochs", 2, "--device", "cpu", "--out", "run")
    assert softlabels_command("train", *options).exit_code == 0
    records = tmp_path / "run" / "metrics.jsonl"
    whole = records.read_bytes()
    cut_off(tmp_path / "run")
    records.write_bytes(damage)
    assert softlabels_command("train", *options).exit_code == 0
    assert records.read_bytes() == whole


def test_two_processes_never_train_in_one_folder(tmp_path: Path, photos: Path) -> None:
    """The second is refused while the first lives, and goes on when it was killed."""
    options = ["--student", "cnn_tiny", "--data", str(photos), "--batch-size", "4", "--device", "cpu", "--out", "run"]
    command = [sys.executable, "-m", "softlabels.cli", "train", *options, "--epochs", "100000", "--workers", "0"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "run/config.yaml").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        settings = {"data": str(photos), "batch_size": 4, "epochs": 100_000}
        with pytest.raises(RunError, match=rf"another process \({first.pid}\) trains in"):
            train(tmp_path / "run", **settings)
    finally:
        first.kill()
        first.wait()
    shutil.rmtree(tmp_path / "run/checkpoints", ignore_errors=True)
    (tmp_path / "run/config.yaml").unlink()
    train(tmp_path / "run", data=str(photos))


def test_a_sweep_holds_its_folder(tmp_path: Path, photos: Path) -> None:
    from softlabels.training.folder import held

    settings = {**TRAIN, "data": str(photos), "out": str(tmp_path / "sweep"), "epochs": 1}
    with held(tmp_path / "sweep"), pytest.raises(RunError, match="another process"):
        softlabels.sweep(grid=["lr=0.001"], **settings)
    with held(tmp_path / "sweep/lr=0.001/seed-0"), pytest.raises(RunError, match="another process"):
        softlabels.sweep(grid=["lr=0.001"], **settings)
    assert len(softlabels.sweep(grid=["lr=0.001"], **settings).table) == 1


def test_a_lock_names_the_process_and_of_another_machine_that_too(tmp_path: Path) -> None:
    from softlabels.training.folder import RUN_LOCK, held

    with held(tmp_path):
        with pytest.raises(RunError, match=rf"another process \({os.getpid()}\) trains in"), held(tmp_path):
            pass
        (tmp_path / RUN_LOCK).write_text("123 node7")
        with pytest.raises(RunError, match=r"another process \(123 on node7\) trains in"), held(tmp_path):
            pass
