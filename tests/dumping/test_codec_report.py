"""`softlabels plan --codec-report`: bytes against fidelity, on the teacher's own labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from moving import dump
from worlds import write_pictures

import softlabels
from softlabels.codecs import CODECS, Dense, Quantized, Sampled, TopK
from softlabels.dumping import plan as planning
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import teacher_spec
from softlabels.views import RECIPES

PLAN = ("plan", "--teacher", "cnn_tiny", "--weights", "random", "--device", "cpu", "--workers", 0, "--codec-report")


def logits(classes: int, count: int = 300) -> torch.Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


def words(count: int = 300) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**63, count).astype(np.uint64)


def test_the_kl_is_that_of_what_a_store_gives_back(photos: Path, tmp_path: Path) -> None:
    settings = {"teacher": ["cnn_tiny"], "weights": ["random"], "data": str(photos), "views": 1, "workers": 0}
    (plan,) = softlabels.plan(**settings, codec_report=True, codec_samples=18, device="cpu", quiet=True)
    report = {each.codec: each for each in plan.codecs}
    said = softlabels.open_labels(dump(tmp_path / "said", photos, views=1, codec="dense:fp32")).logits(range(18), 0)
    stored = softlabels.open_labels(dump(tmp_path / "stored", photos, views=1, codec="quantized:4"))
    for temperature in (1.0, 2.0, 4.0):
        p = (said.double() / temperature).softmax(1).numpy()
        q = stored.probabilities(range(18), 0, temperature=temperature).double().numpy()
        wanted = (p * np.log(p / q)).sum(1).mean()
        assert report["quantized:4"].kl[temperature] == pytest.approx(wanted, rel=0.02, abs=1e-8)
    assert report["quantized:4"].bytes == 18 * stored.codec().bytes_per_label(3)


def test_more_bytes_of_one_kind_keep_more() -> None:
    reports = planning.compare_codecs(logits(100), words(), planning.usual_codecs(100), labels=10)
    report = {each.codec: each for each in reports}
    assert list(report) == [
        *("dense:fp16", "quantized:8", "quantized:4", "head_tail:10 bits=4", "head_tail:10"),
        *("topk:20", "topk:10", "topk:5", "topk:11 levels=12", "topk:10 record=fast", "sampled:30"),
    ]
    for better, worse in (("quantized:8", "quantized:4"), ("head_tail:10 bits=4", "head_tail:10")):
        for temperature in planning.TEMPERATURES:
            assert report[better].kl[temperature] < report[worse].kl[temperature]
    assert report["topk:20"].kl[1.0] < report["topk:10"].kl[1.0] < report["topk:5"].kl[1.0]
    for each in reports[:-1]:
        assert all(0 <= kl < 1 for kl in each.kl.values())
        assert each.top1 > 0.99
    for each in reports:
        assert each.bytes == 10 * each.bytes_per_label


@pytest.mark.parametrize(("classes", "kept"), [(3, [3]), (7, [7, 5]), (10, [10, 5]), (1000, [20, 10, 5, 11, 10])])
def test_no_codec_keeps_more_classes_than_there_are(classes: int, kept: list[int]) -> None:
    codecs = planning.usual_codecs(classes)
    assert [codec.k for codec in codecs if isinstance(codec, TopK)] == kept
    assert len(codecs) == len(set(codecs))
    planning.compare_codecs(logits(classes, 5), words(5), codecs, 5)


def test_temperatures_that_are_not_valid_are_left_out_and_classes_left_to_chance_are_infinite() -> None:
    (drawn,) = planning.compare_codecs(logits(50), words(), [Sampled(k=5)], 300)
    assert drawn.kl == {1.0: math.inf, 2.0: None, 4.0: None}
    assert drawn.line().split()[-4:-1] == ["inf", "-", "-"]


def test_rows_are_compared_all_and_alike() -> None:
    codecs = [Dense(), Quantized(bits=4)]
    together = planning.compare_codecs(logits(20, 600), words(600), codecs, 1)
    halves = [planning.compare_codecs(half, words(), codecs, 1) for half in logits(20, 600).split(300)]
    for number, each in enumerate(together):
        mean = sum(half[number].kl[2.0] for half in halves) / 2
        assert each.kl[2.0] == pytest.approx(mean)


def test_the_command_prints_a_table_and_writes_nothing(softlabels_command: Callable, photos: Path) -> None:
    done = softlabels_command(*PLAN, "--data", photos, "--views", 4, "--codec", "topk:2")
    assert done.exit_code == 0, done.output
    assert "codecs on 18 of this teacher's labels" in done.output
    rows = [line.split()[0] for line in done.output.splitlines() if line.startswith("    ")]
    assert rows == ["codec", "dense:fp16", "quantized:8", "quantized:4", "topk:3", "topk:2"]
    assert not Path("shards").exists()
    assert "codecs on" not in softlabels_command(*PLAN[:-1], "--data", photos).output


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", each=3)
    (photos / "class-1/001.jpg").write_bytes(b"no image")
    images, teacher = softlabels.open_images(photos), teacher_spec("cnn_tiny", "random").open(classes=3)
    pictures = ViewDataset(images, RECIPES.make("crop-flip"), 0, 2, image_spec(teacher.preprocessing))
    outputs, chance = planning.sample_outputs(pictures, teacher, 100, batch_size=4)
    said = outputs["logits"]
    assert said.shape == (8, 3)
    assert len(set(chance.tolist())) == 8


def test_every_codec_of_the_table_can_be_reported() -> None:
    made = [CODECS.make(name) for name in CODECS.names]
    assert len(planning.compare_codecs(logits(30, 20), words(20), made, 1)) == len(made)
