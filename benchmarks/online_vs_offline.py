"""Training from stored labels against the same training with the teacher in the loop, and against hard labels.

    python benchmarks/online_vs_offline.py [--device cpu] [--images 256] [--size 64] [--repeats 4]

The same student, images, order and steps each time, through `softlabels train`'s own code. S and T are a student's
step and a teacher's forward pass, timed apart from all else on a ready batch; (S + T) / S is the most that stored
labels can gain. "of the limit" is the measured gain over it; rendering and the checkpoint at an epoch's end, which
both sides pay, lower it. All take turns, and the best of several counts. On a CPU all is compared by processor time of
one thread, so that other work on the machine does not count; on a GPU by the clock. All weights are random: they cost
what others do.

The largest batch that fits is searched by making steps: on a GPU by what torch has allocated at most, by default within
all of its memory; on a CPU each step in a process of its own, by the most memory that the whole process had, libraries
and all (`--memory`, by default 1.5 GB). It is exact to a sixteenth.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import softlabels
from softlabels.core.progress import Terminal
from softlabels.core.types import LOGITS
from softlabels.datasets import MemoryImages
from softlabels.loading.batches import Batch, LabelledViews
from softlabels.loading.views import ViewDataset
from softlabels.losses import BLENDS, Objective, hard_cross_entropy
from softlabels.models import student_spec, teacher_spec
from softlabels.training.loop import train
from softlabels.training.settings import TrainSettings
from softlabels.training.state import Runtime, TrainState
from softlabels.training.targets import LiveTargets, NoTargets, Task, stored_targets
from softlabels.views import RECIPES, ImageSpec

CLASSES = 1000
STUDENT = "mobilenet_v3_small"
TEACHERS = {"light": "resnet18", "heavy": "resnet101"}
HARD, SOFT = Objective(alpha=1.0), Objective(alpha=0.0)
COUNT = "SOFTLABELS_BENCHMARK_IMAGES"


def pictures() -> MemoryImages:
    """Random images in memory, as a data set of `module:function`."""
    count = int(os.environ.get(COUNT, "256"))
    rng = np.random.default_rng(0)
    return MemoryImages(
        "random",
        {"kind": "function", "function": "online_vs_offline:pictures"},
        pa.chunked_array([pa.array([f"{number:05d}" for number in range(count)])]),
        rng.integers(0, CLASSES, count),
        tuple(str(number) for number in range(CLASSES)),
        torch.from_numpy(rng.integers(0, 256, (count, 3, 96, 96), np.uint8)),
        "memory",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--memory", type=float, help="bytes that a batch has to fit in, 0 to leave the search out")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ[COUNT] = str(options.images)
    sys.path.insert(0, str(Path(__file__).parent))
    if options.device == "cpu":
        torch.set_num_threads(1)
    if options.peak_of:
        print(peak_here(options.peak_of, options.store, options))
        return
    with tempfile.TemporaryDirectory() as root:
        measure(options, Path(root))


def measure(options: argparse.Namespace, root: Path) -> None:
    specs = {
        name: {"kind": "torchvision", "architecture": net, "weights": "random", "size": options.size}
        for name, net in TEACHERS.items()
    }
    lessons = {"hard": taught(options, None)}
    for name, teacher, codec in (
        ("light dense", "light", "dense"),
        ("light topk:10", "light", "topk:10"),
        ("light topk:10 fast", "light", {"kind": "topk", "k": 10, "record": "fast"}),
        ("light transform:40", "light", "transform:40"),
        ("heavy dense", "heavy", "dense"),
    ):
        softlabels.dump(
            teacher=[specs[teacher]],
            data="online_vs_offline:pictures",
            views=1,
            codec=codec,
            out=str(root / name),
            device=options.device,
            quiet=True,
        )
        lessons[name] = taught(options, softlabels.open_labels(root / name))
    for name, spec in specs.items():
        lessons[f"{name} in the loop"] = watched(options, spec)
    taken: dict[str, list[Cost]] = {name: [] for name in lessons}
    alone: dict[str, Callable[[], float]] = {"student": student_step(options)}
    alone |= {name: teacher_pass(spec, options) for name, spec in specs.items()}
    steps: dict[str, list[float]] = {name: [] for name in alone}
    for repeat in range(options.repeats + 1):
        for name, time_it in alone.items():
            steps[name].append(time_it())
        for name, task in lessons.items():
            cost = epoch(task, options, root / "runs" / f"{name}-{repeat}")
            if repeat:  # the first round warms up
                taken[name].append(cost)
    apart = {name: target_cost(task, options) for name, task in lessons.items() if "loop" not in name}
    say(options, taken, apart, {name: min(seconds[1:]) for name, seconds in steps.items()})
    if options.memory != 0:
        say_largest(options, root / "light dense")


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, seconds that are compared (of processor time on a CPU), and bytes of GPU memory."""

    clock: float
    compared: float
    memory: int = 0


