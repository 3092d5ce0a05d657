"""Files of weights: what goes in comes out, and nothing in them is ever run."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from softlabels import models
from softlabels.errors import ModelError
from softlabels.models import Description, Preprocessing


@pytest.fixture
def network() -> nn.Module:
    return models.build("cnn_tiny", 6, seed=3)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


def wrapped(state: dict, how: str) -> object:
    """`state` as the tools of the field save it."""
    if how == "parallel":
        return {f"module.{name}": tensor for name, tensor in state.items()}
    if how == "compiled":
        return {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    if how == "both":
        return {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    if how == "averaged":
        return {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in state.items()}}
    if how == "torchvision-script":
        return {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    if how == "deep":
        return {"model": {"state_dict": state}, "epoch": 1}
    return state if how == "plain" else {how: state, "epoch": 1}


@pytest.mark.parametrize(
    "how",
    [
        "plain",
        "state_dict",
        "model",
        "model_state_dict",
        "net",
        "deep",
        "torchvision-script",
        "parallel",
        "compiled",
        "both",
        "averaged",
    ],
)
def test_a_torch_file_gives_back_the_state_however_it_was_wrapped(tmp_path: Path, network: nn.Module, how: str) -> None:
    state = network.state_dict()
    torch.save(wrapped(state, how), tmp_path / "w.pt")
    read = models.read_weights(tmp_path / "w.pt")
    assert list(read.state) == list(state) and read.metadata == {}
    assert all(torch.equal(read.state[name], state[name]) for name in state)
    assert read.sha256 == models.digest(state)


@pytest.mark.parametrize("zipped", [True, False])
def test_equal_weights_have_equal_digests_whatever_the_file(tmp_path: Path, network: nn.Module, zipped: bool) -> None:
    state = network.state_dict()
    torch.save(dict(reversed(state.items())), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    models.write_weights(tmp_path / "w.safetensors", state, {})
    models.write_weights(tmp_path / "w.bin", {f"module.{name}": tensor for name, tensor in state.items()}, {})
    assert {models.read_weights(tmp_path / f"w.{end}").sha256 for end in ("pth", "safetensors", "bin")} == {
        models.digest(state)
    }


def test_a_digest_tells_name_dtype_shape_and_value_apart() -> None:
    base = torch.arange(6, dtype=torch.float32)
    states = [
        {"a": base},
        {"b": base},
        {"a": base.view(2, 3)},
        {"a": base.to(torch.float64)},
        {"a": base.view(torch.int32)},
        {"a": base + 1},
        {"a": base, "b": base[:0]},
        {"a": base.to(torch.bfloat16)},
    ]
    assert len({models.digest(state) for state in states}) == len(states)
    assert models.digest({"a": base.view(2, 3).t().contiguous().t()}) == models.digest({"a": base.view(2, 3)})


def test_weights_describe_themselves(tmp_path: Path, network: nn.Module) -> None:
    told = Description(
        architecture="small:cnn_tiny",
        classes=6,
        class_names=("ä", "b", "c", "d", "e", "f"),
        preprocessing=Preprocessing(size=8, mean=(0.1, 0.2, 0.3)),
    )
    path = tmp_path / "run" / "best.safetensors"
    models.write_weights(path, network.state_dict(), told.to_metadata())
    assert models.read_description(path) == models.read_description(path.parent) == told
    weights = models.load_file(path.parent)
    assert (weights.classes, weights.class_names, weights.preprocessing) == (6, told.class_names, told.preprocessing)
    assert models.digest(weights.build().state_dict()) == models.digest(network.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softlabels": "2"}, "later softlabels"),
        ({"classes": "many"}, "damaged metadata"),
        ({"preprocessing": "{}["}, "damaged metadata"),
        ({"preprocessing": '{"size": 0}'}, "damaged metadata"),
        ({"class_names": "3"}, "damaged metadata"),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, network: nn.Module, change: dict, message: str) -> None:
    metadata = Description(architecture="small:cnn_tiny", classes=6, preprocessing=Preprocessing()).to_metadata()
    models.write_weights(tmp_path / "w.safetensors", network.state_dict(), {**metadata, **change})
    with pytest.raises(ModelError, match=message) as raised:
        models.load_file(tmp_path / "w.safetensors")
    assert "w.safetensors" in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_of_weights_never_chooses_code_to_run(tmp_path: Path, network: nn.Module) -> None:
    told = Description(architecture="function:os:abort", classes=6, preprocessing=Preprocessing())
    models.write_weights(tmp_path / "w.safetensors", network.state_dict(), told.to_metadata())
    with pytest.raises(ModelError, match="network of your own"):
        models.load_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("how", ["torch", "torch-legacy", "nested", "pickle"])
def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, bomb = tmp_path / "w.pt", Bomb(tmp_path / "ran")
    if how == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        content = {"state_dict": {"a": torch.ones(1)}, "extra": bomb} if how == "nested" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=how != "torch-legacy")
    with pytest.raises(ModelError, match="refused") as raised:
        models.read_weights(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"Linear.*torch\.save\(network\.state_dict\(\), FILE\)"):
        models.read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_damaged_files_are_named_in_one_line(tmp_path: Path, network: nn.Module, name: str, damage: str) -> None:
    path = tmp_path / name
    if name == "w.pt":
        torch.save(network.state_dict(), path)
    else:
        models.write_weights(path, network.state_dict(), {})
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"hello there, this is text"}[damage]
    )
    with pytest.raises(ModelError) as raised:
        models.read_weights(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"state_dict": {"a": "b"}}, {}])
def test_a_file_without_a_state_dict_says_so(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        models.read_weights(tmp_path / "w.pt")


def test_missing_files_and_folders_without_weights_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file of weights"):
        models.read_weights(tmp_path / "none.pt")
    with pytest.raises(ModelError, match=r"holds no best\.safetensors"):
        models.read_weights(tmp_path)


def test_tied_and_strided_tensors_can_be_written(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3)
    models.write_weights(tmp_path / "w.safetensors", {"a": tensor, "b": tensor, "c": tensor.t()}, {})
    read = models.read_weights(tmp_path / "w.safetensors").state
    assert torch.equal(read["a"], read["b"]) and torch.equal(read["c"], tensor.t())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {**s, "features.0.weight": torch.zeros(4, 3, 3, 3)},
            r"features\.0\.weight is \(4, 3, 3, 3\) in the file and",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "features.3.weight"}, r"no features\.3\.weight"),
        (lambda s: {**s, "neck.weight": torch.zeros(1)}, r"neck\.weight has no place"),
        (lambda s: {f"net.{k}".replace("0", "a"): v for k, v in s.items()}, r"no features\.0\.weight"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path, network: nn.Module, change, message: str) -> None:
    torch.save(change(dict(network.state_dict())), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        models.load_pretrained("cnn_tiny", str(tmp_path / "w.pt")).build()


def test_counters_missing_from_old_files_are_forgiven(tmp_path: Path, network: nn.Module) -> None:
    old = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "w.pt")
    built = models.load_pretrained("cnn_tiny", str(tmp_path / "w.pt")).build()
    assert all(torch.equal(built.state_dict()[name], old[name]) for name in old)


def test_a_described_file_under_another_name_is_refused(tmp_path: Path, network: nn.Module) -> None:
    told = Description(architecture="small:cnn_tiny", classes=6, preprocessing=Preprocessing(size=8))
    path = tmp_path / "w.safetensors"
    models.write_weights(path, network.state_dict(), told.to_metadata())
    assert models.load_pretrained("cnn_tiny", str(path)).preprocessing.size == 8
    with pytest.raises(ModelError, match="holds the weights of small:cnn_tiny, not of small:cnn_small"):
        models.load_pretrained("cnn_small", str(path))


def test_a_fresh_head_is_drawn_from_the_seed_and_the_rest_is_kept(tmp_path: Path, network: nn.Module) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pt")
    weights = models.load_pretrained("cnn_tiny", str(tmp_path / "w.pt"))
    one, same, other = (weights.build_for_finetuning(4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert models.digest(one) == models.digest(same) != models.digest(other)
    assert one["head.weight"].shape[0] == 4
    assert all(torch.equal(one[n], t) for n, t in network.state_dict().items() if not n.startswith("head"))
    kept = weights.build_for_finetuning(6, seed=9).state_dict()
    assert models.digest(kept) == models.digest(network.state_dict())
