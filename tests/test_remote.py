"""The commands on stores behind URLs, as a user runs them; the server's whims are tested with the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import softlabels
from softlabels import StoreError

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "SOFTLABELS_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    name = f"b{time.monotonic_ns()}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/shards"
    server.stop()


DUMP = ("dump", "--teacher", "cnn_tiny", "--weights", "random:1", "--data", "digits", "--limit", "200")
VIEWS = ("--recipe", "pad", "--views", "2", "--rows-per-shard", "64")
TRAIN = ("train", "--student", "cnn_tiny", "--size", "8", "--epochs", "2", "--warmup-epochs", "0")


def test_a_story_in_a_bucket(bucket: str, tmp_path: Path, softlabels_command: Callable[..., Any]) -> None:
    for _ in range(2):
        dumped = softlabels_command(*DUMP, *VIEWS, "--out", bucket)
        assert dumped.exit_code == 0, dumped.output
    assert "already; nothing to do" in dumped.output
    assert softlabels_command(*DUMP, *VIEWS, "--out", "local").exit_code == 0
    said = softlabels_command("info", bucket).output
    assert said.startswith(f"{bucket}: 200 images")
    verified = softlabels_command("verify", "--labels", bucket)
    assert verified.exit_code == 0, verified.output
    trained = softlabels_command(*TRAIN, "--labels", bucket, "--out", "far", "--cache-size", "1MB")
    assert trained.exit_code == 0, trained.output
    assert softlabels_command(*TRAIN, "--labels", "local", "--out", "near").exit_code == 0
    far, near = (load_file(f"{run}/last.safetensors") for run in ("far", "near"))
    assert all(torch.equal(far[name], near[name]) for name in near)
    converted = softlabels_command("convert", "--labels", bucket, "--out", "copy", "--compression", "zstd")
    assert converted.exit_code == 0, converted.output
    labels = softlabels.open_labels("copy")
    assert labels.of().card.compression == "zstd"
    assert softlabels_command("verify", "--labels", "copy", "--shards-only").exit_code == 0
    there = softlabels.open_labels(bucket, cache_dir=tmp_path / "mine", cache_size=1 << 20)
    assert (there.logits([3, 4], 1) == labels.logits([3, 4], 1)).all()
    assert list((tmp_path / "mine").glob("*/cnn_tiny/*.h5"))


def test_a_cache_that_is_too_small_says_which_option(bucket: str, softlabels_command: Callable[..., Any]) -> None:
    softlabels_command(*DUMP, *VIEWS, "--out", bucket)
    trained = softlabels_command(*TRAIN, "--labels", bucket, "--cache-size", "1kB")
    assert trained.exit_code == 1
    assert "--cache-size" in trained.output.splitlines()[-1]
    with pytest.raises(StoreError, match="--cache-size"):
        softlabels.open_labels(bucket, cache_size=10).logits([0], 0)
    for wrong in ("many", "-3", "3XB"):
        assert softlabels_command(*TRAIN, "--labels", bucket, "--cache-size", wrong).exit_code == 2


def test_workers_and_a_thread_ahead_of_them_share_one_small_cache(
    bucket: str, tmp_path: Path, softlabels_command: Callable[..., Any]
) -> None:
    assert softlabels_command(*DUMP, *VIEWS, "--out", bucket).exit_code == 0
    windows = ("--shuffle-window", 2, "--batch-size", 16)
    limit = 12_000  # of four shards of some 5 kB
    for workers in (0, 2):
        options = (*windows, "--workers", workers, "--cache-dir", f"cache-{workers}", "--cache-size", limit)
        trained = softlabels_command(*TRAIN, "--labels", bucket, "--out", f"run-{workers}", *options)
        assert trained.exit_code == 0, trained.output
        copies = list((tmp_path / f"cache-{workers}").glob("*/cnn_tiny/*.h5"))
        assert 0 < sum(path.stat().st_size for path in copies) <= limit
    one, two = (load_file(f"run-{workers}/last.safetensors") for workers in (0, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