def taught(options: argparse.Namespace, labels: softlabels.Labels | None) -> Task:
    """Learning from stored labels, or from hard ones."""
    images = pictures()
    seen = ImageSpec(options.size)
    if labels is None:
        return Task(LabelledViews(ViewDataset(images, RECIPES.make("crop-flip"), 0, 1, seen)), NoTargets(), HARD)
    rows = labels.rows(images.keys)
    shown = ViewDataset(images, labels.recipe, labels.seed, labels.views, seen)
    targets = stored_targets(labels, rows, labels.teachers, {}, BLENDS.make("mean-probabilities"), SOFT)
    return Task(LabelledViews(shown, labels, rows, labels.teachers), targets, SOFT)


def watched(options: argparse.Namespace, spec: dict[str, Any]) -> Task:
    """Learning from a teacher in the loop."""
    shown = ViewDataset(pictures(), RECIPES.make("crop-flip"), 0, 1, ImageSpec(options.size))
    teacher = teacher_spec(spec).open(device=options.device)
    targets = LiveTargets([teacher], [shown], shown.image_spec, BLENDS.make("mean-probabilities"), 1.0)
    return Task(LabelledViews(shown), targets, SOFT)


def epoch(task: Task, options: argparse.Namespace, folder: Path) -> Cost:
    """One epoch of a new student, as `softlabels train` makes it."""
    gpu = options.device != "cpu"
    spec = student_spec({"kind": "torchvision", "architecture": STUDENT, "size": options.size})
    network = spec.build(CLASSES, seed=0)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.process_time()
    report = train(
        network,
        spec.preprocessing,
        task,
        TrainSettings(epochs=1, batch_size=options.batch_size),
        folder=folder,
        runtime=Runtime(torch.device(options.device)),
        terminal=Terminal(quiet=True),
    )
    compared = report.seconds if gpu else time.process_time() - began
    return Cost(report.seconds, compared, torch.cuda.max_memory_allocated() if gpu else 0)


def say(
    options: argparse.Namespace, taken: dict[str, list[Cost]], apart: dict[str, float], alone: dict[str, float]
) -> None:
    best = {name: min(cost.compared for cost in costs) for name, costs in taken.items()}

    print(
        f"student {STUDENT}, {options.images} images of {options.size} px, batch {options.batch_size}, {CLASSES} "
        f"classes, {options.device}, {torch.get_num_threads()} thread; best of {options.repeats}"
    )
    step = alone.pop("student")
    print(f"student step S = {1e3 * step:.1f} ms")
    print("learns from            images/s   GPU memory")
    for name, costs in taken.items():
        memory = max(cost.memory for cost in costs)
        rate = options.images / best[name]
        print(f"{name:22} {rate:8.1f}   {f'{memory / 1e6:,.0f} MB' if memory else '-'}")
    print("teacher                 T   limit (S+T)/S   gain   of the limit")
    for name, forward in alone.items():
        limit, gain = (step + forward) / step, best[f"{name} in the loop"] / best[f"{name} dense"]
        teacher = f"{name} {TEACHERS[name]}"
        print(f"{teacher:16} {1e3 * forward:6.1f} ms {limit:12.2f} {gain:8.2f} {gain / limit:13.2f}")
    print(
        "an epoch of soft labels against one of hard labels (target <= 1.02): as measured, and from the cost of target"
    )
    print("and loss timed apart from the rest, which the noise of the epochs does not reach")
    for name in taken:
        if name.startswith("light") and "loop" not in name:
            hard_step = best["hard"] * options.batch_size / options.images
            added = apart[name] - apart["hard"]
            measured = best[name] / best["hard"]
            print(f"{name:22} {measured:.3f}   {1 + added / hard_step:.3f} ({1e3 * added:+.2f} ms a step)")


def say_largest(options: argparse.Namespace, store: Path) -> None:
    """Print the largest batch of each way of learning that fits the memory."""
    gpu = options.device != "cpu"
    limit = options.memory or (torch.cuda.mem_get_info(options.device)[1] if gpu else 1.5e9)
    print(f"largest batch that fits {limit / 1e9:.1f} GB of {'GPU memory' if gpu else 'a process'}")
    for arm in (STORED, *TEACHERS):
        batch, held = largest(lambda size, arm=arm: peak(arm, store, options, size), limit)
        learnt = arm if arm == STORED else f"{arm} in the loop"
        print(f"{learnt:22} {batch:8,}   {f'{held / 1e6:,.0f} MB held' if batch else 'none fits'}")


STORED = "stored labels"


