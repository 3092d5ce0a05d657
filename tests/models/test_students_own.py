"""Networks of the user's own, of every make: they train, are read again and exported, or are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import softlabels
from softlabels.errors import ModelError

MODULE = """
import types
import torch
from torch import nn

WANTED = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}

def plain(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))

class Wrapped(nn.Module):
    def __init__(self, classes, wrap):
        super().__init__()
        self.body, self.wrap = plain(classes), wrap
    def forward(self, images):
        return self.wrap(self.body(images))

class Extra(nn.Module):
    def __init__(self, classes, state):
        super().__init__()
        self.body, self.state = plain(classes), state
    def forward(self, images):
        return self.body(images)
    def get_extra_state(self):
        return self.state
    def set_extra_state(self, state):
        self.state = state

class Quiet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = plain(classes)
    def forward(self, images):
        with torch.no_grad():
            return self.body(images)

class Normed(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.norm, self.body = nn.BatchNorm2d(3), plain(classes)
    def forward(self, images):
        return self.body(self.norm(images))

def whole(classes): return plain(classes), WANTED
def returns_tuple(classes): return Wrapped(classes, lambda x: (x, x)), WANTED
def returns_dict(classes): return Wrapped(classes, lambda x: {"logits": x, "aux": x}), WANTED
def returns_object(classes): return Wrapped(classes, lambda x: types.SimpleNamespace(logits=x)), WANTED
def parallel(classes): return nn.DataParallel(plain(classes)), WANTED
def partly(classes): return nn.Sequential(nn.Flatten(), nn.DataParallel(nn.Linear(192, classes))), WANTED
def compiled(classes): return torch.compile(plain(classes), backend="eager"), WANTED
def script(classes): return torch.jit.script(plain(classes)), WANTED
def lazy(classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)), WANTED
def extra(classes): return Extra(classes, {"version": 1}), WANTED
def normed(classes): return Normed(classes), WANTED

def half(classes): return plain(classes).half(), WANTED
def quiet(classes): return Quiet(classes), WANTED
def program(classes):
    images, shapes = (torch.zeros(2, 3, 8, 8),), ({0: torch.export.Dim("n")},)
    made = torch.export.export(plain(classes), images, dynamic_shapes=shapes, strict=False)
    return made.module(), WANTED
