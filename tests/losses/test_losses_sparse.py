"""Sparse targets: as the dense path in value and gradient, without a (batch, classes) tensor of the teacher's."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softlabels import losses
from softlabels.core.types import SparseLogits
from softlabels.errors import ConfigError

KINDS = [kind for kind in losses.LOSSES.names if hasattr(losses.LOSSES.make(kind), "sparse")]


def example(seed, rows=5, classes=12, kept=3, spread=4.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(rows, classes, generator=generator, dtype=dtype) * spread
    student = torch.randn(rows, classes, generator=generator, dtype=dtype) * spread
    top = teacher.topk(kept, dim=-1)
    tail = teacher.mean(-1) - 1
    return student, SparseLogits(top.indices, top.values, tail, classes)


def both_paths(kind, student, target, **given):
    loss, results = losses.LOSSES.make(kind), []
    for sparse in (True, False):
        each = student.clone().requires_grad_()
        value = loss.sparse(each, target, **given) if sparse else loss(each, target.dense(), **given)
        value.backward()
        results.append((value.detach(), each.grad))
    return results


def test_the_divergences_have_a_sparse_path():
    assert set(KINDS) == {"kl", "ce", "js", "jeffreys"}
    for kind in losses.LOSSES.names:
        assert isinstance(losses.LOSSES.make(kind), losses.SparseLoss) == (kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kept=st.integers(1, 12),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    spread=st.sampled_from([0.1, 4.0, 40.0]),
)
def test_value_and_gradient_are_those_of_the_dense_path(kind, seed, kept, temperature, spread):
    student, target = example(seed, kept=kept, spread=spread)
    valid = torch.tensor([True, True, False, True, True])
    for given_valid in (None, valid):
        (value, gradient), (expected, slope) = both_paths(
            kind, student, target, temperature=temperature, valid=given_valid
        )
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [12, 1000])
def test_in_fp32_they_agree_to_float_tolerance_on_extreme_logits_too(kind, classes):
    for spread in (3.0, 80.0):
        student, target = example(1, rows=8, classes=classes, kept=10, spread=spread, dtype=torch.float32)
        target.logits[0] = torch.linspace(80, -80, 10)
        student[1] = 0
        (value, gradient), (expected, slope) = both_paths(kind, student.clamp(-80, 80), target, temperature=2.0)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_students_and_small_integer_ids_are_welcome(kind):
    student, target = example(2, dtype=torch.float32)
    small = replace(target, ids=target.ids.to(torch.int16), logits=target.logits.half().float())
    (value, _), (expected, _) = both_paths(kind, student.half(), small, temperature=2.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "ce", "js"])
def test_a_tail_of_minus_infinity_gives_the_other_classes_nothing(kind):
    student, target = example(3)
    none_left = replace(target, tail=torch.full_like(target.tail, -torch.inf))
    (value, gradient), (expected, slope) = both_paths(kind, student, none_left)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_do_not_count_may_hold_anything_and_none_makes_zero(kind):
    student, target = example(4)
    valid = torch.tensor([True, False, True, True, False])
    target.logits[~valid], target.tail[~valid], student[~valid] = torch.nan, torch.nan, torch.nan
    loss = losses.LOSSES.make(kind)
    student.requires_grad_()
    value = loss.sparse(student, target, valid=valid)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all() and not student.grad[~valid].any()
    nothing = loss.sparse(student, target, valid=torch.zeros_like(valid))
    assert nothing.item() == 0 and nothing.requires_grad


class Watch(TorchDispatchMode):
    """Finds tensors of at least `size` numbers made without the student: of the teacher alone, or of nothing."""

    def __init__(self, student, size):
        super().__init__()
        self.of_student, self.size, self.found, self.held = {id(student)}, size, [], [student]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        of_student = any(id(leaf) in self.of_student for leaf in tree_leaves((args, kwargs)))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.held.append(leaf)  # An id is only good for as long as its tensor lives.
                if of_student:
                    self.of_student.add(id(leaf))
                elif leaf.numel() >= self.size:
                    self.found.append(str(func))
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_of_the_teacher_has_the_size_batch_times_classes(kind):
    student, target = example(5, rows=4, classes=100, kept=10)
    loss = losses.LOSSES.make(kind)
    valid = torch.tensor([True, True, False, True])
    with Watch(student, 400) as sparse:
        loss.sparse(student, target, temperature=2.0, valid=valid)
    assert not sparse.found
    with Watch(student, 400) as dense:
        loss(student, target.dense(), temperature=2.0, valid=valid)
    assert dense.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_large_batches_are_computed_in_pieces_to_the_same_value_and_gradient(kind, dtype, monkeypatch):
    student, target = example(8, rows=7, classes=40, kept=5, dtype=torch.float32)
    valid = torch.tensor([True, True, False, True, False, True, True])
    loss, results = losses.LOSSES.make(kind), []
    for at_once in (7 * 40, 3 * 40, 1):
        monkeypatch.setattr(losses._rows, "_AT_ONCE", {"cpu": at_once})
        each = student.to(dtype).requires_grad_()
        value = loss.sparse(each, target, temperature=2.0, valid=valid)
        (3 * value).backward()
        results.append((value.detach(), each.grad))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


@pytest.mark.parametrize("kind", KINDS)
def test_of_large_batches_little_more_than_the_gradient_is_held(kind):
    rows, classes = 256, 20000
    student, target = example(9, rows=rows, classes=classes, kept=10, dtype=torch.float32)
    student.requires_grad_()
    loss = losses.LOSSES.make(kind)
    with Held() as held:
        loss.sparse(student, target, temperature=2.0).backward()
    assert held.most < 1.5 * 4 * rows * classes
    dense = target.dense()
    student.grad = None
    with Held() as whole:
        loss(student, dense, temperature=2.0).backward()
    assert held.most < 0.5 * whole.most


class Held:
    """The most bytes that torch held at any moment of the block beyond what it held before."""

    def __enter__(self):
        self._record = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._record.__enter__()
        return self

    def __exit__(self, *problem):
        self._record.__exit__(*problem)
        events = self._record.profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        self.most = max(itertools.accumulate(change for _, change in changes))


def test_teacher_free_builds_no_target_either():
    student = torch.randn(4, 100)
    with Watch(student, 400) as watch:
        losses.teacher_free(student, labels=torch.tensor([0, 1, -1, 99]), temperature=20.0)
    assert not watch.found


def test_shapes_that_do_not_belong_together_are_refused_in_words():
    student, target = example(6)
    fewer = SparseLogits(target.ids[:4], target.logits[:4], target.tail[:4], 12)
    with pytest.raises(ConfigError, match=r"student logits have shape \(5, 12\), teacher logits \(4, 12\)"):
        losses.kl_divergence(student, fewer)
    with pytest.raises(ConfigError, match=r"teacher logits \(5, 13\)"):
        losses.js_divergence(student, replace(target, classes=13))
    with pytest.raises(ConfigError, match=r"need ids and logits of shape \(n, K\) and a tail of shape \(n,\), got"):
        replace(target, logits=target.logits[:, :2])
    with pytest.raises(ConfigError, match="need ids and logits"):
        replace(target, tail=target.tail[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_takes_sparse_logits_in_place_of_dense_ones(kind):
    student, target = example(7)
    labels = torch.tensor([0, -1, 2, 3, 4])
    objective = losses.Objective(alpha=0.3, loss=kind, temperature=2.0)
    sparse, parts = objective(student, labels, target)
    dense, expected = objective(student, labels, target.dense())
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(parts, expected)
    assert torch.equal(losses.LOSSES.make(kind)(student, target), losses.LOSSES.make(kind).sparse(student, target))


@pytest.mark.parametrize("kind", ["dkd", "mse", "l1"])
def test_losses_without_a_sparse_path_refuse_sparse_logits(kind):
    student, target = example(7)
    with pytest.raises(ConfigError, match=f"{kind!r} has no exact sparse path"):
        losses.Objective(loss=kind)(student, torch.tensor([0, -1, 2, 3, 4]), target)


@pytest.mark.slow
def test_the_benchmark_prints_time_and_memory_of_every_sparse_path():
    root = Path(__file__).parents[2]
    command = [sys.executable, root / "benchmarks" / "losses.py", "--classes", "50", "--kept", "3"]
    done = subprocess.run(
        [*command, "--batch-size", "8", "--repeats", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    for kind in KINDS:
        assert f"\n{kind} " in done.stdout
