"""The benchmark for a GPU machine prints its whole table on a CPU too, and loses no figure to a part that hangs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def table(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def run(out: Path, *given: str) -> str:
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--out", str(out), *given]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return done.stdout


@pytest.mark.slow
def test_a_part_prints_and_writes_its_figures(tmp_path: Path) -> None:
    printed = run(tmp_path / "results", "--parts", "losses")
    made = table(tmp_path / "results")
    assert {each["part"] for each in made} == {"pictures", "losses"}
    assert not [each for each in made if each["value"] in ("failed", "not finished")]
    assert printed.endswith("\n" + (tmp_path / "results" / "results.md").read_text(encoding="utf-8") + "\n")
    assert not (tmp_path / "results" / "work").exists()


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    run(tmp_path / "results", "--seconds", "480")
    made = table(tmp_path / "results")
    assert not [each for each in made if each["value"] in ("failed", "not finished")]
    found = [f"{each['part']}: {each['what']}" for each in made]
    for wanted in (
        *("pictures: machine", "pictures: versions", "pictures: transfer"),
        *("dump-cnn_tiny: teacher alone, compiled", "dump-cnn_tiny: smallest bound"),
        *(f"dump-{name}: dump, {codec}" for name in ("cnn_tiny", "cnn_small") for codec in ("dense:fp16", "topk:2")),
        *("tests: tests marked cuda", "train: stored labels against the teacher in the loop"),
        *("train: largest batch, cnn_small in the loop", "losses: kl, sparse, 300 classes"),
        "small: cnn_tiny, stored labels",
    ):
        assert wanted in found


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)  # its dataclasses look it up
    spec.loader.exec_module(module)
    yield module


def test_a_part_that_hangs_breaks_or_dies_loses_only_what_it_had_not_found(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def hangs(setting: Any) -> None:
        setting.note("pictures", "first", "1")
        time.sleep(60)

    def breaks(setting: Any) -> None:
        setting.note("tests", "second", "2")
        raise ValueError("broken | here")

    def dies(setting: Any) -> None:
        setting.note("losses", "third", "3")
        os._exit(7)

    parts: dict[str, Callable[[Any], None]] = {"pictures": hangs, "tests": breaks, "losses": dies}
    monkeypatch.setattr(benchmark, "parts_of", lambda _: parts)
    monkeypatch.setattr(benchmark, "SHARES", {"pictures": 1, "tests": 20, "losses": 20})
    arguments = ["--tiny", "--device", "cpu", "--out", str(tmp_path / "r"), "--seconds", "80"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    benchmark.main()
    assert [(each["part"], each["what"], each["value"]) for each in table(tmp_path / "r")] == [
        ("pictures", "first", "1"),
        ("pictures", "whole part", "not finished"),
        ("tests", "second", "2"),
        ("tests", "whole part", "failed"),
        ("losses", "third", "3"),
        ("losses", "whole part", "failed"),
    ]
    assert "broken here" in (tmp_path / "r" / "results.md").read_text(encoding="utf-8")


def test_compiling_that_hangs_is_recorded_and_the_part_goes_on(benchmark: ModuleType, tmp_path: Path) -> None:
    setting = benchmark.Setting(tmp_path, benchmark.torch.device("cpu"), tiny=True)
    setting.results.touch()
    began = time.monotonic()
    with benchmark.recorded_errors(setting, "losses", "compiling"), benchmark.limited(0.2):
        time.sleep(60)
    setting.note("losses", "uncompiled", "1")
    assert time.monotonic() - began < 30
    assert [(each["what"], each["value"]) for each in table(tmp_path)] == [("compiling", "failed"), ("uncompiled", "1")]
    assert "stopped after" in table(tmp_path)[0]["remark"]
