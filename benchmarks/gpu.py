"""What a GPU machine does with all of this, in one command and six minutes.

    python benchmarks/gpu.py [--out gpu-results] [--parts dump-resnet50,losses] [--seconds 360] [--tiny]

Needs no network, no data and no installation (docs/gpu.md lists the wheels). Each part is a process with a time limit
of its own, and each figure is in OUT/results.jsonl and OUT/results.md as soon as it is known: a part that takes too
long or breaks costs its own rest alone.

    images            a raw pack of generated photographs; how fast views are rendered and copied to the device
    dump-NETWORK        the teacher in bf16, compiled, over batches on the device, against dumps in three codecs
    tests               the tests marked `cuda`
    train               mobilenet_v3_large from stored labels of resnext101_32x8d, and with it in the loop
    losses              dense and sparse losses of 4,096 rows, with 1,000 and 21,841 classes
    small               epochs of ResNet-20 on 32x32 images in memory, hard and stored labels

A dump is compared with the smallest of three bounds: views rendered with no teacher, images copied to the device and
nothing else, and the compiled teacher over images that are on the device. All weights are random: they cost what
others do. `--tiny` does all of it with tiny networks, on a CPU too; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

# ruff: noqa: E402
import numpy as np
import pyarrow as pa
import torch
import torchvision
from online_vs_offline import largest
from torch import Tensor

import softlabels
from softlabels.codecs import CODECS, Codec, SparseCodec, spelled
from softlabels.core.progress import Terminal
from softlabels.datasets import Images, MemoryImages, Packing, create_pack, subset
from softlabels.dumping import dump as dumping
from softlabels.dumping import pack as packing
from softlabels.dumping.dump import StoredOutput
from softlabels.dumping.run import card
from softlabels.dumping.stores import make_store
from softlabels.loading.batches import Batch, LabelledViews, Threads, Workers, batches
from softlabels.loading.provenance import versions
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.losses import BLENDS, LOSSES, Objective, SparseLoss
from softlabels.models import devices, student_spec, teacher_spec
from softlabels.training.loop import train
from softlabels.training.settings import TrainSettings
from softlabels.training.state import Runtime, TrainState
from softlabels.training.targets import LiveTargets, NoTargets, Task, stored_targets
from softlabels.views import RECIPES, ImageSpec

HARD, SOFT = Objective(alpha=1.0), Objective(alpha=0.0)


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    photographs: int = 2048
    sides: tuple[int, ...] = (256, 341, 384)
    teachers: tuple[str, ...] = ("resnet50", "resnext101_32x8d", "vit_l_16")
    batch: int = 256
    seconds: float = 2.0
    student: str = "mobilenet_v3_large"
    training_batch: int = 128
    classes: tuple[int, ...] = (1000, 21841)
    loss_batch: int = 4096
    small_student: str = "resnet20_cifar"
    small_images: int = 50_000
    compiled: tuple[str, ...] = teachers


TINY = Scale(
    photographs=24,
    sides=(32, 40, 52),
    teachers=("cnn_tiny", "cnn_small", "resnet20_cifar"),
    batch=8,
    seconds=0.05,
    student="cnn_tiny",
    training_batch=8,
    classes=(40, 300),
    loss_batch=16,
    small_student="cnn_tiny",
    small_images=64,
    compiled=("cnn_tiny",),
)

SHARES = {"pictures": 30, "dump": 75, "tests": 50, "train": 50, "losses": 20, "small": 25}
"""Of the time for all, what each part may take, and what earlier ones left; the three dumps take one share each."""

COMPILING = 0.5
"""Of a part's time, what compiling may take; without it the dumps run uncompiled."""

