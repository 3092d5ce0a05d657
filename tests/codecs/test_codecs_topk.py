"""What a top-K label promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softlabels.codecs import CODECS, HeadTail, TopK

seeds = st.integers(0, 2**32 - 1)
records = st.sampled_from(["compact", "fast"])
spreads = st.sampled_from([0.02, 0.5, 2.0, 10.0])
some_classes = st.sampled_from([2, 3, 12, 100, 900])


def logits(seed: int, rows: int, classes: int, spread: float) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, classes)) * spread).float()


def correlated(rows: int, classes: int = 1000) -> Tensor:
    """A true class that stands out more or less, a dozen near it that stand out with it."""
    chance = torch.Generator().manual_seed(4)
    values = 1.25 * torch.randn(rows, classes, generator=chance)
    true = torch.randint(classes, (rows, 1), generator=chance)
    values.scatter_add_(
        1, (true // 12 * 12 + torch.arange(12)) % classes, 1.5 + 2.5 * torch.rand(rows, 12, generator=chance)
    )
    return values.scatter_add_(1, true, 3 + 6 * torch.rand(rows, 1, generator=chance))


def kl(source: Tensor, stored: Tensor, temperature: float = 1.0) -> Tensor:
    p, q = ((rows.double() / temperature).log_softmax(-1) for rows in (source, stored))
    return (p.exp() * (p - q)).sum(-1)


def others(rows: Tensor, k: int) -> Tensor:
    """Mask of the classes beyond the k highest."""
    return torch.ones_like(rows, dtype=torch.bool).scatter_(
        1, rows.argsort(dim=1, descending=True, stable=True)[:, :k], False
    )


def exact_but_for_an_even_tail(rows: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """The best label that keeps k classes and knows nothing of the others but their mass at this temperature."""
    tail = others(rows, k)
    level = (rows.double() / temperature).masked_fill(~tail, -math.inf).logsumexp(1) - tail.sum(1).log()
    return torch.where(tail, level[:, None] * temperature, rows.double())


@settings(max_examples=40, deadline=None)
@given(seed=seeds, k=st.integers(1, 60), classes=some_classes, spread=spreads, record=records)
def test_the_k_highest_classes_keep_their_order_and_stand_above_the_others(
    seed: int, k: int, classes: int, spread: float, record: str
) -> None:
    rows = logits(seed, 5, classes, spread)
    codec = TopK(k=k, record=record)
    arrays = codec.encode(rows)
    ids = rows.argsort(dim=1, descending=True, stable=True)[:, :k]
    assert torch.equal(codec.sparse(arrays, classes).ids, ids)
    for temperature in (0.5, 1.0, 3.0, 100.0):
        label = codec.sparse(arrays, classes, temperature=temperature)
        assert (label.logits.diff(dim=1) <= 0).all()
        assert (label.tail <= label.logits[:, -1]).all()


@pytest.mark.parametrize("record", ["compact", "fast"])
def test_of_equal_classes_the_lower_is_kept(record: str) -> None:
    rows = torch.zeros(3, 500)
    rows[1, [400, 20, 300]] = 1.0
    rows[2, 100:] = 1.0
    codec = TopK(k=4, record=record)
    ids = codec.sparse(codec.encode(rows), 500).ids.tolist()
    assert ids == [[0, 1, 2, 3], [20, 300, 400, 0], [100, 101, 102, 103]]


@settings(max_examples=40, deadline=None)
@given(seed=seeds, k=st.integers(1, 60), classes=some_classes, spread=spreads, levels=st.sampled_from([2, 12, 32, 64]))
def test_a_compact_label_is_within_its_stated_bound_of_exact_values(
    seed: int, k: int, classes: int, spread: float, levels: int
) -> None:
    rows = logits(seed, 5, classes, spread)
    codec = TopK(k=k, levels=levels)
    stored = codec.decode(codec.encode(rows), classes)
    exact = exact_but_for_an_even_tail(rows, k)
    deepest = (exact.amax(1) - exact.amin(1)).double()
    step = torch.maximum((deepest / 8).log1p() / (levels - 1), torch.tensor(0.0112))
    error = (deepest + 8) * torch.expm1(0.53 * step)
    assert (kl(rows, stored) <= kl(rows, exact) + error**2 / 2 + 1e-9).all()
    assert (kl(rows, stored) >= -1e-9).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 30), spread=spreads, temperature=st.sampled_from([0.5, 1.0, 4.0]), record=records)
def test_the_divergence_of_k_classes_and_the_rest_is_never_above_that_of_all_classes(
    seed: int, k: int, spread: float, temperature: float, record: str
) -> None:
    rows = logits(seed, 5, 80, spread)
    codec = TopK(k=k, record=record)
    arrays = codec.encode(rows)
    label = codec.sparse(arrays, 80, temperature=temperature)
    stored = label.dense()
    tail = others(rows, k)

    def buckets(values: Tensor) -> Tensor:
        scaled = values.double() / temperature
        rest = scaled.masked_fill(~tail, -math.inf).logsumexp(1, keepdim=True)
        return torch.cat([scaled.gather(1, label.ids), rest], 1)

    assert (kl(buckets(rows), buckets(stored)) <= kl(rows, stored, temperature) + 1e-9).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 30), spread=spreads)
def test_what_the_others_weigh_is_right_at_temperature_1_and_as_it_grows(seed: int, k: int, spread: float) -> None:
    rows = logits(seed, 5, 200, spread)
    codec = TopK(k=k, record="fast")
    arrays = codec.encode(rows)
    tail = others(rows, k)

    def weight(values: Tensor, temperature: float) -> Tensor:
        return ((values.double() / temperature).softmax(1) * tail).sum(1)

    stored = codec.decode(arrays, 200)
    torch.testing.assert_close(weight(stored, 1.0), weight(rows, 1.0), rtol=2e-2, atol=1e-6)
    mean = (rows * tail).sum(1) / tail.sum(1) - rows.amax(1)
    torch.testing.assert_close(codec.sparse(arrays, 200, temperature=1e6).tail, mean, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("record", ["compact", "fast"])
@pytest.mark.parametrize("k", [4, 5, 50])
def test_a_label_of_all_classes_or_all_but_one_is_right_at_any_temperature(k: int, record: str) -> None:
    rows = logits(0, 20, 5, 2.0)
    codec = TopK(k=k, record=record, levels=64)
    arrays = codec.encode(rows)
    for temperature in (0.5, 1.0, 7.0):
        assert (kl(rows, codec.decode(arrays, 5, temperature=temperature), temperature) < 2e-3).all()


def test_ten_of_a_thousand_classes_take_18_bytes_and_lose_less_than_44_bytes_of_probabilities() -> None:
    rows = correlated(400)
    kept = rows.softmax(1).topk(10)
    values = kept.values.half().float()
    rest = ((1 - values.sum(1, keepdim=True)) / 990).clamp_min(1e-12).expand(-1, 1000)
    record = rest.scatter(1, kept.indices, values).log()
    ten, eleven = CODECS.make("topk:10"), TopK(k=11, levels=12)
    for codec, at_one in ((ten, 1.003), (eleven, 1.0)):
        assert codec.bytes_per_label(1000) == 18
        arrays = codec.encode(rows)
        for temperature, most in ((1.0, at_one), (2.0, 1.0), (4.0, 1.0)):
            lost = kl(rows, codec.decode(arrays, 1000, temperature=temperature), temperature).mean()
            assert lost <= most * kl(rows, record, temperature).mean()


def test_a_label_re_tempered_is_near_the_best_even_tail_between_the_temperatures_where_it_is_exact() -> None:
    rows = correlated(400)
    codec = TopK(k=10)
    arrays = codec.encode(rows)
    for temperature in (1.0, 1.5, 2.0, 3.0, 4.0, 8.0):
        stored = codec.decode(arrays, 1000, temperature=temperature)
        best = kl(rows, exact_but_for_an_even_tail(rows, 10, temperature), temperature).mean()
        assert kl(rows, stored, temperature).mean() <= 1.01 * best


@pytest.mark.parametrize(("bits", "size", "most"), [(2, 268, 0.2), (4, 518, 0.02)])
def test_bits_for_the_other_classes_bring_a_label_nearer(bits: int, size: int, most: float) -> None:
    rows = correlated(200)
    codec = HeadTail(k=10, bits=bits)
    assert codec.bytes_per_label(1000) == size
    arrays = codec.encode(rows)
    for temperature in (1.0, 2.0, 4.0):
        without = TopK(k=10).decode(TopK(k=10).encode(rows), 1000, temperature=temperature)
        stored = codec.decode(arrays, 1000, temperature=temperature)
        assert kl(rows, stored, temperature).mean() < most * kl(rows, without, temperature).mean()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, classes=some_classes, spread=spreads, bits=st.sampled_from([4, 8]))
def test_a_quantized_label_is_within_its_stated_bound(seed: int, classes: int, spread: float, bits: int) -> None:
    rows = logits(seed, 5, classes, spread)
    codec = CODECS.make({"kind": "quantized", "bits": bits})
    stored = codec.decode(codec.encode(rows), classes)
    reach = (rows.amax(1) - rows.amin(1)).double()
    error = (reach + 8) * torch.expm1((reach / 8).log1p() / (2**bits - 1))
    for temperature in (1.0, 4.0):
        assert (kl(rows, stored, temperature) <= (error / temperature) ** 2 / 2 + 1e-7).all()