def narrow(classes): return plain(3), WANTED
def silent(classes): return Wrapped(classes, lambda x: {"out": x}), WANTED
def unwritable(classes): return Extra(classes, {"f": object()}), WANTED
def large(classes): return plain(classes), {**WANTED, "size": 16}
"""

WORK = (
    "whole",
    "returns_tuple",
    "returns_dict",
    "returns_object",
    "parallel",
    "partly",
    "compiled",
    "script",
    "lazy",
    "extra",
    "normed",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the module `own_networks`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_networks.py").write_text(MODULE)
    return tmp_path


def learn(kind: str, out: str, **settings: object) -> dict:
    return softlabels.train(
        **{
            "student": f"own_networks:{kind}",
            "data": "digits",
            "limit": 60,
            "recipe": "pad",
            "epochs": 1,
            "batch_size": 30,
            "device": "cpu",
            "out": out,
            "quiet": True,
            **settings,
        }
    )


@pytest.mark.parametrize("kind", WORK)
def test_a_student_of_any_make_is_scored_exported_and_trained_on_from_what_it_wrote(
    kind: str, here: Path, softlabels_command: Callable
) -> None:
    result = learn(kind, "run", ema=0.5)
    assert (here / "run" / "best.safetensors").is_file()
    score = softlabels.evaluate(student=f"own_networks:{kind}", weights="run", data="digits", device="cpu", quiet=True)
    assert score.top1 == pytest.approx(result["best"]["top1"]) and score.images == 450
    assert learn(kind, "again", init="run")["steps"] == 2
    assert softlabels_command("export", "run").exit_code == 1
    exported = softlabels_command("export", "run", "--function", f"own_networks:{kind}", "--out", "x.pt2")
    if kind == "script":  # torch.export takes no TorchScript
        assert exported.exit_code == 1 and "cannot be exported" in exported.output and exported.output.count("\n") == 1
        return
    assert exported.exit_code == 0, exported.output
    assert torch.export.load(here / "x.pt2").module()(torch.zeros(3, 3, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("kind", ["parallel", "compiled"])
def test_what_a_wrapped_student_wrote_is_read_without_the_wrapper(kind: str) -> None:
    learn(kind, "run")
    wrapped, bare = (
        softlabels.evaluate(student=f"own_networks:{name}", weights="run", data="digits", device="cpu", quiet=True)
        for name in (kind, "whole")
    )
    assert (wrapped.top1, wrapped.cross_entropy) == (bare.top1, bare.cross_entropy)
    assert learn("whole", "again", weights="run/last.safetensors")["steps"] == 2


@pytest.mark.parametrize("kind", ["returns_dict", "parallel", "script", "lazy", "extra"])
def test_the_same_networks_teach_and_are_compared(kind: str) -> None:
    common = {"data": "digits", "limit": 60, "device": "cpu", "quiet": True}
    softlabels.dump(teacher=[f"own_networks:{kind}"], recipe="pad", views=1, out="labels", **common)
    # A network without weights of its own is drawn from one seed, so that the same teacher is found again.
    assert softlabels.verify(labels="labels", teacher=[f"own_networks:{kind}"], device="cpu", quiet=True).ok
    result = learn(kind, "run", data=None, limit=None, recipe=None, labels="labels", compare=True)
    assert 0 <= result["closeness"]["agreement"] <= 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("half", "weights of float16"),
        ("quiet", "no gradient leads"),
        ("program", "torch.export"),
        ("narrow", r"\(2, 10\)"),
        ("silent", "without logits"),
        ("unwritable", "get_extra_state"),
        ("large", "does not run on 16x16 images"),
    ],
)
def test_a_student_that_cannot_be_trained_is_refused_before_its_folder_is_made(
    kind: str, reason: str, here: Path
) -> None:
    with pytest.raises(ModelError, match=reason) as raised:
        learn(kind, "run")
    assert "\n" not in str(raised.value) and not (here / "run").exists()


@pytest.mark.parametrize(("kind", "works"), [("half", True), ("program", True), ("script", True), ("silent", False)])
def test_a_teacher_of_any_make_answers_or_is_refused_in_a_line(
    kind: str, works: bool, softlabels_command: Callable
) -> None:
    done = softlabels_command(
        "dump", "--teacher", f"own_networks:{kind}", "--data", "digits", "--limit", 20, "--recipe", "pad", "--views", 1,
        "--out", "labels", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == (0 if works else 1), done.output


def test_the_trial_changes_neither_statistics_nor_gradients_nor_chance() -> None:
    from softlabels import models

    network, wanted = models.from_function("own_networks:normed", 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chance = torch.random.get_rng_state()
    models.try_learning(network, wanted, 10, torch.device("cpu"), "student")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters()) and network.training
    assert torch.equal(chance, torch.random.get_rng_state())


def test_a_score_speaks_of_a_student_and_not_of_a_teacher(here: Path, softlabels_command: Callable) -> None:
    (here / "few.csv").write_text("path,label\na.png,0\nb.png,1\n")
    done = softlabels_command("eval", "--student", "own_networks:narrow", "--data", "digits", "--device", "cpu")
    assert done.exit_code == 1 and "student own_networks-narrow" in done.output and "teacher" not in done.output


def test_extra_states_come_back_from_the_file() -> None:
    from softlabels import models

    learn("extra", "run")
    assert json.loads(models.read_weights("run").metadata["extra_states"]) == {"_extra_state": {"version": 1}}
    network, _ = models.from_function("own_networks:extra", 10)
    network.state = None
    models.load_weights(network, "run", "function:own_networks:extra")
    assert network.state == {"version": 1}
