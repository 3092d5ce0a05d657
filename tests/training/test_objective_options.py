"""Settings of the loss, through `softlabels train` and Python."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from worlds import TINY

import softlabels
from softlabels.core.types import LOGITS
from softlabels.errors import ConfigError
from softlabels.loading.batches import Batch
from softlabels.losses import Objective, hard_cross_entropy
from softlabels.training.targets import Filter, NoTargets, Task


@pytest.fixture(scope="module")
def raw(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of two teachers that keep the constant of each row."""
    out = tmp_path_factory.mktemp("raw") / "labels"
    softlabels.dump(
        teacher=["cnn_small", "cnn_mini"],
        weights=["random", "random:1"],
        data=str(photos),
        views=3,
        recipe="crop-flip",
        codec="dense:fp16-raw",
        out=str(out),
        device="cpu",
        quiet=True,
    )
    return out


def header(folder: Path) -> str:
    return (folder / "header.txt").read_text()


def trained(out: Path, labels: Path | None, **given: Any) -> str:
    """The header of a run."""
    where = {} if labels is None else {"labels": str(labels)}
    softlabels.train(**where, **given, out=str(out), **TINY)
    return header(out)


# ---- raw logits


def test_raw_logits_are_compared_where_the_labels_keep_them(raw: Path, shards: Path, tmp_path: Path) -> None:
    loss = "mse centred=false reduction=mean"
    text = trained(tmp_path / "raw", raw, teachers=["cnn_small"], loss=loss)
    assert "soft = mean over classes of (s - t)^2, s and t: logits of student and teacher (mse)" in text
    assert trained(tmp_path / "both", raw, blend="mean-logits", loss=loss)
    with pytest.raises(
        ConfigError, match=r"dense:fp16 labels of .* up to a constant per row; dump with `codec=dense:fp16-raw`"
    ):
        trained(tmp_path / "lost", shards, loss=loss)
    with pytest.raises(ConfigError, match=r"blend 'mean-probabilities' knows its target up to a constant.*mean-logits"):
        trained(tmp_path / "blend", raw, loss=loss)
    assert not (tmp_path / "lost").exists() and not (tmp_path / "blend").exists()


def test_raw_logits_of_teachers_in_the_loop_are_those_that_are_stored(photos: Path, raw: Path, tmp_path: Path) -> None:
    given = {"loss": "mse centred=false", "seed": 0}
    trained(tmp_path / "stored", raw, teachers=["cnn_small"], **given)
    given |= {"teacher": ["cnn_small"], "teacher_weights": ["random"], "data": str(photos), "recipe": "crop-flip"}
    trained(tmp_path / "live", None, **given)
    first = [pd_first(tmp_path / name) for name in ("stored", "live")]
    assert first[0] == pytest.approx(first[1], rel=1e-2)
    two = {"teacher": ["cnn_small", "cnn_mini"], "teacher_weights": ["random", "random:1"]}
    with pytest.raises(ConfigError, match="choose `blend=mean-logits`"):
        trained(tmp_path / "two", None, **{**given, **two})