SHARD = 256
"""Images per shard of the dumps: so few that the last one, for which nothing goes on beside, hardly counts."""


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Where and how large: what every part is given."""

    out: Path
    device: torch.device
    tiny: bool
    seconds: float = 60.0
    """What the part may take."""

    @property
    def scale(self) -> Scale:
        return TINY if self.tiny else Scale()

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    @property
    def pack(self) -> Path:
        return self.out / "work" / "pack"

    def note(self, part: str, what: str, value: str, ratio: float | None = None, remark: str = "", **raw: Any) -> None:
        """Append a figure; `raw` are its numbers."""
        record = {"part": part, "what": what, "value": value, "ratio": ratio, "remark": remark, **raw}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(line_of(record), flush=True)
        write_table(self)


def line_of(record: dict[str, Any]) -> str:
    """A record as a row of the table."""
    ratio = f"{record['ratio']:.3f}" if record["ratio"] is not None else ""
    return f"| {record['part']} | {record['what']} | {record['value']} | {ratio} | {record['remark']} |"


def records(setting: Setting) -> list[dict[str, Any]]:
    """All figures so far."""
    return [json.loads(line) for line in setting.results.read_text(encoding="utf-8").splitlines()]


def write_table(setting: Setting) -> str:
    """The table of all figures so far, which is also written to its file."""
    lines = ["| part | what | figure | ratio | remark |", "|---|---|---|---|---|", *map(line_of, records(setting))]
    text = "\n".join(lines) + "\n"
    (setting.out / "results.md").write_text(text, encoding="utf-8")
    return text


def rate(count: float, seconds: float) -> float:
    return count / max(seconds, 1e-9)


def timed(call: Callable[[], object], device: torch.device, seconds: float, least: int = 3) -> float:
    """Median seconds of a call, over so many seconds of calls after one that warms up; the device is waited for."""
    taken: list[float] = []
    call()
    devices.synchronize(device)
    while len(taken) < least or (sum(taken) < seconds and len(taken) < 1000):
        began = time.perf_counter()
        call()
        devices.synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def held(device: torch.device) -> float:
    """Bytes that torch held on the GPU at most since `forget`; 0 elsewhere."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def forget(device: torch.device) -> None:
    devices.release_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count else "-"