def largest(held_by: Callable[[int], float], limit: float) -> tuple[int, float]:
    """The largest batch that holds at most `limit` bytes, to a sixteenth, and what it holds; 0 when none of 8 fits."""
    found: dict[int, float] = {}
    size = 8
    while True:
        found[size] = held_by(size)
        fits = max((each for each, held in found.items() if held <= limit), default=0)
        fails = min((each for each, held in found.items() if held > limit), default=0)
        near = max(1, fits // 16)
        if not fits or (fails and fails - fits <= near):
            return fits, found.get(fits, 0.0)
        # Memory grows in a line with the batch, or nearly: few steps have to be made.
        size = min(max(straight(found, limit), fits + near), 8 * fits)
        if fails and size >= fails:
            size = (fits + fails) // 2


def straight(found: dict[int, float], limit: float) -> int:
    """Where a line through the two largest batches that were made reaches the limit."""
    made = [(size, held) for size, held in sorted(found.items()) if held < float("inf")][-2:]
    if len(made) < 2 or made[1][1] <= made[0][1]:
        return 8 * made[-1][0]
    (less, low), (more, high) = made
    return int(more + (limit - high) * (more - less) / (high - low))


def peak(arm: str, store: Path, options: argparse.Namespace, size: int) -> float:
    """Bytes held at most by two steps with such a batch; infinite when the device has no more."""
    if options.device != "cpu":
        try:
            return peak_here(arm, str(store), argparse.Namespace(**{**vars(options), "batch_size": size}))
        except torch.OutOfMemoryError:
            return float("inf")
        finally:
            torch.cuda.empty_cache()
    command = [sys.executable, __file__, "--peak-of", arm, "--store", str(store), "--batch-size", str(size)]
    command += ["--images", str(options.images), "--size", str(options.size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_here(arm: str, store: str, options: argparse.Namespace) -> float:
    """Bytes that this process, or the GPU, held at most when a student has made two steps."""
    gpu = options.device != "cpu"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    taught_by = {"kind": "torchvision", "architecture": TEACHERS.get(arm), "weights": "random", "size": options.size}
    task = taught(options, softlabels.open_labels(store)) if arm == STORED else watched(options, taught_by)
    spec = student_spec({"kind": "torchvision", "architecture": STUDENT, "size": options.size})
    runtime = Runtime(torch.device(options.device))
    state = TrainState(spec.build(CLASSES, seed=0), spec.preprocessing, TrainSettings(), 100, 0, runtime)
    shown = task.samples
    # Images are made piece by piece elsewhere and count on neither side; labels are read as in training.
    pictures = ready(options)
    batch = shown.labelled(replace(pictures, views=torch.zeros_like(pictures.rows)))
    for step in range(2):  # the second has the optimizer's state beside it
        state.begin(step)
        state.backward(task.supervision(batch, runtime.device, 0.0).loss(state.forward(batch))[0])
        state.step()
    return torch.cuda.max_memory_allocated() if gpu else 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def target_cost(task: Task, options: argparse.Namespace) -> float:
    """Seconds to read a batch's labels, to decode them, and of the loss with its gradient."""
    shown, size = task.samples, options.batch_size
    numbers = np.arange(size)
    rows, views = np.divmod(numbers, shown.pictures.views)
    batch = replace(ready(options), rows=torch.from_numpy(rows), views=torch.from_numpy(views))
    logits = torch.randn(size, CLASSES, device=options.device, requires_grad=True)

    def step() -> None:
        if shown.labels is not None and shown.label_rows is not None:
            taken = shown.labels.take(shown.label_rows[rows], views, shown.teachers)
            batch.arrays = {name: {k: torch.from_numpy(a) for k, a in each.items()} for name, each in taken.items()}
        task.supervision(batch, torch.device(options.device), 0.0).loss({LOGITS: logits})[0].backward()

    return timed(step, options, 200)


def student_step(options: argparse.Namespace) -> Callable[[], float]:
    """What times an optimizer step on a ready batch of hard labels."""
    spec = student_spec({"kind": "torchvision", "architecture": STUDENT, "size": options.size})
    runtime = Runtime(torch.device(options.device))
    state = TrainState(spec.build(CLASSES, seed=0), spec.preprocessing, TrainSettings(), 100, 0, runtime)
    batch = ready(options)

    def step() -> None:
        state.begin(0)
        state.backward(hard_cross_entropy(state.forward(batch)[LOGITS], batch.targets.to(options.device)))
        state.step()

    return lambda: timed(step, options)


def teacher_pass(spec: dict[str, Any], options: argparse.Namespace) -> Callable[[], float]:
    """What times a forward pass on a ready batch."""
    teacher = teacher_spec(spec).open(device=options.device)
    shown = ready(options).pictures
    return lambda: timed(lambda: teacher.logits(shown), options)


def ready(options: argparse.Namespace) -> Batch:
    rows = torch.arange(options.batch_size) % options.images
    shape = (options.batch_size, 3, options.size, options.size)
    return Batch(torch.randint(0, 256, shape, dtype=torch.uint8), rows, rows, rows % CLASSES)


def timed(call: Callable[[], Any], options: argparse.Namespace, count: int = 4) -> float:
    gpu, seconds = options.device != "cpu", []
    clock = time.perf_counter if gpu else time.process_time
    for _ in range(count + 1):
        if gpu:
            torch.cuda.synchronize()
        began = clock()
        call()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
