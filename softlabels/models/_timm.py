"""The networks of timm, with the preprocessing of their pretrained configuration.

timm is imported at its first use, as that takes its time.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from softlabels.core.installed import timm_networks
from softlabels.errors import ModelError, in_one_line
from softlabels.models._architecture import Architecture
from softlabels.models._preprocessing import CropMode, Preprocessing
from softlabels.models._published import PublishedWeights, cached_file, check_reachable, download, out_of_reach

_log = logging.getLogger(__name__)


class TimmNetwork(Architecture):
    """A network of timm, with or without a tag of its weights (``resnet50.a1_in1k``)."""

    kind: Literal["timm"] = "timm"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(sorted(timm_networks()))

    @classmethod
    def find(cls, name: str) -> str | None:
        """The name that timm gives today to a network it has renamed, or to one of its own repositories on the hub."""
        import timm

        repository = re.fullmatch(r"hf[-_]hub:(timm/)?(.+)", name)
        if repository is not None and repository[1] is None:
            raise ModelError(
                f"{name} is a repository of the hub, and networks are loaded from those of timm alone; download "
                f"its weights and give timm:NAME `weights=FILE`, or a module:function that calls timm.create_model"
            )
        known = repository[2] if repository is not None else _former().get(name) or name
        if not timm.is_model(known) or (known not in timm_networks() and known not in timm.list_pretrained()):
            return None
        if known != name:
            _log_renamed(name, known)
        return known

    def create(self, classes: int, size: int) -> nn.Module:
        """Without weights; a network that is tied to an image size is made for `size`."""
        import timm

        tied = self._configuration.get("fixed_input_size", False)
        settings = {"img_size": size} if tied and size != self._configuration["input_size"][-1] else {}
        network: nn.Module = timm.create_model(self.architecture, num_classes=classes, **settings)
        return network

    def own_preprocessing(self, *, training: bool = False) -> Preprocessing:
        """What timm's validation of the pretrained weights does; for `training`, at the size that they were trained at.

        How the clean view is cut does not matter to random crops, and is the usual way then.

        Raises:
            ModelError: it wants an interpolation or crop that images are not rendered with here.
        """
        import timm.data

        wanted = timm.data.resolve_model_data_config(
            None, pretrained_cfg=self._configuration, use_test_size=not training
        )
        size, resize = wanted["input_size"][-1], math.floor(wanted["input_size"][-1] / wanted["crop_pct"])
        if wanted["interpolation"] not in ("bilinear", "bicubic", "nearest"):
            raise ModelError(f"{self} wants {wanted['interpolation']} interpolation, which is not offered here")
        crop: CropMode = "centre" if training or resize >= size else "padded"
        if wanted["crop_mode"] != "center" and not training:
            if wanted["crop_mode"] != "squash" or resize < size:
                raise ModelError(f"{self} wants its images cut in a way not offered ({wanted['crop_mode']})")
            crop = "squash"
        return Preprocessing(
            size=size,
            resize=max(size, resize) if training else resize,
            mean=wanted["mean"],
            std=wanted["std"],
            interpolation=wanted["interpolation"],
            crop=crop,
        )

    def published(self, name: str = "default") -> PublishedWeights | None:
        """The weights of the network's tag, or of timm's default tag; no others have a name (see `named_weights`)."""
        configuration = self._configuration
        hub, url = configuration.get("hf_hub_id"), configuration.get("url")
        if name != "default" or (not hub and not url):
            return None
        tag = configuration.get("tag")
        title = f"timm/{configuration.get('architecture') or self.architecture}" + (f".{tag}" if tag else "")
        return PublishedWeights(
            name=title,
            url=_hub_url(hub, _HUB_FILES[0]) if hub else str(url),
            file=_hub_folder() if hub else cached_file(str(url)),
            classes=configuration["num_classes"],
            class_names=(),
            licence=configuration.get("license"),
            preprocessing=self.own_preprocessing(),
            load=lambda: self.converted(_hub_file(hub, title) if hub else download(str(url), title)),
        )

    def named_weights(self) -> tuple[str, ...]:
        """The names with their tags: timm's weights are part of the network's name."""
        import timm

        stem = self.architecture.partition(".")[0]
        return tuple(f"timm:{name}" for name in timm.list_pretrained() if name.partition(".")[0] == stem)

    def converted(self, file: Path) -> dict[str, Tensor]:
        """As timm itself loads the file, with its renaming of old names."""
        import timm

        try:
            overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
            network = timm.create_model(self.architecture, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as problem:
            reason = in_one_line(problem, 200)
            raise ModelError(
                f"{file} cannot be loaded as {self} ({reason}); remove it, or give `weights=FILE`"
            ) from problem
        state: dict[str, Tensor] = network.state_dict()
        return state

    @property
    def _configuration(self) -> dict[str, Any]:
        import timm

        configuration = timm.get_pretrained_cfg(self.architecture, allow_unregistered=True)
        return configuration.to_dict() if configuration else {}


@functools.cache
def _former() -> dict[str, str]:
    """Names that timm has given up, with those of today."""
    from timm.models import _registry

    # The listing has its own function in late versions only, the table is older.
    table: dict[str, str | None] = dict(_registry._deprecated_models)
    return {old: new for old, new in table.items() if new}


@functools.cache
def _log_renamed(former: str, current: str) -> None:
    """Warn once that a former name was given."""
    _log.warning("timm:%s is called timm:%s now, which is taken", former, current)


_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def _hub_file(repository: str, name: str) -> Path:
    """The file of weights in the Hugging Face cache, downloaded when it is not there.

    Reachability is asked first: the hub's own client tries a dead network for most of a minute.
    """
    import huggingface_hub
    from huggingface_hub import constants

    for file in _HUB_FILES:
        held = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(held, str):
            return Path(held)
    try:
        check_reachable(str(constants.ENDPOINT))
        for file in _HUB_FILES:
            if huggingface_hub.file_exists(repository, file):
                return Path(huggingface_hub.hf_hub_download(repository, file))
        raise OSError(f"{repository} holds no {' or '.join(_HUB_FILES)}")
    except (OSError, ValueError) as problem:
        raise out_of_reach(name, _hub_url(repository, _HUB_FILES[0]), None, problem) from problem


def _hub_url(repository: str, file: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"


def _hub_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
