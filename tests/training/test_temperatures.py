"""A temperature that changes while a student is trained, and a student's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from worlds import TINY

import softlabels
from softlabels.errors import ConfigError
from softlabels.losses import Objective, kl_divergence
from softlabels.training.targets import NoTargets, StoredTargets, Supervision, Task
from softlabels.training.temperatures import TemperatureSchedule


@pytest.fixture(scope="module")
def stores(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One teacher's labels in several codecs; of 3 classes, 2 are named."""
    root = tmp_path_factory.mktemp("temperatures")
    teacher = {"teacher": ["cnn_small"], "weights": ["random"], "data": str(photos), "views": 2, "device": "cpu"}
    codecs: dict[str, Any] = {
        "dense": "dense",
        "topk": "topk:2",
        "sampled": {"kind": "sampled", "k": 2, "temperature": 4.0},
    }
    for name, codec in codecs.items():
        softlabels.dump(codec=codec, out=str(root / name), quiet=True, **teacher)
    return {name: root / name for name in codecs}


def header(folder: Path) -> str:
    return (folder / "header.txt").read_text()


def train(out: Path, labels: Path, **given: Any) -> Path:
    softlabels.train(labels=str(labels), out=str(out), **{**TINY, **given})
    return out


def scheduled(start: float, end: float, **given: Any) -> Task:
    schedule = TemperatureSchedule(start, end, **given)
    return Task(None, NoTargets(), Objective(temperature=start), temperatures=schedule)  # type: ignore[arg-type]


