"""A flipped bit in any file is found when it is used, or changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reliability.faults import Commands
from reliability.ledger import note
from reliability.operations import CPU, DUMP, TRAIN, flip

import softlabels
from softlabels.models import digest, read_description, read_weights
from softlabels.training.checkpoints import load_checkpoint

QUICK, LONG = 12, 400
"""Flips of each kind of thing."""

Read = Callable[[Path], Any]


def labels(root: Path) -> Any:
    """All that an own loop can read, and what pairs it with images."""
    opened = softlabels.open_labels(root)
    rows = np.arange(len(opened))
    return (
        [opened.logits(rows, view).numpy().tobytes() for view in range(opened.views)],
        *(opened.views, opened.classes, opened.seed, opened.recipe, opened.class_names, opened.keys.to_pylist()),
    )


def pack(root: Path) -> Any:
    """All images of a pack, their keys and labels."""
    images = softlabels.open_images(f"pack:{root}")
    shown = [images.decode(row).numpy().tobytes() for row in range(len(images))]
    return shown, images.keys.to_pylist(), images.labels.tolist(), images.classes


def checkpoint(root: Path) -> Any:
    """The state that a run goes on from. An older checkpoint in the place of a damaged one is an answer, too."""
    found = load_checkpoint(root)
    assert found is not None
    step, state, problems = found
    if problems:
        raise softlabels.RunError(problems[0])
    return step, _digests(state)


def _digests(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return digest({"": value})
    if isinstance(value, dict):
        return {name: _digests(inner) for name, inner in value.items()}
    return [_digests(inner) for inner in value] if isinstance(value, list) else value


def student(root: Path) -> Any:
    """The tensors of a student, and what its file says of it."""
    return read_weights(root / "best.safetensors").sha256, read_description(root / "best.safetensors")


def flips(row: str, root: Path, read: Read, count: int, scratch: Path) -> None:
    """Flip bits all over the files below `root`, each for itself, and read. Each is found or harmless."""
    random, before, found = np.random.default_rng(0), read(root), 0
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]
    for number in range(count):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(root, scratch)
        path = scratch / paths[number % len(paths)].relative_to(root)
        bit = int(random.integers(0, 8 * path.stat().st_size))
        flip(path, bit)
        try:
            after = read(scratch)
        except softlabels.SoftlabelsError as problem:
            assert "\n" not in str(problem), f"bit {bit} of {path}: {problem}"
            note(row)
            found += 1
        except Exception as problem:
            note(row, "traceback")
            raise AssertionError(f"bit {bit} of {path}") from problem
        else:
            note(row, *(() if after == before else ("silent",)))
            assert after == before, f"bit {bit} of {path} changed what is read, and nobody said so"
    assert found > count // 4


@pytest.fixture(scope="module")
def run(server: Commands, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert server.run(*TRAIN, "--labels", made / "hdf5", "--out", out).code == 0
    return out


def things(server: Commands, made: Path, run: Path, tmp_path: Path) -> list[tuple[str, Path, Read]]:
    packed = tmp_path / "zstd"
    assert server.run(*DUMP, "--compression", "zstd", "--out", packed).code == 0
    alone = tmp_path / "student"
    alone.mkdir()
    shutil.copy(run / "best.safetensors", alone)
    return [
        ("flips in a store, own loop: hdf5", made / "hdf5", labels),
        ("flips in a store, own loop: zarr", made / "zarr", labels),
        ("flips in a store, own loop: hdf5, zstd", packed, labels),
        ("flips in a pack: hdf5", made / "pack-hdf5", pack),
        ("flips in a pack: zarr", made / "pack-zarr", pack),
        ("flips in a checkpoint", run / "checkpoints", checkpoint),
        ("flips in a student's file", alone, student),
    ]


def test_a_flipped_bit_is_found_or_harmless(server: Commands, made: Path, run: Path, tmp_path: Path) -> None:
    for row, root, read in things(server, made, run, tmp_path):
        flips(row, root, read, QUICK, tmp_path / "scratch")


@pytest.mark.slow
def test_any_flipped_bit_is_found_or_harmless(server: Commands, made: Path, run: Path, tmp_path: Path) -> None:
    for row, root, read in things(server, made, run, tmp_path):
        flips(row, root, read, LONG, tmp_path / "scratch")


def resumed(server: Commands, made: Path, run: Path, tmp_path: Path, count: int) -> None:
    """The same training after a flip in any file of its folder ends as it would have, or says what is wrong."""
    words = (*TRAIN, "--labels", made / "hdf5", "--out", tmp_path / "out")
    random = np.random.default_rng(1)
    for number in range(count):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(run, tmp_path / "out")
        (tmp_path / "out/result.json").unlink()
        shutil.rmtree(sorted((tmp_path / "out/checkpoints").iterdir())[-1])  # as if it had been killed before
        paths = [path for path in sorted((tmp_path / "out").rglob("*")) if path.is_file() and path.suffix != ".csv"]
        path = paths[number % len(paths)]
        flip(path, int(random.integers(0, 8 * path.stat().st_size)))
        ended = server.run(*words)
        row, outcomes = "flips in a run's folder, trained on", []
        if "Traceback" in ended.output:
            outcomes.append("traceback")
        elif ended.code == 0 and (tmp_path / "out/last.safetensors").read_bytes() != student_bytes(run):
            outcomes.append("silent")
        elif ended.code not in (0, 1, 2):
            outcomes.append("crashed")
        note(row, *outcomes)
        assert not outcomes, f"{path}: {ended}"


def student_bytes(run: Path) -> bytes:
    return (run / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_a_training_that_goes_on_after_a_flip_is_right_or_says_what_is_wrong(
    server: Commands, made: Path, run: Path, tmp_path: Path
) -> None:
    resumed(server, made, run, tmp_path, 8)


@pytest.mark.slow
def test_a_training_that_goes_on_after_any_flip_is_right_or_says_what_is_wrong(
    server: Commands, made: Path, run: Path, tmp_path: Path
) -> None:
    resumed(server, made, run, tmp_path, 120)


def test_evaluation_of_a_damaged_student_is_refused_in_one_line(server: Commands, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "best.safetensors", tmp_path)
    flip(tmp_path / "best.safetensors", 8 * ((tmp_path / "best.safetensors").stat().st_size - 400) + 6)
    ended = server.run("eval", "--student", tmp_path / "best.safetensors", "--data", "digits", *CPU)
    assert ended.code == 1
    assert "best.safetensors" in ended.output
    assert "does not match its checksum" in ended.output
    assert ended.output.count("\n") == 1
