"""A report: which runs are one arm, what is left out, and what is said on the way."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import TINY, write_pictures

import softlabels
from softlabels.core.progress import Terminal, plural, rate
from softlabels.dumping.plan import measure_speed
from softlabels.reporting.plots import legend
from softlabels.reporting.report import find_runs

ROOT = Path(__file__).parents[2]


def train(out: Path, photos: Path, **settings: Any) -> None:
    softlabels.train(**{**TINY, "epochs": 1, "data": str(photos), "out": str(out), **settings})


def arms(root: Path) -> dict[str, int]:
    table = softlabels.report(root, root / "report", quiet=True)
    return dict(zip(table["arm"], table["runs"], strict=True))


def test_seeds_of_the_same_settings_are_one_arm_and_nothing_else_is(photos: Path, tmp_path: Path) -> None:
    """Whatever the folders are called."""
    runs = tmp_path / "runs"
    train(runs / "a/student", photos)
    train(runs / "b/student", photos, lr=0.1)
    assert arms(runs) == {"a/student": 1, "b/student": 1}
    train(runs / "c/student", photos, seed=1, workers=1)
    assert arms(runs) == {"a/student, c/student": 2, "b/student": 1}
    train(runs / "d/again", photos)
    assert arms(runs) == {"a/student": 1, "b/student": 1, "c/student": 1, "again": 1}


def test_seeds_in_folders_of_seeds_are_one_arm_also_where_images_and_first_weights_are_the_seeds(
    photos: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for seed in range(2):
        train(runs / f"few/seed-{seed}", photos, seed=seed, limit=9)
        train(runs / f"tuned/seed-{seed}", photos, seed=seed, init=str(runs / f"few/seed-{seed}"))
        train(runs / f"other/few/seed-{seed}", photos, seed=seed, limit=10)
    assert arms(runs) == {"few": 2, "tuned": 2, "other/few": 2}


def test_runs_on_other_labels_are_other_arms(photos: Path, shards: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    train(runs / "a/student", photos, labels=str(shards), teachers=["cnn_tiny"])
    train(runs / "b/student", photos, labels=str(shards), teachers=["cnn_small"], seed=1)
    shutil.copytree(shards, tmp_path / "copy")
    train(runs / "c/student", photos, labels=str(tmp_path / "copy"), teachers=["cnn_small"])
    assert arms(runs) == {"a/student": 1, "b/student, c/student": 2}


def test_runs_that_do_not_say_what_went_into_them_are_told_apart_by_their_settings(
    photos: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for name, settings in {"a/x": {}, "b/x": {"seed": 1}, "c/x": {"lr": 0.1}}.items():
        train(runs / name, photos, **settings)
        (runs / name / "inputs.json").unlink()
    assert arms(runs) == {"a/x, b/x": 2, "c/x": 1}
    for name in ("a/x", "b/x"):
        (runs / name / "config.yaml").unlink()
    assert arms(runs) == {"a/x": 1, "b/x": 1, "c/x": 1}


@pytest.fixture(scope="module")
def two(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one arm; not to be changed."""
    root = tmp_path_factory.mktemp("two")
    for seed in range(2):
        train(root / f"x/seed-{seed}", photos, seed=seed)
    return root


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "config.yaml", "inputs.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_damaged_runs_are_named_and_left_out(
    softlabels_command: Callable, two: Path, tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(two, tmp_path / "runs")
    file = tmp_path / "runs/x/seed-1" / name
    text = file.read_bytes()
    file.write_bytes({"cut": text[: len(text) // 2], "flipped": b"\xff" + text[1:], "other": b"3"}[damage])
    done = softlabels_command("report", "runs")
    if name == "config.yaml" and damage == "cut":
        assert done.exit_code == 0  # half a list of settings is a list of settings
        return
    assert done.exit_code == 0, done.output
    assert "| x | " in done.output
    assert re.search(r"\| x \| - \| 1 \|", done.output), done.output
    (line,) = [line for line in done.output.splitlines() if "left out" in line]
    assert str(Path("runs/x/seed-1") / name) in line
    shutil.rmtree(tmp_path / "runs/x/seed-0")
    alone = softlabels_command("report", "runs")
    assert alone.exit_code == 1
    assert len(alone.output.splitlines()) == 1
    assert name in alone.output


def test_the_table_does_not_claim_what_the_runs_are(softlabels_command: Callable, photos: Path, tmp_path: Path) -> None:
    train(tmp_path / "runs/x", photos)
    assert "| run | accuracy % (last epoch) |" in softlabels_command("report", "runs").output


def test_eval_says_which_weights_it_scored(softlabels_command: Callable, photos: Path, tmp_path: Path) -> None:
    train(tmp_path / "r", photos)
    data = ("--data", photos, "--device", "cpu")
    said = softlabels_command("eval", "--student", "r", *data).output
    assert "r, weights r/best.safetensors (of the best epoch on the evaluation images), on 18 images of " in said
    said = softlabels_command("eval", "--student", "r/last.safetensors", *data).output
    assert "r, weights r/last.safetensors, on 18 images" in said
    said = softlabels_command("eval", "--student", "cnn_tiny", "--weights", "random:2", *data).output
    assert "cnn_tiny, weights random:2, on 18 images" in said


def test_a_report_compares_with_the_one_student_of_hard_labels(photos: Path, shards: Path, tmp_path: Path) -> None:
    runs, soft = tmp_path / "runs", {"labels": str(shards), "teachers": ["cnn_tiny"]}
    for seed in range(3):
        for arm, settings in {"hard": {}, "soft": soft}.items():
            train(runs / f"{arm}/seed-{seed}", photos, seed=seed, eval_data=str(photos), **settings)
    train(runs / "teacher", photos, student="cnn_small")

    def accuracies(arm: str, seeds: range = range(3)) -> list[float]:
        results = [json.loads((runs / arm / f"seed-{seed}/result.json").read_text()) for seed in seeds]
        return [100 * result["last"]["top1"] for result in results]

    table = softlabels.report(runs, runs / "report", quiet=True).set_index("arm")
    paired = np.subtract(accuracies("soft"), accuracies("hard"))
    assert table.loc["soft", "difference"] == pytest.approx(paired.mean())
    assert table.loc["soft", "difference_error"] == pytest.approx(paired.std(ddof=1) / 3**0.5)
    assert np.isnan(table.loc["hard", "difference"])
    said = (runs / "report/table.md").read_text()
    assert "| difference to hard (± standard error) |" in said
    assert f"| {paired.mean():+.2f} ± " in said
    assert all((runs / f"report/{name}.png").stat().st_size for name in ("curves", "arms", "costs"))

    shutil.rmtree(runs / "hard/seed-2")
    table = softlabels.report(runs, runs / "report", baseline="soft", quiet=True).set_index("arm")
    variances = [np.var(accuracies("soft"), ddof=1) / 3, np.var(accuracies("hard", range(2)), ddof=1) / 2]
    assert table.loc["hard", "difference_error"] == pytest.approx(sum(variances) ** 0.5)
    with pytest.raises(softlabels.ConfigError, match="did you mean 'hard'"):
        softlabels.report(runs, runs / "report", baseline="hrd", quiet=True)

    told = legend(find_runs(runs)[0])
    assert told["soft"].startswith("soft  (student=cnn_tiny, labels=shards, teachers=cnn_tiny, ")
    assert told["teacher"] == "teacher  (student=cnn_small)"


def journal_of(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, io.StringIO, list[float]]:
    clock = [1000.0]
    monkeypatch.setattr("softlabels.core.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    return Terminal(stream), stream, clock


@pytest.mark.parametrize("told", ["by done", "by a first report"])
def test_rate_and_time_left_are_of_the_steps_of_this_call(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    terminal, stream, clock = journal_of(monkeypatch)
    with terminal.progress("train", 10_000, "steps", done=9_000 if told == "by done" else 0) as advance:
        if told != "by done":
            advance(9_000)
        for _ in range(20):
            clock[0] += 2.0
            advance(1, "epoch 91/100")
    first = stream.getvalue().splitlines()[0]
    assert first == "train: 9,005/10,000 steps, 0.5/s, 33 min 10 s left, epoch 91/100"


def test_what_is_slow_only_once_is_not_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, stream, clock = journal_of(monkeypatch)
    with terminal.progress("dump", 1000, "images") as advance:
        clock[0] += 60
        advance(10)
        for _ in range(20):
            clock[0] += 1
            advance(10)
    assert "dump: 110/1,000 images, 10/s, 1 min 29 s left" in stream.getvalue()


def test_numbers_are_said_as_people_say_them() -> None:
    assert [rate(value) for value in (0.04, 0.3, 0.97, 8.44, 12.6, 1234)] == [
        "0.04",
        "0.3",
        "1.0",
        "8.4",
        "13",
        "1,234",
    ]
    assert [plural(count, "view") for count in (0, 1, 2, 1024)] == ["0 views", "1 view", "2 views", "1,024 views"]


def heed_interrupts() -> None:
    """A command that a shell starts in the background ignores them, and so do those that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("checkpoint", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_interrupt_says_what_the_same_command_does(photos: Path, tmp_path: Path, checkpoint: bool) -> None:
    command = [sys.executable, "-m", "softlabels.cli", "train", "--student", "cnn_tiny", "--data", str(photos)]
    command += ["--batch-size", "4", "--epochs", "1000000", "--device", "cpu", "--workers", "0", "--out", "r"]
    command += ["--checkpoint-every", "7" if checkpoint else "1000000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    awaited = "r/checkpoints/step-*" if checkpoint else "r/config.yaml"
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob(awaited)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    last = said.splitlines()[-1]
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted; the same command goes on from the checkpoint of step [\d,]+", last)


def test_a_diverged_run_claims_no_checkpoint_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    wild = {"lr": 1e30, "optimizer": "sgd", "warmup_epochs": 0, "epochs": 30}
    with pytest.raises(softlabels.RunError, match="no checkpoint was written yet"):
        train(tmp_path / "a", photos, **wild)


def test_an_interrupted_pipeline_ends_in_one_line(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos")
    story = tmp_path / "story"
    story.mkdir()
    teacher = {"student": "cnn_tiny", "data": str(photos), "epochs": 1000000, "workers": 0, "batch_size": 4}
    study = {"title": "t", "seeds": [0], "out": "out", "teachers": {"teacher": teacher}, "arms": {"a": teacher}}
    (story / "study.yaml").write_text(json.dumps(study))
    command = [sys.executable, str(ROOT / "pipelines/distill.py"), str(story)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 100
    while not (tmp_path / "out/teachers/teacher/config.yaml").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted; ")


class Slow:
    """Images that take 4 ms each to decode."""

    name, spec, classes, decoder, pixels = "slow", {}, (), "slow", None  # type: ignore[var-annotated]

    def __init__(self, count: int) -> None:
        import numpy as np
        import pyarrow as pa

        self.keys, self.labels = pa.chunked_array([[str(n) for n in range(count)]]), np.full(count, -1)

    def __len__(self) -> int:
        return len(self.keys)

    def content(self, row: int) -> bytes:
        return str(row).encode()

    def decode(self, row: int) -> Any:
        import torch

        time.sleep(0.004)
        return torch.full((3, 32, 32), row % 256, dtype=torch.uint8)


class Quick:
    name = "quick"

    def outputs(self, pictures: Any) -> Any:
        return {"logits": pictures.new_zeros(len(pictures), 10).float()}


@pytest.mark.parametrize(("views", "threads"), [(1, 0), (8, 0), (1, 4)])
def test_a_plan_times_a_dump_as_it_goes(views: int, threads: int) -> None:
    """Not what was ready before the clock began, and each image once for all its views."""
    from softlabels.loading.batches import Threads
    from softlabels.loading.views import ViewDataset
    from softlabels.models.devices import CPU, Passes
    from softlabels.views import RECIPES, ImageSpec

    pictures = ViewDataset(Slow(200), RECIPES.make("crop-flip"), 0, views, ImageSpec(32))  # type: ignore[arg-type]
    workers = Threads(threads) if threads else 0
    said = measure_speed(pictures, Passes(Quick().outputs, 32), device=CPU, workers=workers)
    limit = views * max(threads, 1) / 0.004
    assert said <= 1.1 * limit  # the decoder can do no more
    assert said >= limit / 10  # on a busy machine
    assert said > 250 or views == 1


def test_a_bar_counts_from_where_an_earlier_call_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = [1000.0]
    monkeypatch.setattr("softlabels.core.progress.time.monotonic", lambda: clock[0])
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Screen()
    with Terminal(stream).progress("train", 1000, "steps", done=900) as advance:
        for _ in range(5):
            clock[0] += 4
            advance(1, "epoch 9/10")
        time.sleep(0.3)
    assert "0.2 steps/s, 6 min 20 s left, epoch 9/10" in stream.getvalue().replace("\x1b[39m", "")


def test_a_line_is_printed_whole_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    line = f"epoch 1/2   loss [red]0.5[/red]   {'long ' * 20}left"
    terminal = Terminal(Screen())
    with terminal.progress("train", 10, "steps") as advance:
        advance(1)
        terminal.say(line)
    terminal.say("after it")
    shown = terminal._stream.getvalue()  # type: ignore[attr-defined]
    assert f"{line}\n" in shown
    assert shown.endswith("after it\n")
