"""Training in several processes: real ones, over gloo on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import process_worker
import pytest
import torch
from safetensors.torch import load_file

import softlabels
from softlabels.loading.batches import LabelledViews
from softlabels.loading.distributed import SINGLE, Ranks
from softlabels.loading.views import ViewDataset
from softlabels.models import build, preprocessing
from softlabels.training.loop import StepSampler
from softlabels.training.settings import TrainSettings
from softlabels.training.state import Runtime, TrainState, check_ranks, lone_batch_norm
from softlabels.views import RECIPES, ImageSpec

HERE = Path(__file__).parents[1]
IMAGES, VIEWS, BATCH = 17, 4, 8  # 8 + 8 + 1 images per epoch: of two processes, one has none in the last step


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


def run_alone(given: dict[str, Any], notes: Path, cut: int = -1) -> None:
    """Run in this process; one that is cut off is interrupted."""
    notes.mkdir(exist_ok=True)
    with contextlib.nullcontext() if cut < 0 else pytest.raises(KeyboardInterrupt):
        process_worker.main(given, notes, cut)


def run_together(given: dict[str, Any], notes: Path, processes: int, cut: int, fails: bool = True) -> list[str]:
    """Run in so many processes, which are all cut off before the same step, if at all; returns what each printed."""
    notes.mkdir(exist_ok=True)
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
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        printed = [process.communicate(timeout=120)[1] for process in started]
        assert all((process.returncode != 0) == fails for process in started), printed
        return printed
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
    from softlabels.loading.opening import limited

    pictures = ViewDataset(limited(images, IMAGES, 0), RECIPES.make("crop-flip"), 0, VIEWS, ImageSpec(16))
    sampler = StepSampler(LabelledViews(pictures), TrainSettings(batch_size=BATCH, epochs=3))
    steps = [step for epoch in range(3) for step in sampler.epoch(epoch)]
    return {
        number: [list(divmod(int(sample), VIEWS)) for each in step.passes for sample in each]
        for number, step in enumerate(steps)
    }


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_where_it_stopped(
    shards: Path, photos: Path, tmp_path: Path
) -> None:
    """1 -> 2 -> 1 processes, cut in mid-epoch: every image once per epoch, in the same steps, to the same weights."""
    given = settings(shards, photos, tmp_path / "run")
    run_alone(given, tmp_path / "notes", cut=1)
    run_together(given, tmp_path / "notes", 2, cut=5)
    run_alone(given, tmp_path / "notes")
    assert seen(tmp_path / "notes") == wanted(photos)

    run_alone(settings(shards, photos, tmp_path / "whole"), tmp_path / "other")
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], atol=1e-5, rtol=1e-4)
    timings = ["pictures_per_second", "seconds"]
    one, other = (pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=timings) for name in ("whole", "run"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["last"]["images"] == 18
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"sync_bn": True}, "`sync_bn` needs CUDA"),
        ({"batch_size": 1}, "`batch_size=1` has no image for some of the 2 processes"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_a_line(given: dict[str, Any], refusal: str) -> None:
    check_ranks(TrainSettings(**given), Runtime(torch.device("cpu")))  # one process can
    with pytest.raises(softlabels.ConfigError, match=refusal) as refused:
        check_ranks(TrainSettings(**given), Runtime(torch.device("cpu"), ranks=Ranks(0, 2)))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_frozen_and_unused_layers_train_in_two_processes_as_in_one(shards: Path, photos: Path, tmp_path: Path) -> None:
    """A layer that no image reaches has no gradient, and one of rate 0 wants none: no process waits for them."""
    common = {"student": "process_worker:spare", "epochs": 2, "lr_scale": "body=0", "accumulate": 2, "optimizer": "sgd"}
    one, two = (settings(shards, photos, tmp_path / name, **common) for name in ("one", "two"))
    run_alone(one, tmp_path / "notes")
    run_together(two, tmp_path / "more", 2, cut=-1, fails=False)
    alone, together = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert {"body.weight", "spare.weight", "head.weight"} <= set(alone)
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, together[name], atol=1e-6, rtol=1e-5)


UNEVEN = [
    {"alpha": 0.5, "min_confidence": "middle", "wrong_teacher": "hard", "term": ["0.5*wsl"], "accumulate": 2},
    pytest.param({"loss": "dkd", "alpha": 0.2, "alpha_end": 1.0}, marks=pytest.mark.slow),
    pytest.param(
        {"alpha": 0.5, "ignore_label": 1, "normalization": "batch-size", "soft_warmup_epochs": 1.5, "accumulate": 2},
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"alpha": 0.5, "min_confidence": "middle", "term": ["0.5*hint@dropout:3"], "aux_heads": "1,3", "accumulate": 2},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("given", UNEVEN)
def test_the_mean_is_over_the_rows_that_count_in_all_processes_and_passes(
    photos: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    """Two processes whose shares hold other numbers of labels and of kept teachers make the steps of one."""
    files = sorted(path.relative_to(photos.parent) for path in photos.rglob("*.*") if path.is_file())
    some = [f"{path},{path.parts[-2] if number % 5 > 1 else ''}" for number, path in enumerate(files)]
    table = photos.parent / f"{tmp_path.name}.csv"
    table.write_text("\n".join(["path,label", *some]) + "\n")
    dumped = {"teacher": ["cnn_small"], "weights": ["random:3"], "device": "cpu", "quiet": True, "recipe": "crop-flip"}
    softlabels.dump(data=f"csv:{table}", views=VIEWS, out=str(tmp_path / "labels"), output="dropout=int8", **dumped)
    labels = softlabels.open_labels(tmp_path / "labels")
    middle = round(float(labels.probabilities(range(len(labels)), 0).max(-1).values.median()), 6)
    given = {name: middle if value == "middle" else value for name, value in given.items()}
    common = {"optimizer": "sgd", "lr": 0.1, "epochs": 2, "warmup_epochs": 0, "clip_grad": None, "ema": None, **given}
    one, two = (settings(tmp_path / "labels", photos, tmp_path / name, **common) for name in ("one", "two"))
    run_alone(one, tmp_path / "notes")
    run_together(two, tmp_path / "more", 2, cut=-1, fails=False)
    assert {step: sorted(each) for step, each in seen(tmp_path / "notes").items()} == {
        step: sorted(each) for step, each in seen(tmp_path / "more").items()
    }
    alone, together = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, together[name], atol=1e-6, rtol=1e-5)
    tables = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two")]
    timings = ["pictures_per_second", "seconds"]
    some, other = (each.drop(columns=timings) for each in tables)
    pd.testing.assert_frame_equal(some, other, rtol=1e-5)


def test_a_norm_of_one_value_takes_its_running_statistics_as_they_are() -> None:
    norm = torch.nn.BatchNorm1d(3)
    norm(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    picture, before = torch.ones(1, 3), {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    wanted = (picture - before["running_mean"]) / (before["running_var"] + norm.eps).sqrt()
    with lone_batch_norm(norm):
        torch.testing.assert_close(norm(picture), wanted)
    assert norm.training
    for name in ("running_mean", "running_var"):
        assert torch.equal(norm.state_dict()[name], before[name])
    two = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    with lone_batch_norm(norm):
        assert torch.equal(norm(two), torch.nn.BatchNorm1d(3)(two))


def test_the_one_picture_left_over_of_an_epoch_is_learnt_too(photos: Path, tmp_path: Path) -> None:
    common = {"student": "process_worker:pooled", "size": 16, "data": str(photos), "device": "cpu", "quiet": True}
    left = {**common, "limit": 9, "epochs": 2, "workers": 0}
    result = softlabels.train(batch_size=8, out=str(tmp_path / "left"), **left)
    assert result["steps"] == 4
    with pytest.raises(softlabels.ConfigError, match="need 2 images or more, and a pass of `batch_size=1`"):
        softlabels.train(batch_size=1, out=str(tmp_path / "no"), **left)


def test_statistics_of_student_and_average_are_settled_in_one_order_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes that took the two in different orders would mix the one's numbers with the other's."""
    for _ in range(20):
        settings = TrainSettings(ema=0.9)
        runtime = Runtime(torch.device("cpu"))
        state = TrainState(build("cnn_tiny", 3), preprocessing("cnn_tiny"), settings, 4, 0, runtime)
        settled: list[Any] = []
        with monkeypatch.context() as patched:
            patched.setattr(Ranks, "average_buffers", lambda _, network, to=settled: to.append(network))
            state.average_statistics()
        assert settled == [state.network, state.best_network]


