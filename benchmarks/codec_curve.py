"""Bytes of labels as files on disk against what they keep: KL and the direction of the gradient, for every codec.

    python benchmarks/codec_curve.py --labels STORE [--weight FILE.npy] [--views 16,50] [--out curve.svg]
    python benchmarks/codec_curve.py

STORE has a teacher's logits as they are, of many views of an image (`softlabels dump --codec dense:fp32 --views 50`),
and FILE.npy the weight (classes, features) of its last layer, which `transform` then takes its directions from. Without
a store the logits are synthetic.

For each number of views and each codec a store is written, of the first so many views. Printed are

    disk     bytes of the shards' files for each label
    arrays   the same without what an HDF5 file holds beside its arrays and their checksums, which counts where images
             are few
    card     kB of the teacher's card, once per store, in which `transform` keeps its basis
    KL       KL(dense || stored) in nats, at temperatures 1, 2, 4 and 20; inf where a class is left with nothing
    new      cosine between the gradients, at the logits of a student, of the stored and the dense label: of a new
             student, to which all classes are equal
    good     the same of a student that gives the teacher's logits on another view of the image

all of them means over `--labels-read` labels, at most. A codec is fitted as a dump does it, on up to 256 images and 16
views, and measured on labels that may be among these.

Three rows are what others store, made with codecs that keep the same: FKD's marginal smoothing of 5 classes (Shen and
Xing 2022), TinyViT's 10 probabilities (Wu et al. 2022; to its files a seed of 4 bytes is added, which a store of ours
derives), and LPQLD's K logits with nothing for other classes (Xiao and He 2026). The first two are of temperature 1
alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

import softlabels
from softlabels.codecs import CODECS, Codec, ShardCodec, spelled
from softlabels.datasets import MemoryImages

TEMPERATURES = (1.0, 2.0, 4.0, 20.0)
FITTED_VIEWS, FITTED_IMAGES = 16, 256
SEED_BYTES = 4
NAME = "teacher"

FAMILIES: dict[str, list[str]] = {
    "dense": ["dense:fp32", "dense:fp16"],
    "quantized": ["quantized:8", "quantized:4"],
    "head_tail": ["head_tail:10", "head_tail:30"],
    "topk": ["topk:5", "topk:10", "topk:20", "topk:50", "topk:100"],
    "transform": [f"transform:{size}" for size in (20, 25, 30, 40, 60, 100, 200)],
    "sampled": ["sampled:30"],
    "FKD": ["probabilities:5"],
    "TinyViT": ["probabilities:10"],
    "LPQLD": ["top_logits:10", "top_logits:50", "top_logits:100"],
}
"""Codecs by what is drawn as one line."""

COLOURS = {
    "dense": "#9aa0a6",
    "quantized": "#e5c07b",
    "head_tail": "#7aa874",
    "topk": "#d08770",
    "transform": "#2f6db3",
    "sampled": "#b48ead",
    "FKD": "#1a1a1a",
    "TinyViT": "#1a1a1a",
    "LPQLD": "#1a1a1a",
}
LEAST_GRADIENT = 1e-6
"""The direction of a shorter gradient is rounding."""
LEAST_DRAWN = 1e-6
"""What is less is drawn as this."""
MARKS = {"FKD": "s", "TinyViT": "^", "LPQLD": "x"}


@dataclass(frozen=True)
class Row:
    """One line of the table; numbers that a codec does not have are NaN."""

    family: str
    name: str
    views: int
    disk: float
    arrays: float
    card: float
    kl: list[float]
    new: list[float]
    good: list[float]

    def __str__(self) -> str:
        numbers = [number(each, "8.5f") for each in self.kl]
        numbers += (
            ["|"] + [number(each, "6.4f") for each in self.new] + ["|"] + [number(each, "6.4f") for each in self.good]
        )
        return f"{self.name:<24} {self.disk:8.1f} {self.arrays:8.1f} {self.card:7.0f}  {' '.join(numbers)}"


def number(value: float, form: str) -> str:
    """The value, or a dash where there is none, as wide as the form is."""
    return f"{'-':>{form.partition('.')[0]}}" if np.isnan(value) else f"{value:{form}}"


def header() -> str:
    """The names of the columns."""
    names = [f"{f'KL {each:g}':>8}" for each in TEMPERATURES]
    for student in ("new", "good"):
        names += ["|"] + [f"{f'{student[0]}. {each:g}':>6}" for each in TEMPERATURES]
    return f"{'codec':<24} {'disk':>8} {'arrays':>8} {'card kB':>7}  {' '.join(names)}"


@dataclass(frozen=True)
class Logits:
    """A teacher's logits, float32 (views, images, classes), and the keys of the images."""

    name: str
    values: Tensor
    keys: list[str]


