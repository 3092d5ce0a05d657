"""The training objective: what it adds up, what it leaves out, what it says of itself."""

from __future__ import annotations

import math

import pytest
import torch

from softlabels import losses
from softlabels.errors import ConfigError
from softlabels.losses import Objective


def example(rows=6, classes=5):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, rows, classes, generator=generator) * 3
    return student.requires_grad_(), torch.tensor([0, -1, 2, 3, -1, 4][:rows]), teacher


@pytest.mark.parametrize("kind", losses.LOSSES.names)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_total_is_alpha_hard_plus_the_rest_soft(alpha, kind):
    student, labels, teacher = example()
    valid = torch.tensor([True, True, True, False, True, True])
    objective = Objective(alpha=alpha, loss=kind, temperature=4.0, label_smoothing=0.1)
    total, parts = objective(student, labels, teacher, valid)
    hard = losses.hard_cross_entropy(student, labels, label_smoothing=0.1, valid=valid)
    soft = losses.LOSSES.make(kind)(student, teacher, temperature=4.0, labels=labels, valid=valid)
    torch.testing.assert_close(total, alpha * hard + (1 - alpha) * soft)
    assert set(parts) == {"hard", "soft"} and not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(parts["hard"], hard.detach() if alpha > 0 else torch.tensor(0.0))
    torch.testing.assert_close(parts["soft"], soft.detach() if alpha < 1 else torch.tensor(0.0))
    total.backward()
    assert student.grad.any()


def test_alpha_one_asks_for_no_teacher_and_alpha_zero_for_no_label():
    student, labels, teacher = example()
    assert Objective(alpha=1.0)(student, labels)[0] == losses.hard_cross_entropy(student, labels)
    assert Objective(alpha=0.0)(student, None, teacher)[0] == losses.kl_divergence(student, teacher)
    assert Objective(alpha=0.0, loss="confidence-penalty")(student, None)[0] == losses.confidence_penalty(student)
    assert not Objective(alpha=1.0).needs_teacher and Objective(alpha=0.9).needs_teacher
    assert not Objective(alpha=0.0).needs_labels and Objective(alpha=0.1).needs_labels
    assert Objective(alpha=0.0, loss="dkd").needs_labels and not Objective(loss="teacher-free").needs_teacher


def test_a_part_of_weight_zero_is_not_computed(monkeypatch):
    student, labels, teacher = example()

    def refuse(*_, **__):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(losses._objective, "hard_cross_entropy", refuse)
        Objective(alpha=0.0)(student, labels, teacher)
        with pytest.raises(AssertionError):
            Objective(alpha=0.1)(student, labels, teacher)
    with monkeypatch.context() as patch:
        patch.setattr(losses._divergences.KL, "function", refuse)
        Objective(alpha=1.0, terms=({"weight": 0, "loss": "kl"},))(student, labels, teacher)
        with pytest.raises(AssertionError):
            Objective(alpha=0.9)(student, labels, teacher)


def test_features_are_not_driven_apart():
    with pytest.raises(ValueError, match="weight -1 drives features apart"):
        Objective(terms=({"weight": -1, "loss": "hint", "output": "map"},))
    assert Objective(terms=({"weight": -1, "loss": "confidence-penalty"},)).terms


def test_what_is_missing_is_named():
    student, labels, teacher = example()
    with pytest.raises(ConfigError, match="loss 'kl' needs a teacher's labels and there are none; give them, or leave"):
        Objective(alpha=0.5)(student, labels)
    with pytest.raises(ConfigError, match=r"alpha = 0\.5 needs labels and there are none; set alpha = 0"):
        Objective(alpha=0.5)(student, None, teacher)
    with pytest.raises(ConfigError, match="unknown loss 'kll'; did you mean 'kl'"):
        Objective(loss="kll")


def test_labels_all_minus_one_make_a_hard_part_of_zero():
    student, labels, teacher = example()
    total, parts = Objective(alpha=0.5)(student, torch.full_like(labels, -1), teacher)
    assert parts["hard"] == 0
    torch.testing.assert_close(total, 0.5 * losses.kl_divergence(student, teacher))
    total.backward()
    assert torch.isfinite(student.grad).all()
    alone, _ = Objective(alpha=1.0)(student, torch.full_like(labels, -1))
    alone.backward()
    assert alone == 0


