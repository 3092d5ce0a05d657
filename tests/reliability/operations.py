"""The commands that are put to the test, each on a small store of digits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CPU = ("--workers", 0, "--device", "cpu")
DUMP = (
    *("dump", "--teacher", "cnn_tiny", "--weights", "random:0", "--data", "digits", "--recipe", "pad", "--views", 2),
    *("--limit", 40, "--rows-per-shard", 20, *CPU),
)
PACK = ("pack", "--data", "digits", "--limit", 40, "--rows-per-shard", 20, "--threads", 1)
TRAIN = (
    *("train", "--student", "cnn_tiny", "--size", 8, "--batch-size", 20, "--epochs", 2, "--checkpoint-every", 1),
    *CPU,
)


@dataclass(frozen=True)
class Operation:
    """A command that works on `out` in a folder; `prepare` puts there what it needs, from what was made before."""

    name: str
    words: Callable[[Path], tuple[object, ...]]
    prepare: Callable[[Path, Path], None] = lambda made, root: None  # noqa: ARG005

    def result(self, root: Path) -> dict[str, bytes]:
        """What it is to leave, without what tells the time, the place or the process."""
        out = root / "out"
        return {
            str(path.relative_to(out)): path.read_bytes()
            for path in sorted(out.rglob("*"))
            if path.is_file() and _counts(path)
        }


def _counts(path: Path) -> bool:
    if any(part.startswith(".partial-") or part == "checkpoints" for part in path.parts):
        return False  # what the next writer removes
    if any(parent.suffix == ".zarr" for parent in path.parents):
        return True
    return path.suffix in (".h5", ".safetensors", ".parquet")


def damaged(made: Path, root: Path, form: str) -> None:
    """A store of which one label is wrong."""
    shutil.copytree(made / form, root / "out")
    path = next(each for each in sorted((root / "out/cnn_tiny").rglob("00001*")) if each.suffix in (".h5", ".zarr"))
    if path.is_dir():
        path = next(each for each in sorted(path.rglob("c/**/*")) if each.is_file())
    flip(path, 8 * (path.stat().st_size - 300) + 3)


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


OPERATIONS = (
    *(
        Operation(f"dump {form}", lambda root, form=form: (*DUMP, "--format", form, "--out", root / "out"))
        for form in ("hdf5", "zarr")
    ),
    *(
        Operation(f"pack {form}", lambda root, form=form: (*PACK, "--format", form, "--out", root / "out"))
        for form in ("hdf5", "zarr")
    ),
    Operation(
        "convert",
        lambda root: ("convert", "--labels", root / "in", "--out", root / "out", "--format", "zarr"),
        lambda made, root: shutil.copytree(made / "hdf5", root / "in") and None,
    ),
    *(
        Operation(
            f"repair --redump {form}",
            lambda root: ("repair", "--redump", "--labels", root / "out", "--batch-size", 64, *CPU),
            lambda made, root, form=form: damaged(made, root, form),
        )
        for form in ("hdf5", "zarr")
    ),
    Operation(
        "train",
        lambda root: (*TRAIN, "--labels", root / "in", "--out", root / "out"),
        lambda made, root: shutil.copytree(made / "hdf5", root / "in") and None,
    ),
)
