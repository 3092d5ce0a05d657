"""What the convention promises of every loss, on small random examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels import losses
from softlabels.errors import ConfigError

KINDS = losses.LOSSES.names
quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 7.0])


def batch(seed, rows=6, classes=5, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * spread
    return student, teacher, torch.randint(0, classes, (rows,), generator=generator)


def call(kind, student, teacher, labels, **given):
    return losses.LOSSES.make(kind)(student, teacher, labels=labels, **given)


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(seed=seeds, temperature=temperatures)
def test_a_constant_per_row_of_either_side_changes_nothing(kind, seed, temperature):
    student, teacher, labels = batch(seed)
    shifts = torch.linspace(-30, 50, len(student), dtype=torch.float64)[:, None]
    plain = call(kind, student, teacher, labels, temperature=temperature)
    torch.testing.assert_close(call(kind, student + shifts, teacher, labels, temperature=temperature), plain)
    torch.testing.assert_close(call(kind, student, teacher + shifts, labels, temperature=temperature), plain)


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(seed=seeds, kept=st.lists(st.booleans(), min_size=6, max_size=6))
def test_rows_that_do_not_count_are_as_if_absent_whatever_they_hold(kind, seed, kept):
    student, teacher, labels = batch(seed)
    valid = torch.tensor(kept)
    dirty_student, dirty_teacher = student.clone(), teacher.clone()
    dirty_student[~valid], dirty_teacher[~valid] = torch.inf, torch.nan
    dirty_student.requires_grad_()
    value = call(kind, dirty_student, dirty_teacher, labels, temperature=2.0, valid=valid)
    value.backward()
    assert torch.isfinite(dirty_student.grad).all() and not dirty_student.grad[~valid].any()
    if valid.any():
        clean = student[valid].clone().requires_grad_()
        expected = call(kind, clean, teacher[valid], labels[valid], temperature=2.0)
        expected.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(dirty_student.grad[valid], clean.grad)
    else:
        assert value.item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_valid_makes_zero_with_a_gradient_and_so_does_an_empty_batch(kind):
    for rows in (4, 0):
        student, teacher, labels = batch(0, rows=rows)
        student = student.float().requires_grad_()
        value = call(kind, student, teacher, labels, valid=torch.zeros(rows, dtype=torch.bool))
        value.backward()
        assert value.item() == 0 and value.dtype == torch.float32
        assert student.grad.shape == student.shape and not student.grad.any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if losses.LOSSES.make(kind).needs_labels])
def test_losses_on_the_true_class_leave_out_label_minus_one_and_ask_for_labels(kind):
    student, teacher, labels = batch(1)
    some = labels.clone()
    some[[0, 3]] = -1
    kept = some >= 0
    expected = call(kind, student[kept], teacher[kept], labels[kept], temperature=2.0)
    torch.testing.assert_close(call(kind, student, teacher, some, temperature=2.0), expected)
    assert call(kind, student, teacher, torch.full_like(labels, -1)).item() == 0
    with pytest.raises(ConfigError, match="needs the true classes"):
        call(kind, student, teacher, None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not losses.LOSSES.make(kind).needs_labels])
def test_other_losses_do_not_look_at_labels(kind):
    student, teacher, labels = batch(2)
    assert torch.equal(call(kind, student, teacher, labels), call(kind, student, teacher, None))


@pytest.mark.parametrize("kind", KINDS)
def test_only_losses_that_need_a_teacher_look_at_it(kind):
    student, teacher, labels = batch(3)
    loss = losses.LOSSES.make(kind)
    if loss.needs_teacher:
        assert loss(student, teacher, labels=labels) != loss(student, teacher.roll(1, 0), labels=labels)
    else:
        assert torch.equal(loss(student, None, labels=labels), loss(student, teacher, labels=labels))


@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if kind not in ("ce", "wsl", "teacher-free", "confidence-penalty")],
)
@quick
@given(seed=seeds, temperature=temperatures)
def test_a_student_that_says_what_the_teacher_says_has_loss_and_gradient_zero(kind, seed, temperature):
    # dist adds 1e-8 to the denominator of a correlation: columns that hardly vary, as at high temperatures, fall short
    # of 1.
    spread, tolerance, temperature = (0.5, 2e-2, min(temperature, 4.0)) if kind == "dist" else (4.0, 1e-6, temperature)
    _, teacher, labels = batch(seed, spread=spread)
    student = teacher.clone().requires_grad_()
    value = call(kind, student, teacher, labels, temperature=temperature)
    value.backward()
    torch.testing.assert_close(value.detach(), torch.zeros_like(value), atol=tolerance, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_takes_no_gradient(kind):
    student, teacher, labels = batch(4)
    teacher.requires_grad_()
    call(kind, student.requires_grad_(), teacher, labels, temperature=2.0).backward()
    assert teacher.grad is None and student.grad.any()


SOFTENED = ["kl", "ce", "js", "jeffreys", "dkd", "dist", "confidence-penalty"]


@pytest.mark.parametrize("kind", SOFTENED)
@quick
@given(seed=seeds, temperature=temperatures)
def test_a_loss_at_t_is_t_squared_times_that_of_logits_divided_by_t(kind, seed, temperature):
    student, teacher, labels = batch(seed)
    expected = temperature**2 * call(kind, student / temperature, teacher / temperature, labels)
    torch.testing.assert_close(call(kind, student, teacher, labels, temperature=temperature), expected)


@pytest.mark.parametrize("kind", ["mse", "l1", "relational-distance", "relational-angle"])
def test_losses_on_plain_logits_do_not_depend_on_the_temperature(kind):
    student, teacher, labels = batch(5)
    assert torch.equal(
        call(kind, student, teacher, labels, temperature=9.0), call(kind, student, teacher, labels, temperature=1.0)
    )


@quick
@given(seed=seeds, temperature=temperatures)
def test_cross_entropy_is_kl_plus_the_entropy_of_the_teacher(seed, temperature):
    student, teacher, _ = batch(seed)
    log_p = (teacher / temperature).log_softmax(-1)
    entropy = -(temperature**2) * (log_p.exp() * log_p).sum(-1).mean()
    torch.testing.assert_close(
        losses.soft_cross_entropy(student, teacher, temperature=temperature),
        losses.kl_divergence(student, teacher, temperature=temperature) + entropy,
    )


@quick
@given(seed=seeds, spread=st.sampled_from([0.1, 4.0, 40.0]))
def test_js_is_symmetric_and_at_most_ln_2(seed, spread):
    student, teacher, _ = batch(seed, spread=spread)
    value = losses.js_divergence(student, teacher)
    torch.testing.assert_close(value, losses.js_divergence(teacher, student))
    assert -1e-12 <= value.item() <= math.log(2) + 1e-12


def test_js_of_disjoint_rows_is_ln_2():
    student, teacher = torch.tensor([[80.0, -80.0]]), torch.tensor([[-80.0, 80.0]])
    assert losses.js_divergence(student, teacher).item() == pytest.approx(math.log(2), rel=1e-6)


@quick
@given(seed=seeds, temperature=temperatures)
def test_jeffreys_is_symmetric_and_the_sum_of_both_kl(seed, temperature):
    student, teacher, _ = batch(seed)
    value = losses.jeffreys(student, teacher, temperature=temperature)
    torch.testing.assert_close(value, losses.jeffreys(teacher, student, temperature=temperature))
    both = [losses.kl_divergence(a, b, temperature=temperature) for a, b in ((student, teacher), (teacher, student))]
    torch.testing.assert_close(value, both[0] + both[1])


def test_kl_for_large_temperatures_is_logit_mse_over_twice_the_classes():
    student, teacher, _ = batch(6)
    torch.testing.assert_close(
        losses.kl_divergence(student, teacher, temperature=1e4),
        losses.logit_mse(student, teacher) / (2 * student.shape[1]),
        rtol=1e-2,
        atol=0,
    )


@quick
@given(seed=seeds, temperature=temperatures)
def test_decoupled_kd_is_kl_when_beta_is_what_the_teacher_leaves_the_others(seed, temperature):
    student, teacher, labels = batch(seed, rows=1)
    left = 1 - (teacher / temperature).softmax(-1)[0, labels[0]].item()
    torch.testing.assert_close(
        losses.decoupled_kd(student, teacher, temperature=temperature, labels=labels, alpha=1.0, beta=left),
        losses.kl_divergence(student, teacher, temperature=temperature),
    )


@pytest.mark.parametrize("kind", ["standardized-kl", "spherical-kd", "relational-distance", "relational-angle"])
@quick
@given(seed=seeds, scale=st.floats(0.01, 50.0))
def test_losses_without_scale_ignore_the_scale_of_the_student(kind, seed, scale):
    student, teacher, labels = batch(seed)
    plain = call(kind, student, teacher, labels, temperature=2.0)
    torch.testing.assert_close(
        call(kind, scale * student + 3, teacher, labels, temperature=2.0), plain, rtol=1e-4, atol=1e-5
    )


@quick
@given(seed=seeds, scale=st.floats(0.01, 50.0))
def test_standardized_kl_ignores_the_scale_of_the_teacher_too(seed, scale):
    student, teacher, _ = batch(seed)
    torch.testing.assert_close(
        losses.standardized_kl(student, scale * teacher - 2, temperature=2.0),
        losses.standardized_kl(student, teacher, temperature=2.0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_spherical_kd_is_kl_when_all_rows_have_one_norm():
    student, teacher, _ = batch(7)
    student, teacher = (each - each.mean(-1, keepdim=True) for each in (student, teacher))
    student, teacher = (5 * each / each.norm(dim=-1, keepdim=True) for each in (student, teacher))
    torch.testing.assert_close(
        losses.spherical_kd(student, teacher, temperature=2.0), losses.kl_divergence(student, teacher, temperature=2.0)
    )


def test_dist_is_blind_to_a_linear_change_of_probabilities_within_a_row():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    q = 0.5 * p + 0.5 / 3
    assert losses.dist(q.log(), p.log(), gamma=0.0).item() == pytest.approx(0, abs=1e-6)
    assert losses.kl_divergence(q.log(), p.log()).item() > 1e-2


def test_weighted_soft_labels_falls_when_the_student_knows_the_true_class_better():
    teacher, labels = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    plain = losses.soft_cross_entropy(torch.tensor([[9.0, 0.0, 0.0]]), teacher)
    sure = losses.weighted_soft_labels(torch.tensor([[9.0, 0.0, 0.0]]), teacher, labels=labels)
    assert 0 < sure < 0.01 * plain
    unsure_logits = torch.tensor([[0.0, 9.0, 0.0]])
    unsure = losses.weighted_soft_labels(unsure_logits, teacher, labels=labels)
    torch.testing.assert_close(unsure, losses.soft_cross_entropy(unsure_logits, teacher), rtol=1e-4, atol=0)


def test_teacher_free_is_kl_to_the_virtual_teacher_and_its_gradient_label_smoothing_at_t_1():
    student, _, labels = batch(8)
    classes = student.shape[1]
    virtual = torch.full_like(student, 0.1 / (classes - 1)).scatter(1, labels[:, None], 0.9)
    torch.testing.assert_close(
        losses.teacher_free(student, None, temperature=5.0, labels=labels, correct=0.9),
        losses.kl_divergence(student, virtual.log(), temperature=5.0),
    )
    free, smoothed = (student.clone().requires_grad_() for _ in range(2))
    losses.teacher_free(free, labels=labels, correct=0.9).backward()
    # Smoothing spreads e over all classes, the virtual teacher over the others.
    losses.hard_cross_entropy(smoothed, labels, label_smoothing=0.1 * classes / (classes - 1)).backward()
    torch.testing.assert_close(free.grad, smoothed.grad)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        losses.teacher_free(student, labels=labels, correct=1.0)


def test_confidence_penalty_lies_between_minus_ln_classes_and_zero():
    student, _, _ = batch(9)
    assert -math.log(5) < losses.confidence_penalty(student).item() < 0
    assert losses.confidence_penalty(torch.zeros(2, 5)).item() == pytest.approx(-math.log(5))


def test_relational_angle_in_pieces_is_that_in_one(monkeypatch):
    student, teacher, _ = batch(10, rows=9)
    values, gradients = [], []
    for at_once in (1 << 21, 200, 1):
        monkeypatch.setattr(losses._relational, "_AT_ONCE", at_once)
        each = student.clone().requires_grad_()
        value = losses.relational_angle(each, teacher)
        value.backward()
        values.append(value.detach())
        gradients.append(each.grad)
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        torch.testing.assert_close(value, values[0])
        torch.testing.assert_close(gradient, gradients[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 2])
def test_one_or_two_classes_and_one_or_two_rows_are_no_trouble(kind, classes):
    for rows in (1, 2):
        student, teacher, labels = batch(11, rows=rows, classes=classes)
        student = student.float().requires_grad_()
        value = call(kind, student, teacher, labels, temperature=2.0)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_is_one_line_with_the_numbers_filled_in(kind):
    loss = losses.LOSSES.make(kind)
    for temperature in (1.0, 4.0):
        assert "\n" not in loss.formula(temperature)
    if kind in SOFTENED:
        assert "16 *" in loss.formula(4.0) and "/ 4" in loss.formula(4.0)
        assert "16" not in loss.formula(1.0) and "softmax(student)" in loss.formula(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_a_mapping_and_back(kind):
    loss = losses.LOSSES.make(kind)
    assert isinstance(loss, losses.Loss)
    assert losses.LOSSES.make(loss.model_dump()) == loss
    with pytest.raises(ConfigError, match="no setting 'betta'"):
        losses.LOSSES.make({"kind": kind, "betta": 1})


def test_wrong_shapes_masks_and_temperatures_are_refused_in_words():
    student, teacher = torch.zeros(3, 4), torch.zeros(3, 4)
    with pytest.raises(ConfigError, match=r"student logits have shape \(3, 4\), teacher logits \(3, 5\)"):
        losses.kl_divergence(student, torch.zeros(3, 5))
    with pytest.raises(ConfigError, match=r"shape \(batch, classes\), got \(4,\)"):
        losses.kl_divergence(student[0], teacher[0])
    with pytest.raises(ConfigError, match="greater than 0, got 0"):
        losses.kl_divergence(student, teacher, temperature=0)
    for valid in (torch.ones(3), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(ConfigError, match=r"valid must be bool of shape \(3,\)"):
            losses.kl_divergence(student, teacher, valid=valid)
    with pytest.raises(ConfigError, match="must be 0 or more, not -1"):
        losses.LOSSES.make({"kind": "dkd", "beta": -1})


def test_the_exported_names_are_the_promised_ones():
    with_teacher = {
        "kl_divergence",
        "soft_cross_entropy",
        "js_divergence",
        "jeffreys",
        "logit_mse",
        "logit_l1",
        "decoupled_kd",
        "dist",
        "weighted_soft_labels",
        "standardized_kl",
        "spherical_kd",
        "relational_distance",
        "relational_angle",
        "batch_correlation",
        "class_correlation",
        "multi_level",
        "teacher_free",
    }
    of_students = {"hard_cross_entropy", "confidence_penalty"}
    of_features = {
        *("feature_mse", "feature_cosine", "attention_transfer", "channel_map_mse", "embedding_distance"),
        *("embedding_angle", "inherit_explore", "make_regressor"),
    }
    functions = {name for name in losses.__all__ if name.islower()}
    assert functions == with_teacher | of_students | of_features
    assert all(hasattr(losses, name) for name in losses.__all__)
    rows = np.zeros((2, 3), np.float32)
    for name in with_teacher:
        loss = getattr(losses, name)
        value = loss(
            torch.from_numpy(rows), torch.from_numpy(rows), temperature=1.0, labels=torch.tensor([0, 1]), valid=None
        )
        assert value.shape == ()


@pytest.mark.parametrize("temperature", [50.0, 1000.0, 10_000.0])
@pytest.mark.parametrize("name", ["kl", "js", "jeffreys", "ce", "dkd", "wsl"])
def test_a_loss_near_its_teacher_is_no_noise_at_high_temperatures(name: str, temperature: float) -> None:
    chance = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(8, 1000, generator=chance)
    student = (teacher + 0.04 * torch.randn(8, 1000, generator=chance)).requires_grad_()
    labels, loss = torch.arange(8), losses.LOSSES.make(name)
    value = loss(student, teacher, temperature=temperature, labels=labels)
    exact = loss(student.double(), teacher.double(), temperature=temperature, labels=labels)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(value, student)
    (true,) = torch.autograd.grad(exact, student)
    torch.testing.assert_close(slope, true, rtol=1e-4, atol=1e-9)


def test_a_temperature_beyond_all_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 10000"):
        losses.Objective(temperature=1e6)
