"""Published weights: from the cache when they are there, one clear line at once when they are not."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision

from softlabels import models
from softlabels.errors import ModelError
from softlabels.models import teacher_spec


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose names resolve nowhere."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def cache(state: dict, network: str) -> None:
    """Put `state` where the published weights of `network` would be."""
    default = models.published_weights(network)
    assert default is not None
    default.file.parent.mkdir(parents=True)
    torch.save(state, default.file)


@pytest.mark.usefixtures("torch_home")
def test_cached_published_weights_are_used_with_all_that_is_known_of_them() -> None:
    network = torchvision.models.mobilenet_v3_small()
    cache(network.state_dict(), "mobilenet_v3_small")
    weights = models.load_pretrained("mobilenet_v3_small", None)
    assert weights.where == "MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    assert weights.classes == 1000 and weights.class_names[0] == "tench"
    assert models.digest(weights.build().state_dict()) == models.digest(network.state_dict())


@pytest.mark.usefixtures("torch_home", "offline")
@pytest.mark.parametrize("typed", ["IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1"])
def test_torchvisions_weights_are_taken_by_their_names_with_their_own_preprocessing(typed: str) -> None:
    network = torchvision.models.resnet50()
    published = models.published_weights("resnet50", typed)
    assert published is not None and published.preprocessing.resize == 256
    published.file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), published.file)
    weights = models.load_pretrained("resnet50", typed)
    assert weights.where == "ResNet50_Weights.IMAGENET1K_V1" and weights.preprocessing.resize == 256
    assert models.preprocessing("resnet50").resize == 232  # of the second weights
    teacher = teacher_spec("resnet50", typed).open()
    assert teacher.weights_sha256 == models.digest(network.state_dict()) and teacher.preprocessing.resize == 256
    with pytest.raises(ModelError, match=r"no file of weights at IMAGENET1K_V9.*IMAGENET1K_V1, IMAGENET1K_V2"):
        models.load_pretrained("resnet50", "IMAGENET1K_V9")


def test_a_copy_of_published_weights_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "mine.pth")
    assert models.load_pretrained("resnet50", str(tmp_path / "mine.pth")).preprocessing.resize == 232
    # The digits of the file that torchvision publishes as the first weights.
    monkeypatch.setattr("softlabels.models._torchvision.file_sha256", lambda _: "0676ba61" + "0" * 56)
    weights = models.load_pretrained("resnet50", str(tmp_path / "mine.pth"))
    assert weights.preprocessing.resize == 256 and weights.class_names[0] == "tench"


@pytest.mark.usefixtures("torch_home")
def test_published_densenets_are_read_under_their_old_names() -> None:
    network = torchvision.models.densenet121()
    renamed = {
        name.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2")
        if "denselayer" in name
        else name: tensor
        for name, tensor in network.state_dict().items()
    }
    cache(renamed, "densenet121")
    weights = models.load_pretrained("densenet121", "default")
    assert models.digest(weights.build().state_dict()) == models.digest(network.state_dict())


@pytest.mark.usefixtures("torch_home")
def test_published_inceptions_give_the_logits_torchvision_gives() -> None:
    theirs = torchvision.models.googlenet(init_weights=False, transform_input=True).eval()
    cache(theirs.state_dict(), "googlenet")
    ours = models.load_pretrained("googlenet", None).build().eval()
    pictures = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(pictures), theirs(pictures))


@pytest.mark.usefixtures("offline")
def test_without_a_network_one_line_names_weights_file_and_option(torch_home: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError) as raised:
        models.load_pretrained("resnet18", None)
    line = str(raised.value)
    assert "ResNet18_Weights.IMAGENET1K_V1" in line and "`weights=FILE`" in line and "\n" not in line
    assert str(torch_home / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in line
    assert "Name or service not known" in line
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("offline", "torch_home")
def test_without_a_network_timm_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"timm/resnet18\.a1_in1k.*download https://.*`weights=FILE`"):
        models.load_pretrained("timm:resnet18", None)
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("torch_home")
def test_a_damaged_cached_file_is_named() -> None:
    default = models.published_weights("resnet18")
    assert default is not None
    default.file.parent.mkdir(parents=True)
    default.file.write_bytes(b"half")
    with pytest.raises(ModelError, match=r"resnet18-f37072fd\.pth"):
        models.load_pretrained("resnet18", None)


def test_small_networks_have_no_published_weights() -> None:
    with pytest.raises(ModelError, match=r"small:cnn_tiny has no published weights.*`weights=FILE`"):
        models.load_pretrained("cnn_tiny", None)


def test_a_file_of_weights_under_their_authors_names_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("convnext_atto").state_dict()
    # The names of ConvNeXt's authors, which timm changes when it loads their files.
    theirs = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc", ".pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]

    def renamed(name: str) -> str:
        for pattern, other in theirs:
            name = re.sub(pattern, other, name)
        return name

    save_file({renamed(name): tensor.contiguous() for name, tensor in state.items()}, tmp_path / "theirs.safetensors")
    weights = models.load_pretrained("timm:convnext_atto", str(tmp_path / "theirs.safetensors"))
    assert models.digest(weights.build().state_dict()) == models.digest(state)
