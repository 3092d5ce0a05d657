"""The scripts under docs/examples, run on a few images, and what keeps pairs together in other people's loops."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision

import softlabels

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
NEEDED = {"accelerate_loop": "accelerate", "lightning_module": "lightning", "huggingface_trainer": "transformers"}
VIEWS, EPOCHS = 3, 6


def load(name: str) -> ModuleType:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dumped(photos: Path, out: Path, **settings: Any) -> Path:
    softlabels.dump(
        teacher=["cnn_small"], weights=["random"], data=str(photos), out=str(out), device="cpu", quiet=True, **settings
    )
    return out


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dumped(photos, tmp_path_factory.mktemp("examples") / "shards", views=VIEWS)


@pytest.fixture(scope="module")
def clean(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dumped(photos, tmp_path_factory.mktemp("examples") / "clean", views=1, recipe="clean")


def test_every_example_is_run_here() -> None:
    own = {"own_data", "own_teacher"}  # in test_docs_own
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        *("plain_pytorch", "timm_pieces", "own_pictures"),
        *own,
        *NEEDED,
    }


@pytest.mark.parametrize("name", ["plain_pytorch", "timm_pieces", *NEEDED])
def test_an_example_learns_from_each_image_once_an_epoch_in_its_next_view(
    name: str, shards: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    fetch = softlabels.SoftLabelDataset.__getitems__

    def noted(self: Any, numbers: Sequence[int]) -> Any:
        asked.extend(numbers)
        return fetch(self, numbers)

    monkeypatch.setattr(softlabels.SoftLabelDataset, "__getitems__", noted)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    if name == "huggingface_trainer":
        # The folder tests/datasets looks to transformers like the package of that name.
        load(name)
        monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
    losses = load(name).main(str(shards), str(photos), epochs=EPOCHS, size=32, batch_size=6)
    assert len(losses) == EPOCHS
    assert min(losses[2:]) < losses[0]
    pictures = softlabels.SoftLabelDataset(softlabels.open_labels(shards), softlabels.open_images(photos), size=8)
    wanted = [softlabels.OneViewEach(pictures, epoch, seed=0).numbers().tolist() for epoch in range(EPOCHS)]
    assert asked == [number for epoch in wanted for number in epoch]


def test_lightnings_replacement_of_samplers_keeps_pairs_and_order(shards: Path, photos: Path) -> None:
    pytest.importorskip("lightning")
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

    labels = softlabels.open_labels(shards)
    pictures = softlabels.SoftLabelDataset(labels, softlabels.open_images(photos), size=16)
    ours = softlabels.OneViewEach(pictures, epoch=1, seed=0)
    shares = [
        list(DistributedSamplerWrapper(ours, num_replicas=2, rank=rank, shuffle=False, drop_last=False))
        for rank in (0, 1)
    ]
    assert sorted(shares[0] + shares[1]) == sorted(ours)
    for number in shares[1]:
        picture, _, soft = pictures[number]
        row, view = divmod(number, VIEWS)
        assert torch.equal(soft, labels.probabilities([row], view)[0])
        assert torch.equal(picture, pictures.pictures[number])


def test_the_hugging_face_trainer_fails_loudly_when_targets_are_dropped() -> None:
    pytest.importorskip("transformers")
    from softlabels.integrations.transformers import SoftLabelCollator, SoftLabelTrainer

    with pytest.raises(softlabels.ConfigError, match="SoftLabelDataset"):
        SoftLabelCollator()([(torch.zeros(3, 8, 8), 1)])
    with pytest.raises(softlabels.ConfigError, match="remove_unused_columns=False"):
        SoftLabelTrainer.compute_loss(None, None, {"pixel_values": torch.zeros(1, 3, 8, 8)})


@pytest.mark.parametrize("project", ["lightning", "transformers"])
def test_an_integration_names_the_extra_that_it_needs(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, project, None)
    monkeypatch.delitem(sys.modules, f"softlabels.integrations.{project}", raising=False)
    with pytest.raises(softlabels.ConfigError, match=rf"pip install 'softlabels\[{project}\]'"):
        importlib.import_module(f"softlabels.integrations.{project}")


def test_somebodys_own_pictures_get_the_labels_of_their_images(clean: Path, photos: Path) -> None:
    losses = load("own_pictures").main(str(clean), str(photos), epochs=EPOCHS, size=32, batch_size=6)
    assert min(losses[2:]) < losses[0]
    labels = softlabels.open_labels(clean)
    folder = torchvision.datasets.ImageFolder(photos)
    part = torch.utils.data.Subset(folder, [11, 3])
    for number, path in enumerate(["class-1/005.jpg", "class-0/003.jpg"]):
        picture, hard, soft = softlabels.attach(part, labels)[number]
        assert picture == folder[[11, 3][number]][0]
        assert hard == int(path[6])
        assert torch.equal(soft, labels.probabilities(labels.rows([path]), 0)[0])


def test_items_that_are_mappings_get_a_further_entry(clean: Path) -> None:
    labels = softlabels.open_labels(clean)
    keys = labels.keys.to_pylist()[:2]
    attached = softlabels.attach([{"pixel_values": 1}, {"pixel_values": 2}], labels, keys=keys)
    assert attached[1]["pixel_values"] == 2
    assert torch.equal(attached[-1]["soft_labels"], labels.probabilities([1], 0)[0])
    assert softlabels.attach(["a", "b"], labels, keys=keys)[0][0] == "a"


def test_labels_of_crops_are_not_attached_to_other_pictures(shards: Path, clean: Path, photos: Path) -> None:
    folder = torchvision.datasets.ImageFolder(photos)
    with pytest.raises(softlabels.ConfigError, match=r"3 views of random-resized-crop.*`recipe=clean` `views=1`"):
        softlabels.attach(folder, softlabels.open_labels(shards))
    labels = softlabels.open_labels(clean)
    with pytest.raises(softlabels.ConfigError, match="give keys="):
        softlabels.attach([1, 2], labels)
    with pytest.raises(softlabels.ConfigError, match="1 keys for 2 items"):
        softlabels.attach([1, 2], labels, keys=["a"])
    with pytest.raises(KeyError, match="nowhere"):
        softlabels.attach([1], labels, keys=["nowhere.jpg"])
