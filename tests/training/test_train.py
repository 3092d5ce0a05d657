"""Stage two through the public surface: what is learnt, from which rows, and how a run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm.optim import list_optimizers
from worlds import TINY, write_pictures

import softlabels
from softlabels import models
from softlabels.loading.batches import Batch, LabelledViews
from softlabels.loading.views import ViewDataset
from softlabels.training import loop
from softlabels.training import state as learning
from softlabels.training.checkpoints import load_checkpoint, save_checkpoint
from softlabels.training.evaluate import Score
from softlabels.training.settings import TrainSettings
from softlabels.views import ImageSpec


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def test_a_student_learns_from_labels_alone(shards: Path, tmp_path: Path) -> None:
    result = softlabels.train(labels=str(shards), out=str(tmp_path / "run"), **{**TINY, "epochs": 40}, lr=0.01)
    records = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert records["soft"].iloc[-1] < 0.5 * records["soft"].iloc[0]
    assert (records["hard"] == 0).all()
    assert result["label_bytes"] > 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == result["steps"] == 40 * 3
    jsonl = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    np.testing.assert_allclose(jsonl["loss"], records["loss"])


def test_no_teacher_is_loaded(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was opened")

    monkeypatch.setattr("softlabels.models._teacher.NetworkTeacher.logits", fail)
    softlabels.train(labels=str(shards), out=str(tmp_path / "run"), **TINY)


@pytest.mark.parametrize("source", ["labels", "hard", "live", "unpaired", "annealed", "annealed-live"])
def test_a_run_that_was_cut_off_ends_as_an_uninterrupted_one(
    shards: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    annealed = {"temperature": 8.0, "temperature_end": 0.5, "temperature_schedule": "cosine"}
    learnt: dict[str, Any] = {
        "labels": {"labels": str(shards)},
        "hard": {"data": str(photos)},
        "live": {"data": str(photos), "teacher": ["cnn_small"], "teacher_weights": ["random"]},
        "unpaired": {"labels": str(shards), "unpaired": "crop"},
        "annealed": {"labels": str(shards), "loss": "kl student_temperature=fit", **annealed},
        "annealed-live": {"data": str(photos), "teacher": ["cnn_small"], "teacher_weights": ["random"], **annealed},
    }[source]
    settings = {**TINY, **learnt, "ema": 0.9, "accumulate": 2, "checkpoint_every": 1, "clip_grad": 1.0}
    softlabels.train(out=str(tmp_path / "whole"), **settings)

    begin = learning.TrainState.begin
    for cut in (1, 3, 4):

        def stumble(self: Any, step: int, passes: int, cut: int = cut) -> None:
            if step == cut:
                raise KeyboardInterrupt
            begin(self, step, passes)

        monkeypatch.setattr(learning.TrainState, "begin", stumble)
        with pytest.raises(KeyboardInterrupt):
            softlabels.train(out=str(tmp_path / "cut"), **settings)
    monkeypatch.setattr(learning.TrainState, "begin", begin)
    softlabels.train(out=str(tmp_path / "cut"), **settings)

    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    timings = ["pictures_per_second", "seconds"]
    whole, again = (pd.read_csv(tmp_path / run / "metrics.csv").drop(columns=timings) for run in ("whole", "cut"))
    pd.testing.assert_frame_equal(whole, again)


def test_a_finished_run_is_not_run_again_and_another_is_refused(shards: Path, tmp_path: Path) -> None:
    first = softlabels.train(labels=str(shards), out=str(tmp_path / "run"), **TINY)
    before = (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns
    assert softlabels.train(labels=str(shards), out=str(tmp_path / "run"), **TINY) == first
    assert (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns == before
    with pytest.raises(softlabels.RunError, match=r"temperature: 1.0 there, 2.0 now"):
        softlabels.train(labels=str(shards), out=str(tmp_path / "run"), temperature=2.0, **TINY)


def test_unpaired_views_are_new_ones_with_stored_labels_of_their_image(
    shards: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    labelled = LabelledViews.labelled

    def noted(self: LabelledViews, batch: Batch) -> Batch:
        if self.labels is not None:
            seen.append(labelled(self, batch))
            return seen[-1]
        return labelled(self, batch)

    monkeypatch.setattr(LabelledViews, "labelled", noted)
    given = {**TINY, "epochs": 6, "size": 16, "eval_data": "none"}
    softlabels.train(labels=str(shards), unpaired="crop-flip", out=str(tmp_path / "run"), **given)
    labels, images = softlabels.open_labels(shards), softlabels.open_images(photos)
    stored = ViewDataset.of_store(labels.store, images, labels.views, ImageSpec(16))
    rows = labels.rows(images.keys)
    assert sorted({int(view) for batch in seen for view in batch.views}) == [0, 1, 2, 3, 4, 5]
    for batch in seen:
        expected = labels.take(rows[batch.rows.numpy()], batch.views.numpy() % labels.views, labels.teachers)
        for name, arrays in expected.items():
            assert all(torch.equal(batch.arrays[name][each], torch.from_numpy(array)) for each, array in arrays.items())
        for picture, row in zip(batch.pictures, batch.rows.tolist(), strict=True):
            known = stored.render(np.full(labels.views, row), np.arange(labels.views))
            assert not (known == picture).flatten(1).all(1).any()


def test_students_of_several_seeds_learn_from_the_images_that_one_seed_picks(photos: Path, tmp_path: Path) -> None:
    given = {**TINY, "epochs": 1, "data": str(photos), "limit": 7, "size": 16, "eval_data": "none"}
    for name, seeds in {"a": {"seed": 1, "limit_seed": 0}, "b": {"seed": 2, "limit_seed": 0}, "c": {"seed": 2}}.items():
        softlabels.train(out=tmp_path / name, **given, **seeds)
    images = {name: json.loads((tmp_path / name / "inputs.json").read_text())["inputs"]["images"] for name in "abc"}
    assert images["a"] == images["b"] != images["c"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"data": "digits", "unpaired": "crop"}, "give `labels=STORE`, or `recipe`"),
        ({"labels": "shards", "unpaired": "cropp"}, "crop"),
        ({"labels": "shards", "recipe": "crop"}, "`unpaired=RECIPE` shows others on purpose"),
    ],
)
def test_unpaired_that_means_nothing_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(softlabels.ConfigError) as refused:
        softlabels.train(**given)
    assert reason in str(refused.value)


def test_the_saved_config_runs_again(shards: Path, tmp_path: Path) -> None:
    softlabels.train(labels=str(shards), out=str(tmp_path / "run"), temperature=3.0, **TINY)
    softlabels.train(config=tmp_path / "run" / "config.yaml", out=str(tmp_path / "again"), quiet=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_workers_change_nothing(shards: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        softlabels.train(labels=str(shards), out=str(tmp_path / str(workers)), **{**TINY, "workers": workers})
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


@pytest.mark.parametrize(
    ("given", "streams"),
    [({"eval_data": "none"}, 1), ({"eval_every": 2}, 2), ({"eval_every": 1}, 3), ({"eval_every": 3, "workers": 2}, 1)],
)
def test_workers_go_on_until_the_student_is_evaluated(
    shards: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], streams: int
) -> None:
    """Of three epochs: the stream that workers make is begun anew after an evaluation alone, and changes nothing."""
    begun: list[Any] = []
    made = loop.batches

    def noted(*samples: Any, **settings: Any) -> Any:
        begun.append(settings)
        return made(*samples, **settings)

    monkeypatch.setattr(loop, "batches", noted)
    settings = {**TINY, "labels": str(shards), "eval_data": str(photos)}
    softlabels.train(out=tmp_path / "run", **{**settings, **given})
    assert len(begun) == streams
    softlabels.train(out=tmp_path / "other", **{**settings, "eval_every": 1})
    assert same(weights(tmp_path / "run"), weights(tmp_path / "other"))


def test_stored_labels_train_as_the_teacher_in_the_loop(photos: Path, tmp_path: Path) -> None:
    """The same student, images, order and objective: only where the target comes from differs."""
    teacher = {"teacher": ["cnn_small"], "data": str(photos), "recipe": "crop-flip"}
    softlabels.dump(
        **teacher,
        weights=["random"],
        views=3,
        codec="dense:fp32",
        out=str(tmp_path / "shards"),
        device="cpu",
        quiet=True,
    )
    softlabels.train(labels=str(tmp_path / "shards"), out=str(tmp_path / "stored"), **TINY)
    softlabels.train(**teacher, teacher_weights=["random"], out=str(tmp_path / "live"), **TINY)
    stored, live = weights(tmp_path / "stored"), weights(tmp_path / "live")
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, live[name], atol=1e-3, rtol=1e-3)


def test_several_teachers_are_blended(shards: Path, tmp_path: Path) -> None:
    runs = {
        "one": {"teachers": ["cnn_tiny"]},
        "both": {},
        "logits": {"blend": "mean-logits"},
        "weighted": {"blend": {"kind": "mean-probabilities", "weights": [0.0, 1.0]}},
    }
    for name, settings in runs.items():
        softlabels.train(labels=str(shards), out=str(tmp_path / name), **TINY, **settings)
    learnt = {name: weights(tmp_path / name) for name in runs}
    assert not same(learnt["one"], learnt["both"])
    assert not same(learnt["both"], learnt["logits"])
    for name, tensor in learnt["one"].items():
        torch.testing.assert_close(tensor, learnt["weighted"][name], atol=1e-4, rtol=1e-4)


def test_the_header_prints_the_exact_objective(shards: Path, tmp_path: Path) -> None:
    softlabels.train(labels=str(shards), out=str(tmp_path / "run"), alpha=0.25, temperature=4.0, **TINY)
    header = (tmp_path / "run" / "header.txt").read_text()
    assert "0.25 * hard + 0.75 * soft" in header
    assert "T^2" in header
    assert "KL(teacher || student)" in header


@pytest.mark.parametrize("loss", ["kl", "ce", "js", "jeffreys", "mse", "l1"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_loss_trains(shards: Path, tmp_path: Path, loss: str, optimizer: str) -> None:
    result = softlabels.train(
        labels=str(shards),
        out=str(tmp_path / "run"),
        loss=loss,
        optimizer=optimizer,
        alpha=0.5,
        **{**TINY, "epochs": 1},
    )
    assert result["steps"] == 3


def test_a_subset_superset_or_reordered_data_set_is_joined_by_key(shards: Path, photos: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    labels = [int(name.split("/")[0].removeprefix("class-")) for name in names]
    table = pd.DataFrame({"path": names, "label": labels})
    orders = {
        "reordered": table.sample(frac=1, random_state=3),
        "subset": table.iloc[[17, 4, 0, 9, 13]],
    }
    stored = softlabels.open_labels(shards)
    for name, frame in orders.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        images = softlabels.open_images(f"csv:{tmp_path / name}.csv", data_dir=str(photos))
        pictures = softlabels.SoftLabelDataset(stored, images, size=16, teachers=["cnn_tiny"])
        whole = softlabels.SoftLabelDataset(stored, softlabels.open_images(photos), size=16, teachers=["cnn_tiny"])
        for row, key in enumerate(frame["path"]):
            there = names.index(key)
            for here, other in zip(pictures[row * 4 + 2], whole[there * 4 + 2], strict=True):
                assert torch.equal(torch.as_tensor(here), torch.as_tensor(other))
        softlabels.train(
            labels=str(shards),
            data=f"csv:{tmp_path / name}.csv",
            data_dir=str(photos),
            out=str(tmp_path / name),
            **TINY,
        )


def test_images_without_labels_are_refused_or_left_out(shards: Path, tmp_path: Path) -> None:
    more = write_pictures(tmp_path / "more", classes=3, each=8)
    with pytest.raises(softlabels.StoreError, match=r"6 of 24 images have no labels.*class-0/006.jpg.*leave-out"):
        softlabels.train(labels=str(shards), data=str(more), out=str(tmp_path / "run"), **TINY)
    assert not (tmp_path / "run").exists()
    result = softlabels.train(
        labels=str(shards), data=str(more), unlabelled="leave-out", out=str(tmp_path / "run"), **TINY
    )
    assert result["images"] == 18


def test_unlabelled_images_distil(photos: Path, tmp_path: Path) -> None:
    softlabels.dump(
        teacher=["cnn_tiny"], weights=["random"], data=f"images:{photos}", views=2, out=str(tmp_path / "s"), quiet=True
    )
    result = softlabels.train(labels=str(tmp_path / "s"), out=str(tmp_path / "run"), **TINY)
    assert result["images"] == 18
    assert result["last"] is None


def test_an_incomplete_store_is_trained_on_only_when_told_so(photos: Path, tmp_path: Path) -> None:
    dump = {"teacher": ["cnn_tiny"], "weights": ["random"], "data": str(photos), "rows_per_shard": 6, "quiet": True}
    softlabels.dump(**dump, views=2, out=str(tmp_path / "s"))
    softlabels.dump(**dump, views=4, part="0/3", out=str(tmp_path / "s"))
    with pytest.raises(softlabels.StoreError, match=r"2 of 4 views.*`incomplete=True`"):
        softlabels.train(labels=str(tmp_path / "s"), out=str(tmp_path / "run"), **TINY)
    assert (
        softlabels.train(labels=str(tmp_path / "s"), incomplete=True, out=str(tmp_path / "run"), **TINY)["steps"] == 9
    )


def test_a_trained_student_is_the_next_teacher_by_its_path_alone(shards: Path, photos: Path, tmp_path: Path) -> None:
    softlabels.train(labels=str(shards), out=str(tmp_path / "run"), **TINY)
    softlabels.dump(
        teacher=[f"file:{tmp_path / 'run'}"], data=str(photos), views=1, out=str(tmp_path / "next"), quiet=True
    )
    assert softlabels.open_labels(tmp_path / "next").teachers == ("run",)


def test_other_pixels_than_the_teachers_are_noticed_before_the_first_step(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    softlabels.dump(
        teacher=["cnn_tiny"], weights=["random"], data=str(root), views=1, out=str(tmp_path / "s"), quiet=True
    )
    first = sorted(root.rglob("*.jpg"))
    pixels = [path.read_bytes() for path in first]
    for path, content in zip(first, [*pixels[1:], pixels[0]], strict=True):
        path.write_bytes(content)
    with pytest.raises(softlabels.StoreError, match="the view is not the one that cnn_tiny saw"):
        softlabels.train(labels=str(tmp_path / "s"), out=str(tmp_path / "run"), **TINY)


def test_dropout_and_mixed_precision_train(shards: Path, tmp_path: Path) -> None:
    for run in ("a", "b"):
        softlabels.train(labels=str(shards), amp="bf16", out=str(tmp_path / run), **TINY)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(softlabels.RunError, match="no longer finite"):
        softlabels.train(
            labels=str(shards), loss="mse", optimizer="sgd", lr=1e30, warmup_epochs=0, out=str(tmp_path / "r"), **TINY
        )


def test_the_command_line_trains_from_labels_with_nothing_typed_twice(
    softlabels_command: Callable, photos: Path
) -> None:
    dumped = softlabels_command("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", photos, "--views", 2)
    assert dumped.exit_code == 0, dumped.output
    trained = softlabels_command("train", "--student", "cnn_tiny", "--labels", "shards/", "--epochs", 2)
    assert trained.exit_code == 0, trained.output
    assert Path("runs/cnn_tiny/best.safetensors").exists()
    scored = softlabels_command("eval", "--student", "runs/cnn_tiny", "--data", photos)
    assert scored.exit_code == 0, scored.output
    assert "18 images" in scored.output


# --- optimizers, warmup, the best weights -------------------------------------------------------------------------

BATCHES = 6


def new_state(optimizer: str = "sgd", warmup: int = 0, **settings: Any) -> learning.TrainState:
    chosen = TrainSettings(epochs=1, batch_size=8, optimizer=optimizer, **{"lr": 1e-3, **settings})
    network = models.build("cnn_tiny", 10, seed=0)
    return learning.TrainState(
        network, models.preprocessing("cnn_tiny"), chosen, BATCHES, warmup, learning.Runtime(torch.device("cpu"))
    )


def steps(of: learning.TrainState, start: int, stop: int) -> None:
    for step in range(start, stop):
        words = torch.Generator().manual_seed(step)
        pictures = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=words)
        batch = Batch(
            pictures=pictures,
            rows=torch.arange(8),
            views=torch.zeros(8),
            targets=torch.randint(0, 10, (8,), generator=words),
        )
        of.begin(step)
        of.backward(torch.nn.functional.cross_entropy(of.forward(batch)["logits"], batch.targets))
        of.step()


OPTIMIZERS = ("adafactorbv", "adahessian", "adamw", "adopt", "lamb", "lion", "sgd")
MUON = pytest.param("muon", marks=pytest.mark.skipif("muon" not in list_optimizers(), reason="timm is too old for it"))


@pytest.mark.parametrize("name", [*OPTIMIZERS, MUON])
def test_a_resumed_run_equals_a_whole_one_whatever_the_optimizer(name: str, tmp_path: Path) -> None:
    learning.check_optimizer(TrainSettings(optimizer=name))
    whole, cut = new_state(name, ema=0.9), new_state(name, ema=0.9)
    steps(whole, 0, 5)
    steps(cut, 0, 3)
    save_checkpoint(tmp_path, 3, cut.state_dict())
    resumed = new_state(name, ema=0.9)
    found = load_checkpoint(tmp_path)
    assert found is not None
    resumed.load_state_dict(found[1])
    steps(resumed, 3, 5)
    for one, other in ((whole.network, resumed.network), (whole.best_network, resumed.best_network)):
        assert same(one.state_dict(), other.state_dict())


@pytest.mark.slow
def test_every_listed_optimizer_can_be_used_or_says_what_it_lacks() -> None:
    refused = {}
    for name in list_optimizers():
        try:
            learning.check_optimizer(TrainSettings(optimizer=name))
        except softlabels.ConfigError as problem:
            refused[name] = str(problem)
    assert all("CUDA" in reason and "\n" not in reason for reason in refused.values()), refused
    assert len(refused) < 20


def test_an_optimizer_that_cannot_be_used_is_refused_before_the_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data": "digits", "limit": 20, "recipe": "pad", **TINY, "epochs": 1}
    if not torch.cuda.is_available():
        with pytest.raises(softlabels.ConfigError, match=r"`optimizer=fusedadam` cannot be made.*CUDA"):
            softlabels.train(optimizer="fusedadam", out=str(tmp_path / "run"), **settings)

    class Forgetful(torch.optim.SGD):
        """Goes another way after a checkpoint."""

        def load_state_dict(self, state: Any) -> None:
            super().load_state_dict(state)
            self.param_groups[0]["weight_decay"] = 10.0

    monkeypatch.setattr(learning, "create_optimizer_v2", lambda groups, lr, **_: Forgetful(groups, lr=lr))
    with pytest.raises(softlabels.ConfigError, match="does not go on as an uninterrupted run would"):
        softlabels.train(optimizer="sgd", weight_decay=0.0123, out=str(tmp_path / "run"), **settings)
    assert not (tmp_path / "run").exists()


def test_each_step_of_the_warmup_is_one_share_of_the_peak_higher_and_the_first_moves() -> None:
    of = new_state("momentum", warmup=4, lr=0.1, weight_decay=0.0)
    before = {name: tensor.clone() for name, tensor in of.network.named_parameters()}
    rates = []
    for step in range(BATCHES):
        steps(of, step, step + 1)
        rates.append(of.lr)
        if step == 0:
            assert any(not torch.equal(before[name], tensor) for name, tensor in of.network.named_parameters())
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4] < rates[3] and 0 < rates[5] < rates[4]


def test_of_equal_accuracies_the_lower_cross_entropy_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter(Score(0.5, 1.0, loss, 10) for loss in (3.0, 2.0, 2.5))
    monkeypatch.setattr("softlabels.training.evaluate.evaluate", lambda *_, **__: next(scores))
    result = softlabels.train(
        data="digits", limit=20, recipe="pad", out=str(tmp_path / "run"), checkpoint_every=1, **TINY
    )
    assert result["best"]["cross_entropy"] == 2.0 and result["last"]["cross_entropy"] == 2.5
    assert not same(weights(tmp_path / "run", "best"), weights(tmp_path / "run", "last"))
