"""A cluster that asks a process to end finds a checkpoint, nothing half written, one line, and exit code 143."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import process_worker
import pytest
import torch
from safetensors.torch import load_file
from worlds import TINY

import softlabels
from softlabels.core import signals
from softlabels.dumping.dump import ShardBuilder
from softlabels.loading.distributed import run_on
from softlabels.training.state import TrainState

ENDING = [signal.SIGTERM, signal.SIGUSR1]


def send(number: signal.Signals) -> None:
    """To this process, in which the handler runs before this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0)


def asked_at(step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process be asked to end as it begins an optimizer step."""
    begin = TrainState.begin

    def ask(self: Any, now: int, passes: int = 1) -> None:
        if now == step:
            send(number)
        begin(self, now, passes)

    monkeypatch.setattr(TrainState, "begin", ask)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("step", [3, 5], ids=["in an epoch", "at its end"])
def test_a_training_finishes_its_step_and_goes_on_from_there(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int
) -> None:
    softlabels.train(data=str(photos), out=str(tmp_path / "whole"), **TINY)
    run = {"data": str(photos), "out": str(tmp_path / "run"), **TINY}
    with monkeypatch.context() as patch:
        asked_at(step, number, patch)
        with pytest.raises(KeyboardInterrupt) as asked:
            softlabels.train(**run)
    said = f"asked to end ({number.name}); the same command goes on from the checkpoint of step {step + 1}"
    assert str(asked.value) == said
    softlabels.train(**run)
    whole, again = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    records = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "run")]
    assert records == [3, 3]


def test_a_training_that_is_asked_at_its_last_step_is_done(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at(8, signal.SIGTERM, monkeypatch)
    assert softlabels.train(data=str(photos), out=str(tmp_path / "run"), **TINY)["steps"] == 9


@pytest.mark.parametrize("number", ENDING)
def test_a_dump_leaves_whole_shards_alone_and_the_command_ends_with_143(
    softlabels_command: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--views", 1)
    dump += ("--rows-per-shard", 5, "--device", "cpu", "--workers", 0)
    write = ShardBuilder.write

    def ask(self: ShardBuilder, **how: bool) -> None:
        if self.shard.run == 2:
            send(number)
        write(self, **how)

    with monkeypatch.context() as patch:
        patch.setattr(ShardBuilder, "write", ask)
        done = softlabels_command(*dump)
    assert done.exit_code == signals.EXIT_CODE == 143
    said = f"asked to end ({number.name}); the same command goes on where this one stopped"
    assert done.output.splitlines()[-1] == said
    left = sorted(path.name for path in (tmp_path / "shards/cnn_tiny").iterdir())
    assert left == ["00000-v0-1.h5", "00001-v0-1.h5", "teacher.json"]
    assert softlabels_command(*dump).exit_code == 0
    assert softlabels.open_labels("shards").views == 1


def test_ctrl_c_leaves_a_checkpoint_of_the_step_that_it_came_in(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at(3, signal.SIGINT, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="goes on from the checkpoint of step 4"):
        softlabels.train(data=str(photos), out=str(tmp_path / "run"), **TINY)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_callers_program_stays(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        asked_at(3, signal.SIGUSR1, monkeypatch)
        softlabels.train(data=str(photos), out=str(tmp_path / "run"), **TINY)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_training_in_a_thread_leaves_signals_as_they_are(photos: Path, tmp_path: Path) -> None:
    run = {"data": str(photos), "out": str(tmp_path / "run"), **TINY}
    thread = threading.Thread(target=softlabels.train, kwargs=run)
    thread.start()
    thread.join()
    assert (tmp_path / "run/result.json").exists()


@pytest.mark.slow
def test_a_job_that_is_asked_as_a_whole_ends_with_a_checkpoint_although_its_workers_are_asked_too(
    photos: Path, tmp_path: Path
) -> None:
    """As SLURM does, which sends the signal to every process of a job."""
    command = [sys.executable, "-m", "softlabels", "train", "--student", "cnn_tiny", "--data", str(photos)]
    command += ["--batch-size", "4", "--epochs", "1000000", "--device", "cpu", "--workers", "2", "--out", "r"]
    command += ["--eval-data", "none"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # the last line of the header comes when training begins
            if "objective" in line or "loss =" in line:
                break
        until = time.monotonic() + 60
        while not (tmp_path / "r/config.yaml").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143, said
    last = said.splitlines()[-1]
    found = re.fullmatch(r"asked to end \(SIGTERM\); .* from the checkpoint of step ([\d,]+)", last)
    assert found is not None, said
    assert (tmp_path / f"r/checkpoints/step-{int(found[1].replace(',', '')):09d}").exists()


@pytest.mark.slow
def test_all_processes_stop_at_one_step_when_one_of_them_is_asked() -> None:
    assert run_on(["cpu", "cpu"], process_worker.voted) == [4, 4]
