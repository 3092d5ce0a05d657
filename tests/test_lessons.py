"""What counts of what a teacher said, and how a student's steps are weighed: the options of `softlabels train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import softlabels
from softlabels.codecs import CODECS, SparseLogits
from softlabels.learning import Settings, parameter_groups
from softlabels.losses import Objective, hard_cross_entropy, kl_divergence
from softlabels.networks import build
from softlabels.samples import Batch
from softlabels.targets import Filter, Lesson, Sparse

TINY: dict[str, Any] = {
    "student": "cnn_tiny",
    "batch_size": 8,
    "epochs": 3,
    "device": "cpu",
    "workers": 0,
    "quiet": True,
}


@pytest.fixture(scope="module")
def stores(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same teacher's labels in three codecs; of 3 classes, 2 are named."""
    root = tmp_path_factory.mktemp("lessons")
    for codec in ("dense", "topk:2", "sampled:2"):
        out = root / codec.replace(":", "-")
        softlabels.dump(
            teacher=["cnn_small"],
            weights=["random"],
            data=str(photos),
            views=2,
            codec=codec,
            out=str(out),
            device="cpu",
            quiet=True,
        )
    return {path.name: path for path in root.iterdir()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")


def close(one: Path, other: Path) -> None:
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], atol=1e-4, rtol=1e-4)


def header(folder: Path) -> str:
    return (folder / "header.txt").read_text()


# ---- sparse labels


