"""What counts of what a teacher said, and how a student's steps are weighed: the options of `softlabels train`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from worlds import TINY

import softlabels
from softlabels.codecs import CODECS, SparseLogits
from softlabels.core.types import LOGITS
from softlabels.loading.batches import Batch, LabelledViews
from softlabels.loading.distributed import SINGLE
from softlabels.loading.views import ViewDataset
from softlabels.losses import BLENDS, Objective, hard_cross_entropy, kl_divergence
from softlabels.models import build, preprocessing
from softlabels.training.settings import TrainSettings
from softlabels.training.state import Runtime, TrainState, parameter_groups
from softlabels.training.targets import Filter, NoTargets, Task
from softlabels.views import RECIPES, ImageSpec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(shards: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One teacher's labels in three codecs; of 3 classes, 2 are named."""
    root = tmp_path_factory.mktemp("lessons")
    for codec in ("topk:2", "sampled:2"):
        softlabels.dump(
            teacher=["cnn_small"],
            weights=["random"],
            data=str(photos),
            views=2,
            codec=codec,
            out=str(root / codec.replace(":", "-")),
            device="cpu",
            quiet=True,
        )
    return {"dense": shards} | {path.name: path for path in root.iterdir()}


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
    learnt = {"labels": str(stores["topk-2"]), "temperature": 2.0, "term": ["0.5*js"], "optimizer": "sgd", **TINY}
    softlabels.train(out=str(tmp_path / "sparse"), **learnt)
    monkeypatch.setattr("softlabels.training.targets.SparseLoss", type("Nothing", (), {}))
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
    less = softlabels.train(
        labels=str(stores["dense"]), term=["-1e-2*confidence-penalty"], out=str(tmp_path / "less"), **TINY
    )
    assert less["steps"] == 9
    assert "-0.01 * confidence-penalty" in header(tmp_path / "less")
    with pytest.raises(softlabels.ConfigError, match="3 weights for"):
        softlabels.train(labels=str(stores["dense"]), blend="weighted:1,2,3", out=str(tmp_path / "no"), **TINY)
    assert not (tmp_path / "no").exists()
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
    task = Task(None, None, Objective(alpha=0.2), alpha_end=1.0)  # type: ignore[arg-type]
    assert [round(task.objective_at(done).alpha, 6) for done in (0, 0.25, 1)] == [0.2, 0.4, 1.0]
    softlabels.train(labels=str(stores["dense"]), alpha_end=1.0, out=str(tmp_path / "run"), **TINY)
    records = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert "from 0 at the first step to 1 at the last" in header(tmp_path / "run")
    assert (records["hard"] > 0).all()
    with pytest.raises(softlabels.ConfigError, match="`alpha_end` needs a teacher"):
        softlabels.train(data="digits", limit=8, alpha_end=1.0, out=str(tmp_path / "no"), **TINY)


def test_label_smoothing_is_off_beside_soft_labels_and_a_line_says_so(stores: dict[str, Path], tmp_path: Path) -> None:
    smooth = {"labels": str(stores["dense"]), "label_smoothing": 0.1, **TINY}
    softlabels.train(alpha=0.5, out=str(tmp_path / "soft"), **smooth)
    assert "label smoothing 0.1 is off" in header(tmp_path / "soft")
    softlabels.train(alpha=1.0, out=str(tmp_path / "hard"), **smooth)
    assert "[label], label smoothing 0.1\n" in header(tmp_path / "hard")


# ---- filters


def batch(labels: list[int]) -> Batch:
    rows = torch.arange(len(labels))
    return Batch(torch.zeros(len(labels), 3, 2, 2), rows, rows, torch.tensor(labels))


