"""Choices of parts: a config holds, writes and compares what was given, and the part is made when work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import softlabels
from softlabels.choices import CodecChoice
from softlabels.codecs import TopK
from softlabels.commands import COMMANDS
from softlabels.core.config import Choice, config_text
from softlabels.datasets import Folder
from softlabels.dumping.config import DumpConfig, PlanConfig
from softlabels.losses import LOSSES, Term
from softlabels.training.config import TrainConfig

TERM = Term(weight=1, loss=LOSSES.make("js"))
GIVEN: list[tuple[str, Any, Any]] = [
    ("codec", "topk:5", "topk:5"),
    ("codec", {"kind": "topk", "k": 5}, {"kind": "topk", "k": 5}),
    ("codec", TopK(k=5), {"kind": "topk", "k": 5, "record": "compact", "levels": 32}),
    ("recipe", "crop-flip", "crop-flip"),
    (
        "recipe",
        ["random-resized-crop", {"kind": "horizontal-flip"}],
        ["random-resized-crop", {"kind": "horizontal-flip"}],
    ),
    ("data", "digits", "digits"),
    ("data", Path("photos/train"), "photos/train"),
    ("data", {"kind": "folder", "root": "photos"}, {"kind": "folder", "root": "photos"}),
    ("data", Folder(root="p"), {"kind": "folder", "root": "p", "split": "train", "class_order": None, "layout": None}),
    ("teacher", "resnet18", ["resnet18"]),
    ("teacher", ["resnet18", {"kind": "small", "architecture": "cnn_tiny"}], None),
    ("loss", "kl", "kl"),
    ("loss", {"kind": "wsl"}, {"kind": "wsl"}),
    ("loss", LOSSES.make("jeffreys"), {"kind": "jeffreys"}),
    ("term", "0.5*dist", [{"weight": 0.5, "loss": "dist"}]),
    ("term", "0.5*mse@avgpool", [{"weight": 0.5, "loss": "mse", "output": "avgpool"}]),
    ("term", [TERM], [TERM.model_dump()]),
    ("output", ["avgpool", "fc=dense:fp32"], None),
    ("blend", {"kind": "weighted", "weights": [1, 2]}, {"kind": "weighted", "weights": [1, 2]}),
    ("eval_data", "cifar10:data", "cifar10:data"),
    ("track", ["tensorboard"], ["tensorboard"]),
]


@pytest.mark.parametrize(("name", "given", "written"), GIVEN)
def test_a_config_writes_a_choice_as_it_was_given_and_reads_it_again(name: str, given: Any, written: Any) -> None:
    kind = DumpConfig if name in DumpConfig.model_fields else TrainConfig
    config = kind.model_validate({name: given})
    text = config_text(config)
    assert yaml.safe_load(text)[name] == (given if written is None else written)
    again = kind.model_validate(yaml.safe_load(text))
    assert config_text(again) == text
    config.check_parts()
    again.check_parts()
    assert kind.model_validate({name: getattr(config, name)}) == config


def test_choices_are_equal_by_what_was_given() -> None:
    some, same, other = (DumpConfig(codec=codec) for codec in ("topk:5", "topk:5", "topk:6"))
    assert some == same != other
    assert DumpConfig().codec == CodecChoice("dense")
    assert PlanConfig.model_validate(some.model_dump()).codec == some.codec


def test_a_choice_is_made_into_its_part() -> None:
    for given in ("topk:5", {"kind": "topk", "k": 5}, TopK(k=5)):
        assert DumpConfig.model_validate({"codec": given}).codec.make() == TopK(k=5)


@pytest.mark.parametrize("value", [5, True, 1.5, b"dense"])
def test_a_choice_is_a_name_a_mapping_or_a_part(value: object) -> None:
    with pytest.raises(softlabels.ConfigError, match="a codec is a name or a mapping with a `kind`, not"):
        DumpConfig.model_validate({"codec": value})


@pytest.mark.parametrize("name", COMMANDS)
def test_no_setting_is_of_any_type(name: str) -> None:
    for setting, field in COMMANDS[name].settings().model_fields.items():
        left = [field.annotation]
        while left:
            kind = left.pop()
            assert kind is not Any and kind is not object, setting
            left += [] if isinstance(kind, type) and issubclass(kind, Choice) else get_args(kind)
