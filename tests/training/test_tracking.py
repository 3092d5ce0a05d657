"""Trackers beside a run's own files: they get every record, and none of them stops a run."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import softlabels
from softlabels.core.progress import Terminal
from softlabels.training.tracking import TRACKERS, TensorBoard, Trackers, tracked

RECORDS = [{"epoch": 1, "step": 3, "loss": 0.5}, {"epoch": 2, "step": 6, "loss": 0.25}]


def keep(kind: Any, folder: Path) -> str:
    """Give the records to a tracker; what it said of its troubles."""
    said = io.StringIO()
    with tracked([TRACKERS.make(kind)], folder, {"alpha": 0.5}, Terminal(said)) as trackers:
        for record in RECORDS:
            trackers.record(record)
    return said.getvalue()


def test_tensorboard_gets_every_record(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert keep("tensorboard", tmp_path) == ""
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(3, 0.5), (6, 0.25)]


@pytest.mark.slow
def test_weights_and_biases_works_offline_and_goes_on_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        assert keep("wandb", tmp_path) == ""
    parts = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert parts
    assert len(set(parts)) == 1  # run-ID.wandb in a folder for each part


@pytest.mark.slow
def test_mlflow_gets_every_record(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # mlflow-skinny comes without
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert keep("mlflow", tmp_path) == ""
    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("softlabels").experiment_id])
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")] == [
        (3, 0.5),
        (6, 0.25),
    ]
    assert keep("mlflow", tmp_path) == ""
    (again,) = client.search_runs([client.get_experiment_by_name("softlabels").experiment_id])
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 4


def test_a_training_that_goes_on_stays_in_one_tensorboard_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed a record after its last checkpoint; that epoch is made, and told of, once more."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from softlabels.training.state import TrainState

    settings = {"student": "cnn_tiny", "data": str(photos), "epochs": 6, "track": ["tensorboard"], "device": "cpu"}
    begin = TrainState.begin

    def stumble(self: Any, step: int, passes: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        begin(self, step, passes)

    monkeypatch.setattr(TrainState, "begin", stumble)
    with pytest.raises(KeyboardInterrupt):
        softlabels.train(**settings, checkpoint_every=2, out=str(tmp_path / "run"), quiet=True)
    monkeypatch.setattr(TrainState, "begin", begin)
    softlabels.train(**settings, checkpoint_every=2, out=str(tmp_path / "run"), quiet=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [each.step for each in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [each.value for each in events.Scalars("loss")] == pytest.approx([each["loss"] for each in told])
    assert events.Tags()["tensors"] == ["settings/text_summary"]


class Service:
    """Stands in for the modules of Weights & Biases and MLflow: keeps what it is asked for."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []

    def init(self, **given: Any) -> Any:
        self.begun.append(given)
        return SimpleNamespace(id=given["id"], log=lambda *_, **__: None, finish=lambda: None)


def test_a_training_that_goes_on_gives_its_service_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)  # type: ignore[arg-type]
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        assert keep("wandb", tmp_path / folder) == ""
    one, again, two = (each["id"] for each in service.begun)
    assert one == again != two
    assert {each["resume"] for each in service.begun} == {"allow"}


class Broken:
    """Fails from its second record on."""

    def __init__(self) -> None:
        self.records = 0

    def record(self, step: int, numbers: Mapping[str, float]) -> None:  # noqa: ARG002
        self.records += 1
        if self.records > 1:
            raise ConnectionError("the server is gone")

    def close(self) -> None:
        raise AssertionError("closed after it failed")


def test_a_dead_tracker_never_stops_training(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken()
    monkeypatch.setattr(TensorBoard, "check", lambda _: None)
    monkeypatch.setattr(TensorBoard, "open", lambda *_: broken)
    result = softlabels.train(
        student="cnn_tiny", data=str(photos), epochs=4, track=["tensorboard"], out=str(tmp_path / "a"), quiet=True
    )
    assert result["steps"] == 4
    assert broken.records == 2

    def refuse(*_: object) -> None:
        raise OSError("no such server")

    monkeypatch.setattr(TensorBoard, "open", refuse)
    assert "tracker tensorboard failed (no such server); the run goes on without it" in keep("tensorboard", tmp_path)


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path) -> None:
    said = io.StringIO()
    Trackers({}, Terminal(said)).record(RECORDS[0])
    assert said.getvalue() == ""
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in TRACKERS.names:
        monkeypatch.setitem(sys.modules, kind, None)
        with (
            pytest.raises(softlabels.ConfigError, match=rf"softlabels\[{kind}\]"),
            tracked([TRACKERS.make(kind)], tmp_path, {}, Terminal(quiet=True)),
        ):
            pass