def stored_logits(location: str, teacher: str | None, views: int) -> Logits:
    """The first views of all images of a store.

    Raises:
        ConfigError: it holds fewer, or logits that were rounded.
    """
    store = softlabels.open_labels(location)
    name, codec = store.of(teacher).name, store.codec(teacher)
    if spelled(codec) != "dense:fp32":
        raise softlabels.ConfigError(
            f"{location} holds {spelled(codec)} labels of {name}, and the logits as they are are wanted; dump with "
            f"`--codec dense:fp32`"
        )
    if store.complete_views([name]) < views:
        raise softlabels.ConfigError(
            f"{location} holds {store.complete_views([name])} views, not {views}; give fewer with --views"
        )
    rows = np.arange(len(store))
    rows = rows[store.labelled(rows, [name])]
    values = torch.stack([store.logits(rows, view, name) for view in range(views)])
    keys = store.keys.take(pa.array(rows)).to_pylist()
    return Logits(f"{name} in {location}", values, keys)


def synthetic_logits(views: int, images: int = 200, classes: int = 1000) -> tuple[Logits, NDArray[np.float32]]:
    """Class vectors times features that vary from view to view, and the class vectors (classes, features)."""
    chance = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    features = 256
    vectors = 0.8 * normal(classes // 20 + 1, features)[torch.arange(classes) // 20] + 0.6 * normal(classes, features)
    vectors *= torch.logspace(0.5, -1, features)
    true = torch.randint(classes, (images,), generator=chance)
    seen = torch.rand(views, images, 1, generator=chance) * vectors[true] + 0.5 * normal(images, features)
    values = 0.9 / features**0.5 * (seen + 0.4 * normal(views, images, features)) @ vectors.T
    keys = [f"{image:04d}" for image in range(images)]
    return Logits("synthetic logits", values, keys), vectors.numpy()


def written(codec: Codec, logits: Logits, folder: Path) -> softlabels.Labels:
    """A store of these logits, opened. The images themselves do not matter to it: they are black."""
    views, total, classes = logits.values.shape
    images = MemoryImages(
        "black images",
        {"kind": "black"},
        pa.chunked_array([pa.array(logits.keys, pa.string())]),
        np.full(total, -1, np.int64),
        tuple(str(number) for number in range(classes)),
        torch.zeros(total, 3, 1, 1, dtype=torch.uint8).expand(-1, -1, 8, 8),
    )
    with softlabels.create_labels(folder, images=images, recipe="pad", views=views, classes=classes) as store:
        here = np.argsort(store.store.find(images.keys))
        for batch in store.missing(NAME, size=8, codec=codec, batch_size=2048, on_odd_logits="warn"):
            store.put(logits.values[batch.views, here[batch.rows]])
    return softlabels.open_labels(folder)


def sizes(folder: Path) -> tuple[int, int, int]:
    """Bytes of a teacher's shards, of the arrays in them, and of its card."""
    disk = arrays = 0
    for path in sorted((folder / NAME).glob("*.h5")):
        disk += path.stat().st_size
        with h5py.File(path) as file:
            arrays += sum(each.id.get_storage_size() for each in file.values() if isinstance(each, h5py.Dataset))
    return disk, arrays, (folder / NAME / "teacher.json").stat().st_size


def read(labels: softlabels.Labels, rows: NDArray[np.int64], views: NDArray[np.int64], temperature: float) -> Tensor:
    """Log-probabilities of these labels at a temperature, float64 (n, classes)."""
    logits = labels.decode(labels.take(rows, views, [NAME]), temperature)[0]
    return (logits.double() / temperature).log_softmax(-1)


def compared(dense: Tensor, stored: Tensor, student: Tensor | None) -> tuple[float, float]:
    """KL(dense || stored), and the cosine between the gradients at the logits of a student, which is None for unknown.

    Labels from which the student has nothing to learn, as where two views are one, are left out of the cosine.

    Args:
        dense: log-probabilities, float64 (n, classes).
        stored: the same of the stored labels.
        student: probabilities, float64 (n, classes) or (1, classes).
    """
    p, q = dense.exp(), stored.exp()
    lost = torch.where(p > 0, p * (dense - stored), 0.0).sum(-1)
    # A class of which nothing is stored has a logarithm that only stands for minus infinity.
    lost = torch.where(((q == 0) & (p > 0)).any(-1), torch.inf, lost)
    cosine = float("nan")
    if student is not None:
        wanted = student - p
        there = wanted.norm(dim=-1) > LEAST_GRADIENT
        found = torch.nn.functional.cosine_similarity(student - q, wanted, dim=-1, eps=1e-30)
        cosine = found[there].mean().item()
    return lost.mean().item(), cosine


def fitted(codec: Codec, logits: Logits, weight: Tensor | None) -> Codec:
    """The codec with what it needs of the teacher. Raises ConfigError where it cannot have it."""
    if not isinstance(codec, ShardCodec):
        return codec
    views, images, _ = logits.values.shape
    some = torch.linspace(0, images - 1, min(images, FITTED_IMAGES)).round().long()
    return codec.fit_to(logits.values[:FITTED_VIEWS, some], views=views, weight=weight)


def measured(family: str, text: str, logits: Logits, weight: Tensor | None, folder: Path, most: int) -> Row:
    """A codec's line. Raises ConfigError where it is not for these labels."""
    views, images, classes = logits.values.shape
    codec = fitted(CODECS.make(text), logits, weight)
    labels = written(codec, logits, folder)
    disk, arrays, card = sizes(folder)
    total = views * images
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))
    image, view = chosen % images, chosen // images
    rows = labels.rows([logits.keys[each] for each in image])
    kl, new, good = [], [], []
    for temperature in TEMPERATURES:
        low, high = codec.temperatures
        if not low <= temperature <= high:
            kl, new, good = ([*each, float("nan")] for each in (kl, new, good))
            continue
        dense = (logits.values[view, image].double() / temperature).log_softmax(-1)
        stored = read(labels, rows, view, temperature)
        lost, cosine = compared(dense, stored, torch.full((1, classes), 1 / classes, dtype=torch.float64))
        other = None
        if views > 1:
            other = (logits.values[(view + 1) % views, image].double() / temperature).softmax(-1)
        kl, new, good = [*kl, lost], [*new, cosine], [*good, compared(dense, stored, other)[1]]
    beside = SEED_BYTES if family == "TinyViT" else 0
    name = text if family == text.partition(":")[0] else f"{family} ({text})"
    return Row(family, name, views, disk / total + beside, arrays / total + beside, card / 1000, kl, new, good)