# --- images --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Photographs:
    """Smooth random images with some grain, of several sizes, made when they are asked for."""

    count: int
    sides: tuple[int, ...]
    classes: tuple[str, ...]
    name: str = "photographs"
    decoder: str = "memory"
    pixels: None = None
    spec: dict[str, Any] = field(default_factory=lambda: {"kind": "function", "function": "gpu:photographs"})

    def __len__(self) -> int:
        return self.count

    @property
    def keys(self) -> pa.ChunkedArray:
        return keys(self.count)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count) % len(self.classes)

    def content(self, row: int) -> bytes:
        return self.decode(row).numpy().tobytes()

    def decode(self, row: int) -> Tensor:
        chance = np.random.default_rng(row)
        shorter, *longer = self.sides
        shape = (shorter, longer[row // 2 % len(longer)])[:: 1 if row % 2 else -1]
        coarse = torch.from_numpy(chance.integers(0, 256, (1, 3, 9, 12), np.uint8)).float()
        smooth = torch.nn.functional.interpolate(coarse, shape, mode="bilinear")[0]
        grain = torch.from_numpy(chance.integers(-20, 21, shape, np.int8))
        return (smooth + grain).clamp_(0, 255).to(torch.uint8)


def keys(count: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([f"{number:06d}" for number in range(count)])])


def class_names(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def packed(setting: Setting) -> Images:
    """The pack's images."""
    return softlabels.open_images(f"pack:{setting.pack}")


def views_of(images: Images, views: int, size: int) -> ViewDataset:
    return ViewDataset(images, RECIPES.make("crop-flip"), 0, views, ImageSpec(size))


def part_pictures(setting: Setting) -> None:
    """The machine, the pack, and how fast views are rendered and copied."""
    scale, device = setting.scale, setting.device
    note = lambda *given, **more: setting.note("pictures", *given, **more)  # noqa: E731
    card_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
    note("machine", f"{card_name}, {gigabytes(memory)}; {os.cpu_count()} cores", remark=platform.platform())
    installed = f"torch {torch.__version__}, torchvision {torchvision.__version__}, CUDA {torch.version.cuda}"
    meant = "tiny: the figures mean nothing" if setting.tiny else "bf16"
    said = f"softlabels {softlabels.__version__}, {installed}, cuDNN {cudnn}"
    note("versions", said, remark=f"Python {platform.python_version()}, {meant}")
    names = class_names(10 if setting.tiny else 1000)
    photographs = Photographs(scale.photographs, scale.sides, names)
    began = time.perf_counter()
    shutil.rmtree(setting.pack, ignore_errors=True)
    setting.pack.mkdir(parents=True)
    target = create_pack(setting.pack, photographs, Packing(max_side=None, quality="raw"), 512, versions(photographs))
    report = packing.pack(photographs, target, threads=os.cpu_count() or 1, terminal=Terminal(quiet=True))
    seconds = time.perf_counter() - began
    note("raw pack made", f"{report.images:,} photographs, {gigabytes(report.bytes)}", seconds=seconds)
    size, batch = (32 if setting.tiny else 224), scale.batch
    shape = (batch, 3, size, size)
    ready = torch.randint(0, 256, shape, dtype=torch.uint8)
    if device.type == "cuda":
        ready = ready.pin_memory()
    taken = timed(lambda: ready.to(device, non_blocking=True).add_(0), device, min(scale.seconds, 1.0))
    found, speed = rate(batch, taken), f"{rate(ready.nbytes, taken) / 1e9:.1f} GB/s of uint8"
    note("transfer", f"{found:,.0f} images/s", remark=speed, rate=found)
    cores = os.cpu_count() or 1
    ways: dict[str, Workers] = {
        f"{cores} threads": Threads(cores),
        f"{min(cores, 16)} processes": min(cores, 16),
    }
    for name, workers in ways.items():
        for views in (1, 4):
            with recorded_errors(setting, "pictures", f"rendering, {name}, {views} views"):
                found = rendering_rate(setting, workers, views, size)
                note(f"rendering, {name}, {views} views of an image together", f"{found:,.0f} images/s", rate=found,
                     workers=workers.count if isinstance(workers, Threads) else -workers, views=views)  # fmt: skip


def rendering_rate(setting: Setting, workers: Workers, views: int, size: int) -> float:
    """Images per second of decoding and rendering alone."""
    scale, images = setting.scale, packed(setting)
    pictures = views_of(images, views, size)
    numbers = np.arange(len(pictures))
    parts = [numbers[start : start + scale.batch] for start in range(0, len(numbers), scale.batch)]
    source = batches(LabelledViews(pictures), itertools.cycle(parts), workers=workers)
    for _ in range(2 if setting.tiny else 4):
        next(source)
    began, seen = time.perf_counter(), 0
    while time.perf_counter() - began < 0.6 * scale.seconds or not seen:
        seen += len(next(source))
    devices.synchronize(setting.device)
    found = rate(seen, time.perf_counter() - began)
    source.close()  # type: ignore[attr-defined]
    return found


# --- dump ------------------------------------------------------------------------------------------------------------


@dataclass
class Clocked:
    """A teacher that notes when it is called, and whose compiled self is made once."""

    teacher: Any
    compiled: Any
    starts: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def compile(self, names: Any = None) -> Clocked:  # noqa: ARG002
        """The compiled one, with the same clock."""
        return Clocked(self.compiled, self.compiled, self.starts)

    def outputs(self, pictures: Tensor, names: Any) -> dict[str, Tensor]:
        """The teacher's outputs."""
        self.starts.append(time.perf_counter())
        return self.teacher.outputs(pictures, names)


def opened(setting: Setting, name: str) -> Any:
    """A teacher with random weights, in bf16, for 10 or 1,000 classes."""
    teacher: Any = teacher_spec(name, "random").open(setting.device, "bf16", 10 if setting.tiny else None)
    for module in teacher.network.modules():
        # torchvision's transformers begin with a head of zeros, whose logits are all equal.
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)
    return teacher


def part_dump(setting: Setting, name: str) -> None:
    """One teacher: alone on ready batches, and dumps of it in three codecs."""
    scale, device, part = setting.scale, setting.device, f"dump-{name}"
    teacher = opened(setting, name)
    size, batch = teacher.preprocessing.size, scale.batch
    ready = [torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device) for _ in range(4)]
    ready = [each.contiguous(memory_format=torch.channels_last) for each in ready]

    def over_ready(some: Any, seconds: float) -> float:
        def loop() -> None:
            for each in ready:
                some.logits(each)

        return rate(batch * len(ready), timed(loop, device, seconds, least=1))

    eager = over_ready(teacher, min(scale.seconds, 1.5))
    setting.note(part, "teacher alone, eager", f"{eager:,.0f} images/s", rate=eager)
    compiled, alone = None, eager
    if name in scale.compiled:
        with recorded_errors(setting, part, "compiling"), limited(COMPILING * setting.seconds):
            began = time.perf_counter()
            compiling = teacher.compile()
            compiling.logits(ready[0])
            devices.synchronize(device)
            seconds = time.perf_counter() - began
            compiled, alone = compiling, over_ready(compiling, scale.seconds)
            remark = f"ratio to eager; compiled in {seconds:.0f} s"
            setting.note(part, "teacher alone, compiled", f"{alone:,.0f} images/s", alone / eager, remark, rate=alone)
    ready.clear()
    bounds = {"compute": alone, **input_bounds(setting)}
    workers = best_workers(setting)
    tightest = min(bounds, key=lambda each: bounds[each])
    remark = ", ".join(f"{what} {value:,.0f}" for what, value in bounds.items())
    setting.note(part, "smallest bound", f"{bounds[tightest]:,.0f} images/s", None, f"{tightest}; {remark}", **bounds)
    total = max(int(alone * scale.seconds * 2.0), 4 * batch)
    for codec in map(CODECS.make, ("dense", "topk:10" if not setting.tiny else "topk:2", "quantized")):
        with recorded_errors(setting, part, f"dump, {spelled(codec)}"):
            whole, steady = dumped(setting, Clocked(teacher, compiled), codec, total, workers)
            against = bounds[tightest]
            remark = f"held by {tightest}; {whole:,.0f} with its beginning and end, {whole / against:.3f}"
            said, ratio = f"{steady:,.0f} images/s", steady / against
            setting.note(part, f"dump, {spelled(codec)}", said, ratio, remark, whole=whole, steady=steady)
    if device.type == "cuda":
        with recorded_errors(setting, part, "batch size"):
            passes = dumping.teacher_passes(teacher, "auto", most=512, say=lambda _: None)
            setting.note(part, "--batch-size auto", f"{passes.size}", None, f"{batch} is measured here")


