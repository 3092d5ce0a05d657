"""Where a run's records go besides its own files: one small interface, each service imported when it is asked for.

A tracker that fails is left behind with a line; it never stops a run. A training that is resumed goes on in the run
that its tracker has begun, whose id is kept in the training's folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from softlabels.core.config import Part, Table
from softlabels.core.files import read_json, write_json
from softlabels.core.installed import required
from softlabels.core.progress import Terminal
from softlabels.errors import RunError

IDS = "tracking.json"
"""In a run's folder: the ids of its runs elsewhere."""


class Tracking(Protocol):
    """An opened tracker."""

    def record(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep an epoch's numbers, which were reached at `step`."""

    def close(self) -> None:
        """Send what is left."""


class Tracker(Protocol):
    """A frozen part that says where records go."""

    @property
    def kind(self) -> str: ...

    def check(self) -> None:
        """Raises ConfigError when what it needs is not installed."""

    def open(self, folder: Path, settings: Mapping[str, Any]) -> Tracking:
        """Begin the run of this folder and these settings, or go on with it."""


class TensorBoard(Part):
    """Event files in ``tensorboard`` inside the run's folder."""

    kind: Literal["tensorboard"] = "tensorboard"

    def check(self) -> None:
        required("tensorboard", "tensorboard", "`track=tensorboard`")

    def open(self, folder: Path, settings: Mapping[str, Any]) -> Tracking:
        return _TensorBoard(
            folder / "tensorboard", "\n".join(f"    {name}: {value}" for name, value in settings.items())
        )


class WandB(Part):
    """Weights & Biases; offline, nothing leaves the run's folder until `wandb sync`."""

    kind: Literal["wandb"] = "wandb"
    project: str = "softlabels"
    mode: Literal["offline", "online"] = "offline"

    def check(self) -> None:
        required("wandb", "wandb", "`track=wandb`")

    def open(self, folder: Path, settings: Mapping[str, Any]) -> Tracking:
        import wandb

        begun = _kept(folder, self.kind)
        run = wandb.init(
            project=self.project,
            name=str(folder),
            dir=str(folder),
            mode=self.mode,
            config=dict(settings),
            reinit="create_new",
            # Offline, each part of a run is a folder of its own; one id makes them one run when they are synced.
            id=begun or secrets.token_hex(4),
            resume="allow",
        )
        _keep(folder, self.kind, run.id)
        return _WandB(run)


class MLflow(Part):
    """An MLflow server, or (None) the database ``mlflow.db`` inside the run's folder."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = None
    experiment: str = "softlabels"

    def check(self) -> None:
        required("mlflow", "mlflow", "`track=mlflow`")

    def open(self, folder: Path, settings: Mapping[str, Any]) -> Tracking:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri or f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        begun = _kept(folder, self.kind)
        if begun is not None and _mlflow_has(client, begun):
            client.update_run(begun, status="RUNNING")
            return _MLflow(client, begun)
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found is not None else client.create_experiment(self.experiment)
        run = client.create_run(experiment, run_name=str(folder)).info.run_id
        for name, value in settings.items():
            client.log_param(run, name, str(value)[:500])
        _keep(folder, self.kind, run)
        return _MLflow(client, run)


TRACKERS: Table[Tracker] = Table("tracker", "trackers", {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow})
"""Every tracker by its kind."""


def _kept(folder: Path, kind: str) -> str | None:
    """The id of the run that this tracker began for this folder; None for a new one."""
    path = folder / IDS
    found = read_json(path, error=RunError).get(kind) if path.exists() else None
    return str(found) if found else None


def _keep(folder: Path, kind: str, run: str) -> None:
    path = folder / IDS
    kept = read_json(path, error=RunError) if path.exists() else {}
    write_json(path, {**kept, kind: run})


def _mlflow_has(client: Any, run: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run)
    except MlflowException:
        return False
    return True


class _TensorBoard:
    """The writer is made at the first record, whose step says which of an earlier part's records are void.

    A part that was killed may have told of epochs that its checkpoint had not reached.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self._folder, self._settings = folder, settings
        self._writer: Any = None

    def record(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._begun(step)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begun(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        goes_on = self._folder.exists()
        writer = SummaryWriter(str(self._folder), purge_step=step if goes_on else None)
        if not goes_on:
            writer.add_text("settings", self._settings)
        return writer


class _WandB:
    def __init__(self, run: Any) -> None:
        self._run = run

    def record(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def record(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Trackers:
    """Several trackers as one; each is left behind at its first failure."""

    def __init__(self, opened: Mapping[str, Tracking], terminal: Terminal) -> None:
        self._opened, self._journal = dict(opened), terminal

    def record(self, record: Mapping[str, Any]) -> None:
        """Keep an epoch's record, as it stands in ``metrics.jsonl``."""
        numbers = {name: float(value) for name, value in record.items() if name != "step"}
        for name, tracking in list(self._opened.items()):
            with self._surviving(name):
                tracking.record(record["step"], numbers)

    def close(self) -> None:
        """Close them all."""
        for name, tracking in list(self._opened.items()):
            with self._surviving(name):
                tracking.close()

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as problem:
            self._opened.pop(name, None)
            _left_behind(name, problem, self._journal)


def check_trackers(trackers: Iterable[Tracker]) -> None:
    """Raises ConfigError where the package of one is not installed."""
    for each in trackers:
        each.check()


@contextmanager
def tracked(
    trackers: Sequence[Tracker], folder: Path, settings: Mapping[str, Any], terminal: Terminal
) -> Iterator[Trackers]:
    """The trackers, open while the block runs.

    Raises:
        ConfigError: the package of one is not installed.
    """
    check_trackers(trackers)
    opened = {}
    for part in trackers:
        try:
            opened[part.kind] = part.open(folder, settings)
        except Exception as problem:
            _left_behind(part.kind, problem, terminal)
    group = Trackers(opened, terminal)
    try:
        yield group
    finally:
        group.close()


def _left_behind(name: str, problem: Exception, terminal: Terminal) -> None:
    reason = " ".join(str(problem).split())[:200] or type(problem).__name__
    terminal.say(f"tracker {name} failed ({reason}); the run goes on without it")
