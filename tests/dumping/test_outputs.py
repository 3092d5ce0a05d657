"""Outputs of a teacher beside its logits: stored by the same passes, read by name, and learnt from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import TINY

import softlabels
from softlabels.errors import ConfigError, StoreError
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import NetworkTeacher, teacher_spec

FORMATS = ("hdf5", "zarr")
DUMP: dict[str, Any] = {
    "teacher": ["cnn_tiny"], "weights": ["random"], "views": 2, "device": "cpu", "workers": 0, "quiet": True,
    "rows_per_shard": 7,
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_a_layer_is_stored_by_the_passes_that_give_the_logits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    seen: list[int] = []
    whole = NetworkTeacher.outputs

    def outputs(teacher: NetworkTeacher, pictures: torch.Tensor, names: Any = ("logits",)) -> Any:
        seen.append(len(pictures))
        return whole(teacher, pictures, names)

    monkeypatch.setattr(NetworkTeacher, "outputs", outputs)
    both = {"output": ["dropout", "features.0=dense:fp32"], "format": format}
    softlabels.dump(data=str(photos), out=str(tmp_path / "both"), **both, **DUMP)
    once = sum(seen)
    seen.clear()
    softlabels.dump(data=str(photos), out=str(tmp_path / "alone"), format=format, **DUMP)
    assert once <= sum(seen) + 1  # a grey image tells how many values there are
    labels, alone = (softlabels.open_labels(tmp_path / name) for name in ("both", "alone"))
    assert labels.teachers == ("cnn_tiny",) and labels.outputs() == ("dropout", "features.0")
    assert (alone.outputs(), labels.views) == ((), 2)
    rows = range(len(labels))
    assert torch.equal(labels.logits(rows, 1), alone.logits(rows, 1))
    teacher = teacher_spec("cnn_tiny", "random").open(classes=labels.classes)
    images = softlabels.open_images(str(photos))
    pictures = ViewDataset.of_store(labels.store, images, 2, image_spec(teacher.preprocessing))
    shown = pictures.render(labels.rows(images.keys), [1] * len(rows))
    wanted = teacher.outputs(shown, ("dropout", "features.0"))
    torch.testing.assert_close(labels.output(rows, 1, "dropout"), wanted["dropout"], rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(labels.output(rows, 1, "features.0"), wanted["features.0"], rtol=1e-4, atol=1e-5)
    with pytest.raises(StoreError, match="no output 'cnn_tiny@dropped'; did you mean 'cnn_tiny@dropout'"):
        labels.output(rows, 0, "dropped")


def test_an_output_can_be_added_later_and_what_is_there_stays(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    softlabels.dump(data=str(photos), out=str(out), **DUMP)
    before = {path: path.stat().st_mtime_ns for path in (out / "cnn_tiny").iterdir()}
    (report,) = softlabels.dump(data=str(photos), out=str(out), output=["dropout"], **DUMP)
    assert report.shards == 3
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cnn_tiny").iterdir()}
    (report,) = softlabels.dump(data=str(photos), out=str(out), output=["dropout"], **DUMP)
    assert report.shards == 0
    with pytest.raises(StoreError, match=r"other labels under the name cnn_tiny@dropout: codec\.dtype"):
        softlabels.dump(data=str(photos), out=str(out), output=["dropout=dense:fp32"], **DUMP)
    assert softlabels.verify(labels=str(out), quiet=True).ok
    assert softlabels.info(labels=str(out))["teachers"]["cnn_tiny"]["outputs"] == ["dropout"]
    (out / "cnn_tiny@dropout").rename(out / "cnn_tiny@dropped")
    with pytest.raises(StoreError, match="is of the output 'dropout'; the folder was renamed"):
        softlabels.open_labels(out)


def test_outputs_go_along_and_are_checked_and_repaired(photos: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "s", tmp_path / "z"
    softlabels.dump(data=str(photos), out=str(out), output=["dropout"], **DUMP)
    softlabels.convert(labels=str(out), out=str(other), format="zarr", codec="topk:2", lossy=True, quiet=True)
    whole = softlabels.open_labels(out)
    rows = range(len(whole))
    wanted = whole.output(rows, 1, "dropout")
    assert torch.equal(softlabels.open_labels(other).output(rows, 1, "dropout"), wanted)
    shard = out / "cnn_tiny@dropout" / "00001-v0-2.h5"
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)
    found = softlabels.verify(labels=str(out), shards_only=True, quiet=True)
    assert any("cnn_tiny@dropout" in problem for problem in found.problems)
    softlabels.repair(labels=str(out), data=str(photos), redump=True, device="cpu", quiet=True)
    assert softlabels.verify(labels=str(out), shards_only=True, quiet=True).ok
    assert torch.equal(softlabels.open_labels(out).output(rows, 1, "dropout"), wanted)


@pytest.mark.parametrize("codec", ["dense", "topk:2"])
def test_a_student_learns_from_an_output_by_naming_it(photos: Path, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "s"
    softlabels.dump(data=str(photos), out=str(out), codec=codec, output=["dropout"], **DUMP)
    settings = {**TINY, "student": "cnn_tiny", "epochs": 40, "term": ["1.0*mse@dropout"], "lr": 0.01}
    softlabels.train(labels=str(out), out=str(tmp_path / "run"), **settings)
    records = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    names = records[0].split(",")
    first, last = (float(records[place].split(",")[names.index("mse@dropout")]) for place in (1, -1))
    assert 0 < last < first / 2
    live = {**settings, "epochs": 1, "teacher": ["cnn_tiny"], "teacher_weights": ["random"], "data": str(photos)}
    softlabels.train(out=str(tmp_path / "live"), **live)
    for student, term, wrong in (
        ("cnn_tiny", "mse@dropped", r"output 'dropped' is not in .*; dump it with `output=dropped`"),
        ("cnn_small", "mse@dropout", "compares 96 values of the student's dropout with 32 of the teacher's dropout"),
    ):
        given = {**settings, "student": student, "term": [f"1*{term}"]}
        with pytest.raises(ConfigError, match=wrong):
            softlabels.train(labels=str(out), out=str(tmp_path / "no"), **given)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("codec", ["dense:fp16", "topk:3", "quantized:8", "head_tail", "probabilities:2", "sampled"])
def test_features_are_not_stored_in_codecs_that_lose_their_offset(
    softlabels_command: Callable[..., Any], photos: Path, codec: str
) -> None:
    command = (
        "dump",
        "--teacher",
        "cnn_tiny",
        "--weights",
        "random",
        "--data",
        photos,
        "--out",
        "s",
        "--device",
        "cpu",
    )
    done = softlabels_command(*command, "--also", f"own=dropout={codec}")
    assert done.exit_code != 0 and not Path("s").exists()
    assert f"output 'own': {codec.partition(':')[0]}" in done.output
    assert (
        "write dense:fp16-raw, dense:fp32, int8 or pca:64" in done.output and len(done.output.strip().splitlines()) == 1
    )


def test_an_output_named_twice_is_named(softlabels_command: Callable[..., Any]) -> None:
    done = softlabels_command("dump", "--teacher", "cnn_tiny", "--also", "m=dropout", "--also", "m=features.0")
    assert done.exit_code == 2 and "output 'm' is named twice" in done.output and "--output" not in done.output


@pytest.mark.parametrize("given", ["logits", "a/b", "dropout=", "=dense", "map=features.0:men", "map=features.0=dens"])
def test_an_output_that_cannot_be_stored_is_a_mistake_of_the_command(
    softlabels_command: Callable[..., Any], photos: Path, given: str
) -> None:
    done = softlabels_command("dump", "--teacher", "cnn_tiny", "--data", photos, "--output", given)
    line = done.output.splitlines()[-1]
    wanted = "unknown codec 'dens'" if given.endswith("dens") else f"{given!r} is no output"
    assert done.exit_code == 2 and wanted in line
    unknown = softlabels_command(
        *("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--output", "drop")
    )
    assert unknown.exit_code == 1 and "has no module or output 'drop'" in unknown.output and "dropout" in unknown.output
    mistyped = softlabels_command(
        *("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--also", "dropout=dens")
    )
    assert mistyped.exit_code == 1 and "has no module or output 'dens'" in mistyped.output
    assert "as a codec: 'dense'?" in mistyped.output and len(mistyped.output.strip().splitlines()) == 1