def table(logits: Logits, weight: Tensor | None, families: Sequence[str], most: int) -> list[Row]:
    """Print the lines of one number of views."""
    views, images, classes = logits.values.shape
    print(f"\n{logits.name}: {images:,} images in {views} views, {classes:,} classes; n. new student, g. good student")
    print(header(), flush=True)
    rows = []
    for family in families:
        for text in FAMILIES[family]:
            folder = Path(tempfile.mkdtemp(prefix="codec-curve-"))
            try:
                rows.append(measured(family, text, logits, weight, folder / "store", most))
                print(rows[-1], flush=True)
            except softlabels.ConfigError as problem:
                print(f"{text:<24} left out: {problem}", flush=True)
            finally:
                shutil.rmtree(folder)
    return rows


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bytes against KL, and against what is lost of the cosine, a column for each temperature."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    views = sorted({row.views for row in rows})
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "codec_curve", "font.family": "sans-serif"}):
        figure = Figure(figsize=(3.2 * len(TEMPERATURES) + 1, 7), layout="constrained")
        places: Any = figure.subplots(2, len(TEMPERATURES), sharex=True, sharey="row")
        for column, temperature in enumerate(TEMPERATURES):
            for axes, kind in zip(places[:, column], ("kl", "good"), strict=True):
                for family in FAMILIES:
                    # Only `transform` has other bytes when an image has more views.
                    for shown in views if family == "transform" else views[-1:]:
                        mine = [row for row in rows if row.family == family and row.views == shown]
                        values = [getattr(row, kind)[column] for row in mine]
                        points = [
                            (row.arrays, value if kind == "kl" else 1 - value)
                            for row, value in zip(mine, values, strict=True)
                        ]
                        points = sorted((x, max(y, LEAST_DRAWN)) for x, y in points if np.isfinite(y))
                        if not points:
                            continue
                        axes.plot(
                            *zip(*points, strict=True),
                            marker=MARKS.get(family, "o"),
                            markersize=5,
                            linewidth=1.5,
                            linestyle="-" if shown == views[-1] and family not in MARKS else ":",
                            color=COLOURS[family],
                            alpha=1.0 if shown == views[-1] else 0.6,
                            label=f"{family}, {shown} views" if family == "transform" else family,
                        )
                axes.set(xscale="log", yscale="log")
                axes.minorticks_off()
                axes.grid(color="#ddd")
                axes.set_axisbelow(True)
                axes.spines[["top", "right"]].set_visible(False)
            places[0, column].set_title(f"T = {temperature:g}", fontsize="medium")
            places[1, column].set_xlabel("bytes of a label")
        places[0, 0].set_ylabel("KL(dense || stored), nats")
        places[1, 0].set_ylabel("1 - cosine of a good student's gradients")
        lines = {line.get_label(): line for axes in places.flat for line in axes.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6, frameon=False)
        kind = path.suffix.removeprefix(".") or "svg"
        figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more is wanted, not {text!r}")
    return int(text)


