"""Training on a GPU: as on a CPU within rounding, in every way that the options have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpus import DEVICE, memory, needs_cuda, needs_gpu, tf32
from safetensors.torch import load_file
from torch import Tensor

import softlabels
from softlabels.codecs import CODECS, SparseCodec
from softlabels.losses import LOSSES, SparseLoss
from softlabels.models.devices import sent
from softlabels.training.state import TrainState

pytestmark = [pytest.mark.cuda, needs_gpu]
SPARSE = [kind for kind in LOSSES.names if isinstance(LOSSES.make(kind), SparseLoss)]


@pytest.fixture(scope="module")
def store(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cuda") / "shards"
    softlabels.dump(
        teacher=["cnn_small"], weights=["random"], data=str(photos), views=4, out=str(out), device="cpu", quiet=True,
        codec="topk:2", workers=0,
    )  # fmt: skip
    return out


def train(store: Path, out: Path, **settings: Any) -> dict[str, Tensor]:
    """The weights of a student after four epochs of three steps."""
    usual = {"student": "cnn_tiny", "batch_size": 6, "epochs": 4, "lr": 1e-2, "quiet": True, "workers": 0}
    softlabels.train(labels=str(store), out=str(out), **{**usual, "device": DEVICE, "warmup_epochs": 0, **settings})
    return load_file(out / "last.safetensors")


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of all floating weights over that of the weights."""
    pairs = [(one[name].double(), other[name].double()) for name in other if other[name].is_floating_point()]
    most = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((most / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)


def test_a_student_learns_what_it_learns_on_a_cpu(store: Path, tmp_path: Path) -> None:
    with tf32(False):
        there = train(store, tmp_path / "there")
    assert apart(there, train(store, tmp_path / "here", device="cpu")) < 1e-2


@pytest.mark.parametrize(
    "given",
    [
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"channels_last": True},
        {"workers": "threads:2"},
        {"workers": 2},
        {"accumulate": 2, "batch_size": 3},
        {"clip_grad": 1.0},
    ],
    ids=str,
)
def test_options_for_speed_change_little(store: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    plain, other = train(store, tmp_path / "plain"), train(store, tmp_path / "other", **given)
    assert all(each.isfinite().all() for each in other.values())
    if "accumulate" not in given and "clip_grad" not in given:  # batch norms and clipped steps see something else
        assert apart(other, plain) < (0.2 if "amp" in given else 1e-2)


def test_a_compiled_student_learns_the_same(store: Path, tmp_path: Path) -> None:
    assert apart(train(store, tmp_path / "c", compile=True), train(store, tmp_path / "plain")) < 1e-2


def test_a_training_goes_on_where_it_was_stopped(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"ema": 0.9, "amp": "fp16", "checkpoint_every": 1}
    whole = train(store, tmp_path / "whole", **given)
    begin, made = TrainState.begin, []

    def stop(state: TrainState, *rest: Any) -> None:
        made.append(1)
        if len(made) == 8:
            raise KeyboardInterrupt
        begin(state, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(TrainState, "begin", stop)
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path / "again", **given)
    assert apart(train(store, tmp_path / "again", **given), whole) < 1e-3


def test_the_average_is_that_of_a_cpu(store: Path, tmp_path: Path) -> None:
    with tf32(False):
        there = train(store, tmp_path / "there", ema=0.9)
    assert apart(there, train(store, tmp_path / "here", ema=0.9, device="cpu")) < 1e-2


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_a_teacher_in_the_loop_runs_beside_the_student(photos: Path, tmp_path: Path, amp: str | None) -> None:
    result = softlabels.train(
        data=str(photos), teacher=["cnn_small"], teacher_weights=["random"], student="cnn_tiny", epochs=1, batch_size=6,
        device=DEVICE, amp=amp, out=str(tmp_path / "run"), quiet=True, workers=0,
    )  # fmt: skip
    assert result["steps"] == 3


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize(("rows", "classes"), [(7, 30), (600, 21841)])
def test_sparse_losses_and_their_gradients_are_the_cpus(kind: str, rows: int, classes: int) -> None:
    chance = torch.Generator().manual_seed(0)
    student = torch.randn(rows, classes, generator=chance)
    codec, loss = CODECS.make("topk:10"), LOSSES.make(kind)
    assert isinstance(codec, SparseCodec) and isinstance(loss, SparseLoss)
    target = codec.sparse(codec.encode(torch.randn(rows, classes, generator=chance)), classes, temperature=2.0)
    values, slopes = [], []
    for device in ("cpu", DEVICE):
        said = student.clone().to(device).requires_grad_()
        there = target.map(lambda tensor, device=device: sent(tensor, torch.device(device)))
        value = loss.sparse(said, there, temperature=2.0)
        value.backward()
        values.append(value.detach().cpu())
        slopes.append(said.grad.cpu())  # type: ignore[union-attr]
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-7)


@needs_cuda
def test_what_is_sent_comes_from_page_locked_memory_and_arrives() -> None:
    given = torch.arange(100_000)
    arrived = sent(given, torch.device("cuda"))
    assert arrived.device.type == "cuda"
    assert torch.equal(arrived.cpu(), given)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_common_batch_statistics_make_two_processes_the_same_as_one(store: Path, tmp_path: Path) -> None:
    """Even where the last step has one image for both of them."""
    given = {
        "student": "process_worker:normed",
        "size": 16,
        "limit": 17,
        "batch_size": 8,
        "optimizer": "sgd",
        "epochs": 2,
    }
    with tf32(False):
        one = train(store, tmp_path / "one", **given, alpha=0.5)
        command = f"""-m torch.distributed.run --standalone --nproc-per-node 2 -m softlabels.cli train --labels {store}
            --student process_worker:normed --size 16 --limit 17 --batch-size 8 --optimizer sgd --epochs 2 --alpha 0.5
            --lr 1e-2 --warmup-epochs 0 --workers 0 --device cuda --sync-bn --out {tmp_path / "two"}""".split()
        subprocess.run([sys.executable, *command], check=True, timeout=300, cwd=Path(__file__).parents[1])
    assert apart(load_file(tmp_path / "two" / "last.safetensors"), one) < 1e-3


@needs_cuda
def test_a_training_that_does_not_fit_says_which_settings_do(softlabels_command: Callable, photos: Path) -> None:
    command = ("train", "--data", photos, "--student", "resnet18", "--epochs", 1, "--device", "cuda", "--workers", 0)
    with memory(4e8):
        refused = softlabels_command(*command, "--batch-size", 18, "--out", "run")
    assert refused.exit_code == 1
    assert "--batch-size 9 --accumulate 2 makes steps of as many images" in refused.output.splitlines()[-1]
    assert "Traceback" not in refused.output
