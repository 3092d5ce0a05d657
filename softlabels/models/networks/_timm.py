"""The networks of timm, with the preprocessing of their pretrained configuration."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from softlabels.core.installed import timm_networks
from softlabels.errors import ModelError
from softlabels.models.networks._hub import cached_file, fetch, out_of_reach, reachable
from softlabels.models.networks._preprocessing import Crop, Preprocessing
from softlabels.models.networks._source import DefaultWeights, SourceName


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

    def current(self, network: str) -> str:
        """The name that timm gives today to a network it has renamed, or to one of its own repositories on the hub."""
        repository = re.fullmatch(r"hf[-_]hub:(timm/)?(.+)", network)
        if repository is not None:
            if repository[1] is None:
                raise ModelError(
                    f"{network} is a repository of the hub, and networks are loaded from those of timm alone; download "
                    f"its weights and give timm:NAME `weights=FILE`, or a module:function that calls timm.create_model"
                )
            return repository[2]
        return _former().get(network) or network

    def build(self, network: str, classes: int, size: int) -> nn.Module:
        """`network` without weights; one that is tied to a picture size is made for `size`."""
        import timm

        return timm.create_model(network, num_classes=classes, **_size_settings(network, size))

    def preprocessing(self, network: str, *, training: bool = False) -> Preprocessing:
        """What timm's validation of the pretrained weights does; for `training`, at the size that they were trained at.

        How the clean view is cut does not matter to random crops, and is the usual way then.

        Raises:
            ModelError: it wants an interpolation or crop that pictures are not rendered with here.
        """
        import timm.data

        configuration = _configuration(network)
        wanted = timm.data.resolve_model_data_config(None, pretrained_cfg=configuration, use_test_size=not training)
        size, resize = wanted["input_size"][-1], math.floor(wanted["input_size"][-1] / wanted["crop_pct"])
        if wanted["interpolation"] not in ("bilinear", "bicubic", "nearest"):
            raise ModelError(f"timm:{network} wants {wanted['interpolation']} interpolation, which is not offered here")
        crop: Crop = "centre" if training or resize >= size else "padded"
        if wanted["crop_mode"] != "center" and not training:
            if wanted["crop_mode"] != "squash" or resize < size:
                raise ModelError(f"timm:{network} wants its pictures cut in a way not offered ({wanted['crop_mode']})")
            crop = "squash"
        return Preprocessing(
            size=size,
            resize=max(size, resize) if training else resize,
            mean=wanted["mean"],
            std=wanted["std"],
            interpolation=wanted["interpolation"],
            crop=crop,
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
            preprocessing=self.preprocessing(network),
            load=load,
        )

    def named_weights(self, network: str) -> tuple[str, ...]:
        """The names with their tags: timm's weights are part of the network's name."""
        import timm

        stem = network.partition(".")[0]
        return tuple(f"timm:{name}" for name in timm.list_pretrained() if name.partition(".")[0] == stem)

    def published_weights(self, network: str, name: str) -> DefaultWeights | None:  # noqa: ARG002
        """None: see `named_weights`."""
        return None

    def recognised(self, network: str, file: Path) -> DefaultWeights | None:  # noqa: ARG002
        """None: timm does not state what its files hash to."""
        return None

    def converted(self, network: str, file: Path) -> dict[str, Tensor] | None:
        """As timm itself loads the file, with its renaming of old names."""
        return _loaded(network, file)

    def training_only(self, network: str) -> tuple[str, ...]:  # noqa: ARG002
        """timm leaves out what it does not need by itself."""
        return ()


_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@functools.cache
def _former() -> dict[str, str]:
    """Names that timm has given up, with those of today."""
    from timm.models import _registry

    # The listing has its own function in late versions only, the table is older.
    table: dict[str, str | None] = dict(_registry._deprecated_models)
    return {old: new for old, new in table.items() if new}


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
            f"{file} cannot be loaded as timm:{network} ({reason}); remove it, or give `weights=FILE`"
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
        raise out_of_reach(name, url, None, problem) from problem


def _hub_endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _hub_url(repository: str, file: str) -> str:
    return f"{_hub_endpoint()}/{repository}/resolve/main/{file}"


def _hub_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