def input_bounds(setting: Setting) -> dict[str, float]:
    """Images per second of rendering, by the best way, and of transfer, as the first part found them."""
    known = [each for each in records(setting) if each["part"] == "pictures" and "rate" in each]
    rendered = [each["rate"] for each in known if "workers" in each and each["views"] == 4]
    transfer = [each["rate"] for each in known if each["what"] == "transfer"]
    return {
        **({"rendering": max(rendered)} if rendered else {}),
        **({"transfer": transfer[0]} if transfer and setting.device.type == "cuda" else {}),
    }


def best_workers(setting: Setting) -> Workers:
    """Threads or processes, whichever rendered faster."""
    known = [each for each in records(setting) if "workers" in each]
    best = max(known, key=lambda each: each["rate"], default={"workers": os.cpu_count() or 1})["workers"]
    return Threads(best) if best > 0 else -best


def dumped(setting: Setting, clocked: Clocked, codec: Codec, total: int, workers: Workers) -> tuple[float, float]:
    """Images per second of a new store of about `total` labels: of all its time, and while the teacher was busy.

    The latter from a call at which the queues before and after the teacher are full to the last one.
    """
    images, batch = packed(setting), setting.scale.batch
    views = max(4, min(16, 4 * round(total / len(images) / 4)))
    count = max(SHARD, total // views // SHARD * SHARD)
    images = subset(images, np.arange(min(len(images), count)))
    store, labels, pictures = new_store(setting, images, clocked, codec, views)
    clocked.starts.clear()
    began = time.perf_counter()
    dumping.dump(
        pictures,
        clocked,
        [StoredOutput(codec, labels)],
        batch_size=batch,
        compile=clocked.compiled is not None,
        workers=workers,
        terminal=Terminal(quiet=True),
    )
    seconds, starts = time.perf_counter() - began, clocked.starts
    shutil.rmtree(store)
    first = min(10, len(starts) // 2)
    steady = rate(batch * (len(starts) - 1 - first), starts[-1] - starts[first])
    return rate(len(pictures), seconds), steady


def new_store(
    setting: Setting, images: Images, teacher: Any, codec: Codec, views: int, recipe_name: str = "crop-flip"
) -> tuple[Path, Any, ViewDataset]:
    """An empty store of this teacher's labels: its folder, what is to be filled, and the images."""
    recipe, root = RECIPES.make(recipe_name), setting.out / "work" / f"store-{os.getpid()}-{time.monotonic_ns()}"
    seen = teacher.preprocessing.model_dump(mode="json")
    store, arranged = make_store(root, images, recipe, seed=0, classes=teacher.classes, rows_per_shard=SHARD)
    labels = store.prepare(
        teacher.name,
        card(
            spec=teacher.spec, weights_sha256=teacher.weights_sha256, licence=None, preprocessing=seen, codec=codec,
            classes=teacher.classes, format="hdf5", images=arranged, recipe=recipe,
        ),
    )  # fmt: skip
    return root, labels, ViewDataset.of_store(store, arranged, views, image_spec(teacher.preprocessing))


# --- tests -----------------------------------------------------------------------------------------------------------


def part_tests(setting: Setting) -> None:
    """The tests marked `cuda`, those that compile last; without a GPU pytest skips them all, and says so, once."""
    runs = (("tests marked cuda", "not compiled"), ("tests of compiled networks", "compiled"))
    for what, chosen in runs if setting.device.type == "cuda" else runs[:1]:
        options = ("-v", "-m", "cuda", "-k", chosen, "-p", "no:cacheprovider", "tests/cuda")
        log = setting.out / f"tests-{chosen.replace(' ', '-')}.log"
        with log.open("w", encoding="utf-8") as file:
            subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, stdout=file, stderr=file, check=False)
        said = log.read_text(encoding="utf-8").strip().splitlines() or ["pytest said nothing"]
        failed = [line.split(" - ")[0] for line in said if line.startswith(("FAILED", "ERROR"))]
        setting.note("tests", what, said[-1].strip("= "), None, "; ".join(failed[:8]) or f"see {log.name}")


# --- train -----------------------------------------------------------------------------------------------------------


VIEWS = 4
"""Views of each photograph that a student sees."""


def part_train(setting: Setting) -> None:
    """A student from stored labels, and with the teacher in the loop."""
    scale, device = setting.scale, setting.device
    name = scale.teachers[1]
    images, teacher = packed(setting), opened(setting, name)
    workers = best_workers(setting)
    codec = CODECS.make("topk:2" if setting.tiny else "topk:10")
    root, labels, pictures = new_store(setting, images, teacher, codec, VIEWS)
    quiet = Terminal(quiet=True)
    dumping.dump(
        pictures, teacher, [StoredOutput(codec, labels)], batch_size=scale.batch, workers=workers, terminal=quiet
    )
    kept, loop = f"stored labels, {spelled(codec)}", f"{name} in the loop"
    arms: dict[str, Callable[[], Task]] = {
        "hard labels": lambda: Task(LabelledViews(shown(setting, images)), NoTargets(), HARD),
        kept: lambda: stored(images, root, shown(setting, images)),
        loop: lambda: in_the_loop(setting, images, teacher),
    }
    rates: dict[str, float] = {}
    for arm, task in arms.items():
        with recorded_errors(setting, "train", arm):
            forget(device)
            rates[arm] = trained(setting, task(), workers)
            most = held(device)
            remark, ratio = f"ratio to hard labels; {gigabytes(most)}", rates[arm] / rates["hard labels"]
            said = f"{rates[arm]:,.0f} images/s"
            setting.note("train", f"{scale.student}, {arm}", said, ratio, remark, rate=rates[arm], memory=most)
    if kept in rates and loop in rates:
        gain = rates[kept] / rates[loop]
        setting.note("train", "stored labels against the teacher in the loop", f"{gain:.2f}x", gain)
    for arm in (kept, loop):
        with recorded_errors(setting, "train", f"largest batch, {arm}"):
            limit = torch.cuda.mem_get_info(device)[0] * 0.98 if device.type == "cuda" else 24.0
            found, most = largest(lambda size, arm=arm: step_memory(setting, arms[arm](), size), limit)
            setting.note("train", f"largest batch, {arm}", f"{found:,}", None, f"{gigabytes(most)} held", batch=found)


def shown(setting: Setting, images: Images) -> ViewDataset:
    return views_of(images, VIEWS, 32 if setting.tiny else 224)


def stored(images: Images, root: Path, pictures: ViewDataset) -> Task:
    """Learning from the labels in a store."""
    labels = softlabels.open_labels(root)
    rows = labels.rows(images.keys)
    targets = stored_targets(labels, rows, labels.teachers, {}, BLENDS.make("mean-probabilities"), SOFT)
    return Task(LabelledViews(pictures, labels, rows, labels.teachers), targets, SOFT)


def in_the_loop(setting: Setting, images: Images, teacher: Any) -> Task:
    """Learning from a teacher beside the student."""
    pictures = shown(setting, images)
    targets = LiveTargets([teacher], [pictures], pictures.image_spec, BLENDS.make("mean-probabilities"), 1.0)
    return Task(LabelledViews(pictures), targets, SOFT)


def runtime(setting: Setting, workers: Workers = 0) -> Runtime:
    return Runtime(setting.device, torch.bfloat16, workers, channels_last=True)


def trained(
    setting: Setting,
    task: Task,
    workers: Workers,
    *,
    student: str = "",
    batch: int = 0,
    views: int = VIEWS,
    epochs: int = 5,
) -> float:
    """Median images per second of a new student's epochs but the first, in which the worker processes start."""
    spec = student_spec(student or setting.scale.student, size=task.samples.pictures.image_spec.size)
    folder = setting.out / "work" / f"run-{os.getpid()}-{time.monotonic_ns()}"
    classes = len(task.samples.pictures.images.classes)
    size = batch or setting.scale.training_batch
    settings = TrainSettings(epochs=epochs, batch_size=size, views_per_image=views, warmup_epochs=0)
    train(
        spec.build(classes, seed=0),
        spec.preprocessing,
        task,
        settings,
        folder=folder,
        runtime=runtime(setting, workers),
        terminal=Terminal(quiet=True),
    )
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line)["pictures_per_second"] for line in lines]
    shutil.rmtree(folder, ignore_errors=True)
    return statistics.median(rates[1:] or rates)


