"""Time and memory of sparse targets against dense ones.

    python benchmarks/losses.py [--batch-size 256] [--repeats 15] [--classes 1000 21841] [--kept 10 100]

What a training step does with a batch of stored top-K labels: they are decoded, the loss of a student's logits is
taken, and its gradient. The dense way decodes to (batch, classes), the sparse way to K classes and one number for all
others. "ms" is the median over the repeats of processor time of one thread, both ways taking turns. "MB" is the most
memory that the step held beyond its inputs (the student's logits and the stored labels) at any moment, from torch's
own record of every allocation and release; "of logits" is that over the size of the student's logits. The gradient,
one of these sizes, is part of both ways, and so is the student's own softmax where the loss has one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from softlabels.codecs import CODECS, SparseCodec
from softlabels.losses import LOSSES, SparseLoss

TEMPERATURE = 2.0
KINDS = [kind for kind in LOSSES.names if isinstance(LOSSES.make(kind), SparseLoss)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 21841])
    parser.add_argument("--kept", type=int, nargs="+", default=[10, 100])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for classes in options.classes:
        for kept in options.kept:
            compare(classes, kept, options.batch_size, options.repeats)


def compare(classes: int, kept: int, batch: int, repeats: int) -> None:
    """Print a table of every loss that has a sparse path."""
    size = 4e-6 * batch * classes
    print(f"\n{classes:,} classes, topk:{kept}, batch {batch}: the student's logits take {size:.1f} MB")
    print("loss       dense ms sparse ms  ratio    dense MB sparse MB  ratio   of logits: dense sparse")
    dense_way, sparse_way = ways(classes, kept, batch)
    for kind in KINDS:
        steps = [dense_way(kind), sparse_way(kind)]
        taken: list[list[float]] = [[], []]
        for repeat in range(repeats + 2):
            for step, seconds in zip(steps, taken, strict=True):
                began = time.process_time()
                step()
                if repeat > 1:  # the first rounds warm up
                    seconds.append(time.process_time() - began)
        dense, sparse = (1e3 * statistics.median(seconds) for seconds in taken)
        most, least = (1e-6 * peak(step) for step in steps)
        time_ratio = f"{dense:9.2f} {sparse:9.2f} {sparse / dense:6.2f}"
        memory_ratio = f"{most:9.1f} {least:9.1f} {least / most:6.2f}"
        print(f"{kind:9} {time_ratio}   {memory_ratio}   {most / size:17.1f} {least / size:6.1f}")


def ways(classes: int, kept: int, batch: int) -> tuple[Callable[[str], Callable[[], None]], ...]:
    """What makes a step of a loss the dense way, and the sparse way, of the same labels."""
    dice = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=dice)
    codec = CODECS.make({"kind": "topk", "k": kept})
    if not isinstance(codec, SparseCodec):
        raise TypeError("top-K labels name K classes")
    arrays = codec.encode(teacher)

    def step(value: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: value(student.detach().requires_grad_()).backward()

    def dense(kind: str) -> Callable[[], None]:
        loss = LOSSES.make(kind)
        return step(
            lambda said: loss(said, codec.decode(arrays, classes, temperature=TEMPERATURE), temperature=TEMPERATURE)
        )

    def sparse(kind: str) -> Callable[[], None]:
        loss = LOSSES.make(kind)
        if not isinstance(loss, SparseLoss):
            raise TypeError(f"{kind} has no sparse path")

        def value(said: Tensor) -> Tensor:
            return loss.sparse(said, codec.sparse(arrays, classes, temperature=TEMPERATURE), temperature=TEMPERATURE)

        return step(value)

    return dense, sparse


def peak(step: Callable[[], None]) -> int:
    """The most bytes that torch held for a step at any moment beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = record.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        most = max(most, held)
    return most


if __name__ == "__main__":
    main()
