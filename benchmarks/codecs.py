"""Bytes against fidelity of every codec, beside the 44-byte record of top-10 probabilities.

    python benchmarks/codecs.py [--rows 2000] [--seed 0]
    python benchmarks/codecs.py --logits FILE.npy
    python benchmarks/codecs.py --teacher resnext101 --data DIR [--weights W] [--recipe crop-flip] [--rows 2000]

The logits are synthetic, of two kinds, or those of a file, or what a real teacher says of `--rows` views of a data set.
Prints, for each kind of logits: bytes per label as stored, the same after bitshuffle and zstd (to show what compression
would save), KL(teacher || stored) at temperature 1, 2 and 4, and CPU microseconds per label to encode and to decode on
one thread. Below each table the codecs of 17.5 to 18.5 bytes are compared with the 44-byte record.

Two rows are re-implementations of others' ways: the record of TinyViT (Wu et al. 2022; ten half floats of
probabilities, ten 16-bit class numbers, a 4-byte seed; what is left is spread evenly), and columns of 8-bit steps with
16-bit class numbers, which need compression. "floor" is what a label that keeps ten exact values and the exact mass of
the others at each temperature loses: no even tail can do better.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import torch
from torch import Tensor

import softlabels
from softlabels.codecs import CODECS, Codec
from softlabels.dumping import plan as planning
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import teacher_spec
from softlabels.views import RECIPES

TEMPERATURES = (1.0, 2.0, 4.0)
MOST_BYTES = 18.5
CODES = [
    "topk:10",
    {"kind": "topk", "k": 10, "record": "fast"},
    {"kind": "topk", "k": 10, "levels": 64},
    {"kind": "topk", "k": 11, "levels": 12},
    "topk:5",
    "topk:20",
    "topk:30",
    "topk:100",
    "sampled:30",
    "head_tail:10",
    {"kind": "head_tail", "k": 10, "bits": 4},
    "quantized:4",
    "quantized:8",
    "dense:fp16",
    "dense:fp32",
]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    stored: float
    compressed: float
    kl: list[float]
    encode: float = 0.0
    decode: float = 0.0

    def __str__(self) -> str:
        kl = "  ".join(f"{value:8.5f}" for value in self.kl)
        times = f"{self.encode:8.1f} {self.decode:8.2f}" if self.encode else ""
        return f"{self.name:<34} {self.stored:8.1f} {self.compressed:10.1f}   {kl}   {times}"


HEADER = (
    f"{'codec':<34} {'bytes':>8} {'bitsh.+zstd':>10}  "
    + "  ".join(f"{f'KL T={temperature:g}':>8}" for temperature in TEMPERATURES)
    + "   encode us  decode us"
)


def outstanding(rows: int, seed: int, classes: int = 1000) -> Tensor:
    """A true class that stands out by 3 to 9, a dozen neighbours by 1.5 to 4, over Gaussian logits."""
    chance = torch.Generator().manual_seed(seed)
    logits = 1.25 * torch.randn(rows, classes, generator=chance)
    true = torch.randint(classes, (rows, 1), generator=chance)
    near = (true // 12 * 12 + torch.arange(12)) % classes
    logits.scatter_add_(1, near, 1.5 + 2.5 * torch.rand(rows, 12, generator=chance))
    return logits.scatter_add_(1, true, 3 + 6 * torch.rand(rows, 1, generator=chance))


def embedded(rows: int, seed: int, classes: int = 1000) -> Tensor:
    """Products of clustered class vectors and features between clear and doubtful: skewed tails, sure rows."""
    chance = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    vectors = 0.8 * normal(classes // 20 + 1, 48)[torch.arange(classes) // 20] + 0.6 * normal(classes, 48)
    true = torch.randint(classes, (rows,), generator=chance)
    features = 3 * torch.rand(rows, 1, generator=chance) * vectors[true] + 0.7 * normal(rows, 48)
    return 2 / 48**0.5 * features @ vectors.T + 0.6 * normal(rows, classes)


def divergence(source: Tensor, stored: Callable[[float], Tensor]) -> list[float]:
    """Mean KL(source || stored) at each temperature, in float64."""
    means = []
    for temperature in TEMPERATURES:
        p, q = ((rows.double() / temperature).log_softmax(-1) for rows in (source, stored(temperature)))
        means.append((p.exp() * (p - q)).sum(-1).mean().item())
    return means


def compressed_bytes(arrays: Mapping[str, np.ndarray]) -> float:
    """Bytes per label of the arrays, whole numbers by columns, in one bitshuffled zstd chunk each."""
    total = 0
    with h5py.File("compressed.h5", "w", driver="core", backing_store=False) as file:
        for name, array in arrays.items():
            values = array if array.dtype.kind == "f" else np.ascontiguousarray(array.T)
            filters = hdf5plugin.Blosc(cname="zstd", clevel=5, shuffle=hdf5plugin.Blosc.BITSHUFFLE)
            total += file.create_dataset(name, data=values, chunks=values.shape, **filters).id.get_storage_size()
    return total / len(next(iter(arrays.values())))


def measured(codec: Codec, name: str, logits: Tensor) -> Row:
    """A codec's line."""
    classes = logits.shape[1]
    words = np.random.default_rng(0).integers(0, 2**64, len(logits), np.uint64)
    codec.encode(logits[:256], words[:256])
    start = time.process_time()
    arrays = codec.encode(logits, words)
    encode = time.process_time() - start
    batches = [{key: array[i : i + 256] for key, array in arrays.items()} for i in range(0, len(logits), 256)]
    codec.decode(batches[0], classes)
    start = time.process_time()
    for batch in batches:
        codec.decode(batch, classes, temperature=2.0)
    decode = time.process_time() - start
    if codec.kind == "sampled":
        # One label is noisy by design and has no KL; its promise, no bias, is a test.
        lost = [float("nan")] * len(TEMPERATURES)
    else:
        lost = divergence(logits, lambda temperature: codec.decode(arrays, classes, temperature=temperature))
    scale = 1e6 / len(logits)
    return Row(name, codec.bytes_per_label(classes), compressed_bytes(arrays), lost, encode * scale, decode * scale)


