"""Every command of docs/cluster.md is run, and every script of docs/examples/slurm as SLURM would."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moving import shard_bytes

import softlabels

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
SCRIPTS = ROOT / "docs/examples/slurm"
PROGRAMS = {
    "softlabels": f'exec {sys.executable} -m softlabels "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": 'echo "$@" > queued',
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the programs that scripts call can be called."""
    for name, line in PROGRAMS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def script(machine: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts one of the scripts in that folder; nothing of it outlives the test."""
    started = []

    def start(name: str, *words: object, **environment: str) -> subprocess.Popen[str]:
        command, place = [str(SCRIPTS / name), *map(str, words)], {**os.environ, **environment}
        started.append(
            subprocess.Popen(command, cwd=machine, env=place, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)


def done(started: subprocess.Popen[str]) -> str:
    _, said = started.communicate(timeout=300)
    assert started.returncode == 0, said
    return said


@pytest.mark.slow
def test_the_page_does_what_it_says(machine: Path) -> None:
    said = {}
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL):
        for line in block.splitlines():
            ended = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=300, check=False)
            assert ended.returncode == 0, (line, ended.stderr)
            said[line] = ended.stderr
    assert softlabels.open_labels("labels").views == 4
    assert [text.count("wrote 6 shards, 600 labels") for text in said.values()][:2] == [1, 1]
    assert (machine / "runs/two/result.json").exists()


def test_every_script_is_in_the_page() -> None:
    assert sorted(re.findall(r"^\| `([\w-]+\.sh)` \|", PAGE, flags=re.MULTILINE)) == sorted(
        each.name for each in SCRIPTS.iterdir()
    )


DUMP = ("--teacher", "cnn_tiny", "--weights", "random", "--views", 1, "--rows-per-shard", 4, "--workers", 0)


@pytest.mark.slow
def test_the_jobs_of_an_array_and_the_devices_of_a_node_fill_one_store(
    machine: Path, photos: Path, softlabels_command: Callable, script: Callable[..., subprocess.Popen[str]]
) -> None:
    words = (*DUMP, "--data", photos)
    jobs = [
        script("dump-array.sh", *words, "--out", "array", SLURM_ARRAY_TASK_ID=str(job), SLURM_ARRAY_TASK_COUNT="2")
        for job in range(2)
    ]
    for job in jobs:
        done(job)
    done(script("dump-node.sh", *words, "--out", "node", DEVICES="cpu:2"))
    assert softlabels_command("dump", *words, "--device", "cpu", "--out", "one").exit_code == 0
    assert shard_bytes(machine / "array") == shard_bytes(machine / "node") == shard_bytes(machine / "one")


@pytest.mark.slow
def test_a_training_that_runs_out_of_time_is_queued_again_and_goes_on(
    machine: Path, photos: Path, script: Callable[..., subprocess.Popen[str]]
) -> None:
    words = ("--student", "cnn_tiny", "--data", photos, "--batch-size", 4, "--workers", 0, "--device", "cpu")
    words += ("--eval-data", "none", "--out", "r")
    place = {"SLURM_JOB_ID": "17", "PROCESSES": "2"}
    job = script("train-requeue.sh", *words, "--epochs", 100_000, "--checkpoint-every", 5, **place)
    until = time.monotonic() + 240
    while not list(machine.glob("r/checkpoints/step-*")):
        assert time.monotonic() < until and job.poll() is None
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=200)
    assert job.returncode != 0
    assert (machine / "queued").read_text() == "requeue 17\n"
    found = re.findall(r"softlabels: asked to end \(\w+\); .* from the checkpoint of step ([\d,]+)", said)
    assert len(found) == 1, said
    (machine / "queued").unlink()
    step = int(found[0].replace(",", ""))
    words = (*words, "--epochs", 100_000, "--checkpoint-every", 5)
    job = script("train-requeue.sh", *words, **place)
    assert job.stderr is not None
    assert any(f"going on from step {step:,}" in line for line in job.stderr)
    job.terminate()
    job.communicate(timeout=200)
    assert not (machine / "queued").exists()