def test_further_terms_are_added_with_their_weights_and_temperatures():
    student, labels, teacher = example()
    objective = Objective(
        alpha=0.5,
        temperature=4.0,
        terms=({"weight": 25, "loss": "relational-distance"}, {"weight": 0.1, "loss": "js", "temperature": 2.0}),
    )
    total, parts = objective(student, labels, teacher)
    plain, _ = Objective(alpha=0.5, temperature=4.0)(student, labels, teacher)
    distance, js = losses.relational_distance(student, teacher), losses.js_divergence(student, teacher, temperature=2.0)
    torch.testing.assert_close(total, plain + 25 * distance + 0.1 * js)
    assert parts["relational-distance"] == distance and parts["js"] == js
    entropy = Objective(alpha=1.0, terms=({"weight": 0.1, "loss": "confidence-penalty"},))
    torch.testing.assert_close(
        entropy(student, labels)[0],
        losses.hard_cross_entropy(student, labels) + 0.1 * losses.confidence_penalty(student),
    )


def test_rows_with_the_ignored_label_count_in_no_part():
    student, labels, teacher = example()
    kept = labels != 3
    ignoring = Objective(alpha=0.5, ignore_label=3)(student, labels, teacher)[0]
    torch.testing.assert_close(ignoring, Objective(alpha=0.5)(student[kept], labels[kept], teacher[kept])[0])
    ignoring = Objective(alpha=0.5, ignore_label=3)(student, labels, teacher, torch.arange(6) != 0)[0]
    torch.testing.assert_close(
        ignoring, Objective(alpha=0.5)(student[kept][1:], labels[kept][1:], teacher[kept][1:])[0]
    )


@pytest.mark.parametrize("kind", ["kl", "mse", "dkd"])
def test_normalization_divides_sums_by_valid_rows_by_the_batch_or_by_one(kind):
    student, labels, teacher = example()
    valid = torch.tensor([True, True, True, False, True, True])
    parts = {
        mode: Objective(alpha=0.5, loss=kind, normalization=mode)(student, labels, teacher, valid)[1]
        for mode in ("valid", "full", "batch-size", "none")
    }
    assert parts["full"] == parts["batch-size"]
    hard_rows, soft_rows = 3, 3 if kind == "dkd" else 5
    for name, rows in (("hard", hard_rows), ("soft", soft_rows)):
        torch.testing.assert_close(parts["none"][name], parts["valid"][name] * rows)
        torch.testing.assert_close(parts["batch-size"][name], parts["valid"][name] * rows / 6)


def test_an_objective_is_a_mapping_and_back():
    objective = Objective(
        alpha=0.2, loss={"kind": "dkd", "beta": 2.0}, temperature=4.0, terms=({"weight": 1, "loss": "js"},)
    )
    assert Objective.model_validate(objective.model_dump()) == objective
    assert Objective.model_validate_json(objective.model_dump_json()) == objective
    assert objective.model_dump()["loss"] == {"kind": "dkd", "alpha": 1.0, "beta": 2.0, "standardized": False}


def test_an_infinite_temperature_is_that_of_kl_and_is_written_and_read():
    student, labels, teacher = example()
    objective = Objective(temperature=float("inf"), terms=({"weight": 1, "loss": "js", "temperature": 2.0},))
    assert Objective.model_validate_json(objective.model_dump_json()) == objective
    assert Objective.model_validate(objective.model_dump()) == objective
    total, parts = objective(student, labels, teacher)
    torch.testing.assert_close(parts["soft"], losses.logit_mse(student, teacher) / 10)
    torch.testing.assert_close(total, parts["soft"] + losses.js_divergence(student, teacher, temperature=2.0))
    lines = Objective(temperature=float("inf")).describe()
    assert lines[1] == (
        "soft = sum (s - t)^2 / (2 * classes), s and t: logits of student and teacher less their mean over the classes "
        "[the limit of T^2 * KL(teacher || student) for an infinite T] (kl)"
    )
    assert "T^2 multiplies" not in lines[-1] and "fp64" not in lines[-1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 1.1},
        {"alpha": -0.1},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"temperature": float("inf"), "loss": "js"},
        {"temperature": float("inf"), "terms": ({"weight": 1, "loss": "js"},)},
        {"label_smoothing": 1.0},
        {"normalization": "mean"},
        {"temprature": 2},
        {"terms": ({"weight": float("nan"), "loss": "kl"},)},
        {"terms": ({"weight": 1, "loss": "js"}, {"weight": 2, "loss": "js"})},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        Objective(**wrong)


