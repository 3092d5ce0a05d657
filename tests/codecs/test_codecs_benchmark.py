"""The benchmark of the codecs runs as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_prints_every_codec() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "codecs.py", "--rows", "60"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    for name in ("44-byte record", "topk:10", "head_tail:10", "quantized:8", "sampled:30", "dense:fp16"):
        assert done.stdout.count(f"\n{name} ") == 2