# ---- the schedule itself


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("linear", [20, 15.5, 11, 6.5, 2]),
        ("cosine", [20, 2 + 9 * (1 + math.sqrt(0.5)), 11, 2 + 9 * (1 - math.sqrt(0.5)), 2]),
    ],
)
def test_the_temperature_goes_from_the_first_step_to_the_last(shape: Any, wanted: list[float]) -> None:
    task = scheduled(20.0, 2.0, shape=shape)
    found = [task.objective_at(done).temperature for done in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert (found[0], found[-1]) == (20.0, 2.0)
    up = scheduled(2.0, 20.0, shape=shape)
    assert [up.objective_at(done).temperature for done in (1, 0.75, 0.5, 0.25, 0)] == pytest.approx(wanted, rel=1e-12)


def test_steps_of_the_temperature_are_those_of_the_authors_code() -> None:
    """20 * 0.7^(epoch // 30), at least 2, in 300 epochs of 7 steps."""
    task, per_epoch, epochs = scheduled(20.0, 2.0, shape="step", run_epochs=300), 7, 300
    steps = per_epoch * epochs
    for step in range(steps):
        found = task.objective_at(step / (steps - 1), (step + 1) / per_epoch).temperature
        assert found == max(2.0, 20.0 * 0.7 ** ((step // per_epoch) // 30))
    assert task.objective_at(0.0).temperature == 20.0 and task.objective_at(1.0).temperature == 2.0
    short = scheduled(20.0, 2.0, shape="step", decay=0.5, decay_epochs=2, run_epochs=4)
    assert short.objective_at(1.0).temperature == 10.0


@settings(max_examples=200, deadline=None)
@given(
    start=st.floats(0.1, 1e4),
    end=st.floats(0.1, 1e4),
    shape=st.sampled_from(["linear", "cosine"]),
    steps=st.integers(1, 400),
)
def test_a_temperature_never_leaves_its_ends_and_never_turns(start: float, end: float, shape: Any, steps: int) -> None:
    schedule = TemperatureSchedule(start, end, shape)
    found = np.array([schedule.at(step / max(steps - 1, 1)) for step in range(steps)])
    assert found[0] == start and min(start, end) <= found.min() and found.max() <= max(start, end)
    assert steps == 1 or found[-1] == end
    turned = np.diff(found) * np.sign(end - start)
    assert (turned >= -1e-9 * max(start, end)).all()


def test_the_schedule_changes_the_soft_part_and_terms_without_a_temperature_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    terms = ({"weight": 0.5, "loss": "js"}, {"weight": 2.0, "loss": "kl", "temperature": 3.0})
    schedule = TemperatureSchedule(8.0, 2.0)
    task = Task(None, NoTargets(), Objective(temperature=8.0, terms=terms), temperatures=schedule)  # type: ignore[arg-type]
    _, parts = task.objective_at(0.5)(student, None, teacher)
    torch.testing.assert_close(parts["soft"], kl_divergence(student, teacher, temperature=5.0))
    torch.testing.assert_close(parts["js"], softlabels.losses.js_divergence(student, teacher, temperature=5.0))
    torch.testing.assert_close(parts["kl"], kl_divergence(student, teacher, temperature=3.0))


# ---- a run


@pytest.mark.parametrize("codec", ["dense", "topk"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", ["kl", "kl student_temperature=fit"])
def test_each_step_compares_labels_decoded_at_its_temperature(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, accumulate: int, loss: str
) -> None:
    """The value of each pass against one written out in fp64 from the labels at the temperature of its step."""
    seen: list[tuple[float, torch.Tensor, torch.Tensor, Any]] = []
    compute = Supervision.loss

    def noted(self: Supervision, outputs: Any, counts: Any = None) -> Any:
        value, parts = compute(self, outputs, counts)
        seen.append((self._objective.temperature, outputs["logits"].detach(), parts["soft"], self))
        return value, parts

    monkeypatch.setattr(Supervision, "loss", noted)
    given = {"temperature": 8.0, "temperature_end": 0.5, "loss": loss, "accumulate": accumulate}
    out = train(tmp_path / "run", stores[codec], **given)
    assert "the temperature goes in a line from 8 at the first step to 0.5 at the last" in header(out)
    steps = 9 if accumulate == 1 else 6
    passes = [1] * 9 if accumulate == 1 else [2, 1] * 3
    wanted = [8 - 7.5 * step / (steps - 1) for step, count in enumerate(passes) for _ in range(count)]
    assert [temperature for temperature, *_ in seen] == pytest.approx(wanted, rel=1e-12)
    assert seen[0][0] == 8.0 and seen[-1][0] == 0.5
    labels = softlabels.open_labels(stores[codec])
    for place, (temperature, logits, soft, supervision) in enumerate(seen):
        batch, targets = supervision.batch, supervision._targets
        assert isinstance(targets, StoredTargets) and targets.temperature == temperature
        assert (targets.codec is None) == (codec == "dense")
        rows = targets.label_rows[batch.rows.numpy()]
        taken = labels.take(rows, batch.views.numpy(), ["cnn_small"])
        exact = labels.decode(taken, temperature)[0].double()
        part = softlabels.losses.LOSSES.make(loss)
        expected = part(logits.double(), exact, temperature=temperature)
        if accumulate == 2:  # what comes back is what a pass adds to the mean of its step
            expected = expected * len(logits) / (8 + 8 if place % 3 < 2 else 2)
        assert soft.item() == pytest.approx(expected.item(), rel=2e-4, abs=1e-6)
    first = part(logits.double(), labels.decode(taken, 8.0)[0].double(), temperature=8.0)
    assert expected.item() != pytest.approx(first.item(), rel=1e-2)  # so that the temperature of a step is told apart


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_between_equal_ends_trains_as_one_temperature(
    stores: dict[str, Path], tmp_path: Path, shape: str
) -> None:
    for codec in ("dense", "topk", "sampled"):
        one = train(tmp_path / f"{codec}-one", stores[codec], temperature=4.0)
        both = train(
            tmp_path / f"{codec}-both", stores[codec], temperature=4.0, temperature_end=4.0, temperature_schedule=shape
        )
        first, second = (load_file(each / "last.safetensors") for each in (one, both))
        assert all(torch.equal(each, second[name]) for name, each in first.items())


def test_the_sparse_path_trains_as_the_dense_one(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"temperature": 6.0, "temperature_end": 1.0, "loss": "kl student_temperature=fit", "optimizer": "sgd"}
    sparse = train(tmp_path / "sparse", stores["topk"], **given)
    monkeypatch.setattr("softlabels.training.targets.SparseLoss", type("Nothing", (), {}))
    dense = train(tmp_path / "dense", stores["topk"], **given)
    for name, each in load_file(sparse / "last.safetensors").items():
        torch.testing.assert_close(each, load_file(dense / "last.safetensors")[name], atol=1e-4, rtol=1e-4)


def test_closeness_is_measured_at_the_temperature_of_the_last_step(stores: dict[str, Path], tmp_path: Path) -> None:
    """A student that does not move, so that both runs end with it."""
    still = {"lr": 1e-12, "optimizer": "sgd", "compare": True, "eval_data": "none"}
    changing = train(tmp_path / "run", stores["topk"], temperature=9.0, temperature_end=2.0, **still)
    last = train(tmp_path / "last", stores["topk"], temperature=2.0, **still)
    found = [json.loads((each / "result.json").read_text())["closeness"]["kl"] for each in (changing, last)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_header_says_how_the_temperature_changes(stores: dict[str, Path], shards: Path, tmp_path: Path) -> None:
    steps = {"temperature": 8.0, "temperature_end": 2.0, "temperature_schedule": "step", "temperature_decay": 0.5}
    text = header(train(tmp_path / "step", stores["dense"], temperature_decay_epochs=1, **steps))
    assert "begins at 8 and is multiplied by 0.5 every 1 epochs, down to 2" in text
    assert "the formulas have that of the first step" in text and "softmax(teacher / 8)" in text
    given = {"temperature": 1.0, "temperature_end": 4.0, "temperature_schedule": "cosine", "blend": "mean-logits"}
    text = header(train(tmp_path / "blend", shards, **given))
    assert "goes along half a cosine from 1 at the first step to 4 at the last" in text
    assert "at the first step" in text.split("target = ")[1].splitlines()[0]


# ---- what is refused, before a run has a folder


@pytest.mark.parametrize(
    ("store", "given", "wanted"),
    [
        ("dense", {"temperature": 4.0, "temperature_end": math.inf}, "`temperature_end=inf` is no end of a schedule"),
        ("dense", {"temperature": math.inf, "temperature_end": 4.0}, "`temperature=inf` is no end of a schedule"),
        ("dense", {"temperature_end": 20_000.0}, "`temperature_end=20000`: .*10000"),
        ("dense", {"temperature_end": -1.0}, "`temperature_end` must be more than 0"),
        ("topk", {"temperature": 4.0, "temperature_end": 0.2}, r"`temperature_end=0.2`: .*0\.5"),
        ("topk", {"temperature": 0.2, "temperature_end": 4.0}, r"0\.5"),
        ("sampled", {"temperature": 4.0, "temperature_end": 2.0}, "`temperature_end=2`: .*temperature 4 alone"),
        ("dense", {"temperature_schedule": "cosine"}, "`temperature_schedule` is how .*`temperature_end`; give it"),
        ("dense", {"temperature_end": 2.0, "temperature_decay": 0.5}, "`temperature_decay` is of"),
        ("dense", {"temperature_schedule": "step", "temperature_end": 2.0}, "not below `temperature=1`"),
        ("dense", {"alpha": 1.0, "temperature_end": 2.0}, "`temperature_end` is of the soft loss"),
        ("dense", {"temperature_schedule": "steps", "temperature_end": 2.0}, "temperature_schedule"),
        (
            "topk",
            {"temperature": 4.0, "temperature_end": 2.0, "term": [{"weight": 1, "loss": "js", "temperature": 4.0}]},
            "`temperature_end=2`: .*read at one",
        ),
        ("topk", {"temperature": math.inf, "loss": "kl student_temperature=fit"}, "choose a finite temperature"),
        ("dense", {"loss": "js student_temperature=fit"}, "no setting 'student_temperature'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    stores: dict[str, Path], tmp_path: Path, store: str, given: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted) as refused:
        train(tmp_path / "no", stores[store], **given)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "no").exists()


def test_a_schedule_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`temperature_end` needs a teacher"):
        softlabels.train(data="digits", limit=8, temperature_end=2.0, out=str(tmp_path / "no"), **TINY)


# ---- command line, files and sweeps


def test_the_settings_are_options_of_the_command_and_lines_of_its_file(
    stores: dict[str, Path], tmp_path: Path, softlabels_command: Callable
) -> None:
    run = tmp_path / "run"
    options = ["--student", "cnn_tiny", "--epochs", 2, "--batch-size", 8, "--device", "cpu", "--workers", 0]
    schedule = ["--temperature", 20, "--temperature-end", 2, "--temperature-schedule", "cosine"]
    loss = ["--loss", "kl student_temperature=fit"]
    done = softlabels_command("train", *options, "--labels", stores["dense"], *schedule, *loss, "--out", run)
    assert done.exit_code == 0, done.output
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert (kept["temperature"], kept["temperature_end"], kept["temperature_schedule"]) == (20.0, 2.0, "cosine")
    assert "nothing to do" in softlabels_command("train", "--config", run / "config.yaml", "--out", run).output
    assert "T_s from 0.2 to 20" in header(run)
    refused = softlabels_command("train", *options, "--labels", stores["dense"], "--temperature-end", "inf")
    assert refused.exit_code == 2 and "--temperature-end" in refused.output and "no end of a schedule" in refused.output
    for page in (softlabels_command("train", "--help-all").output, softlabels_command("sweep", "--help-all").output):
        group = page.split("Loss")[1].split("Steps")[0]
        assert "--temperature-end" in group and "--temperature-schedule" in group
    assert "--temperature-decay-epochs" in softlabels_command("train", "--help-all").output


def test_a_sweep_takes_the_end_of_a_schedule_as_an_axis(stores: dict[str, Path], tmp_path: Path) -> None:
    usual = {**TINY, "epochs": 1, "temperature": 4.0, "eval_data": "none"}
    softlabels.sweep(
        labels=str(stores["dense"]),
        grid=["temperature_end=1,4", "loss=kl,kl student_ratio=0.5"],
        out=str(tmp_path),
        **usual,
    )
    headers = [path.read_text() for path in sorted(tmp_path.glob("*/*/header.txt"))]
    assert len(headers) == 4
    assert sum("from 4 at the first step to 1 at the last" in text for text in headers) == 2
    assert sum("T * T_s multiplies" in text for text in headers) == 2