def test_describe_states_the_exact_objective():
    lines = Objective(alpha=0.1, temperature=4.0, label_smoothing=0.1).describe()
    assert lines == [
        "loss = 0.1 * hard + 0.9 * soft",
        "hard = - ln softmax(student)[label], label smoothing 0.1; rows with label -1 are left out",
        "soft = 16 * sum p (ln p - ln q), p = softmax(teacher / 4), q = softmax(student / 4) "
        "[T^2 * KL(teacher || student)] (kl)",
        "per row the sum over classes, then the mean over the valid rows",
        "natural logarithm; KL is forward, KL(teacher || student); T^2 multiplies softened losses always; log-softmax "
        "in fp32; what a top-K label leaves over is clamped at 0 and spread per class",
    ]
    hard_only = Objective(alpha=1.0).describe()
    assert hard_only[-1] == "natural logarithm; log-softmax in fp32"
    assert hard_only[0] == "loss = 1 * hard" and not any(line.startswith("soft") for line in hard_only)
    soft_only = Objective(alpha=0.0, ignore_label=9, normalization="none").describe(top_k=False)
    assert soft_only[-1] == "natural logarithm; KL is forward, KL(teacher || student); log-softmax in fp32"
    assert soft_only[0] == "loss = 1 * soft" and not any(line.startswith("hard") for line in soft_only)
    assert any("label 9" in line for line in soft_only) and any("summed over rows" in line for line in soft_only)


@pytest.mark.parametrize("kind", losses.LOSSES.names)
def test_every_loss_describes_itself_within_an_objective(kind):
    lines = Objective(alpha=0.5, loss=kind, temperature=2.0).describe()
    assert any(line.startswith("soft = ") and line.endswith(f"({kind})") for line in lines)


def caffe(student, teacher, labels, ignored, temperature, mode):
    """Caffe's softmax losses with hard and with soft labels, in plain numbers: (hard, soft), soft without T^2."""

    def log_softmax(row, temperature):
        total = math.log(sum(math.exp(value / temperature) for value in row))
        return [value / temperature - total for value in row]

    hard = soft = 0.0
    count = 0
    for s, t, label in zip(student, teacher, labels, strict=True):
        if label == ignored:
            continue
        count += 1
        hard -= log_softmax(s, 1.0)[label]
        p, log_q = [math.exp(value) for value in log_softmax(t, temperature)], log_softmax(s, temperature)
        soft += sum(pk * (math.log(pk) - lq) for pk, lq in zip(p, log_q, strict=True))
    divisor = {"valid": max(count, 1), "full": len(labels), "batch-size": len(labels), "none": 1}[mode]
    return hard / divisor, soft / divisor


@pytest.mark.parametrize("ignored", [None, 2, 7])
@pytest.mark.parametrize("mode", ["valid", "full", "batch-size", "none"])
def test_normalisation_and_ignored_label_are_caffes(mode, ignored):
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 7, 8, generator=generator, dtype=torch.float64) * 2
    labels = torch.tensor([2, 0, 2, 5, 7, 2, 1])
    objective = Objective(alpha=0.4, temperature=3.0, ignore_label=ignored, normalization=mode)
    total, parts = objective(student.requires_grad_(), labels, teacher)
    hard, soft = caffe(student.tolist(), teacher.tolist(), labels.tolist(), ignored, 3.0, mode)
    assert parts["hard"].item() == pytest.approx(hard, rel=1e-10)
    assert parts["soft"].item() == pytest.approx(9 * soft, rel=1e-10)
    assert total.item() == pytest.approx(0.4 * hard + 0.6 * 9 * soft, rel=1e-10)
    total.backward()
    assert not student.grad[labels == (-2 if ignored is None else ignored)].any()