def pd_first(folder: Path) -> float:
    """The loss of the first epoch."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return float(dict(zip(lines[0].split(","), lines[1].split(","), strict=True))["loss"])


# ---- infinite temperature


def test_an_infinite_temperature_matches_logits(shards: Path, tmp_path: Path, softlabels_command: Callable) -> None:
    out = tmp_path / "run"
    options = [
        *("train", "--student", "cnn_tiny", "--epochs", 1, "--batch-size", 8, "--device", "cpu", "--workers", 0),
        "--labels",
        shards,
    ]
    softlabels_command(*options, "--temperature", "inf", "--compare", "--out", out)
    assert "(2 * classes)" in header(out) and "limit of T^2 * KL" in header(out)
    assert yaml.safe_load((out / "config.yaml").read_text())["temperature"] == float("inf")
    assert "nothing to do" in softlabels_command("train", "--config", out / "config.yaml", "--out", out).output
    refused = softlabels_command(*options, "--temperature", "inf", "--loss", "js", "--out", tmp_path / "js")
    assert "loss 'js' has no limit at an infinite temperature" in refused.output and refused.exit_code == 2


# ---- rows that do not count, and warm-up


def test_images_of_an_ignored_class_change_nothing(shards: Path, tmp_path: Path) -> None:
    given = {"alpha": 0.5, "ignore_label": 1, "normalization": "batch-size", "label_smoothing": 0.0}
    text = trained(tmp_path / "run", shards, **given)
    assert "rows with label 1 count in no part" in text and "divided by the batch size" in text
    with pytest.raises(ConfigError, match="`ignore_label=3` is no class: there are 3, from 0 upward"):
        trained(tmp_path / "no", shards, ignore_label=3)
    with pytest.raises(ConfigError, match="`normalization=none` does not go with `min_confidence`"):
        trained(tmp_path / "no", shards, normalization="none", min_confidence=0.2)
    assert not (tmp_path / "no").exists()


def test_a_filter_leaves_out_the_ignored_class_too() -> None:
    target, labels = torch.tensor([[5.0, 0, 0], [0, 3.0, 0], [0, 0, 4.0], [0.1, 0, 0]]), torch.tensor([0, 1, 1, 0])
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    objective, chosen = Objective(alpha=0.25, ignore_label=1), Filter(min_confidence=0.5, wrong_teacher="hard")
    rows = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 2, 2), rows, rows, labels)
    task = Task(None, lambda *_: {LOGITS: target}, objective, filter=chosen)  # type: ignore[arg-type]
    value, _ = task.supervision(batch, torch.device("cpu"), 0.0).loss({LOGITS: student})
    right, _ = Objective(alpha=0.25)(student[:1], labels[:1], target[:1])
    unsure = hard_cross_entropy(student[3:], labels[3:])
    torch.testing.assert_close(value, (right + 0.25 * unsure) / 2)


def test_the_soft_part_is_warmed_up_in_a_line(shards: Path, tmp_path: Path) -> None:
    task = Task(None, NoTargets(), Objective(alpha=0.5), soft_warmup=4)  # type: ignore[arg-type]
    scales = [task.objective_at(0.0, epochs).soft_scale for epochs in (0.5, 1, 3, 4, 5)]
    assert scales == [0.125, 0.25, 0.75, 1.0, 1.0]
    text = trained(tmp_path / "run", shards, loss="dkd", alpha=0.5, soft_warmup_epochs=2, hard_logits="standardized")
    assert "the soft part rises in a line to its full weight within the first 2 epochs" in text
    with pytest.raises(ConfigError, match="`soft_warmup_epochs` needs a teacher"):
        trained(tmp_path / "no", None, data="digits", soft_warmup_epochs=2)


def test_the_loss_of_a_warm_up_grows_with_its_steps(shards: Path, tmp_path: Path) -> None:
    """With a rate of next to 0 the parts stay, and the total tells the scale: steps of 1/9 to 3/9 in epoch one."""
    still = {"lr": 1e-12, "optimizer": "sgd", "loss": "mse", "student": "cnn_tiny", "views_per_image": 1}
    trained(tmp_path / "run", shards, soft_warmup_epochs=3, **{k: v for k, v in still.items() if k != "student"})
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [each["loss"] / each["soft"] for each in records]
    assert shares == pytest.approx([2 / 9, 5 / 9, 8 / 9], abs=0.05)


@pytest.mark.parametrize(
    ("stored", "given", "wanted"),
    [
        (True, {"limit_seed": 1}, "`limit_seed` picks the images of `limit`"),
        (True, {"aux_weight": 0.5}, "`aux_weight` is of the classifiers that `aux_heads` names"),
        (True, {"hard_logits": "standardized"}, "`hard_logits` is of the hard loss; give an `alpha` above 0"),
        (True, {"hard_temperature": 2.0}, "`hard_temperature` is of the hard loss"),
        (True, {"alpha": 1.0, "soft_warmup_epochs": 1}, "`soft_warmup_epochs` is of the soft loss"),
        (False, {"blend": "mean-logits"}, "`blend` needs a teacher; give `labels=STORE` or `teacher=NAME`"),
        (False, {"term": ["1*relational-distance"]}, "term 'relational-distance' needs a teacher; give"),
        (False, {"alpha": 0.5}, "`alpha=0.5`, below 1, needs a teacher; give"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(
    shards: Path, tmp_path: Path, stored: bool, given: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        trained(tmp_path / "no", shards if stored else None, **({} if stored else {"data": "digits"}), **given)
    assert not (tmp_path / "no").exists()


def test_settings_that_a_schedule_or_a_filter_brings_in_are_taken(shards: Path, tmp_path: Path) -> None:
    one = {"teachers": ["cnn_tiny"], "hard_logits": "standardized", "blend": "class-accuracy", "soft_warmup_epochs": 9}
    text = trained(tmp_path / "end", shards, alpha_end=0.5, **one)
    assert "blend class-accuracy changes nothing: there is one teacher, cnn_tiny" in text
    assert "the soft loss never reaches its weight: `soft_warmup_epochs=9` is more than the 3 epochs" in text
    assert trained(tmp_path / "wrong", shards, wrong_teacher="hard", hard_temperature=2.0)


def test_a_label_that_every_image_has_is_not_ignored(photos: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    teacher = {"teacher": "cnn_small", "weights": "random", "views": 1, "device": "cpu", "quiet": True}
    softlabels.dump(data=f"images:{photos}", out=str(bare), **teacher)
    with pytest.raises(ConfigError, match="`ignore_label=-1` leaves nothing to learn from: none of the 18 images"):
        trained(tmp_path / "no", bare, ignore_label=-1)
    assert not (tmp_path / "no").exists()


def test_ignored_images_without_a_label_are_said_once() -> None:
    lines = "\n".join(Objective(alpha=0.5, ignore_label=-1).describe())
    assert lines.count("label -1") == 1


def test_labels_of_mixed_views_are_said_to_be_where_plain_views_are_shown(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed"
    teacher = {"teacher": "cnn_small", "weights": "random", "views": 1, "device": "cpu", "quiet": True}
    softlabels.dump(data=str(photos), recipe="pad-cutmix", out=str(out), **teacher)
    plain = trained(tmp_path / "plain", out, unpaired="pad")
    assert "labels are of mixed views, of two images each; the student sees one of them alone" in plain
    assert "the student sees mixes with others" in trained(tmp_path / "own", out, unpaired="pad-cutmix")


# ---- weights from accuracy


def test_weights_from_each_teachers_accuracy_per_class(raw: Path, tmp_path: Path) -> None:
    text = trained(tmp_path / "run", raw, blend="class-accuracy")
    labels = softlabels.open_labels(raw)
    hard, names = labels.store.labels, labels.teachers
    views = np.arange(len(labels)) % labels.views
    weights = np.zeros((len(names), labels.classes))
    for i, name in enumerate(names):
        named = torch.stack([labels.logits([row], int(views[row]), name)[0] for row in range(len(labels))]).argmax(-1)
        for k in range(labels.classes):
            right = sum(int(named[row]) == k for row in range(len(labels)) if hard[row] == k)
            weights[i, k] = (right + 1) / ((hard == k).sum() + 2)
    weights /= weights.sum(0)
    assert len(set(weights[0])) > 1
    found = re.search(r"mean weights, from accuracy per class on 18 labels: (.*)", text)
    assert found is not None
    for name, mean in zip(names, weights.mean(1), strict=True):
        assert f"{name} {mean:.3f} (top-1" in found[1]
    per_class = {"kind": "per-class", "weights": weights.tolist()}
    expected = labels.probabilities(range(18), 1, temperature=2.0, blend=per_class)
    torch.testing.assert_close(labels.probabilities(range(18), 1, temperature=2.0, blend="class-accuracy"), expected)
    trained(tmp_path / "same", raw, blend=per_class)
    last = [load_file(tmp_path / name / "last.safetensors") for name in ("run", "same")]
    for name, tensor in last[0].items():
        torch.testing.assert_close(tensor, last[1][name])


def test_weights_that_cannot_be_measured_are_refused(photos: Path, tmp_path: Path) -> None:
    two = {"teacher": ["cnn_tiny", "cnn_small"], "weights": ["random", "random:1"], "device": "cpu", "quiet": True}
    mixed, bare = tmp_path / "mixed", tmp_path / "bare"
    softlabels.dump(**two, data=str(photos), recipe="crop-flip-cutmix", views=1, out=str(mixed))
    with pytest.raises(ConfigError, match="needs the one true class of a view, and a mixed view has two"):
        trained(tmp_path / "run", mixed, blend="class-accuracy")
    live = {"teacher": ["cnn_tiny", "cnn_small"], "teacher_weights": ["random", "random:1"], "data": str(photos)}
    with pytest.raises(ConfigError, match="measured on stored labels; dump them"):
        trained(tmp_path / "run", None, blend="class-accuracy", **live)
    runs = {}
    for name in ("cnn_tiny", "cnn_small"):
        given = {**TINY, "student": name, "epochs": 1, "data": str(photos), "out": str(tmp_path / name)}
        runs[name] = softlabels.train(**given)["folder"]
    softlabels.dump(
        teacher=[f"file:{each}" for each in runs.values()],
        data=f"images:{photos}",
        views=1,
        out=str(bare),
        device="cpu",
        quiet=True,
    )
    with pytest.raises(ConfigError, match="measures teachers on hard labels, and no image has one"):
        trained(tmp_path / "run", bare, blend="class-accuracy")
    assert not (tmp_path / "run").exists()


# ---- records of each epoch


def test_records_hold_what_student_and_teacher_get_right_of_the_training_views(raw: Path, tmp_path: Path) -> None:
    """A student that does not move, in evaluation mode but for its classifier, against a comparison of all images."""
    still = {"lr": 1e-12, "optimizer": "sgd", "weight_decay": 0.0, "epochs": 3}
    first = tmp_path / "first"
    softlabels.train(labels=str(raw), teachers=["cnn_small"], out=str(first), **TINY)
    out = tmp_path / "still"
    given = {**TINY, **still, "student": None, "init": str(first), "train_only": ["classifier"]}
    softlabels.train(labels=str(raw), teachers=["cnn_small"], accumulate=2, out=str(out), **given)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    labels, student = softlabels.open_labels(raw), softlabels.load_student(first)
    hard = torch.from_numpy(labels.store.labels.copy())
    data = softlabels.SoftLabelDataset(labels, labels.store.manifest.data["root"], size=student.preprocessing.size)
    seen: dict[str, list[float]] = {
        name: [] for name in ("train_top1", "teacher_top1", "agreement", "logit_difference")
    }
    for view in range(3):  # each epoch shows another one of each image
        pictures = data.pictures.render(np.arange(18), np.full(18, view))
        with torch.no_grad():
            logits, teacher = student(pictures), labels.logits(range(18), view, "cnn_small")
        named, by_teacher = logits.argmax(1), teacher.argmax(1)
        difference = (logits - logits.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
        values = (named == hard, by_teacher == hard, named == by_teacher, difference.abs())
        for name, value in zip(seen, values, strict=True):
            seen[name].append(value.double().mean().item())
    for name, values in seen.items():
        assert sum(each[name] for each in records) == pytest.approx(sum(values), rel=1e-3), name
    assert {"train_top1", "teacher_top1", "logit_difference"} <= set(
        (out / "metrics.csv").read_text().split("\n")[0].split(",")
    )


def test_accuracies_are_of_the_labelled_images_and_not_of_mixed_views(photos: Path, tmp_path: Path) -> None:
    task = Task(None, NoTargets(), Objective(alpha=1.0), labelled=0.5)  # type: ignore[arg-type]
    assert "train_top1" in task.reported and "teacher_top1" not in task.reported
    student = torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0], [1.0, 0]])
    rows = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 2, 2), rows, rows, torch.tensor([0, 0, -1, -1]))
    _, parts = task.supervision(batch, torch.device("cpu"), 0.0).loss({LOGITS: student})
    assert parts["train_top1"] == 0.5
    given = {**TINY, "data": str(photos), "recipe": "crop-flip-cutmix", "out": str(tmp_path / "mixed")}
    softlabels.train(**given)
    assert "train_top1" not in (tmp_path / "mixed" / "metrics.csv").read_text()


def test_several_temperatures_are_refused_of_labels_that_are_read_at_one(photos: Path, tmp_path: Path) -> None:
    given = {"teacher": "cnn_small", "weights": "random", "data": str(photos), "device": "cpu", "quiet": True}
    softlabels.dump(**given, codec="topk:2", views=1, out=str(tmp_path / "topk"))
    with pytest.raises(
        ConfigError, match="loss 'mlkd' compares at several temperatures, and topk labels are read at one"
    ):
        trained(tmp_path / "run", tmp_path / "topk", loss="mlkd", temperature=4.0)
    assert trained(tmp_path / "one", tmp_path / "topk", loss="mlkd:1", temperature=4.0)
    assert trained(tmp_path / "limit", tmp_path / "topk", temperature=float("inf"))
