"""The benchmark of bytes on disk against fidelity says what a store of those labels holds."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import softlabels

ROOT = Path(__file__).parents[2]
VIEWS, IMAGES, CLASSES, FEATURES = 4, 40, 30, 12
CHECKSUM = 4
"""Bytes of a checksum, of which a shard has one for each view."""


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("codec_curve", ROOT / "benchmarks" / "codec_curve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


curve = loaded()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store`, of logits as they are, `rounded`, and `weight.npy`."""
    folder = tmp_path_factory.mktemp("teacher")
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, FEATURES, generator=chance)
    features = torch.randn(IMAGES, FEATURES, generator=chance)
    seen = features + 0.5 * torch.randn(VIEWS, IMAGES, FEATURES, generator=chance)
    logits = curve.Logits("made up", seen @ weight.T, [f"image {number}" for number in range(IMAGES)])
    for name, codec in (("store", "dense:fp32"), ("rounded", "topk:5")):
        curve.written(softlabels.codecs.CODECS.make(codec), logits, folder / name)
    np.save(folder / "weight.npy", weight.numpy())
    return folder


def ran(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["codec_curve.py", *map(str, options)])
    curve.main()


def test_every_codec_that_is_asked_for_is_printed_and_drawn(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--labels", teacher / "store", "--weight", teacher / "weight.npy", "--labels-read", 50)
    families = ["dense", "topk", "transform", "FKD", "LPQLD"]
    monkeypatch.setitem(curve.FAMILIES, "transform", ["transform:20", "transform:30"])
    ran(monkeypatch, *given, "--views", "3,4", "--codecs", ",".join(families), "--out", tmp_path / "curve.svg")
    printed = capsys.readouterr().out
    for views in (3, 4):
        assert f"teacher in {teacher / 'store'}: 40 images in {views} views, 30 classes" in printed
    for text in (text for family in families for text in curve.FAMILIES[family]):
        assert printed.count(f"\n{text} ") + printed.count(f"({text}) ") == 2, text
    for line in (line for line in printed.splitlines() if line.startswith("dense:fp32")):
        assert line.split()[4:] == ["0.00000"] * 4 + ["|"] + ["1.0000"] * 4 + ["|"] + ["1.0000"] * 4
    drawn = "".join(ElementTree.parse(tmp_path / "curve.svg").getroot().itertext())
    for name in ("topk", "transform, 3 views", "transform, 4 views", "FKD", "LPQLD", "T = 20"):
        assert name in drawn


@pytest.mark.slow
def test_without_a_store_logits_are_synthetic(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(monkeypatch, "--views", "3", "--labels-read", 20)
    printed = capsys.readouterr().out
    assert "synthetic logits: 200 images in 3 views, 1,000 classes" in printed
    for text in (text for texts in curve.FAMILIES.values() for text in texts):
        assert printed.count(f"\n{text} ") + printed.count(f"({text}) ") == 1, text
    assert "left out" not in printed


def test_bytes_are_those_of_the_files_and_losses_those_of_the_labels_that_are_read(
    teacher: Path, tmp_path: Path
) -> None:
    logits = curve.stored_logits(str(teacher / "store"), None, VIEWS)
    row = curve.measured("topk", "topk:5", logits, None, tmp_path / "topk", IMAGES * VIEWS)
    (shard,) = (tmp_path / "topk").rglob("*.h5")
    assert row.disk == shard.stat().st_size / (IMAGES * VIEWS)
    bytes_per_label = softlabels.codecs.CODECS.make("topk:5").bytes_per_label(CLASSES)
    assert row.arrays == pytest.approx(bytes_per_label + CHECKSUM / IMAGES)
    assert row.arrays < row.disk
    dense, stored = softlabels.open_labels(teacher / "store"), softlabels.open_labels(tmp_path / "topk")
    rows, here = dense.rows(logits.keys), stored.rows(logits.keys)
    for place, temperature in enumerate(curve.TEMPERATURES):
        lost = []
        for view in range(VIEWS):
            p, q = (
                each.double()
                for each in (
                    dense.probabilities(rows, view, temperature),
                    stored.probabilities(here, view, temperature),
                )
            )
            lost.append((p * (p / q).log()).sum(-1).mean().item())
        assert row.kl[place] == pytest.approx(np.mean(lost), rel=1e-3, abs=1e-6)
    assert row.kl[0] > 1e-3
    assert all(0 < value < 1 for value in [*row.new, *row.good])


def test_bytes_of_a_transform_are_what_it_was_fitted_to(tmp_path: Path) -> None:
    logits, weight = curve.synthetic_logits(6, images=60, classes=200)
    row = curve.measured("transform", "transform:30", logits, torch.from_numpy(weight), tmp_path / "store", 100)
    assert 20 < row.arrays < 33
    assert row.card > 1  # the basis, of which the bytes per label know nothing


@pytest.mark.parametrize(
    ("family", "text", "size"),
    [("FKD", "probabilities:5", 20), ("TinyViT", "probabilities:10", 44), ("LPQLD", "top_logits:50", 200)],
)
def test_what_others_store_has_their_bytes(tmp_path: Path, family: str, text: str, size: int) -> None:
    logits, _ = curve.synthetic_logits(2, images=4)
    row = curve.measured(family, text, logits, None, tmp_path / "store", 8)
    assert row.arrays == size + CHECKSUM / 4
    assert math.isnan(row.kl[1]) == (family != "LPQLD")
    assert math.isinf(row.kl[0]) or family != "LPQLD"  # a class with nothing is lost whole


ROWS = st.lists(st.floats(-20, 20, width=32), min_size=5, max_size=5)


@given(ROWS, ROWS, ROWS)
def test_a_label_loses_nothing_against_itself_and_never_less(
    one: list[float], two: list[float], own: list[float]
) -> None:
    dense, stored = (torch.tensor([each], dtype=torch.float64).log_softmax(-1) for each in (one, two))
    student = torch.tensor([own], dtype=torch.float64).softmax(-1)
    lost, cosine = curve.compared(dense, stored, student)
    assert lost >= -1e-12
    learns = float((student - dense.exp()).norm()) > curve.LEAST_GRADIENT
    assert -1 - 1e-9 <= cosine <= 1 + 1e-9 if learns else math.isnan(cosine)
    lost, cosine = curve.compared(dense, dense, student)
    assert lost == 0
    assert cosine == pytest.approx(1) if learns else math.isnan(cosine)
    assert math.isnan(curve.compared(dense, stored, None)[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "rounded"], "rounded holds topk:5 labels of teacher, and the logits as they are are wanted"),
        (["--labels", "store", "--views", "5"], "store holds 4 views, not 5; give fewer with --views"),
        (["--labels", "nowhere"], "nowhere"),
        (["--labels", "store", "--weight", "wrong.npy", "--views", "2"], "wrong.npy has the shape (3, 4); the weight"),
    ],
)
def test_wrong_input_is_one_line(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(teacher)
    np.save("wrong.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(SystemExit, match=r"^error: [^\n]*$") as ended:
        ran(monkeypatch, "--views", "2", *options)
    assert message in str(ended.value)
