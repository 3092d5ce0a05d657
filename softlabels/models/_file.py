"""A file of weights that describes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from softlabels.core.config import OBJECT
from softlabels.errors import ModelError
from softlabels.models._architecture import PretrainedWeights, resolve, weights_of
from softlabels.models._preprocessing import Preprocessing
from softlabels.models._spec import NetworkSpec, safe_name
from softlabels.models._teacher import LoadedNetwork
from softlabels.models._weights import BEST, Description, read_weights, weights_file


class FileNetwork(NetworkSpec):
    """The weights at `path`, as training writes them: architecture, classes and preprocessing are read from the file.

    A folder means the best weights of that run.
    """

    shorthand = "path"

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _no_other_weights(cls, weights: str | None) -> str | None:
        if weights is not None:
            raise ValueError(
                "the file is the weights; leave `weights` out, or name an architecture instead of the file"
            )
        return weights

    @property
    def named_after(self) -> Path:
        """The folder of the run whose best or last weights these are, or else the file."""
        file = Path(self.path).expanduser()
        if file.name in (BEST, "last.safetensors"):
            return file.resolve().parent
        # The name of a link to a file is its own: caches keep files under their hashes.
        return file.resolve() if file.is_dir() else file.parent.resolve() / file.name

    @property
    def short_name(self) -> str:
        """The `name`, or else that of the run's folder or of the file."""
        own, file = self.named_after, Path(self.path).expanduser()
        return self.name or safe_name(own.stem if own.name == file.name and not file.is_dir() else own.name)

    @property
    def unfinished_run(self) -> Path | None:
        """The folder of the run whose weights these are, where it has not come to its end."""
        folder = self.named_after
        begun = folder.is_dir() and (folder / "config.yaml").is_file() and not (folder / "result.json").is_file()
        return folder if begun else None

    def check_weights(self, *, training: bool = False) -> None:  # noqa: ARG002
        """See `NetworkSpec.check_weights`."""
        weights_file(self.path)

    def load(self, classes: int | None, clean: bool, preprocessing: Preprocessing | None) -> LoadedNetwork:  # noqa: ARG002
        """See `NetworkSpec.load`; the file says how it takes its images, `clean` or not."""
        weights = load_file(self.path)
        return weights.loaded(preprocessing or self.over(weights.preprocessing))


def load_file(path: str | Path) -> PretrainedWeights:
    """The weights in a file that describes itself, as training writes it, or in a run's folder.

    Raises:
        ModelError: it cannot be read, does not describe itself, or names a network that only a function makes.
    """
    file = read_weights(path)
    where = str(file.path)
    described = Description.from_metadata(file.metadata, file.path)
    if described is None:
        raise ModelError(f"{where} does not say its architecture; name it and add `weights={where}`")
    if described.architecture.startswith(f"{OBJECT}:"):
        raise ModelError(
            f"{where} belongs to a network that was an object of a Python program ({described.architecture[7:]}); give "
            f"such a network beside the file: softlabels.load_student({str(path)!r}, student=NETWORK)"
        )
    if described.own_code:
        # A file of weights must never choose code that is then run.
        function = described.architecture.removeprefix("function:")
        raise ModelError(
            f"{where} belongs to a network of your own, and a file of weights may not choose code; name the function "
            f"yourself: {function} with `weights={where}`"
        )
    return weights_of(resolve(described.architecture), file, described, described.preprocessing)
