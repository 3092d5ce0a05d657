"""Training in several processes: real ones, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import process_worker
import pytest
import torch
from safetensors.torch import load_file

import softlabels
from softlabels.learning import Learner, Settings
from softlabels.pictures import Pictures
from softlabels.processes import ALONE, Processes
from softlabels.training import Order
from softlabels.views import RECIPES, Frame

HERE = Path(__file__).parent
IMAGES, VIEWS, BATCH = 17, 3, 8  # 8 + 8 + 1 pictures per epoch: of two processes, one has none in the last step


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processes") / "shards"
    softlabels.dump(
        teacher=["cnn_small"], weights=["random"], data=str(photos), views=VIEWS, out=str(out), device="cpu", quiet=True
    )
    return out


def settings(shards: Path, photos: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "student": "process_worker:student",
        "size": 16,
        "labels": str(shards),
        "eval_data": str(photos),
        "limit": IMAGES,
        "batch_size": BATCH,
        "epochs": 3,
        "device": "cpu",
        "workers": 0,
        "checkpoint_every": 1,
        "ema": 0.9,
        "clip_grad": 1.0,
        "out": str(out),
        **more,
    }


def run_alone(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], notes: Path, cut: int = -1) -> None:
    """Run in this process; one that is cut off is interrupted."""
    notes.mkdir(exist_ok=True)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "learn", Learner.learn)  # put back afterwards
        if cut < 0:
            process_worker.main(given, notes, cut)
        else:
            with pytest.raises(KeyboardInterrupt):
                process_worker.main(given, notes, cut)


def run_together(given: dict[str, Any], notes: Path, processes: int, cut: int) -> None:
    """Run in so many processes, which are all cut off before the same step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "process_worker.py"), json.dumps(given), str(notes), str(cut)]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
    }
    started = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.DEVNULL)
        for rank in range(processes)
    ]
    try:
        assert all(process.wait(timeout=120) != 0 for process in started)
    finally:
        for process in started:
            process.kill()


def seen(notes: Path) -> dict[int, list[list[int]]]:
    """Row and view of each sample of each step, the shares in the order of their processes."""
    records = [json.loads(line) for path in sorted(notes.glob("*.jsonl")) for line in path.read_text().splitlines()]
    steps: dict[int, list[list[int]]] = {}
    for record in sorted(records, key=lambda record: (record["step"], record["rank"])):
        steps.setdefault(record["step"], []).extend(record["seen"])
    return steps


def wanted(photos: Path) -> dict[int, list[list[int]]]:
    images = softlabels.open_images(photos)
    from softlabels.runs._parts import limited

    pictures = Pictures(limited(images, IMAGES, 0), RECIPES.make("crop-flip"), 0, VIEWS, Frame(16))
    order = Order(pictures, Settings(batch_size=BATCH, epochs=3))
    shares = [share for epoch in range(3) for share in order.epoch(epoch)]
    return {
        step: [list(divmod(int(number), VIEWS)) for each in share.passes for number in each]
        for step, share in enumerate(shares)
    }


def test_a_run_goes_on_with_another_number_of_processes_where_it_stopped(
    shards: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 -> 2 -> 1 processes, cut in mid-epoch: every image once per epoch, in the same steps, to the same weights."""
    given = settings(shards, photos, tmp_path / "run")
    run_alone(monkeypatch, given, tmp_path / "notes", cut=1)
    run_together(given, tmp_path / "notes", 2, cut=5)
    run_alone(monkeypatch, given, tmp_path / "notes")
    assert seen(tmp_path / "notes") == wanted(photos)

    run_alone(monkeypatch, settings(shards, photos, tmp_path / "whole"), tmp_path / "other")
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], atol=1e-5, rtol=1e-4)
    timings = ["pictures_per_second", "seconds"]
    one, other = (pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=timings) for name in ("whole", "run"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["last"]["images"] == 18
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_torchrun_trains_a_student_with_batch_norm(shards: Path, photos: Path, tmp_path: Path) -> None:
    command = f"""-m torch.distributed.run --standalone --nproc-per-node 2 -m softlabels.cli train --student cnn_tiny
        --labels {shards} --eval-data {photos} --limit {IMAGES} --batch-size {BATCH} --epochs 2 --device cpu
        --accumulate 2 --out {tmp_path / "run"}""".split()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("top-1") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2 * 2


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_the_whole_whatever_the_number_of_processes(count: int) -> None:
    numbers = np.arange(5)
    shares = [Processes(rank, count).share(numbers) for rank in range(count)]
    np.testing.assert_array_equal(np.concatenate(shares), numbers)


def test_one_process_alone_changes_nothing() -> None:
    assert ALONE.first
    assert ALONE.total(torch.ones(2)).tolist() == [1, 1]
    assert ALONE.agreed("a") == "a"
