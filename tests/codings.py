"""One codec of every kind, for tests that hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from softlabels.codecs import CODECS, Codec

EXAMPLES = [
    {"kind": "dense", "dtype": "fp16"},
    {"kind": "dense", "dtype": "fp32"},
    {"kind": "quantized", "bits": 8},
    {"kind": "quantized", "bits": 4},
    {"kind": "head_tail", "k": 3, "bits": 2},
    {"kind": "head_tail", "k": 10, "bits": 4},
    {"kind": "topk", "k": 1},
    {"kind": "topk", "k": 10},
    {"kind": "topk", "k": 10, "record": "fast"},
    {"kind": "topk", "k": 40},
    {"kind": "topk", "k": 11, "levels": 12},
    {"kind": "sampled", "k": 8},
    {"kind": "probabilities", "k": 8},
    {"kind": "probabilities", "k": 5, "temperature": 2.0, "tail": "none", "dtype": "fp32"},
    {"kind": "top_logits", "k": 6},
]
CODES = [CODECS.make(example) for example in EXAMPLES]


def named(codec: Codec) -> str:
    return "-".join(str(value) for value in codec.model_dump().values())


def words(rows: int) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 2**64, rows, np.uint64)


every = pytest.mark.parametrize("codec", CODES, ids=named)