def test_labels_below_the_threshold_have_no_soft_part() -> None:
    target = torch.tensor([[5.0, 0, 0], [0.1, 0, 0], [0, 0, 4.0]])
    student = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    task = Task(None, lambda *_: {LOGITS: target}, Objective(), filter=Filter(min_confidence=0.5))  # type: ignore[arg-type]
    value, parts = task.supervision(batch([0, 0, 0]), CPU, 0.0).loss({LOGITS: student})
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
    task = Task(None, lambda *_: {LOGITS: target}, objective, filter=sort)  # type: ignore[arg-type]
    value, _ = task.supervision(batch(labels.tolist()), CPU, 0.0).loss({LOGITS: student})
    right, _ = objective(student[[0, 2]], labels[[0, 2]], target[[0, 2]])
    wrong = hard_cross_entropy(student[1:2], labels[1:2])
    unsure = hard_cross_entropy(student[3:], labels[3:])
    torch.testing.assert_close(value, (2 * right + wrong + 0.25 * unsure) / 4)


@pytest.mark.parametrize("loss", ["kl", "dkd"])
def test_a_step_of_several_passes_is_the_mean_over_all_rows_that_count(loss: str) -> None:
    """The passes hold other numbers of kept, wrong, unsure and unlabelled rows; one of them none that counts."""
    chance = torch.Generator().manual_seed(0)
    target, student = 2 * torch.randn(9, 3, generator=chance), torch.randn(9, 3, generator=chance, requires_grad=True)
    target[6:] = 0  # unsure
    labels = [0, 1, -1, 2, 0, -1, -1, -1, -1]
    sort = Filter(min_confidence=0.5, wrong_teacher="hard")
    task = Task(
        None,  # type: ignore[arg-type]
        lambda batch, _: {LOGITS: target[batch.rows]},
        Objective(alpha=0.25, loss=loss, label_smoothing=0.1),
        filter=sort,
    )
    whole = batch(labels)
    value, parts = task.supervision(whole, CPU, 0.0).loss({LOGITS: student})
    (gradient,) = torch.autograd.grad(value, student)
    passes = [
        Batch(whole.pictures[cut], whole.rows[cut], whole.views[cut], whole.targets[cut])
        for cut in (slice(0, 1), slice(1, 6), slice(6, 9))
    ]
    step = [task.supervision(each, CPU, 0.0) for each in passes]
    counts = task.counts(step, CPU, SINGLE)
    shares = [each.loss({LOGITS: student[each.batch.rows]}, counts) for each in step]
    total = torch.stack([share for share, _ in shares]).sum()
    torch.testing.assert_close(total, value)
    torch.testing.assert_close(torch.autograd.grad(total, student)[0], gradient)
    for name in ("hard", "soft", "kept"):
        torch.testing.assert_close(sum(each[name] for _, each in shares), parts[name])


@pytest.mark.parametrize("codec", ["topk:3", "topk:30"])
def test_a_filter_judges_sparse_labels_as_dense_ones(codec: str) -> None:
    logits = 4 * torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    labels = logits.argmax(1) + (torch.arange(50) % 2)
    coding: Any = CODECS.make(codec)
    said = coding.sparse(coding.encode(logits), 30)
    sort = Filter(min_confidence=0.6, wrong_teacher="hard")
    sparse = sort.select(said, labels)
    dense = sort.select(said.dense(), labels)
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


# ---- going on from an earlier student


def test_a_student_goes_on_from_an_earlier_run_on_hard_labels(stores: dict[str, Path], tmp_path: Path) -> None:
    first = {**TINY, "size": 20, "out": str(tmp_path / "first")}
    softlabels.train(labels=str(stores["dense"]), **first)
    photos = softlabels.open_labels(stores["dense"]).store.manifest.data["root"]
    common = {**TINY, "student": None, "init": str(tmp_path / "first"), "data": photos, "lr": 1e-12, "epochs": 1}
    softlabels.train(out=str(tmp_path / "second"), **common)
    assert "student cnn_tiny: " in header(tmp_path / "second")
    assert "images of 20 px" in header(tmp_path / "second")
    assert "loss = 1 * hard" in header(tmp_path / "second")
    before, after = (load_file(tmp_path / "first" / "best.safetensors"), weights(tmp_path / "second"))
    for name in ("features.0.weight", "head.weight"):
        torch.testing.assert_close(before[name], after[name], atol=1e-6, rtol=0)
    with pytest.raises(softlabels.ConfigError, match="`init` and `weights` exclude each other"):
        softlabels.train(**common, weights="random", out=str(tmp_path / "no"))
    with pytest.raises(softlabels.ModelError, match="holds the weights of small:cnn_tiny, not of small:cnn_small"):
        softlabels.train(**{**common, "student": "cnn_small"}, out=str(tmp_path / "no"))


