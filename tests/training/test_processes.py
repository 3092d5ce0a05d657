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
from timm.layers import BatchNormAct2d

import softlabels
from softlabels.loading.views import Pictures
from softlabels.models import build, preprocessing
from softlabels.training.distributed import ALONE, Processes, lone_batch_norm, synced_batch_norm
from softlabels.training.loop import Order
from softlabels.training.settings import Settings
from softlabels.training.state import Learner, Place
from softlabels.views import RECIPES, ImageSpec

HERE = Path(__file__).parents[1]
IMAGES, VIEWS, BATCH = 17, 4, 8  # 8 + 8 + 1 pictures per epoch: of two processes, one has none in the last step


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


def run_together(given: dict[str, Any], notes: Path, processes: int, cut: int, fails: bool = True) -> None:
    """Run in so many processes, which are all cut off before the same step, if at all."""
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
            stderr=subprocess.DEVNULL if fails else None,
        )
        for rank in range(processes)
    ]
    try:
        assert all((process.wait(timeout=120) != 0) == fails for process in started)
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

    pictures = Pictures(limited(images, IMAGES, 0), RECIPES.make("crop-flip"), 0, VIEWS, ImageSpec(16))
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
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_common_batch_statistics_make_two_processes_the_same_as_one(
    shards: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the last step leaves one of them without a picture."""
    common = {"student": "process_worker:normed", "epochs": 2, "sync_bn": True, "alpha": 0.5, "optimizer": "sgd"}
    run_alone(monkeypatch, settings(shards, photos, tmp_path / "one", **common), tmp_path / "notes")
    together = settings(shards, photos, tmp_path / "two", **common)
    run_together(together, tmp_path / "more", 2, cut=-1, fails=False)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert seen(tmp_path / "notes") == seen(tmp_path / "more")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-5, rtol=1e-4)


UNEVEN = [
    {"alpha": 0.5, "min_confidence": "middle", "wrong_teacher": "hard", "term": ["0.5*wsl"], "accumulate": 2},
    {"loss": "dkd", "alpha": 0.2, "alpha_end": 1.0},
]


@pytest.mark.parametrize("given", UNEVEN)
def test_the_mean_is_over_the_rows_that_count_in_all_processes_and_passes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    """Two processes whose shares hold other numbers of labels and of kept teachers make the steps of one."""
    files = sorted(path.relative_to(photos.parent) for path in photos.rglob("*.*") if path.is_file())
    some = [f"{path},{path.parts[-2] if number % 5 > 1 else ''}" for number, path in enumerate(files)]
    table = photos.parent / f"{tmp_path.name}.csv"
    table.write_text("\n".join(["path,label", *some]) + "\n")
    dumped = {"teacher": ["cnn_small"], "weights": ["random:3"], "device": "cpu", "quiet": True, "recipe": "crop-flip"}
    softlabels.dump(data=f"csv:{table}", views=VIEWS, out=str(tmp_path / "labels"), **dumped)
    labels = softlabels.open_labels(tmp_path / "labels")
    middle = round(float(labels.probabilities(range(len(labels)), 0).max(-1).values.median()), 6)
    given = {name: middle if value == "middle" else value for name, value in given.items()}
    common = {"optimizer": "sgd", "lr": 0.1, "epochs": 2, "warmup_epochs": 0, "clip_grad": None, "ema": None, **given}
    one, two = (settings(tmp_path / "labels", photos, tmp_path / name, **common) for name in ("one", "two"))
    run_alone(monkeypatch, one, tmp_path / "notes")
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
    for block in (lone_batch_norm(), synced_batch_norm(ALONE)):
        with block:
            torch.testing.assert_close(norm(picture), wanted)
        for name in ("running_mean", "running_var"):
            assert torch.equal(norm.state_dict()[name], before[name])
    two = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    with lone_batch_norm():
        assert torch.equal(norm(two), torch.nn.BatchNorm1d(3)(two))


def test_the_one_picture_left_over_of_an_epoch_is_learnt_too(photos: Path, tmp_path: Path) -> None:
    common = {"student": "process_worker:pooled", "size": 16, "data": str(photos), "device": "cpu", "quiet": True}
    left = {**common, "limit": 9, "epochs": 2, "workers": 0}
    result = softlabels.train(batch_size=8, out=str(tmp_path / "left"), **left)
    assert result["steps"] == 4
    with pytest.raises(softlabels.ConfigError, match="need 2 pictures or more, and a pass of `batch_size=1`"):
        softlabels.train(batch_size=1, out=str(tmp_path / "no"), **left)


def test_statistics_of_student_and_average_are_settled_in_one_order_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes that took the two in different orders would mix the one's numbers with the other's."""
    for _ in range(20):
        settings = Settings(ema=0.9)
        learner = Learner(build("cnn_tiny", 3), preprocessing("cnn_tiny"), settings, 4, 0, Place(torch.device("cpu")))
        settled: list[Any] = []
        with monkeypatch.context() as patched:
            patched.setattr(Processes, "average_buffers", lambda _, network, to=settled: to.append(network))
            learner.settle()
        assert settled == [learner.network, learner.best_network]


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (7, 4)])
def test_common_batch_statistics_of_one_process_are_its_own(shape: tuple[int, ...]) -> None:
    layers: list[Any] = [BatchNormAct2d(4) if len(shape) == 4 else torch.nn.BatchNorm1d(4) for _ in range(2)]
    pictures = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    with synced_batch_norm(ALONE):
        said = [layers[0](pictures[0])]
    said.append(layers[1](pictures[1]))
    torch.testing.assert_close(said[0], said[1])
    for each in said:
        (each**3).sum().backward()
    torch.testing.assert_close(pictures[0].grad, pictures[1].grad, atol=1e-4, rtol=1e-4)
    for (name, some), other in zip(layers[0].state_dict().items(), layers[1].state_dict().values(), strict=True):
        if name != "num_batches_tracked":
            torch.testing.assert_close(some, other)


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
