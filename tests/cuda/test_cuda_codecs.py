"""Records that a GPU encodes are the CPU's, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codings import CODES, every, words
from gpus import DEVICE, needs_gpu
from torch import Tensor

from softlabels.codecs import CODECS, Codec, PrincipalComponents, TransformCoding
from softlabels.codecs._summary import highest

pytestmark = [pytest.mark.cuda, needs_gpu]


def same(codec: Codec, rows: Tensor) -> None:
    expected = codec.encode(rows, words(len(rows)))
    found = codec.encode(rows.to(DEVICE), words(len(rows)))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@every
@pytest.mark.parametrize("classes", [1, 11, 1000, 21841])
@pytest.mark.parametrize("spread", [0.01, 3.0, 60.0])
def test_records_are_those_of_the_cpu(codec: Codec, classes: int, spread: float) -> None:
    chance = torch.Generator().manual_seed(classes)
    rows = spread * torch.randn(40 if classes > 1000 else 300, classes, generator=chance)
    same(codec, rows)
    same(codec, (8 * rows).round() / 8)


@every
def test_odd_rows_have_the_records_of_the_cpu(codec: Codec) -> None:
    rows = torch.zeros(8, 60)
    rows[1, 7], rows[2, 7], rows[3] = 80.0, -80.0, torch.linspace(-80, 80, 60)
    rows[4, :10], rows[5, :30], rows[6, 5:] = 80.0, -0.0, -1e4
    rows[7] = torch.arange(60) * 1e-7
    same(codec, rows)
    same(codec, torch.zeros(0, 20))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_taken_as_they_are(kind: torch.dtype) -> None:
    rows = torch.randn(500, 100, generator=torch.Generator().manual_seed(0)).to(kind)
    for codec in CODES:
        same(codec, rows)


@pytest.mark.parametrize("classes", [5, 1000, 21841])
def test_the_highest_classes_and_their_order_do_not_depend_on_the_device(classes: int) -> None:
    rows = torch.randint(-3, 4, (300, classes), generator=torch.Generator().manual_seed(0)).float()
    rows[0, ::2] = -0.0
    kept = min(10, classes)
    assert torch.equal(highest(rows.to(DEVICE), kept).cpu(), highest(rows, kept))


def test_a_large_batch_is_encoded_within_little_memory() -> None:
    if DEVICE != "cuda":
        pytest.skip("memory is measured on GPUs")
    rows = torch.randn(16384, 10_000, device=torch.device(DEVICE))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    CODECS.make("topk:10").encode(rows)
    assert torch.cuda.max_memory_allocated() - before < 1.5e9


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_features_in_8_bits_are_those_of_the_cpu(size: float) -> None:
    rows = size * torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    rows[3] = 0.0
    same(CODECS.make("int8"), rows)


def test_transform_labels_are_decoded_alike_on_both() -> None:
    chance = torch.Generator().manual_seed(1)
    weight = torch.randn(1000, 64, generator=chance)
    logits = torch.randn(8, 64, 64, generator=chance) @ weight.T
    codec = TransformCoding().fit_to(logits, views=8, weight=weight)
    arrays = codec.encode_shard(logits.to(DEVICE))
    for name, array in codec.encode_shard(logits).items():
        np.testing.assert_array_equal(arrays[name], array)
    labels = {name: array[0] for name, array in arrays.items()}
    with torch.autocast("cuda", torch.bfloat16):  # whole numbers must not be rounded
        there = codec.decode(labels, 1000, temperature=4.0, device=torch.device(DEVICE))
    assert there.device.type == "cuda" and there.dtype == torch.float32
    here = codec.decode(labels, 1000, temperature=4.0)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-6)
    assert torch.equal(there.argsort(dim=1).cpu(), here.argsort(dim=1))


def test_principal_components_are_decoded_alike_on_both() -> None:
    chance = torch.Generator().manual_seed(2)
    rows = torch.randn(2, 300, 20, generator=chance) @ torch.randn(20, 512, generator=chance) + 3
    codec = PrincipalComponents(k=16).fit_to(rows.to(DEVICE), views=2)
    assert codec == PrincipalComponents(k=16).fit_to(rows, views=2)
    arrays = codec.encode(rows[0].to(DEVICE))
    np.testing.assert_array_equal(arrays["record"], codec.encode(rows[0])["record"])
    with torch.autocast("cuda", torch.bfloat16):
        there = codec.decode(arrays, 512, device=torch.device(DEVICE))
    assert there.device.type == "cuda" and there.dtype == torch.float32
    torch.testing.assert_close(there.cpu(), codec.decode(arrays, 512), rtol=2e-3, atol=2e-2)
