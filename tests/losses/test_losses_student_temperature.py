"""A temperature of the student's own: values and gradients against a written-out reference, fitted and fixed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels import losses
from softlabels.errors import ConfigError

KINDS = ["kl", "ce"]
quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def softmax(row, temperature):
    top = max(row)
    weights = [math.exp((value - top) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def log_softmax(row, temperature):
    top = max(row)
    total = math.log(sum(math.exp((value - top) / temperature) for value in row))
    return [(value - top) / temperature - total for value in row]


def reference(kind, student, teacher, temperature, own, valid):
    """``T * T_s`` times the mean of KL or cross-entropy, in loops over float64."""
    total, rows = 0.0, [i for i, counts in enumerate(valid) if counts]
    for i in rows:
        log_q, log_p = log_softmax(student[i], own), log_softmax(teacher[i], temperature)
        for lq, lp in zip(log_q, log_p, strict=True):
            total += math.exp(lp) * ((lp if kind == "kl" else 0.0) - lq)
    return temperature * own * total / max(len(rows), 1)


def fitted(student, teacher, temperature, valid):
    """T_s by bisection of the slope of the KL in 1 / T_s, from T / 100 to T."""
    rows = [i for i, counts in enumerate(valid) if counts]

    def slope(inverse):
        total = 0.0
        for i in rows:
            q, p = softmax(student[i], 1 / inverse), softmax(teacher[i], temperature)
            total += sum((a - b) * value for a, b, value in zip(q, p, student[i], strict=True))
        return total

    low, high = 1 / temperature, 100 / temperature
    if slope(low) >= 0:
        return temperature
    if slope(high) <= 0:
        return temperature / 100
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / low


def example(seed, scale=0.3, rows=7, classes=6, spread=4.0):
    """A student that knows its teacher in part, of `scale` times its spread."""
    generator = torch.Generator().manual_seed(seed)
    teacher, noise = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * spread
    return scale * (0.7 * teacher + 0.3 * noise), teacher


VALID = [True, True, False, True, True, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("setting", "own"), [("student_temperature=1", 1.0), ("student_temperature=9", 9.0), ("student_ratio=0.25", None)]
)
def test_a_fixed_temperature_of_the_student_is_the_written_out_formula(kind, dtype, setting, own):
    student, teacher = example(0)
    loss = losses.LOSSES.make(f"{kind} {setting}")
    for temperature in (1.0, 4.0, 30.0):
        value = loss(student.to(dtype), teacher.to(dtype), temperature=temperature, valid=torch.tensor(VALID))
        expected = reference(kind, student.tolist(), teacher.tolist(), temperature, own or 0.25 * temperature, VALID)
        assert value.item() == pytest.approx(expected, rel=1e-10 if dtype == torch.float64 else 1e-4)
        assert "T * T_s" in loss.formula(temperature) or kind == "ce"


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(
    seed=seeds,
    scale=st.sampled_from([-1.0, 0.0, 1e-3, 0.02, 0.1, 0.5, 1.0, 5.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0, 20.0, 50.0]),
    masked=st.booleans(),
)
def test_the_fitted_temperature_is_that_of_a_bisection(kind, seed, scale, temperature, masked):
    student, teacher = example(seed, scale)
    valid = VALID if masked else [True] * len(student)
    own = fitted(student.tolist(), teacher.tolist(), temperature, valid)
    expected = reference(kind, student.tolist(), teacher.tolist(), temperature, own, valid)
    loss, mask = losses.LOSSES.make(f"{kind} student_temperature=fit"), torch.tensor(valid) if masked else None
    value = loss(student, teacher, temperature=temperature, valid=mask)
    assert value.item() == pytest.approx(expected, rel=1e-8, abs=1e-10)
    single = loss(student.float(), teacher.float(), temperature=temperature, valid=mask)
    assert single.item() == pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["student_temperature=fit", "student_temperature=2", "student_ratio=0.5"])
@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_the_gradient_is_t_times_the_difference_of_probabilities(kind, setting, scale):
    """The fit takes no gradient: that of the loss is the finite difference of the formula at a fixed T_s."""
    (student, teacher), temperature = example(1, scale), 4.0
    rows = student.tolist()
    own = 2.0 if "fit" not in setting else fitted(rows, teacher.tolist(), temperature, VALID)
    assert ("fit" not in setting) or (own == temperature) == (scale == 5.0)
    each = student.clone().requires_grad_()
    loss = losses.LOSSES.make(f"{kind} {setting}")
    loss(each, teacher, temperature=temperature, valid=torch.tensor(VALID)).backward()
    step = 1e-5
    for i in range(len(rows)):
        for k in range(len(rows[0])):
            values = []
            for sign in (1, -1):
                moved = [list(row) for row in rows]
                moved[i][k] += sign * step
                values.append(reference(kind, moved, teacher.tolist(), temperature, own, VALID))
            assert each.grad[i, k].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-7)
    difference = (student / own).softmax(-1) - (teacher / temperature).softmax(-1)
    expected = temperature * difference * torch.tensor(VALID)[:, None] / sum(VALID)
    torch.testing.assert_close(each.grad, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_kl_does_not_change_with_the_fitted_temperature_to_first_order(scale):
    """So that a gradient through the fit would be 0, but for the factor T_s."""
    (student, teacher), temperature = example(2, scale), 4.0
    own = fitted(student.tolist(), teacher.tolist(), temperature, VALID)
    assert temperature / 100 < own < temperature
    values = [
        reference("kl", student.tolist(), teacher.tolist(), temperature, each, VALID) / (temperature * each)
        for each in (own * (1 - 1e-4), own, own * (1 + 1e-4))
    ]
    assert values[1] <= min(values[0], values[2])
    assert max(values) - min(values) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["student_temperature=fit", "student_temperature=2", "student_ratio=0.5"])
@quick
@given(seed=seeds, kept=st.integers(1, 6), scale=st.sampled_from([0.0, 0.05, 0.3, 5.0]), pieced=st.booleans())
def test_sparse_labels_give_the_value_and_the_gradient_of_dense_ones(kind, setting, seed, kept, scale, pieced):
    student, teacher = example(seed, scale)
    top = teacher.topk(kept, -1)
    target = losses.SparseLogits(top.indices, top.values, teacher.amin(-1) - 1, teacher.shape[1])
    loss, mask, results = losses.LOSSES.make(f"{kind} {setting}"), torch.tensor(VALID), []
    with pytest.MonkeyPatch.context() as patch:
        if pieced:
            patch.setattr(losses._rows, "_AT_ONCE", {"cpu": 13})
        for given_target in (target, target.dense()):
            each = student.clone().requires_grad_()
            call = loss.sparse if isinstance(given_target, losses.SparseLogits) else loss
            value = call(each, given_target, temperature=4.0, valid=mask)
            value.backward()
            results.append((value.detach(), each.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-9)


@quick
@given(seed=seeds, factor=st.floats(0.1, 1.0))
def test_a_fitted_student_is_free_in_the_scale_of_its_logits(seed, factor):
    """Of a student in the range of the fit: what it is multiplied by, T_s is too, and with it the loss."""
    student, teacher = example(seed, 0.3)
    loss = losses.LOSSES.make("kl student_temperature=fit")
    own = fitted(student.tolist(), teacher.tolist(), 4.0, [True] * 7)
    if own < 4.0 and factor * own > 0.04:
        value, scaled = (loss(each, teacher, temperature=4.0) for each in (student, factor * student))
        torch.testing.assert_close(scaled, factor * value, rtol=1e-7, atol=1e-10)


def test_a_student_as_sharp_as_its_teacher_has_the_plain_loss():
    student, teacher = example(3, 5.0)
    torch.testing.assert_close(
        losses.kl_divergence(student, teacher, temperature=4.0, student_temperature="fit"),
        losses.kl_divergence(student, teacher, temperature=4.0),
    )
    for own in ({"student_temperature": 4.0}, {"student_ratio": 1.0}):
        torch.testing.assert_close(
            losses.kl_divergence(student, teacher, temperature=4.0, **own),
            losses.kl_divergence(student, teacher, temperature=4.0),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_students_are_fitted_in_fp64_and_softened_in_fp32(dtype):
    student, teacher = example(4)
    half = (3 * student).to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    values = [
        losses.kl_divergence(each, teacher.float(), temperature=4.0, student_temperature="fit")
        for each in (half, single)
    ]
    assert values[0].dtype == torch.float32 and torch.equal(*values)
    for value in values:
        value.backward()
    assert torch.equal(half.grad, single.grad.to(dtype))


def test_autocast_and_gradients_that_are_off_change_nothing():
    student, teacher = (each.float() for each in example(8))
    plain = losses.kl_divergence(student, teacher, temperature=4.0, student_temperature="fit")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        again = losses.kl_divergence(student, teacher, temperature=4.0, student_temperature="fit")
    assert torch.equal(plain, again)


def test_rows_that_do_not_count_have_no_part_in_the_fit():
    student, teacher = example(5)
    mask = torch.tensor(VALID)
    dirty, other = student.clone(), teacher.clone()
    dirty[~mask], other[~mask] = torch.inf, torch.nan
    dirty.requires_grad_()
    value = losses.kl_divergence(dirty, other, temperature=2.0, valid=mask, student_temperature="fit")
    value.backward()
    clean = losses.kl_divergence(student[mask], teacher[mask], temperature=2.0, student_temperature="fit")
    torch.testing.assert_close(value.detach(), clean)
    assert torch.isfinite(dirty.grad).all() and not dirty.grad[~mask].any()
    nothing = losses.kl_divergence(
        student.requires_grad_(), teacher, valid=torch.zeros_like(mask), student_temperature="fit"
    )
    nothing.backward()
    assert nothing.item() == 0 and not student.grad.any()


def test_extreme_one_hot_and_constant_rows_have_finite_values_and_gradients():
    one_hot = torch.full((3, 4), -torch.inf).scatter(1, torch.tensor([[1], [0], [3]]), 0.0)
    far = torch.tensor([[80.0, -80, 80, -80]] * 3)
    for student in (torch.zeros(3, 4), far, -far, 1e-20 * far):
        for teacher in (one_hot, far, torch.zeros(3, 4)):
            each = student.clone().requires_grad_()
            value = losses.kl_divergence(each, teacher, temperature=2.0, student_temperature="fit")
            value.backward()
            assert torch.isfinite(value) and torch.isfinite(each.grad).all()
    empty = losses.kl_divergence(torch.zeros(0, 4), torch.zeros(0, 4), student_temperature="fit")
    assert empty.item() == 0


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("student_temperature=0", "student_temperature: a number above 0 or `fit`, not"),
        ("student_temperature=fitted", "a number above 0 or `fit`, not 'fitted'"),
        ("student_temperature=inf", "a number above 0 or `fit`"),
        ("student_ratio=0", "student_ratio must be more than 0"),
        ("student_temperature=1 student_ratio=1", "exclude each other"),
    ],
)
def test_a_temperature_that_is_none_is_refused(settings, wanted):
    with pytest.raises(ConfigError, match=wanted):
        losses.LOSSES.make(f"kl {settings}")


def test_functions_refuse_what_parts_do_and_an_infinite_temperature_beside():
    student, teacher = example(6)
    for given_settings, wanted in (
        ({"student_temperature": 0}, "student_temperature is a number above 0, not 0"),
        ({"student_temperature": "fitted"}, "'fit', not 'fitted'"),
        ({"student_ratio": -1.0}, "student_ratio is a number above 0, not -1"),
        ({"student_ratio": 1.0, "student_temperature": 1.0}, "exclude each other"),
        ({"student_ratio": 1.0, "temperature": math.inf}, "not inf"),
        ({"student_temperature": "fit", "temperature": 0}, "not 0"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            losses.kl_divergence(student, teacher, **given_settings)
    with pytest.raises(ValueError, match="leave `student_temperature` and `student_ratio` out"):
        losses.Objective(loss="kl student_ratio=0.5", temperature=math.inf)


def test_an_objective_says_what_multiplies_it_and_reads_its_own_mapping():
    objective = losses.Objective(loss="kl student_temperature=fit", temperature=20)
    text = "\n".join(objective.describe())
    assert "soft = 20 * T_s * sum p (ln p - ln q), p = softmax(teacher / 20), q = softmax(student / T_s)" in text
    assert "T_s from 0.2 to 20 where KL over the rows of a pass is least" in text
    assert (
        "T * T_s multiplies losses at two temperatures" in text and "T^2 multiplies softened losses always" not in text
    )
    assert losses.Objective(**objective.model_dump()) == objective
    assert "q = softmax(student / 5)" in losses.LOSSES.make("ce student_ratio=0.25").formula(20.0)
    student, teacher = example(7)
    value, _ = objective(student, None, teacher)
    expected = losses.kl_divergence(student, teacher, temperature=20, student_temperature="fit")
    torch.testing.assert_close(value, expected)
