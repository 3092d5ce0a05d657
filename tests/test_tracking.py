"""Trackers beside a run's own files: they get every record, and none of them stops a run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import softlabels
from softlabels.journal import Journal
from softlabels.tracking import TRACKERS, TensorBoard, Trackers, tracked

RECORDS = [{"epoch": 1, "step": 3, "loss": 0.5}, {"epoch": 2, "step": 6, "loss": 0.25}]


def keep(kind: Any, folder: Path) -> str:
    """Give the records to a tracker; what it said of its troubles."""
    said = io.StringIO()
    with tracked([kind], folder, {"alpha": 0.5}, Journal(said)) as trackers:
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
def test_weights_and_biases_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert keep("wandb", tmp_path) == ""
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


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
    Trackers({}, Journal(said)).record(RECORDS[0])
    assert said.getvalue() == ""
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("softlabels.tracking.import_module", absent)
    for kind in TRACKERS.names:
        with (
            pytest.raises(softlabels.ConfigError, match=rf"softlabels\[{kind}\]"),
            tracked([kind], tmp_path, {}, Journal(quiet=True)),
        ):
            pass
    with (
        pytest.raises(softlabels.ConfigError, match="tensorboard"),
        tracked(["tensorbord"], tmp_path, {}, Journal(quiet=True)),
    ):
        pass
