"""Does it matter of which view a soft label is? The same student, images, views and steps with four kinds of label.

    python pipelines/which_view.py [--data digits] [--size 8] [--recipe crop] [--seeds 5] [--out runs/which-view]

Every arm sees the same random views in the same order. What it learns from is the teacher's label of this very view, of
another view of the same image, of the clean image, or the hard label. `--data FOLDER --size 32 --recipe crop-flip` is
the study on a folder of small photographs. Teacher and labels are kept in the run's folder and not made twice.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import softlabels

Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rows, views and hard labels (n,) of a batch to target probabilities (n, classes)."""


def student(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 12, 1), (12, 16, 2), (16, 32, 2)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    with torch.inference_mode():
        return float((network(images).argmax(1) == labels).double().mean())


def train(dataset: softlabels.SoftLabelDataset, target: Target, options: argparse.Namespace, seed: int) -> nn.Module:
    """A student that has learnt from `target` at the temperature of the study."""
    torch.manual_seed(seed)
    network, temperature = student(dataset.labels.classes), options.temperature
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.05)
    steps = options.epochs * -(-len(dataset) // dataset.views // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps, pct_start=0.1)
    for epoch in range(options.epochs):
        numbers = torch.tensor(list(softlabels.OneViewEach(dataset, epoch=epoch, seed=seed)))
        for batch in numbers.split(64):
            images, hard, _ = zip(*dataset.__getitems__(batch.tolist()), strict=True)
            rows, views = batch // dataset.views, batch % dataset.views
            probabilities = target(rows, views, torch.tensor(hard))
            logits = network(torch.stack(images).float() / 255 - 0.5) / temperature
            loss = temperature**2 * nn.functional.cross_entropy(logits, probabilities)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def main(options: argparse.Namespace) -> None:
    data, size, out = options.data, options.size, Path(options.out)
    common = {"data": data, "data_dir": options.data_dir, "quiet": True}
    softlabels.train(
        student=options.teacher, size=size, recipe=options.recipe, epochs=options.teacher_epochs, batch_size=64,
        lr=0.005, warmup_epochs=1, eval_every=options.teacher_epochs, out=out / "teacher", **common,
    )  # fmt: skip
    teacher = f"file:{out / 'teacher'}"
    softlabels.dump(teacher=teacher, recipe=options.recipe, views=options.views, out=out / "labels", **common)
    softlabels.dump(teacher=teacher, recipe="clean", views=1, out=out / "clean", **common)

    labels, clean = softlabels.open_labels(out / "labels"), softlabels.open_labels(out / "clean")
    images = softlabels.open_images(data, data_dir=options.data_dir)
    dataset = softlabels.SoftLabelDataset(labels, images, size=size)
    rows_of = torch.from_numpy(labels.rows(images.keys))
    temperature = options.temperature
    arms: dict[str, Target] = {
        "this view": lambda rows, views, _: labels.probabilities(rows_of[rows], views, temperature=temperature),
        "another view": lambda rows, views, _: labels.probabilities(
            rows_of[rows], (views + 1) % labels.views, temperature=temperature
        ),
        "clean image": lambda rows, _, __: clean.probabilities(rows_of[rows], 0, temperature=temperature),
        "hard label": lambda _, __, hard: nn.functional.one_hot(hard, labels.classes).float(),
    }
    tested = softlabels.open_images(data, data_dir=options.data_dir, split="test")
    truth = torch.from_numpy(tested.labels)
    seen = torch.stack([tested.decode(row) for row in range(len(tested))]).float() / 255 - 0.5
    print(f"{'label of':14} {'accuracy %':>12}   over {options.seeds} seeds, mean and standard error")
    for arm, target in arms.items():
        scores = [100 * accuracy(train(dataset, target, options, seed), seen, truth) for seed in range(options.seeds)]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
        print(f"{arm:14} {statistics.mean(scores):12.1f} +- {error:.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--recipe", default="crop")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=3.0)
    parser.add_argument("--teacher", default="cnn_small")
    parser.add_argument("--teacher-epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="runs/which-view")
    main(parser.parse_args())
