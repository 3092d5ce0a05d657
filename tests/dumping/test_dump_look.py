"""What a teacher says is looked at: the usual mistakes are refused, and the dump says how often it is right."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import softlabels
from softlabels.codecs import CODECS
from softlabels.dumping.dump import LogitCheck
from softlabels.loading.batches import Batch

TEACHERS = """
import torch
from torch import nn

HALF = {"size": 8, "mean": [.5] * 3, "std": [.5] * 3}

class Network(nn.Module):
    def __init__(self, classes, last):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.last = nn.Linear(192, classes), last
        nn.init.normal_(self.head.weight, std=1)
    def forward(self, x):
        return self.last(self.head(x.flatten(1)))

def made(last):
    return lambda classes: (Network(classes, last), HALF)

plain = made(lambda y: y)
log_softmax = made(lambda y: y.log_softmax(1))
softmax = made(lambda y: y.softmax(1))
sigmoid = made(lambda y: y.sigmoid())
one_hot = made(lambda y: nn.functional.one_hot(y.argmax(1), y.shape[1]).float())
centred = made(lambda y: y - y.mean(0, keepdim=True))
dropout = made(lambda y: nn.functional.dropout(y, 0.5, training=True))
constant = made(lambda y: torch.arange(y.shape[1]).float().expand_as(y))
uniform = made(lambda y: torch.zeros_like(y) + 7)
steep = made(lambda y: y * 1e6)

def right(classes):
    class Right(nn.Module):
        def forward(self, x):
            return -(x.mean((1, 2, 3))[:, None] - torch.linspace(-1, 1, classes)).abs()
    return Right(), HALF

def whole_numbers(classes):
    return Network(classes, lambda y: y), {"size": 8, "mean": [123.675, 116.28, 103.53], "std": [58.4, 57.1, 57.4]}
"""


@pytest.fixture
def dump(softlabels_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`dump` of 70 digits by one of these teachers, in a place of its own."""
    (tmp_path / "look_teachers.py").write_text(TEACHERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "look_teachers", raising=False)

    def run(teacher: str, *options: object) -> object:
        settings = ("--data", "digits", "--limit", 70, "--recipe", "pad", "--views", 1, "--device", "cpu")
        return softlabels_command(
            "dump", "--teacher", f"look_teachers:{teacher}", *settings, "--out", f"{teacher}-shards", *options
        )

    return run


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("softmax", "a softmax already"),
        ("one_hot", "a softmax already"),
        ("sigmoid", "as a sigmoid does"),
        ("centred", "something else of an image in another batch"),
        ("dropout", "does not say the same of an image twice"),
        ("whole_numbers", "give mean [0.485, 0.456, 0.406] and std [0.229, 0.2239, 0.2251]"),
    ],
)
def test_what_are_no_logits_of_a_picture_is_refused_in_one_line(dump: Callable, teacher: str, says: str) -> None:
    done = dump(teacher)
    assert done.exit_code in (1, 2)
    assert says in done.output.splitlines()[-1]
    assert not list(Path().glob(f"{teacher}-shards/*/*.h5"))


@pytest.mark.parametrize("teacher", ["softmax", "sigmoid", "centred"])
def test_who_knows_better_goes_on_with_a_warning(dump: Callable, teacher: str) -> None:
    done = dump(teacher, "--on-odd-logits", "warn")
    assert done.exit_code == 0, done.output
    assert sum(line.startswith("warning: teacher look_teachers-") for line in done.output.splitlines()) == 1
    assert softlabels.open_labels(f"{teacher}-shards").views == 1


@pytest.mark.parametrize(
    ("teacher", "says"),
    [("constant", "says the same of 64 different images"), ("uniform", "its labels are uniform")],
)
def test_a_teacher_that_tells_nothing_apart_is_warned_of(dump: Callable, teacher: str, says: str) -> None:
    done = dump(teacher)
    assert done.exit_code == 0, done.output
    assert [line for line in done.output.splitlines() if line.startswith("warning: teacher") and says in line]


@pytest.mark.parametrize("teacher", ["plain", "log_softmax"])
def test_logits_and_their_logarithms_of_probabilities_are_sound(dump: Callable, teacher: str) -> None:
    done = dump(teacher)
    assert done.exit_code == 0, done.output
    assert "warning: teacher" not in done.output


