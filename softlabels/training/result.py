"""What a finished training came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.core.progress import read_metrics
from softlabels.training.evaluate import Agreement, Score

if TYPE_CHECKING:
    import pandas as pd


class TrainResult(Mapping[str, Any]):
    """The result of a training: its scores, and where its files lie. Also a mapping, of what ``result.json`` holds.

    Accuracies are in [0, 1]; they are None where the student was not evaluated.
    """

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        self._values, self.folder = {**values, "folder": str(folder)}, folder

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        scores = [f"{name} {score.top1:.4f}" for name, score in (("top1", self.last), ("best", self.best)) if score]
        return f"TrainResult({', '.join([*scores, f'steps={self.steps}', f'folder={str(self.folder)!r}'])})"

    @cached_property
    def last(self) -> Score | None:
        """The score at the end of the training."""
        return Score(**self["last"]) if self["last"] else None

    @cached_property
    def best(self) -> Score | None:
        """The best score of any evaluation."""
        return Score(**self["best"]) if self["best"] else None

    @property
    def top1(self) -> float | None:
        """The accuracy at the end of the training; `best` was chosen by the images that it is scored on."""
        return self.last.top1 if self.last else None

    @property
    def closeness(self) -> Agreement | None:
        """How near the student has come to its teachers; None unless asked for with `compare`."""
        found = self.get("closeness")
        return Agreement(**found) if found else None

    @property
    def weights(self) -> Path:
        """The weights of the best score; `load_student` opens them."""
        return self.folder / "best.safetensors"

    @property
    def last_weights(self) -> Path:
        """The weights at the end of the training."""
        return self.folder / "last.safetensors"

    @property
    def parameters(self) -> int:
        """How many numbers of the student are trained."""
        return int(self["parameters"])

    @property
    def images(self) -> int:
        """How many images it was trained on."""
        return int(self["images"])

    @property
    def steps(self) -> int:
        """Optimizer steps made."""
        return int(self["steps"])

    @property
    def seconds(self) -> float:
        """How long the last part of the training took, from where it was gone on with."""
        return float(self["seconds"])

    @property
    def label_bytes(self) -> int:
        """Bytes of the stored labels; 0 without."""
        return int(self["label_bytes"])

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row per epoch: ``step``, ``epoch``, ``loss``, ``top1`` and the others of the run's ``metrics.csv``."""
        import pandas as pd

        return pd.DataFrame(read_metrics(self.folder / "metrics.jsonl"))
