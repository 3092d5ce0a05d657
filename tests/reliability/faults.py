"""Commands run in forks of one process in which chosen system calls fail, are cut short, or end it.

A preloaded shim (`shim.c`, compiled when tests run) counts the calls on files below one folder. All is imported once,
and each command is a fork that calls `softlabels.cli.main`: exit code, output and signal are those of the command line.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

OPEN, WRITE, SYNC, RENAME, UNLINK, MKDIR, TRUNCATE, READ = (1 << bit for bit in range(8))
CHANGING = OPEN | WRITE | RENAME | UNLINK | MKDIR | TRUNCATE
FAIL, SHORT, KILL = 1, 2, 3
HANGS = 60.0
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th call (from 1) of these kinds: an error, a call cut short, or SIGKILL.

    With `lasting`, at every later one as well.
    """

    name: str
    kinds: int
    action: int
    error: int = 0
    lasting: bool = False


FAULTS = (
    Fault("no space left", WRITE | OPEN | MKDIR | TRUNCATE, FAIL, errno.ENOSPC),
    Fault("disk full from then on", WRITE | OPEN | MKDIR | TRUNCATE, FAIL, errno.ENOSPC, lasting=True),
    Fault("input/output error", WRITE | SYNC | RENAME | UNLINK, FAIL, errno.EIO),
    Fault("read-only from then on", CHANGING, FAIL, errno.EROFS, lasting=True),
    Fault("short write", WRITE, SHORT),
    Fault("short read", READ, SHORT),
    Fault("killed", CHANGING | SYNC, KILL),
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: by that signal, None: it hung), output, counted calls, faults."""

    code: int | None
    output: str
    seen: int
    fired: int

    @property
    def lines(self) -> list[str]:
        """The lines that begin as errors do."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


class Commands:
    """A process that has imported everything and runs commands in forks."""

    def __init__(self, folder: Path) -> None:
        self._out = folder
        self._shim = folder / "shim.so"
        compiler = shutil.which("gcc") or shutil.which("cc")
        assert compiler is not None
        source = [str(HERE / "shim.c"), "-o", str(self._shim)]
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", *source, "-ldl"], check=True)
        root = HERE.parents[1]
        environment = os.environ | {
            "LD_PRELOAD": str(self._shim),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(root), str(HERE.parent), *sys.path]),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._shim)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def run(self, *words: object, below: Path | None = None, fault: Fault | None = None, nth: int = 0) -> Ended:
        """Run ``softlabels WORDS`` with the n-th counted call below a folder faulty; 0: only count."""
        armed = fault or Fault("none", CHANGING | SYNC, FAIL)
        arm = [str(below or self._out), armed.kinds, nth, armed.action, armed.error, int(armed.lasting)]
        request = {"words": [str(word) for word in words], "arm": arm, "out": str(self._out / "output.txt")}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        output = Path(request["out"]).read_text(encoding="utf-8", errors="replace")
        return Ended(answer["code"], output, answer["seen"], answer["fired"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """`Commands` while this lasts."""
    made = Commands(folder)
    try:
        yield made
    finally:
        made.close()


def available() -> str | None:
    """Why there can be no faults here; None when there can."""
    if sys.platform != "linux":
        return "the shim is for Linux"
    return None if shutil.which("gcc") or shutil.which("cc") else "no C compiler to build the shim with"


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 1 to `count`, evenly spread, both ends among them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(place * (count - 1) / (most - 1)) for place in range(most)})


def _serve(shim_path: str) -> None:
    import ctypes
    import signal
    import time

    import sklearn.datasets
    import timm.optim  # noqa: F401
    import torch._dynamo

    import softlabels
    from softlabels.cli import main

    torch.set_num_threads(1)
    # What is imported and made once here, no fork has to do.
    with tempfile.TemporaryDirectory() as folder:
        store, small = f"{folder}/store", {"device": "cpu", "workers": 0, "quiet": True}
        softlabels.dump(
            teacher=["cnn_tiny"], weights=["random"], data="digits", limit=20, views=1, out=store, recipe="pad", **small
        )
        softlabels.convert(labels=store, out=f"{folder}/zarr", format="zarr", quiet=True)
        softlabels.train(student="cnn_tiny", size=8, labels=store, epochs=1, out=f"{folder}/run", **small)
    sklearn.datasets.load_digits()
    shim = ctypes.CDLL(shim_path)
    shim.faults_seen.restype = shim.faults_fired.restype = ctypes.c_long
    shim.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, *(ctypes.c_int,) * 3]
    print(json.dumps({"ready": True}), flush=True)

    def command(words: Sequence[str], arm: Sequence[Any], out: str, tell: int) -> None:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code: Any = 1
        shim.faults_arm(arm[0].encode(), *arm[1:])
        try:
            main(list(words), prog_name="softlabels")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            counted = f"{shim.faults_seen()} {shim.faults_fired()}"
            shim.faults_arm(b"", 0, 0, 0, 0, 0)
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(tell, counted.encode())
            os._exit(int(code))

    for line in sys.stdin:
        request = json.loads(line)
        reading, telling = os.pipe()
        child = os.fork()
        if child == 0:
            command(request["words"], request["arm"], request["out"], telling)
        os.close(telling)
        until = time.monotonic() + HANGS
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.002)
        code: int | None = None
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        else:
            code = os.waitstatus_to_exitcode(ended[1])
        with os.fdopen(reading) as pipe:
            seen, _, fired = pipe.read().partition(" ")
        print(json.dumps({"code": code, "seen": int(seen or 0), "fired": int(fired or 0)}), flush=True)
    os._exit(0)  # without waiting for what the imported libraries keep


if __name__ == "__main__":
    _serve(sys.argv[1])