def test_the_classifier_alone_learns_at_another_size_and_is_evaluated_at_a_third(
    stores: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """FixRes: everything but the classifier stays, the statistics of its batch norms too."""
    softlabels.train(labels=str(stores["dense"]), size=16, out=str(tmp_path / "first"), **TINY)
    common = {**TINY, "student": None, "init": str(tmp_path / "first"), "data": str(photos), "eval_data": str(photos)}
    softlabels.train(train_only="classifier", size=24, eval_size=28, out=str(tmp_path / "head"), **common)
    before = load_file(tmp_path / "first" / "best.safetensors")
    changed = {name for name, tensor in weights(tmp_path / "head").items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert "trained are head.weight, head.bias alone" in header(tmp_path / "head")
    score = softlabels.evaluate(
        student=str(tmp_path / "head" / "last.safetensors"), data=str(photos), size=28, device="cpu", quiet=True
    )
    last = pd.read_csv(tmp_path / "head" / "metrics.csv").iloc[-1]
    assert score.cross_entropy == pytest.approx(last["cross_entropy"], rel=1e-5)

    softlabels.train(train_only=["classifier", "norms"], size=24, out=str(tmp_path / "norms"), **common)
    changed = {name for name, tensor in weights(tmp_path / "norms").items() if not torch.equal(tensor, before[name])}
    assert {"features.1.weight", "features.1.running_mean", "head.weight"} <= changed
    assert not {"features.0.weight", "features.3.weight"} & changed
    with pytest.raises(softlabels.ConfigError, match=r"`train_only` body: the student has no such layer; it has feat"):
        softlabels.train(train_only="body", out=str(tmp_path / "no"), **common)
    with pytest.raises(softlabels.ConfigError, match="does not say which layer that is"):
        own = {**TINY, "student": "process_worker:student", "data": str(photos)}
        softlabels.train(train_only="classifier", size=16, out=str(tmp_path / "no"), **own)


# ---- rates, steps and stopping


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 1 / 16), ("sqrt", 1 / 4)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_rates_are_scaled_for_the_effective_batch_and_the_header_says_so(
    photos: Path, tmp_path: Path, scaling: str, factor: float, optimizer: str
) -> None:
    """Of 2 passes of 8 images, over a base of 256."""
    common = {**TINY, "data": str(photos), "accumulate": 2, "optimizer": optimizer, "warmup_epochs": 0, "epochs": 1}
    softlabels.train(**common, lr=0.08, lr_scaling=scaling, out=str(tmp_path / "scaled"))
    softlabels.train(**common, lr=0.08 * factor, out=str(tmp_path / "typed"))
    close(tmp_path / "scaled", tmp_path / "typed")
    rate = {"none": "0.08,", "linear": "0.005 = 0.08 * (16 / 256)", "sqrt": "0.02 = 0.08 * sqrt(16 / 256)"}[scaling]
    assert f"optimizer {optimizer}, learning rate {rate}" in header(tmp_path / "scaled")


def one_step(photos: Path, out: Path, **given: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights before and after one step of plain gradient descent."""
    plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "warmup_epochs": 0, "lr": 0.5}
    settings = {**TINY, "data": str(photos), "batch_size": 18, "epochs": 1, **plain, **given}
    softlabels.train(out=str(out), **settings)
    return build("cnn_tiny", 3, seed=0).state_dict(), weights(out)


def test_gradients_are_clipped_at_the_norm_that_is_asked_for(photos: Path, tmp_path: Path) -> None:
    parameters = [name for name, _ in build("cnn_tiny", 3).named_parameters()]

    def moved(out: str, **given: Any) -> float:
        before, after = one_step(photos, tmp_path / out, **given)
        return float(torch.cat([(after[name] - before[name]).flatten() for name in parameters]).norm())

    assert moved("free") > 0.5 * 0.02
    assert moved("clipped", clip_grad=0.02) == pytest.approx(0.5 * 0.02, rel=1e-3)


def test_the_average_is_what_is_kept_and_moves_by_its_decay(photos: Path, tmp_path: Path) -> None:
    before, after = one_step(photos, tmp_path / "plain")
    _, averaged = one_step(photos, tmp_path / "average", ema=0.75)
    for name in ("features.0.weight", "head.weight"):
        torch.testing.assert_close(averaged[name], 0.75 * before[name] + 0.25 * after[name])


def test_weight_decay_shrinks_weights_and_neither_norms_nor_biases(photos: Path, tmp_path: Path) -> None:
    _, plain = one_step(photos, tmp_path / "plain")
    before, decayed = one_step(photos, tmp_path / "decayed", weight_decay=0.1)
    for name, tensor in plain.items():
        expected = tensor - 0.5 * 0.1 * before[name] if name.endswith("weight") and tensor.ndim > 1 else tensor
        torch.testing.assert_close(decayed[name], expected, atol=1e-6, rtol=1e-5)


def test_pictures_that_come_channels_last_are_taken_as_they_are(photos: Path) -> None:
    """Mixed ones with hard labels too, whether or not the student is laid out so."""
    images = softlabels.open_images(photos)
    samples = LabelledViews(ViewDataset(images, RECIPES.make("crop-flip-mixup"), 0, 1, ImageSpec(32)))
    task = Task(samples, NoTargets(), Objective(alpha=1.0))
    learnt = []
    for last in (False, True):
        for laid_out in (False, True):
            mixed = samples.__getitems__(range(8))
            assert mixed.partners is not None
            if last:
                mixed.pictures = mixed.pictures.contiguous(memory_format=torch.channels_last)
            runtime = Runtime(CPU, channels_last=laid_out)
            state = TrainState(build("cnn_tiny", 3, seed=1), preprocessing("cnn_tiny"), TrainSettings(), 4, 0, runtime)
            state.begin(0)
            state.backward(task.supervision(mixed, CPU, 0.0).loss(state.forward(mixed))[0])
            state.step()
            learnt.append(state.network.state_dict())
    for weights_of in learnt[1:]:
        for name, tensor in weights_of.items():
            torch.testing.assert_close(tensor, learnt[0][name], atol=2e-3, rtol=1e-3)


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
    assert TrainSettings.model_validate({"lr_scale": "a.b=0.5,c=0"}).lr_scale == {"a.b": 0.5, "c": 0.0}


def test_a_layer_with_rate_0_stays_as_it_was(stores: dict[str, Path], tmp_path: Path) -> None:
    softlabels.train(labels=str(stores["dense"]), out=str(tmp_path / "first"), **TINY)
    softlabels.train(
        labels=str(stores["dense"]),
        init=str(tmp_path / "first" / "last.safetensors"),
        lr_scale="features=0,head=2",
        out=str(tmp_path / "second"),
        **TINY,
    )
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert not torch.equal(before["head.weight"], after["head.weight"])
    for name in ("features.0.weight", "features.1.weight", "features.1.bias", "features.1.running_mean"):
        assert torch.equal(before[name], after[name])


def test_a_run_that_gets_no_better_stops_and_stays_stopped(photos: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data": str(photos), "eval_data": str(photos), "lr": 1e-12, "epochs": 9, "patience": 2}
    result = softlabels.train(out=str(tmp_path / "run"), **settings)
    assert result["steps"] == 9  # one evaluation that is the best, two that are not
    (tmp_path / "run" / "result.json").unlink()
    assert softlabels.train(out=str(tmp_path / "run"), **settings)["steps"] == 9
    with pytest.raises(softlabels.ConfigError, match="`patience` needs images"):
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


# ---- what is there to learn from


@pytest.fixture(scope="module")
def unlabelled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of some photos without hard labels, and of photos of which the first five have one."""
    root = tmp_path_factory.mktemp("unlabelled")
    paths = sorted(photos.rglob("*.jpg"))
    rows = [f"{path},{place % 3 if place < 5 else ''}" for place, path in enumerate(paths)]
    (root / "some.csv").write_text("\n".join(["path,label", *rows]))
    common = {"teacher": ["cnn_tiny"], "weights": ["random"], "views": 2, "device": "cpu", "quiet": True}
    softlabels.dump(data=f"images:{photos}", limit=10, out=str(root / "none"), **common)
    some = {"kind": "csv", "file": str(root / "some.csv"), "classes": 3}
    softlabels.dump(data=some, out=str(root / "some"), **common)
    return {name: root / name for name in ("none", "some")}


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"alpha": 1.0}, "`alpha=1`"),
        ({"alpha": 0.5}, "`alpha=0.5`"),
        ({"alpha_end": 0.5}, "`alpha_end=0.5`"),
        ({"wrong_teacher": "hard"}, "`wrong_teacher=hard`"),
        ({"loss": "dkd"}, "loss 'dkd'"),
        ({"term": ["0.1*teacher-free"]}, "loss 'teacher-free'"),
    ],
)
def test_hard_labels_that_no_image_has_are_not_learnt_from(
    unlabelled: dict[str, Path], tmp_path: Path, settings: dict[str, Any], needs: str
) -> None:
    with pytest.raises(softlabels.ConfigError, match=f"{needs} needs hard labels, and none of the 10 images"):
        softlabels.train(labels=str(unlabelled["none"]), out=str(tmp_path / "no"), **settings, **TINY)
    assert not (tmp_path / "no").exists()


