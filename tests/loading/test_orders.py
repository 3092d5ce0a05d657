"""Orders that visit a store shard by shard."""

from __future__ import annotations

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
from softlabels.store._folder import ShardFolder

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


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, ...]]]:
    """What was decoded since it was asked last, by whichever process: (run, array, view, bytes on disk, bytes)."""
    notes, fill = tmp_path / "decoded.txt", ShardFolder.fill
    notes.touch()

    def noted(self: ShardFolder, chunk: Any, shard: Any, out: Any) -> None:
        with notes.open("a") as file:
            file.write(f"{shard.run} {chunk.array} {chunk.view} {chunk.size} {out.nbytes}\n")
        fill(self, chunk, shard, out)

    def read() -> list[tuple[str, ...]]:
        lines = notes.read_text().splitlines()
        notes.write_text("")
        return [tuple(line.split()) for line in lines]

    monkeypatch.setattr(ShardFolder, "fill", noted)
    return read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("window", [3, "1kB"])
def test_each_chunk_is_unpacked_once_by_whichever_process(
    pictures: SoftLabelDataset, decoded: Callable[[], list[tuple[str, ...]]], window: int | str, workers: int
) -> None:
    labels = pictures.labels.of()
    assert (labels.unit, 1000 // labels.unit) == (320, 3)  # 16 rows of 10 classes in fp16: 3 shards, too
    for epoch in range(VIEWS):
        sampler = ShuffledShards(pictures, window, epoch)
        for _ in DataLoader(pictures, batch_size=8, sampler=sampler, num_workers=workers):
            pass
    pieces = decoded()
    assert len(pieces) == len(set(pieces)) == RUNS * VIEWS * len(labels.card.layout)
    stored = [array for shard in labels.shards for array in labels._folder.header(shard).arrays.values()]
    assert sum(int(size) for *_, size, _ in pieces) == sum(sum(array.sizes) for array in stored)


def test_a_window_of_bytes_is_one_of_shards(pictures: SoftLabelDataset) -> None:
    unit = pictures.labels.of().unit

    def order(window: int | str, views_per_image: int = 1) -> list[int]:
        return ShuffledShards(pictures, window, views_per_image=views_per_image).numbers().tolist()

    assert order(f"{4 * unit}B") == order(f"{5 * unit - 1}B") == order(4) != order(5)
    assert order(f"{4 * unit}B", 2) == order(2, 2)  # an epoch takes two views of each shard
    assert order("1GB") == order(RUNS)
    with pytest.raises(softlabels.SoftlabelsError, match=rf"no room for one shard.*`shuffle_window={unit}B` or more"):
        order(f"{unit - 1}B")


@pytest.mark.parametrize("window", [3, pytest.param("1kB", marks=pytest.mark.slow)])
def test_a_training_that_stops_in_mid_epoch_goes_on_as_if_it_had_not(
    store: Path, softlabels_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, window: int | str
) -> None:
    from softlabels.training.state import TrainState

    options = ("--labels", store, "--shuffle-window", window, "--checkpoint-every", 5)
    assert softlabels_command(*TRAIN, *options, "--out", "whole", "--workers", 2).exit_code == 0
    begin, steps = TrainState.begin, []

    def dying(self: TrainState, step: int, passes: int) -> None:
        steps.append(step)
        if step == 18:
            raise KeyboardInterrupt
        begin(self, step, passes)

    monkeypatch.setattr(TrainState, "begin", dying)
    assert softlabels_command(*TRAIN, *options, "--out", "broken").exit_code == 130
    assert steps[-1] == 18
    monkeypatch.setattr(TrainState, "begin", begin)
    gone_on = softlabels_command(*TRAIN, *options, "--out", "broken", "--workers", 1)
    assert gone_on.exit_code == 0 and "going on from step 15" in gone_on.output
    whole, broken = (load_file(f"{run}/last.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_window_of_nothing_is_refused(pictures: SoftLabelDataset, softlabels_command: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="1 shard or more"):
        ShuffledShards(pictures, 0)
    refused = softlabels_command(*TRAIN, "--data", "digits", "--shuffle-window", 3)
    assert refused.exit_code == 2
    assert "--shuffle-window needs" in refused.output
    for wrong in ("0", "0MB", "-2", "many", "3 shards"):
        refused = softlabels_command(*TRAIN, "--labels", "s", "--shuffle-window", wrong)
        assert refused.exit_code == 2 and "shuffle_window" in refused.output.replace("-", "_"), refused.output