def record_of_44_bytes(logits: Tensor, k: int = 10) -> tuple[Row, float]:
    """TinyViT's record, and the share of rows whose rounded probabilities leave less than nothing for the others."""
    values, ids = logits.softmax(-1).topk(k)
    values = values.half()
    left = 1 - values.float().sum(-1, keepdim=True)
    # Kinder than the original: neither a negative rest nor a value rounded to 0 is left to make its KL infinite.
    even = (left.clamp_min(1e-8) / (logits.shape[1] - k)).expand(-1, logits.shape[1])
    stored = even.scatter(1, ids, values.float().clamp_min(2.0**-24)).log()
    seeds = np.random.default_rng(0).integers(0, 256, (len(logits), 4), np.uint8)
    arrays = {"values": values.numpy(), "ids": ids.numpy().astype(np.int16), "seeds": seeds}
    row = Row("44-byte record", 4 * k + 4, compressed_bytes(arrays), divergence(logits, lambda _: stored))
    return row, (left < 0).float().mean().item()


def columns(logits: Tensor, k: int = 10, step: float = 1 / 8) -> Row:
    """Columns of 16-bit class numbers, 8-bit steps from each value to the next, and two tail bytes."""
    values, ids = logits.topk(k)
    numbers = ((values[:, :1] - values) / step).round()
    tail = torch.ones_like(logits, dtype=torch.bool).scatter_(1, ids, False)
    others = tail.sum(1)
    mass = values[:, 0] - logits.masked_fill(~tail, -torch.inf).logsumexp(1) + others.log()
    mean = values[:, 0] - (logits * tail).sum(1) / others
    mass, spread = (mass / step).round().clamp(max=255), ((mean - mass).clamp_min(0) / step).round().clamp(max=255)

    def stored(temperature: float) -> Tensor:
        level = step * (mass + spread * (1 - 1 / temperature))
        return (-level[:, None]).expand_as(logits).scatter(1, ids, -step * numbers)

    parts = torch.cat([numbers.diff(dim=1).clamp(max=255), mass[:, None], spread[:, None]], 1).byte()
    arrays = {"ids": ids.numpy().astype(np.uint16), "bytes": parts.numpy()}
    return Row("columns, steps of 1/8", 3 * k + 1, compressed_bytes(arrays), divergence(logits, stored))


