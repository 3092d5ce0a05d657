"""Losses of features against references that are written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softlabels import losses
from softlabels.errors import ConfigError
from softlabels.losses import FEATURE_LOSSES, FeatureLossPart, Objective, Term

VALID = np.array([True, False, True, True, False])
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "hint": ((4, 6, 6), (4, 3, 2)),
    "cosine": ((7,), (7,)),
    "attention": ((4, 6, 6), (3, 3, 2)),
    "channel-map": ((4, 6, 6), (3, 3, 2)),
    "rkd-distance": ((7,), (3,)),
    "rkd-angle": ((2, 2, 2), (3,)),
    "inherit-explore": ((8, 4, 4), (4, 2, 2)),
}
"""Shapes of one image's features of student and teacher, behind a regressor where there is one."""


def features(kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = SHAPES[kind]
    student = torch.randn(len(VALID), *ours, generator=draw, dtype=torch.float64)
    return student, torch.randn(len(VALID), *theirs, generator=draw, dtype=torch.float64)


def cells(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Means over a grid of cells, of maps whose sides are multiples of it."""
    down, across = maps.shape[-2] // height, maps.shape[-1] // width
    return maps.reshape(*maps.shape[:-2], height, down, width, across).mean((-3, -1))


def unit(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(len(values), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def reference(kind: str, s: np.ndarray, t: np.ndarray, **settings: Any) -> float:
    """The loss of rows that all count, by its formula."""
    if kind == "hint":
        return float(((cells(s, 3, 2) - t) ** 2).mean())
    if kind == "cosine":
        return float((1 - (unit(s) * unit(t)).sum(1)).mean())
    if kind == "attention":
        ours, theirs = cells((s**2).sum(1), 3, 2), (t**2).sum(1)
        return float(((unit(ours) - unit(theirs)) ** 2).mean())
    if kind == "channel-map":
        by = settings.get("by", "mean")
        ours, theirs = (m.mean(1) if by == "mean" else np.sqrt((m**2).mean(1)) for m in (s, t))
        return float(((cells(ours, 3, 2) - theirs) ** 2).mean())
    if kind == "inherit-explore":
        near, far = (np.abs(unit(cells(half, 2, 2)) - unit(t)).mean(1) for half in (s[:, :4], s[:, 4:]))
        return float((near - settings.get("exploration", 1.0) * far).mean())
    flat = [each.reshape(len(each), -1) for each in (s, t)]
    n = len(s)
    if kind == "rkd-distance":
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        apart = [[float(np.linalg.norm(f[i] - f[j])) for i, j in pairs] for f in flat]
        ours, theirs = (np.array(each) / np.mean(each) for each in apart)
        return float(np.mean([huber(x) for x in ours - theirs]))
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n) if len({i, j, k}) == 3]

    def cosine(f: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = f[i] - f[j], f[k] - f[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    return float(np.mean([huber(cosine(flat[0], *each) - cosine(flat[1], *each)) for each in triples]))


GIVEN: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in SHAPES),
    ("channel-map", {"by": "norm"}),
    ("inherit-explore", {"exploration": 0.3}),
]


@pytest.mark.parametrize(("kind", "settings"), GIVEN)
def test_a_loss_is_what_its_formula_says(kind: str, settings: dict[str, Any]) -> None:
    assert set(SHAPES) == set(FEATURE_LOSSES.names)
    loss, (student, teacher) = FEATURE_LOSSES.make({"kind": kind, **settings}), features(kind)
    assert isinstance(loss, FeatureLossPart) and loss.formula(4.0)
    wanted = reference(kind, student.numpy(), teacher.numpy(), **settings)
    assert loss(student, teacher, temperature=3.0).item() == pytest.approx(wanted, rel=1e-9)
    counted = reference(kind, student.numpy()[VALID], teacher.numpy()[VALID], **settings)
    student[~torch.from_numpy(VALID)] = torch.nan
    student.requires_grad_()
    value = loss(student, teacher, valid=torch.from_numpy(VALID))
    assert value.item() == pytest.approx(counted, rel=1e-9)
    value.backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert student.grad[VALID].abs().sum() > 0 and not student.grad[~torch.from_numpy(VALID)].any()
    none = loss(student, teacher, valid=torch.zeros(len(VALID), dtype=torch.bool))
    assert none.item() == 0 and none.requires_grad


@pytest.mark.parametrize("kind", ["attention", "channel-map"])
def test_a_stored_map_stands_for_the_features_it_was_made_of(kind: str) -> None:
    loss, (student, teacher) = FEATURE_LOSSES.make(kind), features(kind)
    stored = teacher.square().sum(1) / 7 if kind == "attention" else teacher.mean(1)
    assert loss(student, stored).item() == pytest.approx(loss(student, teacher).item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["hint", "cosine", "attention", "rkd-distance", "rkd-angle"])
def test_a_student_that_is_its_teacher_has_no_loss(kind: str) -> None:
    same = features(kind)[0]
    assert FEATURE_LOSSES.make(kind)(same, same.clone()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "wanted"),
    [
        ("hint", (4, 6, 6), (9, 3, 3), (9, 6, 6)),
        ("hint", (5, 4), (5, 8), (5, 8)),
        ("hint", (4,), (4,), (4,)),
        ("cosine", (4,), (4,), None),
        ("cosine", (4, 6, 6), (9, 3, 3), (9, 6, 6)),
        ("inherit-explore", (4, 6, 6), (9, 3, 3), (18, 6, 6)),
        ("inherit-explore", (6,), (5,), (10,)),
        ("attention", (4, 6, 6), (9, 3, 3), None),
        ("rkd-angle", (4,), (9,), None),
    ],
)
def test_a_regressor_leads_to_the_teachers_width(
    kind: str, student: tuple[int, ...], teacher: tuple[int, ...], wanted: tuple[int, ...] | None
) -> None:
    loss = FEATURE_LOSSES.make(kind)
    assert isinstance(loss, FeatureLossPart)
    layer = loss.regressor(student, teacher)
    assert (layer is None) == (wanted is None)
    ours = torch.randn(3, *student)
    if layer is not None:
        ours = layer(ours)
        assert tuple(ours.shape[1:]) == wanted
    assert loss(ours, torch.randn(3, *teacher)).isfinite()


def test_the_far_part_moves_the_student_and_not_the_regressor() -> None:
    layer = FEATURE_LOSSES.make("inherit-explore").regressor((6,), (5,))  # type: ignore[attr-defined]
    ours, theirs = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5)
    moved = []
    for exploration in (0.0, 1.0):
        layer.zero_grad()
        ours.grad = None
        losses.inherit_explore(layer(ours), theirs, exploration=exploration).backward()
        moved.append([parameter.grad.clone() for parameter in layer.parameters()])
        assert ours.grad is not None and bool(ours.grad[:, 3:].any()) == (exploration > 0)
    assert all(torch.equal(*pair) for pair in zip(*moved, strict=True))
    inner: nn.Linear = layer.layer
    values = torch.cat([inner(ours[:, :3]), inner(ours[:, 3:])], 1)
    torch.testing.assert_close(layer(ours), values)


def test_a_term_compares_features_in_their_shapes_and_other_losses_see_rows() -> None:
    student, teacher = features("attention")
    logits = torch.randn(len(VALID), 3)
    terms = (
        Term(weight=2.0, loss="attention", output="map", student_output="body.2"),
        Term(weight=0.5, loss="mse", output="flat", student_output="body.3"),
    )
    objective = Objective(alpha=1.0, terms=terms)
    flat = torch.randn(len(VALID), 2, 3)
    total, parts = objective(
        {"logits": logits, "body.2": student, "body.3": flat},
        torch.zeros(len(VALID), dtype=torch.int64),
        {"map": teacher, "flat": torch.zeros(len(VALID), 6)},
    )
    wanted = reference("attention", student.numpy(), teacher.numpy())
    rows = flat.flatten(1)
    mse = (rows - rows.mean(1, keepdim=True)).square().sum(1).mean()
    assert parts["attention@map"].item() == pytest.approx(wanted, rel=1e-6)
    assert parts["mse@flat"].item() == pytest.approx(mse.item(), rel=1e-6)
    assert total.item() == pytest.approx(parts["hard"].item() + 2 * wanted + 0.5 * mse.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: losses.attention_transfer(torch.zeros(2, 3), torch.zeros(2, 3)), "student's features have shape"),
        (lambda: losses.attention_transfer(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)), "teacher's features have"),
        (lambda: losses.feature_mse(torch.zeros(2, 3), torch.zeros(2, 4)), "or `hint`"),
        (lambda: losses.feature_mse(torch.zeros(2, 3), torch.zeros(3, 3)), "of the same images"),
        (lambda: losses.feature_mse(torch.zeros(2, 3), torch.zeros(2, 3), valid=torch.ones(2)), "valid must be bool"),
        (lambda: losses.inherit_explore(torch.zeros(2, 3), torch.zeros(2, 3)), "twice the teacher's channels"),
        (lambda: losses.make_regressor((4, 2, 2), (4,)), "add a pooling to the student's, as LAYER:mean"),
        (lambda: FEATURE_LOSSES.make("inherit-explore").regressor((3,), (4,)), "even number"),  # type: ignore[attr-defined]
        (lambda: Objective(terms=(Term(weight=1, loss="attention"),)), "compares features; name the `output`"),
        (lambda: FEATURE_LOSSES.make("channel-map:max"), "mean"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(call: Any, wanted: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=wanted):
        call()
