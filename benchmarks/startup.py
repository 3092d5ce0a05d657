"""CPU seconds until the command line answers, each in a process of its own: median of several.

The limit is 1 s for a command and 0.5 s for `import softlabels`; `import torch` stands beside them as what is avoided.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

MODULE = ("-m", "softlabels")

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import softlabels": ("-c", "import softlabels"),
    "softlabels --help": (*MODULE, "--help"),
    "softlabels dump --help": (*MODULE, "dump", "--help"),
    "softlabels train --help": (*MODULE, "train", "--help"),
    "softlabels info shards/": (*MODULE, "info", "shards"),
    "a mistyped option": (*MODULE, "train", "--studnt", "resnet18"),
    "a mistyped network": (*MODULE, "train", "--student", "resnt18", "--labels", "shards"),
    "a mistyped network of timm": (*MODULE, "train", "--student", "timm:resnt18", "--labels", "shards"),
    "a mistyped codec": (*MODULE, "dump", "--teacher", "resnet18", "--data", "digits", "--codec", "tpok"),
    "a mistyped data set": (*MODULE, "dump", "--teacher", "resnet18", "--data", "digts"),
    "a mistyped optimizer": (*MODULE, "train", "--student", "resnet18", "--labels", "shards", "--optimizer", "adamv"),
    "import torch": ("-c", "import torch"),
    "import torch, torchvision, timm": ("-c", "import torch, torchvision, timm"),
}
STORE = (*MODULE, "dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", "digits", "--recipe", "pad")


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time, of user and system, that the processes take which `run` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:

        def run(args: tuple[str, ...], check: bool = False) -> None:
            subprocess.run(
                [sys.executable, *args], cwd=folder, env=environment, capture_output=True, check=check, timeout=300
            )

        def completion() -> None:
            asked = {"_SOFTLABELS_COMPLETE": "bash_complete", "COMP_WORDS": "softlabels train --st", "COMP_CWORD": "2"}
            script = "from softlabels.cli import main; main(prog_name='softlabels')"
            subprocess.run(
                [sys.executable, "-c", script], env={**environment, **asked}, capture_output=True, check=False
            )

        run((*STORE, "--quiet"), check=True)
        ways: dict[str, Callable[[], object]] = {name: lambda args=args: run(args) for name, args in COMMANDS.items()}
        ways["completion of an option"] = completion
        found = {name: [cpu_seconds(way) for _ in range(rounds)] for name, way in ways.items()}
    for name, seconds in found.items():
        print(f"{name:34s} {statistics.median(seconds):5.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
