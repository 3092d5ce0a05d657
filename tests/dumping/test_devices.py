"""Several processes label into one store: what they write is what one process writes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from moving import shard_bytes
from worlds import write_pictures

import softlabels

DUMP = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--rows-per-shard", 4, "--views", 2, "--workers", 0)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    given = [str(word) for word in words]
    return subprocess.run(given, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def softlabels_on_two(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return command(sys.executable, "-m", "softlabels", *words, "--devices", "cpu:2", cwd=cwd)


def summaries(text: str) -> list[str]:
    return [line for line in text.splitlines() if "wrote" in line]


@pytest.mark.slow
def test_devices_write_what_one_process_writes_and_say_it_once(
    softlabels_command: Callable, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The processes print to this one's stderr; a command in a process of its own is in the slow tests."""
    assert softlabels_command(*DUMP, "--data", photos, "--device", "cpu", "--out", "one").exit_code == 0
    done = softlabels_command(*DUMP, "--data", photos, "--devices", "cpu:2", "--out", "two")
    assert done.exit_code == 0, done.output
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")
    said = capfd.readouterr().err
    assert not summaries(said)
    (summary,) = summaries(done.output)
    assert re.search(r"cnn_tiny: wrote 5 shards, 36 labels in .* 2 views complete in two", summary), summary
    assert said.count("agrees with the labels on") == 1
    assert "of 36 labelled views" in said
    again = softlabels_command(*DUMP, "--data", photos, "--device", "cpu", "--out", "two")
    assert "nothing to do" in again.output


@pytest.mark.slow
def test_when_one_process_fails_all_end_in_one_line(tmp_path: Path) -> None:
    """An image of the second process's part cannot be read."""
    photos = write_pictures(tmp_path / "photos")
    (photos / "class-0/004.jpg").write_bytes(b"")
    done = softlabels_on_two(*DUMP, "--data", photos, "--out", "shards", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "004.jpg cannot be decoded: it is empty (0 bytes)" in line and "--on-bad-image skip" in line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    photos = write_pictures(tmp_path / "photos")
    words = [sys.executable, "-m", "softlabels", "dump", "--teacher", "cnn_tiny", "--weights", "random"]
    words += ["--data", str(photos), "--views", "60000", "--rows-per-shard", "1", "--workers", "0"]
    started = subprocess.Popen(
        [*words, "--devices", "cpu:2", "--out", "shards"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 240
    try:
        while len(list(tmp_path.glob("shards/cnn_tiny/.writer-*"))) < 2:
            assert time.monotonic() < until and started.poll() is None
            time.sleep(0.1)
        children = [int(each) for each in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()]
        started.send_signal(number)
        _, said = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode in {signal.SIGINT: (1, 130), signal.SIGTERM: (143,)}[number], said
    assert said.splitlines()[-1].endswith("; the same command goes on where this one stopped")
    assert "Traceback" not in said
    while any(Path(f"/proc/{child}").exists() for child in children):  # Python's own helper ends after its parent
        assert time.monotonic() < until + 60
        time.sleep(0.1)
    assert not list(tmp_path.glob("shards/cnn_tiny/.partial-*"))


@pytest.mark.slow
def test_torchrun_labels_a_part_and_scores_with_all_processes(
    softlabels_command: Callable, photos: Path, tmp_path: Path
) -> None:
    rest = (*DUMP, "--data", photos, "--device", "cpu")
    for part in ("0/2", "1/2"):
        done = command(*TORCHRUN, "-m", "softlabels", *rest, "--part", part, "--out", "two", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(summaries(done.stdout)) == 1
    assert softlabels_command(*rest, "--out", "one").exit_code == 0
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")
    score = ("eval", "--student", "cnn_tiny", "--weights", "random:2", "--data", photos, "--device", "cpu", "--json")
    done = command(*TORCHRUN, "-m", "softlabels", *score, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = softlabels.evaluate(student="cnn_tiny", weights="random:2", data=str(photos), device="cpu", quiet=True)
    both = json.loads(done.stdout)
    assert (both["top1"], both["top5"], both["images"]) == (one.top1, one.top5, one.images)
    assert both["cross_entropy"] == pytest.approx(one.cross_entropy, rel=1e-12)


@pytest.mark.slow
def test_several_processes_write_to_a_url(photos: Path, tmp_path: Path, softlabels_command: Callable) -> None:
    from buckets import serving

    with serving() as server:
        url = f"s3://{server.bucket()}/shards"
        done = softlabels_on_two(*DUMP, "--data", photos, "--out", url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(summaries(done.stdout)) == 1
        assert "2 views complete" in done.stdout
        labels = softlabels.open_labels(url)
        assert softlabels_command(*DUMP, "--data", photos, "--device", "cpu", "--out", "one").exit_code == 0
        assert labels.logits(range(18), 1).equal(softlabels.open_labels("one").logits(range(18), 1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--devices", "cpu:2", "--device", "cpu"), "--device and --devices exclude each other"),
        (("--devices", "700"), "there is "),
        (("--devices", "1,1"), "are all, numbers of GPUs such as 0,1 (each once), or cpu:2"),
        (("--devices", "gpu"), "are all, numbers of GPUs"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    softlabels_command: Callable, photos: Path, given: tuple[str, ...], said: str
) -> None:
    done = softlabels_command(*DUMP, "--data", photos, *given)
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert said in line
    assert not Path("shards").exists()


def test_devices_under_torchrun_are_refused(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert (
        "torchrun has started them already" in softlabels_command(*DUMP, "--data", photos, "--devices", "cpu:2").output
    )


def test_one_device_needs_no_process(softlabels_command: Callable, photos: Path) -> None:
    done = softlabels_command(*DUMP, "--data", photos, "--devices", "cpu:1")
    assert done.exit_code == 0
    assert softlabels.open_labels("shards").views == 2