def counts(text: str) -> list[int]:
    return sorted({count(part) for part in text.split(",")})


def names(text: str) -> list[str]:
    for each in text.split(","):
        if each not in FAMILIES:
            raise argparse.ArgumentTypeError(f"no codec {each!r}; there are {', '.join(FAMILIES)}")
    return text.split(",")


def run(options: argparse.Namespace) -> None:
    if options.out and importlib.util.find_spec("matplotlib") is None:
        raise softlabels.ConfigError("--out draws a figure, which needs matplotlib: pip install 'softlabels[plots]'")
    most = max(options.views)
    if options.labels is None:
        logits, vectors = synthetic_logits(most)
        weight: Tensor | None = torch.from_numpy(vectors)
    else:
        logits, weight = stored_logits(options.labels, options.teacher, most), None
        if options.weight is not None:
            weight = torch.from_numpy(np.load(options.weight, allow_pickle=False)).float()
            if weight.ndim != 2 or len(weight) != logits.values.shape[2]:
                raise softlabels.ConfigError(
                    f"{options.weight} has the shape {tuple(weight.shape)}; the weight of the last layer is "
                    f"({logits.values.shape[2]}, features)"
                )
    rows = []
    for views in options.views:
        some = Logits(logits.name, logits.values[:views], logits.keys)
        rows += table(some, weight, options.codecs, options.labels_read)
    if options.out:
        draw(rows, options.out)
        print(f"\nwrote {options.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", help="a store of logits as they are: dense:fp32")
    parser.add_argument("--teacher", help="of the store, where it has several")
    parser.add_argument("--weight", type=Path, help="of the teacher's last layer, .npy of shape (classes, features)")
    parser.add_argument("--views", type=counts, default=[16], help="of each image, as 16,50; a table for each")
    parser.add_argument("--codecs", type=names, default=list(FAMILIES), help="some of them, as topk,transform")
    parser.add_argument("--labels-read", type=count, default=1000, help="labels on which KL and cosines are measured")
    parser.add_argument("--out", type=Path, help="a figure, as curve.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        run(options)
    except (softlabels.SoftlabelsError, OSError, ValueError) as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
