"""Values and gradients of every loss against formulas written out in float64 loops, and finite differences of those."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from softlabels import losses
from softlabels.errors import ConfigError

BATCH, CLASSES = 5, 4


def log_softmax(row, temperature=1.0):
    row = [value / temperature for value in row]
    top = max(row)
    total = math.log(sum(math.exp(value - top) for value in row))
    return [value - top - total for value in row]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def centred(row):
    return [value - mean(row) for value in row]


less_mean = centred


def norm(row):
    return math.sqrt(sum(value * value for value in row))


def per_row(row_loss):
    """A reference over rows: T^2 times the mean over the valid rows."""

    def reference(student, teacher, temperature, labels, valid):  # noqa: ARG001
        rows = [i for i in range(len(student)) if valid[i]]
        return temperature**2 * mean(
            row_loss(log_softmax(student[i], temperature), log_softmax(teacher[i], temperature)) for i in rows
        )

    return reference


def kl(log_q, log_p):
    return sum(math.exp(lp) * (lp - lq) for lq, lp in zip(log_q, log_p, strict=True))


def cross_entropy(log_q, log_p):
    return -sum(math.exp(lp) * lq for lq, lp in zip(log_q, log_p, strict=True))


def jensen_shannon(log_q, log_p):
    q, p = [math.exp(v) for v in log_q], [math.exp(v) for v in log_p]
    m = [(a + b) / 2 for a, b in zip(q, p, strict=True)]
    return sum(
        (a * math.log(a / c) if a > 0 else 0) / 2 + (b * math.log(b / c) if b > 0 else 0) / 2
        for a, b, c in zip(q, p, m, strict=True)
    )


def jeffreys(log_q, log_p):
    return kl(log_q, log_p) + kl(log_p, log_q)


def regression(power):
    def reference(student, teacher, temperature, labels, valid, centred=True, reduction="sum"):  # noqa: ARG001
        def one(s, t):
            s, t = (less_mean(s), less_mean(t)) if centred else (s, t)
            total = sum(abs(a - b) ** power for a, b in zip(s, t, strict=True))
            return total / len(s) if reduction == "mean" else total

        return mean(one(student[i], teacher[i]) for i in range(len(student)) if valid[i])

    return reference


def decoupled(student, teacher, temperature, labels, valid, alpha=1.0, beta=8.0, standardized=False):
    if standardized:
        student, teacher = [z(row) for row in student], [z(row) for row in teacher]

    def one(i):
        log_q, log_p, true = log_softmax(student[i], temperature), log_softmax(teacher[i], temperature), labels[i]
        others = [k for k in range(CLASSES) if k != true]
        q_rest = sum(math.exp(log_q[k]) for k in others)
        p_rest = sum(math.exp(log_p[k]) for k in others)
        binary = math.exp(log_p[true]) * (log_p[true] - log_q[true]) + p_rest * math.log(p_rest / q_rest)
        rest = log_softmax([student[i][k] for k in others], temperature)
        target = log_softmax([teacher[i][k] for k in others], temperature)
        return alpha * binary + beta * kl(rest, target)

    return temperature**2 * mean(one(i) for i in range(len(student)) if valid[i] and labels[i] >= 0)


def correlation(a, b):
    a, b = centred(a), centred(b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / (norm(a) * norm(b) + 1e-8)


def dist(student, teacher, temperature, labels, valid, beta=1.0, gamma=1.0):  # noqa: ARG001
    rows = [i for i in range(len(student)) if valid[i]]
    q = [[math.exp(v) for v in log_softmax(student[i], temperature)] for i in rows]
    p = [[math.exp(v) for v in log_softmax(teacher[i], temperature)] for i in rows]
    inter = mean(1 - correlation(a, b) for a, b in zip(q, p, strict=True))
    intra = mean(1 - correlation([row[k] for row in q], [row[k] for row in p]) for k in range(CLASSES))
    return temperature**2 * (beta * inter + gamma * intra)


def weighted(student, teacher, temperature, labels, valid, frozen=None):
    """`frozen`: the student that gives the weights, through which no gradient goes."""
    frozen = student if frozen is None else frozen

    def one(i):
        of_student, of_teacher = -log_softmax(frozen[i])[labels[i]], -log_softmax(teacher[i])[labels[i]]
        weight = 1 - math.exp(-of_student / (of_teacher + 1e-7))
        return weight * cross_entropy(log_softmax(student[i], temperature), log_softmax(teacher[i], temperature))

    return temperature**2 * mean(one(i) for i in range(len(student)) if valid[i] and labels[i] >= 0)


def z(row):
    row = centred(row)
    return [v / (math.sqrt(sum(u * u for u in row) / (len(row) - 1)) + 1e-7) for v in row]


def standardized(student, teacher, temperature, labels, valid):
    return per_row(kl)([z(row) for row in student], [z(row) for row in teacher], temperature, labels, valid)


def spherical(student, teacher, temperature, labels, valid):
    radius = mean(norm(centred(row)) for row, counts in zip(teacher, valid, strict=True) if counts)

    def s(row):
        return [radius * v / (norm(centred(row)) + 1e-7) for v in centred(row)]

    return per_row(kl)([s(row) for row in student], [s(row) for row in teacher], temperature, labels, valid)


def huber(x):
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def difference(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def relational_distance(student, teacher, temperature, labels, valid):  # noqa: ARG001
    rows = [i for i in range(len(student)) if valid[i]]
    pairs = [(i, j) for i in rows for j in rows if i != j]
    s = [norm(difference(centred(student[i]), centred(student[j]))) for i, j in pairs]
    t = [norm(difference(centred(teacher[i]), centred(teacher[j]))) for i, j in pairs]
    return mean(huber(a / max(mean(s), 1e-12) - b / max(mean(t), 1e-12)) for a, b in zip(s, t, strict=True))


def relational_angle(student, teacher, temperature, labels, valid):  # noqa: ARG001
    def cosine(x, i, j, k):
        a, b = difference(x[i], x[j]), difference(x[k], x[j])
        lengths = norm(a) * norm(b)
        return sum(u * v for u, v in zip(a, b, strict=True)) / lengths if lengths else 0.0

    student, teacher = [centred(row) for row in student], [centred(row) for row in teacher]
    rows = [i for i in range(len(student)) if valid[i]]
    triples = [(i, j, k) for i in rows for j in rows for k in rows if len({i, j, k}) == 3]
    return mean(huber(cosine(student, *each) - cosine(teacher, *each)) for each in triples)


def products(rows):
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]


def correlation_level(columns):
    """Squared differences of products of rows, over their number, or of columns, over theirs."""

    def reference(student, teacher, temperature, labels, valid):  # noqa: ARG001
        tables = []
        for side in (student, teacher):
            rows = [[math.exp(v) for v in log_softmax(side[i], temperature)] for i in range(len(side)) if valid[i]]
            tables.append(products([list(column) for column in zip(*rows, strict=True)] if columns else rows))
        return sum((a - b) ** 2 for x, y in zip(*tables, strict=True) for a, b in zip(x, y, strict=True)) / len(
            tables[0]
        )

    return reference


def multi_level(
    student,
    teacher,
    temperature,
    labels,
    valid,
    factors=(0.5, 0.75, 1.0, 1.25, 1.5),
    instance_weight=1.0,
    batch_weight=1.0,
    class_weight=1.0,
):
    levels = (
        (instance_weight, per_row(kl)),
        (batch_weight, correlation_level(False)),
        (class_weight, correlation_level(True)),
    )
    return sum(
        weight * level(student, teacher, factor * temperature, labels, valid)
        for factor in factors
        for weight, level in levels
    )


def virtual(student, teacher, temperature, labels, valid, correct=0.99):
    teacher = [
        [math.log(correct if k == label else (1 - correct) / (CLASSES - 1)) for k in range(CLASSES)] for label in labels
    ]
    valid = [counts and label >= 0 for counts, label in zip(valid, labels, strict=True)]
    return per_row(kl)(student, teacher, temperature, labels, valid)


def penalty(student, teacher, temperature, labels, valid):  # noqa: ARG001
    """The entropy is the cross-entropy with oneself."""
    rows = [log_softmax(row, temperature) for row, counts in zip(student, valid, strict=True) if counts]
    return -(temperature**2) * mean(cross_entropy(row, row) for row in rows)


REFERENCES = {
    "kl": per_row(kl),
    "ce": per_row(cross_entropy),
    "js": per_row(jensen_shannon),
    "jeffreys": per_row(jeffreys),
    "mse": regression(2),
    "l1": regression(1),
    "dkd": decoupled,
    "dist": dist,
    "wsl": weighted,
    "standardized-kl": standardized,
    "spherical-kd": spherical,
    "relational-distance": relational_distance,
    "relational-angle": relational_angle,
    "mlkd": multi_level,
    "batch-correlation": correlation_level(False),
    "class-correlation": correlation_level(True),
    "teacher-free": virtual,
    "confidence-penalty": penalty,
}
KINDS = list(REFERENCES)


def ordinary(seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(0, 3, (2, BATCH, CLASSES))


def extreme():
    """Rows of +-80, one-hot rows, and both against each other."""
    student, teacher = ordinary(1)
    student[0], teacher[0] = [80, -80, 80, -80], [-80, 80, -80, 79]
    student[1], teacher[1] = [80, -80, -80, -80], [-80, -80, 80, -80]
    student[2], teacher[2] = [80, -80, -80, -80], [80, -80, -80, -80]
    teacher[3] = [-80, 80, -80, -80]
    return student, teacher


def ties():
    """Equal entries, constant rows, equal rows."""
    student, teacher = ordinary(2)
    student[0], teacher[0] = [1, 1, 2, 2], [3, 3, 3, 0]
    student[1] = 0.0
    teacher[2] = 7.0
    student[4], teacher[4] = student[3], teacher[3]
    return student, teacher


CASES = {"ordinary": ordinary, "extreme": extreme, "ties": ties}
LABELS = [0, 3, -1, 1, 2]
VALID = [True, True, True, False, True]


def value_and_gradient(kind, student, teacher, temperature, dtype, labels=LABELS, valid=VALID, **parameters):
    loss = losses.LOSSES.make({"kind": kind, **parameters})
    student = torch.tensor(np.array(student), dtype=dtype, requires_grad=True)
    value = loss(
        student,
        torch.tensor(np.array(teacher), dtype=dtype),
        temperature=temperature,
        labels=torch.tensor(labels),
        valid=None if valid is None else torch.tensor(valid),
    )
    value.backward()
    return value.detach(), student.grad


def written_out(kind, student, teacher, temperature, labels=LABELS, valid=VALID, **parameters):
    valid = [True] * len(student) if valid is None else valid
    return REFERENCES[kind](student.tolist(), teacher.tolist(), temperature, labels, valid, **parameters)


def test_every_loss_of_the_table_has_a_reference():
    assert set(losses.LOSSES.names) == set(KINDS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_is_the_written_out_formula(kind, case):
    student, teacher = CASES[case]()
    for temperature in (1.0, 4.0):
        for valid in (None, VALID):
            expected = written_out(kind, student, teacher, temperature, valid=valid)
            exact, _ = value_and_gradient(kind, student, teacher, temperature, torch.float64, valid=valid)
            single, _ = value_and_gradient(kind, student, teacher, temperature, torch.float32, valid=valid)
            assert exact.dtype == torch.float64 and single.dtype == torch.float32 and single.ndim == 0
            assert exact.item() == pytest.approx(expected, rel=1e-9, abs=1e-11)
            assert single.item() == pytest.approx(expected, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("dkd", {"alpha": 0.5, "beta": 2.0}),
        ("dkd", {"alpha": 1.0, "beta": 0.0}),
        ("dkd", {"standardized": True}),
        ("dist", {"beta": 2.0, "gamma": 0.5}),
        ("mlkd", {"factors": (1.0, 2.0)}),
        ("mlkd", {"instance_weight": 0.5, "batch_weight": 2.0, "class_weight": 3.0}),
        ("mse", {"reduction": "mean"}),
        ("mse", {"centred": False}),
        ("mse", {"centred": False, "reduction": "mean"}),
        ("l1", {"centred": False, "reduction": "mean"}),
        ("teacher-free", {"correct": 0.9}),
    ],
)
def test_parameters_of_a_part_reach_the_formula(kind, parameters):
    student, teacher = ordinary(3)
    value, _ = value_and_gradient(kind, student, teacher, 2.0, torch.float64, **parameters)
    assert value.item() == pytest.approx(written_out(kind, student, teacher, 2.0, **parameters), rel=1e-9)
    assert value.item() != pytest.approx(written_out(kind, student, teacher, 2.0), rel=1e-3)


def finite_differences(kind, student, teacher, temperature):
    """Slopes of the written-out formula, (batch, classes)."""
    frozen = {"frozen": student.tolist()} if kind == "wsl" else {}
    step, slopes = 1e-5, np.zeros_like(student)
    for place in np.ndindex(*student.shape):
        values = []
        for sign in (1, -1):
            moved = student.copy()
            moved[place] += sign * step
            values.append(written_out(kind, moved, teacher, temperature, **frozen))
        slopes[place] = (values[0] - values[1]) / (2 * step)
    return slopes


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_finite_difference_of_the_formula(kind, temperature):
    student, teacher = ordinary(4)
    _, gradient = value_and_gradient(kind, student, teacher, temperature, torch.float64)
    _, single = value_and_gradient(kind, student, teacher, temperature, torch.float32)
    slopes = finite_differences(kind, student, teacher, temperature)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(single, slopes, rtol=1e-3, atol=1e-4)
    assert not np.allclose(slopes, 0)


@pytest.mark.parametrize("case", ["extreme", "ties"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_finite_difference_on_extreme_logits_too(kind, case):
    student, teacher = CASES[case]()
    if kind in ("standardized-kl", "spherical-kd", "dist"):
        student[student.std(1) == 0, 0] = 0.5  # A constant row has no direction.
    if kind == "relational-angle":
        student[2, 1] += 5  # Nor is there an angle at two equal rows.
    _, gradient = value_and_gradient(kind, student, teacher, 2.0, torch.float64)
    slopes = finite_differences(kind, student, teacher, 2.0)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-6)


SPARSE = [kind for kind in KINDS if isinstance(losses.LOSSES.make(kind), losses.SparseLoss)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", SPARSE)
def test_the_sparse_path_has_the_written_out_value_and_the_slopes_of_finite_differences(kind, case, dtype):
    """Two of four classes are named, the others have one logit."""
    student, teacher = CASES[case]()
    student = torch.tensor(student, dtype=dtype)
    ids = torch.tensor(teacher).topk(2).indices
    values = torch.tensor(teacher).gather(1, ids)
    tail = torch.tensor(np.sort(teacher, 1)[:, :2].mean(1))
    dense = tail[:, None].expand(-1, CLASSES).scatter(1, ids, values).numpy()
    expected = written_out(kind, student.double().numpy(), dense, 2.0)
    slopes = finite_differences(kind, student.double().numpy(), dense, 2.0)
    student.requires_grad_()
    target = losses.SparseLogits(ids, values, tail, CLASSES)
    value = losses.LOSSES.make(kind).sparse(student, target, temperature=2.0, valid=torch.tensor(VALID))
    value.backward()
    exact = dtype == torch.float64
    assert value.dtype == (torch.float64 if exact else torch.float32)
    assert value.item() == pytest.approx(expected, rel=1e-9 if exact else 2e-5, abs=1e-11 if exact else 2e-5)
    tolerance = {torch.float64: 1e-5, torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    np.testing.assert_allclose(student.grad.double(), slopes, rtol=tolerance, atol=1e-6 if exact else 2e-3)


@pytest.mark.parametrize("case", ["extreme", "ties"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_in_fp32_is_that_in_fp64_on_extreme_logits(kind, case):
    student, teacher = CASES[case]()
    if kind in ("standardized-kl", "spherical-kd"):
        student[student.std(1) == 0, 0] = 0.5  # A constant row has no direction; its gradient is some 1e7.
    _, exact = value_and_gradient(kind, student, teacher, 2.0, torch.float64)
    _, single = value_and_gradient(kind, student, teacher, 2.0, torch.float32)
    assert torch.isfinite(single).all()
    np.testing.assert_allclose(single, exact, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_rows_and_equal_pictures_have_finite_values_and_gradients(kind):
    rows = np.zeros((BATCH, CLASSES))
    for student, teacher in ((rows, rows), (rows, ordinary()[0]), (ordinary()[0], rows + 80.1), (rows + 80.1, rows)):
        value, gradient = value_and_gradient(kind, student, teacher, 1.0, torch.float32)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_students_are_computed_in_fp32(kind, dtype):
    student, teacher = extreme()
    loss, labels = losses.LOSSES.make(kind), torch.tensor(LABELS)
    half = torch.tensor(student, dtype=dtype, requires_grad=True)
    single = half.detach().float().requires_grad_()
    values = [loss(each, torch.tensor(teacher).to(dtype), temperature=2.0, labels=labels) for each in (half, single)]
    assert values[0].dtype == torch.float32
    assert torch.equal(values[0], values[1])
    for value in values:
        value.backward()
    assert half.grad.dtype == dtype and torch.equal(half.grad, single.grad.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind):
    student, teacher = (torch.tensor(each, dtype=torch.float32) for each in ordinary(5))
    loss, labels = losses.LOSSES.make(kind), torch.tensor(LABELS)
    plain = loss(student, teacher, temperature=2.0, labels=labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher, temperature=2.0, labels=labels), plain)


@pytest.mark.parametrize("kind", ["kl", "ce", "js", "jeffreys", "dkd", "wsl"])
def test_a_teacher_logit_of_minus_infinity_is_a_probability_of_zero(kind):
    student, _ = ordinary(6)
    one_hot = np.full((BATCH, CLASSES), -np.inf)
    one_hot[np.arange(BATCH), [1, 0, 2, 3, 2]] = 0.0
    value, gradient = value_and_gradient(kind, student, one_hot, 1.0, torch.float32)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    if kind in ("kl", "ce"):
        labels = [1, 0, 2, 3, 2]
        expected = mean(-log_softmax(student[i])[labels[i]] for i in range(BATCH) if VALID[i])
        assert value.item() == pytest.approx(expected, rel=1e-5)


def test_hard_cross_entropy_is_the_written_out_formula():
    for student in (*ordinary(7), extreme()[0]):
        for smoothing in (0.0, 0.1):
            for dtype, rel in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
                expected = mean(
                    -(1 - smoothing) * log_softmax(student[i])[LABELS[i]] - smoothing * mean(log_softmax(student[i]))
                    for i in range(BATCH)
                    if VALID[i] and LABELS[i] >= 0
                )
                value = losses.hard_cross_entropy(
                    torch.tensor(student, dtype=dtype),
                    torch.tensor(LABELS),
                    label_smoothing=smoothing,
                    valid=torch.tensor(VALID),
                )
                assert value.item() == pytest.approx(expected, rel=rel)


def test_hard_cross_entropy_has_the_gradient_softmax_less_one_hot():
    student = torch.tensor(ordinary(8)[0], requires_grad=True)
    losses.hard_cross_entropy(student, torch.tensor(LABELS, dtype=torch.int32)).backward()
    expected = np.zeros((BATCH, CLASSES))
    for i, label in enumerate(LABELS):
        for k, log_q in enumerate(log_softmax(student[i].tolist())):
            expected[i, k] = 0 if label < 0 else (math.exp(log_q) - (k == label)) / 4
    np.testing.assert_allclose(student.grad, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hard_cross_entropy_of_half_precision_students_is_computed_in_fp32(dtype):
    student = torch.tensor(extreme()[0], dtype=dtype)
    value = losses.hard_cross_entropy(student, torch.tensor(LABELS))
    assert value.dtype == torch.float32
    assert torch.equal(value, losses.hard_cross_entropy(student.float(), torch.tensor(LABELS)))


def test_labels_all_minus_one_make_zero_with_a_gradient():
    student = torch.randn(3, CLASSES, requires_grad=True)
    value = losses.hard_cross_entropy(student, torch.full((3,), -1), label_smoothing=0.1)
    value.backward()
    assert value.item() == 0 and not student.grad.any()


def test_standardized_kl_is_that_of_torchs_own_deviation():
    """The authors divide by ``torch.std``, whose variance is divided by K - 1; K makes another loss for few classes."""
    student, teacher = (torch.tensor(rows) for rows in ordinary())
    rows = [(each - each.mean(-1, keepdim=True)) / (each.std(-1, keepdim=True) + 1e-7) for each in (student, teacher)]
    p, q = (rows[1] / 2).softmax(-1), (rows[0] / 2).log_softmax(-1)
    expected = 4 * torch.nn.functional.kl_div(q, p, reduction="batchmean")
    torch.testing.assert_close(losses.standardized_kl(student, teacher, temperature=2.0), expected)


@pytest.mark.parametrize(("name", "torchs"), [("mse", torch.nn.MSELoss()), ("l1", torch.nn.L1Loss())])
def test_raw_logits_with_the_mean_over_classes_are_torchs_own_loss(name, torchs):
    student, teacher = (torch.tensor(rows) for rows in ordinary())
    loss = losses.LOSSES.make(f"{name} centred=false reduction=mean")
    torch.testing.assert_close(loss(student, teacher), torchs(student, teacher))
    assert loss(student + 3, teacher) != loss(student, teacher)
    assert loss.formula(4.0) == (
        f"mean over classes of {'(s - t)^2' if name == 'mse' else '|s - t|'}, s and t: logits of student and teacher"
    )


def limit_of_kl(student, teacher, valid):
    rows = [i for i in range(len(student)) if valid[i]]
    return mean(norm(difference(centred(student[i]), centred(teacher[i]))) ** 2 / (2 * CLASSES) for i in rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("valid", [None, VALID])
def test_kl_at_an_infinite_temperature_is_the_written_out_limit(case, valid):
    student, teacher = CASES[case]()
    expected = limit_of_kl(student.tolist(), teacher.tolist(), valid or [True] * BATCH)
    exact, gradient = value_and_gradient("kl", student, teacher, math.inf, torch.float64, valid=valid)
    assert exact.item() == pytest.approx(expected, rel=1e-12)
    single, _ = value_and_gradient("kl", student, teacher, math.inf, torch.float32, valid=valid)
    assert single.dtype == torch.float32 and single.item() == pytest.approx(expected, rel=1e-5)
    # T of 1e6 in fp64: what differs is of the order 1 / T, and the rounding of T^2 * KL of the order 1e-16 * T^2.
    near, slopes = value_and_gradient("kl", student, teacher, 1e5, torch.float64, valid=valid)
    assert near.item() == pytest.approx(expected, rel=1e-2)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-2, atol=1e-3)
    ids = torch.arange(CLASSES).expand(BATCH, -1)
    sparse = losses.SparseLogits(ids, torch.tensor(teacher), torch.zeros(BATCH), CLASSES)
    mask = None if valid is None else torch.tensor(valid)
    value = losses.kl_divergence(torch.tensor(student), sparse, temperature=math.inf, valid=mask)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["ce", "js", "jeffreys", "dkd", "dist", "wsl", "confidence-penalty"])
def test_losses_without_a_limit_refuse_an_infinite_temperature(kind):
    with pytest.raises(ValueError, match="no limit at an infinite temperature; choose kl"):
        losses.Objective(loss=kind, temperature=math.inf)
    student, teacher = (torch.tensor(rows) for rows in ordinary())
    with pytest.raises(ConfigError, match="no limit at an infinite temperature"):
        losses.LOSSES.make(kind)(student, teacher, temperature=math.inf, labels=torch.tensor(LABELS))