def step_memory(setting: Setting, task: Task, size: int) -> float:
    """Bytes that two steps with such a batch hold at most, infinite when they fail; on a CPU its images."""
    scale, device = setting.scale, setting.device
    forget(device)
    try:
        side = task.samples.pictures.image_spec.size
        spec = student_spec(scale.student, size=side)
        images = task.samples.pictures.images
        network = spec.build(len(images.classes), seed=0)
        state = TrainState(network, spec.preprocessing, TrainSettings(), 100, 0, runtime(setting))
        rows = torch.arange(size) % len(images)
        pictures = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, device=device)
        batch = task.samples.labelled(Batch(pictures, rows, torch.zeros_like(rows), rows % len(images.classes)))
        for step in range(2):  # the second has the optimizer's state beside it
            state.begin(step)
            state.backward(task.supervision(batch, device, 0.0).loss(state.forward(batch))[0])
            state.step()
        devices.synchronize(device)
    except RuntimeError as problem:
        if device.type != "cuda" or (not devices.is_out_of_memory(problem) and size < 512):
            raise
        return float("inf")  # libraries refuse tensors of more than 2**31 values in many words
    finally:
        network = state = batch = pictures = None  # type: ignore[assignment]
    return held(device) if device.type == "cuda" else float(size)


# --- losses ----------------------------------------------------------------------------------------------------------