@pytest.mark.parametrize("mode", ["valid", "full", "none"])
def test_a_batch_of_the_ignored_label_alone_has_no_loss(mode):
    student, _, teacher = example()
    total, _ = Objective(alpha=0.5, ignore_label=3, normalization=mode)(student, torch.full((6,), 3), teacher)
    total.backward()
    assert total == 0 and not student.grad.any()


@pytest.mark.parametrize("mode", ["valid", "full", "batch-size", "none"])
def test_slices_of_a_batch_sum_to_the_whole(mode):
    student, labels, teacher = example()
    objective = Objective(alpha=0.5, ignore_label=3, normalization=mode, terms=({"weight": 2, "loss": "mse"},))
    whole, _ = objective(student, labels, teacher)
    cuts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    counts = [objective.counts(len(labels[cut]), labels[cut]) for cut in cuts]
    over = {name: sum(each[name] for each in counts) for name in counts[0]}
    slices = [objective(student[cut], labels[cut], teacher[cut], over=over)[0] for cut in cuts]
    torch.testing.assert_close(sum(slices), whole)


def test_a_mixed_view_with_an_ignored_image_counts_in_no_part():
    student, _, teacher = example()
    own, partners, shares = torch.tensor([0, 3, 1, 2, 1, 4]), torch.tensor([1, 0, 3, 2, 0, 4]), torch.full((6,), 0.75)
    objective = Objective(alpha=0.5, ignore_label=3)
    given = {"partners": partners, "shares": shares}
    kept = torch.tensor([True, False, False, True, True, True])
    expected, _ = Objective(alpha=0.5)(
        student[kept], own[kept], teacher[kept], partners=partners[kept], shares=shares[kept]
    )
    torch.testing.assert_close(objective(student, own, teacher, **given)[0], expected)
    assert objective.counts(6, own, partners=partners)["soft"] == 4


@pytest.mark.parametrize(("form", "temperature"), [("standardized", 0.5), ("standardized", 1.0), ("plain", 2.0)])
def test_the_hard_part_takes_standardised_logits(form, temperature):
    student, labels, _ = example()
    objective = Objective(alpha=1.0, hard_logits=form, hard_temperature=temperature, label_smoothing=0.1)
    expected = []
    for row, label in zip(student.tolist(), labels.tolist(), strict=True):
        if label < 0:
            continue
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        z = [(value - mean) / deviation for value in row] if form == "standardized" else row
        z = [value / temperature for value in z]
        total = math.log(sum(math.exp(value) for value in z))
        expected.append(-0.9 * (z[label] - total) - 0.1 * sum(value - total for value in z) / len(z))
    total, parts = objective(student, labels)
    assert total.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    dirty = student.detach().clone()
    dirty[1] = float("nan")
    dirty.requires_grad_()
    valid = torch.arange(6) != 1
    value, _ = objective(dirty, labels, valid=valid)
    value.backward()
    torch.testing.assert_close(value, total)  # row 1 has no label
    assert torch.isfinite(dirty.grad).all() and parts["hard"] == total
    line = objective.describe()[1]
    assert ("std with K - 1" in line) is (form == "standardized")
    assert line.startswith(
        {0.5: "hard = - ln softmax(Z(student) / 0.5)", 1.0: "hard = - ln softmax(Z(student))"}.get(
            temperature, "hard = - ln softmax(student / 2)"
        )
    )


def test_the_soft_part_is_scaled_besides_its_weight():
    student, labels, teacher = example()
    total, parts = Objective(alpha=0.5, soft_scale=0.25)(student, labels, teacher)
    torch.testing.assert_close(total, 0.5 * parts["hard"] + 0.125 * parts["soft"])
