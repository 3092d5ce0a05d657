"""`softlabels plan --codec-report`: bytes against fidelity, on the teacher's own labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from moving import dump
from worlds import write_pictures

import softlabels
from softlabels.codecs import CODECS, Codec, Dense, HeadTail, Quantized, Sampled, TopK, TransformCoding, spelled
from softlabels.dumping import comparing
from softlabels.dumping import plan as planning
from softlabels.errors import ConfigError, DataError
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
    for temperature in comparing.TEMPERATURES:
        p = (said.double() / temperature).softmax(1).numpy()
        q = stored.probabilities(range(18), 0, temperature=temperature).double().numpy()
        wanted = (p * np.log(p / q)).sum(1).mean()
        assert report["quantized:4"].kl[temperature] == pytest.approx(wanted, rel=0.02, abs=1e-8)
    assert report["quantized:4"].bytes == 18 * stored.codec().bytes_per_label(3)


def test_more_bytes_of_one_kind_keep_more() -> None:
    codecs, left_out = comparing.fit_codecs(comparing.usual_codecs(100), logits(100), views=1, stored_views=1)
    assert not left_out
    reports = comparing.compare_codecs(logits(100), words(), codecs, labels=10)
    report = {each.codec: each for each in reports}
    assert list(report) == [
        *("dense:fp16", "quantized:8", "quantized:4", "head_tail:10 bits=4", "head_tail:10"),
        *("transform:60", "transform:40", "transform:25"),
        *("topk:20", "topk:10", "topk:5", "topk:11 levels=12", "topk:10 record=fast", "sampled:30"),
    ]
    for better, worse in (
        ("quantized:8", "quantized:4"),
        ("head_tail:10 bits=4", "head_tail:10"),
        ("transform:60", "transform:25"),
    ):
        for temperature in comparing.TEMPERATURES:
            assert report[better].kl[temperature] < report[worse].kl[temperature]
    assert report["topk:20"].kl[1.0] < report["topk:10"].kl[1.0] < report["topk:5"].kl[1.0]
    for each in reports[:-1]:
        assert all(0 <= kl < 1 for kl in each.kl.values())
        assert each.top1 > 0.99
    for each in reports:
        assert each.bytes == 10 * each.bytes_per_label


@pytest.mark.parametrize(("classes", "kept"), [(3, [3]), (7, [7, 5]), (10, [10, 5]), (1000, [20, 10, 5, 11, 10])])
def test_no_codec_keeps_more_classes_than_there_are(classes: int, kept: list[int]) -> None:
    codecs = comparing.usual_codecs(classes)
    assert [codec.k for codec in codecs if isinstance(codec, TopK)] == kept
    assert len(codecs) == len(set(codecs))
    assert [spelled(codec) for codec in codecs if isinstance(codec, TransformCoding)] == (
        ["transform:60", "transform:40", "transform:25"] if classes >= 100 else []
    )
    given = logits(classes, 100)
    comparing.compare_codecs(given, words(100), comparing.fit_codecs(codecs, given, views=1, stored_views=1)[0], 5)


def test_temperatures_that_are_not_valid_are_left_out_and_classes_left_to_chance_are_infinite() -> None:
    (drawn,) = comparing.compare_codecs(logits(50), words(), [Sampled(k=5)], 300)
    assert drawn.kl == {1.0: math.inf, 2.0: None, 4.0: None, 20.0: None}
    assert drawn.line().split()[-5:-1] == ["inf", "-", "-", "-"]
    assert drawn.cosine[1.0].new > 0
    assert all(drawn.cosine[temperature] == comparing.GradientCosine() for temperature in (2.0, 4.0, 20.0))


def test_rows_are_compared_all_and_alike() -> None:
    codecs = [Dense(), Quantized(bits=4)]
    together = comparing.compare_codecs(logits(20, 600), words(600), codecs, 1)
    halves = [comparing.compare_codecs(half, words(), codecs, 1) for half in logits(20, 600).split(300)]
    for number, each in enumerate(together):
        mean = sum(half[number].kl[2.0] for half in halves) / 2
        assert each.kl[2.0] == pytest.approx(mean)


def reference(said: np.ndarray, stored: np.ndarray, views: int, temperature: float) -> tuple[float, float | None]:
    """Mean cosines of the gradients of a new and of a good student, label by label."""

    def softmax(row: np.ndarray) -> np.ndarray:
        powers = np.exp((row - row.max()) / temperature)
        return powers / powers.sum()

    found: list[list[float]] = [[], []]
    for number, (teacher, kept) in enumerate(zip(said, stored, strict=True)):
        image, view = divmod(number, views)
        students = [np.full(len(teacher), 1 / len(teacher))]
        if views > 1:
            students.append(softmax(said[image * views + (view + 1) % views]))
        for cosines, student in zip(found, students, strict=False):
            wanted, given = student - softmax(teacher), student - softmax(kept)
            cosines.append(wanted @ given / np.sqrt((wanted @ wanted) * (given @ given)))
    return np.mean(found[0]), np.mean(found[1]) if views > 1 else None


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("codec", [Quantized(bits=4), HeadTail(k=3), TopK(k=3), TransformCoding(k=3)], ids=spelled)
def test_the_cosines_are_those_of_gradients_written_out_in_double_precision(codec: Codec, views: int) -> None:
    images = 140  # more labels than are compared at once
    said = (logits(20, images)[:, None] + logits(20, images * views).reshape(images, views, -1) / 2).flatten(0, 1)
    (codec,), _ = comparing.fit_codecs([codec], said, views=views, stored_views=views)
    (report,) = comparing.compare_codecs(said, words(len(said)), [codec], 1, views=views, temperatures=[1.0, 4.0])
    if isinstance(codec, TransformCoding):
        arrays = codec.encode_shard(said.reshape(images, views, -1).transpose(0, 1))
        each = {
            name: np.concatenate([array[:, image].repeat(views // len(array), 0) for image in range(images)])
            for name, array in arrays.items()
        }
    else:
        each = codec.encode(said, words(len(said)))
    for temperature, cosine in report.cosine.items():
        stored = codec.decode(each, 20, temperature=temperature).double().numpy()
        new, good = reference(said.double().numpy(), stored, views, temperature)
        assert cosine.new == pytest.approx(new, rel=1e-6)
        assert cosine.good == (good if good is None else pytest.approx(good, rel=1e-6))


def test_a_good_student_takes_another_view_that_shows_the_same_and_is_not_the_same() -> None:
    said = logits(20, 40)
    for left_out in ({"views": 1}, {"views": 2, "alike": False}):
        (report,) = comparing.compare_codecs(said, words(40), [TopK(k=3)], 1, **left_out)
        assert all(cosine.good is None and 0 < cosine.new < 1 for cosine in report.cosine.values())
    twice = said.repeat_interleave(2, dim=0)
    (report,) = comparing.compare_codecs(twice, words(80), [TopK(k=3)], 1, views=2)
    assert all(cosine.good is None for cosine in report.cosine.values())
    half = torch.cat([twice, logits(20, 80)])
    (report,) = comparing.compare_codecs(half, words(160), [TopK(k=3)], 1, views=2)
    (alone,) = comparing.compare_codecs(half[80:], words(80), [TopK(k=3)], 1, views=2)
    assert report.cosine[4.0].good == pytest.approx(alone.cosine[4.0].good)


def test_a_teacher_of_equal_logits_gives_a_student_no_gradient() -> None:
    (report,) = comparing.compare_codecs(torch.zeros(8, 5), words(8), [Dense()], 1, views=2)
    assert set(report.cosine.values()) == {comparing.GradientCosine()}
    assert comparing.recommend([report], 1.0).codec is None


def test_codecs_that_cannot_be_fitted_are_left_out_with_what_keeps_them_from_it() -> None:
    few = logits(200, 12)
    fitted, left_out = comparing.fit_codecs([Dense(), TransformCoding(bytes=25)], few, views=4, stored_views=50)
    assert fitted == [Dense()]
    assert list(left_out) == ["transform:25"]
    assert "25 images or more" in left_out["transform:25"] and left_out["transform:25"].endswith("there are 3")
    weight = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    tight = [TransformCoding(bytes=5), TransformCoding(bytes=400)]
    (wide,), left_out = comparing.fit_codecs(tight, few, views=4, stored_views=50, weight=weight)
    assert (spelled(wide), wide.bytes_per_label(200) <= 400) == ("transform:400", True)
    assert "transform:5 is too little" in left_out["transform:5"]
    again, none = comparing.fit_codecs([wide], few, views=4, stored_views=50)
    assert (again, none) == ([wide], {})


def test_an_images_mean_is_paid_once_for_all_views_of_the_dump() -> None:
    basis, near = torch.randn(100, 30, generator=torch.Generator().manual_seed(2)), logits(30, 400)
    said = (near.repeat_interleave(4, dim=0) + logits(30, 1600) / 3) @ basis.T / 5
    (few,), _ = comparing.fit_codecs([TransformCoding(bytes=16, k=3)], said, views=4, stored_views=4, weight=basis)
    (many,), _ = comparing.fit_codecs([TransformCoding(bytes=16, k=3)], said, views=4, stored_views=50, weight=basis)
    reports = comparing.compare_codecs(said, words(1600), [few, many], 1000, views=4)
    assert all(12 < each.bytes_per_label <= 16 for each in reports)
    assert [each.bytes_per_label for each in reports] == [few.fit.size, many.fit.size]
    assert reports[1].kl[4.0] < reports[0].kl[4.0]


COSINES = st.none() | st.floats(0, 1)
REPORTS = st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1), COSINES), min_size=1, max_size=6)


@given(figures=REPORTS)
@example(figures=[(9, 0.96, 0.9), (5, 0.9496, 0.9), (4, 0.9494, 0.9), (3, 1.0, 0.8)])
@example(figures=[(9, 0.96, 0.5), (5, 0.7, 0.6), (4, 0.1, 0.6)])
def test_the_smallest_codec_is_recommended_that_is_good_enough_and_else_that_of_the_best_good_cosine(
    figures: list[tuple[int, float, float | None]],
) -> None:
    reports = [
        comparing.CodecReport(f"codec-{number}", size, size, {2.0: 0.0}, 1.0, {2.0: comparing.GradientCosine(*cosines)})
        for number, (size, *cosines) in enumerate(figures)
    ]
    found = comparing.recommend(reports, 2.0)
    size = figures[int(found.codec.partition("-")[2])][0]
    printed = [(size, round(new, 3), -1 if good is None else round(good, 3)) for size, new, good in figures]
    has_good = any(good is not None for _, _, good in figures)
    assert (found.good, found.bytes_per_label) == (has_good, size)
    enough = [row[0] for row in printed if row[1] >= 0.95 and (not has_good or row[2] >= 0.85)]
    assert found.enough == bool(enough)
    if enough:
        assert size == min(enough)
        assert ">= 0.95 (new)" in found.line() and (">= 0.85 (good)" in found.line()) == has_good
    else:
        place = 2 if has_good else 1
        best = max(row[place] for row in printed)
        assert size == min(row[0] for row in printed if row[place] == best)
        assert f"highest {'good' if has_good else 'new'} cosine; none has" in found.line()


def test_a_temperature_of_which_no_codec_holds_labels_is_named() -> None:
    reports = comparing.compare_codecs(logits(5), words(), [Quantized(), TopK(k=2)], 1, temperatures=[0.05])
    assert comparing.recommend(reports, 0.05) == comparing.Recommendation(0.05)
    assert "dense:fp32" in comparing.recommend(reports, 0.05).line()


def test_the_command_prints_tables_and_writes_nothing(softlabels_command: Callable, photos: Path) -> None:
    done = softlabels_command(*PLAN, "--data", photos, "--views", 4, "--codec", "topk:2")
    assert done.exit_code == 0, done.output
    assert "codecs on 72 of this teacher's labels" in done.output
    rows = [line.split()[0] for line in done.output.splitlines() if line.startswith("    ")]
    names = ["dense:fp16", "quantized:8", "quantized:4", "topk:3", "topk:2"]
    assert rows == ["codec", *names, "codec", "new", *names]
    assert not Path("shards").exists()
    assert "codecs on" not in softlabels_command(*PLAN[:-1], "--data", photos).output


def test_a_good_student_needs_two_views_and_is_left_out_in_a_word(softlabels_command: Callable, photos: Path) -> None:
    for settings, why in (
        (("--views", 1), "the sample has one"),
        (("--views", 2, "--recipe", "crop-flip-mixup"), "mixed with other images"),
    ):
        done = softlabels_command(*PLAN, "--data", photos, "--for-temperature", 2, *settings)
        assert done.exit_code == 0, done.output
        assert why in done.output and "   good" not in done.output
        assert "with cosines >= 0.95 (new)\n" in done.output


def test_a_codec_is_recommended_for_a_temperature_and_comes_next(softlabels_command: Callable, photos: Path) -> None:
    options = (*PLAN, "--data", photos, "--views", 4, "--for-temperature", 3)
    done = softlabels_command(*options)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("  for T=3: ")]
    assert "T=3" in done.output.partition("codec ")[2]
    assert done.output.count(f"--codec {line.split()[2]}") == 1
    (plan,) = json.loads(softlabels_command(*options, "--json", "--quiet").output)
    assert plan["recommended"]["temperature"] == 3
    assert plan["recommended"]["codec"] == line.split()[2]
    assert plan["sampled"] == 72 and plan["sampled_views"] == 4
    for each in plan["codecs"]:
        assert list(each["kl"]) == list(each["cosine"]) == ["1.0", "2.0", "3.0", "4.0", "20.0"]
        assert all(-1 <= cosine[student] <= 1 + 1e-9 for cosine in each["cosine"].values() for student in cosine)


def test_a_recommendation_needs_a_report(softlabels_command: Callable, photos: Path) -> None:
    done = softlabels_command(*PLAN[:-1], "--data", photos, "--for-temperature", 2)
    assert done.exit_code != 0 and "Traceback" not in done.output
    assert "--for-temperature" in done.output and "add --codec-report" in done.output
    with pytest.raises(ConfigError, match="codec_report=True"):
        softlabels.plan(teacher="cnn_tiny", weights="random", data=str(photos), for_temperature=2)
    for odd in ("0", "nan", "inf", "warm"):
        done = softlabels_command(*PLAN, "--data", photos, "--for-temperature", odd)
        assert done.exit_code != 0 and "--for-temperature" in done.output and "Traceback" not in done.output


def test_transform_codecs_are_compared_where_there_are_many_classes(
    softlabels_command: Callable, tmp_path: Path
) -> None:
    photos = write_pictures(tmp_path / "many", classes=100, each=1)
    options = (*PLAN, "--data", photos, "--views", 8, "--codec", "transform:40")
    done = softlabels_command(*options, "--for-temperature", 4)
    assert done.exit_code == 0, done.output
    assert "codecs on 400 of this teacher's labels" in done.output
    lines = done.output.partition("codecs on")[2].partition("packed once")[0].splitlines()
    assert max(map(len, lines)) <= 120
    rows = [line.split() for line in done.output.splitlines() if line.startswith("    transform")]
    assert [row[0] for row in rows] == 2 * ["transform:60", "transform:40", "transform:25"]
    assert all(0 < float(row[1]) <= float(row[0].partition(":")[2]) for row in rows[:3])
    few = softlabels_command(*options[:-1], "dense", "--codec-samples", 8)
    assert few.exit_code == 0, few.output
    assert few.output.count("\n  left out: transform:25 is too little") == 1
    assert "codecs on 8 of this teacher's labels" in few.output


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", each=3)
    (photos / "class-1/001.jpg").write_bytes(b"no image")
    images, teacher = softlabels.open_images(photos), teacher_spec("cnn_tiny", "random").open(classes=3)
    pictures = ViewDataset(images, RECIPES.make("crop-flip"), 0, 2, image_spec(teacher.preprocessing))
    outputs, chance = planning.sample_outputs(pictures, teacher, 100, batch_size=4)
    said = outputs["logits"]
    assert said.shape == (8, 3)
    assert len(set(chance.tolist())) == 8
    outputs, chance = planning.sample_outputs(pictures, teacher, 100, views=2, batch_size=3)
    assert outputs["logits"].shape == (16, 3)
    assert len(set(chance.tolist())) == 16
    shown = [(row, view) for row in range(9) for view in range(2) if row != 4]
    order = {int(pictures.words(np.array([row]), np.array([view]))[0]): (row, view) for row, view in shown}
    found = [order[int(word)] for word in chance]
    assert all(
        first[0] == second[0] and first[1] != second[1] for first, second in zip(*[iter(found)] * 2, strict=True)
    )
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 4 images"):
        planning.sample_outputs(pictures, teacher, 9, views=2, batch_size=3)


def test_every_codec_of_the_table_can_be_reported() -> None:
    every = ["pca:8" if name == "pca" else name for name in CODECS.names]  # the usual 64 are more than the classes
    made, left_out = comparing.fit_codecs(map(CODECS.make, every), logits(30, 80), views=2, stored_views=2)
    assert not left_out
    reports = comparing.compare_codecs(logits(30, 80), words(80), made, 1, views=2)
    assert len(reports) == len(CODECS.names)
    assert all(len(row) <= 120 for row in comparing.codec_lines(reports, 80, 2))