def part_losses(setting: Setting) -> None:
    """Dense and sparse losses with their gradients, of the same top-10 labels."""
    device, batch = setting.device, setting.scale.loss_batch
    send = functools.partial(devices.sent, device=device)
    for classes in setting.scale.classes:
        chance = torch.Generator(device=device).manual_seed(0)
        student = torch.randn(batch, classes, device=device, generator=chance)
        codec = CODECS.make("topk:10")
        if not isinstance(codec, SparseCodec):
            raise TypeError("top-K labels name K classes")
        arrays = codec.encode(torch.randn(batch, classes, device=device, generator=chance))
        for kind in ("kl", "js"):
            loss = LOSSES.make(kind)
            if not isinstance(loss, SparseLoss):
                raise TypeError(f"{kind} has no sparse path")
            sparse = codec.sparse(arrays, classes, temperature=2.0).map(send)
            dense = devices.sent(codec.decode(arrays, classes, temperature=2.0), device)
            ways: dict[str, Callable[[Tensor], Tensor]] = {
                "dense": lambda said, loss=loss, dense=dense: loss(said, dense, temperature=2.0),
                "sparse": lambda said, loss=loss, sparse=sparse: loss.sparse(said, sparse, temperature=2.0),
                "dense, decoded": lambda said, loss=loss, codec=codec, arrays=arrays, classes=classes: loss(
                    said, devices.sent(codec.decode(arrays, classes, temperature=2.0), device), temperature=2.0
                ),
                "sparse, decoded": lambda said, loss=loss, codec=codec, arrays=arrays, classes=classes: loss.sparse(
                    said, codec.sparse(arrays, classes, temperature=2.0).map(send), temperature=2.0
                ),
            }
            first: dict[str, tuple[float, float]] = {}
            for way, value in ways.items():
                with recorded_errors(setting, "losses", f"{kind}, {way}, {classes:,} classes"):
                    step = functools.partial(backward, value, student)
                    forget(device)
                    before = held(device)
                    seconds = timed(step, device, min(setting.scale.seconds, 0.5))
                    memory = held(device) - before
                    first[way] = (seconds, memory)
                    base = first.get(way.replace("sparse", "dense"), first[way])
                    setting.note("losses", f"{kind}, {way}, {classes:,} classes", f"{1e3 * seconds:.2f} ms",
                                 seconds / base[0], f"ratio to dense; {gigabytes(memory)} beside the logits",
                                 seconds=seconds, memory=memory)  # fmt: skip


