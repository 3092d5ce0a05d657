"""A dump on a GPU: the labels of a CPU, resumed, compiled, out of memory, from pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpus import DEVICE, PRECISIONS, apart, memory, needs_cuda, needs_gpu, tf32
from moving import shard_bytes
from torch import Tensor

import softlabels
from softlabels.dumping import dump as dumping
from softlabels.errors import ModelError

pytestmark = [pytest.mark.cuda, needs_gpu]
VIEWS = 3


def dump(photos: Path, out: Path, **settings: Any) -> Path:
    usual = {"teacher": ["cnn_small"], "weights": ["random"], "views": VIEWS, "rows_per_shard": 7, "batch_size": 8}
    given = {**usual, "device": DEVICE, "workers": 0, "codec": "dense:fp32", **settings}
    softlabels.dump(data=str(photos), out=str(out), quiet=True, **given)
    return out


def stored(store: Path) -> Tensor:
    labels = softlabels.open_labels(store)
    return torch.cat([labels.logits(range(len(labels)), view) for view in range(labels.views)])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_labels_are_the_cpus_within_what_is_stated(photos: Path, tmp_path: Path, precision: str) -> None:
    amp, allowed, far = PRECISIONS[precision]
    with tf32(allowed):
        there = dump(photos, tmp_path / "there", amp=amp)
    assert apart(stored(there), stored(dump(photos, tmp_path / "here", device="cpu"))) < far


@pytest.mark.parametrize(("first", "second"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
@pytest.mark.parametrize("codec", ["dense", "quantized"])
def test_verify_passes_labels_of_another_device(
    photos: Path, tmp_path: Path, first: str, second: str, codec: str
) -> None:
    store = dump(photos, tmp_path / "s", device=first, codec=codec)
    found = softlabels.verify(labels=str(store), device=second, quiet=True)
    assert found.agreements
    assert found.ok, found.problems


@pytest.mark.parametrize("workers", ["threads:2", 2])
@pytest.mark.parametrize("codec", ["dense", "topk:2", "quantized:4"])
def test_labels_do_not_depend_on_who_makes_the_batches(
    photos: Path, tmp_path: Path, workers: int | str, codec: str
) -> None:
    alone = dump(photos, tmp_path / "alone", codec=codec)
    helped = dump(photos, tmp_path / "helped", codec=codec, workers=workers)
    assert shard_bytes(alone) == shard_bytes(helped)


def test_a_dump_goes_on_bit_for_bit_where_it_was_stopped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dump(photos, tmp_path / "whole")
    written, write = [], dumping.ShardBuilder.write

    def stop(builder: Any, *given: Any, **named: Any) -> None:
        written.append(1)
        if len(written) > 1:
            raise ModelError("stopped")
        write(builder, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(dumping.ShardBuilder, "write", stop)
        with pytest.raises(ModelError, match="stopped"):
            dump(photos, tmp_path / "again")
    assert len(softlabels.open_labels(tmp_path / "again").of("cnn_small").shards) == 1
    assert shard_bytes(dump(photos, tmp_path / "again")) == shard_bytes(whole)


def test_a_compiled_teachers_labels_are_a_plain_ones_within_rounding(photos: Path, tmp_path: Path) -> None:
    with tf32(False):
        plain, compiled = dump(photos, tmp_path / "plain"), dump(photos, tmp_path / "compiled", compile=True)
    assert apart(stored(compiled), stored(plain)) < 1e-4


LARGE = ("--teacher", "resnet18", "--weights", "random", "--recipe", "crop", "--workers", 0, "--views", 8)


@needs_cuda
def test_a_dump_that_does_not_fit_goes_on_with_smaller_batches(
    softlabels_command: Callable, photos: Path, tmp_path: Path
) -> None:
    command = ("dump", *LARGE, "--data", f"images:{photos}", "--codec", "dense:fp32", "--device", "cuda")
    assert softlabels_command(*command, "--batch-size", 16, "--out", "small").exit_code == 0
    with memory(6e8):
        done = softlabels_command(*command, "--batch-size", 144, "--out", "halved")
    assert done.exit_code == 0, done.output
    assert "out of memory" in done.output and "images at a time" in done.output
    assert apart(stored(tmp_path / "halved"), stored(tmp_path / "small")) < 1e-2


@needs_cuda
def test_a_batch_is_found_that_fits(softlabels_command: Callable, photos: Path, tmp_path: Path) -> None:
    command = ("dump", *LARGE, "--data", f"images:{photos}", "--device", "cuda", "--batch-size", "auto")
    with memory(6e8):
        done = softlabels_command(*command)
    assert done.exit_code == 0, done.output
    assert "teacher resnet18: batches of " in done.output
    assert softlabels.open_labels(tmp_path / "shards").views == 8


@needs_cuda
def test_one_picture_that_does_not_fit_is_told_in_a_line(softlabels_command: Callable, photos: Path) -> None:
    command = ("dump", *LARGE, "--data", f"images:{photos}", "--device", "cuda", "--batch-size", 4)
    with memory(5e7):
        refused = softlabels_command(*command)
    assert refused.exit_code == 1
    assert "memory" in refused.output.splitlines()[-1]
    assert "Traceback" not in refused.output


@needs_cuda
def test_labels_that_do_not_fit_where_they_are_encoded_are_encoded_by_the_cpu(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dump(photos, tmp_path / "whole", codec="topk:2")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("softlabels.codecs._topk.encode_on_gpu", full)
    assert shard_bytes(dump(photos, tmp_path / "full", codec="topk:2")) == shard_bytes(whole)
