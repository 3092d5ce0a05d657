"""Every wait for another process says what it waits for, and ends with one line that names the cause."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import write_pictures

import softlabels
from softlabels.core import progress as terminal
from softlabels.loading import batches as samples
from softlabels.loading.batches import LabelledViews, batches
from softlabels.loading.views import ViewDataset
from softlabels.views import RECIPES, ImageSpec


def made_by(workers: int, root: Path, size: int = 8, batch: int = 3) -> list[samples.Batch]:
    pictures = ViewDataset(softlabels.open_images(root), RECIPES.make("crop"), 0, 1, ImageSpec(size))
    numbers = [np.arange(start, start + batch) for start in range(0, len(pictures) - batch + 1, batch)]
    return list(batches(LabelledViews(pictures), numbers, workers=workers))


def test_a_long_wait_is_told_and_a_short_one_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "WAIT_SECONDS", 0.1)
    with terminal.waiting("a thing that is quick"):
        pass
    with terminal.waiting("rank 3"):
        for _ in range(100):
            time.sleep(0.1)
            if "rank 3" in (said := capsys.readouterr().err):
                break
    assert "waiting for rank 3, 0." in said or "waiting for rank 3, 1." in said
    assert "quick" not in said


def test_a_bad_image_in_a_worker_process_is_told_as_in_this_one(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    said = []
    for workers in (0, 2):
        with pytest.raises(softlabels.DataError, match=r"003\.jpg cannot be decoded") as caught:
            made_by(workers, root)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]


def test_workers_that_shared_memory_has_no_room_for_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "shared_memory", lambda: 1_000_000)
    with pytest.raises(softlabels.ConfigError, match=r"/dev/shm has 1\.0 MB free, and 2 worker processes need 1\.2 MB"):
        made_by(2, photos, size=256)
    assert len(made_by(2, photos, size=128)) == 6  # with fewer batches ahead
    assert len(made_by(0, photos, size=256)) == 6


def test_shared_memory_that_fills_up_ends_the_wait(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = iter([1 << 30])
    monkeypatch.setattr(samples, "shared_memory", lambda: next(rooms, 10))
    monkeypatch.setattr(samples, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(LabelledViews, "rendered", lambda *_: time.sleep(60))
    with pytest.raises(softlabels.SoftlabelsError, match="/dev/shm is full: a batch takes 576 B and 10 B are free"):
        made_by(1, photos)


@pytest.mark.slow
def test_a_batch_that_never_comes_is_not_waited_for_for_ever(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(samples, "_LONGEST_WAIT", 0.1)
    monkeypatch.setattr(LabelledViews, "rendered", lambda *_: time.sleep(60))
    with pytest.raises(softlabels.SoftlabelsError, match="no batch came from 1 worker processes"):
        made_by(1, photos)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGSEGV, r"ended with SIGSEGV as it decoded .*00\d\.jpg; repair or remove that image"),
        (signal.SIGKILL, r"was killed \(SIGKILL\), most likely as memory ran out"),
        (signal.SIGBUS, "/dev/shm is full"),
    ],
)
def test_a_worker_that_dies_is_told_with_its_image(
    photos: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, said: str
) -> None:
    from torchvision import io

    monkeypatch.setattr(samples, "_LOOK_SECONDS", 1)
    here = os.getpid()

    def dies(*_: object, **__: object) -> torch.Tensor:
        assert os.getpid() != here
        signal.signal(how, signal.SIG_DFL) if how != signal.SIGKILL else None
        os.kill(os.getpid(), how)
        raise AssertionError

    monkeypatch.setattr(io, "decode_image", dies)
    with pytest.raises(softlabels.SoftlabelsError, match=said) as caught:
        made_by(1, photos)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_whose_other_processes_never_come_ends_in_a_line(tmp_path: Path) -> None:
    code = (
        "import datetime, torch.distributed as dist\n"
        "from softlabels.core import progress\n"
        "from softlabels.loading import distributed\n"
        "progress.WAIT_SECONDS = 0.5\n"
        "real = dist.init_process_group\n"
        "dist.init_process_group = lambda how, timeout: real(how, timeout=datetime.timedelta(seconds=3))\n"
        "try:\n"
        "    with distributed.process_group(): pass\n"
        "except distributed.RunError as problem: print(problem)\n"
    )
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29517"}
    environment = {**os.environ, **place, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert "waiting for the other 1 processes of this run (WORLD_SIZE) at localhost:29517" in done.stderr
    assert "the 1 other processes of this run did not come together at localhost:29517" in done.stdout


@pytest.mark.slow
def test_the_advice_to_skip_is_given_where_one_can(softlabels_command: Callable, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    (root / "class-1" / "003.jpg").write_bytes(b"")
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", root, "--views", 1, "--device", "cpu")
    said = softlabels_command(*dump).output
    assert "empty (0 bytes)" in said and "--on-bad-image skip" in said
    skipping = softlabels_command(*dump, "--on-bad-image", "skip")
    assert skipping.exit_code == 0 and "skipped class-1/003.jpg" in skipping.output
    assert "--on-bad-image" not in skipping.output
    train = ("train", "--student", "cnn_tiny", "--size", 16, "--data", root, "--epochs", 1, "--device", "cpu")
    said = softlabels_command(*train).output
    assert "empty (0 bytes)" in said and "--on-bad-image" not in said


def loaded_in_a_pool(root: str) -> int:
    return sum(len(batch) for batch in made_by(2, Path(root)))


def test_workers_are_threads_where_a_process_may_have_no_children(photos: Path) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(loaded_in_a_pool, (str(photos),)) == 18
