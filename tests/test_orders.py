"""Orders that visit a store shard by shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import softlabels
from softlabels import ShuffledShards, SoftLabelDataset
from softlabels.datasets import subset
from softlabels.store._folder import Folder

RUNS, VIEWS = 13, 3
TRAIN = ("train", "--student", "cnn_tiny", "--size", "8", "--epochs", "3", "--warmup-epochs", "0", "--batch-size", "16")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("windows") / "shards"
    settings: dict[str, Any] = {"teacher": ["cnn_tiny"], "weights": ["random:1"], "data": "digits", "limit": 200}
    softlabels.dump(
        **settings, recipe="pad", views=VIEWS, rows_per_shard=16, compression="zstd", out=str(root), quiet=True
    )
    return root


@pytest.fixture
def pictures(store: Path) -> SoftLabelDataset:
    images = softlabels.open_images({"kind": "digits"})
    labels = softlabels.open_labels(store)
    rows = np.flatnonzero(np.isin(np.asarray(images.keys.to_pylist()), labels.keys.to_pylist()))
    return SoftLabelDataset(labels, subset(images, rows), size=8)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_each_image_comes_once_and_after_all_epochs_in_each_view_once(pictures: SoftLabelDataset, window: int) -> None:
    epochs = [ShuffledShards(pictures, window, epoch).numbers() for epoch in range(VIEWS)]
    for numbers in epochs:
        assert sorted(numbers // VIEWS) == list(range(200))
    assert sorted(np.concatenate(epochs)) == list(range(200 * VIEWS))


def test_several_views_of_an_image_come_together(pictures: SoftLabelDataset) -> None:
    numbers = ShuffledShards(pictures, 2, views_per_image=2).numbers().reshape(200, 2)
    assert (numbers[:, 0] // VIEWS == numbers[:, 1] // VIEWS).all()
    assert (numbers[:, 0] != numbers[:, 1]).all()


def test_no_more_than_a_window_of_shards_is_read_at_a_time(pictures: SoftLabelDataset) -> None:
    for epoch in range(3):
        runs = pictures.runs()[ShuffledShards(pictures, 4, epoch).numbers() // VIEWS]
        first = {run: int(np.flatnonzero(runs == run)[0]) for run in range(RUNS)}
        last = {run: int(np.flatnonzero(runs == run)[-1]) for run in range(RUNS)}
        assert max(sum(first[run] <= place <= last[run] for run in range(RUNS)) for place in range(200)) <= 4
        assert (np.diff(runs[:40]) != 0).any()  # and within it they are mixed


def test_the_order_is_a_function_of_seed_and_epoch(pictures: SoftLabelDataset) -> None:
    def order(epoch: int, seed: int) -> list[int]:
        return ShuffledShards(pictures, 3, epoch, seed).numbers().tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(epoch, seed)) for epoch in range(3) for seed in range(3)}) == 9
    sampler = ShuffledShards(pictures, 3, 0, 2)
    sampler.set_epoch(1)
    assert list(sampler) == order(1, 2)
    assert len(sampler) == 200


def test_an_epoch_decodes_one_view_of_each_shard_once(
    pictures: SoftLabelDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[tuple[int, int]] = Counter()
    fill = Folder.fill

    def noted(self: Folder, chunk: Any, shard: Any, out: Any) -> None:
        decoded[shard.run, chunk.view] += 1
        fill(self, chunk, shard, out)

    monkeypatch.setattr(Folder, "fill", noted)
    pictures.labels.share(16 * 10 * 4 * 4)  # four views of shards
    for _ in DataLoader(pictures, batch_size=8, sampler=ShuffledShards(pictures, 3)):
        pass
    arrays = len(pictures.labels.of().card.layout)
    assert len(decoded) == RUNS and set(decoded.values()) == {arrays}


def test_a_training_that_stops_in_mid_epoch_goes_on_as_if_it_had_not(
    store: Path, softlabels_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from softlabels.learning import Learner

    options = ("--labels", store, "--shuffle-window", 3, "--checkpoint-every", 5, "--label-memory", "1MB")
    assert softlabels_command(*TRAIN, *options, "--out", "whole", "--workers", 2).exit_code == 0
    learn, steps = Learner.learn, []

    def dying(self: Learner, passes: Any, pictures: int, step: int, loss: Any) -> Any:
        steps.append(step)
        if step == 18:
            raise KeyboardInterrupt
        return learn(self, passes, pictures, step, loss)

    monkeypatch.setattr(Learner, "learn", dying)
    assert softlabels_command(*TRAIN, *options, "--out", "broken").exit_code == 1
    assert steps[-1] == 18
    monkeypatch.setattr(Learner, "learn", learn)
    gone_on = softlabels_command(*TRAIN, *options, "--out", "broken", "--workers", 1)
    assert gone_on.exit_code == 0 and "going on from step 15" in gone_on.output
    whole, broken = (load_file(f"{run}/last.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_window_of_nothing_is_refused(pictures: SoftLabelDataset, softlabels_command: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="1 shard or more"):
        ShuffledShards(pictures, 0)
    refused = softlabels_command(*TRAIN, "--shuffle-window", 3)
    assert refused.exit_code == 2
    assert "--shuffle-window needs" in refused.output
