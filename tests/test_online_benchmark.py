"""The benchmark of stored labels against teachers in the loop runs as its first lines say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_benchmark_prints_every_arm() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "online_vs_offline.py", "--images", "16", "--batch-size", "8"]
    done = subprocess.run(
        [*command, "--size", "32", "--repeats", "1", "--memory", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    for name in ("hard", "light dense", "light topk:10", "heavy dense", "light in the loop", "heavy in the loop"):
        assert f"\n{name} " in done.stdout
    for name in ("stored labels", "light in the loop", "heavy in the loop"):
        assert re.search(rf"\n{name} +0   none fits", done.stdout)


@pytest.mark.parametrize(
    ("held_by", "limit", "right"),
    [
        (lambda size: 500 + 3.0 * size, 5e4, 16500),
        (lambda size: 500 + 3.0 * size if size < 300 else float("inf"), 1e5, 299),
        (lambda size: 500 + 3.0 * size + 20 * (size % 7), 2000, 466),
        (lambda size: 10.0 * size, 79, 0),
    ],
)
def test_the_largest_batch_fits_and_one_a_sixteenth_larger_does_not(
    held_by: Callable[[int], float], limit: float, right: int
) -> None:
    spec = importlib.util.spec_from_file_location("online_vs_offline", ROOT / "benchmarks" / "online_vs_offline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its frozen dataclasses look their module up.
    sys.modules["online_vs_offline"] = module
    try:
        spec.loader.exec_module(module)
        asked: list[int] = []
        found, held = module.largest(lambda size: asked.append(size) or held_by(size), limit)
    finally:
        del sys.modules["online_vs_offline"]
    assert held <= limit
    assert right * 15 / 16 - 1 <= found <= right
    assert len(asked) < 12
