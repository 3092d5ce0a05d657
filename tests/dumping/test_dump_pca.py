"""Features by their principal components, from the dump to the training: one basis, and nothing lost on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import TINY

import softlabels
from softlabels.errors import ConfigError, StoreError

FORMATS = ("hdf5", "zarr")
MAP = "map=features.2:grid4=pca:12"
DUMP: dict[str, Any] = {
    "teacher": ["cnn_small"], "weights": ["random"], "views": 2, "device": "cpu", "workers": 0, "quiet": True,
    "rows_per_shard": 7, "output": [MAP, "whole=features.2:grid4=dense:fp32"],
}  # fmt: skip


def dumped(photos: Path, out: Path, **changes: Any) -> softlabels.Labels:
    softlabels.dump(data=str(photos), out=str(out), **{**DUMP, **changes})
    return softlabels.open_labels(out)


def fit(labels: softlabels.Labels) -> dict[str, Any]:
    found: dict[str, Any] = labels.of("cnn_small@map").card.codec["fit"]
    return found


def error(labels: softlabels.Labels, view: int = 1) -> float:
    """What is lost, as a share of the distances from the mean row."""
    rows = range(len(labels))
    stored, given = (labels.output(rows, view, name).flatten(1) for name in ("map", "whole"))
    return float((stored - given).norm() / (given - given.mean(dim=0)).norm())


@pytest.mark.parametrize("format", FORMATS)
def test_maps_come_back_in_their_shape_and_nearly_as_they_were(photos: Path, tmp_path: Path, format: str) -> None:
    labels = dumped(photos, tmp_path / "s", format=format)
    assert labels.outputs() == ("map", "whole")
    assert tuple(labels.output_shape("map")) == tuple(labels.output_shape("whole"))
    rows = range(len(labels))
    assert labels.output(rows, 1, "map").shape == labels.output(rows, 1, "whole").shape
    left = (1 - fit(labels)["share"]) ** 0.5
    assert 0.5 * left < error(labels) < 1.5 * left + 0.02
    assert softlabels.info(labels=str(tmp_path / "s"))["teachers"]["cnn_small"]["outputs"] == ["map", "whole"]
    assert softlabels.verify(labels=str(tmp_path / "s"), quiet=True).ok
    record = labels.of("cnn_small@map").card.layout["record"]
    assert record.record == 4 + 12 and "fit" not in str(labels)


def test_the_basis_that_is_there_serves_later_views_outputs_and_repairs(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    dumped(photos, out, output=[])
    labels = dumped(photos, out)  # added to labels that are there
    first = fit(labels)
    before = labels.output(range(len(labels)), 1, "map")
    more = dumped(photos, out, views=5)
    assert fit(more) == first and more.views == 5
    assert torch.equal(more.output(range(len(more)), 1, "map"), before)
    assert error(more, view=4) < 3 * error(more, view=1) + 0.05
    (shard,) = (out / "cnn_small@map").glob("00001-v0-2.*")
    shard.unlink()
    softlabels.dump(data=str(photos), out=str(out), **{**DUMP, "views": 5})
    again = softlabels.open_labels(out)
    assert fit(again) == first and torch.equal(again.output(range(len(again)), 1, "map"), before)
    with pytest.raises(StoreError, match=r"other labels under the name cnn_small@map: codec\.k"):
        dumped(photos, out, views=5, output=["map=features.2:grid4=pca:11"])


def test_they_go_along_with_conversions_and_bases_learnt_apart_are_not_mixed(photos: Path, tmp_path: Path) -> None:
    labels = dumped(photos, tmp_path / "s")
    softlabels.convert(labels=str(tmp_path / "s"), out=str(tmp_path / "z"), format="zarr", quiet=True)
    rows = range(len(labels))
    converted = softlabels.open_labels(tmp_path / "z")
    assert torch.equal(converted.output(rows, 0, "map"), labels.output(rows, 0, "map"))
    softlabels.merge(labels=[str(tmp_path / "s"), str(tmp_path / "z")], out=str(tmp_path / "m"), quiet=True)
    assert fit(softlabels.open_labels(tmp_path / "m")) == fit(labels)
    # The same images in fewer views teach another basis.
    dumped(photos, tmp_path / "other", views=1)
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(StoreError, match="bases that each has learnt by itself"):
        softlabels.merge(labels=[str(tmp_path / "s"), str(tmp_path / "other")], out=str(tmp_path / "m"), quiet=True)


def test_a_student_learns_from_them_as_from_whole_maps(photos: Path, tmp_path: Path) -> None:
    dumped(photos, tmp_path / "s")
    found = {}
    for name in ("map", "whole"):
        settings = {**TINY, "epochs": 4, "term": [f"0.5*hint@{name}:features.2"], "lr": 0.01, "eval_data": "none"}
        softlabels.train(labels=str(tmp_path / "s"), out=str(tmp_path / name), **settings)
        lines = (tmp_path / name / "metrics.csv").read_text().splitlines()
        found[name] = [float(line.split(",")[lines[0].split(",").index(f"hint@{name}")]) for line in lines[1:]]
    assert found["map"][-1] < found["map"][0]
    assert found["map"] == pytest.approx(found["whole"], rel=0.1)


def test_a_plan_says_their_error_and_nothing_is_written_where_there_is_too_little_to_learn_from(
    softlabels_command: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    settings = {name: value for name, value in DUMP.items() if name != "output"}
    (plan,) = softlabels.plan(data=str(photos), output=[MAP], **settings)
    chosen, other = plan.outputs
    assert (chosen.codec, chosen.bytes_per_label, other.codec) == ("pca:12", 16, "int8")
    assert 1e-3 < chosen.error < 0.5 and other.error < chosen.error
    command = ("dump", "--teacher", "cnn_small", "--weights", "random", "--data", photos, "--views", 2)
    common = ("--device", "cpu", "--workers", 0, "--out", tmp_path / "s", "--quiet")
    for also, wanted in (
        ("map=features.2:grid4=pca:100", "output 'map': pca:100 learns from more than 100 rows, and there are 36"),
        ("p=dropout=pca:96", "output 'p': pca:96 saves nothing for rows of 96 values"),
        ("p=features.0=pca:9000", "pool the output"),
        ("p=dropout=pca:0", "k must be 1 or more"),
    ):
        done = softlabels_command(*command, "--also", also, *common)
        assert done.exit_code in (1, 2) and wanted in done.output, done.output
        assert len(done.output.strip().splitlines()) == 1 and not (tmp_path / "s" / "cnn_small").exists()
    with pytest.raises(ConfigError, match="output=NAME=pca"):
        softlabels.dump(data=str(photos), out=str(tmp_path / "t"), **{**DUMP, "codec": "pca:4"})
