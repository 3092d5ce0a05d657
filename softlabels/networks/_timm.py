"""The networks of timm, with the preprocessing of their pretrained configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from softlabels._installed import timm_networks
from softlabels.errors import ModelError
from softlabels.networks._hub import cached_file, fetch, out_of_reach, reachable
from softlabels.networks._preprocessing import Preprocessing
from softlabels.networks._source import DefaultWeights, SourceName


class Timm:
    """timm.create_model; imported at the first use, as it takes its time."""

    name: SourceName = "timm"
    default_classes = 1000

    def names(self) -> tuple[str, ...]:
        """Every network of the installed timm, without the tags of its weights."""
        return tuple(sorted(timm_networks()))

    def knows(self, network: str) -> bool:
        """Whether timm has `network`, with or without a tag (``resnet50.a1_in1k``)."""
        import timm

        return timm.is_model(network) and (network in self.names() or network in timm.list_pretrained())

    def build(self, network: str, classes: int, size: int) -> nn.Module:
        """`network` without weights; one that is tied to a picture size is made for `size`."""
        import timm

        return timm.create_model(network, num_classes=classes, **_size_settings(network, size))

    def preprocessing(self, network: str) -> Preprocessing:
        """What timm's evaluation of the pretrained weights does.

        Raises:
            ModelError: it wants an interpolation that pictures are not rendered with here.
        """
        import timm.data

        wanted = timm.data.resolve_model_data_config(None, pretrained_cfg=_configuration(network))
        if wanted["interpolation"] not in ("bilinear", "bicubic", "nearest"):
            raise ModelError(f"timm:{network} wants {wanted['interpolation']} interpolation, which is not offered here")
        size = wanted["input_size"][-1]
        return Preprocessing(
            size=size,
            resize=max(size, math.floor(size / wanted["crop_pct"])),
            mean=wanted["mean"],
            std=wanted["std"],
            interpolation=wanted["interpolation"],
        )

    def default_weights(self, network: str) -> DefaultWeights | None:
        """The weights of `network`'s tag, or of timm's default tag; None when timm has none."""
        configuration = _configuration(network)
        hub, url = configuration.get("hf_hub_id"), configuration.get("url")
        if not hub and not url:
            return None
        tag = configuration.get("tag")
        name = f"timm/{configuration.get('architecture') or network}" + (f".{tag}" if tag else "")

        def load() -> dict[str, Tensor]:
            file = _hub_file(hub, name) if hub else fetch(str(url), name)
            return _loaded(network, file)

        return DefaultWeights(
            name=name,
            url=_hub_url(hub, _HUB_FILES[0]) if hub else str(url),
            file=_hub_folder() if hub else cached_file(str(url)),
            classes=configuration["num_classes"],
            class_names=(),
            licence=configuration.get("license"),
            load=load,
        )

    def training_only(self, network: str) -> tuple[str, ...]:  # noqa: ARG002
        """timm leaves out what it does not need by itself."""
        return ()


_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def _configuration(network: str) -> dict[str, Any]:
    import timm

    configuration = timm.get_pretrained_cfg(network, allow_unregistered=True)
    return configuration.to_dict() if configuration else {}


def _size_settings(network: str, size: int) -> dict[str, int]:
    configuration = _configuration(network)
    tied = configuration.get("fixed_input_size", False)
    return {"img_size": size} if tied and size != configuration["input_size"][-1] else {}


def _loaded(network: str, file: Path) -> dict[str, Tensor]:
    """timm loads `file`, so that its own renaming of old checkpoints takes place."""
    import timm

    try:
        overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
        return timm.create_model(network, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200]
        raise ModelError(
            f"{file} cannot be loaded as timm:{network} ({reason}); remove it, or give --weights FILE"
        ) from (problem)


def _hub_file(repository: str, name: str) -> Path:
    """The file of weights in the Hugging Face cache, downloaded when it is not there.

    Reachability is asked first: the hub's own client tries a dead network for most of a minute.
    """
    import huggingface_hub

    for file in _HUB_FILES:
        held = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(held, str):
            return Path(held)
    url = _hub_url(repository, _HUB_FILES[0])
    try:
        reachable(_hub_endpoint())
        for file in _HUB_FILES:
            if huggingface_hub.file_exists(repository, file):
                return Path(huggingface_hub.hf_hub_download(repository, file))
        raise OSError(f"{repository} holds no {' or '.join(_HUB_FILES)}")
    except (OSError, ValueError) as problem:
        raise out_of_reach(name, url, _hub_folder(), problem) from problem


def _hub_endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _hub_url(repository: str, file: str) -> str:
    return f"{_hub_endpoint()}/{repository}/resolve/main/{file}"


def _hub_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