@pytest.mark.slow
def test_torchrun_trains_a_student_with_batch_norm(shards: Path, photos: Path, tmp_path: Path) -> None:
    command = f"""-m torch.distributed.run --standalone --nproc-per-node 2 -m softlabels.cli train --student cnn_tiny
        --labels {shards} --eval-data {photos} --limit {IMAGES} --batch-size {BATCH} --epochs 2 --device cpu
        --accumulate 2 --out {tmp_path / "run"}""".split()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2 * 2


@pytest.mark.slow
def test_processes_end_with_their_launcher_and_the_same_command_goes_on(photos: Path, tmp_path: Path) -> None:
    """Of a torchrun that is killed nothing is left that could write beside a restart, or keep it out."""
    train = f"""-m softlabels.cli train --student cnn_tiny --data {photos} --batch-size {BATCH} --device cpu --workers 0
        --epochs 100000 --checkpoint-every 1 --out {tmp_path / "run"}""".split()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([sys.executable, *command, *train], stdout=log, stderr=log, cwd=HERE.parent)
        try:
            patiently(lambda: any((tmp_path / "run" / "checkpoints").glob("step-*")))
            ranks = children(launcher.pid)
            assert len(ranks) == 2
        finally:
            launcher.kill()
            launcher.wait()
    patiently(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))
    assert "torchrun is gone" in (tmp_path / "log").read_text()
    step = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    with subprocess.Popen([sys.executable, *train], stderr=subprocess.PIPE, text=True, cwd=HERE.parent) as restart:
        assert restart.stderr is not None
        assert any(f"going on from step {step:,}" in line for line in restart.stderr)
        restart.kill()


def patiently(there: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not there():
        assert time.monotonic() < ends
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_the_whole_whatever_the_number_of_processes(count: int) -> None:
    numbers = np.arange(5)
    shares = [Ranks(rank, count).slice(numbers) for rank in range(count)]
    np.testing.assert_array_equal(np.concatenate(shares), numbers)


def test_one_process_alone_changes_nothing() -> None:
    assert SINGLE.first
    assert SINGLE.all_reduce(torch.ones(2)).tolist() == [1, 1]
    assert SINGLE.broadcast("a") == "a"