def backward(value: Callable[[Tensor], Tensor], student: Tensor) -> None:
    """A loss of the student's logits, and its gradient."""
    value(student.detach().requires_grad_()).backward()


# --- small images ----------------------------------------------------------------------------------------------------


def part_small(setting: Setting) -> None:
    """Epochs from memory with hard and with stored labels."""
    scale, count = setting.scale, setting.scale.small_images
    chance = np.random.default_rng(0)
    images = MemoryImages(
        "small",
        {"kind": "function", "function": "gpu:small"},
        keys(count),
        chance.integers(0, 10, count),
        class_names(10),
        torch.from_numpy(chance.integers(0, 256, (count, 3, 32, 32), np.uint8)),
    )
    teacher = teacher_spec(scale.small_student, "random").open(device=setting.device, classes=10)
    codec, quiet = CODECS.make("dense"), Terminal(quiet=True)
    root, labels, pictures = new_store(setting, images, teacher, codec, 2, "pad-flip")
    began = time.perf_counter()
    dumping.dump(pictures, teacher, [StoredOutput(codec, labels)], batch_size=512, workers=0, terminal=quiet)
    found = rate(len(pictures), time.perf_counter() - began)
    setting.note("small", f"dump, {scale.small_student}, dense", f"{found:,.0f} images/s", rate=found)
    hard, kept = Task(LabelledViews(pictures), NoTargets(), HARD), stored(images, root, pictures)
    epochs = functools.partial(trained, setting, workers=0, student=scale.small_student, batch=128, views=1, epochs=2)
    rates = {arm: epochs(task) for arm, task in (("hard labels", hard), ("stored labels", kept))}
    for arm, each in rates.items():
        setting.note("small", f"{scale.small_student}, {arm}", f"{each:,.0f} images/s", each / rates["hard labels"],
                     f"ratio to hard labels; an epoch of {count:,} takes {count / each:.1f} s", rate=each)  # fmt: skip