def floor(logits: Tensor, k: int = 10) -> Row:
    """Exact values, and the exact mass of the others at each temperature."""
    tail = torch.ones_like(logits, dtype=torch.bool).scatter_(1, logits.topk(k).indices, False)

    def stored(temperature: float) -> Tensor:
        mass = (logits.double() / temperature).masked_fill(~tail, -torch.inf).logsumexp(1) - tail.sum(1).log()
        return torch.where(tail, mass[:, None] * temperature, logits.double())

    return Row("floor of any even tail, K=10", float("nan"), float("nan"), divergence(logits, stored))


def table(title: str, logits: Tensor) -> None:
    """Print the lines of one kind of logits."""
    rival, negative = record_of_44_bytes(logits)
    beyond = [1 - (logits / t).softmax(-1).topk(10).values.sum(-1).mean().item() for t in TEMPERATURES]
    shares = " / ".join(f"{share:.0%}" for share in beyond)
    print(f"\n{title}: {len(logits)} rows of {logits.shape[1]} classes; beyond the top 10 lie {shares} of the mass at")
    print(f"T = 1 / 2 / 4; the rounded probabilities of {negative:.0%} of the 44-byte records sum to more than 1")
    print(HEADER)
    print(rival)
    print(columns(logits))
    print(floor(logits))
    small = []
    for value in CODES:
        codec = CODECS.make(value)
        name = value if isinstance(value, str) else " ".join(f"{key}={each}" for key, each in value.items())
        row = measured(codec, name.removeprefix("kind="), logits)
        print(row, flush=True)
        small += [row] if MOST_BYTES - 1 <= row.stored <= MOST_BYTES else []
    for row in small:
        against = [ours / theirs - 1 for ours, theirs in zip(row.kl, rival.kl, strict=True)]
        verdict = "nowhere above" if max(against) <= 0 else "not everywhere below"
        shares = " / ".join(f"{share:+.2%}" for share in against)
        print(f"{row.name}: {row.stored:g} bytes, KL {shares} of the 44-byte record's, {verdict} it")


def said(options: argparse.Namespace) -> Tensor:
    """What a real teacher says of views spread over a data set."""
    images = softlabels.open_images(options.data)
    teacher = teacher_spec(options.teacher, options.weights).open(options.device)
    pictures = ViewDataset(
        images, RECIPES.make(options.recipe), options.seed, options.views, image_spec(teacher.preprocessing)
    )
    return planning.sample_outputs(pictures, teacher, options.rows, batch_size=32)[0]["logits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logits", type=Path, help="a real teacher's logits, float .npy of shape (rows, classes)")
    parser.add_argument("--teacher", help="a real teacher, named as on the command line; with --data")
    parser.add_argument("--data", help="what it is asked about, as on the command line")
    parser.add_argument("--weights", help="of the teacher")
    parser.add_argument("--recipe", default="crop-flip", help="of the views that it sees")
    parser.add_argument("--views", type=int, default=8, help="of each image, over which the rows are spread")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if (options.teacher is None) != (options.data is None):
        parser.error("--teacher and --data go together")
    if options.teacher or options.logits:
        given = options.logits and torch.from_numpy(np.load(options.logits, allow_pickle=False)).float()
        logits = said(options) if given is None else given
        if logits.ndim != 2 or logits.shape[1] <= 10:
            parser.error("records of the 10 highest classes are compared: more than 10 classes are needed")
        torch.set_num_threads(1)
        table(str(options.logits or f"{options.teacher} on {options.data}"), logits)
        return
    torch.set_num_threads(1)
    table("a class that stands out", outstanding(options.rows, options.seed))
    table("class vectors times features", embedded(options.rows, options.seed))


if __name__ == "__main__":
    main()
