"""The benchmarks of codecs and of reading labels run as their first lines say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from worlds import write_pictures

from softlabels.codecs import CODECS, spelled
from softlabels.dumping import comparing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_codecs", ROOT / "benchmarks" / "codecs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str | Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_codec_report_of_a_plan_says_what_the_benchmark_says(benchmark: ModuleType) -> None:
    logits = benchmark.embedded(300, seed=0)
    usual = [codec for codec in comparing.usual_codecs(1000) if codec.kind != "sampled"]  # whose KL is infinite
    codecs, left_out = comparing.fit_codecs(usual, logits, views=1, stored_views=1)
    assert len(codecs) + len(left_out) == len(usual)
    words = np.random.default_rng(0).integers(0, 2**64, len(logits), np.uint64)
    reports = comparing.compare_codecs(logits, words, codecs, labels=1, temperatures=benchmark.TEMPERATURES)
    for codec, report in zip(codecs, reports, strict=True):
        row = benchmark.measured(codec, spelled(codec), logits)
        assert report.codec == row.name
        assert report.bytes_per_label == row.stored
        assert list(report.kl.values()) == pytest.approx(row.kl, rel=1e-6, abs=1e-12)


def test_eleven_classes_in_18_bytes_lose_nowhere_more_than_the_44_byte_record(benchmark: ModuleType) -> None:
    codec = CODECS.make({"kind": "topk", "k": 11, "levels": 12})
    assert codec.bytes_per_label(1000) == 18
    for logits in (benchmark.outstanding(300, seed=1), benchmark.embedded(300, seed=1)):
        record, _ = benchmark.record_of_44_bytes(logits)
        row = benchmark.measured(codec, "eleven", logits)
        assert all(ours < theirs for ours, theirs in zip(row.kl, record.kl, strict=True))


@pytest.mark.slow
def test_the_benchmark_prints_every_codec() -> None:
    said = run(ROOT / "benchmarks" / "codecs.py", "--rows", "60")
    for name in ("44-byte record", "topk:10", "head_tail:10", "quantized:8", "sampled:30", "dense:fp16"):
        assert said.count(f"\n{name} ") == 2


@pytest.mark.slow
def test_the_benchmark_asks_a_teacher(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", each=2)
    asked = ("--teacher", "resnet18", "--weights", "random", "--data", photos, "--rows", "12")
    said = run(ROOT / "benchmarks" / "codecs.py", *asked)
    assert f"resnet18 on {photos}: 6 rows of 1000 classes" in said
    assert said.count("\ntopk:10 ") == 1


@pytest.mark.slow
def test_the_benchmark_of_reading_prints_every_way(tmp_path: Path) -> None:
    small = ("--codecs", "topk:10", "--images", "20000", "--files", "300", "--seconds", "0.01", "--rounds", "1")
    said = run(ROOT / "benchmarks" / "labels.py", *small, "--folder", tmp_path)
    for way in ("ceiling", "memmap", "softlabels hdf5", "softlabels zarr", "softlabels hdf5 zstd"):
        assert f"\n  {way} " in said
    for rival in ("TinyViT", "FKD, 4 crops", "FKD, 1 crop", "torchdistill", "ml-dr"):
        assert f"  against {rival}: " in said
    assert not list(tmp_path.iterdir())
