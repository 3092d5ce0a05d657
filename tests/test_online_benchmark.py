"""The benchmark of stored labels against teachers in the loop runs as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_benchmark_prints_every_arm() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "online_vs_offline.py", "--images", "16", "--batch-size", "8"]
    done = subprocess.run(
        [*command, "--size", "32", "--repeats", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    for name in ("hard", "light dense", "light topk:10", "heavy dense", "light in the loop", "heavy in the loop"):
        assert f"\n{name} " in done.stdout
