"""Weights in checkpoints of any trainer: found by the names they must have, never chosen in silence, never executed."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from softlabels import models
from softlabels.errors import ModelError
from softlabels.models import Description, Preprocessing, teacher_spec

RAW, AVERAGE = (models.build("cnn_tiny", 10, seed=seed).state_dict() for seed in (1, 2))


def below(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def read(weights: str) -> str:
    """Digest of the network that these weights make of cnn_tiny."""
    return models.digest(models.load_pretrained("cnn_tiny", weights).build().state_dict())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


ONE = {
    "an average alone": {"state_dict_ema": AVERAGE, "epoch": 3},
    "an average in its wrapper": {"ema": {"module": below("module.", AVERAGE), "n_averaged": torch.tensor(3)}},
    "a key of the trainer's own": {"the_best_one": AVERAGE},
    "names below a prefix": {"state_dict": below("model.", AVERAGE)},
    "names below two prefixes": below("learner.net.", AVERAGE),
    "a loss with weights": {"state_dict": {**below("module.", AVERAGE), "criterion.weight": torch.ones(10)}},
    "a wrapper within": {name.replace("features.", "features.module."): t for name, t in AVERAGE.items()},
    "numbers beside": {**AVERAGE, "epoch": 3},
    "optimizer and scale": {
        "model": AVERAGE,
        "optimizer": torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict(),
        "scaler": {"scale": torch.tensor(65536.0)},
    },
    "numpy numbers": {
        "state_dict": AVERAGE,
        "best_acc1": np.float64(77.1),
        "epoch": np.int64(3),
        "flag": np.bool_(True),
    },
    "numpy arrays": {"state_dict": AVERAGE, "confusion": np.arange(6).reshape(2, 3)},
    "a trainer's things": {
        "state_dict": AVERAGE,
        "args": argparse.Namespace(out=pathlib.PurePosixPath("x"), lr=np.float32(0.1)),
        "when": datetime.datetime(2024, 1, 1),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
    },
}


@pytest.mark.parametrize("what", ONE)
def test_the_only_weights_of_a_checkpoint_are_found_whatever_lies_around_them(what: str) -> None:
    torch.save(ONE[what], "c.pth")
    assert read("c.pth") == models.digest(AVERAGE)


SEVERAL = {
    "timm": ({"state_dict": RAW, "state_dict_ema": AVERAGE}, "state_dict_ema"),
    "DeiT": ({"model": RAW, "model_ema": AVERAGE}, "model_ema"),
    "in a wrapper": ({"model": RAW, "model_ema": {"module": AVERAGE}}, "model_ema.module"),
    "torchvision": (
        {"model": RAW, "model_ema": {"n_averaged": torch.tensor(3), **below("module.", AVERAGE)}},
        "model_ema",
    ),
    "mmengine": ({"state_dict": RAW, "ema_state_dict": AVERAGE}, "ema_state_dict"),
    "student and teacher": (
        {"student": below("module.backbone.", RAW), "teacher": below("backbone.", AVERAGE)},
        "teacher",
    ),
    "best and last": ({"last": RAW, "best": AVERAGE}, "best"),
    "two prefixes": ({"state_dict": {**below("model.", RAW), **below("ema.", AVERAGE)}}, "state_dict.ema"),
    "one beside the other": ({**RAW, **below("teacher.", AVERAGE)}, "teacher"),
}


@pytest.mark.parametrize("what", SEVERAL)
def test_of_several_weights_none_is_chosen_and_each_can_be(what: str) -> None:
    content, key = SEVERAL[what]
    torch.save(content, "c.pth")
    with pytest.raises(ModelError, match=r"several weights: .*`weights=c\.pth:") as raised:
        read("c.pth")
    assert key.split(".")[0] in str(raised.value) and "\n" not in str(raised.value)
    assert read(f"c.pth:{key}") == models.digest(AVERAGE)
    with pytest.raises(ModelError, match="no weights of small:cnn_tiny at 'nowhere'"):
        read("c.pth:nowhere")


def test_a_checkpoint_that_is_its_own_key_is_chosen_by_a_dot() -> None:
    torch.save({**RAW, **below("teacher.", AVERAGE)}, "c.pth")
    assert read("c.pth:.") == models.digest(RAW)


def test_a_teacher_says_which_weights_it_took_and_is_found_again_by_it() -> None:
    torch.save({"state_dict_ema": AVERAGE}, "c.pth")
    teacher = teacher_spec("cnn_tiny", "c.pth").open()
    assert teacher.spec["weights"] == "c.pth:state_dict_ema" and teacher.weights_sha256 == models.digest(AVERAGE)
    assert teacher_spec(teacher.spec).open().weights_sha256 == teacher.weights_sha256
    torch.save({"model": RAW, "model_ema": AVERAGE}, "d.pth")
    assert teacher_spec("cnn_tiny", "d.pth:model").open().spec["weights"] == "d.pth:model"


def test_a_network_with_parts_called_as_wrappers_are_is_loaded_by_its_own_names() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.module = nn.Linear(2, 2), nn.ModuleDict({"layer": nn.Linear(2, 2)})

    one, other = Odd(), Odd()
    torch.save({"state_dict": {f"net.{name}": tensor for name, tensor in one.state_dict().items()}}, "odd.pth")
    models.load_weights(other, "odd.pth", "odd")
    assert models.digest(other.state_dict()) == models.digest(one.state_dict())


def test_a_head_that_stands_in_a_module_of_its_own_is_found() -> None:
    state = models.build("resnet18", 10).state_dict()
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    head = {f"head.{name}": tensor for name, tensor in state.items() if name.startswith("fc.")}
    torch.save({"state_dict": {**below("backbone.", body), **head}, "meta": {}}, "mm.pth")
    weights = models.load_pretrained("resnet18", "mm.pth")
    assert weights.classes == 10 and models.digest(weights.build().state_dict()) == models.digest(state)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:7\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"", "empty"),
        (b"\0" * 4096, "zero bytes"),
        (json.dumps({"weight_map": {"a": "b"}}).encode(), "index of weights"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 600, "HDF5"),
        (b"hello, this is text", "text"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_of_another_kind_is_called_by_its_kind(name: str, content: bytes, said: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(ModelError, match=said) as raised:
        models.read_weights(name)
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_programs_and_archives_are_called_by_their_kind() -> None:
    network = models.build("cnn_tiny", 10).eval()
    torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).save("script.pt")
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)), "program.pt2")
    np.savez("arrays.npz", a=np.ones(3))
    torch.save(network, "whole.pt")
    for name, said in {
        "script.pt": "TorchScript",
        "program.pt2": "torch.export",
        "arrays.npz": "NumPy arrays",
        "whole.pt": "whole pickled network",
    }.items():
        with pytest.raises(ModelError, match=said) as raised:
            models.read_weights(name)
        assert "\n" not in str(raised.value)


def test_a_small_file_cannot_ask_for_the_largest_network() -> None:
    giant = "timm:eva02_enormous_patch14_clip_224"
    told = Description(architecture=giant, classes=10, preprocessing=Preprocessing(size=224))
    models.write_weights(Path("names.safetensors"), RAW, told.to_metadata())
    heads = models.head_tensors(giant)
    shapes = {
        name: torch.zeros([10 if heads.get(name) == place else 1 for place in range(tensor.ndim)])
        for name, tensor in models.layout(models.resolve(giant), 10, 224).items()
    }
    models.write_weights(Path("shapes.safetensors"), shapes, told.to_metadata())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("names", "shapes"):
        with pytest.raises(ModelError, match=f"{name}.safetensors does not fit {giant}"):
            models.load_file(f"{name}.safetensors").build()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_a_tensor_that_repeats_a_few_bytes_is_refused() -> None:
    torch.save({**RAW, "head.weight": torch.zeros(1).expand(1 << 30, 32)}, "w.pt")
    with pytest.raises(ModelError, match="larger than the file"):
        models.read_weights("w.pt")


def test_a_student_starts_from_a_key_and_says_so(
    softlabels_command: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": RAW, "model_ema": AVERAGE}, "c.pth")
    common = ("--data", "digits", "--limit", 20, "--recipe", "pad", "--size", 8, "--epochs", 1, "--device", "cpu")
    refused = softlabels_command("train", "--student", "cnn_tiny", "--weights", "c.pth", *common, "--out", "run")
    assert refused.exit_code == 1 and "several weights" in refused.output and not Path("run").exists()
    done = softlabels_command("train", "--student", "cnn_tiny", "--weights", "c.pth:model_ema", *common, "--out", "run")
    assert done.exit_code == 0, done.output
    assert "starts from c.pth:model_ema" in caplog.text


def test_a_head_that_starts_anew_starts_near_zero() -> None:
    state = models.build("timm:tf_efficientnet_lite0", 1000, size=64).state_dict()
    torch.save(state, "w.pt")
    network = (
        models.load_pretrained("timm:tf_efficientnet_lite0", "w.pt").build_for_finetuning(2, seed=0, size=64).eval()
    )
    with torch.no_grad():
        features = network.forward_head(network.forward_features(torch.randn(4, 3, 64, 64)), pre_logits=True)
    assert network.classifier.bias.abs().max() == 0
    assert 0 < network.classifier.weight.std() < 0.02
    with torch.no_grad():
        assert network.classifier(features).abs().max() < 0.1 * features.norm(dim=1).max()
