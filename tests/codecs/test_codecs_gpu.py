"""Records that are encoded where the logits are: the CPU's, byte for byte. Here on this machine's memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from codings import CODES, every, named, words
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softlabels.codecs import CODECS, Codec, _gpu

MODULES = ("_dense", "_head_tail", "_label", "_probabilities", "_quantized", "_sampled", "_summary", "_topk")


@contextmanager
def elsewhere() -> Iterator[None]:
    """The codecs take the ways of a GPU, on this machine's memory."""
    with ExitStack() as stack:
        for name in MODULES:
            module = importlib.import_module(f"softlabels.codecs.{name}")
            if hasattr(module, "stays"):
                stack.enter_context(mock.patch.object(module, "stays", lambda _: True))
        yield


def logits(seed: int, rows: int, classes: int, spread: float, *, ties: bool = False) -> Tensor:
    draws = np.random.default_rng(seed).standard_normal((rows, classes)) * spread
    return torch.from_numpy(np.round(draws * 8) / 8 if ties else draws).float()


def same(codec: Codec, rows: Tensor) -> None:
    expected = codec.encode(rows, words(len(rows)))
    with elsewhere():
        found = codec.encode(rows, words(len(rows)))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@every
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.sampled_from([1, 2, 11, 64, 1000]),
    spread=st.sampled_from([0.01, 1.0, 4.0, 60.0]),
    ties=st.booleans(),
)
def test_records_are_those_of_the_cpu(codec: Codec, seed: int, classes: int, spread: float, ties: bool) -> None:
    same(codec, logits(seed, 9, classes, spread, ties=ties))


@every
def test_odd_rows_have_the_records_of_the_cpu(codec: Codec) -> None:
    rows = torch.zeros(8, 60)
    rows[1, 7], rows[2, 7], rows[3] = 80.0, -80.0, torch.linspace(-80, 80, 60)
    rows[4, :10], rows[5, :30], rows[6, 5:] = 80.0, -0.0, -1e4
    rows[7] = torch.arange(60) * 1e-7
    same(codec, rows)
    same(codec, torch.zeros(0, 20))


@every
def test_many_rows_are_encoded_in_pieces(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "_AT_ONCE", 5 * 40)
    same(codec, logits(1, 23, 40, 3.0))


@contextmanager
def off_by(far: float) -> Iterator[None]:
    """Logarithms, exponentials and sums in float64 are wrong by up to `far` of their value, as on other hardware."""
    chance = torch.Generator().manual_seed(0)

    def noisy(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(self: Tensor, *given: Any, **named: Any) -> Tensor:
            made = function(self, *given, **named)
            if made.dtype == torch.float64:
                made.mul_(1.0 + far * (2.0 * torch.rand(made.shape, generator=chance, dtype=made.dtype) - 1.0))
            return made

        return call

    with ExitStack() as stack:
        for name in ("log1p_", "exp_", "log", "sum"):
            stack.enter_context(mock.patch.object(Tensor, name, noisy(getattr(Tensor, name))))
        yield


@pytest.mark.parametrize(
    "codec", ["quantized", "quantized:4", "topk:10", "topk:10 record=fast", "head_tail:10"], ids=str
)
def test_hardware_that_rounds_otherwise_gives_the_same_records(codec: str) -> None:
    rows, coding = logits(2, 2000, 100, 3.0), CODECS.make(codec)
    expected = coding.encode(rows)["record"]
    with off_by(1e-12):
        same(coding, rows)
    with off_by(1e-4), elsewhere():  # so the noise is felt
        assert not np.array_equal(coding.encode(rows)["record"], expected)


@pytest.mark.parametrize("codec", CODES, ids=named)
def test_few_rows_are_left_to_the_cpu(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    whole = _gpu.encode_on_gpu

    def counted(rows: Tensor, there: Any, here: Any) -> np.ndarray:
        def count(part: Tensor, numbers: np.ndarray) -> np.ndarray:
            left.append(len(part))
            return here(part, numbers)

        return whole(rows, there, count)

    for name in MODULES:
        module = importlib.import_module(f"softlabels.codecs.{name}")
        if hasattr(module, "encode_on_gpu"):
            monkeypatch.setattr(module, "encode_on_gpu", counted)
    with elsewhere():
        codec.encode(logits(3, 2000, 1000, 3.0), words(2000))
    assert sum(left) <= 60