def test_the_summary_says_how_often_the_labels_are_met_and_that_chance_is_no_knowledge(dump: Callable) -> None:
    done = dump("plain")
    assert "agrees with the labels on " in done.output
    assert "no better than chance" in done.output
    report = softlabels.dump(
        teacher=["look_teachers:plain"], data="digits", limit=70, views=1, out="python", quiet=True, device="cpu"
    )[0]
    labels = softlabels.open_labels("python")
    named = labels.logits(range(70), 0).argmax(1).numpy()
    assert report.agreement == pytest.approx((named == labels.store.labels).mean(), abs=0.02)


def test_a_teacher_that_knows_the_labels_is_not_suspected() -> None:
    look, labels = LogitCheck("t", CODECS.make("dense"), "fail", print), torch.arange(90) % 3
    logits = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(0, 90, 2), labels[::2]] += 9  # half of them are right for a reason
    look.count(batch(labels), logits)
    assert look.agreement is not None
    assert look.agreement > 0.5
    assert len(look.lines()) == 1
    other = LogitCheck("t", CODECS.make("dense"), "fail", print)
    other.count(batch(labels), logits.roll(1, 1))
    assert "no better than chance" in other.lines()[1]


def test_mixed_failed_and_unlabelled_pictures_count_in_no_agreement() -> None:
    labels = torch.tensor([0, 1, 2, -1, 0, 1])
    logits = 5 * torch.eye(3)[[0, 1, 0, 0, 1, 1]]
    some = batch(labels)
    some.shares = torch.tensor([1, 1, 1, 1, 0.7, 1])
    some.failed = {5: "broken"}
    look = LogitCheck("t", CODECS.make("dense"), "fail", print)
    look.count(some, logits)
    assert look.agreement == pytest.approx(2 / 3)


def test_logits_that_a_codec_cuts_off_are_counted_in_the_summary(dump: Callable) -> None:
    done = dump("steep")
    assert "labels have logits more than 65,504 below their highest, where dense:fp16 cuts them off" in done.output
    assert "cuts them off" not in dump("steep", "--codec", "dense:fp32", "--out", "exact").output


def batch(labels: torch.Tensor) -> Batch:
    rows = torch.arange(len(labels))
    pictures = rows.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return Batch(pictures, rows, torch.zeros_like(rows), labels)


# ---- loops of one's own


def own(out: Path, say: Callable[[int], object], **options: object) -> None:
    images = softlabels.open_images("digits")
    with softlabels.create_labels(out, images=images, recipe="pad", views=1, seed=0, classes=10) as store:
        for each in store.missing("mine", size=8, batch_size=500, **options):  # type: ignore[arg-type]
            store.put(say(len(each)))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:that is no better than chance")
@pytest.mark.parametrize("kind", ["tensor", "numpy", "half", "list"])
def test_put_takes_any_matrix_of_logits(tmp_path: Path, kind: str) -> None:
    chance = np.random.default_rng(0)

    def say(rows: int) -> object:
        array = chance.normal(size=(rows, 10)).astype(np.float32)
        return {"tensor": torch.from_numpy(array), "numpy": array, "half": array.astype(np.float16)}.get(
            kind, array.tolist()
        )

    own(tmp_path / "shards", say)
    first = np.random.default_rng(0).normal(size=(500, 10)).astype(np.float32)[:3]
    stored = softlabels.open_labels(tmp_path / "shards").logits([0, 1, 2], 0).numpy()
    np.testing.assert_allclose(stored, first - first.max(1, keepdims=True), atol=4e-3)


@pytest.mark.parametrize("what", [(torch.zeros(3, 10),), "logits", None, [[1.0], [2.0, 3.0]], np.zeros((500, 9))])
def test_put_of_anything_else_is_one_clear_error(tmp_path: Path, what: object) -> None:
    with pytest.raises(softlabels.ConfigError, match=r"put takes logits \(images, 10\)"):
        own(tmp_path / "shards", lambda _: what)


def test_put_is_looked_at_as_a_teacher_is(tmp_path: Path) -> None:
    def say(rows: int) -> torch.Tensor:
        return torch.randn(rows, 10, generator=torch.Generator().manual_seed(0)).softmax(1)

    with pytest.raises(softlabels.ModelError, match="a softmax already"):
        own(tmp_path / "shards", say)
    with pytest.warns(UserWarning, match="a softmax already"):
        own(tmp_path / "shards", say, on_odd_logits="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own(tmp_path / "shards", say)  # what is there is not asked for again
