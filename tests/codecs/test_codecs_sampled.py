"""What a sampled label promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.codecs import Sampled
from softlabels.errors import ConfigError


def words(count: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 2**64, count, np.uint64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_the_mean_of_sampled_labels_is_the_softmax(spread: float, temperature: float) -> None:
    row = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 40)) * spread).float()
    codec = Sampled(k=6, temperature=temperature)
    draws = 20_000
    arrays = codec.encode(row.expand(draws, -1), words(draws))
    labels = (codec.decode(arrays, 40, temperature=temperature) / temperature).softmax(1).double()
    truth = (row.double() / temperature).softmax(1)[0]
    each = labels[labels > 0].min()
    noise = (truth * each / draws).sqrt()
    assert ((labels.mean(0) - truth).abs() <= 5 * noise + 2e-3 * truth).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 40),
    classes=st.sampled_from([2, 30, 500]),
    spread=st.sampled_from([0.0, 1.0, 5.0, 300.0]),
)
def test_k_different_classes_are_drawn_and_weigh_1(seed: int, k: int, classes: int, spread: float) -> None:
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((6, classes)) * spread).float()
    codec = Sampled(k=k)
    label = codec.sparse(codec.encode(rows, words(6)), classes)
    assert all(len(set(ids)) == min(k, classes) for ids in label.ids.tolist())
    torch.testing.assert_close(label.logits.exp().sum(1), torch.ones(6), rtol=0, atol=2e-3)


def test_classes_likelier_than_their_share_are_kept_as_they_are() -> None:
    row = torch.log(torch.tensor([[0.5, 0.3, *[0.2 / 98] * 98]]))
    codec = Sampled(k=4)
    for word in words(50):
        shares = codec.decode(codec.encode(row, np.array([word])), 100).softmax(1)[0]
        torch.testing.assert_close(shares[:2], torch.tensor([0.5, 0.3]), rtol=1e-3, atol=0)
        torch.testing.assert_close(shares[2:].topk(2).values, torch.tensor([0.1, 0.1]), rtol=2e-3, atol=0)


def test_a_label_is_drawn_by_its_word_alone() -> None:
    rows = torch.zeros(2, 1000)
    codec = Sampled(k=5)
    same, other = np.array([7, 7], np.uint64), np.array([7, 2**63], np.uint64)
    first = codec.encode(rows, same)["record"]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(*codec.encode(rows, other)["record"])


def test_labels_without_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="one random word per label, 3"):
        Sampled().encode(torch.zeros(3, 10))
