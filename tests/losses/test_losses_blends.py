"""Blends of several teachers into one target."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels import losses
from softlabels.errors import ConfigError

TEACHERS, BATCH, CLASSES = 3, 4, 5
PER_CLASS = {"kind": "per-class", "weights": [[1, 0, 2, 1, 1], [1, 3, 2, 0, 1], [2, 1, 0, 0, 1]]}
BLENDS = ["mean-probabilities", "mean-logits", "random-teacher", "weighted:1,2,3", "mean-logits:1,2,3", PER_CLASS]
quick = settings(max_examples=15, deadline=None)


def said(seed=0, spread=4.0, teachers=TEACHERS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(teachers, BATCH, CLASSES, generator=generator, dtype=torch.float64) * spread


def words(seed=0, count=BATCH):
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def target(blend, logits, temperature, **given):
    made = losses.BLENDS.make(blend)(logits, temperature=temperature, **given)
    return (made / temperature).softmax(-1)


def softmaxes(logits, temperature):
    """Probabilities per teacher and row, in plain numbers."""
    return [
        [[math.exp(v / temperature) / sum(math.exp(u / temperature) for u in row) for v in row] for row in teacher]
        for teacher in logits.tolist()
    ]


def test_the_table_holds_the_promised_kinds():
    assert set(losses.BLENDS.names) == {
        "mean-probabilities",
        "mean-logits",
        "weighted",
        "random-teacher",
        "per-class",
        "class-accuracy",
    }


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("blend", "weights"),
    [("mean-probabilities", [1, 1, 1]), ("mean-probabilities:3,1,0", [3, 1, 0]), ("weighted:0.5,0.25,1", [2, 1, 4])],
)
def test_mean_probabilities_is_the_weighted_mean_of_the_softened_probabilities(blend, weights, temperature):
    logits = said()
    p = softmaxes(logits, temperature)
    expected = [
        [sum(w * p[i][n][k] for i, w in enumerate(weights)) / sum(weights) for k in range(CLASSES)]
        for n in range(BATCH)
    ]
    np.testing.assert_allclose(target(blend, logits, temperature), expected, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("blend", "weights"), [("mean-logits", [1, 1, 1]), ("mean-logits:3,1,0", [3, 1, 0])])
def test_mean_logits_is_the_softmax_of_the_weighted_mean_of_the_logits(blend, weights, temperature):
    logits = said(1)
    mean = (sum(w * z for w, z in zip(weights, logits, strict=True)) / sum(weights)).tolist()
    expected = softmaxes(torch.tensor([mean], dtype=torch.float64), temperature)[0]
    np.testing.assert_allclose(target(blend, logits, temperature), expected, rtol=1e-10)


def test_per_class_is_the_weighted_sum_of_each_class_scaled_to_sum_one():
    logits, weights = said(2), PER_CLASS["weights"]
    p = softmaxes(logits, 2.0)
    for n in range(BATCH):
        row = [
            sum(weights[i][k] * p[i][n][k] for i in range(TEACHERS)) / sum(weights[i][k] for i in range(TEACHERS))
            for k in range(CLASSES)
        ]
        np.testing.assert_allclose(target(PER_CLASS, logits, 2.0)[n], [value / sum(row) for value in row], rtol=1e-10)


def test_per_class_with_equal_weights_is_mean_probabilities():
    logits = said(3)
    equal = {"kind": "per-class", "weights": [[2] * CLASSES] * TEACHERS}
    torch.testing.assert_close(target(equal, logits, 3.0), target("mean-probabilities", logits, 3.0))


@quick
@given(seed=st.integers(0, 2**32 - 1), temperature=st.sampled_from([1.0, 2.0, 4.0]))
def test_kl_to_mean_probabilities_has_the_gradient_of_the_mean_of_the_kls(seed, temperature):
    logits = said(seed)
    blended = losses.BLENDS.make("mean-probabilities")(logits, temperature=temperature)
    gradients, values = [], []
    for targets in ([blended], list(logits)):
        student = torch.ones(BATCH, CLASSES, dtype=torch.float64).cumsum(-1).requires_grad_()
        value = sum(losses.kl_divergence(student, each, temperature=temperature) for each in targets) / len(targets)
        value.backward()
        gradients.append(student.grad)
        values.append(value.item())
    torch.testing.assert_close(gradients[0], gradients[1])
    assert values[0] < values[1]


@pytest.mark.parametrize("blend", BLENDS, ids=str)
@quick
@given(seed=st.integers(0, 2**32 - 1), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_a_constant_per_row_and_teacher_changes_no_target(blend, seed, temperature):
    logits = said(seed)
    shifts = torch.linspace(-20, 40, TEACHERS * BATCH, dtype=torch.float64).reshape(TEACHERS, BATCH, 1)
    torch.testing.assert_close(
        target(blend, logits + shifts, temperature, words=words(seed)),
        target(blend, logits, temperature, words=words(seed)),
    )


@pytest.mark.parametrize("blend", BLENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_logits_make_a_finite_target_with_sum_one(blend, dtype):
    logits = said(4)
    logits[0], logits[1, 0] = 80.0, torch.tensor([80.0, -80, -80, -80, -80])
    logits[2, 0] = torch.tensor([-80.0, -80, -80, -80, 80])
    made = losses.BLENDS.make(blend)(logits.to(dtype), temperature=1.0, words=words())
    assert torch.isfinite(made).all() and made.shape == (BATCH, CLASSES)
    torch.testing.assert_close(made.float().softmax(-1).sum(-1), torch.ones(BATCH))


@pytest.mark.parametrize(
    "blend",
    ["mean-probabilities", "mean-logits", "random-teacher", "weighted:2", {"kind": "per-class", "weights": [[1] * 5]}],
)
def test_one_teacher_is_returned_as_it_is(blend):
    logits = said(5, teachers=1).half()
    assert torch.equal(losses.BLENDS.make(blend)(logits, temperature=3.0), logits[0])


def test_random_teacher_draws_by_the_words_alone_and_with_the_weights_as_chances():
    blend = losses.BLENDS.make("random-teacher:1,3")
    count = 4000
    logits = torch.arange(2.0)[:, None, None].expand(2, count, 3)
    dice = words(1, count)
    chosen = blend(logits, temperature=1.0, words=dice)[:, 0]
    assert blend.samples
    assert abs(chosen.mean().item() - 0.75) < 0.03
    assert torch.equal(chosen, torch.from_numpy((dice >= np.uint64(2**62)).astype(np.float32)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blend(logits, temperature=1.0, words=dice[order.numpy()])[:, 0], chosen[order])
    edges = np.array([0, 2**64 - 1], np.uint64)
    assert losses.BLENDS.make("random-teacher")(logits[:, :2], temperature=1.0, words=edges)[:, 0].tolist() == [0, 1]


def test_random_teacher_gives_whole_rows_and_never_a_teacher_of_weight_zero():
    logits = said(6)
    made = losses.BLENDS.make("random-teacher:1,0,1")(logits, temperature=1.0, words=words(2))
    for n in range(BATCH):
        assert torch.equal(made[n], logits[0, n]) or torch.equal(made[n], logits[2, n])


@pytest.mark.parametrize("given_words", [None, words()[:2], words().astype(np.int64)])
def test_random_teacher_needs_one_word_per_row(given_words):
    with pytest.raises(ConfigError, match=r"needs words, uint64 of shape \(4,\)"):
        losses.BLENDS.make("random-teacher")(said(), temperature=1.0, words=given_words)


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_a_blend_is_a_mapping_and_back_and_has_a_formula_of_one_line(blend):
    made = losses.BLENDS.make(blend)
    made(said(), temperature=1.0, words=words())
    assert losses.BLENDS.make(made.model_dump()) == made
    assert "\n" not in made.formula(4.0)
    assert made.samples == (made.kind == "random-teacher")


def test_wrong_weights_are_refused_in_words():
    for blend in ("mean-probabilities:1,2", "weighted:1,2", "mean-logits:1,2", "random-teacher:1,2"):
        with pytest.raises(ConfigError, match="2 weights for 3 teachers"):
            losses.BLENDS.make(blend)(said(), temperature=1.0, words=words())
    with pytest.raises(ConfigError, match="blend 'weighted' needs weights"):
        losses.BLENDS.make("weighted")
    with pytest.raises(ConfigError, match="sum greater than 0"):
        losses.BLENDS.make("weighted:0,0")
    with pytest.raises(ConfigError, match="must be 0 or more, not -1"):
        losses.BLENDS.make("weighted:1,-1")
    with pytest.raises(ConfigError, match="class 1 has no teacher"):
        losses.BLENDS.make({"kind": "per-class", "weights": [[1, 0], [1, 0]]})
    with pytest.raises(ConfigError, match="all of one length"):
        losses.BLENDS.make({"kind": "per-class", "weights": [[1, 0], [1]]})
    with pytest.raises(ConfigError, match="2 teachers and 2 classes, the labels have 3 and 5"):
        losses.BLENDS.make({"kind": "per-class", "weights": [[1, 1], [1, 1]]})(said(), temperature=1.0)
    with pytest.raises(ConfigError, match=r"shape \(teachers, batch, classes\), got \(4, 5\)"):
        losses.BLENDS.make("mean-probabilities")(said()[0], temperature=1.0)


@pytest.mark.parametrize("blend", [*BLENDS, "mean-probabilities:3,1,0"])
def test_a_blend_at_an_infinite_temperature_is_the_limit_of_high_ones(blend):
    logits = said(2)
    at, near = (
        losses.BLENDS.make(blend)(logits, temperature=temperature, words=words()) for temperature in (math.inf, 1e7)
    )
    at, near = (each - each.mean(-1, keepdim=True) for each in (at, near))
    torch.testing.assert_close(at, near, rtol=1e-4, atol=1e-4)


def test_class_accuracy_weighs_teachers_by_their_smoothed_accuracy_on_each_class():
    right, images = np.array([[9, 0, 0], [3, 0, 0]]), np.array([[10, 4, 0], [10, 4, 0]])
    made = losses.BLENDS.make("class-accuracy").measured(right, images)
    expected = [[(9 + 1) / 12, (0 + 1) / 6, 1 / 2], [(3 + 1) / 12, (0 + 1) / 6, 1 / 2]]
    sums = [sum(column) for column in zip(*expected, strict=True)]
    np.testing.assert_allclose(made.weights, [[w / s for w, s in zip(row, sums, strict=True)] for row in expected])
    strong = losses.BLENDS.make("class-accuracy:0.01").measured(right, images)
    assert strong.weights[0][0] == pytest.approx(9.01 / 12.02)
    with pytest.raises(ConfigError, match="takes its weights from stored labels"):
        losses.BLENDS.make("class-accuracy")(said(), temperature=1.0)
    one = said(teachers=1)
    assert losses.BLENDS.make("class-accuracy")(one, temperature=1.0) is not None