def test_the_header_counts_images_with_hard_labels_where_some_have_none(
    unlabelled: dict[str, Path], stores: dict[str, Path], tmp_path: Path
) -> None:
    softlabels.train(labels=str(unlabelled["some"]), alpha=0.5, out=str(tmp_path / "some"), **TINY)
    assert "5 of 18 images have a hard label" in header(tmp_path / "some")
    softlabels.train(labels=str(stores["dense"]), alpha=0.5, out=str(tmp_path / "all"), **TINY)
    assert "have a hard label" not in header(tmp_path / "all")


def test_a_store_of_some_unlabelled_images_trains_without_an_evaluation(
    unlabelled: dict[str, Path], tmp_path: Path
) -> None:
    result = softlabels.train(labels=str(unlabelled["none"]), out=str(tmp_path / "run"), **TINY)
    assert result["images"] == 10
    assert result["last"] is None


def test_the_header_names_the_blend_of_several_teachers_with_its_formula(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"blend": "mean-logits:1,3", "temperature": 2.0}
    softlabels.train(labels=str(stores["dense"]), out=str(tmp_path / "two"), **settings, **TINY)
    target = "target = softmax((mean over teachers of teacher_i) / 2), weights 1, 3"
    assert f"blend mean-logits of cnn_small, cnn_tiny: {target}" in header(tmp_path / "two")
    softlabels.train(labels=str(stores["dense"]), teachers=["cnn_tiny"], out=str(tmp_path / "one"), **TINY)
    assert "blend" not in header(tmp_path / "one")


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_confidence_is_that_of_temperature_1_whatever_the_loss_is_softened_with(
    temperature: float,
) -> None:
    """Of a top-K label decoded for T the tail has another share at 1, and other rows would be kept."""
    from softlabels.codecs import CODECS as TABLE
    from softlabels.training.targets import StoredTargets

    logits = 1.5 * torch.randn(256, 200, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 6
    part: Any = TABLE.make("topk:10")
    arrays = {name: torch.from_numpy(array) for name, array in part.encode(logits).items()}
    rows = torch.arange(256)
    some = Batch(torch.zeros(256, 3, 2, 2), rows, rows, torch.zeros(256, dtype=torch.int64), arrays={"t": arrays})
    labels: Any = SimpleNamespace(classes=200)
    targets = StoredTargets(labels, rows.numpy(), ("t",), BLENDS.make("mean-logits"), temperature, part)
    task = Task(None, targets, Objective(temperature=temperature), filter=Filter(min_confidence=0.6))  # type: ignore[arg-type]
    kept = task.supervision(some, CPU, 0.0).counts()["kept"].item()
    confident = (part.decode(part.encode(logits), 200).softmax(-1).amax(-1) >= 0.6).sum().item()
    assert 20 < confident < 236
    assert kept == confident


def test_confidence_at_1_is_refused_of_labels_that_do_not_know_it(photos: Path, tmp_path: Path) -> None:
    codec = {"kind": "sampled", "k": 2, "temperature": 4.0}
    common = {"teacher": ["cnn_small"], "weights": ["random"], "data": str(photos), "views": 2, "device": "cpu"}
    softlabels.dump(codec=codec, out=str(tmp_path / "s"), quiet=True, **common)
    with pytest.raises(softlabels.ConfigError, match="`min_confidence` is of probabilities at temperature 1"):
        softlabels.train(
            labels=str(tmp_path / "s"), temperature=4.0, min_confidence=0.5, out=str(tmp_path / "no"), **TINY
        )


@pytest.mark.parametrize("codec", ["dense", "topk-2", "sampled-2"])
def test_a_comparison_of_logits_is_left_out_where_labels_have_none(
    stores: dict[str, Path], tmp_path: Path, codec: str
) -> None:
    result = softlabels.train(labels=str(stores[codec]), compare=True, out=str(tmp_path / "run"), **TINY)
    closeness = result["closeness"]
    assert 0 <= closeness["kl"] < 20
    assert 0 <= closeness["agreement"] <= 1
    if codec == "sampled-2":
        assert closeness["logit_difference"] is None
    else:
        assert 0 < closeness["logit_difference"] < 20
    table = softlabels.report(tmp_path / "run", tmp_path / "report")
    assert table["logit_difference_mean"].isna().all() == (codec == "sampled-2")


# ---- evaluation on what was not trained on


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_images_that_are_trained_on_are_no_held_out_side(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever --limit picks: in whatever order they come, images are known by key and content."""
    for limit in (7, 12, 17, None):
        out = tmp_path / f"run-{limit}"
        result = softlabels.train(data=str(photos), limit=limit, out=str(out), **{**TINY, "epochs": 1, "quiet": False})
        assert result["last"] is None
        assert "has no held-out side" in told(capsys)


def test_images_of_a_held_out_side_that_are_trained_on_are_left_out_and_counted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shutil import copytree

    for side in ("train", "val"):
        copytree(photos, tmp_path / "data" / side)
    for place, path in enumerate(sorted((tmp_path / "data" / "val").rglob("*.jpg"))):
        if place >= 5:  # of equal keys, but other images
            path.write_bytes(path.read_bytes() + b"\0")
    common = {**TINY, "epochs": 1, "quiet": False}
    result = softlabels.train(data=str(tmp_path / "data"), out=str(tmp_path / "found"), **common)
    assert "5 of the 18 images of" in told(capsys)
    assert result["last"]["images"] == 13
    given = {"data": str(photos), "eval_data": str(photos), "limit": 12}
    result = softlabels.train(**given, out=str(tmp_path / "named"), **common)
    assert "warning: 12 of the 18 images of" in told(capsys)
    assert result["last"]["images"] == 18  # as it was asked for