# --- all of it -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def recorded_errors(setting: Setting, part: str, what: str) -> Iterator[None]:
    """An error within costs this figure alone, and stands in its place."""
    try:
        yield
    except Exception as problem:
        with (setting.out / f"{part}.log").open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        setting.note(part, what, "failed", None, re.sub(r"[|\s]+", " ", f"{type(problem).__name__}: {problem}")[:200])


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """TimeoutError in the main thread after so many seconds, and again each second where a library swallows it."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def parts_of(scale: Scale) -> dict[str, Callable[[Setting], None]]:
    """The parts by name, in their order."""
    dumps = {f"dump-{name}": (lambda setting, name=name: part_dump(setting, name)) for name in scale.teachers}
    return {
        "pictures": part_pictures,
        **dumps,
        "tests": part_tests,
        "train": part_train,
        "losses": part_losses,
        "small": part_small,
    }


def run_part(out: Path, device: str, tiny: bool, part: str, seconds: float) -> None:
    """One part, in a process and a process group of its own."""
    os.setsid()
    setting = Setting(out, devices.find_device(device), tiny, seconds)
    with recorded_errors(setting, part, "whole part"):
        parts_of(setting.scale)[part](setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results; made anew")
    parser.add_argument("--parts", help="only these, comma-separated; images is always the first")
    parser.add_argument("--seconds", type=float, default=360.0, help="for all parts together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    scale = TINY if options.tiny else Scale()
    known = parts_of(scale)
    chosen = list(dict.fromkeys(["pictures", *options.parts.split(",")])) if options.parts else list(known)
    if unknown := [each for each in chosen if each not in known]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(known)}")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    setting = Setting(options.out.resolve(), torch.device("cpu"), options.tiny)
    setting.results.touch()
    # Shared by the parts, of which two run the same teacher.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(setting.out / "work" / "inductor"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    if options.tiny:
        # Networks so small are slower with more threads, and processes that compile take longer to start than to work.
        torch.set_num_threads(1)
        import_module("torch._inductor.config").compile_threads = 1
    ends = time.monotonic() + options.seconds
    shares = [SHARES[each.partition("-")[0]] for each in chosen]
    for number, part in enumerate(chosen):
        # What earlier parts left is shared by all that follow.
        limit = (ends - time.monotonic()) * shares[number] / sum(shares[number:])
        run_within(setting, options.device, part, limit)
    shutil.rmtree(setting.out / "work", ignore_errors=True)
    print("\n" + write_table(setting))


def run_within(setting: Setting, device: str, part: str, limit: float) -> None:
    """A part with a limit of seconds; the parent has imported all and asked no GPU, so that a fork can."""
    began = time.monotonic()
    process = multiprocessing.get_context("fork").Process(
        target=run_part, args=(setting.out, device, setting.tiny, part, limit), daemon=False
    )
    process.start()
    process.join(max(limit, 1.0))
    ended = process.exitcode
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with the workers and compilers it started
    process.join()
    if ended is None:
        setting.note(part, "whole part", "not finished", None, f"stopped after its {limit:.0f} s")
    elif ended != 0:
        setting.note(part, "whole part", "failed", None, f"its process ended with {ended}")
    else:
        print(f"  {part}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
