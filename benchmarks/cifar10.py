"""CIFAR-10 whole on a GPU: ResNet-20 students of a ResNet-20, by five ways of learning, in so many seconds.

    python benchmarks/cifar10.py --data FOLDER [--out cifar10-results] [--seconds 480] [--seeds 3] [--at-once 6]

FOLDER is in any of the layouts of `cifar10`. All goes through the command line: students learn
from hard labels and one of them is the teacher, it labels 16 views of every image, and students learn from those labels
(KL, MSE) and with the teacher in the loop (KL, MSE). Runs of one phase go on side by side. A first trial of two epochs
says how many epochs fit into the time; all runs take as many. Accuracies are of the last epoch. Published by
Knowledge-Distillation-Zoo (github.com/AberHu/Knowledge-Distillation-Zoo, 200 epochs, ResNet-20 from ResNet-20, best
epoch): none 92.37, MSE of logits 93.30, KL (soft targets) 93.12.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

# ruff: noqa: E402
from softlabels import open_images

PUBLISHED = {"hard labels": 92.37, "MSE, in the loop": 93.30, "KL, in the loop": 93.12}
"""Of Knowledge-Distillation-Zoo, where it has the row."""


def write_binary(source: Path, folder: Path, limit: int | None) -> None:
    """The data set in its binary version, which a process reads in no time."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in (("train", [f"data_batch_{part}" for part in range(1, 6)]), ("test", ["test_batch"])):
        images = open_images("cifar10", data_dir=str(source), split=split)
        rows = np.random.default_rng(0).permutation(len(images))[:limit]
        records = [
            np.concatenate([[images.labels[row]], images.decode(int(row)).numpy().reshape(-1)]).astype(np.uint8)
            for row in rows
        ]
        for name, part in zip(names, np.array_split(np.stack(records), len(names)), strict=True):
            (folder / f"{name}.bin").write_bytes(part.tobytes())


def softlabels(*arguments: object, log: Path) -> None:
    """A command, which must end well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", "softlabels", *map(str, arguments)],
            env={"OMP_NUM_THREADS": "2", **os.environ, "PYTHONPATH": paths},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}\n{log.read_text(encoding='utf-8')[-3000:]}")


def epochs_of(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def row(name: str, scores: list[float], paired: list[float]) -> str:
    def error(values: list[float]) -> float:
        return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")

    differences = [one - other for one, other in zip(scores, paired, strict=True)]
    published = f"{PUBLISHED[name]:.2f}" if name in PUBLISHED else ""
    difference = "" if scores == paired else f"{statistics.mean(differences):+.2f} +- {error(differences):.2f}"
    return f"| {name} | {statistics.mean(scores):.2f} +- {error(scores):.2f} | {difference} | {published} |"


def main(options: argparse.Namespace) -> None:
    began, out = time.monotonic(), options.out
    network = "cnn_tiny" if options.tiny else "resnet20_cifar"
    threads = 1 if options.tiny else max(1, (os.cpu_count() or 1) // options.at_once)
    common = ["--device", options.device, "--workers", f"threads:{threads}"]
    common += [] if options.tiny else ["--amp", "bf16", "--channels-last"]
    began_writing = time.monotonic()
    write_binary(options.data, out / "data", 40 if options.tiny else None)
    print(f"written as the binary version: {time.monotonic() - began_writing:.0f} s", flush=True)
    data = ("--data", "cifar10", "--data-dir", out / "data")
    with ThreadPoolExecutor(options.at_once) as pool:

        def train(name: str, seed: int, epochs: int, *more: object) -> None:
            softlabels(
                "train", "--student", network, *data, "--seed", seed,
                "--epochs", epochs, "--eval-every", epochs, "--batch-size", 512, "--optimizer", "nesterov", "--lr", 0.4,
                "--weight-decay", 5e-4, "--warmup-epochs", min(2, epochs / 5), *common, *more,
                "--out", out / name.replace(" ", "-") / f"seed-{seed}", log=out / f"{name}-{seed}.log",
            )  # fmt: skip

        list(pool.map(lambda seed: train("trial", seed, 2, "--recipe", "pad-flip"), range(options.at_once)))
        trials = [epochs_of(out / "trial" / f"seed-{seed}") for seed in range(options.at_once)]
        per_epoch = max(each[1]["seconds"] - each[0]["seconds"] for each in trials)
        waves = -(-4 * options.seeds // options.at_once) + -(-(options.seeds + 1) // options.at_once)
        left = options.seconds - (time.monotonic() - began)
        epochs = options.epochs or max(3, int((left - 12 * waves - 12) / waves / per_epoch * 0.9))
        print(f"trial: {time.monotonic() - began:.0f} s; an epoch takes {per_epoch:.2f} s: {epochs} epochs", flush=True)

        seeds = range(options.seeds)
        list(pool.map(lambda seed: train("hard labels", seed, epochs, "--recipe", "pad-flip"), [*seeds, 100]))
        teacher = out / "hard-labels" / "seed-100"
        print(f"hard labels: {time.monotonic() - began:.0f} s", flush=True)
        softlabels(
            "dump", "--teacher", f"file:{teacher}", *data, "--recipe", "pad-flip",
            "--views", 16, "--codec", "dense", "--batch-size", 512, "--device", options.device,
            "--out", out / "shards", log=out / "dump.log",
        )  # fmt: skip
        print(f"dump: {time.monotonic() - began:.0f} s", flush=True)
        stored = ("--labels", out / "shards")
        loop = ("--teacher", f"file:{teacher}", "--recipe", "pad-flip")
        soft = {
            "KL, 16 stored views": (*stored, "--temperature", 4),
            "KL, in the loop": (*loop, "--temperature", 4),
            "MSE, 16 stored views": (*stored, "--loss", "mse reduction=mean", "--alpha", 0.5),
            "MSE, in the loop": (*loop, "--loss", "mse reduction=mean", "--alpha", 0.5),
        }
        list(pool.map(lambda job: train(job[0], job[1], epochs, *soft[job[0]]), [(a, s) for s in seeds for a in soft]))
    table = ["| learns from | top-1 % | against hard labels | published |", "|---|---|---|---|"]
    scores = {}
    for name in ("hard labels", *soft):
        runs = [out / name.replace(" ", "-") / f"seed-{seed}" for seed in seeds]
        scores[name] = [100 * json.loads((run / "result.json").read_text())["last"]["top1"] for run in runs]
        table.append(row(name, scores[name], scores["hard labels"]))
    taught = 100 * json.loads((teacher / "result.json").read_text())["last"]["top1"]
    seconds = {name: epochs_of(out / name.replace(" ", "-") / "seed-0")[-1]["seconds"] / epochs for name in scores}
    table += ["", f"teacher {taught:.2f} %; {epochs} epochs; {options.seeds} seeds; seconds per epoch beside others: "
              + ", ".join(f"{name} {each:.2f}" for name, each in seconds.items())]  # fmt: skip
    text = "\n".join(table)
    print(text, f"\nall: {time.monotonic() - began:.0f} s", flush=True)
    options.summary.write_text(text + "\n" + json.dumps(scores) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data set; without it nothing is done")
    parser.add_argument("--out", type=Path, default=Path("cifar10-results"))
    parser.add_argument("--summary", type=Path, default=Path("cifar10.md"))
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=6, help="runs side by side")
    parser.add_argument("--epochs", type=int, help="of each run  [default: as many as fit into the time]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="400 images and a tiny network, to try it on a CPU")
    given = parser.parse_args()
    if given.data is None:
        print("no data set is named: give --data FOLDER")
    else:
        main(given)