@pytest.mark.parametrize("codec", ["topk-2", "sampled-2"])
def test_sparse_labels_never_become_rows_of_all_classes(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a dense target was built")

    monkeypatch.setattr(SparseLogits, "dense", fail)
    monkeypatch.setattr(softlabels.Labels, "decode", fail)
    result = softlabels.train(labels=str(stores[codec]), alpha=0.3, out=str(tmp_path / "run"), **TINY)
    assert result["steps"] == 9


def test_the_sparse_path_trains_as_the_dense_one(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = {"labels": str(stores["topk-2"]), "temperature": 2.0, "term": ["0.5*mse"], "optimizer": "sgd", **TINY}
    softlabels.train(out=str(tmp_path / "sparse"), **learnt)
    monkeypatch.setattr("softlabels.targets.SparseLoss", type("Nothing", (), {}))
    softlabels.train(out=str(tmp_path / "dense"), **learnt)
    close(tmp_path / "sparse", tmp_path / "dense")


def test_losses_without_a_sparse_path_get_rows_of_all_classes(stores: dict[str, Path], tmp_path: Path) -> None:
    for name, alphas in {"soft": {}, "later": {"alpha": 1.0, "alpha_end": 0.0}}.items():
        result = softlabels.train(labels=str(stores["topk-2"]), loss="dist", out=str(tmp_path / name), **alphas, **TINY)
        assert result["steps"] == 9


# ---- terms and schedules


def test_further_terms_are_added_and_reported(stores: dict[str, Path], tmp_path: Path) -> None:
    softlabels.train(
        labels=str(stores["dense"]),
        term=["0.5*dist", {"weight": 2, "loss": "relational-distance"}],
        out=str(tmp_path / "run"),
        **TINY,
    )
    assert "loss = 1 * soft + 0.5 * dist + 2 * relational-distance" in header(tmp_path / "run")
    records = pd.read_csv(tmp_path / "run" / "metrics.csv")
    parts = records["soft"] + 0.5 * records["dist"] + 2 * records["relational-distance"]
    np.testing.assert_allclose(records["loss"], parts, rtol=1e-4)
    with pytest.raises(softlabels.ConfigError, match=r"WEIGHT\*LOSS"):
        softlabels.train(labels=str(stores["dense"]), term=["dist"], out=str(tmp_path / "no"), **TINY)
    with pytest.raises(softlabels.ConfigError, match="read at one"):
        softlabels.train(
            labels=str(stores["topk-2"]),
            term=[{"weight": 1, "loss": "mse", "temperature": 2}],
            out=str(tmp_path / "no"),
            **TINY,
        )


def test_the_hard_parts_share_goes_in_a_line_from_the_first_step_to_the_last(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    lesson = Lesson(None, None, Objective(alpha=0.2), alpha_end=1.0)  # type: ignore[arg-type]
    assert [round(lesson.objective_at(done).alpha, 6) for done in (0, 0.25, 1)] == [0.2, 0.4, 1.0]
    softlabels.train(labels=str(stores["dense"]), alpha_end=1.0, out=str(tmp_path / "run"), **TINY)
    records = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert "from 0 at the first step to 1 at the last" in header(tmp_path / "run")
    assert (records["hard"] > 0).all()
    with pytest.raises(softlabels.ConfigError, match="--alpha-end needs a teacher"):
        softlabels.train(data="digits", limit=8, alpha_end=1.0, out=str(tmp_path / "no"), **TINY)


def test_label_smoothing_is_off_beside_soft_labels_and_a_line_says_so(stores: dict[str, Path], tmp_path: Path) -> None:
    smooth = {"labels": str(stores["dense"]), "label_smoothing": 0.1, **TINY}
    softlabels.train(alpha=0.5, out=str(tmp_path / "soft"), **smooth)
    assert "label smoothing 0.1 is off" in header(tmp_path / "soft")
    softlabels.train(alpha=1.0, out=str(tmp_path / "hard"), **smooth)
    assert "label smoothing 0.1;" in header(tmp_path / "hard")


# ---- filters


def batch(labels: list[int]) -> Batch:
    rows = torch.arange(len(labels))
    return Batch(torch.zeros(len(labels), 3, 2, 2), rows, rows, torch.tensor(labels))


def test_labels_below_the_threshold_have_no_soft_part() -> None:
    target = torch.tensor([[5.0, 0, 0], [0.1, 0, 0], [0, 0, 4.0]])
    student = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    lesson = Lesson(None, lambda *_: target, Objective(), filter=Filter(min_confidence=0.5))  # type: ignore[arg-type]
    value, parts = lesson.loss(batch([0, 0, 0]), student, 0.0)
    torch.testing.assert_close(value, kl_divergence(student[[0, 2]], target[[0, 2]]))
    assert parts["kept"].item() == pytest.approx(2 / 3)
    value.backward()
    assert student.grad is not None
    assert (student.grad[1] == 0).all()


def test_where_the_teacher_is_wrong_the_hard_label_counts_in_full() -> None:
    target = torch.tensor([[5.0, 0, 0], [3.0, 0, 0], [0, 0, 4.0], [0.1, 0, 0]])
    labels = torch.tensor([0, 1, -1, 0])
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    objective = Objective(alpha=0.25)
    sort = Filter(min_confidence=0.5, wrong_teacher="hard")
    lesson = Lesson(None, lambda *_: target, objective, filter=sort)  # type: ignore[arg-type]
    value, _ = lesson.loss(batch(labels.tolist()), student, 0.0)
    right, _ = objective(student[[0, 2]], labels[[0, 2]], target[[0, 2]])
    wrong = hard_cross_entropy(student[1:2], labels[1:2])
    unsure = hard_cross_entropy(student[3:], labels[3:])
    torch.testing.assert_close(value, (2 * right + wrong + 0.25 * unsure) / 4)


@pytest.mark.parametrize("codec", ["topk:3", "topk:30"])
def test_a_filter_judges_sparse_labels_as_dense_ones(codec: str) -> None:
    logits = 4 * torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    labels = logits.argmax(1) + (torch.arange(50) % 2)
    coding: Any = CODECS.make(codec)
    said = coding.sparse(coding.encode(logits), 30)
    sort = Filter(min_confidence=0.6, wrong_teacher="hard")
    sparse = sort.sorted(Sparse(*said), labels, 30)
    dense = sort.sorted(said.dense(30), labels, 30)
    assert torch.equal(sparse[0], dense[0])
    assert torch.equal(sparse[1], dense[1])
    assert 0 < sparse[0].sum() < 50


def test_filters_are_options_of_a_run(stores: dict[str, Path], tmp_path: Path) -> None:
    labels = softlabels.open_labels(stores["topk-2"])
    middle = round(float(labels.probabilities(range(len(labels)), 0).max(-1).values.median()), 6)
    for name, options in {"some": {"min_confidence": middle}, "right": {"wrong_teacher": "hard"}}.items():
        softlabels.train(labels=str(stores["topk-2"]), out=str(tmp_path / name), **options, **TINY)
        kept = pd.read_csv(tmp_path / name / "metrics.csv")["kept"]
        assert (kept < 1).all()
    assert "have no soft part" in header(tmp_path / "some")
    assert "learnt from their hard label alone" in header(tmp_path / "right")


# ---- rates and stopping


def test_rates_are_multiplied_by_layer_and_norms_do_not_decay() -> None:
    network = build("resnet8_cifar", 10)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    first = next(iter(names.values())).split(".")[0]
    groups = parameter_groups(network, 0.1, {first: 0.1})
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr_scale"] == (0.1 if name.startswith(f"{first}.") else 1.0)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert sum(len(group["params"]) for group in groups) == len(names)
    with pytest.raises(softlabels.ConfigError, match="no such layer; it has"):
        parameter_groups(network, 0.1, {"nowhere": 0.1})
    assert Settings.model_validate({"lr_scale": "a.b=0.5,c=0"}).lr_scale == {"a.b": 0.5, "c": 0.0}


def test_a_layer_with_rate_0_stays_as_it_was(stores: dict[str, Path], tmp_path: Path) -> None:
    softlabels.train(labels=str(stores["dense"]), out=str(tmp_path / "first"), **TINY)
    softlabels.train(
        labels=str(stores["dense"]),
        weights=str(tmp_path / "first" / "last.safetensors"),
        lr_scale="features=0,head=2",
        out=str(tmp_path / "second"),
        **TINY,
    )
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert not torch.equal(before["head.weight"], after["head.weight"])
    for name in ("features.0.weight", "features.1.weight", "features.1.bias"):
        assert torch.equal(before[name], after[name])


def test_a_run_that_gets_no_better_stops_and_stays_stopped(photos: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data": str(photos), "eval_data": str(photos), "lr": 1e-12, "epochs": 9, "patience": 2}
    result = softlabels.train(out=str(tmp_path / "run"), **settings)
    assert result["steps"] == 9  # one evaluation that is the best, two that are not
    (tmp_path / "run" / "result.json").unlink()
    assert softlabels.train(out=str(tmp_path / "run"), **settings)["steps"] == 9
    with pytest.raises(softlabels.ConfigError, match="--patience needs images"):
        softlabels.train(**{**settings, "eval_data": None}, out=str(tmp_path / "no"))


def test_compiled_and_channels_last_students_train_as_plain_ones(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def note(network: torch.nn.Module) -> torch.nn.Module:
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", note)
    softlabels.train(labels=str(stores["dense"]), out=str(tmp_path / "plain"), **TINY)
    assert not compiled
    softlabels.train(labels=str(stores["dense"]), compile=True, channels_last=True, out=str(tmp_path / "fast"), **TINY)
    assert len(compiled) == 1
    close(tmp_path / "plain", tmp_path / "fast")
